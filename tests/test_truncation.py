"""Truncated back-propagation through time: what stop_gradient on the state gives."""

import mlx.core as mx
import numpy as np
import pytest

from conftest import DTYPES, draw
from optional import grads, problem
from tolerances import DIFFERENCE, close, equal, largest, wide

both_ways = pytest.mark.parametrize("reverse", [False, True])
L = 7


def in_blocks(p, path, every):
    """The blocks of a sequence one by one, each from the state before as a constant."""

    def run(*values):
        arrays = dict(zip(p.names, values, strict=True))
        reverse = p.get("reverse", False)
        x, state = arrays.pop("x"), arrays.pop("hidden")
        outputs = []
        for i in range(0, L, every):
            first, end = (max(L - i - every, 0), L - i) if reverse else (i, i + every)
            if i:
                state = mx.stop_gradient(state)
            block, state = path(
                p.activation,
                x[:, first:end],
                **arrays,
                hidden=state,
                reverse=reverse,
                return_state=True,
            )
            outputs.append(block)
        return [mx.concatenate(outputs[::-1] if reverse else outputs, 1), state]

    return run


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("every", [1, 2, 3, 7, 20])
@both_ways
def test_gradients(rng, path, reverse, every, dtype):
    p = problem(rng, L=L, reverse=reverse, truncate_every=every, dtype=dtype)
    d = draw(rng, (3, L, 5), dtype), draw(rng, (3, 5), dtype)
    got = grads(lambda *v: p(path, *v), p.arrays.values(), d)
    expected = grads(in_blocks(p, path, every), p.arrays.values(), d)
    for name, a, b, c in zip(p.names, got, expected, p.gradients(*d), strict=True):
        close(a, b, c, name)


@pytest.mark.parametrize("every", [1, 3, 20])
@both_ways
def test_the_outputs_are_the_same(rng, path, reverse, every):
    p = problem(rng, L=L, reverse=reverse, leak=0.5)
    for a, b in zip(p(path, truncate_every=every), p(path), strict=True):
        equal(a, b)


@pytest.mark.parametrize("every", [2, 3])
@both_ways
def test_forward_mode(rng, path, reverse, every):
    p = problem(rng, L=L, reverse=reverse, truncate_every=every)
    values = list(p.arrays.values())
    tangents = [draw(rng, a.shape, p.dtype) for a in values]
    got = mx.jvp(lambda *v: p(path, *v), values, tangents)[1]
    expected = mx.jvp(in_blocks(p, path, every), values, tangents)[1]
    for a, b, c in zip(got, expected, p.tangents(tangents), strict=True):
        close(a, b, c)


@both_ways
def test_second_order(rng, path, reverse):
    p = problem(rng, L=L, reverse=reverse, truncate_every=3, dtype=mx.float64)
    d = draw(rng, (3, L, 5), p.dtype), draw(rng, (3, 5), p.dtype)
    values = list(p.arrays.values())
    results = []
    for f in (lambda *v: p(path, *v), in_blocks(p, path, 3)):
        tangents = [mx.ones_like(a) for a in values]
        results.append(grads(lambda *v, f=f: grads(f, v, d), values, tangents))
    for a, b in zip(*results, strict=True):
        assert largest(wide(a) - wide(b)) <= DIFFERENCE * largest(wide(b))


@both_ways
def test_each_row_has_its_own_blocks(rng, path, reverse):
    """Counted from its own first step; the held state is no border."""
    lengths = [5, 7, 0, 2, 3]
    p = problem(rng, (5,), L, lengths=lengths, reverse=reverse, truncate_every=3)
    d = draw(rng, (5, L, 5), p.dtype), draw(rng, (5, 5), p.dtype)
    got = dict(
        zip(
            p.names,
            grads(lambda *v: p(path, *v), p.arrays.values(), d),
            strict=True,
        )
    )
    truth = dict(zip(p.names, p.gradients(*d), strict=True))
    for n, length in enumerate(lengths):
        row = problem(rng, (1,), length, reverse=reverse, truncate_every=3)
        row.arrays = {
            **p.arrays,
            "x": p.arrays["x"][n : n + 1, :length],
            "hidden": p.arrays["hidden"][n : n + 1],
        }
        cotangents = d[0][n : n + 1, :length], d[1][n : n + 1]
        alone = grads(
            lambda *v, row=row: row(path, *v), row.arrays.values(), cotangents
        )
        close(got["x"][n, :length], alone[0][0], truth["x"][n, :length])
        close(got["hidden"][n], alone[-1][0], truth["hidden"][n])


def test_no_gradient_passes_a_border(rng, path):
    p = problem(rng, (1,), L, truncate_every=3)
    x, *others = p.arrays.values()
    for place in range(L):
        d = mx.zeros((1, L, 5))
        d[:, place] = mx.nan if place > 4 else 1.0
        (dx,) = grads(lambda x: p(path, x, *others)[:1], [x], [d])
        reached = np.flatnonzero((wide(dx) != 0).any((0, 2)))
        first = place - place % 3
        assert list(reached) == list(range(first, place + 1))


@pytest.mark.parametrize("every", [1, 2, 3, 20])
def test_checkpoints_change_no_gradient(rng, path, every):
    p = problem(rng, L=L)
    d = draw(rng, (3, L, 5), p.dtype), draw(rng, (3, 5), p.dtype)
    expected = grads(lambda *v: p(path, *v), p.arrays.values(), d)
    p.keywords["checkpoint_every"] = every
    got = grads(lambda *v: p(path, *v), p.arrays.values(), d)
    for a, b, c in zip(got, expected, p.gradients(*d), strict=True):
        close(a, b, c)
