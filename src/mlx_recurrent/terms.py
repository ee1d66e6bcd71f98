"""The optional terms of a call: what they are, and the judgement of each."""

import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple, TypeAlias, TypedDict

import mlx.core as mx
import numpy as np

from mlx_recurrent.judging import (
    dtype_name,
    float_of,
    judge_array,
    shown,
    type_name,
)
from mlx_recurrent.values import values_of

# A nested sequence of numbers, or an array.
Values: TypeAlias = Sequence[Any] | np.ndarray | mx.array | int

# The default probability. A call without options knows it by its identity.
ZERO = 0.0

_FLOATING = (mx.float32, mx.float16, mx.bfloat16, mx.float64)


class CallOptions(TypedDict, total=False):
    """The keywords of a layer's call that choose terms."""

    lengths: Values | None
    reset: Values | None
    reverse: bool
    checkpoint_every: int | None
    truncate_every: int | None


class ScanOptions(CallOptions, total=False):
    """The keywords of :func:`scan` that choose terms."""

    leak: float | mx.array | None
    zoneout: float
    recurrent_dropout: float
    hidden0: mx.array | None
    training: bool


class Options(ScanOptions, total=False):
    """The keywords of :func:`rnn` that choose terms."""

    input_dropout: float


class Asked(NamedTuple):
    """The options of a call as they were given. The defaults ask for nothing."""

    leak: float | mx.array | None = None
    zoneout: float = ZERO
    input_dropout: float = ZERO
    recurrent_dropout: float = ZERO
    hidden0: mx.array | None = None
    training: bool = True
    lengths: Values | None = None
    reset: Values | None = None
    reverse: bool = False
    checkpoint_every: int | None = None
    truncate_every: int | None = None


class Terms(NamedTuple):
    """The optional terms of a call, judged. Letters: H hidden features, L steps.

    Args:
        lengths (array, optional): How many steps each row runs, ``int32``, of the shape
            of the leading axes. Those that could not be read may exceed L, which
            stands for them then.
        reset (array, optional): Where an episode starts: booleans, leading axes +
            ``(L,)``.
        reverse (bool): Whether time runs backwards.
        hidden0 (array, optional): The state after a reset, ``(H,)``. ``None`` is none,
            as before a first step without ``hidden``.
        leak (array, optional): ``(H,)``. ``None`` is one.
        zoneout (float): How probably a unit keeps its state at a step.
        recurrent_dropout (float): How probably a unit's state is left out of the
            products of a sequence.
        input_dropout (float): How probably a feature is left out of a sequence.
        key (array, optional): Of the masks: two ``uint32``. ``None`` until it is drawn.
        checkpoint_every (int): Which states are kept for a derivative. 0 is all.
        truncate_every (int): After how many steps a derivative ends. 0 is never.
    """

    lengths: mx.array | None
    reset: mx.array | None
    reverse: bool
    hidden0: mx.array | None
    leak: mx.array | None
    zoneout: float
    recurrent_dropout: float
    input_dropout: float
    key: mx.array | None
    checkpoint_every: int
    truncate_every: int

    @property
    def is_random(self) -> bool:
        """Whether a mask is drawn."""
        return bool(self.zoneout or self.recurrent_dropout or self.input_dropout)


def judge_lengths(values: Any, name: str, lead: tuple[int, ...], L: int) -> mx.array:
    """Return the lengths of rows as an array.

    Args:
        values (array): What the user gave.
        name (str): What has the leading axes.
        lead (tuple(int)): The leading axes.
        L (int): How many steps there are.

    Raises:
        TypeError: If these are no numbers.
        ValueError: If they are no integers, their shape is another or, where they can
            be read, one is outside 0..L.
    """
    given, found = _numbers("lengths", values, "integers", "iu")
    if given.shape != lead:
        raise ValueError(
            f"lengths must have shape {lead}, the leading axes of {name}, but has "
            f"shape {given.shape}"
        )
    if found is None:
        if given.dtype == mx.uint64:  # what int64 lacks would turn negative
            given = mx.minimum(given, mx.array(2**31, mx.uint64))
        # L itself may differ from call to call of a shapeless function.
        wide = mx.clip(given.astype(mx.int64), 0, 2**31 - 1)
        return wide.astype(mx.int32)
    _judge_each("lengths", found, (found >= 0) & (found <= L), f"from 0 to L = {L}")
    return given.astype(mx.int32)


def judge_reset(
    values: Any, name: str, lead: tuple[int, ...], steps: tuple[int, ...]
) -> mx.array:
    """Return where episodes start as an array of booleans.

    Args:
        values (array): What the user gave.
        name (str): What has the leading axes.
        lead (tuple(int)): The leading axes.
        steps (tuple(int)): The axis of time, ``(L,)``, or ``()`` for one step.

    Raises:
        TypeError: If these are no numbers.
        ValueError: If they are no booleans, their shape is another or, where they can
            be read, an integer is neither 0 nor 1.
    """
    given, found = _numbers("reset", values, "booleans, or integers 0 and 1", "biu")
    if given.shape != lead + steps:
        what = "leading axes and steps" if steps else "leading axes"
        raise ValueError(
            f"reset must have shape {lead + steps}, the {what} of {name}, but has "
            f"shape {given.shape}"
        )
    if given.dtype == mx.bool_:
        return given
    if found is not None:
        _judge_each("reset", found, (found == 0) | (found == 1), "0 or 1")
    return given != 0


def judge_leak(value: Any, H: int) -> float | mx.array:
    """Return a leak: a number in (0, 1], or an array ``(H,)`` of any values."""
    if isinstance(value, Real):
        leak = float_of(value)
        if not 0 < leak <= 1:
            raise ValueError(f"leak must be in (0, 1], but is {shown(value)}")
        return leak
    if not isinstance(value, mx.array):
        raise TypeError(
            f"leak must be a number or an mlx.core.array, but is {type_name(value)}"
        )
    if value.shape != (H,):
        raise ValueError(f"leak must have shape ({H},), but has shape {value.shape}")
    if value.dtype not in _FLOATING:
        raise ValueError(
            f"leak must be of a real floating dtype, but is {dtype_name(value.dtype)}"
        )
    return value


def judge_leaks(value: Any, H: int) -> float | mx.array:
    """Return the leak of a layer, whose values are judged in an array too."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufc":
            raise TypeError(f"leak must hold numbers, but has dtype {value.dtype}")
        value = _of_numpy(value)
    leak = judge_leak(value, H)
    if isinstance(leak, mx.array):
        wide = mx.float64 if leak.dtype == mx.float64 else mx.float32
        if (found := _read(leak.astype(wide))) is not None:
            _judge_each("leak", found, (found > 0) & (found <= 1), "in (0, 1]")
    return leak


def judge_hidden0(value: Any, H: int) -> None:
    """Raise for a state to begin with that is no array ``(H,)`` of real numbers."""
    judge_array("hidden0", value)
    if value.shape != (H,):
        raise ValueError(f"hidden0 must have shape ({H},), but has shape {value.shape}")
    if mx.issubdtype(value.dtype, mx.complexfloating):
        raise ValueError(
            f"hidden0 must be of a real dtype, but is {dtype_name(value.dtype)}"
        )


def judge_probability(name: str, value: Any) -> float:
    """Return a probability, in [0, 1)."""
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, but is {type_name(value)}")
    if not 0 <= (probability := float_of(value)) < 1:
        raise ValueError(f"{name} must be in [0, 1), but is {shown(value)}")
    return probability


def judge_every(name: str, value: Any) -> int:
    """Return a number of steps, at least 1, or 0 for ``None``."""
    if value is None:
        return 0
    try:
        every = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} must be an integer or None, but is {type_name(value)}"
        ) from None
    if not 1 <= every < 2**31:
        raise ValueError(f"{name} must be from 1 to 2**31 - 1, but is {shown(every)}")
    return every


def judge_flag(name: str, value: Any) -> bool:
    """Return a boolean."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a bool, but is {type_name(value)}")
    return bool(value)


def _numbers(
    name: str, values: Any, rule: str, kinds: str
) -> tuple[mx.array, np.ndarray | None]:
    """Return an array of these kinds of numbers, and the numbers if they can be read.

    An array of MLX that is not computed yet is evaluated.
    """
    if isinstance(values, mx.array):
        if not mx.issubdtype(values.dtype, mx.integer) and not (
            "b" in kinds and values.dtype == mx.bool_
        ):
            _refuse_dtype(name, rule, dtype_name(values.dtype))
        # Booleans have no value that would be wrong.
        return values, None if values.dtype == mx.bool_ else _read(values)
    try:
        found = np.asarray(values)
    except ValueError:  # rows of several lengths
        raise ValueError(
            f"{name} must be {rule}, the same number in each row"
        ) from None
    if found.dtype.kind not in "biufc":
        given = shown(values) if found.ndim else type_name(values)
        raise TypeError(f"{name} must be {rule}, but is {given}")
    if not found.size and not isinstance(values, np.ndarray):
        found = found.astype(np.int32)  # an empty list has no dtype
    if found.dtype.kind not in kinds:
        _refuse_dtype(name, rule, str(found.dtype))
    return _of_numpy(found), found


def _of_numpy(values: np.ndarray) -> mx.array:
    """Return an array that may lie in memory in any way, and be of any byte order."""
    dtype = values.dtype.newbyteorder("=")
    if dtype == np.longdouble:  # MLX has none
        dtype = np.dtype(np.float64)
    return mx.array(np.asarray(values, dtype, order="C"))


def _refuse_dtype(name: str, rule: str, dtype: str) -> None:
    raise ValueError(f"{name} must be {rule}, but are {dtype}")


def _read(values: mx.array) -> np.ndarray | None:
    """Return the values, or ``None`` inside a compiled function or a vmap."""
    try:
        return values_of(values)
    except ValueError:
        return None


def _judge_each(name: str, found: np.ndarray, good: np.ndarray, rule: str) -> None:
    if good.all():
        return
    place = tuple(int(i) for i in np.argwhere(~good)[0])
    index = f"[{', '.join(map(str, place))}]" if place else ""
    raise ValueError(f"{name} must be {rule}, but {name}{index} is {found[place]}")
