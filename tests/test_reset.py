"""Episodes: nothing passes from one to the next, in either direction."""

from functools import partial

import mlx.core as mx
import numpy as np
import pytest

from conftest import DTYPES
from optional import grads, problem
from tolerances import equal, wide

both_ways = pytest.mark.parametrize("reverse", [False, True])
both_starts = pytest.mark.parametrize("hidden0", [False, True])
STARTS = np.array([[0, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 1, 0]], bool)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [True, False])
@both_starts
@both_ways
def test_episodes_are_sequences_of_their_own(rng, way, reverse, hidden0, hidden, dtype):
    p = way.problem(
        rng,
        reset=STARTS,
        reverse=reverse,
        hidden0=hidden0,
        hidden=hidden,
        dtype=dtype,
    )
    p.check(p(way))


@both_starts
@both_ways
def test_gradients_of_episodes(rng, way, reverse, hidden0):
    p = way.problem(rng, reset=STARTS, reverse=reverse, hidden0=hidden0)
    p.check_gradients(partial(p, way), p.cotangents())


@both_starts
@both_ways
def test_nan_stays_in_its_episode(rng, way, reverse, hidden0):
    """Forwards and backwards in time."""
    p = way.problem(
        rng, (1,), reset=[[0, 0, 1, 0, 1, 0]], reverse=reverse, hidden0=hidden0
    )
    x = p.arrays["x"]
    for first, end in ((0, 2), (2, 4), (4, 6)):
        p.arrays["x"] = mx.where(
            mx.logical_and(mx.arange(6) >= first, mx.arange(6) < end)[:, None],
            mx.nan,
            x,
        )
        values = list(p.arrays.values())
        ones = mx.ones((1, 6, 5)), *map(mx.zeros_like, p.cotangents()[1:])
        (y, *_), (dx, *_) = mx.vjp(lambda *v: p(way, *v), values, ones)
        for a in (y, dx):
            inside = np.isnan(wide(a)).any(-1)[0]
            assert not np.delete(inside, range(first, end)).any()


def test_hidden_is_not_used_where_step_0_starts_an_episode(rng, way):
    p = way.problem(rng, (2,), reset=[[1, 0, 0, 0, 0, 0], [0] * 6])
    expected = p(way)
    p.check(expected)
    hidden = p.arrays["hidden"]
    nan = mx.array([[np.nan], [0.0]])
    p.arrays["hidden"] = hidden + nan
    for a, b in zip(p(way), expected, strict=True):
        equal(a, b)
    got = grads(
        lambda h: p(way, *[h if n == "hidden" else a for n, a in p.arrays.items()]),
        [p.arrays["hidden"]],
        [mx.ones_like(a) for a in expected],
    )[0]
    equal(got[0], mx.zeros((5,)))
    assert (got[1] != 0).any()


def test_without_hidden_the_product_is_absent(rng, way):
    """A weight of NaN shows where it is read: at steps that start no episode."""
    p = way.problem(rng, (1,), reset=[[0, 1, 1, 0, 1, 1]], hidden=False)
    name = p.reference.weights[1]
    p.arrays[name] = mx.full(p.arrays[name].shape, mx.nan)
    for reverse, read in ((False, [3]), (True, [2])):
        outputs, *_ = p(way, reverse=reverse)
        assert list(np.flatnonzero(np.isnan(wide(outputs)).any(-1)[0])) == read


def test_the_first_place_means_nothing_backwards(rng, way):
    p = way.problem(rng, (2,), reverse=True, reset=np.zeros((2, 6), bool))
    reset = np.zeros((2, 6), bool)
    reset[:, 0] = True
    p.check(p(way, reset=reset))


@both_ways
def test_the_padding_starts_no_episode(rng, way, reverse):
    p = way.problem(rng, reset=STARTS, lengths=[4, 6, 0], reverse=reverse)
    p.check(p(way, reset=STARTS | p.padding))
    p.check(p(way, reset=STARTS & ~p.padding))


FORMS = {
    "bool list": lambda v: v.tolist(),
    "integer list": lambda v: v.astype(int).tolist(),
    "uint8": lambda v: v.astype(np.uint8),
    "mlx": mx.array,
    "mlx int32": lambda v: mx.array(v.astype(np.int32)),
    "not computed": lambda v: mx.array(~v) == 0,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms_of_reset(rng, path, form):
    p = problem(rng, reset=STARTS)
    p.check(p(path, reset=form(STARTS)))


def test_as_an_argument_of_transforms(rng, way):
    p = way.problem(rng, reset=STARTS)

    rows = {name: p.arrays[name] for name in ("x", *p.reference.states)}

    def f(reset, *given):
        values = p.arrays | dict(zip(rows, given, strict=True))
        return p(way, *values.values(), reset=reset)

    mapped = mx.vmap(f)(mx.array(STARTS.astype(np.int32)), *rows.values())
    p.check(mapped)
