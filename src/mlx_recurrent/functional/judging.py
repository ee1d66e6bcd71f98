"""What every judgement of arguments uses."""

import math
import operator
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Literal, TypeAlias

import mlx.core as mx
import numpy as np
from mlx.nn.layers import activations
from mlx.nn.layers.base import Module

# What a call returns: outputs, outputs and state, or the state alone.
ReturnState: TypeAlias = bool | Literal["only"]

# The dtypes of states.
FLOATING = frozenset({mx.float32, mx.float16, mx.bfloat16, mx.float64})

# An error shows so many characters of a value.
_SHOWN = 100


def judge_array(name: str, value: Any) -> None:
    """Raise a ``TypeError`` for what is no MLX array."""
    if not isinstance(value, mx.array):
        makes_one = isinstance(value, list) or hasattr(value, "__dlpack__")
        raise TypeError(
            f"{name} must be an mlx.core.array, but is {type_name(value)}"
            + makes_one * f": mx.array({name}) makes one"
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


def judge_nonlinearity(nonlinearity: Any) -> None:
    """Raise a ``ValueError``, in MLX's words first, for what is no function."""
    if not callable(nonlinearity):
        try:
            value = f"{nonlinearity}"
        except Exception:  # an integer of very many digits, or the user's own
            value = shown(nonlinearity)
        raise ValueError(
            f"Nonlinearity must be callable. Current value: {value}. Give "
            f"{_function_of(nonlinearity)}."
        )
    if type(nonlinearity) is type and issubclass(nonlinearity, Module):
        name = nonlinearity.__qualname__
        if nonlinearity.__module__ == activations.__name__:
            name = f"nn.{name}"
        raise ValueError(
            f"nonlinearity must be a function or a module, but is the class {name}: "
            f"give {name}(), an instance"
        )


def judge_layer(name: str, layer: Any) -> None:
    """Raise a ``TypeError`` for what is no layer, or the class of one."""
    if isinstance(layer, type):
        kind = layer.__qualname__
        raise TypeError(
            f"{name} must be a layer, but is the class {kind}: give {kind}(...), an "
            "instance"
        )
    framework = _framework_of(layer)
    if framework:
        raise TypeError(
            f"{name} must be a layer of MLX, but is {type_name(layer)}: "
            f"mlx_recurrent.interop.from_{framework} makes one"
        )
    if not callable(layer):
        raise TypeError(
            f"{name} must be a layer, but is {type_name(layer)}: a layer is an "
            "mlx_recurrent.RNN, or is called like one"
        )


def _framework_of(layer: Any) -> str | None:
    """Return which framework's a layer is, if ``interop`` can take it from there."""
    kinds = type(layer).__mro__
    roots = (str(getattr(kind, "__module__", "")).split(".")[0] for kind in kinds)
    return next((root for root in roots if root in ("flax", "keras", "torch")), None)


def _function_of(name: Any) -> str:
    """Return what to give for another framework's name of a nonlinearity."""
    name = name.lower() if isinstance(name, str) else ""
    if name == "tanh":
        return "None or mx.tanh"
    if name in ("linear", "identity"):
        return "nn.Identity()"
    known = {
        key.replace("_", ""): key
        for key, value in vars(activations).items()
        if getattr(value, "__module__", None) == activations.__name__
    }
    function = known.get(name.replace("_", ""))
    return f"nn.{function}" if function else "a function, such as mx.tanh or nn.relu"


def judge_size(name: str, value: Any, least: int) -> None:
    """Raise for a size of a layer that is no integer, or out of range."""
    try:
        size = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} must be an integer, but is {type_name(value)}"
        ) from None
    if not least <= size < 2**31:
        raise ValueError(
            f"{name} must be from {least} to 2**31 - 1, but is {shown(size)}"
        )


def judge_stream(stream: Any) -> None:
    """Raise a ``TypeError`` for what is no place of MLX's to run in."""
    if stream is not None and not isinstance(
        stream, (mx.Stream, mx.Device, mx.DeviceType, mx.ThreadLocalStream)
    ):
        raise TypeError(
            f"stream must be an MLX stream or device, but is {type_name(stream)}"
        )


def judge_return_state(return_state: Any) -> None:
    """Raise a ``ValueError`` for what does not say which results are wanted."""
    if return_state is True or return_state is False:
        return
    if not (isinstance(return_state, str) and return_state == "only"):
        raise ValueError(
            f'return_state must be False, True or "only", but is {shown(return_state)}'
        )


def broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Return whether an array of one shape broadcasts to exactly another shape."""
    return len(shape) <= len(to) and all(
        a == b or a == 1 for a, b in zip(reversed(shape), reversed(to), strict=False)
    )


def judge_entries(hidden: Any, count: int) -> Sequence[Any]:
    """Return the states of so many layers, ``None`` being one for each."""
    if hidden is None:
        return [None] * count
    if not isinstance(hidden, (list, tuple)):
        raise TypeError(
            "hidden must be a list with one entry for each layer, but is "
            f"{type_name(hidden)}"
        )
    if len(hidden) != count:
        raise ValueError(
            f"hidden must have one entry for each of the {count} layers, but has "
            f"{len(hidden)}"
        )
    return hidden


def judge_pair(name: str, state: Any) -> tuple[Any, Any]:
    """Return the hidden state and the cell state of an LSTM.

    Args:
        name (str): What the user calls the pair.
        state (tuple): The pair, or ``None``.

    Raises:
        TypeError: If it is no pair.
        ValueError: If it has not two entries.
    """
    if state is None:
        return None, None
    if not isinstance(state, (tuple, list)):
        raise TypeError(
            f"{name} must be a pair (hidden, cell), the states of an LSTM, but is "
            f"{type_name(state)}"
        )
    if len(state) != 2:
        raise ValueError(
            f"{name} must be a pair (hidden, cell), the states of an LSTM, but has "
            f"{len(state)} entries"
        )
    hidden, cell = state
    return hidden, cell


def judge_states(name: str, state: Any, states: Sequence[str]) -> tuple[Any, ...]:
    """Return the states of a declared cell.

    Args:
        name (str): What the user calls them together.
        state (array or tuple): The one state, or a tuple of several, or ``None``.
        states (tuple(str)): The names of the cell's.

    Raises:
        TypeError: If several are no tuple.
        ValueError: If it has another number of entries.
    """
    if len(states) == 1:
        return (state,)
    if state is None:
        return (None,) * len(states)
    rule = f"{name} must be a tuple of {len(states)} states ({', '.join(states)})"
    if not isinstance(state, (tuple, list)):
        raise TypeError(f"{rule}, but is {type_name(state)}")
    if len(state) != len(states):
        raise ValueError(f"{rule}, but has {len(state)} entries")
    return tuple(state)


def judge_given(
    names: Sequence[str], states: Sequence[Any], named: Mapping[str, Any]
) -> tuple[Any, ...]:
    """Return the states that a user gave in order or by name, ``None`` for the others.

    Args:
        names (tuple(str)): Those of the layer's states.
        states (tuple): In this order.
        named (dict): By name.

    Raises:
        TypeError: If there is no such state, or one is given twice.
    """
    listed = ", ".join(names)
    for i, state in enumerate(states):
        if i >= len(names) and state is not None:
            raise TypeError(
                f"there are {len(names)} states ({listed}), but {len(states)} were "
                "given"
            )
    given = dict(zip(names, states, strict=False))
    for name, state in named.items():
        if state is None:
            continue
        if name not in names:
            raise TypeError(f"there is no state {name!r}: the layer has {listed}")
        if given.get(name) is not None:
            raise TypeError(f"the state {name} is given twice")
        given[name] = state
    return tuple(map(given.get, names))


def dtype_name(dtype: mx.Dtype) -> str:
    """Return the name of a dtype as a user writes it: ``float32``."""
    return str(dtype).removeprefix("mlx.core.")


def type_name(value: Any) -> str:
    """Return the name of a value's type, with its module."""
    kind = type(value)
    module = getattr(kind, "__module__", "builtins")  # a type may have lost it
    name = kind.__qualname__
    return _short(name if module == "builtins" else f"{module}.{name}")


def shown(value: Any) -> str:
    """Return a value as an error shows it: in one line, shortened where it is long."""
    try:
        text = str(value) if isinstance(value, Real) else repr(value)
    except Exception:  # an integer of very many digits, or the user's own
        return f"a value of {type_name(value)}"
    return _short(" ".join(text.split()))


def float_of(value: Any) -> float:
    """Return a real number as a float, where one beyond its range is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
