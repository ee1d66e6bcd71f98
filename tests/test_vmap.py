"""``vmap`` over inputs, weights and states, and its nests with derivatives."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_recurrent
import optional
import reference
from conftest import ARGUMENTS, Case, call, draw, gradients, ours, smooth, upstream
from mlx_recurrent import RNN
from tolerances import all_close, close, equal, wide
from transforms import (
    VMAP_AXES,
    B,
    batched,
    both_paths,
    directions,
    jvp_of_vjp,
    list_of_call,
    ours_tanh,
    vjp,
    vjp_of_vjp,
)

VIEWS = {
    "swapped": lambda y: y.swapaxes(-1, -2),
    "reversed": lambda y: y[::-1],
    "every second": lambda y: y[:, ::2],
    "one feature": lambda y: y[..., :1],
}


@both_paths
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_gradients_for_each_example_of_views(rng, view, run):
    """Cotangents that lie in memory as the view does, and that nobody else needs."""
    p = optional.problem(rng, (2, 4), L=6, H=6, D=3, hidden=False)
    x, *weights = p.arrays.values()
    c = draw(rng, (2, *view(mx.zeros((4, 6, 6))).shape), mx.float32)

    def gradients(run, c, x):
        def loss(*weights):
            return (view(run("tanh", x, *weights)) * mx.exp(c)).sum()

        return mx.grad(loss, (0, 1, 2))(*weights)

    got = mx.vmap(lambda c, x: gradients(run, c, x))(c, x)
    for i in range(2):
        expected = gradients(upstream, c[i], x[i])
        p = optional.problem(rng, (4,), L=6, H=6, D=3, hidden=False)
        p.arrays = dict(zip(p.names, [x[i], *weights], strict=True))
        zeros = mx.zeros((4, 6, 6))
        d = mx.vjp(view, [zeros], [mx.exp(c[i])])[1][0]
        truth = p.gradients(d, mx.zeros((4, 6)))[1:]
        for a, b, t in zip(got, expected, truth, strict=True):
            close(a[i], b, t)


@both_paths
@pytest.mark.parametrize("out_axis", [0, 2])
@pytest.mark.parametrize("axes", VMAP_AXES.values(), ids=VMAP_AXES)
def test_vmap(rng, axes, out_axis, run):
    values, problems = batched(rng, axes)
    got = mx.vmap(lambda *v: run("tanh", *v), axes, out_axis)(*values)
    expected = mx.stack([call(upstream, p) for p in problems], out_axis)
    close(got, expected, np.stack([p.states() for p in problems], out_axis))


@both_paths
@pytest.mark.parametrize("axes", ["x", "weights"])
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "identity"])
def test_vmap_activations(rng, activation, axes, run):
    axes = VMAP_AXES[axes]
    values, problems = batched(rng, axes, activation, hidden=False, lead=())
    got = mx.vmap(lambda *v: run(activation, *v), axes[:4])(*values[:4])
    expected = mx.stack([call(upstream, p) for p in problems])
    close(got, expected, np.stack([p.states() for p in problems]))


@pytest.mark.parametrize("axes", ["x", "hidden", "weights", "all"])
@pytest.mark.parametrize("return_state", [True, "only"])
def test_vmap_of_the_state(rng, return_state, axes):
    axes = VMAP_AXES[axes]
    values, problems = batched(rng, axes)
    function = mx.vmap(lambda *v: ours("tanh", *v, return_state=return_state), axes)
    got = function(*values) if return_state == "only" else function(*values)[1]
    expected = mx.stack([call(upstream, p)[:, -1] for p in problems])
    close(got, expected, np.stack([p.states()[:, -1] for p in problems]))


# (N, L, D, H): alone, calls of these shapes run on one thread, divide the hidden
# units, and divide the batch.
SPLITS = {"none": (1, 9, 5, 20), "units": (1, 64, 16, 256), "batch": (16, 40, 16, 128)}


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("sets", [2, 8])
@pytest.mark.parametrize("shape", SPLITS.values(), ids=SPLITS)
def test_sets_of_weights_are_separate_calls(rng, shape, sets, threads):
    """The same to the bit as a call for each set, outputs and gradients."""
    mlx_recurrent.set_num_threads(threads)
    each = [smooth(rng, shape, hidden=False, gain=0.7) for _ in range(sets)]
    x, c = each[0].x, draw(rng, (*shape[:2], shape[3]), mx.float32)
    stacked = [mx.stack([p.arrays[n] for p in each]) for n in ("Wxh", "Whh", "bias")]

    def both(*w):
        outputs, grads = mx.vjp(lambda *v: ours("tanh", *v), [x, *w], [c])
        return outputs + grads

    got = mx.vmap(both)(*stacked)
    for i, p in enumerate(each):
        for a, b in zip(got, both(p.Wxh, p.Whh, p.bias), strict=True):
            equal(a[i], b)


@pytest.mark.parametrize("axes", ["x", "hidden", "weights", "all"])
def test_vmap_over_nothing(rng, axes):
    """A mapped axis of size 0."""
    axes = VMAP_AXES[axes]
    values, _ = batched(rng, axes)
    empty = [
        v if a is None else mx.take(v, mx.zeros((0,), mx.int32), a)
        for v, a in zip(values, axes, strict=True)
    ]
    for transform in (list_of_call, vjp, vjp_of_vjp, jvp_of_vjp):
        mapped = mx.vmap(lambda *v, f=transform: f(ours_tanh, list(v), v), axes)
        for full, none in zip(mapped(*values), mapped(*empty), strict=True):
            assert none.shape == (0, *full.shape[1:])


@both_paths
def test_vmap_twice(rng, run):
    """Over rows of x inside, over weights outside."""
    x = draw(rng, (4, 5, 3), mx.float32)
    weights = [draw(rng, s, mx.float32, 0.3) for s in ((B, 9, 3), (B, 9, 9), (B, 9))]
    inner = mx.vmap(lambda x, *w: run("tanh", x, *w), (0, None, None, None))
    got = mx.vmap(inner, (None, 0, 0, 0))(x, *weights)
    each = [Case("tanh", x, *(w[i] for w in weights), None) for i in range(B)]
    expected = mx.stack([call(upstream, p) for p in each])
    close(got, expected, np.stack([p.states() for p in each]))


@both_paths
@pytest.mark.parametrize("axes", ["x", "hidden", "weights", "all"])
def test_vmap_of_grad(rng, axes, run):
    """A gradient for each slice, of every argument."""
    axes = VMAP_AXES[axes]
    values, problems = batched(rng, axes)
    c = draw(rng, (2, 5, 20), mx.float32)

    def grad(*v):
        return mx.grad(lambda *w: (run("tanh", *w) * c).sum(), tuple(range(5)))(*v)

    got = dict(zip(ARGUMENTS, mx.vmap(grad, axes)(*values), strict=True))
    each = [gradients(upstream, p, c) for p in problems]
    expected = {n: mx.stack([g[n] for g in each]) for n in ARGUMENTS}
    each = [p.gradients(c) for p in problems]
    all_close(got, expected, {n: np.stack([g[n] for g in each]) for n in ARGUMENTS})


ROWS = ["x", "hidden"]


RANDOM = {
    "zoneout": {"zoneout": 0.4},
    "recurrent_dropout": {"recurrent_dropout": 0.4},
    "input_dropout": {"input_dropout": 0.4},
    "all": {
        "zoneout": 0.3,
        "recurrent_dropout": 0.3,
        "input_dropout": 0.3,
        "leak": "array",
    },
}


@both_paths
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("options", RANDOM.values(), ids=RANDOM)
def test_vmap_of_grad_with_masks(rng, options, times, run):
    """By weights that all examples share: the masks are those of each call alone."""
    p = optional.problem(rng, (3,), L=4, H=20, **options)
    d = [draw(rng, (2,) * times + s, p.dtype) + 2 for s in ((3, 4, 20), (3, 20))]
    rows = {n: draw(rng, (2,) * times + p.arrays[n].shape, p.dtype) for n in ROWS}

    def of(f):
        def function(d, last, x, hidden):
            given = {"x": x, "hidden": hidden}
            values = [given.get(n, a) for n, a in p.arrays.items()]
            return optional.grads(f, values, [d, last])

        return function

    mapped = of(lambda *v: p(run, *v))
    for _ in range(times):
        mapped = mx.vmap(mapped)
    got = mapped(*d, *rows.values())
    for place in np.ndindex((2,) * times):
        p.arrays |= {n: a[place] for n, a in rows.items()}
        one = [a[place] for a in d]
        expected, truth = optional.grads(p.plain, p.arrays.values(), one), p.gradients
        for name, a, b, c in zip(p.names, got, expected, truth(*one), strict=True):
            close(a[place], b, c, name)


@both_paths
@pytest.mark.parametrize("axes", ["x", "hidden", "weights", "all"])
def test_grad_of_vmap(rng, axes, run):
    axes = VMAP_AXES[axes]
    values, problems = batched(rng, axes)
    c = draw(rng, (B, 2, 5, 20), mx.float32)
    _, grads = mx.vjp(mx.vmap(lambda *v: run("tanh", *v), axes), values, [c])

    def gathered(each, stack):
        """Slices of a mapped argument stand apart, those of a shared one add up."""
        return {
            n: sum(g[n] for g in each) if a is None else stack([g[n] for g in each], a)
            for n, a in zip(ARGUMENTS, axes, strict=True)
        }

    expected = gathered(
        [gradients(upstream, p, c[i]) for i, p in enumerate(problems)], mx.stack
    )
    truth = gathered([p.gradients(c[i]) for i, p in enumerate(problems)], np.stack)
    all_close(dict(zip(ARGUMENTS, grads, strict=True)), expected, truth)


@both_paths
@pytest.mark.parametrize("axes", ["x", "weights", "all"])
def test_jvp_of_vmap(rng, axes, run):
    axes = VMAP_AXES[axes]
    values, problems = batched(rng, axes)
    tangents = directions(rng, values)
    mapped = mx.vmap(lambda *v: run("tanh", *v), axes)
    got = mx.jvp(mapped, values, tangents)[1][0]
    expected, truth = [], []
    for i, p in enumerate(problems):
        v = [
            t if a is None else mx.take(t, mx.array(i), a)
            for t, a in zip(tangents, axes, strict=True)
        ]
        primals = list(p.arrays.values())
        expected.append(mx.jvp(lambda *w: upstream("tanh", *w), primals, v)[1][0])
        truth.append(reference.rnn_tangent(p.truth, [wide(t) for t in v]))
    close(got, mx.stack(expected), np.stack(truth))


def test_layer_parameters_inside_vmap(rng):
    """An ensemble: vmap over stacked parameters of the module."""
    layer = RNN(5, 20)
    x = draw(rng, (2, 5, 5), mx.float32)
    stacked = {
        n: draw(rng, (B, *p.shape), mx.float32, 0.3)
        for n, p in tree_flatten(layer.parameters())
    }

    def call_with(parameters):
        layer.update(parameters)
        return layer(x)

    got = mx.vmap(call_with)(stacked)
    each = [
        Case("tanh", x, *(stacked[n][i] for n in ("Wxh", "Whh", "bias")), None)
        for i in range(B)
    ]
    expected = mx.stack([call(upstream, p) for p in each])
    close(got, expected, np.stack([p.states() for p in each]))
