"""Leaks, as numbers and as parameters, and what zoneout is in evaluation."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_recurrent
from conftest import DTYPES, array, draw
from mlx_recurrent import RNN
from optional import problem
from tolerances import equal


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("leak", [0.05, 0.3, 0.95])
def test_a_number_is_an_equal_array(rng, path, leak, dtype):
    p = problem(rng, leak=leak, dtype=dtype)
    p.check(p(path))
    for a, b in zip(p(path), p(path, leak=mx.full((5,), leak, dtype)), strict=True):
        equal(a, b)


@pytest.mark.parametrize("leak", [1, 1.0, np.float32(1)])
def test_one_is_no_leak(rng, path, leak):
    p = problem(rng)
    p.check(p(path, leak=leak))
    assert RNN(3, 5, leak=leak).plan(p.arrays["x"]).path == "native"


@pytest.mark.parametrize("dtype", DTYPES)
def test_learned(rng, path, dtype):
    """Its gradient, also where it is 1: there the state before has no other effect."""
    p = problem(rng, dtype=dtype)
    p.arrays["leak"] = array([1.0, 0.5, 0.25, 1.0, 0.75], dtype)
    d = p.cotangents()
    p.check_gradients(partial(p, path), d)
    *_, leak = p.gradients(*d)
    assert (leak != 0).all()


@pytest.mark.parametrize("leak", [1.0, 0.0])
def test_terms_without_a_factor_are_absent(rng, path, leak):
    """0 * inf is no number: of the old state where it is forgotten, or of the new."""
    p = problem(rng, (2,))
    p.arrays["leak"] = mx.full((5,), leak)
    if leak:
        p.arrays["hidden"] = mx.full((2, 5), mx.inf)
        p.arrays["Whh"] = mx.abs(p.arrays["Whh"])
    else:
        p.arrays["Whh"] = mx.full((5, 5), mx.inf)
    outputs, _ = p(path)
    assert mx.isfinite(outputs).all()
    expected = [1.0] * 5 if leak else p.arrays["hidden"][0].tolist()
    np.testing.assert_array_equal(np.array(outputs)[0, 0], np.float32(expected))


@pytest.mark.parametrize("leak", [None, 0.4, "array"])
def test_zoneout_in_evaluation(rng, path, leak):
    """The expectation over masks: the leak times what is not kept."""
    p = problem(rng, leak=leak, zoneout=0.25, training=False)
    got = p(path)
    p.check(got)
    p.check_gradients(partial(p, path), p.cotangents())
    if leak != "array":
        factor = (1.0 if leak is None else leak) * 0.75
        expected = p(path, leak=factor, zoneout=0.0)
        for a, b in zip(got, expected, strict=True):
            equal(a, b)


def test_takes_part_in_the_dtype(path):
    x, W = mx.ones((2, 3, 4), mx.bfloat16), mx.ones((4, 4), mx.bfloat16)
    for leak, dtype in (
        (0.5, mx.bfloat16),
        (mx.full((4,), 0.5, mx.bfloat16), mx.bfloat16),
        (mx.full((4,), 0.5), mx.float32),
    ):
        outputs, last = path(
            "tanh", x, W, W, hidden=x[:, 0], leak=leak, return_state=True
        )
        assert outputs.dtype == last.dtype == dtype


def test_a_parameter_of_the_layer(rng):
    layer = RNN(3, 5, leak=mx.full((5,), 0.5))
    assert dict(tree_flatten(layer.parameters()))["leak"].shape == (5,)
    x = draw(rng, (2, 6, 3), mx.float32)

    def loss(layer, x):
        return layer(x).square().sum()

    optimizer = optim.SGD(0.1)
    _, tree = nn.value_and_grad(layer, loss)(layer, x)
    optimizer.update(layer, tree)
    assert (layer.leak != 0.5).any()
    layer.freeze(keys=["leak"])
    _, tree = nn.value_and_grad(layer, loss)(layer, x)
    assert "leak" not in tree and "Wxh" in tree


def test_a_learned_leak_may_leave_its_range(rng):
    layer = RNN(3, 5, leak=mx.full((5,), 0.5))
    layer.update({"leak": mx.full((5,), 1.5)})
    x = draw(rng, (2, 6, 3), mx.float32)
    p = problem(rng, (2,), hidden=False)
    p.arrays = {"x": x, **layer.parameters()}
    p.check(layer(x, return_state=True))


def test_a_constant_of_the_layer():
    layer = RNN(3, 5, leak=0.5)
    assert layer.leak == 0.5
    assert set(layer.parameters()) == {"Wxh", "Whh", "bias"}
    x = mx.random.normal((2, 6, 3))
    equal(layer(x), mlx_recurrent.rnn(x, *layer.parameters().values(), leak=0.5))
    layer.leak = mx.full((5,), 0.5)  # learned from now on
    assert "leak" in layer.parameters()
    layer.leak = 0.25
    assert "leak" not in layer.parameters()
    layer.leak = None
    assert layer.leak is None and layer.plan(x).path == "native"


def test_attributes_of_a_layer_without_terms():
    layer = RNN(3, 5)
    assert layer.leak is None and layer.hidden0 is None
    assert layer.zoneout == layer.input_dropout == layer.recurrent_dropout == 0
    with pytest.raises(AttributeError, match="other"):
        layer.other  # noqa: B018


def test_a_learned_initial_state(rng):
    layer = RNN(3, 5, learn_hidden=True)
    plain = RNN(3, 5)
    x = draw(rng, (2, 6, 3), mx.float32)
    plain.load_weights([w for w in tree_flatten(layer) if w[0] != "hidden0"])
    equal(layer.hidden0, mx.zeros((5,)))
    equal(layer(x), plain(x, mx.zeros((2, 5))))
    layer.hidden0 = draw(rng, (5,), mx.float32)
    equal(layer(x), plain(x, mx.broadcast_to(layer.hidden0, (2, 5))))
    given = draw(rng, (2, 5), mx.float32)
    equal(layer(x, given), plain(x, given))


def test_gradients_of_a_learned_initial_state(rng, path):
    p = problem(rng, hidden=False, hidden0=True)
    p.check_gradients(partial(p, path), p.cotangents())
    p.check_tangents(partial(p, path), p.directions())
