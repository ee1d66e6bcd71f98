"""Streams: any cut of a sequence gives the same bits, and the values of the layer."""

import os
import subprocess
import sys
import threading
import weakref

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import mlx_recurrent
import reference
from callables import COMPOSED as OTHERS
from callables import TRACED as ELEMENTWISE
from conftest import (
    ACTIVATIONS,
    DTYPES,
    array,
    call,
    case,
    draw,
    unreadable,
    upstream,
    upstream_layer,
)
from mlx_recurrent import RNN, Stream
from streams import PATHS, layer_of, numpy, same
from tolerances import ACTIVE, EPS, close, wide

# Leading axes, L, D, H: around the vector widths, and longer than a piece.
SHAPES = [
    (33, 16, 64),
    (70, 1, 1),
    (9, 257, 100),
    (40, 17, 257),
    (2, 21, 7, 31),
    (3, 20, 33, 16),
    (2, 3, 13, 15, 17),
    (64, 5, 8, 33),
]


NUMPY = {mx.float32: "f4", mx.float64: "f8", mx.float16: "f2", mx.bfloat16: "f4"}


def cuts_of(rng, x, L):
    """The sequence in pieces; None for a step, which has no axis of time."""
    yield [x]
    yield [x[..., t, :] for t in range(L)]
    for _ in range(3):
        places = np.sort(rng.integers(0, L + 1, 4))
        yield np.split(x, places, axis=-2)


def joined(pieces, ndim):
    return np.concatenate(
        [p if p.ndim == ndim else np.expand_dims(p, -2) for p in pieces], axis=-2
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_cuts(rng, shape, dtype, path):
    """The bits of any cut, their values, and the state."""
    if path == "composed":  # a tenth of a millisecond for each step
        shape = (*shape[:-3], min(shape[-3], 9), *shape[-2:])
    hidden = len(shape) > 3
    problem = case(rng, shape, dtype, hidden=hidden)
    stream = layer_of(problem, path).stream(problem.hidden)
    assert stream.plan.path == path
    x = numpy(problem.x)
    results = []
    for pieces in cuts_of(rng, x, shape[-3]):
        stream.reset(problem.hidden)
        states = joined([stream(piece) for piece in pieces], x.ndim)
        assert states.dtype == NUMPY[dtype]
        same(stream.state, np.ascontiguousarray(states[..., -1, :]))
        results.append(states)
    for states in results[1:]:
        same(states, results[0])
    close(array(results[0], dtype), call(upstream, problem), problem.states())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_activations(rng, activation, path, bias):
    problem = case(rng, (12, 5, 20), activation=activation, bias=bias, hidden=False)
    states = layer_of(problem, path).stream()(numpy(problem.x))
    close(array(states, mx.float32), call(upstream, problem), problem.states())


@pytest.mark.parametrize("name", [*ELEMENTWISE, "softmax", "cumsum", "glu"])
def test_callables(rng, name):
    """What users write: on its path, and as the layer."""
    found = {**ELEMENTWISE, **OTHERS}[name]
    layer = RNN(5, 20, nonlinearity=found.make())
    layer.set_dtype(mx.float64)
    if found.width > 1:
        layer.Wxh = mx.concatenate([layer.Wxh] * found.width)
        layer.Whh = mx.concatenate([layer.Whh] * found.width)
        layer.bias = mx.concatenate([layer.bias] * found.width)
    x = rng.standard_normal((2, 9, 5))
    stream = layer.stream(np.zeros((2, 20)))
    states = stream(x)
    assert stream.plan.path == found.path
    x, weights = array(x, mx.float64), (layer.Wxh, layer.Whh, layer.bias)
    theirs = upstream_layer(x, *weights, found.make())(x)
    truth = reference.rnn(*map(wide, (x, *weights)), activation=found.twin)
    close(array(states, mx.float64), theirs, truth)
    assert stream.state.shape == (2, 20)


def test_plan():
    plan = RNN(3, 6).stream(mx.zeros((300, 6))).plan
    assert (plan.path, plan.threads, plan.partition) == ("native", 1, "none")
    plan = RNN(3, 6, nonlinearity=nn.Softmax()).stream().plan
    assert plan.path == "composed" and "Softmax" in plan.reason
    assert "every step by itself" in str(plan)
    with mlx_recurrent.exporting():
        stream = RNN(3, 6).stream()
    assert stream.plan.path == "composed"
    assert stream(np.ones(3)).shape == (6,)


@pytest.mark.parametrize("path", PATHS)
def test_weights_are_a_copy(rng, path):
    problem = case(rng, (7, 5, 8), hidden=False)
    layer, x = layer_of(problem, path), numpy(problem.x)
    stream = layer.stream()
    before = stream(x)
    layer.Wxh[0] = 7.0
    layer.Whh[:] = mx.zeros((8, 8))
    layer.bias = layer.bias + 1
    stream.reset()
    same(stream(x), before)
    assert not np.array_equal(layer.stream()(x), before)


def test_a_nonlinearity_with_parameters_is_a_copy():
    """In evaluation mode too, and the layer's stays as it is."""
    layer = RNN(3, 6, nonlinearity=nn.Sequential(nn.PReLU(), nn.Dropout(0.9)))
    x = np.linspace(-1, 1, 3)
    stream = layer.stream()
    before = stream(x)
    assert layer.nonlinearity.layers[1].training
    layer.nonlinearity.layers[0].weight[:] = mx.array([9.0])
    stream.reset()
    same(stream(x), before)


@pytest.mark.parametrize("path", PATHS)
def test_states(rng, path):
    problem = case(rng, (3, 6, 5, 8))
    layer, x = layer_of(problem, path), numpy(problem.x)
    stream = layer.stream(problem.hidden)
    same(stream.state, numpy(problem.hidden))
    first = stream(x[:, :2])
    state = stream.state
    state[:] = np.nan  # the caller's own
    second = stream(x[:, 2:])
    stream.reset(first[:, -1])
    same(stream(x[:, 2:]), second)
    stream.reset()
    same(stream.state, np.zeros((3, 8), np.float32))
    whole = problem.of(hidden=None)
    close(mx.array(stream(x)), call(upstream, whole), whole.states())
    # A stream begun at a state is that of another.
    same(layer.stream(first[:, -1])(x[:, 2:]), second)


@pytest.mark.parametrize("path", PATHS)
def test_without_a_state_there_is_no_product(path):
    """In the first step: a weight that is not finite does not matter, as in MLX."""
    layer = RNN(2, 4, nonlinearity=PATHS[path]["tanh"])
    layer.Whh = mx.full((4, 4), mx.inf)
    stream = layer.stream()
    x = np.ones((2, 2), np.float32)
    assert np.isfinite(stream(x[0])).all()
    stream.reset()
    assert np.isfinite(stream(x)[0]).all()
    stream.reset(np.zeros(4))
    assert np.isnan(stream(x[0])).all()


@pytest.mark.parametrize("path", PATHS)
def test_a_state_to_begin_with(rng, path):
    problem = case(rng, (4, 5, 8))
    f = PATHS[path]["tanh"]
    weights = (problem.Wxh, problem.Whh, problem.bias)
    learned = Stream(*weights, nonlinearity=f, hidden0=problem.hidden)
    given = Stream(*weights, problem.hidden, nonlinearity=f)
    x = numpy(problem.x)
    same(learned.state, numpy(problem.hidden))
    states = learned(x)
    same(states, given(x))
    learned.reset()
    same(learned(x), states)
    # A batch has its axes from the state that it is given; then each row restarts.
    rows = Stream(*weights, np.ones((3, 8)), nonlinearity=f, hidden0=problem.hidden)
    assert (rows.state == 1).all()
    rows.reset()
    for got in (states, rows(np.stack([x] * 3))[2]):
        close(mx.array(got), call(upstream, problem), problem.states())


@pytest.mark.parametrize("shape", [(), (1,), (1, 9)], ids=str)
def test_other_shapes_of_the_bias(rng, shape):
    layer = RNN(3, 9)
    layer.bias = draw(rng, shape, mx.float32)
    x = draw(rng, (4, 3), mx.float32)
    same = RNN(3, 9)
    same.Wxh, same.Whh = layer.Wxh, layer.Whh
    same.bias = mx.broadcast_to(layer.bias.reshape(-1), (9,))
    np.testing.assert_array_equal(layer.stream()(x), same.stream()(x))
    layer.bias = mx.zeros((2, 9))
    with pytest.raises(ValueError, match=r"bias must have shape \(9,\) for a stream"):
        layer.stream()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{"leak": 0.3}, {"zoneout": 0.4}, {"each": True}])
def test_leak_and_zoneout(rng, options, dtype, path):
    """As the layer in evaluation, whatever mode it is in; dropout is not there."""
    if "each" in options:
        leak = rng.uniform(0.01, 1, 33)
        leak[::5] = 1
        options = {"leak": array(leak, dtype), "zoneout": 0.2, "learn_hidden": True}
    layer = RNN(
        5,
        33,
        nonlinearity=PATHS[path]["tanh"],
        input_dropout=0.5,
        recurrent_dropout=0.5,
        **options,
    )
    layer.set_dtype(dtype)
    if "hidden0" in layer:
        layer.hidden0 = array(rng.standard_normal(33), dtype)
    x = array(rng.standard_normal((20, 5)), dtype)
    stream = layer.stream()
    states = stream(numpy(x))
    stream.reset()
    same(np.stack([stream(step) for step in numpy(x)]), states)
    layer.eval()
    error = np.abs(states - numpy(layer(x))).max()
    assert error <= 8 * EPS[dtype]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs(rng, dtype, path):
    """Whatever holds the same numbers gives the same bits, and is left alone."""
    layer = RNN(4, 8, nonlinearity=PATHS[path]["tanh"])
    layer.set_dtype(dtype)
    stream = layer.stream()
    x = rng.integers(-3, 4, (6, 4)).astype(np.float32)
    expected = stream(x)
    wide = np.full((12, 9), np.nan, np.float32)
    wide[1::2, 8:0:-2] = x
    read_only = x.copy()
    read_only.flags.writeable = False
    misplaced = np.frombuffer(b"0" + x.astype("f8").tobytes(), "f8", offset=1)
    for other in (
        x.astype(int),
        x.astype(np.int8),
        x.astype(np.float16),
        x.astype(np.float64),
        x.astype(">f4"),
        wide[1::2, 8:0:-2],
        np.asfortranarray(x),
        read_only,
        misplaced.reshape(x.shape),
        mx.array(x),
        mx.array(x).astype(mx.bfloat16),
        mx.array(x).astype(mx.int32),
        mx.array(x.T).T,
        mx.array(x[::-1].copy())[::-1],
        np.ma.masked_array(x),
    ):
        stream.reset()
        got = stream(other)
        assert type(got) is np.ndarray and got.flags.owndata and got.flags.writeable
        same(got, expected)
    same(x, read_only)
    stream.reset()
    same(stream(x[0] > 0), stream.state)


class Foreign:
    """An array of a library that is not known."""

    def __init__(self, a):
        self.__dlpack__, self.__dlpack_device__ = a.__dlpack__, a.__dlpack_device__


def test_other_libraries(rng):
    stream, x = RNN(4, 8).stream(), rng.standard_normal((5, 4)).astype(np.float32)
    expected = stream(x)
    stream.reset()
    same(stream(Foreign(x)), expected)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_out(rng, dtype, path):
    problem = case(rng, (2, 40, 8, 8), dtype)
    stream = layer_of(problem, path).stream(problem.hidden)
    x = numpy(problem.x)
    expected = stream(x)
    stream.reset(problem.hidden)
    out = np.full((2, 40, 8), np.nan, NUMPY[dtype])
    count = sys.getrefcount(out)
    got = stream(x, out=out)
    assert got is out
    del got
    now = sys.getrefcount(out)
    assert now == count
    same(out, expected)
    step = np.empty((2, 8), NUMPY[dtype])
    stream.reset(problem.hidden)
    for t in range(3):
        assert stream(x[:, t], out=step) is step
        same(step, expected[:, t].copy())
    # The input's own memory, and a part of it.
    stream.reset(problem.hidden)
    own = x.copy()
    same(stream(own, out=own), expected)
    one = layer_of(problem, path).stream(problem.hidden[0])
    expected = one(x[0])
    one.reset(problem.hidden[0])
    for shift in (1, -1):
        room = np.zeros((42, 8), NUMPY[dtype])
        inside = room[1:41]
        inside[:] = x[0]
        one.reset(problem.hidden[0])
        same(one(inside, out=room[1 + shift : 41 + shift]).copy(), expected)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("lead", [(), (0,), (3,), (2, 0)])
@pytest.mark.parametrize("L", [0, 2])
def test_empty(path, lead, L):
    layer = RNN(5, 8, nonlinearity=PATHS[path]["tanh"])
    stream = layer.stream(np.ones((*lead, 8)))
    got = stream(np.ones((*lead, L, 5)))
    assert got.shape == (*lead, L, 8) and np.isfinite(got).all()
    if L == 0:
        assert (stream.state == 1).all()
    assert RNN(0, 8).stream()(np.ones((L, 0))).shape == (L, 8)


@pytest.mark.parametrize("path", PATHS)
def test_errors(path):
    """They name the argument and the rule, and leave the state as it is."""
    layer = RNN(4, 8, nonlinearity=PATHS[path]["tanh"])
    stream = layer.stream(np.ones((3, 8)))
    x, out = np.ones((3, 2, 4), np.float32), np.zeros((3, 2, 8), np.float32)
    read_only = out.copy()
    read_only.flags.writeable = False
    for message, error, arguments in (
        (r"x must have shape \(3, 4\) or \(3, L, 4\)", ValueError, (x[0],)),
        (r"has shape \(3, 2, 3\)", ValueError, (x[..., :3],)),
        (r"has shape \(2, 2, 4\)", ValueError, (x[:2],)),
        (r"has shape \(\)", ValueError, (np.ones(()),)),
        (r"has shape \(1, 3, 2, 4\)", ValueError, (x[None],)),
        ("x must hold real numbers, but has dtype complex64", ValueError, (x * 1j,)),
        ("x must hold real numbers", ValueError, (x.astype(str),)),
        ("x must be a NumPy or MLX array, but is list", TypeError, (x.tolist(),)),
        ("x must be a NumPy or MLX array, but is NoneType", TypeError, (None,)),
        (
            "out must be a numpy.ndarray, but is mlx.core.array",
            TypeError,
            (x, mx.array(out)),
        ),
        (r"out must have shape \(3, 2, 8\), but", ValueError, (x, out[:, 0])),
        ("out must have dtype float32, but", ValueError, (x, out.astype("f8"))),
        ("contiguous, aligned and writeable", ValueError, (x, read_only)),
        ("contiguous", ValueError, (x, np.zeros((3, 2, 16), "f4")[..., ::2])),
    ):
        with pytest.raises(error, match=message):
            stream(arguments[0], out=arguments[1] if arguments[1:] else None)
    for message, error, hidden in (
        (
            r"hidden must have shape \(3, 8\), but has shape \(8,\)",
            ValueError,
            out[0, 0],
        ),
        ("hidden must hold real numbers", ValueError, np.ones((3, 8)) * 1j),
        ("hidden must be a NumPy or MLX array, but is int", TypeError, 1),
    ):
        with pytest.raises(error, match=message):
            stream.reset(hidden)
    assert (stream.state == 1).all() and (out == 0).all()
    for message, error, hidden in (
        (r"hidden must have shape \(3, 8\), but", ValueError, np.ones((3, 7))),
        (r"hidden must have shape \(8,\), but", ValueError, np.ones(())),
        ("hidden must be a NumPy or MLX array, but is list", TypeError, [0.0] * 8),
    ):
        with pytest.raises(error, match=message):
            layer.stream(hidden)
    if path == "native":  # any other function may change the number of features
        layer.Whh = mx.zeros((8, 7))
        with pytest.raises(ValueError, match="Whh must have shape"):
            layer.stream()


def test_a_callable_that_fails():
    """It leaves the state, and what was to be overwritten."""
    broken = []

    def f(a):
        if broken and broken.pop():
            raise KeyError
        return unreadable(mx.sin)(a)

    stream = RNN(4, 8, nonlinearity=f).stream()
    assert stream.plan.path == "composed"
    x = np.ones((6, 4))
    stream(x)
    before, out = stream.state, np.zeros((6, 8), np.float32)
    broken += [True, False, False]
    with pytest.raises(KeyError):
        stream(x, out=out)
    same(stream.state, before)
    assert not broken and not out.any()

    for wrong, error in (
        (lambda a: None, TypeError),
        (lambda a: a[..., :3], ValueError),
        (lambda a: a.astype(mx.complex64), ValueError),
    ):
        stream = RNN(4, 8, nonlinearity=wrong).stream()
        with pytest.raises(error, match="nonlinearity returned"):
            stream(x)
        assert not stream.state.any()


def test_a_callable_is_read_once():
    """On the traced path: with the number that it captured then."""
    calls, scale = [], [0.5]

    def f(a):
        calls.append(a)
        return mx.sin(scale[0] * a)

    stream = RNN(4, 8, nonlinearity=f).stream()
    assert stream.plan.path == "traced"
    count, x = len(calls), np.ones((6, 4))
    before = stream(x)
    scale[0] = 2.0
    stream.reset()
    same(stream(x), before)
    assert len(calls) == count


def test_no_random_numbers_are_drawn():
    mx.random.seed(3)
    layer = RNN(4, 8, nonlinearity=lambda a: a + mx.random.normal(a.shape))
    state = np.array(mx.random.state[0])
    stream = layer.stream()
    same(np.array(mx.random.state[0]), state)
    assert not np.array_equal(stream(np.ones(4)), stream(np.ones(4)))


@pytest.mark.parametrize("path", ["native", "traced"])
def test_threads(rng, path):
    """Streams in threads of their own give what they give alone."""
    problems = [case(rng, (2, 3000, 16, 64)) for _ in range(4)]
    streams = [layer_of(p, path).stream(p.hidden) for p in problems]
    inputs = [numpy(p.x) for p in problems]
    expected = [s(x) for s, x in zip(streams, inputs, strict=True)]
    failures = []

    def work(stream, x, hidden, states):
        try:
            for sizes in ((3000,), (1,) * 500, (700, 1500, 800), (40,) * 75):
                stream.reset(hidden)
                at = 0
                for size in sizes:
                    got = stream(x[:, at : at + size])
                    same(got, np.ascontiguousarray(states[:, at : at + size]))
                    at += size
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=(s, x, numpy(p.hidden), y))
        for s, x, p, y in zip(streams, inputs, problems, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


@pytest.mark.parametrize("path", PATHS)
def test_one_stream_in_several_threads(path):
    """They take turns: each call starts from what another left, none from a mixture.

    With this weight the state counts the steps.
    """
    layer = RNN(1, 16, nonlinearity=PATHS[path]["identity"])
    layer.Wxh, layer.Whh = mx.ones((16, 1)), mx.eye(16)
    layer.bias = mx.zeros(16)
    stream = layer.stream()
    sizes = [1, 3] if path == "composed" else [1, 50, 30_000]  # with and without GIL
    results = []

    def work(size):
        for _ in range(10):
            results.append(stream(np.ones((size, 1), np.float32)))

    threads = [threading.Thread(target=work, args=(size,)) for size in sizes * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counted = np.concatenate(sorted(results, key=lambda r: r[0, 0]))
    np.testing.assert_array_equal(
        counted, np.arange(1, len(counted) + 1)[:, None] + 0 * counted
    )


FORK = """
import os, signal, threading
import mlx.core as mx, numpy as np
import mlx_recurrent
from mlx_recurrent import RNN

mx.set_default_device(mx.cpu)
layer = RNN(16, 512)
mlx_recurrent.set_num_threads(3)
mx.eval(layer(mx.ones((4, 200, 16))))  # MLX's threads, and the kernels'
stream = layer.stream()
x = np.ones((600, 16), np.float32)
expected = stream(x)
stream.reset()
assert np.array_equal(stream(x[:50]), expected[:50])
child = os.fork()
signal.alarm(200)  # ends a child that hangs
assert np.array_equal(stream(x[50]), expected[50])
assert np.array_equal(stream(x[51:]), expected[51:])
if child == 0:
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_fork_after_first_use():
    """A child goes on from the state at the fork, and so does its parent."""
    done = subprocess.run(
        [sys.executable, "-c", FORK],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and done.stdout == "done\n", done.stdout


def test_nothing_is_kept():
    """Of inputs and results; a stream holds no array of MLX's, and dies at once."""
    layer = RNN(16, 64)
    mx.eval(layer.parameters())
    before = mx.get_active_memory()
    stream = layer.stream()
    x, out = np.ones(16, np.float32), np.empty(64, np.float32)
    counts = [sys.getrefcount(a) for a in (x, out, stream)]
    for _ in range(1000):
        stream(x)
        stream(x, out=out)
    assert [sys.getrefcount(a) for a in (x, out, stream)] == counts
    result = stream(x)
    assert sys.getrefcount(result) == 2 and result.base is None
    assert mx.get_active_memory() - before <= ACTIVE
    alive = weakref.ref(stream)
    del stream
    assert alive() is None
