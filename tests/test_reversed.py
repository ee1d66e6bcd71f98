"""A layer that runs backward in time."""

import mlx.core as mx
import pytest

from conftest import draw
from mlx_recurrent import LSTM, RNN, Stack
from mlx_recurrent.interop import Reversed
from tolerances import agree, equal

N, L, D, H = 3, 6, 4, 5


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"lengths": [6, 0, 3]},
        {"reset": [[0, 0, 1, 0, 0, 0]] * 3},
        {"truncate_every": 2},
        {"checkpoint_every": 2},
    ],
    ids=lambda keywords: ", ".join(keywords) or "plain",
)
def test_it_is_the_layer_backwards(rng, keywords):
    """Outputs, states and gradients."""
    layer = RNN(D, H)
    x, hidden = draw(rng, (N, L, D), mx.float32), draw(rng, (N, H), mx.float32)
    cotangents = [draw(rng, (N, L, H), mx.float32), hidden]
    for reverse in (False, True):

        def mine(*arrays, reverse=reverse):
            return Reversed(layer)(
                *arrays, return_state=True, reverse=reverse, **keywords
            )

        def theirs(*arrays, reverse=reverse):
            return layer(*arrays, return_state=True, reverse=not reverse, **keywords)

        for a, b in zip(
            *(mx.vjp(run, [x, hidden], cotangents) for run in (mine, theirs)),
            strict=True,
        ):
            for ours, others in zip(a, b, strict=True):
                equal(ours, others)


def test_the_output_of_an_lstm_is_its_hidden_state(rng):
    layer, x = LSTM(D, H), draw(rng, (N, L, D), mx.float32)
    every, _ = layer(x, reverse=True)
    equal(Reversed(layer)(x), every)
    outputs, state = Reversed(layer)(x, return_state=True)
    equal(outputs, every)
    first, rest = x[:, :3], x[:, 3:]
    _, after = layer(rest, reverse=True, return_state=True)
    close = Reversed(layer)(first, after, return_state="only")
    for a, b in zip(close, state, strict=True):
        agree(a, b)
    assert Reversed(layer).plan(x, after).path == "native"
    with pytest.raises(TypeError, match=r"hidden must be a pair \(hidden, cell\)"):
        Reversed(layer)(x, mx.zeros((N, H)))


def test_in_a_stack(rng):
    stack = Stack([Reversed(RNN(D, H)), RNN(H, 2)])
    x = draw(rng, (N, L, D), mx.float32)
    first, second = stack.layers
    equal(stack(x), second(first.backward(x, reverse=True)))
    with pytest.raises(ValueError, match=r"layers\[1\] must take the 5 features"):
        Stack([Reversed(RNN(D, H)), RNN(4, 2)])


def test_weights_and_errors(tmp_path):
    layer = Reversed(RNN(D, H))
    path = str(tmp_path / "weights.safetensors")
    layer.save_weights(path)
    assert set(mx.load(path)) == {"backward.Wxh", "backward.Whh", "backward.bias"}
    with pytest.raises(TypeError, match="backward must be a layer, but is int"):
        Reversed(3)
    with pytest.raises(TypeError, match=r"backward must .* the class RNN: give RNN"):
        Reversed(RNN)
    with pytest.raises((TypeError, ValueError), match="reverse must be"):
        layer(mx.zeros((L, D)), reverse=2)
