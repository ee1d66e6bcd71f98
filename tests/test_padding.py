"""A sequence without its padding, which reaches no value and no derivative."""

from contextlib import nullcontext

import mlx.core as mx
import numpy as np
import pytest

from conftest import DTYPES, array, name_of
from mlx_recurrent import exporting
from mlx_recurrent.functional.padding import without_padding
from tolerances import equal

LENGTHS = [4, 0, 1, 3, 7]


def padded(rng, dtype):
    """A sequence with NaN in its padding, and the same with zeros."""
    x = rng.standard_normal((5, 7, 3))
    ended = np.arange(7) >= np.array(LENGTHS)[:, None]
    dirty, clean = x.copy(), x.copy()
    dirty[ended], clean[ended] = np.nan, 0
    return array(dirty, dtype), array(clean, dtype)


def run(x, lengths=LENGTHS):
    return without_padding(x, mx.array(lengths))


@pytest.fixture(params=["kernels", "MLX"], autouse=True)
def path(request):
    with exporting() if request.param == "MLX" else nullcontext():
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_values_and_every_derivative(rng, dtype):
    """The map is linear and its own transpose, so each derivative is the map again."""
    x, clean = padded(rng, dtype)
    v, clean_v = padded(rng, dtype)
    equal(run(x), clean)
    equal(mx.vjp(run, [x], [v])[1][0], clean_v)
    equal(mx.jvp(run, [x], [v])[1][0], clean_v)

    def gradient(v):
        return mx.vjp(run, [x], [v])[1][0]

    equal(mx.vjp(gradient, [x], [v])[1][0], clean_v)
    equal(mx.jvp(gradient, [x], [v])[1][0], clean_v)


@pytest.mark.parametrize("shape", [(), (2, 3)], ids=["none", "two"])
def test_leading_axes(rng, shape):
    x = array(rng.standard_normal((*shape, 4, 2)), mx.float32)
    lengths = np.full(shape, 3, np.int32)
    got = run(x, lengths)
    equal(got[..., :3, :], x[..., :3, :])
    assert not got[..., 3:, :].any() and got.shape == x.shape


def test_one_sequence_for_several_lengths(rng):
    x = array(rng.standard_normal((7, 3)), mx.float32)
    equal(run(x), run(mx.broadcast_to(x, (5, 7, 3))))


def test_no_steps_and_no_rows():
    assert run(mx.zeros((5, 0, 3)), [0] * 5).shape == (5, 0, 3)
    assert run(mx.zeros((0, 4, 3)), mx.zeros(0, mx.int32)).shape == (0, 4, 3)


def test_vmap_and_shapeless(rng, path):
    """The latter for another number of steps and of rows, which MLX's slices keep."""
    (x, clean), (v, clean_v) = padded(rng, mx.float32), padded(rng, mx.float32)
    lengths = mx.array(LENGTHS)

    def gradient(x, lengths, v):
        return mx.vjp(lambda x: without_padding(x, lengths), [x], [v])[1][0]

    equal(mx.vmap(without_padding)(x, lengths), clean)
    equal(mx.vmap(gradient)(x, lengths, v), clean_v)
    if path == "MLX":
        return
    value, derivative = (
        mx.compile(f, shapeless=True) for f in (without_padding, gradient)
    )
    for n, steps in ((5, 7), (3, 4)):
        part = x[:n, :steps], lengths[:n]
        equal(value(*part), clean[:n, :steps])
        equal(derivative(*part, v[:n, :steps]), clean_v[:n, :steps])
