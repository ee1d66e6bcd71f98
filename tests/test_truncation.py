"""Truncated back-propagation through time: what stop_gradient on the state gives."""

from functools import partial

import mlx.core as mx
import numpy as np
import pytest

from conftest import DTYPES
from optional import grads
from tolerances import DIFFERENCE, equal, largest, wide

both_ways = pytest.mark.parametrize("reverse", [False, True])
L = 7


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("every", [1, 2, 3, 7, 20])
@both_ways
def test_gradients(rng, way, reverse, every, dtype):
    p = way.problem(rng, L=L, reverse=reverse, truncate_every=every, dtype=dtype)
    p.check_gradients(partial(p, way), p.cotangents())


@pytest.mark.parametrize("every", [1, 3, 20])
@both_ways
def test_the_outputs_are_the_same(rng, way, reverse, every):
    p = way.problem(rng, L=L, reverse=reverse, leak=0.5)
    got = p(way, truncate_every=every)
    p.check(got)
    for a, b in zip(got, p(way), strict=True):
        equal(a, b)


@pytest.mark.parametrize("every", [2, 3])
@both_ways
def test_forward_mode(rng, way, reverse, every):
    p = way.problem(rng, L=L, reverse=reverse, truncate_every=every)
    p.check_tangents(partial(p, way), p.directions())


@both_ways
def test_second_order(rng, way, reverse):
    p = way.problem(rng, L=L, reverse=reverse, truncate_every=3, dtype=mx.float64)
    d, values = p.cotangents(), list(p.arrays.values())
    results = []
    for f in (partial(p, way), p.plain):
        tangents = [mx.ones_like(a) for a in values]
        results.append(grads(lambda *v, f=f: grads(f, v, d), values, tangents))
    for a, b in zip(*results, strict=True):
        assert largest(wide(a) - wide(b)) <= DIFFERENCE * largest(wide(b))


@both_ways
def test_each_row_has_its_own_blocks(rng, way, reverse):
    """Counted from its own first step; the held state is no border."""
    lengths = [5, 7, 0, 2, 3]
    p = way.problem(rng, (5,), L, lengths=lengths, reverse=reverse, truncate_every=3)
    p.check_gradients(partial(p, way), p.cotangents())


def test_no_gradient_passes_a_border(rng, way):
    p = way.problem(rng, (1,), L, truncate_every=3)
    x, *others = p.arrays.values()
    for place in range(L):
        d = mx.zeros((1, L, 5))
        d[:, place] = mx.nan if place > 4 else 1.0
        (dx,) = grads(lambda x: p(way, x, *others)[:1], [x], [d])
        reached = np.flatnonzero((wide(dx) != 0).any((0, 2)))
        first = place - place % 3
        assert list(reached) == list(range(first, place + 1))


@pytest.mark.parametrize("every", [1, 2, 3, 20])
def test_checkpoints_change_no_gradient(rng, way, every):
    p = way.problem(rng, L=L, checkpoint_every=every)
    p.check_gradients(partial(p, way), p.cotangents())
