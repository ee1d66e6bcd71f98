"""Random combinations of all optional terms, against the reference."""

import mlx.core as mx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import draw
from optional import Problem
from tolerances import close

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


def test_gradients(path):
    @examples(80)
    def run(problem):
        if problem.activation == "relu" and problem.dtype not in SINGLE:
            return  # a rounding decides on which side of the kink it is
        problem.arrays["x"] = problem.in_padding(problem.arrays["x"])
        d = cotangents(problem)
        values = list(problem.arrays.values())
        got = mx.vjp(lambda *v: problem(path, *v), values, d)[1]
        zero = [mx.where(mx.isnan(a), 0, a).astype(a.dtype) for a in d]
        expected = mx.vjp(problem.plain, values, zero)[1]
        truth = problem.gradients(*d)
        for name, a, b, c in zip(problem.names, got, expected, truth, strict=True):
            close(a, b, c, name)
