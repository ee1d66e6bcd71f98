"""MLX's transformations of the layer: compile, vmap, jvp, checkpoint, and their nests.

``ours`` is the native path, ``traced`` and ``composed`` are the others, on the same
mathematics.
"""

import io
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_recurrent
import optional
import reference
from conftest import (
    ACTIVATIONS,
    ARGUMENTS,
    COMPOSED,
    NATIVE,
    TRACED,
    UPSTREAM,
    Case,
    array,
    call,
    composed,
    draw,
    gradients,
    ours,
    smooth,
    traced,
    upstream,
)
from mlx_recurrent import RNN
from optional import grads
from tolerances import DIFFERENCE, agree, all_close, close, equal, wide

both_paths = pytest.mark.parametrize(
    "run", [ours, traced, composed], ids=["native", "traced", "composed"]
)
both_nonlinearities = pytest.mark.parametrize(
    "nonlinearity",
    [NATIVE["tanh"], TRACED["tanh"], COMPOSED["tanh"]],
    ids=["native", "traced", "composed"],
)


def setting(rng, shape=(3, 6, 5, 20), activation="tanh", dtype=mx.float32, **options):
    """A case, the values of its five arguments and a cotangent."""
    problem = smooth(rng, shape, dtype, activation, **options)
    # Not around zero: where a sum over all steps cancels, luck decides its error.
    c = array(1 + rng.standard_normal((*shape[:-2], shape[-1])), dtype)
    return problem, list(problem.arrays.values()), c


def directions(rng, values):
    return [draw(rng, v.shape, v.dtype) for v in values]


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

    def both(lengths, reset, d, *arrays):
        def run(*arrays):
            x, Wxh, Whh, bias, hidden0, leak = arrays
            terms = {"lengths": lengths, "reset": reset, "truncate_every": 2}
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
            truncate_every=2,
            hidden=False,
            hidden0=True,
            leak="array",
        )
        d, values = p.cotangents(), list(p.arrays.values())
        lengths, reset = (mx.array(p.keywords[n]) for n in ("lengths", "reset"))
        (*results,) = shapeless(lengths, reset, d, *values)
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


def _vjp(function, values, v):
    return mx.vjp(function, values, [mx.arctan(y) for y in _list(function(*values))])[1]


def _jvp(function, values, v):
    return mx.jvp(function, values, v)[1]


def _vjp_of_vjp(function, values, v):
    return _vjp(lambda *a: _vjp(function, list(a), v), values, v)


def _jvp_of_vjp(function, values, v):
    cotangents = [mx.arctan(y) for y in _list(function(*values))]
    return mx.jvp(lambda *a: mx.vjp(function, list(a), cotangents)[1], values, v)[1]


def _vjp_of_jvp(function, values, v):
    return _vjp(lambda *a: mx.jvp(function, list(a), v)[1], values, v)


def _jvp_of_jvp(function, values, v):
    return mx.jvp(lambda *a: mx.jvp(function, list(a), v)[1], values, v)[1]


def _vmap_of_vjp(function, values, v):
    """A gradient of each weight for each row."""
    rows = (0, None, None, None, 0)[: len(values)]
    return mx.vmap(lambda *a: _vjp(function, list(a), v), rows)(*values)


def _vmap_over_weights(function, values, v):
    sets = (None, 0, 0, 0, None)[: len(values)]
    two = [
        a if axis is None else mx.stack([a, 0.5 * a])
        for a, axis in zip(values, sets, strict=True)
    ]
    return _list(mx.vmap(function, sets)(*two))


def _ours_tanh(*values):
    return ours("tanh", *values)


def _list_of_call(function, values, v):
    return _list(function(*values))


def _list(y):
    return [y] if isinstance(y, mx.array) else list(y)


SHAPELESS = [
    _vjp,
    _jvp,
    _vjp_of_vjp,
    _jvp_of_vjp,
    _vjp_of_jvp,
    _jvp_of_jvp,
    _vmap_of_vjp,
    _vmap_over_weights,
]


@pytest.mark.parametrize("return_state", [False, True, "only"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "identity"])
@pytest.mark.parametrize("transform", SHAPELESS, ids=lambda f: f.__name__[1:])
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


@pytest.mark.parametrize("transform", SHAPELESS, ids=lambda f: f.__name__[1:])
def test_graph_does_not_grow_with_the_length(rng, transform):
    def count(L):
        _, values, _ = setting(rng, (2, L, 3, 4))
        return nodes(
            *transform(lambda *a: ours("tanh", *a), values, directions(rng, values))
        )

    assert 0 < count(10) == count(10_000)


@pytest.mark.parametrize("return_state", [True, "only"])
@pytest.mark.parametrize("transform", [_vjp, _jvp], ids=["vjp", "jvp"])
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
        inner = lambda *b: _vjp(run, list(b), v)  # noqa: E731
        return [*_list(run(*a)), *transform(inner, list(a), v)]

    got = mx.compile(partial(function, made, v))(*values)
    expected = function(theirs, v, *values)
    wider = [[a.astype(mx.float64) for a in arrays] for arrays in (v, values)]
    truth = function(theirs, wider[0], *wider[1])
    for each in zip(got, expected, map(wide, truth), strict=True):
        close(*each)


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


@both_paths
@pytest.mark.parametrize("leak", [None, "array"])
def test_second_derivatives_at_a_kink(rng, leak, run):
    """relu's slope at zero is zero, of either sign, as mlx.core.maximum's is."""
    sizes = {"lead": (3,), "L": 3, "D": 2, "H": 3, "dtype": mx.float64}
    p = optional.problem(rng, activation="relu", leak=leak, bias=False, **sizes)
    for name, zero in (("x", 0.0), ("hidden", -0.0)):
        p.arrays[name] = mx.full(p.arrays[name].shape, zero, p.dtype)
    values, d, t = list(p.arrays.values()), p.cotangents(), p.directions()

    def second(f):
        return optional.grads(lambda *v: optional.grads(f, v, d), values, t)

    got, truth = second(lambda *v: p(run, *v)), second(p.plain)
    for a, b in zip(got, truth, strict=True):
        assert np.abs(wide(a) - wide(b)).max() <= DIFFERENCE * np.abs(wide(b)).max()


@pytest.mark.parametrize("unused", ["outputs", "state"])
def test_one_of_both_results(rng, unused):
    """The cotangent of what nobody uses is zero, and is not even made."""
    problem, values, c = setting(rng)
    last = draw(rng, (3, 20), mx.float32)

    def loss(*v):
        outputs, state = ours("tanh", *v, return_state=True)
        return (outputs * c).sum() if unused == "state" else (state * last).sum()

    got = dict(zip(ARGUMENTS, mx.grad(loss, tuple(range(5)))(*values), strict=True))
    if unused == "state":
        expected, truth = gradients(upstream, problem, c), problem.gradients(c)
    else:
        expected = gradients(upstream, problem, mx.zeros_like(c), last=last)
        truth = problem.gradients(d_last=last)
    all_close(got, expected, truth)


@pytest.mark.parametrize("returned", [mx.float16, mx.float64])
@both_paths
def test_cotangent_of_another_dtype(rng, run, returned):
    """MLX hands on what a rule returns, whatever its dtype."""
    problem, values, c = setting(rng)

    @mx.custom_function
    def identity(y):
        return y

    @identity.vjp
    def identity_vjp(y, cotangent, output):
        return cotangent.astype(returned)

    def grads(function):
        run = lambda *v: (identity(function("tanh", *v)) * c).sum()  # noqa: E731
        found = mx.grad(run, list(range(len(values))))(*values)
        return dict(zip(ARGUMENTS, found, strict=True))

    given = mx.array(np.array(c.astype(returned)), mx.float32)
    got, expected = grads(run), grads(upstream)
    truth = problem.gradients(given)
    for name in got:
        close(got[name], expected[name].astype(mx.float32), truth[name], name)


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_tangent_of_another_dtype(rng, argument):
    _, values, _ = setting(rng)
    i = ARGUMENTS.index(argument)
    tangent = draw(rng, values[i].shape, mx.float16)

    def pushed(tangent):
        function = lambda v: ours("tanh", *values[:i], v, *values[i + 1 :])  # noqa: E731
        return mx.jvp(function, [values[i]], [tangent])[1][0]

    equal(pushed(tangent), pushed(tangent.astype(mx.float32)))


@both_nonlinearities
@pytest.mark.parametrize("frozen", [[], ["Whh"], ["Wxh", "bias"]], ids="-".join)
def test_value_and_grad(rng, frozen, nonlinearity):
    problem, _, c = setting(rng, hidden=False)
    layer = RNN(5, 20, nonlinearity=nonlinearity)
    layer.Wxh, layer.Whh, layer.bias = problem.Wxh, problem.Whh, problem.bias
    layer.freeze(keys=frozen)
    step = nn.value_and_grad(layer, lambda m, x: (m(x) * c).sum())
    loss, grads = step(layer, problem.x)
    names = [n for n in ("Wxh", "Whh", "bias") if n not in frozen]
    assert sorted(grads) == sorted(names)
    truth = problem.gradients(c)
    all_close(
        dict(grads),
        gradients(upstream, problem, c, names),
        {n: truth[n] for n in names},
    )
    equal(loss, (layer(problem.x) * c).sum())


@both_nonlinearities
@pytest.mark.parametrize("compiled", [False, True])
def test_training(rng, compiled, nonlinearity):
    """Three steps with momentum, compiled with the state in and out."""
    x, y = draw(rng, (3, 6, 5), mx.float32), draw(rng, (3, 6, 20), mx.float32)
    weights = [("Wxh", (20, 5)), ("Whh", (20, 20)), ("bias", (20,))]
    weights = [(name, draw(rng, shape, mx.float32, 0.3)) for name, shape in weights]

    def train(layer, dtype, compiled):
        layer.load_weights(weights)
        layer.set_dtype(dtype)
        optimizer = optim.SGD(learning_rate=0.5, momentum=0.9)
        data = x.astype(dtype), y.astype(dtype)
        loss = nn.value_and_grad(layer, lambda m, x, y: ((m(x) - y) ** 2).mean())
        state = [layer.state, optimizer.state]

        def step(x, y):
            value, grads = loss(layer, x, y)
            optimizer.update(layer, grads)
            return value

        optimizer.init(layer.trainable_parameters())
        if compiled:
            step = mx.compile(step, inputs=state, outputs=state)
        losses = [step(*data) for _ in range(3)]
        mx.eval(losses, state)
        return {"loss": mx.stack(losses), **layer.parameters()}

    got = train(RNN(5, 20, nonlinearity=nonlinearity), mx.float32, compiled)
    expected = train(nn.RNN(5, 20), mx.float32, compiled)
    truth = train(nn.RNN(5, 20), mx.float64, False)
    all_close(got, expected, {n: wide(a) for n, a in truth.items()})


def test_compiled_layer_sees_new_weights(rng):
    layer = RNN(5, 20)
    compiled = mx.compile(lambda x: layer(x), inputs=layer.state)
    x = draw(rng, (3, 6, 5), mx.float32)
    mx.eval(compiled(x))
    layer.Whh = layer.Whh * 2
    equal(compiled(x), layer(x))


@both_paths
def test_checkpoint(rng, run):
    problem, values, c = setting(rng)
    _, grads = mx.vjp(mx.checkpoint(lambda *v: run("tanh", *v)), values, [c])
    got = dict(zip(ARGUMENTS, grads, strict=True))
    all_close(got, gradients(upstream, problem, c), problem.gradients(c))


@both_nonlinearities
def test_checkpoint_of_a_module(rng, nonlinearity):
    problem, _, c = setting(rng, hidden=False)
    layer = RNN(5, 20, nonlinearity=nonlinearity)
    layer.Wxh, layer.Whh, layer.bias = problem.Wxh, problem.Whh, problem.bias
    checkpointed = nn.utils.checkpoint(layer)
    _, grads = nn.value_and_grad(layer, lambda x: (checkpointed(x) * c).sum())(
        problem.x
    )
    names = ["Wxh", "Whh", "bias"]
    truth = problem.gradients(c)
    all_close(
        dict(grads),
        gradients(upstream, problem, c, names),
        {n: truth[n] for n in names},
    )


@both_paths
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("names", [[n] for n in ARGUMENTS] + [ARGUMENTS], ids="-".join)
def test_jvp(rng, names, activation, run):
    problem, _, _ = setting(rng, activation=activation, gain=0.8)
    primals = [problem.arrays[n] for n in names]
    tangents = directions(rng, primals)

    def along(run):
        def function(*values):
            return call(run, problem.of(**dict(zip(names, values, strict=True))))

        _, (tangent,) = mx.jvp(function, primals, tangents)
        return tangent

    given = {n: wide(v) for n, v in zip(names, tangents, strict=True)}
    truth = reference.rnn_tangent(
        problem.truth, [given.get(n) for n in ARGUMENTS], activation
    )
    close(along(run), along(upstream), truth)


@pytest.mark.parametrize("dtype", [mx.float64, mx.float16, mx.bfloat16])
def test_jvp_dtypes(rng, dtype):
    problem, values, _ = setting(rng, dtype=dtype, gain=0.8)
    tangents = directions(rng, values)

    def along(run):
        return mx.jvp(lambda *v: run("tanh", *v), values, tangents)[1][0]

    truth = reference.rnn_tangent(problem.truth, [wide(v) for v in tangents])
    close(along(ours), along(upstream), truth)


@both_paths
@pytest.mark.parametrize("return_state", [True, "only"])
def test_jvp_of_the_state(rng, return_state, run):
    problem, values, _ = setting(rng)
    tangents = directions(rng, values)

    def state(*v):
        out = run("tanh", *v, return_state=return_state)
        return out if return_state == "only" else out[1]

    got = mx.jvp(state, values, tangents)[1][0]
    expected = mx.jvp(lambda *v: upstream("tanh", *v)[:, -1], values, tangents)[1][0]
    truth = reference.rnn_tangent(problem.truth, [wide(v) for v in tangents])
    close(got, expected, truth[:, -1])


# The axis of x, Wxh, Whh, bias, hidden that vmap runs along.
VMAP_AXES = {
    "x": (0, None, None, None, None),
    "x_axis_1": (1, None, None, None, None),
    "x_last_axis": (-1, None, None, None, None),
    "hidden": (None, None, None, None, 0),
    "x_and_hidden": (1, None, None, None, 1),
    "Wxh": (None, 0, None, None, None),
    "Whh": (None, None, 0, None, None),
    "bias": (None, None, None, 0, None),
    "weights": (None, 0, 0, 0, None),
    "all": (0, 0, 0, 0, 0),
    "all_at_other_axes": (2, 1, 2, 1, 1),
}
B = 3


def batched(rng, axes, activation="tanh", hidden=True, lead=(2,)):
    """Values of the five arguments with an axis of B where axes says; the slices."""
    L, D, H = 5, 5, 20
    shapes = [(*lead, L, D), (H, D), (H, H), (H,), (*lead, H)]
    stds = [1, 0.5, 0.3, 0.5, 0.5]
    values = []
    for shape, axis, std in zip(shapes, axes, stds, strict=True):
        if axis is not None:
            at = axis % (len(shape) + 1)
            shape = (*shape[:at], B, *shape[at:])
        values.append(draw(rng, shape, mx.float32, std))
    if not hidden:
        values[-1] = None
    problems = [
        Case(
            activation,
            *(
                v if a is None or v is None else mx.take(v, mx.array(i), a)
                for v, a in zip(values, axes, strict=True)
            ),
        )
        for i in range(B)
    ]
    return values, problems


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
    for transform in (_list_of_call, _vjp, _vjp_of_vjp, _jvp_of_vjp):
        mapped = mx.vmap(lambda *v, f=transform: f(_ours_tanh, list(v), v), axes)
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
@pytest.mark.parametrize("L, lengths", [(4, [0, 4, 2]), (4, [0, 0, 0]), (0, [0] * 3)])
@pytest.mark.parametrize("with_states", [False, True])
def test_hessian_by_a_state_without_steps(rng, with_states, L, lengths, run):
    """The last state of a row that does not begin is the one before it."""
    p = optional.problem(rng, L=L, lengths=lengths, dtype=mx.float64)
    v, hidden = draw(rng, (3, 5), p.dtype), p.arrays["hidden"]

    def hessian(f):
        def loss(h):
            arrays = [h if n == "hidden" else a for n, a in p.arrays.items()]
            states, last = f(*arrays)
            return (last**3).sum() + ((states**3).sum() if with_states else 0)

        return mx.grad(lambda h: (mx.grad(loss)(h) * v).sum())(hidden)

    got, truth = hessian(lambda *a: p(run, *a)), wide(hessian(p.plain))
    assert np.abs(wide(got) - truth).max() <= DIFFERENCE * np.abs(truth).max()


SINGULAR = {
    "root": lambda a: mx.sqrt(mx.abs(a)),
    "power": lambda a: mx.power(mx.abs(a), 1.5),
    "quotient": lambda a: a / (0.3 + mx.sqrt(mx.abs(a))),
}
NESTS = {
    "grad of grad": lambda f, v, d, t: optional.grads(
        lambda *v: optional.grads(f, v, d), v, t
    ),
    "jvp of grad": lambda f, v, d, t: mx.jvp(lambda *v: optional.grads(f, v, d), v, t)[
        1
    ],
    "grad of jvp": lambda f, v, d, t: optional.grads(
        lambda *v: mx.jvp(f, v, t)[1], v, d
    ),
    "jvp of jvp": lambda f, v, d, t: mx.jvp(lambda *v: mx.jvp(f, v, t)[1], v, t)[1],
    "vmap of grad": lambda f, v, d, t: mx.vmap(lambda d: optional.grads(f, v, [d]))(
        mx.stack([*d, 2 - d[0]])
    ),
}


@pytest.mark.parametrize("nest", NESTS.values(), ids=NESTS)
@pytest.mark.parametrize("f", SINGULAR.values(), ids=SINGULAR)
@pytest.mark.parametrize("leak", [None, 0.5])
def test_what_is_singular_at_zero_beside_lengths(rng, leak, f, nest):
    """Without a bias the padding is zero; each row alone has none."""
    options = {"leak": leak, "nonlinearity": f}
    p = optional.problem(rng, bias=False, hidden=False, dtype=mx.float64)
    values, t, d = list(p.arrays.values()), p.directions(), p.cotangents()[:1]
    lengths = [4, 2, 0]

    def whole(x, Wxh, Whh):
        return mlx_recurrent.rnn(x, Wxh, Whh, lengths=lengths, **options)

    def each(x, Wxh, Whh):
        rows = []
        for row, n in zip(mx.split(x, 3), lengths, strict=True):
            h, states = mx.zeros((1, 5), x.dtype), []
            for x_t in mx.split(mx.squeeze(row, 0), 6)[:n]:
                a = x_t @ Wxh.T + (h @ Whh.T if states else 0)
                h = f(a) if leak is None else (1 - leak) * h + leak * f(a)
                states.append(h)
            states += [mx.zeros_like(h)] * (6 - n)
            rows.append(mx.concatenate(states))
        return mx.stack(rows)

    assert RNN(3, 5, nonlinearity=f).plan(values[0]).path == "traced"
    got, truth = (nest(run, values, d, t) for run in (whole, each))
    for a, b in zip(got, truth, strict=True):
        assert np.isfinite(wide(a)).all()
        assert np.abs(wide(a) - wide(b)).max() <= DIFFERENCE * np.abs(wide(b)).max()


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


def reverse_over_reverse(function, c, values, v):
    def along(*a):
        grads = mx.grad(lambda *b: (function(*b) * c).sum(), tuple(range(5)))(*a)
        return sum((g * d).sum() for g, d in zip(grads, v, strict=True))

    return mx.grad(along, tuple(range(5)))(*values)


def forward_over_reverse(function, c, values, v):
    def grad(*a):
        return mx.grad(lambda *b: (function(*b) * c).sum(), tuple(range(5)))(*a)

    return mx.jvp(grad, values, v)[1]


def reverse_over_forward(function, c, values, v):
    def along(*a):
        return (mx.jvp(function, list(a), v)[1][0] * c).sum()

    return mx.grad(along, tuple(range(5)))(*values)


SECOND = [reverse_over_reverse, forward_over_reverse, reverse_over_forward]


@both_paths
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("mode", SECOND, ids=lambda f: f.__name__)
def test_hessian_vector(rng, mode, activation, run):
    """H v in three ways, against a complex step of hand-written back-propagation."""
    problem, values, c = setting(rng, activation=activation, gain=0.8)
    v = directions(rng, values)
    got = mode(lambda *a: run(activation, *a), c, values, v)
    expected = mode(lambda *a: upstream(activation, *a), c, values, v)
    truth = reference.rnn_hessian_vector(
        problem.truth, [wide(d) for d in v], activation, wide(c)
    )
    all_close(*(dict(zip(ARGUMENTS, r, strict=True)) for r in (got, expected, truth)))


@pytest.mark.parametrize("dtype", [mx.float64, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("mode", SECOND, ids=lambda f: f.__name__)
def test_hessian_vector_dtypes(rng, mode, dtype):
    problem, values, c = setting(rng, dtype=dtype, gain=0.7)
    v = directions(rng, values)
    got = mode(lambda *a: ours("tanh", *a), c, values, v)
    expected = mode(lambda *a: upstream("tanh", *a), c, values, v)
    truth = reference.rnn_hessian_vector(
        problem.truth, [wide(d) for d in v], "tanh", wide(c)
    )
    all_close(*(dict(zip(ARGUMENTS, r, strict=True)) for r in (got, expected, truth)))


@both_paths
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("return_state", [True, "only"])
def test_hessian_vector_of_the_state(rng, return_state, hidden, run):
    problem, values, _ = setting(rng, hidden=hidden)
    v, last = directions(rng, values), draw(rng, (3, 20), mx.float32)
    at_end = mx.concatenate([mx.zeros((3, 5, 20)), last[:, None]], axis=1)
    every = tuple(range(len(values)))

    def state(*a):
        out = run("tanh", *a, return_state=return_state)
        return out if return_state == "only" else out[1]

    def second(function):
        def along(*a):
            grads = mx.grad(lambda *b: (function(*b) * last).sum(), every)(*a)
            return sum((g * d).sum() for g, d in zip(grads, v, strict=True))

        return dict(zip(problem.arrays, mx.grad(along, every)(*values), strict=True))

    given = dict(zip(problem.arrays, map(wide, v), strict=True))
    truth = reference.rnn_hessian_vector(
        problem.truth, [given.get(n) for n in ARGUMENTS], "tanh", wide(at_end)
    )
    all_close(
        second(state),
        second(lambda *a: upstream("tanh", *a)[:, -1]),
        {n: t for n, t in zip(ARGUMENTS, truth, strict=True) if t is not None},
    )


@both_paths
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_forward_over_forward(rng, activation, run):
    """v^T H v for each output: the second derivative along a line."""
    problem, values, _ = setting(rng, activation=activation)
    v = directions(rng, values)

    def twice(run):
        def tangent(*a):
            return mx.jvp(lambda *b: run(activation, *b), list(a), v)[1][0]

        return mx.jvp(tangent, values, v)[1][0]

    directions_ = [wide(d) for d in v]
    truth = reference.complex_step(
        lambda *p: reference.rnn_tangent(p, directions_, activation),
        problem.truth,
        directions_,
    )
    close(twice(run), twice(upstream), truth)


@both_paths
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_third_order(rng, activation, run):
    """The gradient of v^T H v."""
    problem, values, c = setting(rng, (2, 3, 2, 5), activation, gain=0.7)
    v = directions(rng, values)

    def curvature(function):
        def along(*a):
            hv = reverse_over_reverse(function, c, list(a), v)
            return sum((h * d).sum() for h, d in zip(hv, v, strict=True))

        return dict(
            zip(ARGUMENTS, mx.grad(along, tuple(range(5)))(*values), strict=True)
        )

    wide_v = [wide(d) for d in v]
    truth = reference.finite_difference(
        lambda *p: reference.rnn_hessian_vector(p, wide_v, activation, wide(c)),
        problem.truth,
        wide_v,
    )
    all_close(
        curvature(lambda *a: run(activation, *a)),
        curvature(lambda *a: upstream(activation, *a)),
        dict(zip(ARGUMENTS, truth, strict=True)),
    )


@pytest.mark.parametrize("order", [1, 2])
def test_second_derivatives_of_nothing(order):
    """N = 0 and L = 0 in nested transformations."""
    layer = RNN(5, 20)
    for shape in ((0, 5, 5), (3, 0, 5)):
        function = lambda x: layer(x).sum()  # noqa: E731
        for _ in range(order):
            function = (lambda f: lambda x: mx.grad(f)(x).sum())(function)
        equal(mx.grad(function)(mx.zeros(shape)), mx.zeros(shape))


@pytest.mark.parametrize("axes", ["x", "weights"])
def test_vmap_of_hessian_vector(rng, axes):
    axes = VMAP_AXES[axes]
    values, problems = batched(rng, axes)
    c = draw(rng, (2, 5, 20), mx.float32)
    v = directions(rng, list(problems[0].arrays.values()))

    def second(run):
        return lambda *a: reverse_over_reverse(
            lambda *b: run("tanh", *b), c, list(a), v
        )

    got = mx.vmap(second(ours), axes)(*values)
    each = [second(upstream)(*p.arrays.values()) for p in problems]
    truth = [
        reference.rnn_hessian_vector(p.truth, [wide(d) for d in v], "tanh", wide(c))
        for p in problems
    ]
    for i, name in enumerate(ARGUMENTS):
        expected = mx.stack([e[i] for e in each])
        close(got[i], expected, np.stack([t[i] for t in truth]), name)


@both_paths
def test_compile_of_hessian_vector(rng, run):
    problem, values, c = setting(rng)
    v = directions(rng, values)
    function = mx.compile(
        lambda *a: reverse_over_reverse(lambda *b: run("tanh", *b), c, list(a), v)
    )
    expected = reverse_over_reverse(lambda *b: upstream("tanh", *b), c, values, v)
    truth = reference.rnn_hessian_vector(
        problem.truth, [wide(d) for d in v], "tanh", wide(c)
    )
    all_close(
        *(
            dict(zip(ARGUMENTS, r, strict=True))
            for r in (function(*values), expected, truth)
        )
    )


@both_paths
def test_gradient_penalty(rng, run):
    """The gradient of a norm of a gradient, as in penalties on the input's slope."""
    problem, values, c = setting(rng)

    def penalty(run):
        def loss(*a):
            slope = mx.grad(lambda x: (run("tanh", x, *a[1:]) * c).sum())(a[0])
            return slope.square().sum()

        return dict(
            zip(ARGUMENTS, mx.grad(loss, tuple(range(5)))(*values), strict=True)
        )

    # d |g|^2 = 2 H g, where g moves x alone.
    g = problem.gradients(c)["x"]
    truth = reference.rnn_hessian_vector(
        problem.truth, [2 * g, None, None, None, None], "tanh", wide(c)
    )
    all_close(penalty(run), penalty(upstream), dict(zip(ARGUMENTS, truth, strict=True)))


@both_paths
def test_stream(rng, run):
    problem, values, c = setting(rng)
    stream = mx.new_stream(mx.cpu)
    equal(run("tanh", *values, stream=stream), run("tanh", *values))
    grads = gradients(run, problem, c, stream=stream)
    all_close(grads, gradients(upstream, problem, c), problem.gradients(c))


def test_scan_stream(rng):
    z, Whh = draw(rng, (3, 6, 20), mx.float32), draw(rng, (20, 20), mx.float32, 0.3)
    stream = mx.new_stream(mx.cpu)
    got = mlx_recurrent.scan(z, Whh, stream=stream)
    equal(got, mlx_recurrent.scan(z, Whh))


@both_nonlinearities
def test_layer_on_a_stream(rng, nonlinearity):
    layer = RNN(5, 20, nonlinearity=nonlinearity)
    x = draw(rng, (3, 6, 5), mx.float32)
    expected = layer(x)
    with mx.stream(mx.new_stream(mx.cpu)):
        got = layer(x)
    equal(got, expected)


def test_streams_at_the_same_time(rng):
    """Two streams run their own sequences; the pool serves one and the other waits."""
    shapes = [(16, 40, 16, 128), (1, 60, 16, 256)]
    problems = [smooth(rng, shape) for shape in shapes]
    expected = [call(ours, p) for p in problems]
    mx.eval(expected)
    streams = [mx.new_stream(mx.cpu) for _ in range(2)]
    results = []
    for _ in range(5):
        for p, s in zip(problems, streams, strict=True):
            results.append(call(ours, p, stream=s))
            mx.async_eval(results[-1])
    mx.eval(results)
    for i, got in enumerate(results):
        equal(got, expected[i % 2])


def test_lazy_inputs(rng):
    """Inputs that nobody has evaluated, made on another stream."""
    problem = smooth(rng, (3, 6, 5, 20))
    with mx.stream(mx.new_stream(mx.cpu)):
        x = mx.exp(problem.x * 0.5)
    got = call(ours, problem.of(x=x))
    expected = call(upstream, problem.of(x=x))
    close(got, expected, problem.of(x=x).states())


@both_nonlinearities
def test_stop_gradient_on_the_state(rng, nonlinearity):
    """Truncated back-propagation by hand: nothing passes between two chunks."""
    problem, _, c = setting(rng, (3, 10, 5, 20), hidden=False)
    layer = RNN(5, 20, nonlinearity=nonlinearity)
    weights = dict(Wxh=problem.Wxh, Whh=problem.Whh, bias=problem.bias)
    x1, x2, c1, c2 = problem.x[:, :6], problem.x[:, 6:], c[:, :6], c[:, 6:]

    def loss(weights):
        layer.update(weights)
        first, state = layer(x1, return_state=True)
        second = layer(x2, mx.stop_gradient(state))
        return (first * c1).sum() + (second * c2).sum()

    got = mx.grad(loss)(weights)
    first = problem.of(x=x1)
    second = problem.of(x=x2, hidden=mx.stop_gradient(call(upstream, first)[:, -1]))
    state = first.states()[:, -1]
    names = list(weights)
    expected = {
        n: a + gradients(upstream, second, c2, names)[n]
        for n, a in gradients(upstream, first, c1, names).items()
    }
    pieces = (
        first.gradients(c1),
        dict(
            zip(
                ARGUMENTS,
                reference.rnn_grad(*second.truth[:4], state, "tanh", wide(c2)),
                strict=True,
            )
        ),
    )
    all_close(got, expected, {n: pieces[0][n] + pieces[1][n] for n in names})


@both_paths
@pytest.mark.parametrize("name", ["x", "Whh", "hidden"])
def test_stop_gradient_on_an_input(rng, name, run):
    problem, values, c = setting(rng)

    def function(*v):
        arrays = dict(zip(ARGUMENTS, v, strict=True))
        arrays[name] = mx.stop_gradient(arrays[name])
        return run("tanh", **arrays)

    _, grads = mx.vjp(function, values, [c])
    got = dict(zip(ARGUMENTS, grads, strict=True))
    expected, truth = gradients(upstream, problem, c), problem.gradients(c)
    expected[name], truth[name] = mx.zeros_like(expected[name]), 0 * truth[name]
    all_close(got, expected, truth)


@both_paths
def test_a_weight_in_two_places(rng, run):
    """The same array as Wxh and Whh: its gradient is the sum of both."""
    problem, _, c = setting(rng, (3, 6, 20, 20))

    def grad(run):
        def loss(W):
            return (call(run, problem.of(Wxh=W, Whh=W)) * c).sum()

        return mx.grad(loss)(problem.Whh)

    truth = problem.of(Wxh=problem.Whh).gradients(c)
    close(grad(run), grad(upstream), truth["Wxh"] + truth["Whh"])


@both_paths
def test_chained_layers(rng, run):
    """Outputs of one into another: the gradient of both in one pass."""
    problem, values, c = setting(rng, (3, 6, 20, 20))

    def grad(run):
        def function(*v):
            return run("tanh", run("tanh", *v), *v[1:])

        return mx.vjp(function, values, [c])[1]

    inner = problem.states()
    outer = reference.rnn_grad(inner, *problem.truth[1:], "tanh", wide(c))
    below = reference.rnn_grad(*problem.truth, "tanh", outer[0])
    truth = [below[0]] + [a + b for a, b in zip(outer[1:], below[1:], strict=True)]
    all_close(
        *(
            dict(zip(ARGUMENTS, r, strict=True))
            for r in (grad(run), grad(upstream), truth)
        )
    )


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


def test_activations_are_the_same_functions():
    """UPSTREAM and COMPOSED hold one function each: a guard of these tests."""
    a = mx.linspace(-3, 3, 13)
    for name in ACTIVATIONS:
        equal(COMPOSED[name](a), UPSTREAM[name](a), name)
