"""Derivatives of derivatives, in both modes."""

import mlx.core as mx
import numpy as np
import pytest

import mlx_recurrent
import optional
import reference
from conftest import ACTIVATIONS, ARGUMENTS, draw, ours, upstream
from mlx_recurrent import RNN
from tolerances import DIFFERENCE, all_close, close, equal, wide
from transforms import (
    VMAP_AXES,
    batched,
    both_paths,
    directions,
    reverse_over_reverse,
    setting,
)


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
