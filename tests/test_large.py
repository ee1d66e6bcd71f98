"""Sizes beyond 2**31 elements: right results, or an error that names what is too large.

Inputs are rows repeated with a stride of 0, or zeros that were never written, so what
takes memory is the result. Numbers are small integers whose sums float32 holds exactly.

The long part, whose results have more than 2**31 elements, takes up to 10 GB and some
minutes: ``make large``, or ``MLX_RECURRENT_LARGE=1 python -m pytest
tests/test_large.py``.
"""

import os

import mlx.core as mx
import numpy as np
import pytest

from mlx_recurrent import GRU, LSTM, RNN, Linear, Stack, matmul, rnn, scan
from mlx_recurrent.functional import functions, gated
from tolerances import EPS, ULPS, WAYS

MANY = 2**31

long_part = pytest.mark.skipif(
    os.environ.get("MLX_RECURRENT_LARGE") != "1",
    reason="takes up to 10 GB: make large",
)


def repeated(row, *lead):
    """A row of features along leading axes, without a copy."""
    return mx.broadcast_to(row, (*lead, row.size))


def whole(size):
    """Small integers in float32."""
    return (mx.arange(size) % 29 + 1).astype(mx.float32)


# Too large for any machine.


@pytest.mark.parametrize("size", [2**31, 2**63, 2**64])
@pytest.mark.parametrize(
    "name, make",
    [
        ("input_size", lambda size: RNN(size, 1)),
        ("hidden_size", lambda size: RNN(1, size)),
        ("hidden_size", lambda size: Stack.build(1, size, 2)),
        ("input_dims", lambda size: Linear(size, 1)),
        ("output_dims", lambda size: Linear(1, size)),
    ],
)
def test_axis_of_a_weight(name, make, size):
    with pytest.raises(ValueError, match=rf"{name} must be .* is {size}"):
        make(size)


def ones(*shape):
    return mx.broadcast_to(mx.array(1.0), shape)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: matmul(ones(2**16, 2**30, 1), ones(2**16, 1)), "x, w and the result"),
        (lambda: matmul(ones(2**26, 2**26, 1), ones(1, 1)), "x, w and the result"),
        (lambda: matmul(ones(1, 2**30), ones(2**30, 2**30)), "x, w and the result"),
        (
            lambda: rnn(ones(2**16, 2**28, 1), ones(2**16, 1), ones(2**16, 2**16)),
            "x, Whh and the result",
        ),
        (
            lambda: rnn(ones(1, 1, 1), ones(2**30, 1), ones(2**30, 2**30)),
            "x, Whh and the result",
        ),
        (
            lambda: rnn(
                ones(2**20, 1),
                ones(8, 1),
                ones(8, 8),
                hidden=ones(2**27, 8),
                return_state="only",
            ),
            "x broadcast to hidden",
        ),
        (lambda: scan(ones(2**27, 2**20, 8), ones(8, 8)), "z, Whh and the result"),
        (lambda: rnn(ones(2**17, 2**17, 1, 1), ones(1, 1), ones(1, 1)), "rows"),
    ],
)
def test_too_many_elements(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("layer", [RNN, GRU, LSTM])
def test_what_fits_is_not_judged(layer, monkeypatch):
    """A plain call of a wide layer takes the short way too."""

    def refuse(*operands, **arguments):
        raise AssertionError("the call was judged")

    for module in (functions, gated):
        for name in ("judge_rnn", "judge_gru", "judge_lstm"):
            monkeypatch.setattr(module, name, refuse, raising=False)
    layer(256, 1024)(ones(128, 512, 256))


def test_more_bytes_than_64_bits_count():
    """Where ``mx.vmap`` hides an axis from the judgement there is no memory for it."""
    x, w = ones(2**24, 2**16, 2**20, 1), ones(16, 1)
    with pytest.raises(MemoryError):
        mx.eval(mx.vmap(lambda x: matmul(x, w))(x))
    with pytest.raises(MemoryError):
        mx.eval(mx.vmap(lambda x: rnn(x, w, ones(16, 16)))(x))
    loss = mx.grad(lambda x: rnn(x, ones(1, 1), ones(1, 1), return_state="only").sum())
    with pytest.raises(MemoryError):
        mx.eval(mx.vmap(mx.vmap(loss))(ones(2**20, 2**20, 2**24, 1)))


@pytest.mark.parametrize(
    "length, dtype", [(2**31, np.int64), (2**63 - 1, np.int64), (2**64 - 1, np.uint64)]
)
def test_lengths_beyond_32_bits(length, dtype):
    """They raise where they can be read; a compiled function takes L for them."""
    layer, x = RNN(2, 3), mx.ones((1, 4, 2))
    lengths = mx.array(np.array([length], dtype))
    with pytest.raises(ValueError, match=f"lengths must be .* is {length}"):
        layer(x, lengths=lengths)
    outputs = mx.compile(lambda x, lengths: layer(x, lengths=lengths))(x, lengths)
    assert mx.array_equal(outputs, layer(x)).item()


# More than 2**31 elements go in, few come out.

D = 4096
N = 64
L = MANY // (N * D) + 1


@long_part
def test_product_of_many_elements():
    x = repeated(whole(D), N, L)
    assert x.size > MANY
    outputs = matmul(x, mx.ones((1, D)))
    assert mx.all(outputs == whole(D).sum()).item()


def test_gradient_of_a_product_of_many_elements():
    x = repeated(whole(D) % 16, N, L)
    gradient = mx.grad(lambda w: matmul(x, w).sum())(mx.ones((1, D)))
    assert mx.array_equal(gradient, N * L * (whole(D)[None] % 16)).item()


def test_layer_on_many_elements():
    def run(Wxh):
        Whh = mx.zeros((1, 1))
        return rnn(repeated(whole(D) % 16, N, L), Wxh, Whh, nonlinearity=lambda a: a)

    outputs, gradients = mx.vjp(run, [mx.ones((1, D))], [mx.ones((N, L, 1))])
    assert mx.all(outputs[0] == (whole(D) % 16).sum()).item()
    assert mx.array_equal(gradients[0], N * L * (whole(D)[None] % 16)).item()


@long_part
def test_state_after_many_elements():
    layer = RNN(D, 1, nonlinearity=lambda a: a)
    layer.Wxh, layer.Whh, layer.bias = mx.ones((1, D)), mx.ones((1, 1)), mx.zeros((1,))
    state = layer(repeated(mx.zeros((D,)).at[3].add(1), N, L), return_state="only")
    assert mx.all(state == L).item()


def test_stream_reads_beyond_many_elements():
    layer = RNN(D, 1, nonlinearity=lambda a: a)
    layer.set_dtype(mx.float16)
    layer.Wxh = mx.ones((1, D), mx.float16)
    layer.Whh = layer.bias[None] * 0
    layer.bias = layer.bias * 0
    x = np.zeros((N * L, D), np.float16)  # pages of zeros take no memory
    x[MANY // D] = 1 / 64
    outputs = layer.stream()(x)
    assert np.flatnonzero(outputs).tolist() == [MANY // D]
    assert outputs[MANY // D] == D / 64


# More than 2**31 elements come out.

WIDE = 64
ROWS = 33
STEPS = 2**20


def weights(D, H, dtype):
    """Wxh and Whh of a layer that forgets, so that errors do not grow."""
    mx.random.seed(5)
    Wxh, Whh = mx.random.uniform(-1, 1, (H, D)), mx.random.uniform(-1, 1, (H, H))
    return (Wxh / D).astype(dtype), (Whh / H).astype(dtype)


def assert_near(got, expected, ulps):
    """Within last places of the largest value."""
    got, expected = got.astype(mx.float32), expected.astype(mx.float32)
    error = mx.max(mx.abs(got - expected)).item()
    bound = ulps * EPS[mx.float16] * mx.max(mx.abs(expected)).item()
    assert error <= bound


@long_part
def test_many_outputs_and_inputs():
    dtype = mx.float16
    Wxh, Whh = weights(8, WIDE, dtype)
    row = mx.random.normal((STEPS, 8)).astype(dtype)
    x = mx.broadcast_to(row, (ROWS, STEPS, 8))
    lengths = [STEPS] * ROWS
    lengths[1:4] = [0, STEPS - 1, 5]
    outputs = rnn(x, Wxh, Whh, lengths=lengths)
    assert outputs.size > MANY
    assert mx.all(mx.isfinite(outputs[0])).item() and mx.any(outputs[0] != 0).item()
    for i, length in enumerate(lengths):
        assert mx.array_equal(outputs[i, :length], outputs[0, :length]).item()
        assert not mx.any(outputs[i, length:] != 0).item()
    assert_near(rnn(row, Wxh, Whh), outputs[0], WAYS)

    # The same array as the input, whose last rows lie beyond 2**31 elements.
    Wxh, Whh = weights(WIDE, 4, dtype)
    state = rnn(outputs, Wxh, Whh, return_state="only")
    for i in (0, 2, ROWS - 1):
        assert_near(rnn(outputs[i], Wxh, Whh, return_state="only"), state[i], WAYS)
    product = matmul(outputs, Wxh)
    assert mx.array_equal(product[-1], product[0]).item()
    assert_near(matmul(outputs[-1], Wxh), product[-1], WAYS)


@long_part
def test_gradients_with_many_elements():
    dtype = mx.float16
    Wxh, Whh = weights(WIDE, 4, dtype)
    row = mx.random.normal((STEPS, WIDE)).astype(dtype)
    cotangent = (mx.random.normal((STEPS, 4)) / STEPS**0.5).astype(dtype)

    def of_rows(n):
        x = mx.broadcast_to(row, (n, STEPS, WIDE))
        c = mx.broadcast_to(cotangent, (n, STEPS, 4))
        return mx.vjp(rnn, [x, Wxh, Whh], [c])[1]

    dx, dWxh, dWhh = of_rows(ROWS)
    assert dx.size > MANY
    mx.eval(dx, dWxh, dWhh)
    for i in range(1, ROWS):
        assert mx.array_equal(dx[i], dx[0]).item()
    one_dx, one_dWxh, one_dWhh = of_rows(1)
    assert_near(one_dx[0], dx[0], WAYS)
    assert mx.any(dx[0] != 0).item()
    assert_near(one_dWxh.astype(mx.float32) * ROWS, dWxh, ULPS[dtype])
    assert_near(one_dWhh.astype(mx.float32) * ROWS, dWhh, ULPS[dtype])
