"""Reading a callable: what is found, how often it is called, and what is kept of it."""

import functools
import itertools
import math
import re
import threading

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from conftest import DTYPES, array, draw, unreadable, upstream_layer
from mlx_recurrent import RNN, _native, rnn
from mlx_recurrent.functional import tracing
from tolerances import FORMAT, close, equal, wide

H = 12


@pytest.fixture
def operands(rng):
    """x (3, 7, 5) and the weights of 12 units, at which errors do not grow."""
    shapes = [(3, 7, 5), (H, 5), (H, H), (H,)]
    return [draw(rng, shape, mx.float32, 0.2) for shape in shapes]


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


def runs_as_read(f, a):
    """What the kernels and MLX make of what a callable is read to be."""
    b = a * 1  # not evaluated, as an argument is
    found = _native.read(f(b), b)
    assert not found.obstacle
    traced = found.trace(a.dtype)
    return _native.pointwise(a, traced, None), _native.replay(a, traced)


DECISIONS = {
    "and": lambda p, q: p & q,
    "or": lambda p, q: p | q,
    "xor": lambda p, q: p ^ q,
    "not": lambda p, q: ~p,
    "logical_and": mx.logical_and,
    "logical_or": mx.logical_or,
    "logical_not": lambda p, q: mx.logical_not(p),
    "equal": lambda p, q: p == q,
    "not_equal": lambda p, q: p != q,
    "greater": lambda p, q: p > q,
    "greater_equal": lambda p, q: p >= q,
    "less": lambda p, q: p < q,
    "less_equal": lambda p, q: p <= q,
    "where": lambda p, q: mx.where(p, q, ~q),
}


@pytest.mark.parametrize("decide", DECISIONS.values(), ids=DECISIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_decisions(decide, dtype):
    """For each pair of truth values, of conditions and of numbers as conditions."""
    a = array([-1.0, -0.0, 0.0, 0.5, 1.0, 2.0, math.nan], dtype)
    for p, q in (
        (lambda a: a > 0, lambda a: a > 0.7),
        (lambda a: a > 0.7, lambda a: a > 0),
        (lambda a: a > 0, lambda a: a < 0.7),
        (lambda a: a < 0.7, lambda a: a > 0),
        (lambda a: a.astype(mx.bool_), lambda a: a == 0.5),
    ):
        f = lambda a, p=p, q=q: mx.where(decide(p(a), q(a)), a, 3 - a)  # noqa: E731
        for got in runs_as_read(f, a):
            equal(got, f(a))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("of", DTYPES)
@pytest.mark.parametrize("by", DTYPES)
def test_constants_are_rounded(dtype, of, by):
    """To each dtype that they are cast to, on the way to that of the argument."""
    value = 1001.37
    f = lambda a: a - mx.array(value, of).astype(by).astype(a.dtype)  # noqa: E731
    a = array([1.0, 1000.0, 1001.0, 1002.0], dtype)
    for got in runs_as_read(f, a):
        equal(got, f(a))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("L", [1, 2, 5])
def test_roundings_that_the_kernels_do_not_make(operands, L, dtype):
    """A callable that works with them is not traced, not even for one step."""
    x, *weights = (a.astype(dtype) for a in operands)
    f = lambda a: (a + 1000) - 1000  # noqa: E731
    theirs = upstream_layer(x, *weights, f)(x[:, :L])
    equal(rnn(x[:, :L], *weights, nonlinearity=f), theirs)
    layer = RNN(5, H, nonlinearity=f)
    layer.set_dtype(dtype)
    plan = layer.plan(x[:, :L])
    assert plan.path == "composed" and "in MLX" in plan.reason


def test_half_types_may_compute_in_float32():
    def f(a):
        return mx.tanh(a.astype(mx.float32)).astype(a.dtype)

    assert operations(f, mx.float16) == operations(f, mx.bfloat16) == ["tanh"]


def test_what_others_hold_is_not_its_own():
    number, lazy = mx.array(0.5), mx.ones((H,)) * 2
    kept = []

    def keeps(a, number=None):
        kept.append(a * 0.5 if number is None else mx.array(number))
        return kept[-1] + a

    assert reading(lambda a: a * mx.array(0.5)).own
    for f in (lambda a: a * number, lambda a: a * lazy, lambda a: keeps(a, 0.5)):
        assert not reading(f).own
    assert "keeps" in reading(keeps).obstacle
    first, second = reading(lambda a: a * number), reading(lambda a: a * number)
    assert "before the call" in first.difference(second)
    one, two = (reading(lambda a: keeps(a, 0.5)) for _ in range(2))
    assert not one.difference(two)
    assert "different" in reading(mx.sin).difference(reading(mx.cos))


def test_equal_graphs_are_one_function():
    def traced(f, dtype=mx.float32):
        return reading(f, dtype).trace(dtype)

    one = traced(lambda a: mx.tanh(a) * 0.5)
    assert traced(lambda b: mx.tanh(b) * 0.5) == one
    assert traced(lambda a: mx.tanh(a) * 0.25) != one
    assert traced(lambda a: mx.tanh(a) * 0.5, mx.float64) != one
    zero, minus, nan = (traced(lambda a, k=k: a * k) for k in (0.0, -0.0, math.nan))
    assert zero != minus and traced(lambda a: a * math.nan) == nan


def test_a_constant_that_is_not_a_number(operands):
    """Of two steps it is one number."""
    agree(lambda a: mx.where(a > 9, math.nan, mx.tanh(a)), operands, "traced")


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
    """What was read is all that is run, so each call of the layer is one of it."""
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
    assert len(seen) == 3
    exact = [a.astype(mx.float64) for a in (x, *weights)]
    theirs, truth = (
        upstream_layer(*values, f)(values[0][:, :1])
        for values in ((x, *weights), exact)
    )
    for got in (first, second):
        close(got, theirs, wide(truth))


def test_a_counter_in_calls_of_one_step():
    """No call more than upstream's, which another result would show."""
    counter = itertools.count()
    layer = RNN(5, H, bias=False, nonlinearity=lambda a: 0 * a + next(counter))
    got = [layer(mx.ones((3, 1, 5)))[0, 0, 0].item() for _ in range(5)]
    assert got == [0, 1, 2, 3, 4]


def test_a_difference_is_found(monkeypatch, operands):
    """Between the kernels and MLX, or between a callable and its operations."""
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


def agree(f, operands, path, length=7, exact=None):
    """The layer takes a path, and gives what upstream gives with a twin of f."""
    x, *weights = operands
    x = x[:, :length]
    layer = RNN(5, H, nonlinearity=f)
    layer.Wxh, layer.Whh, layer.bias = weights
    got = layer(x)
    assert layer.plan(x).path == path
    wider = [a.astype(mx.float64) for a in (x, *weights)]
    twin = exact or f
    truth = wide(upstream_layer(*wider, twin)(wider[0]))
    close(got, upstream_layer(x, *weights, twin)(x), truth)


def test_an_argument_that_is_written_into(operands):
    """Also where the rest of it is a function that is known."""
    agree(lambda a: mx.tanh(a) + 0.0, operands, "traced")

    def doubles(a):
        a *= 2
        return mx.tanh(a) + 0.0

    agree(doubles, operands, "traced")

    def clears(a):
        a[a < 0] = 0
        return a + 0.0

    agree(lambda a: a + 0.0, operands, "traced")
    agree(clears, operands, "composed")


class Alternates:
    """Two functions in turn, each of which is known of another callable."""

    def __init__(self, *functions):
        self.functions = itertools.cycle(functions)

    def __call__(self, a):
        return next(self.functions)(a)


def test_a_callable_that_differs_from_step_to_step(operands):
    one, two = (lambda a: mx.tanh(a) * 1.2), (lambda a: mx.sin(a) * 1.2)
    agree(one, operands, "traced")
    agree(two, operands, "traced")
    x, *weights = operands
    got = rnn(x, *weights, nonlinearity=Alternates(one, two))
    theirs = upstream_layer(x, *weights, Alternates(one, two))(x)
    exact = [a.astype(mx.float64) for a in (x, *weights)]
    close(got, theirs, wide(upstream_layer(*exact, Alternates(one, two))(exact[0])))
    assert RNN(5, H, nonlinearity=Alternates(one, two)).plan(x).path == "composed"


def test_a_draw_that_no_graph_shows(operands):
    """Read as a number, or not used: the callable draws as upstream's."""
    x, *weights = operands

    def branches(a):
        drawn = mx.random.bernoulli(0.5).item()
        return mx.tanh(a) * 1.1 if drawn else mx.sin(a) * 1.1

    def wastes(a):
        mx.random.uniform()
        return mx.tanh(a) * 1.1

    for f in (lambda a: mx.tanh(a) * 1.1, lambda a: mx.sin(a) * 1.1):
        agree(f, operands, "traced")
    for f in (branches, wastes):
        results = []
        for run in (
            lambda f=f: rnn(x, *weights, nonlinearity=f),
            lambda f=f: upstream_layer(x, *weights, f)(x),
        ):
            mx.random.seed(3)
            results.append((run(), mx.random.uniform(shape=(4,))))
        (got, state), (theirs, expected) = results
        assert np.allclose(got, theirs, rtol=1e-5, atol=1e-6)
        equal(state, expected)
        assert "draws" in RNN(5, H, nonlinearity=f).plan(x).reason


def test_a_branch_on_values(operands):
    """Of a callable that looks at the numbers it is given."""
    x = operands[0]

    def branches(a):
        return a * 0.93 if a[0, 0].item() < 0.1 else mx.tanh(a)

    agree(branches, operands, "composed")
    assert "evaluates" in RNN(5, H, nonlinearity=branches).plan(x).reason


def test_what_one_callable_does_is_not_said_of_another(operands):
    def no_vectors(a):
        return a * 0.77 if a.ndim == 2 and a.shape[0] == 3 else 1 / 0

    x = operands[0]
    plan = RNN(5, H, nonlinearity=no_vectors).plan(x)
    assert plan.path == "composed" and "ZeroDivisionError" in plan.reason
    assert RNN(5, H, nonlinearity=lambda a: a * 0.77).plan(x).path == "traced"


class Sometimes:
    """One function of three rows, and another of any other number of them."""

    def __init__(self, here, elsewhere):
        self.here, self.elsewhere = here, elsewhere

    def __call__(self, a):
        return (self.here if a.shape[0] == 3 else self.elsewhere)(a)


def in_places(axis):
    """The double of all but the first row, or of all but the first unit."""

    def f(a):
        n = a.shape[axis]
        doubled = mx.array([1.0] + [2.0] * (n - 1)).reshape((n, 1) if axis == 0 else n)
        return 1.07 * a * doubled

    return f


ELSEWHERE = {
    "negative": lambda a: mx.maximum(a, -0.005) * 1.07,
    "large": lambda a: mx.clip(a, -100, 100) * 1.07,
    "slope": lambda a: mx.stop_gradient(a) * 1.07,
    "rows": in_places(0),
    "units": in_places(1),
}


@pytest.mark.parametrize("elsewhere", ELSEWHERE.values(), ids=ELSEWHERE)
def test_what_is_seen_of_a_callable(operands, elsewhere):
    """Numbers of either sign, large ones, slopes, and each place of them."""
    f = Sometimes(lambda a: a * 1.07, elsewhere)
    plan = RNN(5, H, nonlinearity=f).plan(operands[0])
    assert plan.path == "composed" and "other numbers" in plan.reason


def test_what_is_said_of_a_callable_ends_with_it(operands):
    """Another at the same place in memory is looked at anew."""
    same = lambda a: a * 1.07  # noqa: E731
    for _ in range(100):
        first = Sometimes(same, same)
        assert RNN(5, H, nonlinearity=first).plan(operands[0]).path == "traced"
        place = id(first)
        del first
        second = Sometimes(same, ELSEWHERE["negative"])
        assert RNN(5, H, nonlinearity=second).plan(operands[0]).path == "composed"
        if id(second) == place:
            return
    raise AssertionError("never at the same place")


def test_methods_are_those_of_their_objects(operands):
    same = lambda a: a * 1.07  # noqa: E731
    for elsewhere, path in ((same, "traced"), (ELSEWHERE["negative"], "composed")):
        method = Sometimes(same, elsewhere).__call__
        assert RNN(5, H, nonlinearity=method).plan(operands[0]).path == path


def test_a_number_of_its_own_then_an_array_of_others(operands):
    """The same operations, but by the array there is a derivative."""
    x, *weights = operands
    held = []
    f = lambda a: mx.tanh(a) * (held[0] if held else mx.array(0.5))  # noqa: E731
    for _ in range(2):
        assert RNN(5, H, nonlinearity=f).plan(x).path == "traced"

    def slope(run, dtype=mx.float32):
        values = [a.astype(dtype) for a in (x, *weights)]

        def loss(c):
            held[:] = [c]
            return run(*values).sum()

        found = mx.grad(loss)(mx.array(0.5, dtype))
        held.clear()
        return found

    def theirs(x, *weights):
        return upstream_layer(x, *weights, f)(x)

    got = slope(lambda *a: rnn(*a, nonlinearity=f))
    close(got, slope(theirs), wide(slope(theirs, mx.float64)))


def test_what_it_keeps_has_its_gradient(operands):
    kept = []

    def keeps(a):
        kept.append(mx.tanh(a) * 1.01)
        return kept[-1]

    def loss(run, x):
        kept.clear()
        run(x)
        return sum((y * y).sum() for y in kept)

    def slope(dtype, run):
        values = [a.astype(dtype) for a in operands]
        return mx.grad(lambda x: loss(lambda x: run(x, *values[1:]), x))(values[0])

    def theirs(x, *weights):
        return upstream_layer(x, *weights, keeps)(x)

    got = slope(mx.float32, lambda *a: rnn(*a, nonlinearity=keeps))
    close(got, slope(mx.float32, theirs), wide(slope(mx.float64, theirs)))


def test_long_graphs_of_numbers():
    """Neither the stack nor the time grows with what they are made of."""
    c = mx.array(1.0)
    for _ in range(30_000):
        c = c + 1.0
    assert "too many" in reading(lambda a: mx.tanh(a) * c).obstacle
    d = mx.array(1e-9)
    for _ in range(60):
        d = d + d
    assert not reading(lambda a: a * d).obstacle


ROUNDED_ONCE = [
    *("add", "subtract", "multiply", "divide", "maximum", "minimum", "greater"),
    *("greater_equal", "less", "less_equal", "equal", "not_equal"),
]


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64])
@pytest.mark.parametrize("name", ROUNDED_ONCE)
def test_operations_with_constants(name, dtype):
    """Those that are left out or replaced too, either way around.

    Numbers below the least normal one may be zero.
    """
    operation, least = getattr(mx, name), 2.0 ** FORMAT[dtype][1]
    a = array([0.0, 0.3, 1.0, 7.1, 1e20, -0.3, -1.0, -7.1, math.inf, math.nan], dtype)
    for c in (0.0, 1.0, -1.0, 0.5, -8.0, 3.0, 2.0**-126, 2.0**127, 2.0**1023):
        number = lambda c=c: mx.array(c, dtype)  # noqa: E731
        for f in (
            lambda a, c=number: operation(a, c()),
            lambda a, c=number: operation(c(), a),
        ):
            g = lambda a, f=f: f(a).astype(a.dtype)  # noqa: E731
            expected = g(a)
            small = mx.abs(expected) < least
            for got in runs_as_read(g, a):
                equal(*(mx.where(small, 0, b) for b in (got, expected)), f"{name} {c}")


def test_one_of_several_results_of_a_compiled_function(operands):
    """Alone it is read; a part of another is kept by that."""
    apart = mx.compile(lambda a: (mx.sin(a), mx.tanh(a) * 0.5))

    @mx.compile
    def parts(a):
        part = mx.tanh(0.9 * a)
        return mx.exp(-part), part

    for i in (0, 1):
        agree(lambda a, i=i: apart(a)[i], operands, "traced")
        agree(lambda a, i=i: parts(a)[i], operands, "composed")


@pytest.mark.parametrize("divisor", [3.0, 8.0, 41.0, 47.0, 61.0])
def test_quotients_are_not_rounded_twice(divisor):
    a = mx.array(divisor) * mx.arange(1.0, 60.0)
    b = a + 0  # not evaluated, as an argument is
    found = _native.read(mx.floor(b / divisor), b)
    equal(_native.pointwise(a, found.trace(mx.float32), None), mx.floor(a / divisor))


def test_a_quotient_by_a_square_of_cosh_is_its_own():
    """In a slope too, beside a tanh or not."""
    a = mx.linspace(-12, 12, 49)
    for f in (
        lambda a: mx.exp(2 * a) / mx.square(mx.cosh(a)),
        lambda a: mx.tanh(a) + mx.exp(2 * a) / mx.square(mx.cosh(a)),
    ):
        b = a + 0
        traced = _native.read(f(b), b).trace(mx.float32)
        run = lambda a, traced=traced: _native.pointwise(a, traced, None)  # noqa: E731
        (got, slope), (expected, true) = (
            [r[0] for r in mx.vjp(g, [a], [mx.ones_like(a)])] for g in (run, f)
        )
        assert np.allclose(got, expected, rtol=1e-5)
        assert np.allclose(slope, true, rtol=1e-4, atol=1e-5)


ORDERS = {
    "mish": nn.mish,
    "gelu_approx": nn.gelu_approx,
    "rational": lambda a: (a + 0.5 * a**3) / (1 + a**2 + 0.1 * a**4),
    "horner": lambda a: functools.reduce(lambda s, k: s * a + k / 9, range(12), 0 * a),
    "nested": lambda a: functools.reduce(
        lambda b, _: mx.tanh(b) * mx.sigmoid(b) + 0.1 * b, range(6), a
    ),
}


@pytest.mark.parametrize("f", ORDERS.values(), ids=ORDERS)
def test_derivatives_of_order_four(f):
    """Of the function that the kernels run, by its own slopes and by MLX's."""
    a = mx.linspace(-1.5, 1.5, 8)  # MLX's slope of a**3 is not defined at 0
    b = a + 0
    traced = _native.read(f(b), b).trace(mx.float32)
    one, other = (lambda a: _native.pointwise(a, traced, None)), f
    for _ in range(4):
        one, other = (
            lambda a, g=g: mx.vjp(lambda a: [g(a)], [a], [mx.ones_like(a)])[1][0]
            for g in (one, other)
        )
        expected = np.array(other(a))
        scale = 1 + np.abs(expected).max()
        assert np.abs(np.array(one(a)) - expected).max() < 2e-4 * scale


def test_a_trace_with_one_step_serves_more(operands):
    x, *weights = operands
    f = lambda a: mx.sin(a) * 0.876  # noqa: E731
    compiled = mx.compile(lambda x: rnn(x, *weights, nonlinearity=f), shapeless=True)
    for part in (x[:, :1], x, x[:1, :3]):
        expected = upstream_layer(x, *weights, f)(part)
        assert np.allclose(compiled(part), expected, rtol=1e-5, atol=1e-6)


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
        expected = np.array(function(part))
        error = np.abs(np.array(compiled(part)) - expected).max()
        assert error <= 1e-5 * np.abs(expected).max()


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
    """The bytes that MLX holds at most while it runs, beyond those before.

    The least of several runs: MLX's threads free some arrays late, which only adds.
    """

    def once():
        mx.synchronize()
        _native.release_scratch()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(run())
        mx.synchronize()
        return mx.get_peak_memory() - before

    mx.eval(run())
    return min(once() for _ in range(5))


def test_pre_activations_are_kept_for_a_derivative_alone(rng):
    """One array of the output's size, and none where there is no derivative.

    Beside such an output, scratch that a thread gives back late is little.
    """
    x = draw(rng, (8, 4000, 16), mx.float32)
    layers = [RNN(16, 64, nonlinearity=f) for f in (None, nn.silu)]
    mx.eval([layer.parameters() for layer in layers])
    output = 4 * 8 * 4000 * 64
    native, traced = (peak(lambda layer=layer: layer(x)) for layer in layers)
    assert traced < native + output / 4
    native, traced = (
        peak(lambda layer=layer: mx.grad(lambda x: layer(x).sum())(x))
        for layer in layers
    )
    assert traced < native + 1.25 * output


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.float64])
@pytest.mark.parametrize("return_state", [False, True])
def test_a_gradient_after_the_output_was_evaluated(operands, return_state, dtype):
    """What was not kept then is computed again."""
    x, *weights = (a.astype(dtype) for a in operands)

    def loss(x, early):
        y = rnn(x, *weights, nonlinearity=nn.gelu, return_state=return_state)
        if early:
            mx.eval(y)
        if return_state:
            return (y[0] * y[0]).sum() + y[1].sum()
        return (y * y).sum()

    expected = mx.grad(loss)(x, False)
    tolerance = 1e-2 if dtype == mx.float16 else 1e-5
    got = mx.grad(loss)(x, True)
    assert np.allclose(got, expected, rtol=tolerance, atol=tolerance)


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
