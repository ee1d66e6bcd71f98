"""The options of the recurrence, in the three states that they have in a call.

Raw, as the user gave them: a dictionary, :class:`Options`. Judged: right, and as the
mode has them. Bound: of the call's dtype.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, cleandoc, signature
from numbers import Real
from textwrap import indent
from typing import Any, NamedTuple, TypeAlias, TypedDict, TypeVar

import mlx.core as mx
import numpy as np

from mlx_recurrent.functional.devices import StreamOrDevice
from mlx_recurrent.functional.judging import (
    FLOATING,
    dtype_name,
    float_of,
    judge_array,
    judge_every,
    judge_flag,
    judge_probability,
    shown,
    type_name,
)
from mlx_recurrent.functional.values import as_dtype, values_of

# A nested sequence of numbers, or an array.
Values: TypeAlias = Sequence[Any] | np.ndarray | mx.array | int

_F = TypeVar("_F", bound=Callable[..., Any])


class BidirectionalOptions(TypedDict, total=False):
    """The options of one call, in both directions or one.

    Args:
        lengths (array, optional): How many steps each row runs: integers, of the shape
            of the leading axes. Later outputs are zero, the state is held, and nothing
            in the padding reaches a result or a gradient. An array of MLX is evaluated
            to check it; inside a compiled function, and along a vmapped axis, it is
            clamped. Default: ``None``.
        reset (array, optional): Where an episode starts: booleans, leading axes +
            ``(L,)``. Nothing passes between the step before and this one, in either
            direction. Default: ``None``.
        mask (array, optional): Which steps are not skipped: booleans, leading axes +
            ``(L,)``. Where one is false the state is held, and is the output there, and
            nothing of the input there reaches a result or a gradient. A ``reset`` there
            restarts the state. Default: ``None``.
        checkpoint_every (int, optional): Keep every so many states for a derivative and
            compute the others again. The composed path keeps all. Default: ``None``.
        truncate_every (int, optional): Truncated back-propagation through time: after
            so many steps of a row the state passes as a constant. Default: ``None``.
    """

    lengths: Values | None
    reset: Values | None
    mask: Values | None
    checkpoint_every: int | None
    truncate_every: int | None


class CallOptions(BidirectionalOptions, total=False):
    """The options of one call of a layer.

    Args:
        reverse (bool, optional): Whether time runs backwards. Outputs stay at their
            inputs' places. Default: ``False``.
    """

    reverse: bool


class ZoneoutOptions(TypedDict, total=False):
    """The options of a cell with one state.

    Args:
        zoneout (float, optional): The probability that a unit keeps its state at a
            step. In evaluation the expectation is used. Default: ``0``.
    """

    zoneout: float


class CellOptions(CallOptions, total=False):
    """The options of any cell.

    Args:
        recurrent_dropout (float, optional): The probability that a unit is left out of
            the product with the recurrent weight, for a whole sequence. Default: ``0``.
        hidden0 (array, optional): The state that episodes start from, ``(H,)``: after a
            reset, and at first where there is no ``hidden``. Default: ``None``.
        training (bool, optional): Whether masks are drawn, from MLX's random state.
            Default: ``True``.
    """

    recurrent_dropout: float
    hidden0: mx.array | None
    training: bool


class InputOptions(TypedDict, total=False):
    """The options of a projection.

    Args:
        input_dropout (float, optional): The probability that a feature of the input is
            zero, for a whole sequence. Default: ``0``.
    """

    input_dropout: float


class ScanOptions(CellOptions, ZoneoutOptions, total=False):
    """The options of an Elman cell.

    Args:
        leak (float or array, optional): :math:`k`, in (0, 1], or an array ``(H,)`` of
            any values. ``None`` is 1. Default: ``None``.
    """

    leak: float | mx.array | None


class Options(ScanOptions, InputOptions, total=False):
    """The options of an Elman layer, as they were given."""


class GRUOptions(CellOptions, ZoneoutOptions, InputOptions, total=False):
    """The options of a GRU layer, as they were given."""


class LSTMOptions(CellOptions, InputOptions, total=False):
    """The options of an LSTM layer, as they were given.

    Args:
        cell0 (array, optional): The cell state that episodes start from, ``(H,)``, as
            ``hidden0``. Default: ``None``.
        zoneout (float or tuple(float, float), optional): The probability that a unit
            keeps its state at a step, or that for the hidden state and that for the
            cell state. In evaluation the expectation is used. Default: ``0``.
    """

    cell0: mx.array | None
    zoneout: float | tuple[float, float]


# What asks for nothing, in the order of signatures.
_DEFAULTS: Mapping[str, Any] = {
    "lengths": None,
    "reset": None,
    "mask": None,
    "checkpoint_every": None,
    "truncate_every": None,
    "reverse": False,
    "leak": None,
    "zoneout": 0.0,
    "recurrent_dropout": 0.0,
    "hidden0": None,
    "cell0": None,
    "training": True,
    "input_dropout": 0.0,
}


class JudgedOptions(NamedTuple):
    """Options that are right, and as the mode has them; what is idle is left out.

    Args:
        lengths (array, optional): How many steps each row runs, ``int32``, of the shape
            of the leading axes. Those that could not be read may exceed L, which
            stands for them then.
        reset (array, optional): Where an episode starts: booleans, leading axes +
            ``(L,)``.
        mask (array, optional): Which steps are not skipped, in the same form.
        reverse (bool): Whether time runs backwards.
        starts (dict): The states to start from, ``(H,)``, by name, or ``None``.
        leak (float or array, optional): ``(H,)``, or that of all units.
        kept (tuple(float)): What a unit keeps of each state where zoneout is an
            expectation.
        zoneout (tuple(float)): How probably a unit keeps each of its states at a step.
        recurrent_dropout (float): How probably a unit's state is left out of the
            products of a sequence.
        input_dropout (float): How probably a feature is left out of a sequence.
        checkpoint_every (int): Which states are kept for a derivative. 0 is all.
        truncate_every (int): After how many steps a derivative ends. 0 is never.
    """

    lengths: mx.array | None
    reset: mx.array | None
    mask: mx.array | None
    reverse: bool
    starts: Mapping[str, mx.array | None]
    leak: float | mx.array | None
    kept: tuple[float, ...]
    zoneout: tuple[float, ...]
    recurrent_dropout: float
    input_dropout: float
    checkpoint_every: int
    truncate_every: int

    @property
    def weights(self) -> dict[str, mx.array]:
        """Those that have a say in the dtype of the state."""
        given = {"leak": self.leak, **self.starts}
        return {name: a for name, a in given.items() if isinstance(a, mx.array)}

    @property
    def change_steps(self) -> bool:
        """Whether they ask for other steps than a call without options makes."""
        others = (*self._replace(starts={}, kept=(), zoneout=()),)
        return any(
            isinstance(value, mx.array) or value
            for value in (*others, *self.kept, *self.zoneout)
        )

    def bind(
        self, H: int, dtype: mx.Dtype, stream: StreamOrDevice
    ) -> "BoundOptions | None":
        """Return what a call in this dtype takes; ``None`` where no step changes."""
        if not self.change_steps:
            return None

        def share(leak: float | mx.array | None, kept: float) -> mx.array | None:
            new = new_share(leak, kept, dtype, stream)
            if isinstance(new, float):
                # An array: beside float64 MLX 0.32.0 rounds a number to float32.
                return mx.full((H,), mx.array(new, dtype), stream=stream)
            return new

        def start(state: mx.array | None) -> mx.array | None:
            if state is None or self.reset is None:
                return None
            return as_dtype(state, dtype, stream)

        return BoundOptions(
            lengths=self.lengths,
            reset=self.reset,
            mask=self.mask,
            reverse=self.reverse,
            starts=tuple(map(start, self.starts.values())),
            leaks=tuple(
                share(None if k else self.leak, kept)
                for k, kept in enumerate(self.kept)
            ),
            zoneouts=self.zoneout,
            recurrent_dropout=self.recurrent_dropout,
            input_dropout=self.input_dropout,
            checkpoint_every=self.checkpoint_every,
            truncate_every=self.truncate_every,
        )


class BoundOptions(NamedTuple):
    """Options as the recurrence takes them: arrays of its dtype, and the masks' key.

    Args:
        starts (tuple(array)): Each state after a reset, ``(H,)``. ``None`` is none, as
            before a first step without a state.
        leaks (tuple(array)): How much of each state is new, ``(H,)``. ``None`` is one.
        zoneouts (tuple(float)): How probably a unit keeps each of its states.
        key (array, optional): Of the masks: two ``uint32``. ``None`` until it is drawn.
        flips (int): Along which leading axis the second half of the sets of weights
            runs in the other direction. Default: ``-1``, none.

    The others are those of :class:`JudgedOptions`.
    """

    starts: tuple[mx.array | None, ...]
    leaks: tuple[mx.array | None, ...]
    zoneouts: tuple[float, ...]
    lengths: mx.array | None = None
    reset: mx.array | None = None
    mask: mx.array | None = None
    reverse: bool = False
    recurrent_dropout: float = 0.0
    input_dropout: float = 0.0
    key: mx.array | None = None
    checkpoint_every: int = 0
    truncate_every: int = 0
    flips: int = -1

    @property
    def are_random(self) -> bool:
        """Whether a mask is drawn."""
        return any((*self.zoneouts, self.recurrent_dropout, self.input_dropout))

    @property
    def arrays(self) -> list[mx.array]:
        """All arrays among them."""
        values = (*self, *self.starts, *self.leaks)
        return [a for a in values if isinstance(a, mx.array)]

    @classmethod
    def of(cls, states: int, **options: Any) -> "BoundOptions":
        """Return options of a cell with so many states, of which each has none yet."""
        none = (None,) * states
        each = {"starts": none, "leaks": none, "zoneouts": (0.0,) * states}
        return cls(**{**each, **options})


def documented(*kinds: type) -> Callable[[_F], _F]:
    """Put options into the signature and the docstring of a function that takes them.

    The docstring has a line ``options: ...`` in their place.

    Args:
        kinds (type): The dictionaries of options that have them, the narrowest first
            and, last, the one that holds all.
    """
    keywords = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, default in _DEFAULTS.items()
        if (kind := kinds[-1].__annotations__.get(name))
    ]
    documents = (cleandoc(kind.__doc__ or "") for kind in kinds)
    entries = "\n".join(text for d in documents if (text := d.partition("Args:\n")[2]))

    def document(function: _F) -> _F:
        found = signature(function)
        own = [p for p in found.parameters.values() if p.kind != Parameter.VAR_KEYWORD]
        function.__signature__ = found.replace(parameters=own + keywords)  # type: ignore[attr-defined]
        function.__doc__ = re.sub(
            "^( *)    options: .*$",
            lambda line: indent(entries, line[1]),
            function.__doc__ or "",
            flags=re.MULTILINE,
        )
        return function

    return document


def ask_for_more(options: Mapping[str, Any]) -> bool:
    """Whether one is not what it is by default; ``training`` alone does nothing."""
    defaults: Mapping[str, Any] = {**_DEFAULTS, "training": options.get("training")}
    return not all(
        value is defaults[name] or (isinstance(value, Real) and value == defaults[name])
        for name, value in options.items()
    )


def judge_options(
    options: Mapping[str, Any],
    name: str,
    lead: tuple[int, ...],
    L: int,
    H: int,
    begins: Mapping[str, bool],
) -> JudgedOptions:
    """Judge the options of a call.

    Args:
        options (dict): What the user gave.
        name (str): What has the leading axes.
        lead (tuple(int)): The leading axes.
        L (int): How many steps there are.
        H (int): How many hidden features.
        begins (dict): Whether rows begin without a state, for each of the cell's, by
            the name of what they start from instead.

    Raises:
        TypeError: If an option is of the wrong type.
        ValueError: If its shape, dtype or value does not fit.
    """
    given = {**_DEFAULTS, **options}
    training = judge_flag("training", given["training"])
    lengths, reset, mask = given["lengths"], given["reset"], given["mask"]
    leak = None if given["leak"] is None else judge_leak(given["leak"], H)
    starts: dict[str, mx.array | None] = {}
    for kind, begin in begins.items():
        start = given.get(kind)
        if start is not None:
            judge_start(kind, start, H)
        starts[kind] = start if begin or reset is not None else None
    zoneout = judge_zoneout(given["zoneout"], len(begins))
    none = (0.0,) * len(zoneout)
    recurrent = judge_probability("recurrent_dropout", given["recurrent_dropout"])
    at_input = judge_probability("input_dropout", given["input_dropout"])
    return JudgedOptions(
        lengths=None if lengths is None else judge_lengths(lengths, name, lead, L),
        reset=None if reset is None else judge_flags("reset", reset, name, lead, (L,)),
        mask=None if mask is None else judge_flags("mask", mask, name, lead, (L,)),
        reverse=judge_flag("reverse", given["reverse"]),
        starts=starts,
        leak=None if isinstance(leak, float) and leak == 1 else leak,
        kept=none if training else zoneout,
        zoneout=zoneout if training else none,
        recurrent_dropout=recurrent if training else 0.0,
        input_dropout=at_input if training else 0.0,
        checkpoint_every=judge_every("checkpoint_every", given["checkpoint_every"]),
        truncate_every=judge_every("truncate_every", given["truncate_every"]),
    )


def judge_zoneout(value: Any, states: int) -> tuple[float, ...]:
    """Return the probabilities of zoneout of each of a cell's states.

    Args:
        value (float or tuple): What the user gave: a number for all states or, of a
            cell with several, one for each.
        states (int): How many states the cell has.
    """
    if states == 1 or not isinstance(value, (tuple, list)):
        return (judge_probability("zoneout", value),) * states
    if len(value) != states:
        each = (
            "a pair of the hidden state's and the cell state's"
            if states == 2
            else f"one for each of the {states} states"
        )
        raise ValueError(
            f"zoneout must be a number, or {each}, but has {len(value)} entries"
        )
    return tuple(
        judge_probability(f"zoneout[{i}]", entry) for i, entry in enumerate(value)
    )


def new_share(
    leak: float | mx.array | None,
    kept: float,
    dtype: mx.Dtype,
    stream: StreamOrDevice,
) -> float | mx.array | None:
    """Return how much of a state is new, of each unit.

    Args:
        leak (float or array, optional): The leak, an array ``(H,)``. ``None`` is one.
        kept (float): What is kept of a state beside that.
        dtype (Dtype): Of the result.
        stream (Stream or Device, optional): The stream. ``None`` is the default one.

    Returns:
        float or array: ``(H,)``, a number for all units, or ``None`` where all is new.
    """
    if isinstance(leak, mx.array):
        leak = as_dtype(leak, dtype, stream)
        if not kept:  # nothing new, whose memory a forked process may not get
            return leak
        return mx.multiply(leak, mx.array(1 - kept, dtype), stream=stream)
    new = (1.0 if leak is None else float(leak)) * (1 - kept)
    return None if new == 1 else new


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
    if isinstance(given, np.ndarray):
        given = _of_numpy(given)
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


def judge_flags(
    option: str,
    values: Any,
    name: str,
    lead: tuple[int, ...],
    steps: tuple[int, ...],
) -> mx.array:
    """Return flags of steps as an array of booleans, judged by ``_flags``."""
    flags = _flags(option, values, name, lead, steps)
    if isinstance(flags, np.ndarray):
        flags = _of_numpy(flags)
    return flags if flags.dtype == mx.bool_ else flags != 0


def judge_flags_now(
    option: str,
    values: Any,
    name: str,
    lead: tuple[int, ...],
    steps: tuple[int, ...],
) -> np.ndarray:
    """Return the same as a contiguous copy in NumPy, outside the graph.

    Of what is not MLX's nothing is computed by MLX, which a forked process may not do.
    """
    flags = _flags(option, values, name, lead, steps)
    if isinstance(flags, mx.array):
        flags = values_of(flags)
    return np.array(flags, bool, order="C", subok=False)


def _flags(
    option: str,
    values: Any,
    name: str,
    lead: tuple[int, ...],
    steps: tuple[int, ...],
) -> mx.array | np.ndarray:
    """Return flags of steps, as they were given.

    Args:
        option (str): What they are called.
        values (array): What the user gave.
        name (str): What has the leading axes.
        lead (tuple(int)): The leading axes.
        steps (tuple(int)): The axis of time, ``(L,)``, or ``()`` for one step.

    Raises:
        TypeError: If these are no numbers.
        ValueError: If they are no booleans, their shape is another or, where they can
            be read, an integer is neither 0 nor 1.
    """
    given, found = _numbers(option, values, "booleans, or integers 0 and 1", "biu")
    if given.shape != lead + steps:
        what = "leading axes and steps" if steps else "leading axes"
        raise ValueError(
            f"{option} must have shape {lead + steps}, the {what} of {name}, but has "
            f"shape {given.shape}"
        )
    if found is not None and found.dtype != np.bool_:
        _judge_each(option, found, (found == 0) | (found == 1), "0 or 1")
    return given


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
    if value.dtype not in FLOATING:
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


def judge_start(name: str, value: Any, H: int) -> None:
    """Raise for a state to begin with that is no array ``(H,)`` of real numbers."""
    judge_array(name, value)
    if value.shape != (H,):
        raise ValueError(f"{name} must have shape ({H},), but has shape {value.shape}")
    if mx.issubdtype(value.dtype, mx.complexfloating):
        raise ValueError(
            f"{name} must be of a real dtype, but is {dtype_name(value.dtype)}"
        )


def _numbers(
    name: str, values: Any, rule: str, kinds: str
) -> tuple[mx.array | np.ndarray, np.ndarray | None]:
    """Return an array of these kinds of numbers, and the numbers if they can be read.

    The array is MLX's where it was given so, else NumPy's.

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
    return found, found


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
