"""One step of a layer."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from conftest import ACTIVATIONS, COMPOSED, DTYPES, NATIVE, TRACED, draw
from mlx_recurrent import RNN
from tolerances import close, equal, wide

PATHS = {"native": NATIVE, "traced": TRACED, "composed": COMPOSED}
each_path = pytest.mark.parametrize("functions", PATHS.values(), ids=PATHS)


def step_by_step(layer, x, hidden=None, reset=None):
    states = []
    for t in range(x.shape[-2]):
        now = None if reset is None else reset[..., t]
        hidden = layer.step(x[..., t, :], hidden, reset=now)
        states.append(hidden)
    return mx.stack(states, -2)


@each_path
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lead", [(), (3,), (2, 2)])
def test_steps_are_the_sequence(rng, lead, dtype, activation, functions):
    terms = dict(leak=mx.full((5,), 0.5), learn_hidden=True) if lead else {}
    layer = RNN(3, 5, nonlinearity=functions[activation], **terms)
    if terms:
        layer.hidden0 = draw(rng, (5,), mx.float32)
    layer.set_dtype(dtype)
    x, h = draw(rng, (*lead, 6, 3), dtype), draw(rng, (*lead, 5), dtype)
    reset = rng.random((*lead, 6)) < 0.3
    exact = RNN(3, 5, nonlinearity=functions[activation], **terms)
    exact.update(layer.parameters())
    exact.set_dtype(mx.float64)
    h64, x64 = h.astype(mx.float64), x.astype(mx.float64)
    close(step_by_step(layer, x), layer(x), wide(exact(x64)))
    close(step_by_step(layer, x, h), layer(x, h), wide(exact(x64, h64)))
    expected, truth = layer(x, h, reset=reset), exact(x64, h64, reset=reset)
    close(step_by_step(layer, x, h, reset), expected, wide(truth))


def test_gradients_of_steps(rng):
    layer, x = RNN(3, 5, leak=0.5), draw(rng, (2, 6, 3), mx.float32)

    def loss(run):
        return nn.value_and_grad(layer, lambda layer: run(layer, x).square().sum())

    (value, got), (expected, tree) = (
        loss(step_by_step)(layer),
        loss(lambda layer, x: layer(x))(layer),
    )
    close(value, expected, wide(expected))
    for name in tree:
        close(got[name], tree[name], wide(tree[name]))


def test_reset_starts_from_the_learned_state(rng):
    layer = RNN(3, 5, learn_hidden=True)
    layer.hidden0 = draw(rng, (5,), mx.float32)
    x, h = draw(rng, (2, 3), mx.float32), draw(rng, (2, 5), mx.float32)
    got = layer.step(x, h + mx.array([[np.nan], [0]]), reset=[1, 0])
    expected = layer.step(x, mx.stack([layer.hidden0, h[1]]))
    close(got, expected, wide(expected))


def test_new_masks_at_each_step(rng):
    layer = RNN(3, 40, input_dropout=0.5)
    x = mx.broadcast_to(draw(rng, (3,), mx.float32), (8, 3))
    assert not mx.array_equal(layer.step(x), layer.step(x))
    layer.eval()
    equal(layer.step(x), layer.step(x))


def test_compiled_and_mapped(rng):
    layer, h = RNN(3, 5, leak=0.5), draw(rng, (4, 5), mx.float32)
    x = draw(rng, (4, 3), mx.float32)
    expected = layer.step(x, h, reset=[1, 0, 0, 1])
    reset = mx.array([True, False, False, True])
    f = lambda x, h, r: layer.step(x, h, reset=r)  # noqa: E731
    close(mx.compile(f)(x, h, reset), expected, wide(expected))
    close(mx.vmap(f)(x, h, reset), expected, wide(expected))


@pytest.mark.parametrize(
    "x, hidden, reset, words",
    [
        (np.zeros(3), None, None, ["x", "mlx.core.array", "ndarray"]),
        (mx.zeros((2, 4)), None, None, ["x", "(..., 3)", "(2, 4)"]),
        (mx.zeros(()), None, None, ["x", "(..., 3)", "()"]),
        (mx.zeros((2, 3)), mx.zeros((2, 4)), None, ["hidden", "(2, 4)"]),
        (mx.zeros((2, 3)), mx.zeros((3, 5)), None, ["hidden", "(3, 5)"]),
        (mx.zeros((2, 3)), [0], None, ["hidden", "list"]),
        (mx.zeros((2, 3)), None, [True], ["reset", "(2,)", "(1,)"]),
        (mx.zeros((2, 3)), None, [0, 2], ["reset", "reset[1]", "2"]),
        (mx.zeros((2, 3)), None, [0.0, 1.0], ["reset", "float64"]),
    ],
)
def test_errors(x, hidden, reset, words):
    with pytest.raises((TypeError, ValueError)) as error:
        RNN(3, 5).step(x, hidden, reset=reset)
    for word in words:
        assert word in str(error.value)
