"""What MLX's own unit test of its RNN checks (``test_rnn`` in ``python/tests``)."""

import mlx.core as mx
import pytest

from mlx_recurrent import RNN


def test_batch():
    layer = RNN(input_size=5, hidden_size=12, bias=True)
    assert layer(mx.random.normal((2, 25, 5))).shape == (2, 25, 12)


def test_no_bias_and_a_lambda():
    layer = RNN(5, 12, bias=False, nonlinearity=lambda x: mx.maximum(0, x))
    assert layer(mx.random.normal((2, 25, 5))).shape == (2, 25, 12)


def test_a_name_is_no_nonlinearity():
    with pytest.raises(ValueError):
        RNN(5, 12, nonlinearity="tanh")


def test_unbatched_and_its_last_state():
    layer = RNN(5, 12, bias=False, nonlinearity=lambda x: mx.maximum(0, x))
    inp = mx.random.normal((44, 5))
    h_out = layer(inp)
    assert h_out.shape == (44, 12)
    assert layer(inp, hidden=h_out[-1, :]).shape == (44, 12)
