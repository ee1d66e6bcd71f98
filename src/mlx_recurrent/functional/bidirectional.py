"""Both directions of a layer over a sequence in one launch."""

import math
from typing import Any

import mlx.core as mx

from mlx_recurrent import _native
from mlx_recurrent.functional.cells import LSTM, Cell
from mlx_recurrent.functional.devices import StreamOrDevice
from mlx_recurrent.functional.layer_calls import Function, cell_of, judged
from mlx_recurrent.functional.operands import Judged, Operands, bind
from mlx_recurrent.functional.options import (
    BidirectionalOptions,
    BoundOptions,
    Options,
    ask_for_more,
)
from mlx_recurrent.functional.running import bound_options

# The options of a layer itself.
_OWN = {*Options.__annotations__, *LSTM.starts} - {
    *BidirectionalOptions.__annotations__
}

# Multiply-adds of a layer from which on running two at once saves more than it costs to
# put their weights together.
_LEAST_WORK = 4_000_000


def bidirectional(
    function: Function,
    x: mx.array,
    layers: tuple[dict[str, Any], dict[str, Any]],
    states: tuple[tuple[Any, ...], tuple[Any, ...]],
    options: BidirectionalOptions,
) -> mx.array | None:
    """Run two layers over a sequence in one call, the second backward in time.

    Each is a set of weights of one launch, so that they can run at the same time.

    Args:
        function (callable): What both run, such as :func:`rnn`.
        x (array): The sequence, ``(..., L, D)``.
        layers (tuple(dict, dict)): What each layer gives to the function.
        states (tuple(tuple, tuple)): Those before the first step of each.
        options (BidirectionalOptions): The keywords of the call.

    Returns:
        array, optional: The outputs of both, ``(2, ..., L, H)``. ``None`` where two
        calls are as fast, or the layers are not alike.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a shape, a dtype or a value does not fit.
    """
    cell = cell_of(function)
    if not _is_long(cell, x, layers[0]) or any(_is_special(cell, a) for a in layers):
        return None
    one, other = (
        judged(
            function,
            x,
            **{name: a for name, a in layer.items() if name not in _OWN},
            **dict(zip(cell.states, each, strict=True)),
            **options,
        )
        for layer, each in zip(layers, states, strict=True)
    )
    if not isinstance(one.choice.activation, str) or (
        _likeness(one) != _likeness(other)
    ):
        return None
    L, D = x.shape[-2:]
    H = one.sequence.H
    if not _native.runs_apart(
        N=math.prod(one.lead),
        L=L,
        D=D,
        H=H,
        dtype=one.dtype,
        sets=2,
        cell=cell.kernel,
    ):
        return None
    stream = one.place.stream
    first, second = (bind(call, stream) for call in (one, other))
    Whh = _pair(first.Whh, second.Whh, stream)
    bound = bound_options(one, stream) or BoundOptions.of(len(cell.states))
    lengths, reset, mask = bound.lengths, bound.reset, bound.mask
    bound = bound._replace(
        lengths=None if lengths is None else _twice(lengths, 0, stream),
        reset=None if reset is None else _twice(reset, 1, stream),
        mask=None if mask is None else _twice(mask, 1, stream),
        flips=0,
    )
    several = len(cell.states) > 1
    result = _native.recurrence(
        Operands(
            x=_twice(first.x, 2, stream),
            Wxh=_pair(first.Wxh, second.Wxh, stream),
            bias=_pair(first.bias, second.bias, stream),
            Whh=Whh,
            states=tuple(
                _pair(*both, stream)
                for both in zip(first.states, second.states, strict=True)
            ),
            bhn=_pair(first.bhn, second.bhn, stream),
        ),
        one.choice.activation,
        bound,
        several,  # then only the outputs are results for every step
        stream,
    )
    outputs: mx.array = result[0] if several else result
    return outputs


def _is_special(cell: Cell, layer: dict[str, Any]) -> bool:
    bias, Wh = layer[cell.bias], layer[cell.Wh]
    rows = (cell.input_rows * Wh.shape[-1],)
    projects_first = isinstance(bias, mx.array) and bias.shape != rows
    own = {name: value for name, value in layer.items() if name in _OWN}
    return projects_first or ask_for_more(own)


def _is_long(cell: Cell, x: mx.array, layer: dict[str, Any]) -> bool:
    """Whether a call is worth it to put the weights of two layers together."""
    Wx, Wh = layer[cell.Wx], layer[cell.Wh]
    if not all(isinstance(a, mx.array) and a.ndim >= 2 for a in (x, Wx, Wh)):
        return False  # refused by the layer itself
    rows, K = Wh.shape[0], Wx.shape[-1] + Wh.shape[-1]
    work: int = math.prod(x.shape[:-1]) * rows * K
    return work >= _LEAST_WORK


def _likeness(call: Judged) -> tuple[Any, ...]:
    """What is equal for calls that one launch can make."""
    sequence = call.sequence
    arrays = (sequence.Wx, call.Wh, sequence.bias, call.hidden_bias, *call.states)
    return (
        call.choice.activation,
        call.dtype,
        *(None if a is None else a.shape for a in arrays),
    )


def _twice(a: mx.array, tail: int, stream: StreamOrDevice) -> mx.array:
    """Return an array behind a new axis of two; ``tail`` axes follow those of rows."""
    # Not a stack, whose gradient cannot be part of a shapeless function.
    like = mx.zeros((2, *[1] * (a.ndim - tail)), a.dtype, stream=stream)
    return _native.widen(mx.expand_dims(a, 0, stream=stream), tail, like, 0, stream)


def _pair(
    a: mx.array | None, b: mx.array | None, stream: StreamOrDevice
) -> mx.array | None:
    return None if a is None or b is None else _both(a, b, stream)


def _both(a: mx.array, b: mx.array, stream: StreamOrDevice) -> mx.array:
    """Return two arrays of one shape behind a new axis."""
    # Not a selection of MLX's, whose derivative multiplies by zero: NaN of one
    # direction would reach the other.
    return mx.moveaxis(_native.two_steps(a, b, stream), -2, 0, stream=stream)
