"""The composed path: any callable, called as upstream calls it, at a linear cost."""

import functools
import itertools
import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_recurrent
from conftest import case, draw, unreadable, upstream_layer
from mlx_recurrent import RNN
from tolerances import EPS, LINEAR, all_close, close, equal, wide

H = 12


class Leaky:
    """A callable object with a number of its own."""

    slope = 0.2

    def __call__(self, a):
        return unreadable(lambda a: mx.maximum(a, self.slope * a))(a)


HALF = unreadable(lambda a: a * 0.5)


CALLABLES = {
    "lambda": lambda: unreadable(mx.tanh),
    "gelu": lambda: unreadable(nn.gelu),
    "softmax": lambda: lambda a: mx.softmax(a, axis=-1),
    "softmax_partial": lambda: functools.partial(mx.softmax, axis=-1),
    "softmax_module": nn.Softmax,
    "normalised": lambda: lambda a: a / mx.linalg.norm(a, axis=-1, keepdims=True),
    "object": Leaky,
    "prelu": lambda: nn.PReLU(H),
    "layer_norm": lambda: nn.LayerNorm(H),
    "rms_norm": lambda: nn.RMSNorm(H),
    "sequential": lambda: nn.Sequential(nn.LayerNorm(H), nn.Tanh()),
    "linear": lambda: nn.Sequential(nn.Linear(H, H), nn.Tanh()),
    "subclass": lambda: type("Mine", (nn.Tanh,), {"__call__": lambda s, a: HALF(a)})(),
}


all_callables = pytest.mark.parametrize("make", CALLABLES.values(), ids=CALLABLES)


def layers(make, dtype=mx.float32, D=5):
    """Ours, upstream's and upstream's in float64, with equal parameters."""
    mx.random.seed(11)
    made = RNN(D, H, nonlinearity=make())
    if isinstance(made.nonlinearity, nn.Module):
        # Away from ones and zeros, so that no parameter's effect is hidden.
        made.nonlinearity.apply(lambda p: p + mx.random.uniform(0, 0.2, p.shape))
    made.set_dtype(dtype)
    others = []
    for kind in (dtype, mx.float64):
        other = nn.RNN(D, H)
        other.nonlinearity = make()
        other.load_weights(tree_flatten(made.parameters()))
        other.set_dtype(kind)
        others.append(other)
    return made, *others


def widened(x):
    return None if x is None else x.astype(mx.float64)


@all_callables
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_values(rng, lead, hidden, make):
    layer, theirs, exact = layers(make)
    assert layer.plan(mx.zeros((*lead, 7, 5))).path == "composed"
    x = draw(rng, (*lead, 7, 5), mx.float32)
    h = draw(rng, (*lead, H), mx.float32) if hidden else None
    close(layer(x, h), theirs(x, h), wide(exact(widened(x), widened(h))))


@all_callables
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_types(rng, dtype, make):
    layer, theirs, exact = layers(make, dtype)
    x = draw(rng, (3, 7, 5), dtype)
    close(layer(x), theirs(x), wide(exact(widened(x))))


@all_callables
def test_gradients(rng, make):
    """Of x, of hidden and of all parameters, those of the nonlinearity too."""
    x, h, c = (draw(rng, s, mx.float32) for s in ((3, 7, 5), (3, H), (3, 7, H)))

    def grads(layer, x, h, c):
        def loss(parameters, x, h):
            layer.update(parameters)
            return (layer(x, h) * c).sum()

        tree = mx.grad(loss, (0, 1, 2))(layer.parameters(), x, h)
        return dict(
            tree_flatten(dict(zip(["parameters", "x", "hidden"], tree, strict=True)))
        )

    layer, theirs, exact = layers(make)
    truth = grads(exact, *map(widened, (x, h, c)))
    got, expected = grads(layer, x, h, c), grads(theirs, x, h, c)
    all_close(got, expected, {n: wide(g) for n, g in truth.items()})


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("L", [1, 2, 17, 40])
def test_return_state(rng, L, hidden):
    layer, *_ = layers(CALLABLES["layer_norm"])
    x = draw(rng, (3, L, 5), mx.float32)
    h = draw(rng, (3, H), mx.float32) if hidden else None
    outputs, state = layer(x, h, return_state=True)
    equal(outputs, layer(x, h))
    equal(state, outputs[:, -1])
    equal(layer(x, h, return_state="only"), state)


# Around 16 and 256, where the tree over time gains a level.
@pytest.mark.parametrize("L", [2, 15, 16, 17, 33, 255, 256, 257, 300])
def test_lengths(rng, L):
    layer, theirs, exact = layers(lambda: unreadable(mx.sin))
    x, c = draw(rng, (2, L, 5), mx.float32, 0.5), draw(rng, (2, L, H), mx.float32)
    close(layer(x), theirs(x), wide(exact(widened(x))))
    got, expected, truth = (
        mx.vjp(m, [x.astype(m.Wxh.dtype)], [c.astype(m.Wxh.dtype)])[1][0]
        for m in (layer, theirs, exact)
    )
    close(got, expected, wide(truth))


def test_captured_array(rng):
    """The gradient of an array that the callable closes over."""
    problem = case(rng, (3, 7, 5, H))
    x, Wxh, Whh, bias, h = problem.arrays.values()
    alpha, c = draw(rng, (H,), mx.float32, 0.5), draw(rng, (3, 7, H), mx.float32)

    def ours(alpha):
        f = lambda a: mx.tanh(alpha * a) + alpha  # noqa: E731
        y = mlx_recurrent.rnn(x, Wxh, Whh, bias, h, nonlinearity=f)
        return (y * c).sum()

    def theirs(alpha, dtype=mx.float32):
        weights = (a.astype(dtype) for a in (x, Wxh, Whh, bias))
        layer = upstream_layer(*weights, lambda a: mx.tanh(alpha * a) + alpha)
        return (layer(x.astype(dtype), h.astype(dtype)) * c.astype(dtype)).sum()

    truth = mx.grad(lambda a: theirs(a, mx.float64))(widened(alpha))
    close(mx.grad(ours)(alpha), mx.grad(theirs)(alpha), wide(truth))


def test_captured_number_may_change(rng):
    f = Leaky()
    layer, theirs, exact = layers(lambda: f)
    x = draw(rng, (3, 7, 5), mx.float32)
    for slope in (0.2, 0.7):
        f.slope = slope
        close(layer(x), theirs(x), wide(exact(widened(x))))


def test_parameters_of_the_nonlinearity_join_the_layers():
    layer = RNN(5, H, nonlinearity=nn.PReLU(H))
    names = [n for n, _ in tree_flatten(layer.parameters())]
    assert sorted(names) == ["Whh", "Wxh", "bias", "nonlinearity.weight"]
    layer.freeze()
    layer.nonlinearity.unfreeze()
    names = [n for n, _ in tree_flatten(layer.trainable_parameters())]
    assert names == ["nonlinearity.weight"]


class Recorder:
    """Notes what the callable is given at each call."""

    def __init__(self):
        self.seen = []

    def __call__(self, a):
        self.seen.append((a.shape, a.dtype))
        return unreadable(mx.tanh)(a)


@pytest.mark.parametrize("L", [1, 2, 16, 17, 40])
@pytest.mark.parametrize("return_state", [False, True, "only"])
def test_called_once_a_step(rng, return_state, L):
    f = Recorder()
    layer = RNN(5, H, nonlinearity=f)
    x = draw(rng, (3, L, 5), mx.float32)
    mx.eval(layer(x, return_state=return_state))
    assert f.seen == [((3, H), mx.float32)] * L


def test_called_once_a_step_in_a_gradient(rng):
    f = Recorder()
    layer = RNN(5, H, nonlinearity=f)
    mx.eval(mx.grad(lambda x: layer(x).sum())(draw(rng, (3, 9, 5), mx.float32)))
    assert len(f.seen) == 9


def test_not_called_without_a_step():
    f = Recorder()
    RNN(5, H, nonlinearity=f)(mx.zeros((3, 0, 5)))
    assert f.seen == []


def test_called_once_by_plan():
    f = Recorder()
    RNN(5, H, nonlinearity=f).plan(mx.zeros((3, 7, 5)))
    assert f.seen == [((3, H), mx.float32)]


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize("hidden", [None, mx.float16, mx.float32, mx.float64])
@pytest.mark.parametrize(
    "x, weights", [(mx.float16, mx.float16), (mx.float16, mx.float32)]
)
def test_called_with_what_upstream_gives(rng, x, weights, hidden, lead):
    seen = []
    problem = case(rng, (*lead, 4, 5, H), weights)
    values = problem.x.astype(x), *list(problem.arrays.values())[1:4]
    h = None if hidden is None else problem.hidden.astype(hidden)
    for run in (
        lambda f: mlx_recurrent.rnn(*values, h, nonlinearity=f),
        lambda f: upstream_layer(*values, f)(values[0], h),
    ):
        recorder = Recorder()
        seen.append((run(recorder).dtype, recorder.seen))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("hidden", [None, mx.float16, mx.float32])
def test_scan_is_called_with_what_upstream_gives(rng, hidden):
    """z is not widened to the weight before a product needs it."""
    z, Whh = draw(rng, (3, 4, H), mx.float16), draw(rng, (H, H), mx.float32)
    h = None if hidden is None else draw(rng, (3, H), hidden)
    ours, theirs = Recorder(), Recorder()
    got = mlx_recurrent.scan(z, Whh, h, nonlinearity=ours)
    expected = upstream_layer(z, mx.eye(H, dtype=z.dtype), Whh, None, theirs)(z, h)
    assert ours.seen == theirs.seen and got.dtype == expected.dtype


def test_scan_of_whole_numbers_calls_with_others():
    z, Whh, seen = mx.ones((3, 2, H), mx.int32), mx.zeros((H, H)), Recorder()
    mlx_recurrent.scan(z, Whh, nonlinearity=seen)
    assert {dtype for _, dtype in seen.seen} == {mx.float32}


def test_called_in_order():
    """A state of its own: the t-th call belongs to step t."""
    counter = itertools.count()
    layer = RNN(5, H, bias=False, nonlinearity=lambda a: 0 * a + next(counter))
    got = layer(mx.ones((3, 40, 5)))
    equal(got[0, :, 0], mx.arange(40).astype(mx.float32))


@pytest.mark.parametrize("hidden", [False, True])
def test_random_draws(rng, hidden):
    """The same numbers from the same seed, and the same state afterwards."""
    noisy = lambda a: mx.tanh(a) + mx.random.normal(a.shape)  # noqa: E731
    layer, theirs, exact = layers(lambda: noisy)
    x = draw(rng, (3, 7, 5), mx.float32)
    h = draw(rng, (3, H), mx.float32) if hidden else None
    results, after = [], []
    for one in (layer, theirs, exact):
        mx.random.seed(5)
        dtype = one.Whh.dtype
        results.append(one(x.astype(dtype), None if h is None else h.astype(dtype)))
        after.append(mx.random.normal((4,)))
    equal(after[0], after[1], "the state afterwards")
    close(results[0], results[1], wide(results[2]))


@pytest.mark.parametrize("training", [True, False])
def test_dropout_inside(rng, training):
    make = lambda: nn.Sequential(nn.Tanh(), nn.Dropout(0.5))  # noqa: E731
    x = draw(rng, (3, 7, 5), mx.float32)
    results = []
    for one in layers(make):
        one.train(training)
        mx.random.seed(5)
        results.append(one(x.astype(one.Whh.dtype)))
    close(results[0], results[1], wide(results[2]))
    assert training == bool((results[0] == 0).any())


RESULTS = {
    "float16": lambda a: mx.tanh(a).astype(mx.float16),
    "float32": lambda a: mx.tanh(a).astype(mx.float32),
    "float64": lambda a: mx.tanh(a).astype(mx.float64),
}


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("f", RESULTS.values(), ids=RESULTS)
def test_dtype_of_the_result(rng, f, dtype, hidden):
    layer, theirs, exact = layers(lambda: f, dtype)
    exact.nonlinearity = mx.tanh
    x = draw(rng, (3, 6, 5), dtype)
    h = draw(rng, (3, H), dtype) if hidden else None
    outputs, state = layer(x, h, return_state=True)
    truth = wide(exact(widened(x), widened(h)))
    coarser = max(dtype, outputs.dtype, key=EPS.get)
    close(outputs, theirs(x, h), truth, rounded_to=coarser)
    equal(state, outputs[:, -1])


DISCRETE = {
    "bool": lambda a: a > 0.3,
    "int32": lambda a: mx.round(a).astype(mx.int32),
    "sign": mx.sign,
}


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("f", DISCRETE.values(), ids=DISCRETE)
def test_discrete_results(rng, f, hidden):
    """States that are no floating numbers, as of spiking units."""
    layer, theirs, _ = layers(lambda: f)
    x = draw(rng, (3, 6, 5), mx.float32)
    h = draw(rng, (3, H), mx.float32) if hidden else None
    outputs, state = layer(x, h, return_state=True)
    equal(outputs, theirs(x, h))
    equal(state, outputs[:, -1])


@pytest.mark.parametrize("f", DISCRETE.values(), ids=DISCRETE)
def test_discrete_results_with_terms(rng, f):
    x = draw(rng, (3, 6, 5), mx.float32)
    layer = RNN(5, H, nonlinearity=f)
    outputs, state = layer(x, lengths=[6, 2, 0], return_state=True)
    expected = layer(x)
    equal(outputs[0], expected[0])
    equal(outputs[1, :2], expected[1, :2])
    equal(state[2], mx.zeros((H,), expected.dtype))
    layer.leak, layer.recurrent_dropout = 0.5, 0.5
    assert layer(x, lengths=[6, 2, 0]).dtype == mx.float32


def test_dtype_of_the_result_may_change(rng):
    """float16 at first, float32 later: the outputs promote as upstream's stack."""

    def make():
        count = itertools.count()
        return lambda a: a.astype(mx.float16) if next(count) < 2 else a * 0.5

    layer, theirs, exact = layers(make)
    exact.nonlinearity = make()
    x = draw(rng, (3, 4, 5), mx.float32)
    close(layer(x), theirs(x), wide(exact(widened(x))))


def test_a_wider_state_widens_its_own_step(rng):
    """float32 at first, float16 later: what each call is given is upstream's."""

    def make(seen):
        def f(a):
            seen.append(a.dtype)
            return mx.tanh(a).astype(mx.float32 if len(seen) < 3 else mx.float16)

        return f

    values = [draw(rng, s, mx.float16, 0.3) for s in ((3, 5, H), (H, H), (H, H), (H,))]
    ours, theirs = [], []
    got = mlx_recurrent.rnn(*values, nonlinearity=unreadable(make(ours)))
    expected = upstream_layer(*values, make(theirs))(values[0])
    # Ours is called once before, where it is read.
    assert ours[-5:] == theirs and got.dtype == expected.dtype == mx.float32


def test_one_step_may_change_the_size(rng):
    layer, theirs, exact = layers(lambda: lambda a: a[..., :2])
    x = draw(rng, (3, 1, 5), mx.float32)
    close(layer(x), theirs(x), wide(exact(widened(x))))


def test_fewer_states_than_units(rng):
    """Whh (H, K) where the callable makes K of H features, as nn.glu does."""
    x, c = draw(rng, (3, 7, 5), mx.float32), draw(rng, (3, 7, 6), mx.float32)
    weights = [draw(rng, s, mx.float32, 0.5) for s in ((H, 5), (H, 6), (H,))]

    def grads(run, dtype):
        values = [a.astype(dtype) for a in (x, *weights)]
        (y,), g = mx.vjp(run, values, [c.astype(dtype)])
        return dict(zip(["y", "x", "Wxh", "Whh", "bias"], [y, *g], strict=True))

    def theirs(x, *weights):
        return upstream_layer(x, *weights, nn.glu)(x)

    def ours(x, *weights):
        return mlx_recurrent.rnn(x, *weights, nonlinearity=nn.glu)

    truth = {n: wide(a) for n, a in grads(theirs, mx.float64).items()}
    all_close(grads(ours, mx.float32), grads(theirs, mx.float32), truth)


def test_hidden_where_there_are_fewer_states_than_units():
    x, weights = mx.zeros((3, 7, 5)), [mx.zeros(s) for s in ((H, 5), (H, 6), (H,))]
    with pytest.raises(ValueError, match=r"hidden must have shape \(\.\.\., 6\)"):
        mlx_recurrent.rnn(x, *weights, mx.zeros((3, H)), nonlinearity=nn.glu)


@pytest.mark.parametrize("f", [lambda a: a[..., :1], lambda a: a[None], lambda a: a[0]])
def test_a_result_of_another_shape_beside_terms(f):
    layer = RNN(5, H, nonlinearity=f)
    with pytest.raises(ValueError, match=r"nonlinearity returned .* as it was given"):
        layer(mx.zeros((3, 1, 5)), lengths=[1, 0, 1])


def test_exceptions_pass_through():
    class Mine(Exception):
        pass

    def f(a):
        raise Mine

    with pytest.raises(Mine):
        RNN(5, H, nonlinearity=f)(mx.zeros((3, 7, 5)))


@pytest.mark.parametrize("result", [None, 1.0, np.zeros((3, H), np.float32)])
def test_the_result_is_an_array(result):
    layer = RNN(5, H, nonlinearity=lambda a: result)
    with pytest.raises(TypeError, match="nonlinearity"):
        layer(mx.zeros((3, 7, 5)))


@pytest.mark.parametrize(
    "f", [lambda a: a[..., :3], lambda a: a.sum(), lambda a: a.astype(mx.complex64)]
)
def test_results_that_do_not_fit(f):
    layer = RNN(5, H, nonlinearity=f)
    with pytest.raises(ValueError, match="nonlinearity"):
        layer(mx.zeros((3, 7, 5)))


def test_scan(rng):
    z, h = draw(rng, (3, 7, H), mx.float32), draw(rng, (3, H), mx.float32)
    Whh = draw(rng, (H, H), mx.float32, 0.3)

    def theirs(z, Whh, h):
        return upstream_layer(z, mx.eye(H, dtype=z.dtype), Whh, None, mx.sin)(z, h)

    truth = theirs(*map(widened, (z, Whh, h)))
    got = mlx_recurrent.scan(z, Whh, h, nonlinearity=unreadable(mx.sin))
    close(got, theirs(z, Whh, h), wide(truth))


def with_terms(layer):
    """The layer with every term that selects, on each half of the rows another way."""

    def function(x):
        lengths = mx.array([x.shape[-2], x.shape[-2] // 2])
        reset = mx.zeros((2, x.shape[-2]), mx.bool_)
        return layer(x, lengths=lengths, reset=reset, reverse=True, truncate_every=10)

    return function


def cost(layer, L, order):
    """Elements of all arrays in the graph of a derivative by x over L steps.

    By x alone: the gradients of weights are linear anyhow, and would hide the rest.
    """
    total = 0

    def note(event):
        nonlocal total
        if event["type"] == "primitive":
            total += sum(math.prod(shape) for _, shape, _ in event["outputs"])

    function = lambda x: layer(x).sum()  # noqa: E731
    for _ in range(order):
        function = _slope(function)
    mx.export_function(note, function, mx.ones((2, L, 5)))
    return total


def _slope(function):
    return lambda x: mx.grad(function)(x).sum()


def growth(layer, order, few=64):
    """What a step costs in sixteen times as many steps, of what it costs in few."""
    return cost(layer, 16 * few, order) / cost(layer, few, order) / 16


@pytest.mark.parametrize("order", [0, 1, 2])
def test_cost_is_linear(order):
    layer = RNN(5, H, nonlinearity=lambda a: mx.sin(a))
    with mlx_recurrent.exporting():
        assert growth(layer, order) <= LINEAR


@pytest.mark.parametrize("order", [0, 1])
def test_cost_with_terms_is_linear(order):
    layer = RNN(5, H, nonlinearity=lambda a: mx.sin(a), leak=0.5, zoneout=0.1)
    with mlx_recurrent.exporting():
        assert growth(with_terms(layer), order, few=16) <= LINEAR


def test_cost_can_tell_the_difference():
    """Upstream's gradient, quadratic in L, does not pass for linear."""
    layer = nn.RNN(5, H, nonlinearity=lambda a: mx.sin(a))
    assert growth(layer, 1) > 2 * LINEAR


def test_number_of_operations_is_linear(tmp_path, rng):
    """Also with this package's product in the graph."""
    layer = RNN(5, H, nonlinearity=unreadable(mx.sin))
    grad = mx.grad(lambda x: layer(x).sum())
    counts = []
    for L in (64, 1024):
        path = tmp_path / f"{L}.dot"
        mx.export_to_dot(str(path), grad(draw(rng, (2, L, 5), mx.float32)))
        counts.append(path.read_text().count("shape=rectangle"))
    assert counts[1] / counts[0] / 16 <= LINEAR
