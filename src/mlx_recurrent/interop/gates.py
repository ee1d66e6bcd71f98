"""Whose gates the rows of every framework's weights are, and what becomes of biases."""

from typing import Any, NamedTuple, TypeAlias

import mlx.core as mx

from mlx_recurrent import functional
from mlx_recurrent.layers.gru import GRU
from mlx_recurrent.layers.lstm import LSTM
from mlx_recurrent.layers.rnn import RNN

Single: TypeAlias = RNN | GRU | LSTM
Kind: TypeAlias = type[RNN] | type[GRU] | type[LSTM]

KINDS: tuple[Kind, ...] = (RNN, GRU, LSTM)
LISTED = "RNN, GRU or LSTM"
# The rows of the weights, gate by gate, here and in each framework.
_GATES: dict[Kind, str] = {RNN: "a", GRU: "rzn", LSTM: "ifgo"}
_ORDERS: dict[str, dict[Kind, str]] = {
    "torch": _GATES,
    "flax": _GATES,
    "keras": _GATES | {GRU: "zrn"},
    "onnx": _GATES | {GRU: "zrn", LSTM: "iofg"},
}


class Sides(NamedTuple):
    """The weights of one direction: of the input and of the state.

    Args:
        Wx (array): Those of the input, ``(G H, D)`` for ``G`` gates.
        Wh (array): Those of the state, ``(G H, H)``.
        bx (array, optional): The bias of the input's part, ``(G H,)``.
        bh (array, optional): That of the state's part.
    """

    Wx: Any
    Wh: Any
    bx: Any = None
    bh: Any = None


def kind_of(layer: Single) -> Kind:
    """Return which layer of this package one is, also where it is of a subclass."""
    return next(kind for kind in KINDS if isinstance(layer, kind))


def gates_of(kind: Kind, framework: str) -> str:
    """Return the gates of a layer in the order of a framework's rows."""
    return _ORDERS[framework][kind]


def gates_in(kind: Kind) -> int:
    """Return how many gates a layer has."""
    return len(_GATES[kind])


def weight_names(kind: Kind) -> tuple[str, ...]:
    """Return what a layer calls its weights: of the input, of the state, the biases."""
    return kind._weight_names()


def weight_sizes(layer: Single) -> tuple[int, int]:
    """Return the features of a layer's input and state, by its weights."""
    Wx, Wh, *_ = weight_names(kind_of(layer))
    return int(getattr(layer, Wx).shape[1]), int(getattr(layer, Wh).shape[1])


def shapes_of(kind: Kind, Wx: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a layer's parameters by name, from its first."""
    G, (rows, D) = gates_in(kind), Wx.shape
    H = rows // G
    cell = functional.cell_of(kind._function)
    shapes: dict[str, tuple[int, ...]] = {
        cell.Wx: (G * H, D),
        cell.Wh: (G * H, H),
        cell.bias: (G * H,),
    }
    return shapes | dict.fromkeys((cell.hidden_bias, *kind._start_names()), (H,))


def own_of(
    kind: Kind, sides: Sides, framework: str, reset_after: bool = True
) -> dict[str, mx.array]:
    """Return a layer's parameters from a framework's weights.

    The two biases are added, but for the part of a GRU's that the reset multiplies.

    Args:
        kind (type): The layer's class.
        sides (Sides): The weights, arrays of MLX whose shapes fit.
        framework (str): Whose order their gates have.
        reset_after (bool, optional): Whether a GRU's reset comes after the product.
            Default: ``True``.
    """
    with mx.stream(mx.cpu):  # which has float64 too
        order = gates_of(kind, framework)
        Wx, Wh, bx, bh = _ordered(sides, order, _GATES[kind])
        cell = functional.cell_of(kind._function)
        own = {cell.Wx: Wx, cell.Wh: Wh}
        if bx is None and bh is None:
            return own
        if kind is GRU and reset_after:
            zeros = mx.zeros_like(bx if bh is None else bh)
            bh, n = zeros if bh is None else bh, 2 * Wh.shape[1]
            own[cell.hidden_bias] = bh[n:]
            bh = mx.concatenate([bh[:n], zeros[n:]])
        given = [a for a in (bx, bh) if a is not None]
        own[cell.bias] = sum(given[1:], given[0])
        return own


def sides_of(layer: Single, framework: str) -> Sides:
    """Return a layer's weights in a framework's order, ``None`` for no biases.

    The second bias is zero but where a GRU has one.
    """
    kind = kind_of(layer)
    cell = functional.cell_of(kind._function)
    with mx.stream(mx.cpu):
        Wx, Wh, bx = (getattr(layer, name) for name in (cell.Wx, cell.Wh, cell.bias))
        bh = getattr(layer, cell.hidden_bias) if cell.hidden_bias else None
        if bx is not None or bh is not None:
            zeros = mx.zeros((len(Wh),), Wh.dtype)
            bx = zeros if bx is None else bx
            n = 2 * Wh.shape[1]
            bh = zeros if bh is None else mx.concatenate([zeros[:n], bh])
        return _ordered(Sides(Wx, Wh, bx, bh), _GATES[kind], gates_of(kind, framework))


def _ordered(sides: Sides, before: str, after: str) -> Sides:
    """Return weights with their rows in another order of the gates."""
    if before == after:
        return sides

    def ordered(a: mx.array | None) -> mx.array | None:
        blocks = None if a is None else mx.split(a, len(before))
        return blocks and mx.concatenate([blocks[before.index(g)] for g in after])

    return Sides(*map(ordered, sides))
