"""Dropouts and zoneout: which elements a mask hits, and from what it is drawn."""

import math
from functools import partial

import mlx.core as mx
import numpy as np
import pytest

import mlx_recurrent
import reference
from conftest import DTYPES, composed, draw, ours, traced
from mlx_recurrent import RNN
from mlx_recurrent.functional import masks
from optional import draw_key, grads, problem
from tolerances import DIFFERENCE, close, equal, wide

RANDOM = ["zoneout", "input_dropout", "recurrent_dropout"]
each = pytest.mark.parametrize("name", RANDOM)
# Units on both sides of what one counter makes words for.
UNITS = [1, 15, 16, 17, 63, 64, 65, 130]


def seen(path, name, p, N, L, units, dtype=mx.float32):
    """Run what shows a mask by zeros in its outputs; return those, and the key."""
    eye, zeros = mx.eye(units, dtype=dtype), mx.zeros((units, units), dtype)
    ones = mx.ones((N, L, units), dtype)
    operands = {
        # The state before is zero at every step: an episode starts.
        "zoneout": dict(x=ones, Wxh=eye, Whh=zeros, reset=np.ones((N, L), bool)),
        "input_dropout": dict(x=ones, Wxh=eye, Whh=zeros),
        # The state before is one at every step.
        "recurrent_dropout": dict(
            x=0 * ones,
            Wxh=zeros,
            Whh=eye,
            hidden0=mx.ones((units,), dtype),
            reset=np.ones((N, L), bool),
        ),
    }[name]
    key = draw_key()
    outputs = path("relu", **operands, **{name: p})
    return wide(outputs), key


@pytest.mark.parametrize("units", UNITS)
@each
def test_the_masks_are_the_generators(path, name, units):
    outputs, key = seen(path, name, 0.3, 3, 4, units)
    mask = getattr(reference, name.upper())
    steps = 4 if name == "zoneout" else 1
    expected = reference.hits(key, mask, 0.3, 3, steps, units)
    np.testing.assert_array_equal(
        outputs == 0, np.broadcast_to(expected, outputs.shape)
    )


# More than 16 bits tell apart; the composed path takes its time for each step.
MANY = [(1, 5_000), (1, 70_000), (70_000, 1)]
LONG = [(run, *sizes) for run in (ours, traced, None) for sizes in MANY]


@pytest.mark.parametrize("run, N, L", [*LONG, (composed, 1, 5_000)])
@each
def test_masks_of_many_steps_and_rows(run, name, N, L):
    mask, steps = getattr(reference, name.upper()), L if name == "zoneout" else 1
    if run is None:
        key = draw_key()
        got = masks.hits(masks.Mask(mask), 0.3, mx.array(key), (N,), steps, 1)
    else:
        outputs, key = seen(run, name, 0.3, N, L, 1)
        got = outputs == 0
    expected = reference.hits(key, mask, 0.3, N, steps, 1)
    np.testing.assert_array_equal(got, np.broadcast_to(expected, got.shape))


@each
def test_masks_of_many_steps_in_derivatives(rng, name):
    """Gradients of each row by shared weights, which take the masks as arrays."""
    p = problem(rng, (1,), L=5_000, D=1, H=1, dtype=mx.float64, **{name: 0.3})
    d = [draw(rng, (2, *s), p.dtype) for s in ((1, 5_000, 1), (1, 1))]
    values = list(p.arrays.values())
    got = mx.vmap(lambda *d: grads(lambda *v: p(ours, *v), values, d))(*d)
    for i in range(2):
        for a, truth in zip(got, p.gradients(*(a[i] for a in d)), strict=True):
            assert np.abs(wide(a[i]) - truth).max() <= DIFFERENCE * np.abs(truth).max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RANDOM[1:])
def test_what_is_left_is_scaled(path, name, dtype):
    outputs, _ = seen(path, name, 0.3, 3, 4, 17, dtype)
    expected = wide(mx.array(1 / 0.7, mx.float64).astype(dtype))
    np.testing.assert_array_equal(np.unique(outputs), [0, expected])


@pytest.mark.parametrize("name", RANDOM[1:])
def test_one_mask_for_a_sequence(path, name):
    outputs, _ = seen(path, name, 0.5, 4, 9, 40)
    assert (outputs == outputs[:, :1]).all()
    assert not (outputs == outputs[:1]).all()


def test_zoneout_draws_at_every_step(path):
    outputs, _ = seen(path, "zoneout", 0.5, 4, 9, 40)
    assert not (outputs == outputs[:, :1]).all()


@pytest.mark.parametrize("probability", [0.01, 0.5, 0.97])
@each
def test_as_probable_as_said(path, name, probability):
    outputs, _ = seen(path, name, probability, 64, 2, 200)
    places = outputs if name == "zoneout" else outputs[:, 0]
    spread = math.sqrt(probability * (1 - probability) / places.size)
    assert abs((places == 0).mean() - probability) < 5 * spread


@pytest.mark.parametrize("probability", [1e-12, 1 - 1e-12])
@each
def test_probabilities_next_to_0_and_1(path, name, probability):
    """No word of 32 bits is hit, and every one."""
    outputs, _ = seen(path, name, probability, 3, 4, 17)
    assert (outputs == 0).all() == (probability > 0.5)


@each
def test_the_same_masks_from_the_same_seed(rng, path, name):
    p = problem(rng, **{name: 0.4})
    first, again = p(path), p(path)
    for a, b in zip(first, again, strict=True):
        equal(a, b)
    p.seed += 1
    assert not mx.array_equal(first[0], p(path)[0])


@each
def test_every_call_draws_new_masks(rng, name):
    layer, x = RNN(3, 20, **{name: 0.4}), draw(rng, (2, 6, 3), mx.float32)
    assert not mx.array_equal(layer(x), layer(x))


@each
def test_the_backward_pass_has_the_masks_of_the_forward(rng, path, name):
    """By the reference with the masks of the call's key."""
    p = problem(rng, H=20, **{name: 0.4})
    p.check_gradients(partial(p, path), p.cotangents())


def test_nothing_is_drawn_without_need(rng):
    x = draw(rng, (2, 6, 3), mx.float32)
    random = RNN(3, 5, zoneout=0.2, input_dropout=0.2, recurrent_dropout=0.2)
    before = np.array(mx.random.state[0])
    random.plan(x)
    random.eval()
    random(x)
    random.step(x[:, 0])
    mlx_recurrent.rnn(x, random.Wxh, random.Whh, zoneout=0.0)
    np.testing.assert_array_equal(np.array(mx.random.state[0]), before)


def test_a_call_moves_the_random_state_by_one_draw(rng):
    x = draw(rng, (2, 6, 3), mx.float32)
    layer = RNN(3, 5, zoneout=0.2, input_dropout=0.2, recurrent_dropout=0.2)
    mx.random.seed(3)
    layer(x)
    after = np.array(mx.random.state[0])
    mx.random.seed(3)
    mx.random.uniform()
    np.testing.assert_array_equal(np.array(mx.random.state[0]), after)


@pytest.mark.parametrize("name", RANDOM[1:])
def test_dropouts_are_nothing_in_evaluation(rng, path, name):
    p = problem(rng, **{name: 0.4}, training=False)
    p.check(p(path))


def test_modes_of_the_layer(rng):
    layer, x = RNN(3, 20, recurrent_dropout=0.4), draw(rng, (2, 6, 3), mx.float32)
    plain = mlx_recurrent.rnn(x, *layer.parameters().values())
    assert not mx.array_equal(layer(x), plain)
    layer.eval()
    equal(layer(x), plain)
    layer.train()
    assert not mx.array_equal(layer(x), plain)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_dropped_is_absent(path, value):
    """0 * NaN is no number."""
    ones = mx.ones((8, 1, 40))
    mx.random.seed(1)
    key = draw_key()
    dropped = reference.hits(key, reference.INPUT_DROPOUT, 0.5, 8, 1, 40)[:, 0]
    x = mx.where(mx.array(dropped)[:, None], value, ones)

    def f(x, W):
        mx.random.seed(1)
        return path("tanh", x, W, mx.zeros((40, 40)), input_dropout=0.5)

    W = mx.eye(40)
    y, (dx, dW) = mx.vjp(f, [x, W], [mx.ones((8, 1, 40))])
    assert all(mx.isfinite(a).all() for a in (*y, dx, dW))
    np.testing.assert_array_equal(wide(dx)[:, 0][dropped], 0)


@each
def test_compiled(rng, name):
    """The same masks as without, and new ones at each call."""
    p = problem(rng, (2,), H=20, hidden=False, **{name: 0.4})
    x, Wxh, Whh, bias = p.arrays.values()
    layer = RNN(3, 20, **{name: 0.4})
    layer.update({"Wxh": Wxh, "Whh": Whh, "bias": bias})
    state = [mx.random.state, layer.state]
    run = lambda x: layer(x, return_state=True)  # noqa: E731
    for f in (run, mx.compile(run, inputs=state, outputs=state)):
        mx.random.seed(5)
        keys = []
        for _ in range(2):
            p.key = draw_key()
            keys.append(p.key.tolist())
            p.check(f(x))
        assert keys[0] != keys[1]


def test_compiled_gradients_keep_masks_apart(rng):
    """Those of one key, of the same shape and as probable: they are no equal calls."""
    p = problem(rng, H=20, D=20, zoneout=0.4, recurrent_dropout=0.4, input_dropout=0.4)
    values, d = list(p.arrays.values()), p.cotangents()

    def gradients(*c):
        return grads(lambda *v: p(ours, *v), values, c)

    got = mx.compile(mx.vmap(gradients))(*(mx.stack([a, -a]) for a in d))
    expected, truth = grads(p.plain, values, d), p.gradients(*d)
    for a, b, c in zip(got, expected, truth, strict=True):
        close(a[0], b, c)
        close(a[1], -b, -c)


@each
def test_a_shapeless_function_cannot_draw(rng, name):
    layer, x = RNN(3, 20, **{name: 0.4}), draw(rng, (2, 6, 3), mx.float32)
    with pytest.raises(ValueError, match="output shapes"):
        mx.eval(mx.compile(layer, shapeless=True)(x))
    mx.random.seed(0)  # the state was traced


def test_vmap_has_one_mask(path):
    """Rows count within the call, so all calls of a vmap have the same."""
    x = mx.ones((3, 4, 20))

    def f(x):
        mx.random.seed(2)
        return path("identity", x, mx.eye(20), mx.eye(20) * 0.5, input_dropout=0.5)

    got = mx.vmap(f)(x)
    equal(got, mx.stack([f(row) for row in x]))
    assert mx.array_equal(got[0], got[1])


@pytest.mark.parametrize("name", ["zoneout", "recurrent_dropout"])
def test_scan(rng, name):
    p = problem(rng, D=20, H=20, bias=False, **{name: 0.4})
    p.arrays["Wxh"] = mx.eye(20)
    z, _, Whh, hidden = p.arrays.values()
    mx.random.seed(p.seed)
    p.check(mlx_recurrent.scan(z, Whh, hidden, **p.keywords, return_state=True))
