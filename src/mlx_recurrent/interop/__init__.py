"""Models of other frameworks as layers, and layers as theirs.

A framework is imported by the function that needs it, and only then.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mlx_recurrent.interop.reversed import Reversed

if TYPE_CHECKING:
    from mlx_recurrent.interop.flax import from_flax, to_flax
    from mlx_recurrent.interop.keras import from_keras, to_keras
    from mlx_recurrent.interop.onnx import from_onnx, to_onnx
    from mlx_recurrent.interop.torch import from_torch, to_torch, torch_weights

__all__ = [
    "Reversed",
    "from_flax",
    "from_keras",
    "from_onnx",
    "from_torch",
    "to_flax",
    "to_keras",
    "to_onnx",
    "to_torch",
    "torch_weights",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    (framework,) = {"torch", "keras", "flax", "onnx"} & set(name.split("_"))
    return getattr(import_module(f"{__name__}.{framework}"), name)


def __dir__() -> list[str]:
    return __all__
