"""Random combinations of all optional terms, against the reference."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import draw
from optional import Problem, grads
from tolerances import DIFFERENCE, close, equal, largest, wide

SINGLE = [mx.float32, mx.float64]


def examples(count, **fixed):
    def decorate(test):
        @settings(derandomize=True, deadline=None, max_examples=count, database=None)
        @given(data=st.data())
        def run(data):
            rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))

            def choose(name, values):
                return data.draw(st.sampled_from(values), name)

            test(Problem(choose, rng, **fixed))

        run()

    return decorate


def check(problem, path, function, truth):
    """What a function makes of the product, of plain operations and in truth."""
    got = function(lambda *v: problem(path, *v))
    expected = function(problem.plain)
    for i, (a, b, c) in enumerate(zip(got, expected, truth, strict=True)):
        close(a, b, np.asarray(c), f"result {i}")


def test_values(path):
    @examples(80)
    def run(problem):
        problem.arrays["x"] = problem.in_padding(problem.arrays["x"])
        check(problem, path, lambda f: f(*problem.arrays.values()), problem.truth())


def cotangents(problem):
    shapes = (*problem.lead, problem.L, problem.H), (*problem.lead, problem.H)
    outputs, last = (draw(problem.rng, s, problem.dtype) for s in shapes)
    return [problem.in_padding(outputs), last]


def without_nan(arrays):
    return [mx.where(mx.isnan(a), 0, a).astype(a.dtype) for a in arrays]


def test_gradients(path):
    """With NaN in the padding of the inputs and of the cotangent."""

    @examples(80)
    def run(problem):
        if problem.activation == "relu" and problem.dtype not in SINGLE:
            return  # a rounding decides on which side of the kink it is
        problem.arrays["x"] = problem.in_padding(problem.arrays["x"])
        values, d = problem.arrays.values(), cotangents(problem)
        got = grads(lambda *v: problem(path, *v), values, d)
        expected = grads(problem.plain, values, without_nan(d))
        truth = problem.gradients(*d)
        for name, a, b, c in zip(problem.names, got, expected, truth, strict=True):
            close(a, b, c, name)


def test_tangents(path):
    @examples(60)
    def run(problem):
        if problem.activation == "relu" and problem.dtype not in SINGLE:
            return
        values = list(problem.arrays.values())
        tangents = [draw(problem.rng, a.shape, problem.dtype) for a in values]
        expected = mx.jvp(problem.plain, values, tangents)[1]
        values[0] = problem.arrays["x"] = problem.in_padding(values[0])
        tangents[0] = problem.in_padding(tangents[0])
        got = mx.jvp(lambda *v: problem(path, *v), values, tangents)[1]
        truth = problem.tangents(tangents)
        for a, b, c in zip(got, expected, truth, strict=True):
            close(a, b, c)


def flat(arrays):
    return np.concatenate([wide(a).ravel() for a in arrays])


# Of float64, against the same of plain operations.
HIGHER = {
    "grad of grad": lambda f, v, d, t: grads(lambda *v: grads(f, v, d), v, t),
    "jvp of grad": lambda f, v, d, t: mx.jvp(lambda *v: grads(f, v, d), v, t)[1],
    "grad of jvp": lambda f, v, d, t: grads(lambda *v: mx.jvp(f, v, t)[1], v, d),
    "grad of grad of checkpoint": lambda f, v, d, t: grads(
        lambda *v: grads(mx.checkpoint(f), v, d), v, t
    ),
    "grad of vmap": lambda f, v, d, t: grads(
        mx.vmap(f), [mx.stack([a, a + 0.1]) for a in v], [mx.stack([a, a]) for a in d]
    ),
    "vmap of grad": lambda f, v, d, t: mx.vmap(lambda *v: grads(f, v, d))(
        *(mx.stack([a, a + 0.1]) for a in v)
    ),
}


@pytest.mark.parametrize("name", HIGHER)
def test_other_transforms(path, name):
    @examples(12, dtype=mx.float64, lead=(2,), L=3, D=2, H=3)
    def run(problem):
        values, d = list(problem.arrays.values()), without_nan(cotangents(problem))
        tangents = [draw(problem.rng, a.shape, problem.dtype) for a in values]
        got = flat(HIGHER[name](lambda *v: problem(path, *v), values, d, tangents))
        truth = flat(HIGHER[name](problem.plain, values, d, tangents))
        assert largest(got - truth) <= DIFFERENCE * largest(truth)


@pytest.mark.parametrize("return_state", [False, "only"])
def test_return_state(path, return_state):
    """What is wanted alone has the same bits."""

    @examples(10)
    def run(problem):
        outputs, last = problem(path)
        (got,) = problem(lambda *a, **k: [path(*a, **k)], return_state=return_state)
        equal(got, outputs if return_state is False else last)
