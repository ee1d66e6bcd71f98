"""Random combinations of all optional terms, against the reference."""

import itertools
from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cells import CELLS, GATED
from conftest import ACTIVATIONS
from optional import Problem, grads, problem
from tolerances import DIFFERENCE, equal, largest, wide

SINGLE = [mx.float32, mx.float64]


# An Elman cell has three paths and four activations; others have fewer choices.
FEWER = 2


def share(name, count):
    return count if name == "rnn" else count // FEWER


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


def test_values(way):
    @examples(share(way.name, 80), of=way.name)
    def run(problem):
        problem.arrays["x"] = problem.in_unseen(problem.arrays["x"])
        problem.check(problem(way))


def has_a_kink(problem):
    """Where a rounding decides on which side of it a number is."""
    return problem.activation == "relu" and problem.dtype not in SINGLE


def test_gradients(way):
    """With NaN in the padding, and at skipped steps of the inputs."""

    @examples(share(way.name, 80), of=way.name)
    def run(problem):
        if has_a_kink(problem):
            return
        problem.arrays["x"] = problem.in_unseen(problem.arrays["x"])
        outputs, *last = problem.cotangents()
        d = problem.in_padding(outputs), *last
        problem.check_gradients(partial(problem, way), d)


def test_tangents(way):
    @examples(share(way.name, 60), of=way.name)
    def run(problem):
        if has_a_kink(problem):
            return
        x, *others = problem.directions()
        problem.arrays["x"] = problem.in_unseen(problem.arrays["x"])
        tangents = [problem.in_unseen(x), *others]
        problem.check_tangents(partial(problem, way), tangents)


def flat(arrays):
    return np.concatenate([wide(a).ravel() for a in arrays])


# Of float64, against the same of plain operations.
HIGHER = {
    "grad of grad": lambda f, v, d, t: grads(lambda *v: grads(f, v, d), v, t),
    "jvp of grad": lambda f, v, d, t: mx.jvp(lambda *v: grads(f, v, d), v, t)[1],
    "grad of grad by the cotangents": lambda f, v, d, t: grads(
        lambda *d: grads(f, v, d), d, t
    ),
    "hessian": lambda f, v, d, t: grads(
        lambda *v: grads(f, v, [a * b * b for a, b in zip(d, f(*v), strict=True)]), v, t
    ),
    "grad of jvp": lambda f, v, d, t: grads(lambda *v: mx.jvp(f, v, t)[1], v, d),
    "grad of jvp by the tangents": lambda f, v, d, t: grads(
        lambda *t: mx.jvp(f, v, t)[1], t, d
    ),
    "jvp of jvp": lambda f, v, d, t: mx.jvp(lambda *v: mx.jvp(f, v, t)[1], v, t)[1],
    "vmap of jvp": lambda f, v, d, t: mx.vmap(lambda *t: mx.jvp(f, v, t)[1])(
        *(mx.stack([a, 0.1 - a]) for a in t)
    ),
    "vmap of grad of grad": lambda f, v, d, t: mx.vmap(
        lambda *t: grads(lambda *v: grads(f, v, d), v, t)
    )(*(mx.stack([a, 0.1 - a]) for a in t)),
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


def check_higher(name, problem, way):
    """With NaN where the product sees nothing, and zeros there for the others."""
    values, (d, *last) = list(problem.arrays.values()), problem.cotangents()
    tangents = problem.directions()

    def result(f, filler):
        v, t = (
            [problem.in_unseen(x, filler), *others] for x, *others in (values, tangents)
        )
        return flat(HIGHER[name](f, v, [problem.in_padding(d, filler), *last], t))

    got, truth = result(partial(problem, way), np.nan), result(problem.plain, 0)
    assert np.isfinite(got).all()
    assert largest(got - truth) <= DIFFERENCE * largest(truth)


@pytest.mark.parametrize("name", HIGHER)
def test_other_transforms(way, name):
    @examples(
        share(way.name, 12), of=way.name, dtype=mx.float64, lead=(2,), L=3, D=2, H=3
    )
    def run(problem):
        check_higher(name, problem, way)


ONE = {
    "lengths": [3, 1, 0],
    "reset": np.array([[0, 1, 0], [1, 0, 1], [0, 0, 0]], bool),
    "mask": np.array([[1, 0, 1], [0, 1, 1], [1, 1, 0]], bool),
    "reverse": True,
    "hidden0": True,
    "leak": "array",
    "zoneout": 0.3,
    "input_dropout": 0.4,
    "recurrent_dropout": 0.25,
    "truncate_every": 2,
}
PAIRS = list(itertools.combinations_with_replacement(ONE, 2))


@pytest.mark.parametrize("path", ["native", "traced"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_each_pair_of_options(rng, path, pair):
    """Second derivatives with each activation, where no chance leaves out a term."""
    options = {name: ONE[name] for name in pair}
    sizes = {"lead": (3,), "L": 3, "D": 2, "H": 3, "dtype": mx.float64}
    for activation in ACTIVATIONS:
        hidden = bool(rng.integers(2))
        made = problem(rng, activation=activation, hidden=hidden, **sizes, **options)
        for name in ("hessian", "jvp of jvp"):
            check_higher(name, made, CELLS["rnn"].paths[path])


def ring(name):
    """The options of a cell, each beside one other."""
    others = {"leak"} if not CELLS[name].truth("tanh").leaks else set()
    options = [option for option in ONE if option not in others]
    options += ["cell0"] if len(CELLS[name].states) > 1 else []
    return list(zip(options, [*options[1:], options[0]], strict=True))


@pytest.mark.parametrize(
    "name, pair", [(name, pair) for name in GATED for pair in ring(name)]
)
def test_options_beside_each_other(rng, name, pair):
    """The same of other cells, whose options chance leaves out less often."""
    options = {option: ONE.get(option, True) for option in pair}
    if len(CELLS[name].states) > 1 and "zoneout" in pair:
        options["zoneout"] = (0.3, 0.2)
    given = {state: bool(rng.integers(2)) for state in CELLS[name].states}
    sizes = {"lead": (3,), "L": 3, "D": 2, "H": 3, "dtype": mx.float64}
    made = problem(rng, of=name, **sizes, **given, **options)
    for path in CELLS[name].paths.values():
        for derivative in ("hessian", "jvp of jvp"):
            check_higher(derivative, made, path)


@pytest.mark.parametrize("return_state", [False, "only"])
def test_return_state(way, return_state):
    """What is wanted alone has the same bits; other cell states are right."""

    @examples(10, of=way.name)
    def run(problem):
        both = problem(way)
        problem.return_state = return_state
        got = problem(way)
        same = both[:1] if return_state is False else both[1:]
        for a, b in zip(got, same, strict=False):
            equal(a, b)
        problem.check(got)
