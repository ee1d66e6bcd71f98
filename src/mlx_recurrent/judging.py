"""What every judgement of arguments uses."""

from typing import Any

import mlx.core as mx


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
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"
