"""What every judgement of arguments uses."""

import math
from numbers import Real
from typing import Any

import mlx.core as mx

# An error shows so many characters of a value.
_SHOWN = 100


def judge_array(name: str, value: Any) -> None:
    """Raise a ``TypeError`` for what is no MLX array."""
    if not isinstance(value, mx.array):
        raise TypeError(f"{name} must be an mlx.core.array, but is {type_name(value)}")


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
