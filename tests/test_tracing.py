"""Reading a callable: what is found, how often it is called, and what is kept of it."""

import itertools
import re
import threading

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from conftest import draw, unreadable, upstream_layer
from mlx_recurrent import RNN, _native, rnn, tracing
from tolerances import close, equal, wide

H = 12


@pytest.fixture
def operands(rng):
    """x (3, 7, 5) and the weights of 12 units."""
    shapes = [(3, 7, 5), (H, 5), (H, H), (H,)]
    return [draw(rng, shape, mx.float32, 0.5) for shape in shapes]


def reading(f, dtype=mx.float32):
    """What one call of f on an array (3, H) is read to be."""
    a = mx.linspace(-1, 1, 3 * H).reshape(3, H).astype(dtype)
    return _native.read(f(a), a)


def operations(f, dtype=mx.float32):
    found = reading(f, dtype)
    assert not found.obstacle
    return found.trace(dtype).operations


@pytest.mark.parametrize(
    "f, expected",
    [
        (lambda a: a, []),
        (mx.zeros_like, []),
        (lambda a: mx.tanh(a) * mx.sqrt(mx.array(2.0)), ["tanh", "multiply"]),
        (lambda a: a**3, ["square", "multiply"]),
        (lambda a: mx.tanh(a) + 0 * mx.tanh(a), ["tanh", "multiply", "add"]),
        (lambda a: a * (a > 0), ["greater", "multiply"]),
        (lambda a: mx.where((a > 0) & ~(a > 1), a, 0), None),
        (lambda a: mx.where(mx.isnan(a), 0, a), ["not_equal", "where"]),
        (lambda a: mx.stop_gradient(a) * a, ["stop_gradient", "multiply"]),
        (lambda a: mx.maximum(a * mx.ones((H,)), mx.full((3, 1), 0.5)), None),
        (mx.compile(lambda a: mx.exp(-a) + 1), ["negative", "exp", "add"]),
    ],
)
def test_operations(f, expected):
    """What is found, without what it needs not compute."""
    found = operations(f)
    assert found and all(found) if expected is None else found == expected


@pytest.mark.parametrize(
    "f, words",
    [
        (lambda a: mx.softmax(a, axis=-1), "Softmax"),
        (lambda a: a - mx.mean(a), "not elementwise"),
        (lambda a: a + mx.random.normal(a.shape), "not elementwise"),
        (lambda a: a * mx.arange(H), "Arange"),
        (lambda a: mx.sort(a), "Sort"),
        (lambda a: a[..., ::-1], "Slice"),
        (lambda a: a.T.T, "Transpose"),
        (lambda a: a * mx.array([1.0] * H), r"shape \(12\)"),
        (lambda a: a.astype(mx.float16), "returns float16 for float32"),
        (lambda a: a[0], r"returns shape \(12\) for \(3,12\)"),
        (lambda a: a.astype(mx.int32).astype(mx.float32), "int32"),
        (lambda a: a.astype(mx.float16).astype(mx.float32), "float16"),
        (lambda a: a // 2, "FloorDivide"),
        (mx.compile(lambda a: a // 2), "FloorDivide"),
        (lambda a: sum((mx.sin(a * k) for k in range(300)), a), "too many"),
    ],
)
def test_obstacles(f, words):
    assert re.search(words, reading(f).obstacle)


def test_half_types_may_compute_in_float32():
    def f(a):
        return mx.tanh(a.astype(mx.float32)).astype(a.dtype)

    assert operations(f, mx.float16) == operations(f, mx.bfloat16) == ["tanh"]


def test_what_others_hold_is_not_its_own():
    number, lazy = mx.array(0.5), mx.ones((H,)) * 2
    kept = []

    def keeps(a):
        kept.append(a * 0.5)
        return kept[-1] + 1

    assert reading(lambda a: a * mx.array(0.5)).own
    for f in (lambda a: a * number, lambda a: a * lazy, keeps):
        assert not reading(f).own
    first, second = reading(lambda a: a * number), reading(lambda a: a * number)
    assert "before the call" in first.difference(second)
    assert not reading(keeps).difference(reading(keeps))
    assert "different" in reading(mx.sin).difference(reading(mx.cos))


def test_equal_graphs_are_one_function():
    def traced(f, dtype=mx.float32):
        return reading(f, dtype).trace(dtype)

    one = traced(lambda a: mx.tanh(a) * 0.5)
    assert traced(lambda b: mx.tanh(b) * 0.5) is one
    assert traced(lambda a: mx.tanh(a) * 0.25) is not one
    assert traced(lambda a: mx.tanh(a) * 0.5, mx.float64) is not one


@pytest.mark.parametrize("numbers", [3, 300])
def test_a_number_of_each_call(operands, numbers):
    """However many there are: what is kept of them is bounded."""
    x, *weights = operands
    for k in [*range(numbers), 0, 1]:
        f = lambda a, k=k: mx.tanh(a * (1 + k / 8))  # noqa: E731
        got = rnn(x[:1, :2], *weights, nonlinearity=f)
        if k < 2 or k > numbers - 2:
            theirs = upstream_layer(x, *weights, f)(x[:1, :2])
            exact = [a.astype(mx.float64) for a in (x, *weights)]
            close(got, theirs, wide(upstream_layer(*exact, f)(exact[0][:1, :2])))


def test_one_step_at_a_time(operands):
    """Traced when the same graph is seen again; called once by each call before."""
    x, *weights = operands
    seen = []

    def f(a):
        seen.append(a.shape)
        return mx.tanh(a) * 0.77

    layer = RNN(5, H, nonlinearity=f)
    layer.Wxh, layer.Whh, layer.bias = weights
    first = layer(x[:, :1])
    assert len(seen) == 1
    second = layer(x[:, :1])
    assert layer.plan(x[:, :1]).path == "traced"
    close(second, first, wide(first))


def test_a_counter_in_calls_of_one_step():
    """No call more than upstream's, which another result would show."""
    counter = itertools.count()
    layer = RNN(5, H, bias=False, nonlinearity=lambda a: 0 * a + next(counter))
    got = [layer(mx.ones((3, 1, 5)))[0, 0, 0].item() for _ in range(5)]
    assert got == [0, 1, 2, 3, 4]


def test_a_difference_is_found(monkeypatch, operands):
    """Also one between the kernels and what MLX computes."""
    x = operands[0]
    monkeypatch.setattr(tracing, "_ALLOWED", {mx.float32: -1.0})
    layer = RNN(5, H, nonlinearity=lambda a: mx.tanh(a) * 0.123)
    plan = layer.plan(x)
    assert plan.path == "composed" and "other values" in plan.reason
    monkeypatch.undo()
    assert layer.plan(x).path == "composed"  # it is remembered


def test_what_does_not_take_every_array(operands):
    """It is not compared, so it is not traced."""
    x, *weights = operands

    def f(a):
        if a.shape[0] != 3:
            raise RuntimeError("three rows only")
        return mx.sin(a) * 0.321

    close(
        rnn(x, *weights, nonlinearity=f),
        upstream_layer(x, *weights, f)(x),
        wide(upstream_layer(x, *weights, f)(x)),
    )
    assert RNN(5, H, nonlinearity=f).plan(x).path == "composed"


def test_threads_read_at_once():
    failures = []

    def work(k):
        try:
            stream = mx.new_thread_local_stream(mx.cpu)
            with mx.stream(stream):
                x = mx.ones((2, 9, 5))
                layer = RNN(5, H)
                for i in range(20):
                    layer.nonlinearity = lambda a, i=i: mx.sin(a) * (1 + i)
                    mx.eval(layer(x))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


SHAPELESS = {
    "value": lambda f: f,
    "gradient": lambda f: mx.grad(lambda x: (f(x) ** 2).sum()),
    "second": lambda f: mx.grad(
        lambda x: (mx.grad(lambda x: (f(x) ** 2).sum())(x) ** 2).sum()
    ),
    "jvp": lambda f: lambda x: mx.jvp(lambda x: f(x), [x], [mx.ones_like(x)])[1][0],
}


@pytest.mark.parametrize("f", [nn.gelu, nn.leaky_relu, lambda a: mx.sin(a) * a])
@pytest.mark.parametrize("transform", SHAPELESS.values(), ids=SHAPELESS)
@pytest.mark.parametrize("return_state", [False, "only"])
def test_compile_shapeless(operands, return_state, transform, f):
    """Read at the trace, then for any number of rows and of steps."""
    x, *weights = operands
    function = transform(
        lambda x: rnn(x, *weights, nonlinearity=f, return_state=return_state)
    )
    compiled = mx.compile(function, shapeless=True)
    for part in (x, x[:1, :2], x[:2, :1], mx.concatenate([x, x], axis=1)):
        assert np.allclose(compiled(part), function(part), rtol=1e-5, atol=1e-6)


def test_compile_shapeless_without_steps(operands):
    x, *weights = operands
    compiled = mx.compile(
        lambda x: rnn(x, *weights, nonlinearity=mx.sin, return_state=True),
        shapeless=True,
    )
    mx.eval(compiled(x))
    outputs, state = compiled(x[:, :0])
    assert outputs.shape == (3, 0, H) and state.shape == (3, H) and not state.any()


def test_a_trace_without_steps_shows_nan_with_steps(operands):
    """The callable is not called for no steps, so it cannot be known."""
    x, *weights = operands
    compiled = mx.compile(
        lambda x: rnn(x, *weights, nonlinearity=mx.sin, return_state=True),
        shapeless=True,
    )
    outputs, state = compiled(x[:, :0])
    assert outputs.shape == (3, 0, H) and not state.any()
    assert all(mx.isnan(a).all() for a in compiled(x))


def test_equal_calls_merge(operands, tmp_path):
    """Two calls in a compiled function are one."""
    x, *weights = operands

    def twice(x):
        one, two = (rnn(x, *weights) for _ in range(2))
        return one + 1, two + 2

    path = tmp_path / "graph.dot"
    mx.export_to_dot(str(path), *mx.compile(twice)(x))
    names = [n for n in path.read_text().splitlines() if "Recurrence" in n]
    assert len(names) == 1


def peak(run):
    """The bytes that MLX holds at most while it runs, beyond those before."""
    mx.eval(run())
    mx.synchronize()
    _native.release_scratch()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(run())
    mx.synchronize()
    return mx.get_peak_memory() - before


def test_pre_activations_are_kept_for_a_derivative_alone(rng):
    """One array of the output's size, and none where there is no derivative."""
    x = draw(rng, (8, 400, 16), mx.float32)
    layers = [RNN(16, 64, nonlinearity=f) for f in (None, nn.silu)]
    mx.eval([layer.parameters() for layer in layers])
    output = 4 * 8 * 400 * 64
    native, traced = (peak(lambda layer=layer: layer(x)) for layer in layers)
    assert traced < native + output / 4
    native, traced = (
        peak(lambda layer=layer: mx.grad(lambda x: layer(x).sum())(x))
        for layer in layers
    )
    assert traced < native + 1.25 * output


def test_a_gradient_after_the_output_was_evaluated(operands):
    """What was not kept then is computed again."""
    x, *weights = operands

    def loss(x, early):
        y = rnn(x, *weights, nonlinearity=nn.gelu)
        if early:
            mx.eval(y)
        return (y * y).sum()

    expected = mx.grad(loss)(x, False)
    assert np.allclose(mx.grad(loss)(x, True), expected, rtol=1e-5, atol=1e-6)


def test_composed_reads_no_further(operands):
    """What cannot be traced costs one call a step, at most one of them read twice."""
    x, *weights = operands
    calls = []
    f = unreadable(lambda a: calls.append(1) or mx.tanh(a))
    equal(
        rnn(x, *weights, nonlinearity=f),
        rnn(x, *weights, nonlinearity=unreadable(mx.tanh)),
    )
    assert len(calls) == x.shape[1]
