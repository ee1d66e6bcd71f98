"""The operands of the recurrence, judged together and bound to one dtype."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import mlx.core as mx

from mlx_recurrent import _native
from mlx_recurrent.functional import dispatch
from mlx_recurrent.functional.dispatch import Choice, Nonlinearity, StreamOrDevice
from mlx_recurrent.functional.judging import (
    FLOATING,
    broadcasts,
    dtype_name,
    judge_array,
    judge_nonlinearity,
    judge_stream,
)
from mlx_recurrent.functional.options import JudgedOptions, ScanOptions, judge_options
from mlx_recurrent.functional.values import as_dtype

# What the kernels can count: a product of sizes stays below 2**63.
_MOST_ROWS = 2**32
_MOST_ELEMENTS = 2**48
# A product of all sizes that needs no closer look.
_FEW = 2**32


class Sequence(NamedTuple):
    """What the recurrence adds at each step, judged: with a weight, its projection.

    Args:
        name (str): What the user calls ``x``.
        x (array): ``(..., L, D)``, or ``(..., L, H)`` where there is no ``Wxh``.
        Wxh (array, optional): The input weight, ``(H, D)``.
        bias (array, optional): Broadcasts to ``(..., L, H)``.
        H (int): How many hidden features there are.
    """

    name: str
    x: mx.array
    Wxh: mx.array | None
    bias: mx.array | None
    H: int

    @property
    def operands(self) -> dict[str, mx.array]:
        """The arrays that are given, by name."""
        given = {self.name: self.x, "Wxh": self.Wxh, "bias": self.bias}
        return {name: a for name, a in given.items() if a is not None}


class Judged(NamedTuple):
    """A call of the recurrence that is right; the dtype is that of the state."""

    choice: Choice
    dtype: mx.Dtype
    sequence: Sequence
    Whh: mx.array
    hidden: mx.array | None
    options: JudgedOptions | None

    @property
    def lead(self) -> tuple[int, ...]:
        """The leading axes of the result."""
        if self.hidden is None:
            return self.sequence.x.shape[:-2]
        return self.hidden.shape[:-1]


@dataclass(slots=True)
class Operands:
    """What the kernels take, all of one dtype; they find each by its name."""

    x: mx.array
    Wxh: mx.array | None
    bias: mx.array | None
    Whh: mx.array
    hidden: mx.array | None


def judge_projection(x: Any, Wxh: Any, bias: Any) -> Sequence:
    """Judge a sequence that ``Wxh`` projects."""
    judge_array("x", x)
    judge_array("Wxh", Wxh)
    if Wxh.ndim != 2:
        raise ValueError(f"Wxh must have shape (H, D), but has shape {Wxh.shape}")
    H, D = Wxh.shape
    if x.ndim < 2 or x.shape[-1] != D:
        raise ValueError(
            f"x must have shape (..., L, {D}) to fit Wxh {Wxh.shape}, but has shape "
            f"{x.shape}"
        )
    if bias is not None:
        judge_bias(bias, (*x.shape[:-1], H))
    return Sequence("x", x, Wxh, bias, H)


def judge_projected(z: Any) -> Sequence:
    """Judge a sequence that is projected already."""
    judge_array("z", z)
    if z.ndim < 2:
        raise ValueError(f"z must have shape (..., L, H), but has shape {z.shape}")
    return Sequence("z", z, None, None, z.shape[-1])


def judge(
    sequence: Sequence,
    Whh: Any,
    hidden: Any,
    nonlinearity: Nonlinearity | None,
    stream: StreamOrDevice,
    options: ScanOptions,
) -> Judged:
    """Judge the operands and the options of the recurrence over a sequence.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a shape, a dtype or a value does not fit.
    """
    judge_stream(stream)
    if nonlinearity is not None:
        judge_nonlinearity(nonlinearity)
    choice = dispatch.choose(nonlinearity, stream)
    judge_array("Whh", Whh)
    x, H = sequence.x, sequence.H
    lead, L = x.shape[:-2], x.shape[-2]
    if Whh.shape != (H, H):
        choice = _judge_uneven(choice, Whh, L, H, hidden)
    judge_count(sequence.name, x.shape, "Whh", Whh.shape)
    if hidden is not None:
        judge_array("hidden", hidden)
        judge_hidden(hidden, sequence.name, Whh, (*lead, H))
        lead = hidden.shape[:-1]
        shape = (*lead, *x.shape[-2:])
        judge_count(f"{sequence.name} broadcast to hidden", shape, "Whh", Whh.shape)

    judged = None
    weights: dict[str, mx.array] = {}
    if options:
        judged = judge_options(options, sequence.name, lead, L, H, hidden is None)
        weights = judged.weights
        if Whh.shape != (H, H) and (judged.change_steps or weights):
            raise ValueError(
                f"Whh must have shape (H, H) = ({H}, {H}) where an option is given, "
                f"but has shape {Whh.shape}"
            )
        bias = sequence.bias
        if judged.change_steps and bias is not None and bias.shape != (H,):
            choice = choice.composed(
                f"a bias {bias.shape} that is not ({H},) stands beside optional terms"
            )
    dtype = _judge_dtypes(sequence, Whh, hidden, weights)
    return Judged(choice, dtype, sequence, Whh, hidden, judged)


def judge_bias(bias: Any, shape: tuple[int, ...]) -> None:
    """Raise for what does not broadcast to a projection of this shape."""
    judge_array("bias", bias)
    if bias.shape != shape[-1:] and not broadcasts(bias.shape, shape):
        raise ValueError(
            f"bias must have shape {shape[-1:]}, or broadcast to {shape}, but has "
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


def judge_hidden(
    hidden: mx.array, name: str, Whh: mx.array, step: tuple[int, ...]
) -> None:
    """Raise for a state that a step of x, ``(..., H)``, does not broadcast to."""
    M, K = Whh.shape
    shape = hidden.shape
    if not shape or shape[-1] != K:
        raise ValueError(
            f"hidden must have shape (..., {K}) to fit Whh {Whh.shape}, but has shape "
            f"{shape}"
        )
    if not broadcasts(step, (*shape[:-1], M)):
        raise ValueError(
            f"hidden must have leading axes that those of {name}, {step[:-1]}, "
            f"broadcast to, but has shape {shape}"
        )


def judge_floating(operands: dict[str, mx.array]) -> mx.Dtype:
    """Return the dtype that arrays promote to, by name; raise where it is not real."""
    dtype = mx.result_type(*operands.values())
    if dtype not in FLOATING:
        _refuse_dtypes(operands)
    return dtype


def bind(call: Judged, stream: StreamOrDevice) -> Operands:
    """Return what the kernels take, all of one dtype."""
    dtype = call.dtype
    _, x, Wxh, bias, _ = call.sequence
    if Wxh is not None and bias is not None and bias.shape != Wxh.shape[:1]:
        x, Wxh, bias = project(x, Wxh, bias, stream), None, None
    hidden = start(call, stream)
    x, Whh = as_dtype(x, dtype, stream), as_dtype(call.Whh, dtype, stream)
    Wxh = None if Wxh is None else as_dtype(Wxh, dtype, stream)
    bias = None if bias is None else as_dtype(bias, dtype, stream)
    if hidden is not None:
        hidden = as_dtype(hidden, dtype, stream)
        if hidden.shape[:-1] != x.shape[:-2]:
            x = _native.widen(x, 2, hidden, 1, stream)
    return Operands(x, Wxh, bias, Whh, hidden)


def start(call: Judged, stream: StreamOrDevice) -> mx.array | None:
    """Return the state before the first step, if there is one: ``(..., H)``."""
    hidden0 = None if call.options is None else call.options.hidden0
    if call.hidden is not None or hidden0 is None:
        return call.hidden
    x = call.sequence.x
    if dispatch.has_kernels(stream):  # for any number of rows in a shapeless function
        return _native.widen(hidden0, 1, x, 2, stream)
    return mx.broadcast_to(hidden0, (*x.shape[:-2], *hidden0.shape), stream=stream)


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


def _judge_uneven(
    choice: Choice, Whh: mx.array, L: int, H: int, hidden: mx.array | None
) -> Choice:
    # A nonlinearity may change the number of features, as nn.glu does; Whh is then not
    # square. One that does not can use such a Whh for a single step, or where a single
    # projected feature drives all units.
    even = choice.activation is not None and L != 1 and (H != 1 or hidden is None)
    if Whh.ndim != 2 or even:
        raise ValueError(
            f"Whh must have shape (H, H) = ({H}, {H}), but has shape {Whh.shape}"
        )
    return choice.composed(f"Whh {Whh.shape} is not ({H}, {H})")


def _judge_dtypes(
    sequence: Sequence,
    Whh: mx.array,
    hidden: mx.array | None,
    weights: dict[str, mx.array],
) -> mx.Dtype:
    """Return the dtype of the state."""
    projection = sequence.operands
    recurrence = {"Whh": Whh} if hidden is None else {"hidden": hidden, "Whh": Whh}
    dtype = judge_floating(recurrence | projection | weights)
    if sequence.Wxh is not None:
        projected = judge_floating(projection)
    else:
        projected = mx.result_type(sequence.x)
        if projected not in FLOATING:
            return dtype
    # Without a previous state the first step makes no product with Whh.
    starts = hidden is not None or "hidden0" in weights
    if not starts and sequence.x.shape[-2] == 1:
        return mx.result_type(projected, *weights.values())
    return mx.result_type(*recurrence.values(), projected, *weights.values())


def _refuse_dtypes(operands: dict[str, mx.array]) -> NoReturn:
    listed = ", ".join(f"{name} {dtype_name(a.dtype)}" for name, a in operands.items())
    raise ValueError(
        f"the operands must promote to a real floating dtype, but are: {listed}"
    )
