"""Weights under PyTorch's names by those of a layer, as ports of models need them."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from conftest import draw
from mlx_recurrent import GRU, LSTM, RNN, Bidirectional, Stack
from mlx_recurrent.interop import Reversed, torch_weights
from networks import each_layer
from tolerances import agree

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

N, L, D, H = 3, 7, 5, 6


def by_hand(module, kind, place):
    """One direction's weights by our names: biases added but where the reset acts."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    Wx, Wh, *biases = (
        None if a is None else a.detach().float().numpy()
        for a in (getattr(module, f"{name}{place}", None) for name in names)
    )
    own = {"Wxh": Wx, "Whh": Wh} if kind is RNN else {"Wx": Wx, "Wh": Wh}
    if biases[0] is None:
        return own
    if kind is not GRU:
        return own | {"bias": sum(biases)}
    given, state = biases
    return own | {
        "b": np.concatenate([given[: 2 * H] + state[: 2 * H], given[2 * H :]]),
        "bhn": state[2 * H :],
    }


@each_layer
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layers, both", [(1, False), (1, True), (3, True)])
def test_every_layer(kind, bias, layers, both):
    """By hand, also in half the precision, and out of a larger model."""
    module = getattr(torch.nn, kind.__name__)(
        D, H, layers, bias=bias, bidirectional=both
    )
    layer = Stack.build(D, H, layers, bidirectional=both, layer=kind, bias=bias)
    layer = layer if layers > 1 else layer.layers[0]
    expected = {}
    for i in range(layers):
        for way, place in [("forward", ""), ("backward", "_reverse")][: 1 + both]:
            path = f"layers.{i}." * (layers > 1) + f"{way}." * both
            own = by_hand(module, kind, f"_l{i}{place}")
            expected |= {f"{path}{name}": a for name, a in own.items()}
    for dtype in (torch.float32, torch.bfloat16):
        held = {f"a.b.{k}": a.to(dtype) for k, a in module.state_dict().items()}
        found = torch_weights({"a.c": mx.zeros(1), **held}, layer, "a.b")
        assert found.keys() == expected.keys()
        assert found.keys() == dict(tree_flatten(layer.parameters())).keys()
        for name, a in found.items():
            assert str(a.dtype).endswith(str(dtype).partition(".")[2])
            if dtype is torch.float32:
                assert np.array_equal(a, expected[name]), name


@each_layer
def test_cells(kind):
    cell = getattr(torch.nn, f"{kind.__name__}Cell")(D, H)
    found = torch_weights(cell.state_dict(), kind(D, H))
    expected = by_hand(cell, kind, "")
    assert found.keys() == expected.keys()
    for name, a in expected.items():
        assert np.array_equal(found[name], a), name


def test_porting_a_model(rng):
    """As the models of others are ported: by their weights' names in a file."""

    class Ported(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = Stack.build(D, H, 2, bidirectional=True, layer=LSTM)
            self.out = nn.Linear(2 * H, 2)

        def __call__(self, x):
            return self.out(self.rnn(x))

        def sanitize(self, weights):
            rest = {k: v for k, v in weights.items() if not k.startswith("rnn.")}
            own = torch_weights(weights, self.rnn, prefix="rnn")
            return rest | {f"rnn.{name}": a for name, a in own.items()}

    theirs = torch.nn.LSTM(D, H, 2, bidirectional=True, batch_first=True)
    out = torch.nn.Linear(2 * H, 2)
    weights = {f"rnn.{k}": mx.array(v.numpy()) for k, v in theirs.state_dict().items()}
    weights |= {f"out.{k}": mx.array(v.numpy()) for k, v in out.state_dict().items()}
    model = Ported()
    model.load_weights(list(model.sanitize(weights).items()))
    x = draw(rng, (N, L, D), mx.float32)
    with torch.no_grad():
        expected = out(theirs(torch.tensor(np.array(x)))[0])
    agree(model(x), mx.array(expected.numpy()))
    # A file in half the precision.
    half = {k: v.astype(mx.float16) for k, v in weights.items()}
    own = torch_weights(half, model.rnn, "rnn.")
    assert {a.dtype for a in own.values()} == {mx.float16}


@pytest.mark.parametrize(
    "weights, layer, prefix, error, message",
    [
        (
            "LSTM",
            LSTM(D, 4),
            "",
            ValueError,
            r"layer, of class LSTM, must have \{'Wx': \(16, 5",
        ),
        (
            "LSTM",
            GRU(D, H),
            "",
            ValueError,
            r"layer, of class GRU, .*\(24, 6\) with biases, of",
        ),
        (
            "GRU",
            GRU(D, H, bias=False),
            "",
            ValueError,
            "layer, of class GRU, must have",
        ),
        ("GRU", GRU(D, H, reset_after=False), "", ValueError, "has reset_after=False,"),
        (
            "GRU",
            Stack.build(D, H, 2, layer=GRU),
            "",
            ValueError,
            "must hold weight_ih_l1, but",
        ),
        ("two", LSTM(D, H), "", ValueError, "layer, but hold 'bias_hh_l1', for which"),
        (
            "LSTM",
            LSTM(D, H),
            "rnn",
            ValueError,
            "layer's weights in weights, but is 'r",
        ),
        ("LSTM", LSTM(D, H), 3, TypeError, "prefix must be a string, but is int"),
        ("no dict", LSTM(D, H), "", TypeError, "weights must be a dict of arrays, but"),
        (
            "LSTM",
            nn.LSTM(D, H),
            "",
            TypeError,
            "layer must be an mlx_recurrent.RNN, GR",
        ),
        ("LSTM", Reversed(LSTM(D, H)), "", TypeError, "layer must be an mlx_recurrent"),
        (
            "empty",
            LSTM(D, H),
            "",
            ValueError,
            "weights must hold weights, but is empty",
        ),
        ("projected", LSTM(D, H), "", ValueError, "weights must have no projections"),
        (
            "cell",
            Stack([GRU(D, H), GRU(H, H)]),
            "",
            ValueError,
            "weights must hold weight_ih_l0, but does not",
        ),
        (
            "cell",
            Bidirectional(GRU(D, H)),
            "",
            ValueError,
            "weights must hold weight_ih_l0, but does not",
        ),
    ],
)
def test_refused_weights(weights, layer, prefix, error, message):
    weights = {
        "LSTM": lambda: torch.nn.LSTM(D, H).state_dict(),
        "GRU": lambda: torch.nn.GRU(D, H).state_dict(),
        "two": lambda: torch.nn.LSTM(D, H, 2).state_dict(),
        "projected": lambda: torch.nn.LSTM(D, H, proj_size=3).state_dict(),
        "cell": lambda: torch.nn.GRUCell(D, H).state_dict(),
        "no dict": lambda: [mx.zeros(3)],
        "empty": dict,
    }[weights]()
    with pytest.raises(error, match=message):
        torch_weights(weights, layer, prefix)
