"""The reference itself, against plain loops and differences."""

import mlx.core as mx
import numpy as np
import pytest

import reference
from cells import CELLS
from conftest import ACTIVATIONS
from optional import NO_TERMS, Problem, grads
from tolerances import reference_close, wide

SHAPES = {"row": (), "batch": (3,), "two_axes": (2, 3)}
FUNCTIONS = {
    "tanh": np.tanh,
    "relu": lambda a: np.maximum(a, 0),
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "identity": lambda a: a,
}


def inputs(rng, lead, bias=True, hidden=True, L=5, D=3, H=4):
    """The five inputs; the first feature keeps relu away from its corner."""
    x, Wxh = rng.standard_normal((*lead, L, D)), 0.2 * rng.standard_normal((H, D))
    x[..., 0], Wxh[:, 0] = np.sign(x[..., 0]), 2 * np.sign(Wxh[:, 0])
    return [
        x,
        Wxh,
        0.2 * rng.standard_normal((H, H)),
        0.2 * rng.standard_normal(H) if bias else None,
        rng.standard_normal((*lead, H)) if hidden else None,
    ]


def like(rng, primals):
    return [None if p is None else rng.standard_normal(p.shape) for p in primals]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [False, True])
def test_forward_is_the_loop_over_scalars(rng, activation, hidden):
    x, Wxh, Whh, bias, h0 = inputs(rng, (2,), hidden=hidden)
    f = FUNCTIONS[activation]
    expected = np.zeros((2, 5, 4))
    for n in range(2):
        h = [0.0] * 4 if h0 is None else list(h0[n])
        for t in range(5):
            h = [
                f(
                    sum(Wxh[j, d] * x[n, t, d] for d in range(3))
                    + bias[j]
                    + sum(Whh[j, k] * h[k] for k in range(4))
                )
                for j in range(4)
            ]
            expected[n, t] = h
    got = reference.rnn(x, Wxh, Whh, bias, h0, activation)
    reference_close(got, expected)


def test_forward_without_hidden_has_no_first_product(rng):
    x, Wxh, Whh, bias, _ = inputs(rng, (2,), L=1)
    got = reference.rnn(x, Wxh, np.full_like(Whh, np.nan), bias)
    reference_close(got, np.tanh(x @ Wxh.T + bias))


def test_hidden_broadcasts_the_input(rng):
    x, Wxh, Whh, bias, _ = inputs(rng, ())
    hidden = rng.standard_normal((6, 2, 4))
    got = reference.rnn(x, Wxh, Whh, bias, hidden)
    assert got.shape == (6, 2, 5, 4)
    reference_close(got[4, 1], reference.rnn(x, Wxh, Whh, bias, hidden[4, 1]))


def test_keeps_longdouble(rng):
    x, Wxh, Whh, bias, hidden = inputs(rng, (2,))
    got = reference.rnn(np.longdouble(x), Wxh, Whh, bias, hidden)
    assert got.dtype == np.longdouble


def test_sigmoid_does_not_overflow():
    a = np.array([-1e4, -30.0, 0.0, 30.0, 1e4])
    with np.errstate(over="raise", invalid="raise"):
        got = reference.activate("sigmoid", a)
    np.testing.assert_array_equal(got[[0, 2, 4]], [0.0, 0.5, 1.0])
    reference_close(got[1:2], np.exp(a[1:2]))


def test_relu_keeps_nan():
    got = reference.activate("relu", np.array([np.nan, -np.inf, np.inf, -1.0]))
    np.testing.assert_array_equal(got, [np.nan, 0.0, np.inf, 0.0])


@pytest.mark.parametrize("lead", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias, hidden", [(True, True), (True, False), (False, True)])
def test_gradients(rng, activation, lead, bias, hidden):
    primals = inputs(rng, lead, bias, hidden)
    d_states = rng.standard_normal((*lead, 5, 4))
    d_last = rng.standard_normal((*lead, 4))

    def loss(*values):
        states = reference.rnn(*values, activation)
        return (states * d_states).sum() + (states[..., -1, :] * d_last).sum()

    grads = reference.rnn_grad(*primals, activation, d_states, d_last)
    for i, (primal, grad) in enumerate(zip(primals, grads, strict=True)):
        if primal is None:
            assert grad is None
            continue
        expected = np.zeros(primal.shape)
        for place in np.ndindex(primal.shape):
            direction = [None] * 5
            direction[i] = np.zeros(primal.shape)
            direction[i][place] = 1
            expected[place] = reference.finite_difference(
                loss, primals, direction, step=1e-4
            )
        reference_close(grad, expected, f"gradient {i}")


def test_gradients_sum_over_broadcast_axes(rng):
    x, Wxh, Whh, bias, _ = inputs(rng, (1,))
    hidden = rng.standard_normal((6, 2, 4))
    d_states = rng.standard_normal((6, 2, 5, 4))
    whole = np.broadcast_to(x, (6, 2, 5, 3))
    got = reference.rnn_grad(x, Wxh, Whh, bias, hidden, "tanh", d_states)
    full = reference.rnn_grad(whole, Wxh, Whh, bias, hidden, "tanh", d_states)
    reference_close(got[0], full[0].sum((0, 1))[None])
    for a, b in zip(got[1:], full[1:], strict=True):
        reference_close(a, b)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_tangents(rng, activation, hidden):
    primals = inputs(rng, (2,), hidden=hidden)
    tangents = like(rng, primals)
    got = reference.rnn_tangent(primals, tangents, activation)

    def forward(*values):
        return reference.rnn(*values, activation)

    differences = reference.finite_difference(forward, primals, tangents, step=1e-4)
    reference_close(got, differences)
    reference_close(got, reference.complex_step(forward, primals, tangents))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_tangents_of_single_arguments_add_up(rng, activation):
    primals = inputs(rng, (2,))
    tangents = like(rng, primals)
    alone = [
        reference.rnn_tangent(
            primals, [v if i == j else None for j, v in enumerate(tangents)], activation
        )
        for i in range(5)
    ]
    reference_close(sum(alone), reference.rnn_tangent(primals, tangents, activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_hessian_vector(rng, activation):
    primals = inputs(rng, (2,))
    tangents = like(rng, primals)
    d_states = rng.standard_normal((2, 5, 4))

    def gradient(*values):
        return reference.rnn_grad(*values, activation, d_states)

    got = reference.rnn_hessian_vector(primals, tangents, activation, d_states)
    expected = reference.finite_difference(gradient, primals, tangents, step=1e-4)
    for a, b in zip(got, expected, strict=True):
        reference_close(a, b)


def test_matmul_gradients(rng):
    x, w, bias = (rng.standard_normal(s) for s in ((2, 3, 5), (4, 5), (4,)))
    cotangent = rng.standard_normal((2, 3, 4))
    grads = reference.matmul_grad(x, w, bias, cotangent)
    np.testing.assert_array_equal(reference.matmul(x, w, bias), x @ w.T + bias)
    for i, grad in enumerate(grads):
        direction = [None] * 3
        direction[i] = rng.standard_normal(grad.shape)

        def loss(*values):
            return (reference.matmul(*values) * cotangent).sum()

        expected = reference.finite_difference(loss, (x, w, bias), direction)
        reference_close(np.asarray((grad * direction[i]).sum()), np.asarray(expected))


def combination(seed, **fixed):
    """A small problem with a random choice of optional terms."""
    rng = np.random.default_rng(seed)

    def choose(name, values):
        return values[rng.integers(len(values))]

    sizes = {"D": int(rng.integers(1, 3)), "H": int(rng.integers(1, 4))}
    leads = [(), (1,), (3,), (1, 2)]
    fixed = {"dtype": mx.float64, "lead": choose("lead", leads), **sizes, **fixed}
    return Problem(choose, rng, **fixed)


@pytest.mark.parametrize("seed", range(8))
def test_no_terms_are_the_plain_recurrence(seed):
    problem = combination(seed, L=5, **NO_TERMS)
    outputs, last = problem.truth()
    expected = reference.rnn(*problem.primals[:5], problem.activation)
    reference_close(outputs, expected)
    reference_close(last, expected[..., -1, :])


@pytest.mark.parametrize("of", CELLS)
@pytest.mark.parametrize("seed", range(40))
def test_the_twin_in_plain_operations_agrees(seed, of):
    """What is wrong there would excuse as much in what is compared with it."""
    problem = combination(seed, of=of)
    problem.return_state = bool(seed % 2)
    values, tangents = problem.arrays.values(), problem.directions()
    d = problem.cotangents()
    for got, truth in (
        (problem.plain(), problem.truth()),
        (grads(problem.plain, values, d), problem.gradients(*d)),
        (
            mx.jvp(problem.plain, list(values), tangents)[1],
            problem.tangents(tangents),
        ),
    ):
        for a, b in zip(got, truth, strict=True):
            reference_close(wide(a), np.asarray(b))


@pytest.mark.parametrize(
    "rounds, words",
    [
        (13, "531c7e4f 39491ee5 2c855a92 3d6abf9a"),
        (20, "9c6ca96a e17eae66 fc10ecd4 5256a7d8"),
    ],
)
def test_published_random_words(rounds, words):
    got = reference.threefry([0, 0], [0, 0, 0, 0], rounds)
    assert " ".join(f"{int(word):08x}" for word in got) == words


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_hits_are_as_probable_as_said(probability):
    hit = reference.hits([1, 2], reference.ZONEOUT, probability, 8, 50, 100)
    spread = np.sqrt(probability * (1 - probability) / hit.size)
    assert abs(hit.mean() - probability) < 5 * spread
