"""The presets for weights."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from conftest import DTYPES, array, draw, name_of
from mlx_recurrent import GRU, LSTM, RNN, Bidirectional, Stack, init
from tolerances import EPS, PRESET, agree, equal, wide

# The name and the gates of what each layer multiplies its state by.
KINDS = {RNN: ("Whh", 1), GRU: ("Wh", 3), LSTM: ("Wh", 4)}
PRESETS = [init.orthogonal_, init.identity_, lambda m: init.spectral_radius_(m, 0.9)]


def in_dtype(layer, dtype):
    layer.set_dtype(dtype)
    return layer


def radius(Whh):
    Whh = wide(Whh) if isinstance(Whh, mx.array) else Whh
    return np.abs(np.linalg.eigvals(Whh.astype(np.float64))).max()


def blocks(layer):
    """Every gate's matrix."""
    name, gates = KINDS[type(layer)]
    H = layer.hidden_size
    assert layer[name].shape == (gates * H, H)
    return np.split(wide(layer[name]), gates)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("H", [1, 2, 33])
@pytest.mark.parametrize("kind", KINDS)
def test_orthogonal(kind, H, dtype):
    layer = in_dtype(kind(3, H), dtype)
    assert init.orthogonal_(layer) is layer
    assert layer[KINDS[kind][0]].dtype == dtype
    for Whh in blocks(layer):
        assert np.abs(Whh @ Whh.T - np.eye(H)).max() <= PRESET * H * EPS[dtype]
    if H == 33:  # each is another one
        assert len({float(Whh[0, 0]) for Whh in blocks(layer)}) == KINDS[kind][1]


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
@pytest.mark.parametrize("kind", KINDS)
def test_identity(kind, dtype):
    layer = in_dtype(kind(3, 5), dtype)
    assert init.identity_(layer) is layer
    name, gates = KINDS[kind]
    equal(layer[name], mx.concatenate([mx.eye(5, dtype=dtype)] * gates))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("r", [0.1, 0.9, 1, np.float32(1.25)])
@pytest.mark.parametrize("kind", KINDS)
def test_spectral_radius(rng, kind, r, dtype):
    layer = in_dtype(kind(3, 20), dtype)
    all_before = blocks(layer)
    assert init.spectral_radius_(layer, r) is layer
    assert layer[KINDS[kind][0]].dtype == dtype
    for before, Whh in zip(all_before, blocks(layer), strict=True):
        assert abs(radius(Whh) - r) <= PRESET * 20 * EPS[dtype] * r
        # The same directions: each entry is rounded alone.
        scaled = before * (r / radius(before))
        assert np.abs(Whh - scaled).max() <= EPS[dtype] * np.abs(scaled).max()


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
    layer = GRU(3, 4)
    layer.Wh = mx.zeros((8, 4))
    with pytest.raises(ValueError, match=r"Wh must have shape \(3H, H\), .* \(8, 4\)"):
        preset(layer)


# The gates of the biases, and that which keeps the state.
BIASES = {GRU: ("b", "r z n", "z"), LSTM: ("bias", "i f g o", "f")}


def gates(layer):
    name, order, _ = BIASES[type(layer)]
    order = order.split()
    return dict(zip(order, np.split(wide(layer[name]), len(order)), strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("value", [1.0, 2, -0.5])
@pytest.mark.parametrize("kind", BIASES)
def test_forget_bias(kind, value, dtype):
    layer = in_dtype(kind(3, 5), dtype)
    before, weights = gates(layer), dict(layer.parameters())
    assert init.forget_bias_(layer, value) is layer
    name, _, keeps = BIASES[kind]
    for gate, bias in gates(layer).items():
        expected = np.full(5, value) if gate == keeps else before[gate]
        np.testing.assert_array_equal(bias, expected)
    assert layer[name].dtype == dtype
    assert all(layer[other] is weights[other] for other in weights if other != name)


def test_forget_bias_of_one():
    equal(init.forget_bias_(LSTM(3, 2)).bias[2:4], mx.ones(2))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("kind", BIASES)
def test_chrono(kind, dtype):
    """Time constants 1 / (1 - sigma(b)) = 1 + u are uniform from 2 to `longest`."""
    layer = in_dtype(kind(3, 4000), dtype)
    before = gates(layer)
    assert init.chrono_(layer, 101) is layer
    after, keeps = gates(layer), BIASES[kind][2]
    u = np.exp(after[keeps])
    slack = 1 + 8 * EPS[dtype]
    assert 1 / slack <= u.min() <= 1.5 and 99 / slack <= u.max() <= 100 * slack
    assert abs(u.mean() - 50.5) < 5 * 99 / math.sqrt(12 * 4000)
    assert abs(u.std() - 99 / math.sqrt(12)) < 2
    for gate in after:
        if kind is LSTM and gate == "i":
            np.testing.assert_array_equal(after[gate], -after["f"])
        elif gate != keeps:
            np.testing.assert_array_equal(after[gate], before[gate])


def test_chrono_follows_the_seed():
    layers = [LSTM(3, 4) for _ in range(3)]
    for layer, seed in zip(layers, (1, 1, 2), strict=True):
        mx.random.seed(seed)
        init.chrono_(layer, 50)
    equal(layers[0].bias[4:8], layers[1].bias[4:8])
    assert not mx.array_equal(layers[0].bias[4:8], layers[2].bias[4:8])
    (f,) = {gates(init.chrono_(LSTM(3, 1), 2))["f"].item()}
    assert f == 0  # a single step


def test_biases_of_every_layer_inside():
    model = nn.Sequential(Stack([GRU(3, 4), Bidirectional(LSTM(4, 2))]), nn.LSTM(4, 2))
    stack = model.layers[0]
    init.forget_bias_(model, 3.0)
    both = stack.layers[1]
    equal(stack.layers[0].b[4:8], mx.full((4,), 3.0))
    for layer in (both.forward, both.backward, model.layers[1]):
        equal(layer.bias[2:4], mx.full((2,), 3.0))


@pytest.mark.parametrize(
    "preset",
    [init.forget_bias_, lambda m: init.chrono_(m, 9)],
    ids=["forget", "chrono"],
)
def test_what_has_no_gates_or_no_bias(preset):
    with pytest.raises(ValueError, match="layer must be or hold a GRU or an LSTM"):
        preset(Stack([RNN(3, 4)]))
    with pytest.raises(TypeError, match="layer must be a module, but is list"):
        preset([GRU(3, 4)])
    fine = GRU(3, 4)
    before = fine.b
    for kind, (name, *_) in BIASES.items():
        with pytest.raises(ValueError, match=rf"^{name} must be there .*bias=False"):
            preset(nn.Sequential(fine, kind(3, 4, bias=False)))
    assert fine.b is before


def test_values_of_the_presets_of_biases():
    with pytest.raises(TypeError, match="value must be a number, but is str"):
        init.forget_bias_(LSTM(3, 4), "1")
    with pytest.raises(TypeError, match="longest must be a number, but is None"):
        init.chrono_(LSTM(3, 4), None)
    for longest in (1, 0, -5, math.inf, math.nan):
        with pytest.raises(ValueError, match="longest must be at least 2, but is"):
            init.chrono_(LSTM(3, 4), longest)
