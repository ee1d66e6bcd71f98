"""The presets for Whh."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from conftest import DTYPES, array, draw, name_of
from mlx_recurrent import RNN, Bidirectional, Stack, init
from tolerances import EPS, PRESET, agree, equal, wide

PRESETS = [init.orthogonal_, init.identity_, lambda m: init.spectral_radius_(m, 0.9)]


def in_dtype(layer, dtype):
    layer.set_dtype(dtype)
    return layer


def radius(Whh):
    Whh = wide(Whh) if isinstance(Whh, mx.array) else Whh
    return np.abs(np.linalg.eigvals(Whh.astype(np.float64))).max()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("H", [1, 2, 33])
def test_orthogonal(H, dtype):
    layer = in_dtype(RNN(3, H), dtype)
    assert init.orthogonal_(layer) is layer
    assert layer.Whh.dtype == dtype and layer.Whh.shape == (H, H)
    Whh = wide(layer.Whh)
    assert np.abs(Whh @ Whh.T - np.eye(H)).max() <= PRESET * H * EPS[dtype]


def test_orthogonal_is_uniform():
    """Of a uniform one the trace has mean 0 and variance 1; QR alone is not so."""
    traces, signs = [], []
    layer = RNN(1, 3)
    for _ in range(400):
        Whh = np.array(init.orthogonal_(layer).Whh)
        traces.append(np.trace(Whh))
        signs.append(np.sign(np.linalg.det(Whh)))
    assert abs(np.mean(traces)) < 5 / 20
    assert abs(np.mean(np.square(traces)) - 1) < 5 * math.sqrt(2) / 20
    assert abs(np.mean(signs)) < 5 / 20


def test_orthogonal_follows_the_seed():
    layers = [RNN(3, 4), RNN(3, 4), RNN(3, 4)]
    for layer, seed in zip(layers, (1, 1, 2), strict=True):
        mx.random.seed(seed)
        init.orthogonal_(layer)
    equal(layers[0].Whh, layers[1].Whh)
    assert not mx.array_equal(layers[0].Whh, layers[2].Whh)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_identity(dtype):
    layer = in_dtype(RNN(3, 5), dtype)
    assert init.identity_(layer) is layer
    equal(layer.Whh, mx.eye(5, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("r", [0.1, 0.9, 1, np.float32(1.25)])
def test_spectral_radius(rng, r, dtype):
    layer = in_dtype(RNN(3, 20), dtype)
    before = wide(layer.Whh)
    assert init.spectral_radius_(layer, r) is layer
    assert layer.Whh.dtype == dtype
    assert abs(radius(layer.Whh) - r) <= PRESET * 20 * EPS[dtype] * r
    # The same directions: each entry is rounded alone.
    scaled = before * (r / radius(before))
    assert np.abs(wide(layer.Whh) - scaled).max() <= EPS[dtype] * np.abs(scaled).max()


@pytest.mark.parametrize("preset", PRESETS)
def test_every_layer_inside(preset):
    shared = RNN(4, 4)
    model = nn.Sequential(
        Stack([RNN(3, 4), Bidirectional(RNN(4, 2)), shared]), shared, nn.RNN(4, 5)
    )
    stack = model.layers[0]
    both = stack.layers[1]
    layers = [stack.layers[0], both.forward, both.backward, shared, model.layers[2]]
    old = [(layer.Wxh, layer.Whh, layer.bias) for layer in layers]
    assert preset(model) is model
    expected = 0.9 if preset is PRESETS[2] else 1
    for layer, (Wxh, Whh, bias) in zip(layers, old, strict=True):
        assert layer.Wxh is Wxh and layer.bias is bias and layer.Whh is not Whh
        assert abs(radius(layer.Whh) - expected) <= PRESET * 5 * EPS[mx.float32]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_frozen_weight_stays_frozen(preset):
    layer = RNN(3, 4)
    layer.freeze(keys="Whh")
    preset(layer)
    assert set(layer.trainable_parameters()) == {"Wxh", "bias"}


def test_an_echo_forgets(rng):
    """Two states become one where the radius is below 1 and the layer is linear."""
    layer = init.spectral_radius_(RNN(3, 8, nonlinearity=nn.Identity()), 0.5)
    x = draw(rng, (1, 200, 3), mx.float32)
    a, b = (layer(x, draw(rng, (1, 8), mx.float32)) for _ in range(2))
    assert not mx.array_equal(a[:, 0], b[:, 0])
    agree(a[:, -1], b[:, -1])


NILPOTENT = {
    "zero": np.zeros((3, 3)),
    "triangular": np.triu(np.ones((3, 3)), 1),
    "full": np.array([[1, -1], [1, -1]]),
    "index 3": np.array([[-1, 1, 0], [0, 0, 1], [1, -1, 1]]),
    "size 1": np.zeros((1, 1)),
}


@pytest.mark.parametrize("Whh", NILPOTENT.values(), ids=NILPOTENT)
def test_no_eigenvalue_to_scale(Whh):
    layer = RNN(3, len(Whh))
    layer.Whh = array(Whh, mx.float32)
    with pytest.raises(ValueError, match="Whh must have an eigenvalue other than zero"):
        init.spectral_radius_(layer, 1.0)


def test_small_and_far_from_symmetric():
    """Far from nilpotent is only what no power makes zero."""
    layer = RNN(1, 2)
    layer.Whh = mx.array([[1e-6, 1.0], [0.0, 1e-6]])
    assert (
        abs(radius(init.spectral_radius_(layer, 0.5).Whh) - 0.5)
        <= PRESET * 2 * EPS[mx.float32]
    )


@pytest.mark.parametrize("r", [0, -1.0, math.inf, math.nan])
def test_radius_out_of_range(r):
    with pytest.raises(ValueError, match=f"r must be positive and finite, but is {r}"):
        init.spectral_radius_(RNN(3, 4), r)


@pytest.mark.parametrize("r", ["1", None, 1j, [1.0]])
def test_radius_that_is_no_number(r):
    with pytest.raises(TypeError, match="r must be a number, but is"):
        init.spectral_radius_(RNN(3, 4), r)


def test_weights_that_are_not_finite():
    layer = RNN(3, 4)
    layer.Whh[0, 1] = math.nan
    with pytest.raises(ValueError, match="Whh must be finite"):
        init.spectral_radius_(layer, 1.0)


def test_nothing_is_changed_where_one_layer_raises():
    model = Stack.build(3, 4, 2)
    before = model.layers[0].Whh
    model.layers[1].Whh = mx.zeros((4, 4))
    with pytest.raises(ValueError, match="Whh"):
        init.spectral_radius_(model, 1.0)
    assert model.layers[0].Whh is before


@pytest.mark.parametrize("preset", PRESETS)
def test_what_has_no_whh(preset):
    with pytest.raises(ValueError, match=r"layer must be or hold an RNN, .*Linear"):
        preset(nn.Linear(3, 4))
    with pytest.raises(TypeError, match="layer must be a module, but is list"):
        preset([RNN(3, 4)])
    layer = RNN(3, 4)
    layer.Whh = mx.zeros((4, 2))
    with pytest.raises(ValueError, match=r"Whh must have shape \(H, H\), .* \(4, 2\)"):
        preset(layer)
