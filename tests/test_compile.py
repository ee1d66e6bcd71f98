"""Compiled functions of the layer and of its derivatives, shapeless ones too."""

import io
from functools import partial

import mlx.core as mx
import pytest

import mlx_recurrent
import optional
from conftest import ACTIVATIONS, ARGUMENTS, call, draw, gradients, ours, upstream
from mlx_recurrent import RNN
from optional import grads
from tolerances import agree, all_close, close, equal, wide
from transforms import (
    as_list,
    both_paths,
    directions,
    jvp,
    jvp_of_vjp,
    setting,
    vjp,
    vjp_of_vjp,
)


@both_paths
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_compile(rng, activation, run):
    compiled = mx.compile(lambda *values: run(activation, *values))
    for shape in ((3, 6, 5, 20), (5, 2, 5, 20), (3, 6, 5, 20)):
        problem, values, _ = setting(rng, shape, activation)
        close(compiled(*values), call(upstream, problem), problem.states())


@both_paths
def test_compile_of_the_gradient(rng, run):
    compiled = mx.compile(
        lambda c, *values: mx.vjp(lambda *v: run("tanh", *v), values, [c])[1]
    )
    for shape in ((3, 6, 5, 20), (5, 2, 5, 20)):
        problem, values, c = setting(rng, shape)
        got = dict(zip(ARGUMENTS, compiled(c, *values), strict=True))
        all_close(got, gradients(upstream, problem, c), problem.gradients(c))


@both_paths
def test_gradient_of_compiled(rng, run):
    problem, values, c = setting(rng)
    compiled = mx.compile(lambda *v: run("tanh", *v))
    _, grads = mx.vjp(compiled, values, [c])
    got = dict(zip(ARGUMENTS, grads, strict=True))
    all_close(got, gradients(upstream, problem, c), problem.gradients(c))


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_compile_shapeless(rng, dtype, activation, hidden):
    """One trace serves all N and L; upstream's loop cannot."""
    traces = []

    def function(*values):
        traces.append(1)
        return ours(activation, *values)

    compiled = mx.compile(function, shapeless=True)
    for N, L in ((3, 6), (5, 2), (1, 40), (40, 1)):
        problem, values, _ = setting(
            rng, (N, L, 5, 20), activation, dtype, hidden=hidden, gain=0.7
        )
        close(compiled(*values), call(upstream, problem), problem.states())
    assert len(traces) == 1


@pytest.mark.parametrize("return_state", [True, "only"])
def test_compile_shapeless_with_the_state(rng, return_state):
    compiled = mx.compile(
        lambda *values: ours("tanh", *values, return_state=return_state),
        shapeless=True,
    )
    for N, L in ((3, 6), (5, 2), (2, 40)):
        problem, values, _ = setting(rng, (N, L, 5, 20))
        got = compiled(*values)
        state = got if return_state == "only" else got[1]
        last = call(upstream, problem)[:, -1]
        close(state, last, problem.states()[:, -1])


@pytest.mark.parametrize("hidden", [False, True])
def test_compile_shapeless_of_the_gradient(rng, hidden):
    traces = []

    def function(c, *values):
        traces.append(1)
        return mx.vjp(lambda *v: ours("tanh", *v), values, [c])[1]

    compiled = mx.compile(function, shapeless=True)
    for N, L in ((3, 6), (5, 2), (2, 40)):
        problem, values, c = setting(rng, (N, L, 5, 20), hidden=hidden)
        got = dict(zip(problem.arrays, compiled(c, *values), strict=True))
        all_close(got, gradients(upstream, problem, c), problem.gradients(c))
    assert len(traces) == 1


MISFITS = {
    "features": {"x": (3, 6, 7)},
    "rows": {"hidden": (2, 20)},
    "Whh": {"Whh": (31, 31)},
    "bias": {"bias": (7,)},
}


def test_compile_shapeless_with_terms(rng):
    """Another number of rows and steps, a learned first state and resets too."""

    def both(lengths, reset, mask, d, *arrays):
        def run(*arrays):
            x, Wxh, Whh, bias, hidden0, leak = arrays
            terms = {"lengths": lengths, "reset": reset, "mask": mask}
            terms |= {"truncate_every": 2}
            terms |= {"hidden0": hidden0, "leak": leak, "return_state": True}
            return list(mlx_recurrent.rnn(x, Wxh, Whh, bias, **terms))

        return [*run(*arrays), *grads(run, arrays, d)]

    shapeless = mx.compile(both, shapeless=True)
    for rows, steps in ((4, 6), (2, 6), (3, 9), (4, 1)):
        p = optional.problem(
            rng,
            (rows,),
            steps,
            lengths=rng.integers(0, steps + 1, rows),
            reset=rng.random((rows, steps)) < 0.3,
            mask=rng.random((rows, steps)) < 0.7,
            truncate_every=2,
            hidden=False,
            hidden0=True,
            leak="array",
        )
        d, values = p.cotangents(), list(p.arrays.values())
        flags = [mx.array(p.keywords[n]) for n in optional.ARRAYS]
        (*results,) = shapeless(*flags, d, *values)
        p.check(results[:2])
        all_close(
            dict(zip(p.names, results[2:], strict=True)),
            dict(zip(p.names, grads(p.plain, values, d), strict=True)),
            dict(zip(p.names, p.gradients(*d), strict=True)),
        )


@pytest.mark.parametrize("misfit", MISFITS)
def test_compile_shapeless_with_shapes_that_do_not_fit(rng, misfit):
    """Only the first call is judged in Python: later ones must not read astray."""
    compiled = mx.compile(lambda *v: ours("tanh", *v), shapeless=True)
    problem, values, _ = setting(rng)
    mx.eval(compiled(*values))
    arrays = problem.arrays
    for name, shape in MISFITS[misfit].items():
        arrays[name] = draw(rng, shape, mx.float32)
    with pytest.raises(ValueError, match=r"mlx_recurrent\.Recurrence.*do not fit"):
        compiled(*arrays.values())


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("return_state", [True, "only"])
@pytest.mark.parametrize("lengths", [(6, 0, 3), (0, 6, 0)])
def test_compile_shapeless_of_a_state_without_steps(rng, lengths, return_state, hidden):
    """Without steps the state is ``hidden`` or zero, and so is its derivative."""

    def state(*values):
        out = ours("tanh", *values, return_state=return_state)
        return out if return_state == "only" else out[1]

    def both(c, *values):
        return [state(*values), *mx.vjp(state, values, [c])[1]]

    compiled = mx.compile(both, shapeless=True)
    for L in lengths:
        problem, values, _ = setting(rng, (3, L, 5, 20), hidden=hidden)
        c = draw(rng, (3, 20), mx.float32)
        got = compiled(c, *values)
        for ours_, eager in zip(got, both(c, *values), strict=True):
            equal(ours_, eager)
        if L == 0:
            at_first = problem.hidden if hidden else mx.zeros((3, 20))
            equal(got[0], at_first)
            grads = dict(zip(problem.arrays, got[1:], strict=True))
            for name, grad in grads.items():
                equal(grad, c if name == "hidden" else mx.zeros_like(grad), name)


def vjp_of_jvp(function, values, v):
    return vjp(lambda *a: mx.jvp(function, list(a), v)[1], values, v)


def jvp_of_jvp(function, values, v):
    return mx.jvp(lambda *a: mx.jvp(function, list(a), v)[1], values, v)[1]


def vmap_of_vjp(function, values, v):
    """A gradient of each weight for each row."""
    rows = (0, None, None, None, 0)[: len(values)]
    return mx.vmap(lambda *a: vjp(function, list(a), v), rows)(*values)


def vmap_over_weights(function, values, v):
    sets = (None, 0, 0, 0, None)[: len(values)]
    two = [
        a if axis is None else mx.stack([a, 0.5 * a])
        for a, axis in zip(values, sets, strict=True)
    ]
    return as_list(mx.vmap(function, sets)(*two))


SHAPELESS = [
    vjp,
    jvp,
    vjp_of_vjp,
    jvp_of_vjp,
    vjp_of_jvp,
    jvp_of_jvp,
    vmap_of_vjp,
    vmap_over_weights,
]


@pytest.mark.parametrize("return_state", [False, True, "only"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "identity"])
@pytest.mark.parametrize("transform", SHAPELESS, ids=lambda f: f.__name__)
def test_compile_shapeless_of_derivatives(rng, transform, activation, return_state):
    """One trace serves all N and L, no steps included."""
    traces = []

    def function(run, *arrays):
        half = len(arrays) // 2
        return transform(run, list(arrays[:half]), list(arrays[half:]))

    def made(*a):
        return ours(activation, *a, return_state=return_state)

    def theirs(*a):
        y = upstream(activation, *a)
        last = y[..., -1, :]
        return {False: y, True: (y, last), "only": last}[return_state]

    def traced(*arrays):
        traces.append(1)
        return function(made, *arrays)

    compiled = mx.compile(traced, shapeless=True)
    for N, L in ((3, 4), (5, 2), (1, 5), (4, 1), (2, 0)):
        _, values, _ = setting(rng, (N, L, 5, 20), activation, gain=0.7)
        arrays = [*values, *directions(rng, values)]
        got = compiled(*arrays)
        if L == 0:  # where upstream fails
            for a, b in zip(got, function(made, *arrays), strict=True):
                agree(a, b)
            continue
        truth = function(theirs, *(a.astype(mx.float64) for a in arrays))
        for each in zip(got, function(theirs, *arrays), map(wide, truth), strict=True):
            close(*each)
    assert len(traces) == 1


def nodes(*outputs):
    """How many operations a graph has."""
    text = io.StringIO()
    mx.export_to_dot(text, *outputs)
    return text.getvalue().count("shape=rectangle")


@pytest.mark.parametrize("transform", SHAPELESS, ids=lambda f: f.__name__)
def test_graph_does_not_grow_with_the_length(rng, transform):
    def count(L):
        _, values, _ = setting(rng, (2, L, 3, 4))
        return nodes(
            *transform(lambda *a: ours("tanh", *a), values, directions(rng, values))
        )

    assert 0 < count(10) == count(10_000)


@pytest.mark.parametrize("return_state", [True, "only"])
@pytest.mark.parametrize("transform", [vjp, jvp], ids=["vjp", "jvp"])
def test_compile_of_the_same_call_twice(rng, transform, return_state):
    """MLX's compile merges equal operations; those of several outputs it misplaces."""
    _, values, _ = setting(rng)
    v = directions(rng, values)

    def made(*b):
        return ours("tanh", *b, return_state=return_state)

    def theirs(*b):
        y = upstream("tanh", *b)
        last = y[..., -1, :]
        return last if return_state == "only" else (y, last)

    def function(run, v, *a):
        inner = lambda *b: vjp(run, list(b), v)  # noqa: E731
        return [*as_list(run(*a)), *transform(inner, list(a), v)]

    got = mx.compile(partial(function, made, v))(*values)
    expected = function(theirs, v, *values)
    wider = [[a.astype(mx.float64) for a in arrays] for arrays in (v, values)]
    truth = function(theirs, wider[0], *wider[1])
    for each in zip(got, expected, map(wide, truth), strict=True):
        close(*each)


@both_paths
def test_compile_of_the_same_gradient_twice(rng, run):
    """Equal gradients of several arrays merge, whichever of them each is read for."""
    problem, values, c = setting(rng)

    def twice(*values):
        one, other = (
            mx.vjp(lambda *v: run("tanh", *v), values, [c])[1] for _ in range(2)
        )
        halves = one[3] + other[3], one[2] - other[2], one[4] + other[4]
        return [one[0] * 2, *other[1:3], *halves]

    x, *weights, bias, none, hidden = mx.compile(twice)(*values)
    got = dict(zip(ARGUMENTS, [x / 2, *weights, bias / 2, hidden / 2], strict=True))
    all_close(got, gradients(upstream, problem, c), problem.gradients(c))
    assert not none.any()


def test_compiled_layer_sees_new_weights(rng):
    layer = RNN(5, 20)
    compiled = mx.compile(lambda x: layer(x), inputs=layer.state)
    x = draw(rng, (3, 6, 5), mx.float32)
    mx.eval(compiled(x))
    layer.Whh = layer.Whh * 2
    equal(compiled(x), layer(x))
