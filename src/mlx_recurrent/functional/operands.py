"""The operands of the recurrence, judged together and bound to one dtype."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import mlx.core as mx
import numpy as np

from mlx_recurrent import _native
from mlx_recurrent.functional import dispatch
from mlx_recurrent.functional.cells import ELMAN, Cell, States
from mlx_recurrent.functional.devices import StreamOrDevice
from mlx_recurrent.functional.dispatch import Choice
from mlx_recurrent.functional.judging import (
    FLOATING,
    broadcasts,
    dtype_name,
    judge_array,
)
from mlx_recurrent.functional.options import JudgedOptions, judge_options
from mlx_recurrent.functional.placement import Place, Work
from mlx_recurrent.functional.placement import place as place_of
from mlx_recurrent.functional.values import as_dtype

# What the kernels can count: a product of sizes stays below 2**63.
_MOST_ROWS = 2**32
_MOST_ELEMENTS = 2**48
# A product of all sizes that needs no closer look.
_FEW = 2**32


class Sequence(NamedTuple):
    """What the recurrence adds at each step, judged: with a weight, its projection.

    Args:
        cell (Cell): What runs over it.
        name (str): What the user calls ``x``.
        x (array): ``(..., L, D)``, or the projection where there is no ``Wx``.
        Wx (array, optional): The input weight, its rows some times ``H``.
        bias (array, optional): Broadcasts to the projection.
        H (int): How many hidden features there are.
    """

    cell: Cell
    name: str
    x: mx.array
    Wx: mx.array | None
    bias: mx.array | None
    H: int

    @property
    def operands(self) -> dict[str, mx.array]:
        """The arrays that are given, by name."""
        cell = self.cell
        given = {self.name: self.x, cell.Wx: self.Wx, cell.bias: self.bias}
        return {name: a for name, a in given.items() if a is not None}


class Judged(NamedTuple):
    """A call of the recurrence that is right.

    Args:
        choice (Choice): Its path.
        dtype (Dtype): That of the states.
        lead (tuple(int)): The leading axes of the result.
        sequence (Sequence): The inputs.
        Wh (array, optional): The recurrent weight, of a cell that has one.
        hidden_bias (array, optional): That of what the state alone gives.
        states (tuple(array)): Those before the first step.
        options (JudgedOptions, optional): The options.
        place (Place): Where it runs.
        parameters (tuple(array)): What a cell has beside these, ``(H,)`` each.
    """

    choice: Choice
    dtype: mx.Dtype
    lead: tuple[int, ...]
    sequence: Sequence
    Wh: mx.array | None
    hidden_bias: mx.array | None
    states: States
    options: JudgedOptions | None
    place: Place
    parameters: tuple[mx.array, ...] = ()

    @property
    def cell(self) -> Cell:
        """What runs over the sequence."""
        return self.sequence.cell


@dataclass(slots=True)
class Operands:
    """What the kernels take, all of one dtype; they find each by its name."""

    x: mx.array
    Wxh: mx.array | None
    bias: mx.array | None
    Whh: mx.array | None
    states: States
    bhn: mx.array | None = None
    parameters: mx.array | None = None  # side by side


def judge_projection(x: Any, Wx: Any, bias: Any, cell: Cell = ELMAN) -> Sequence:
    """Judge a sequence that ``Wx`` projects."""
    judge_array("x", x)
    judge_array(cell.Wx, Wx)
    times = cell.input_rows
    if Wx.ndim != 2 or Wx.shape[0] % times:
        rows = _times(times)
        raise ValueError(
            f"{cell.Wx} must have shape ({rows}, D), but has shape {Wx.shape}"
        )
    M, D = Wx.shape
    if x.ndim < 2 or x.shape[-1] != D:
        raise ValueError(
            f"x must have shape (..., L, {D}) to fit {cell.Wx} {Wx.shape}, but has "
            f"shape {x.shape}"
        )
    if bias is not None:
        judge_bias(bias, (*x.shape[:-1], M), cell.bias)
    return Sequence(cell, "x", x, Wx, bias, M // times)


def judge_projected(z: Any) -> Sequence:
    """Judge a sequence that is projected already."""
    judge_array("z", z)
    if z.ndim < 2:
        raise ValueError(f"z must have shape (..., L, H), but has shape {z.shape}")
    return Sequence(ELMAN, "z", z, None, None, z.shape[-1])


def judge(
    sequence: Sequence,
    Wh: Any,
    states: tuple[Any, ...],
    choice: Choice,
    options: Mapping[str, Any],
    hidden_bias: Any,
    stream: StreamOrDevice,
    parameters: tuple[Any, ...] = (),
) -> Judged:
    """Judge the operands and the options of the recurrence over a sequence.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a shape, a dtype or a value does not fit.
    """
    cell, x, H = sequence.cell, sequence.x, sequence.H
    lead, L = x.shape[:-2], x.shape[-2]
    square, sizes = True, (0, H)
    if cell.hidden_rows:
        judge_array(cell.Wh, Wh)
        sizes = Wh.shape
        square = sizes == (cell.hidden_rows * H, H)
        if not square:
            choice = _judge_uneven(cell, choice, Wh, L, H, states[0])
    judge_count(sequence.name, x.shape, cell.Wh, sizes)
    if hidden_bias is not None:
        _judge_vector(cell.hidden_bias, hidden_bias, len(cell.hidden_gates) * H)
    for name, vector in zip(cell.parameters, parameters, strict=True):
        _judge_vector(name, vector, H)
    for name, state in zip(cell.states, states, strict=True):
        if state is not None:
            lead = judge_state(name, state, sequence, lead, sizes)
            shape = (*lead, *x.shape[-2:])
            what = f"{sequence.name} broadcast to {name}"
            judge_count(what, shape, cell.Wh, sizes)

    judged = None
    weights: dict[str, mx.array] = {}
    if options:
        begins = {
            name: state is None for name, state in zip(cell.starts, states, strict=True)
        }
        judged = judge_options(options, sequence.name, lead, L, H, begins)
        weights = judged.weights
        if not square and (judged.change_steps or weights):
            raise ValueError(
                f"Whh must have shape (H, H) = ({H}, {H}) where an option is given, "
                f"but has shape {Wh.shape}"
            )
        bias, M = sequence.bias, cell.input_rows * H
        if judged.change_steps and bias is not None and bias.shape != (M,):
            choice = choice.composed(
                f"a bias {bias.shape} that is not ({M},) stands beside optional terms"
            )
    given = {cell.hidden_bias: hidden_bias} | dict(
        zip((*cell.states, *cell.parameters), (*states, *parameters), strict=True)
    )
    operands = {name: a for name, a in given.items() if a is not None}
    dtype = _judge_dtypes(sequence, operands, Wh, weights)
    kernels = choice.activation is not None or choice.readable
    place = place_of(_work(sequence, lead), kernels, stream)
    if place.device == "gpu":
        choice = dispatch.on_gpu(choice)
    return Judged(
        choice,
        dtype,
        lead,
        sequence,
        Wh,
        hidden_bias,
        states,
        judged,
        place,
        parameters,
    )


def _work(sequence: Sequence, lead: tuple[int, ...]) -> Work:
    cell, x = sequence.cell, sequence.x
    L, features = x.shape[-2:]
    D = 0 if sequence.Wx is None else features
    return Work(cell.name, math.prod(lead), L, D, sequence.H, cell.input_rows)


def _judge_vector(name: str, vector: Any, size: int) -> None:
    judge_array(name, vector)
    if vector.shape != (size,):
        raise ValueError(
            f"{name} must have shape ({size},), but has shape {vector.shape}"
        )


def judge_bias(bias: Any, shape: tuple[int, ...], name: str = "bias") -> None:
    """Raise for what does not broadcast to a projection of this shape."""
    judge_array(name, bias)
    if bias.shape != shape[-1:] and not broadcasts(bias.shape, shape):
        raise ValueError(
            f"{name} must have shape {shape[-1:]}, or broadcast to {shape}, but has "
            f"shape {bias.shape}"
        )


def judge_count(
    name: str, shape: tuple[int, ...], weight: str, sizes: tuple[int, ...]
) -> None:
    """Raise where x, the weight ``(M, K)`` or the result cannot be numbered."""
    M, K = sizes
    if 0 < math.prod(shape) * M * K <= _FEW:
        return
    rows = math.prod(shape[:-1])
    if max(rows, M) * max(shape[-1], M, K) > _MOST_ELEMENTS:
        raise ValueError(
            f"{name}, {weight} and the result must each have at most 2**48 elements, "
            f"but {name} has shape {shape} and {weight} {(M, K)}"
        )
    if rows > _MOST_ROWS and math.prod(shape[:-2]) > _MOST_ROWS:
        raise ValueError(
            f"{name} must have at most 2**32 rows before its last two axes, but has "
            f"shape {shape}"
        )


def judge_state(
    name: str,
    state: Any,
    sequence: Sequence,
    lead: tuple[int, ...],
    sizes: tuple[int, ...],
) -> tuple[int, ...]:
    """Judge a state; return the leading axes of the call with it.

    Args:
        name (str): What the user calls it.
        state (array): What was given.
        sequence (Sequence): The inputs.
        lead (tuple(int)): The leading axes without it.
        sizes (tuple(int)): The shape of the recurrent weight.
    """
    cell = sequence.cell
    judge_array(name, state)
    K = sizes[-1]
    shape = state.shape
    # What makes no product is added and multiplied in MLX, and so may broadcast.
    whole = name != cell.states[0] and shape[-1:] in ((), (1,))
    if shape[-1:] != (K,) and not whole:
        raise ValueError(
            f"{name} must have shape (..., {K}){_fitting(cell, sizes)}, but has shape "
            f"{shape}"
        )
    # MLX adds an Elman layer's input to the product with its state.
    if cell is ELMAN:
        M = sizes[0]
        if not broadcasts((*lead, sequence.H), (*shape[:-1], M)):
            raise ValueError(
                f"{name} must have leading axes that those of {sequence.name}, {lead}, "
                f"broadcast to, but has shape {shape}"
            )
        lead = shape[:-1]
        return lead
    try:
        common: tuple[int, ...] = np.broadcast_shapes(lead, shape[:-1])
    except ValueError:
        raise ValueError(
            f"{name} must have leading axes that broadcast with those of "
            f"{sequence.name}, {lead}, but has shape {shape}"
        ) from None
    return common


def _fitting(cell: Cell, sizes: tuple[int, ...]) -> str:
    return f" to fit {cell.Wh} {sizes}" if cell.hidden_rows else ""


def judge_floating(operands: dict[str, mx.array]) -> mx.Dtype:
    """Return the dtype that arrays promote to, by name; raise where it is not real."""
    dtype = mx.result_type(*operands.values())
    if dtype not in FLOATING:
        _refuse_dtypes(operands)
    return dtype


def bind(call: Judged, stream: StreamOrDevice) -> Operands:
    """Return what the kernels take, all of one dtype."""
    _, _, x, Wx, bias, _ = call.sequence
    if Wx is not None and bias is not None and bias.shape != Wx.shape[:1]:
        x, Wx, bias = project(x, Wx, bias, stream), None, None

    def bound(a: mx.array | None) -> mx.array | None:
        return None if a is None else as_dtype(a, call.dtype, stream)

    x = as_dtype(x, call.dtype, stream)
    states = tuple(bound(_of_units(s, call, stream)) for s in starts(call, stream))
    x, states = _broadcast(x, states, call, stream)
    parameters = together(call.parameters, call.dtype, stream)
    return Operands(
        x,
        bound(Wx),
        bound(bias),
        bound(call.Wh),
        states,
        bound(call.hidden_bias),
        parameters,
    )


def without_rows(H: int, dtype: mx.Dtype, stream: StreamOrDevice) -> mx.array:
    """Return what the kernels take for the recurrent weight of a cell that has none."""
    return mx.zeros((0, H), dtype, stream=stream)


def together(
    parameters: tuple[mx.array, ...], dtype: mx.Dtype, stream: StreamOrDevice
) -> mx.array | None:
    """Return the parameters of a cell side by side."""
    each = [as_dtype(a, dtype, stream) for a in parameters]
    if len(each) < 2:
        return each[0] if each else None
    return mx.concatenate(each, stream=stream)


def starts(call: Judged, stream: StreamOrDevice) -> States:
    """Return the states before the first step, ``(..., H)``."""
    options = call.options
    if options is None:
        return call.states
    return tuple(
        given if given is not None or start is None else _of_rows(start, call, stream)
        for given, start in zip(call.states, options.starts.values(), strict=True)
    )


def _of_units(
    state: mx.array | None, call: Judged, stream: StreamOrDevice
) -> mx.array | None:
    """Return a state with a number for each unit."""
    H = call.sequence.H
    if state is None or call.cell is ELMAN or state.shape[-1:] == (H,):
        return state
    return mx.broadcast_to(state, (*state.shape[:-1], H), stream=stream)


def _of_rows(start: mx.array, call: Judged, stream: StreamOrDevice) -> mx.array:
    """Return a state ``(H,)`` for each row."""
    x = call.sequence.x
    if dispatch.has_kernels(stream):  # for any number of rows in a shapeless function
        return _native.widen(start, 1, x, 2, stream)
    return mx.broadcast_to(start, (*x.shape[:-2], *start.shape), stream=stream)


def _broadcast(
    x: mx.array, states: States, call: Judged, stream: StreamOrDevice
) -> tuple[mx.array, States]:
    """Return a sequence and its states with the leading axes of the call."""
    given = [state for state in states if state is not None]
    if all(state.shape[:-1] == x.shape[:-2] for state in given):
        return x, states
    if not dispatch.has_kernels(stream):

        def whole(a: mx.array, tail: int) -> mx.array:
            shape = (*call.lead, *a.shape[a.ndim - tail :])
            return mx.broadcast_to(a, shape, stream=stream)

        x = whole(x, 2)
        return x, tuple(None if s is None else whole(s, 1) for s in states)
    for state in given:
        x = _native.widen(x, 2, state, 1, stream)
    return x, tuple(
        state
        if state is None or state.shape[:-1] == x.shape[:-2]
        else _native.widen(state, 1, x, 2, stream)
        for state in states
    )


def project(
    x: mx.array, w: mx.array, bias: mx.array | None, stream: StreamOrDevice
) -> mx.array:
    """Return ``x w^T + bias`` in the dtype that these promote to."""
    dtype = mx.result_type(*(a for a in (x, w, bias) if a is not None))
    if bias is not None:
        bias = as_dtype(bias, dtype, stream)
    return dispatch.product(
        as_dtype(x, dtype, stream), as_dtype(w, dtype, stream), bias, stream
    )


def _times(count: int) -> str:
    return "H" if count == 1 else f"{count}H"


def _judge_uneven(
    cell: Cell, choice: Choice, Wh: mx.array, L: int, H: int, hidden: mx.array | None
) -> Choice:
    # A nonlinearity may change the number of features, as nn.glu does; Whh is then not
    # square. One that does not can use such a Whh for a single step, or where a single
    # projected feature drives all units.
    even = choice.activation is not None and L != 1 and (H != 1 or hidden is None)
    if Wh.ndim != 2 or even or cell is not ELMAN:
        rows = cell.hidden_rows
        raise ValueError(
            f"{cell.Wh} must have shape ({_times(rows)}, H) = ({rows * H}, {H}), but "
            f"has shape {Wh.shape}"
        )
    return choice.composed(f"Whh {Wh.shape} is not ({H}, {H})")


def _judge_dtypes(
    sequence: Sequence,
    operands: dict[str, mx.array],
    Wh: mx.array | None,
    weights: dict[str, mx.array],
) -> mx.Dtype:
    """Return the dtype of the states.

    Args:
        sequence (Sequence): The inputs.
        operands (dict): What the recurrence has beside its weight, by name.
        Wh (array, optional): The recurrent weight.
        weights (dict): What options add.
    """
    projection, cell = sequence.operands, sequence.cell
    recurrence = operands if Wh is None else operands | {cell.Wh: Wh}
    dtype = judge_floating(recurrence | projection | weights)
    if sequence.Wx is not None:
        projected = judge_floating(projection)
    else:
        projected = mx.result_type(sequence.x)
        if projected not in FLOATING:
            return dtype
    # Without a previous state the first step makes no product with Wh.
    starts = cell.states[0] in operands or cell.starts[0] in weights
    if not starts and sequence.x.shape[-2] == 1:
        return mx.result_type(projected, *operands.values(), *weights.values())
    return mx.result_type(*recurrence.values(), projected, *weights.values())


def _refuse_dtypes(operands: dict[str, mx.array]) -> NoReturn:
    listed = ", ".join(f"{name} {dtype_name(a.dtype)}" for name, a in operands.items())
    raise ValueError(
        f"the operands must promote to a real floating dtype, but are: {listed}"
    )
