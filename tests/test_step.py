"""One step of a layer."""

from functools import partial

import mlx.core as mx
import numpy as np
import pytest

from conftest import ACTIVATIONS, COMPOSED, DTYPES, NATIVE, TRACED, draw
from mlx_recurrent import RNN
from optional import problem
from tolerances import equal

PATHS = {"native": NATIVE, "traced": TRACED, "composed": COMPOSED}
each_path = pytest.mark.parametrize("functions", PATHS.values(), ids=PATHS)


def steps(p, functions, *values):
    """Outputs and the last state of a layer that runs step by step."""
    arrays = dict(zip(p.names, values, strict=True)) if values else dict(p.arrays)
    x, state = arrays.pop("x"), arrays.pop("hidden", None)
    layer = RNN(p.D, p.H, nonlinearity=functions[p.activation])
    for name, a in arrays.items():
        setattr(layer, name, a)
    states = []
    for t in range(p.L):
        now = p.get("reset")
        now = None if now is None else now[..., t]
        state = layer.step(x[..., t, :], state, reset=now)
        states.append(state)
    return [mx.stack(states, -2), state]


@each_path
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lead", [(), (3,), (2, 2)])
def test_steps_are_the_sequence(rng, lead, dtype, activation, functions):
    terms = {"activation": activation, "dtype": dtype}
    if lead:
        terms |= {"leak": "array", "hidden0": True}
    for given in ({"hidden": False}, {}, {"reset": True}):
        p = problem(rng, lead, **terms, **given)
        p.check(steps(p, functions))


@each_path
def test_gradients_of_steps(rng, functions):
    p = problem(rng, leak="array", hidden0=True, reset=True)
    p.check_gradients(partial(steps, p, functions), p.cotangents())
    p = problem(rng, hidden=False)
    p.check_tangents(partial(steps, p, functions), p.directions())


@each_path
def test_reset_starts_from_the_learned_state(rng, functions):
    p = problem(rng, (2,), L=1, hidden0=True, reset=np.array([[True], [False]]))
    p.arrays["hidden"] += mx.array([[np.nan], [0]])
    p.check(steps(p, functions))


def test_new_masks_at_each_step(rng):
    layer = RNN(3, 40, input_dropout=0.5)
    x = mx.broadcast_to(draw(rng, (3,), mx.float32), (8, 3))
    assert not mx.array_equal(layer.step(x), layer.step(x))
    layer.eval()
    equal(layer.step(x), layer.step(x))


@each_path
def test_compiled_and_mapped(rng, functions):
    p = problem(rng, (4,), L=1, leak="array", reset=np.array([[1], [0], [0], [1]]))
    layer = RNN(p.D, p.H, nonlinearity=functions["tanh"], leak=p.arrays["leak"])
    layer.update({name: p.arrays[name] for name in ("Wxh", "Whh", "bias")})
    given = p.arrays["x"][:, 0], p.arrays["hidden"], mx.array(p.keywords["reset"][:, 0])
    for transform in (mx.compile, mx.vmap):
        state = transform(lambda x, h, r: layer.step(x, h, reset=r))(*given)
        p.check([state[:, None], state])


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
