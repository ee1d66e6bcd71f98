"""A sequence without the steps that are not taken, which reach no derivative either."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from conftest import DTYPES, array, name_of
from mlx_recurrent import exporting
from mlx_recurrent.functional.padding import without_padding, without_skipped
from tolerances import equal

LENGTHS = np.array([4, 0, 1, 3, 7], np.int32)
TAKEN = np.random.default_rng(0).random((5, 7)) < 0.6


class Kind(NamedTuple):
    """A function, what says which steps it leaves, and those, (5, 7)."""

    run: Callable
    of: np.ndarray
    left: np.ndarray

    def __call__(self, x):
        return self.run(x, mx.array(self.of))

    def padded(self, rng, dtype):
        """A sequence with NaN at other steps, and the same with zeros."""
        x = rng.standard_normal((5, 7, 3))
        dirty, clean = x.copy(), x.copy()
        dirty[~self.left], clean[~self.left] = np.nan, 0
        return array(dirty, dtype), array(clean, dtype)

    def part(self, n, steps):
        """For fewer rows and steps."""
        return mx.array(self.of[:n] if self.of.ndim == 1 else self.of[:n, :steps])


KINDS = {
    "padding": Kind(without_padding, LENGTHS, np.arange(7) < LENGTHS[:, None]),
    "skipped": Kind(without_skipped, TAKEN, TAKEN),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=["kernels", "MLX"], autouse=True)
def path(request):
    with exporting() if request.param == "MLX" else nullcontext():
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_values_and_every_derivative(rng, kind, dtype):
    """The map is linear and its own transpose, so each derivative is the map again."""
    x, clean = kind.padded(rng, dtype)
    v, clean_v = kind.padded(rng, dtype)
    equal(kind(x), clean)
    equal(mx.vjp(kind, [x], [v])[1][0], clean_v)
    equal(mx.jvp(kind, [x], [v])[1][0], clean_v)

    def gradient(v):
        return mx.vjp(kind, [x], [v])[1][0]

    equal(mx.vjp(gradient, [x], [v])[1][0], clean_v)
    equal(mx.jvp(gradient, [x], [v])[1][0], clean_v)


@pytest.mark.parametrize("shape", [(), (2, 3)], ids=["none", "two"])
def test_leading_axes(rng, shape):
    x = array(rng.standard_normal((*shape, 4, 2)), mx.float32)
    lengths = mx.full(shape, 3, mx.int32)
    taken = mx.broadcast_to(mx.arange(4) < 3, (*shape, 4))
    for got in (without_padding(x, lengths), without_skipped(x, taken)):
        equal(got[..., :3, :], x[..., :3, :])
        assert not got[..., 3:, :].any() and got.shape == x.shape


def test_one_sequence_for_several_rows(rng, kind):
    x = array(rng.standard_normal((7, 3)), mx.float32)
    equal(kind(x), kind(mx.broadcast_to(x, (5, 7, 3))))


def test_no_steps_and_no_rows():
    for N, L in ((5, 0), (0, 4)):
        x = mx.zeros((N, L, 3))
        assert without_padding(x, mx.zeros((N,), mx.int32)).shape == x.shape
        assert without_skipped(x, mx.zeros((N, L), mx.bool_)).shape == x.shape


def test_vmap_and_shapeless(rng, kind, path):
    """The latter for another number of steps and of rows, which MLX's slices keep."""
    (x, clean), (v, clean_v) = (kind.padded(rng, mx.float32) for _ in range(2))
    of = mx.array(kind.of)

    def gradient(x, of, v):
        return mx.vjp(lambda x: kind.run(x, of), [x], [v])[1][0]

    equal(mx.vmap(kind.run)(x, of), clean)
    equal(mx.vmap(gradient)(x, of, v), clean_v)
    if path == "MLX":
        return
    value, derivative = (mx.compile(f, shapeless=True) for f in (kind.run, gradient))
    for n, steps in ((5, 7), (3, 4)):
        # A row that ends sooner has the same zeros.
        part = x[:n, :steps], kind.part(n, steps)
        equal(value(*part), clean[:n, :steps])
        equal(derivative(*part, v[:n, :steps]), clean_v[:n, :steps])
