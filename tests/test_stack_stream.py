"""Stacks step by step: ``step`` in the graph and ``stream`` outside it."""

import subprocess
import sys
import threading
import weakref

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import networks
from conftest import COMPOSED, DTYPES, NATIVE, TRACED, array, draw, name_of, unreadable
from mlx_recurrent import RNN, Bidirectional, Stack
from mlx_recurrent.interop import Reversed
from mlx_recurrent.layers.stack_stream import StackStream
from networks import in_dtype
from optional import problem
from tolerances import ACTIVE, EPS, close, equal, wide

PATHS = {"native": NATIVE, "traced": TRACED, "composed": COMPOSED}
N, L, D, H = 3, 11, 4, 8


def numpy(a):
    return np.array(a.astype(mx.float32) if a.dtype == mx.bfloat16 else a)


def same(a, b):
    assert a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


def build(dtype=mx.float32, path="native", num_layers=2, D=D, **options):
    f = PATHS[path]["tanh"]
    return in_dtype(Stack.build(D, H, num_layers, nonlinearity=f, **options), dtype)


def states_for(rng, model, dtype=mx.float32):
    return [draw(rng, (N, H), dtype) for _ in model.layers]


def widened(tree):
    """The arrays of a tree in NumPy."""
    if isinstance(tree, dict):
        return {name: widened(item) for name, item in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [widened(item) for item in tree]
    return wide(tree) if isinstance(tree, mx.array) else tree


def others(model, x, hidden=None, **keywords):
    """What upstream makes of it and the truth: of the outputs and of each state."""
    of_mlx = [model.parameters(), x, hidden]
    results = []
    for xp, given in ((mx, of_mlx), (np, widened(of_mlx))):
        outputs, states = networks.network(xp, *given, **keywords)
        results.append([outputs[-1], *states])
    return zip(*results, strict=True)


def agrees(got, states, model, x, hidden=None, **keywords):
    """A stream's outputs and states, of what the stack ran over."""
    dtype = model.layers[-1].Wxh.dtype
    pairs = others(model, x, hidden, residual=model.residual, **keywords)
    for a, (theirs, truth) in zip([got, *states], pairs, strict=True):
        close(array(a, dtype), theirs, truth)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_cuts_and_resets(rng, num_layers, residual, dtype, path):
    """Values and states, and the bits of any cut."""
    features = H if residual else D  # with a residual at every layer, or at all but one
    model = build(dtype, path, num_layers, features, residual=residual)
    x, hidden = draw(rng, (N, L, features), dtype), states_for(rng, model, dtype)
    reset = rng.random((N, L)) < 0.25
    stream, given = model.stream(hidden), numpy(x)
    assert type(stream) is StackStream and stream.plan.path == path
    plain = stream(given)
    agrees(plain, stream.state, model, x, hidden)
    stream.reset(hidden)
    expected = stream(given, reset=reset)
    agrees(expected, stream.state, model, x, hidden, reset=reset)
    last = stream.state
    for places in (range(1, L), [3, 3, 8]):
        stream.reset(hidden)
        pieces = np.split(given, places, axis=1), np.split(reset, places, axis=1)
        got = [stream(a, reset=r) for a, r in zip(*pieces, strict=True)]
        same(np.concatenate(got, 1), expected)
    stream.reset(hidden)
    steps = [stream(given[:, t], reset=reset[:, t]) for t in range(L)]
    same(np.stack(steps, 1), expected)
    for a, b in zip(stream.state, last, strict=True):
        same(a, b)
    # Without a batch.
    one = model.stream()
    got = one(mx.array(x[0]))
    agrees(got[None], [s[None] for s in one.state], model, x[:1])
    one.reset()
    same(np.stack([one(step) for step in given[0]]), got)


# What MLX promotes along the layers, also with a wider layer before a narrower one.
MIXTURES = [
    (mx.float16, mx.float32, mx.float32),
    (mx.float32, mx.float16, mx.float32),
    (mx.bfloat16, mx.float16, mx.float32),
    (mx.bfloat16, mx.float64, mx.float64),
    (mx.float64, mx.bfloat16, mx.float64),
]


@pytest.mark.parametrize("first, second, result", MIXTURES)
@pytest.mark.parametrize("residual", [False, True])
def test_layers_of_unlike_dtypes(rng, first, second, result, residual):
    model = build(D=H, residual=residual)
    for layer, dtype in zip(model.layers, (first, second), strict=True):
        layer.set_dtype(dtype)
    x = draw(rng, (N, L, H), first)
    before = [layer.Wxh.dtype for layer in model.layers]
    stream = model.stream([mx.zeros((N, H)), None])
    got = stream(numpy(x))
    assert [layer.Wxh.dtype for layer in model.layers] == before
    (theirs, truth), *_ = others(model, x, residual=residual)
    assert theirs.dtype == result
    close(array(got, result), theirs, truth, rounded_to=first)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_residuals_round_as_mlx_does(dtype):
    """Halves to even, what overflows, NaN and infinities."""
    big = {mx.float16: 60000.0, mx.float64: 1.7e308}.get(dtype, 3.3e38)
    values = [1.0, 1 + EPS[dtype], 2.0, 258.0, -0.0, big, -big, np.inf, -np.inf, np.nan]
    x = array([[a, b] for a in values for b in values], dtype)
    layer = RNN(2, 2, nonlinearity=nn.Identity(), bias=False)
    layer.Wxh, layer.Whh = mx.array([[0, 1.0], [1, 0]]), mx.zeros((2, 2))
    model = in_dtype(Stack([layer], residual=True), dtype)
    got = model.stream([mx.zeros((len(x), 2))])(numpy(x))
    finite = mx.all(mx.isfinite(x), axis=1, keepdims=True)
    exact = (x + x[:, ::-1]).astype(dtype)  # 0 * inf of the weight is NaN
    for row, (ours, theirs) in enumerate(zip(got, numpy(exact), strict=True)):
        if finite[row].item():
            np.testing.assert_array_equal(ours, theirs)
        else:
            assert not np.isfinite(ours).all()


def test_nested_stacks_and_one_layer(rng):
    inner = Stack([RNN(H, H), RNN(H, H)], residual=True)
    model = Stack([RNN(D, H), inner, Stack([RNN(H, H)])], residual=True)
    x = draw(rng, (N, L, D), mx.float32)
    first, _, third = model.layers
    weights = [layer.parameters() for layer in (first, *inner.layers, *third.layers)]

    def outputs(xp, weights, x):
        h = networks.layer(xp, weights[0], x)[0]
        a = h + networks.layer(xp, weights[1], h)[0]
        a = a + networks.layer(xp, weights[2], a)[0]
        b = h + a  # the outer residual
        return b + networks.layer(xp, weights[3], b)[0]

    stream = model.stream([mx.zeros((N, H)), None, [None]])
    got = stream(numpy(x))
    close(
        mx.array(got),
        outputs(mx, weights, x),
        outputs(np, widened(weights), wide(x)),
    )
    assert [np.shape(s) for s in stream.state] == [(N, H), (2, N, H), (1, N, H)]
    assert list(stream.plan.parts) == [f"layers[{i}]" for i in range(3)]
    assert list(stream.plan.parts["layers[1]"].parts) == ["layers[0]", "layers[1]"]
    stream.reset()
    same(np.stack([stream(x_t) for x_t in numpy(x).swapaxes(0, 1)], 1), got)
    state = stream.state
    more = stream(numpy(x))
    stream.reset(state)
    same(stream(numpy(x)), more)


def test_states(rng):
    """Given, partly given, and learned."""
    model = build(learn_hidden=True)
    for layer in model.layers:
        layer.hidden0 = draw(rng, (H,), mx.float32)
    x, hidden = draw(rng, (N, L, D), mx.float32), states_for(rng, model)
    learned = [mx.broadcast_to(layer.hidden0, (N, H)) for layer in model.layers]

    def run(stream):
        return stream(numpy(x))

    for given, full in (
        (hidden, hidden),
        ([hidden[0], None], [hidden[0], learned[1]]),
        ((None, np.array(hidden[1])), [learned[0], hidden[1]]),
    ):
        stream = model.stream(given)
        for state, expected in zip(stream.state, full, strict=True):
            same(state, np.array(mx.contiguous(expected)))
        got = run(stream)
        (theirs, truth), *_ = others(_without_learned(model), x, full)
        close(mx.array(got), theirs, truth)
        stream.reset(given)
        same(run(stream), got)
        stream.reset()
        for state, expected in zip(stream.state, learned, strict=True):
            same(state, np.array(mx.contiguous(expected)))
    one = model.stream()
    same(one.state[1], np.array(model.layers[1].hidden0))
    one.state[0][:] = np.nan  # the caller's own
    assert np.isfinite(one(np.ones(D))).all()
    assert [np.shape(s) for s in one.state] == [(H,)] * 2


def _without_learned(model):
    copied = Stack.build(D, H, 2)
    for layer, other in zip(copied.layers, model.layers, strict=True):
        layer.Wxh, layer.Whh, layer.bias = other.Wxh, other.Whh, other.bias
    return copied


def test_inputs_and_out(rng):
    for residual in (False, True):
        model = build(D=H, residual=residual)
        stream, x = (
            model.stream(states_for(rng, model)),
            draw(rng, (N, L, H), mx.float32),
        )
        hidden, given = stream.state, numpy(x)
        expected = stream(given)
        for other in (given.astype(">f8"), np.asfortranarray(given), x, given.copy()):
            stream.reset(hidden)
            same(stream(other), expected)
        out = np.full((N, L, H), np.nan, np.float32)
        stream.reset(hidden)
        assert stream(given, out=out) is out
        same(out, expected)
        own = given.copy()
        stream.reset(hidden)
        same(stream(own, out=own), expected)
        room = np.zeros((N + 1, L, H), np.float32)  # a part of the input's memory
        room[:N] = given
        stream.reset(hidden)
        same(stream(room[:N], out=room[1:]).copy(), expected)
        assert stream(given[:, :0]).shape == (N, 0, H)


@pytest.mark.parametrize("residual", [False, True])
def test_errors_leave_every_state(rng, residual):
    model = build(residual=residual, D=H)
    stream = model.stream(states_for(rng, model))
    before, x = stream.state, np.ones((N, L, H), np.float32)
    for error, message, arguments in (
        (ValueError, r"x must have shape \(3, 8\) or \(3, L, 8\)", {"x": x[0]}),
        (TypeError, "x must be a NumPy or MLX array", {"x": None}),
        (ValueError, "x must hold real numbers", {"x": x * 1j}),
        (ValueError, r"out must have shape \(3, 11, 8\)", {"x": x, "out": x[:, 0]}),
        (TypeError, "out must be a numpy.ndarray", {"x": x, "out": 3}),
        (ValueError, "out must have dtype", {"x": x, "out": x.astype("f8")}),
        (ValueError, r"reset must have shape \(3, 11\)", {"x": x, "reset": [True] * N}),
        (ValueError, "reset must be 0 or 1", {"x": x[:, 0], "reset": [0, 1, 2]}),
    ):
        with pytest.raises(error, match=message):
            stream(**arguments)
    for error, message, hidden in (
        (TypeError, "hidden must be a list .*ndarray", before[0]),
        (ValueError, "one entry for each of the 2 layers, but has 1", before[:1]),
        (ValueError, r"hidden must have shape \(3, 8\)", [before[1], before[0][0]]),
        (TypeError, "hidden must be a NumPy or MLX array", [before[1], 3]),
    ):
        with pytest.raises(error, match=message):
            stream.reset(hidden)
        with pytest.raises(error, match=message.replace(r"shape \(3, 8\)", "entries")):
            model.stream(hidden)
    with pytest.raises(TypeError, match="hidden must be a NumPy or MLX array"):
        model.stream([np, None])
    for a, b in zip(stream.state, before, strict=True):
        same(a, b)


def test_a_callable_that_fails_in_the_last_layer():
    """The first layer, which had run, goes back; also to having no state."""
    broken = []

    def f(a):
        if broken:
            raise broken.pop()
        return unreadable(mx.sin)(a)

    model = Stack([RNN(H, H), RNN(H, H), RNN(H, H, nonlinearity=f)])
    stream, x, out = model.stream(), np.ones((L, H)), np.zeros((L, H), np.float32)
    first = stream(x)
    before = stream.state
    for error in (KeyError, KeyboardInterrupt):
        broken.append(error)
        with pytest.raises(error):
            stream(x, out=out)
        for a, b in zip(stream.state, before, strict=True):
            same(a, b)
    model.layers[0].Whh = mx.full(
        (H, H), mx.nan
    )  # of no effect where there is no state
    stream = model.stream()
    broken.append(KeyError)
    with pytest.raises(KeyError):
        stream(x[:1])
    assert np.isfinite(stream(x[:1])).all() and not out.any() and first.any()


def test_evaluation_mode_and_copies(rng):
    """No dropout of any kind, whatever the mode; what happens to the stack later."""
    model = build(dropout=0.5, zoneout=0.3, input_dropout=0.4, recurrent_dropout=0.2)
    x = draw(rng, (L, D), mx.float32)
    state = np.array(mx.random.state[0])
    stream = model.stream()
    got = stream(numpy(x))
    np.testing.assert_array_equal(state, np.array(mx.random.state[0]))
    h, exact = x, x.astype(mx.float64)
    for layer in model.layers:
        p = problem(
            rng, (), L, h.shape[-1], H, hidden=False, zoneout=0.3, training=False
        )
        weights = layer.Wxh, layer.Whh, layer.bias
        h = p.plain(h, *weights)[0]
        exact = p.plain(exact, *(a.astype(mx.float64) for a in weights))[0]
    close(mx.array(got), h, wide(exact))
    for layer in model.layers:
        layer.Wxh = layer.Wxh + 1
        layer.Whh[:] = mx.zeros((H, H))
    stream.reset()
    same(stream(numpy(x)), got)


NO_STEPS = {
    "Bidirectional": (Bidirectional(RNN(D, H)), "a Bidirectional"),
    "Reversed": (Reversed(RNN(D, H)), "a Reversed"),
    "Stack": (Stack([RNN(D, D), Bidirectional(RNN(D, H))]), r"layers\[1\], a Bidirect"),
    "nested": (
        Stack([Stack([RNN(D, D), Reversed(RNN(D, H))])]),
        r"layers\[0\].layers\[1\], a Reversed",
    ),
    "build": (
        Stack.build(D, H, 2, bidirectional=True),
        r"layers\[0\], a Bidirectional",
    ),
}


@pytest.mark.parametrize("name", NO_STEPS)
def test_time_must_be_whole(name):
    model, named = NO_STEPS[name]
    for method, run in {
        "step": lambda: model.step(mx.zeros((N, D)), None, reset=[True] * N),
        "stream": lambda: model.stream(None),
    }.items():
        with pytest.raises(TypeError, match=named) as error:
            run()
        assert str(error.value).startswith(f"{method} needs a layer that runs forward")
        assert "time must be whole" in str(error.value)


def test_layers_that_have_no_steps():
    model = Stack([RNN(D, H), nn.RNN(H, H)])
    for method in (
        model.stream,
        lambda: model.step(mx.zeros(D)),
        lambda: model.plan(mx.zeros((L, D))),
    ):
        with pytest.raises(
            TypeError, match=r"layers\[1\] must have the method \w+, .*nn\..*RNN"
        ):
            method()

    class Block(nn.Module):
        def stream(self, hidden=None):
            return np.zeros(3)

        def __call__(self, x, hidden=None):
            return x

    with pytest.raises(TypeError, match=r"layers\[0\].stream must return .*ndarray"):
        Stack([Block()]).stream()


class Wrapped(nn.Module):
    """A user's module around a layer."""

    def __init__(self):
        super().__init__()
        self.rnn = RNN(H, H)
        self.step, self.stream, self.plan = (
            self.rnn.step,
            self.rnn.stream,
            self.rnn.plan,
        )

    def __call__(self, x, hidden=None, **keywords):
        return self.rnn(x, hidden, **keywords)


def test_a_module_around_a_layer(rng):
    model, x = Stack([RNN(D, H), Wrapped()]), draw(rng, (L, D), mx.float32)
    inside = Stack([model.layers[0], model.layers[1].rnn])
    (theirs, truth), *_ = others(inside, x[None])
    close(mx.array(model.stream()(x)), theirs[0], truth[0])
    assert model.plan(x).path == "native"


def test_threads_take_turns():
    """Each call goes through all layers from what another left, none from a mixture.

    The first layer counts the steps, the second adds the counts.
    """
    layers = [RNN(1, 1, nonlinearity=nn.Identity(), bias=False) for _ in range(2)]
    for layer in layers:
        layer.Wxh = layer.Whh = mx.ones((1, 1))
    stream, results = Stack(layers).stream(), []
    failures = []

    def work(size):
        try:
            for _ in range(200):
                results.append(stream(np.ones((size, 1), np.float32)))
                assert len(stream.state) == 2
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(size,)) for size in (1, 2, 5) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    counted = np.concatenate(sorted(results, key=lambda r: r[0, 0]))[:, 0]
    n = np.arange(1, len(counted) + 1)
    np.testing.assert_array_equal(counted, n * (n + 1) / 2)


FORK = """
import os, signal, sys, threading
import mlx.core as mx, numpy as np
from mlx_recurrent import RNN, Stack

mx.set_default_device(mx.cpu)
running, go_on = threading.Event(), threading.Event()

def f(a):
    if threading.current_thread() is other:
        running.set()
        go_on.wait()
    return mx.softmax(a, axis=-1)

other = None
model = Stack.build(4, 8, 2, residual=True)
waiting = Stack([RNN(4, 8), RNN(8, 8, nonlinearity=f)])
mx.eval(model.parameters(), waiting.parameters())
stream, busy, alone = model.stream(), waiting.stream(), waiting.layers[1].stream()
x = np.ones((9, 4), np.float32)
expected = stream(x)
stream.reset()
first = stream(x[:5], reset=[True] + [False] * 4)
assert np.array_equal(first, expected[:5])
streams = {"stack": busy, "layer": alone}
for name, taken in streams.items():
    size = 4 if name == "stack" else 8
    other = threading.Thread(target=lambda: taken(np.ones(size)))
    running.clear(), go_on.clear()
    other.start()
    running.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # ends a child that hangs
        code = 1
        try:
            taken.state
        except RuntimeError as error:
            assert "make a new stream there" in str(error)
            rest = stream(x[5:], reset=np.zeros(4, bool))
            assert np.array_equal(rest, expected[5:])
            new = model.stream()
            assert np.array_equal(new(x), expected)
            code = 0
        os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0, (name, status)
    go_on.set()
    other.join()
    taken.state
print("done")
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork")
def test_forks():
    """A child goes on; what another thread was running at the fork raises there."""
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", FORK],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stdout


def test_nothing_is_kept():
    model = build(D=H, residual=True)
    mx.eval(model.parameters())
    before = mx.get_active_memory()
    stream = model.stream()
    x, out, reset = np.ones(H, np.float32), np.empty(H, np.float32), np.array(False)
    counts = [sys.getrefcount(a) for a in (x, out, reset, stream)]
    for _ in range(1000):
        stream(x)
        stream(x, out=out, reset=reset)
    assert [sys.getrefcount(a) for a in (x, out, reset, stream)] == counts
    assert mx.get_active_memory() - before <= ACTIVE
    alive = weakref.ref(stream)
    del stream
    assert alive() is None


class TestStep:
    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
    @pytest.mark.parametrize("residual", [False, True])
    def test_steps_are_the_sequence(self, rng, residual, dtype, path):
        model = build(dtype, path, D=H, residual=residual)
        x, states = draw(rng, (N, L, H), dtype), states_for(rng, model, dtype)
        reset, before, ys = rng.random((N, L)) < 0.3, states, []
        for t in range(L):
            y, states = model.step(x[:, t], states, reset=reset[:, t].tolist())
            ys.append(y)
        assert type(states) is list
        pairs = others(model, x, before, residual=residual, reset=reset)
        for a, (theirs, truth) in zip([mx.stack(ys, 1), *states], pairs, strict=True):
            close(a, theirs, truth)
        y, _ = model.step(x[0, 0])  # without a batch, and without states
        (theirs, truth), *_ = others(model, x[:1, :1], residual=residual)
        close(y, theirs[0, 0], truth[0, 0])

    def test_states_of_more_rows_and_nested_stacks(self, rng):
        inner = Stack.build(H, H, 2)
        model, x = Stack([inner, RNN(H, H)]), draw(rng, (H,), mx.float32)
        hidden = [states_for(rng, inner), draw(rng, (N, H), mx.float32)]
        y, states = model.step(x, hidden, reset=[True, False, False])
        assert [np.shape(s) for s in states] == [(2, N, H), (N, H)]
        flat = Stack([*inner.layers, model.layers[1]])
        rows, before = mx.stack([x[None]] * N), [*hidden[0], hidden[1]]
        reset = np.array([[True], [False], [False]])
        (theirs, truth), *_ = others(flat, rows, before, reset=reset)
        close(y, theirs[:, 0], truth[:, 0])

    def test_training_draws_and_evaluation_does_not(self, rng):
        model, x = build(dropout=0.5), draw(rng, (40, D), mx.float32)
        assert not mx.array_equal(model.step(x)[0], model.step(x)[0])
        model.eval()
        equal(model.step(x)[0], model.step(x)[0])

    def test_transforms(self, rng):
        model, x = build(D=H, residual=True), draw(rng, (N, H), mx.float32)
        states = states_for(rng, model)
        reset = mx.array([True, False, True])

        def run(x, states, reset):
            return model.step(x, states, reset=reset)[0]

        (theirs, truth), *_ = others(
            model, x[:, None], states, residual=True, reset=np.array(reset)[:, None]
        )
        for got in (mx.compile(run), mx.vmap(run)):
            close(got(x, states, reset), theirs[:, 0], truth[:, 0])
        value, gradient = nn.value_and_grad(
            model, lambda x: run(x, states, reset).sum()
        )(x)
        assert (
            np.isfinite(value.item())
            and np.abs(np.array(gradient["layers"][0]["Wxh"])).any()
        )

    @pytest.mark.parametrize(
        "x, hidden, reset, words",
        [
            (np.zeros(D), None, None, "x must be an mlx.core.array"),
            (mx.zeros((N, 5)), None, None, r"x must have shape \(..., 4\), .*\(3, 5\)"),
            (mx.zeros(()), None, None, r"x must have shape \(..., 4\), .*\(\)"),
            (mx.zeros(D), mx.zeros(H), None, "hidden must be a list"),
            (mx.zeros(D), [None], [1], "each of the 2 layers, but has 1"),
            (mx.zeros(D), [mx.zeros(3), None], True, "hidden must have shape"),
            (mx.zeros(D), [mx.zeros(()), None], True, "hidden must have"),
            (mx.zeros((N, D)), None, [1], r"reset must have shape \(3,\), .*\(1,\)"),
            (mx.zeros((N, D)), None, [0, 1, 2], r"reset\[2\] is 2"),
        ],
    )
    def test_errors(self, x, hidden, reset, words):
        with pytest.raises((TypeError, ValueError), match=words):
            build().step(x, hidden, reset=reset)
