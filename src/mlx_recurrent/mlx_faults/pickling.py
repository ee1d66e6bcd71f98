"""What MLX's objects lack to be copied and pickled, and what an error of that says.

Fault: MLX's functions and dtypes have no name that pickle finds, and float64 arrays are
pickled as float32.
MLX: 0.32.0 to 0.32.4.
Shown by: test_functions_that_mlx_exports, test_arrays_and_dtypes
"""

import copyreg
import pickle
import sys
from collections.abc import Iterator
from pkgutil import resolve_name
from types import FrameType
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers import activations
from mlx.nn.layers.base import Module

from mlx_recurrent import _native

# Modules that take a function whole, or share it, and so need no name for it.
_NEED_NO_NAME = frozenset({"copy", "cloudpickle", "dill"})


def _name_of(function: Any) -> str:
    # What has no name of its own is shared by copies, and pickle does not find it.
    return getattr(function, "__qualname__", None) or type(function).__qualname__


def _reduced(array: mx.array) -> str | tuple[Any, ...]:
    # A pool pickles in a thread of its own.
    _native.expect_threads([array])
    if array.dtype == mx.float64:  # of which MLX's own way makes float32
        return mx.array, (np.array(array), array.dtype)
    return array.__reduce_ex__(2)


def _reduced_dtype(dtype: mx.Dtype) -> tuple[Any, ...]:
    names = (name for name, value in vars(mx).items() if value == dtype)
    return resolve_name, (f"mlx.core:{next(names)}",)


# The types of MLX's functions: in C++, compiled, of arrays, and with a gradient of
# their own.
for kind in map(
    type, (mx.tanh, activations.relu, mx.array.square, mx.custom_function(abs))
):
    copyreg.pickle(kind, _name_of)
copyreg.pickle(mx.Dtype, _reduced_dtype)
copyreg.pickle(mx.array, _reduced)


def reduce_ex(module: Module, protocol: Any) -> str | tuple[Any, ...]:
    """Return what pickles a module: the ``__reduce_ex__`` of this package's.

    Raises:
        PicklingError: If the module holds what other processes cannot find by a name,
            such as a lambda.
    """
    for name, value in _named(module, "", set()):
        try:
            pickle.dumps(value)
        except Exception as error:
            if _needs_no_name():
                break
            raise pickle.PicklingError(
                f"{name} cannot be pickled ({error}): give a function, or an "
                "mlx.nn.Module of a class, that a module defines under its name "
                "(copy.deepcopy takes any)"
            ) from error
    return super(Module, module).__reduce_ex__(protocol)


def _named(value: Any, name: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Yield all that a module holds and is pickled by a name, with its place."""
    if id(value) in seen:
        return
    seen.add(id(value))
    items: Any = ()
    if isinstance(value, Module):
        yield name or "the layer's class", type(value)
        items = (value | vars(value)).items()
    elif isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    elif callable(value):
        yield name, value
    for key, item in items:
        yield from _named(item, f"{name}.{key}" if name else str(key), seen)


def _needs_no_name() -> bool:
    """Return whether one of those modules asks: what C asks leaves no frame."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if not _NEED_NO_NAME.isdisjoint(frame.f_globals.get("__name__", "").split(".")):
            return True
        frame = frame.f_back
    return False
