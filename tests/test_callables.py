"""Any callable as the nonlinearity: which path it takes, its values and gradients."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import mlx_recurrent
import reference
from callables import CALLABLES, TRACED
from conftest import ARGUMENTS, DTYPES, array, draw, upstream_layer
from mlx_recurrent import RNN, functional
from tolerances import EPS, all_close, close, equal, wide

N, L, D, H = 2, 3, 3, 9

by_name = pytest.mark.parametrize("name", CALLABLES)


def ours(nonlinearity, x, Wxh, Whh, bias, hidden):
    return mlx_recurrent.rnn(x, Wxh, Whh, bias, hidden, nonlinearity=nonlinearity)


def upstream(nonlinearity, x, Wxh, Whh, bias, hidden):
    return upstream_layer(x, Wxh, Whh, bias, nonlinearity)(x, hidden)


class Problem:
    """Inputs of a layer with one nonlinearity, away from where its slope jumps."""

    def __init__(self, rng, name, dtype=mx.float32):
        self.kind = CALLABLES[name]
        self.names = list(ARGUMENTS)
        shapes = self.kind.captured(H)
        self.names += [f"captured {i}" for i in range(len(shapes))]
        wide_H, scale = self.kind.width * H, self.kind.scale
        for _ in range(1000):
            self.values = [
                draw(rng, (N, L, D), dtype, scale),
                draw(rng, (wide_H, D), dtype, 0.5),
                draw(rng, (wide_H, H), dtype, 0.5 / np.sqrt(H)),
                draw(rng, (wide_H,), dtype, 0.5 * scale),
                draw(rng, (N, H), dtype, 0.5 * scale),
                *(array(rng.uniform(0.5, 1.5, s), dtype) for s in shapes),
            ]
            if self.distance() > 3 * EPS[dtype]:
                break
        else:
            raise AssertionError(f"{name}: always near a kink")
        # Not around zero: where a sum over all steps cancels, luck decides its error.
        self.c = array(1 + 0.5 * rng.standard_normal((N, L, H)), dtype)

    @property
    def truth(self):
        return [wide(v) for v in self.values]

    def distance(self):
        """Of what the nonlinearity is given from the places where its slope jumps."""
        seen = [np.inf]
        kinks = np.array(self.kind.kinks)

        def look(a):
            if len(kinks):
                seen.append(np.abs(a[..., None] - kinks).min())
            return self.kind.twin(a, *self.truth[5:])

        reference.rnn(*self.truth[:5], look)
        return min(seen)

    def states(self):
        return self._states(*self.truth)

    def _states(self, *values):
        return reference.rnn(*values[:5], lambda a: self.kind.twin(a, *values[5:]))

    def gradients(self):
        found = reference.gradient(self._states, self.truth, wide(self.c))
        return dict(zip(self.names, found, strict=True))

    def function(self, run):
        """Of all arrays, also of what the nonlinearity captures."""
        return lambda *v: run(self.kind.make(*v[5:]), *v[:5])

    def loss(self, run):
        return lambda *v: (self.function(run)(*v) * self.c).sum()

    def gradients_of(self, run):
        every = tuple(range(len(self.values)))
        grads = mx.grad(self.loss(run), every)(*self.values)
        return dict(zip(self.names, grads, strict=True))

    def path(self):
        made = self.kind.make(*self.values[5:])
        return functional.plan(functional.rnn, *self.values[:5], nonlinearity=made).path


@by_name
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_path(rng, dtype, name):
    problem = Problem(rng, name, dtype)
    values = problem.values
    got = problem.function(ours)(*values)
    close(got, problem.function(upstream)(*values), problem.states())
    assert problem.path() == CALLABLES[name].path


@by_name
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients(rng, dtype, name):
    problem = Problem(rng, name, dtype)
    all_close(
        problem.gradients_of(ours),
        problem.gradients_of(upstream),
        problem.gradients(),
    )


# On the composed path a compiler runs for each: some must do.
@pytest.mark.parametrize("name", [*TRACED, "captured_row", "prelu", "own_rule", "glu"])
def test_compile(rng, name):
    problem = Problem(rng, name)
    every = tuple(range(len(problem.values)))

    def function(*v):
        return problem.function(ours)(*v), mx.grad(problem.loss(ours), every)(*v)

    got, grads = mx.compile(function)(*problem.values)
    close(got, problem.function(upstream)(*problem.values), problem.states())
    all_close(
        dict(zip(problem.names, grads, strict=True)),
        problem.gradients_of(upstream),
        problem.gradients(),
    )


@by_name
def test_vmap(rng, name):
    """Over the rows of x and of hidden: values, and gradients of each row."""
    problem = Problem(rng, name)
    axes = (0, None, None, None, 0, *(None for _ in problem.values[5:]))
    got = mx.vmap(problem.function(ours), axes)(*problem.values)
    expected, truth = problem.function(upstream)(*problem.values), problem.states()
    close(got, expected, truth)

    def grad(run):
        def loss(c, *v):
            return (problem.function(run)(*v) * c).sum()

        every = tuple(range(1, 1 + len(problem.values)))
        return lambda *v: mx.grad(loss, every)(*v)

    got = mx.vmap(grad(ours), (0, *axes))(problem.c, *problem.values)
    for i in range(N):
        row = [
            v if a is None else v[i] for v, a in zip(problem.values, axes, strict=True)
        ]
        truth = reference.gradient(
            problem._states, [wide(v) for v in row], wide(problem.c[i])
        )
        all_close(
            dict(zip(problem.names, (g[i] for g in got), strict=True)),
            dict(zip(problem.names, grad(upstream)(problem.c[i], *row), strict=True)),
            dict(zip(problem.names, truth, strict=True)),
        )


# What follows has a state, or reads numbers: `make` gives a new one for each layer.


class Changing:
    """A function with a number that users change."""

    def __init__(self):
        self.slope = 0.1

    def __call__(self, a):
        return mx.maximum(self.slope * a, a)


class ChangingArray(Changing):
    """With an array that users replace."""

    def __init__(self):
        self.slope = mx.array([0.1] * H)


class CallsSoFar:
    """Another function at each call."""

    def __init__(self):
        self.calls = 0

    def __call__(self, a):
        self.calls += 1
        return mx.tanh(a * (1 + 0.1 * self.calls))


class Counted:
    """The shapes that a function was called with."""

    def __init__(self, function):
        self.function = function
        self.shapes = []

    def __call__(self, a):
        self.shapes.append(a.shape)
        return self.function(a)


def through_numpy(a):
    return mx.array(np.tanh(np.array(a)))


def layers(make):
    """Ours, upstream's and upstream's in float64, with equal weights."""
    made = RNN(D, H, nonlinearity=make())
    others = []
    for dtype in (mx.float32, mx.float64):
        other = nn.RNN(D, H, nonlinearity=make())
        other.update(made.parameters())
        other.set_dtype(dtype)
        others.append(other)
    return made, *others


def results(layer, x):
    """The outputs, and the gradients of the weights and of x."""
    before = layer.parameters()

    def loss(parameters, x):
        layer.update(parameters)
        return layer(x).square().sum()

    outputs = layer(x)
    parameters, dx = mx.grad(loss, (0, 1))(before, x)
    layer.update(before)
    return {"outputs": outputs, "x": dx, **parameters}


def agree(made, theirs, exact, x):
    truth = results(exact, x.astype(mx.float64))
    all_close(
        results(made, x), results(theirs, x), {n: wide(a) for n, a in truth.items()}
    )


@pytest.mark.parametrize(
    "make, path", [(Changing, "traced"), (ChangingArray, "composed")]
)
def test_what_it_captures_changes_between_calls(rng, make, path):
    three = layers(make)
    x = draw(rng, (N, L, D), mx.float32)
    for slope in (0.1, 0.7, 0.1, -0.4):
        for layer in three:
            kind = type(layer.nonlinearity.slope)
            value = slope if kind is float else mx.array([slope] * H)
            layer.nonlinearity.slope = value
        agree(*three, x)
        assert three[0].plan(x).path == path


def test_an_array_changes_in_place(rng):
    scale = mx.array([1.0] * H)
    three = layers(lambda: lambda a: mx.tanh(scale * a))
    x = draw(rng, (N, L, D), mx.float32)
    for factor in (1, 2, -0.5):
        scale[:] = factor
        agree(*three, x)


def test_the_gradient_of_what_it_captures_alone(rng):
    """Nothing else of the layer is differentiated by."""
    made, theirs, exact = layers(lambda: mx.tanh)
    x = draw(rng, (N, L, D), mx.float32)

    def grad(layer, x):
        def loss(scale):
            layer.nonlinearity = lambda a: mx.tanh(scale * a)
            return layer(x).square().sum()

        return mx.grad(loss)(mx.ones((H,), x.dtype))

    close(grad(made, x), grad(theirs, x), wide(grad(exact, x.astype(mx.float64))))


@pytest.mark.parametrize(
    "make",
    [
        CallsSoFar,
        lambda: lambda a: mx.tanh(a * mx.max(mx.abs(a)).item()),
        lambda: through_numpy,
    ],
    ids=["calls_so_far", "item", "numpy"],
)
def test_what_reads_numbers_or_counts(rng, make):
    x = draw(rng, (N, L, D), mx.float32)
    agree(*layers(make), x)
    assert layers(make)[0].plan(x).path == "composed"


@pytest.mark.parametrize("transform", [mx.compile, mx.vmap])
def test_a_number_cannot_be_read_while_tracing(rng, transform):
    """The user's error is MLX's, as upstream's is."""
    layer = RNN(D, H, nonlinearity=lambda a: mx.tanh(a * mx.max(a).item()))
    with pytest.raises(ValueError, match="eval"):
        transform(lambda x: layer(x))(draw(rng, (N, L, D), mx.float32))


def test_random_numbers_are_upstreams(rng, seed):
    """The same draws in the same order, so the same values."""
    made, theirs, exact = layers(
        lambda: lambda a: mx.tanh(a + mx.random.normal(a.shape).astype(a.dtype))
    )
    x = draw(rng, (N, L, D), mx.float32)

    def drawn(layer, x):
        mx.random.seed(seed)
        return layer(x)

    truth = wide(drawn(exact, x.astype(mx.float64)))
    close(drawn(made, x), drawn(theirs, x), truth)
    equal(mx.random.normal((3,)), _after(drawn, theirs, x))
    assert made.plan(x).path == "composed"


def _after(drawn, layer, x):
    drawn(layer, x)
    return mx.random.normal((3,))


def test_dropout_in_it_is_upstreams(rng, seed):
    made, theirs, exact = layers(lambda: nn.Sequential(nn.Tanh(), nn.Dropout(0.5)))
    x = draw(rng, (N, L, D), mx.float32)
    outputs = []
    for layer, dtype in ((made, mx.float32), (theirs, mx.float32), (exact, mx.float64)):
        mx.random.seed(seed)
        outputs.append(layer(x.astype(dtype)))
    close(*outputs[:2], wide(outputs[2]))


@pytest.mark.parametrize("steps", [1, 2, 40])
def test_traced_is_called_once(rng, steps):
    """Once a call of the layer; at first sight of a function some times more."""
    function = Counted(lambda a: mx.tanh(0.37 * steps * a) - 0.21)
    layer = RNN(D, H, nonlinearity=function)
    x = draw(rng, (N, steps, D), mx.float32)
    for _ in range(2):  # a single step is read by two calls
        mx.eval(layer(x))
    assert 2 <= len(function.shapes) <= 5
    for _ in range(3):
        function.shapes.clear()
        mx.eval(layer(x))
        assert function.shapes == [(N, H)]
    function.shapes.clear()
    mx.eval(mx.grad(lambda x: layer(x).sum())(x))
    assert function.shapes == [(N, H)]


@pytest.mark.parametrize("steps", [1, 2, 40])
def test_composed_is_called_once_a_step(rng, steps):
    """As upstream calls it, the first time and later."""
    x = draw(rng, (N, steps, D), mx.float32)
    made, theirs, _ = layers(lambda: Counted(lambda a: mx.softmax(a, axis=-1)))
    mx.eval(theirs(x))
    for _ in range(3):
        made.nonlinearity.shapes.clear()
        mx.eval(made(x))
        assert made.nonlinearity.shapes == theirs.nonlinearity.shapes


def test_what_it_raises_is_raised(rng):
    def function(a):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        RNN(D, H, nonlinearity=function)(draw(rng, (N, L, D), mx.float32))
