"""What conversions share: a layer from arrays, and what stands in the way."""

from collections.abc import Collection
from importlib import import_module
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from mlx.nn.layers.dropout import Dropout
from mlx.utils import tree_flatten

from mlx_recurrent.functional.dispatch import Nonlinearity
from mlx_recurrent.functional.judging import dtype_name, type_name
from mlx_recurrent.functional.values import evaluate, values_of
from mlx_recurrent.interop.activations import describe
from mlx_recurrent.interop.reversed import Reversed
from mlx_recurrent.layers.bidirectional import Bidirectional
from mlx_recurrent.layers.rnn import RNN
from mlx_recurrent.layers.stack import Stack

Layer: TypeAlias = RNN | Bidirectional | Stack

_DTYPES = {
    dtype_name(dtype): dtype
    for dtype in (mx.float32, mx.float64, mx.float16, mx.bfloat16)
}
_LISTED = "float32, float64, float16 or bfloat16"

# What mlx.nn.RNN does not have, and a framework may not have either.
_OPTIONS = ("leak", "zoneout", "input_dropout", "recurrent_dropout", "hidden0")


def framework(name: str, caller: str) -> Any:
    """Import a framework, for the function `caller`.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        # Keras has no backend of its own: what is missing may be that.
        missing = (error.name or name).partition(".")[0]
        backend = ""
        if name == "keras" and missing != name:
            backend = (
                ", or set KERAS_BACKEND to a backend that is installed, such as torch "
                "or jax, before Keras is imported"
            )
        raise ImportError(
            f"{caller} needs {name.partition('.')[0]}, which cannot be imported "
            f"({error}): pip install {missing}{backend}",
            name=error.name,
        ) from error


def array_of(name: str, values: Any, shape: tuple[int, ...] | None = None) -> mx.array:
    """Return a copy of an array of MLX, NumPy or what NumPy reads, in its dtype.

    Args:
        name (str): What the framework calls it.
        values (array): The values, a tensor of PyTorch too. Of NumPy's float64 MLX
            itself would make float32.
        shape (tuple, optional): The shape that it must have. Default: ``None``.

    Raises:
        ValueError: If the dtype or the shape does not fit.
    """
    if hasattr(values, "detach"):
        values = _of_tensor(name, values)
    if not isinstance(values, mx.array):
        values = _of_numpy(name, values)
    dtype = str(values.dtype).removeprefix("mlx.core.")
    if dtype not in _DTYPES:
        raise ValueError(f"{name} must be {_LISTED}, but is {dtype}")
    if shape is not None and values.shape != shape:
        raise ValueError(f"{name} must be {shape}, but is {values.shape}")
    return mx.array(values, dtype=_DTYPES[dtype])


def _of_numpy(name: str, values: Any) -> np.ndarray:
    """Return what NumPy reads as an array in the order that MLX takes."""
    try:
        array = np.array(values, order="C")
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name} must be an array, but {_line(error)}") from error
    if array.dtype.kind == "f":  # of either byte order
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array


def _of_tensor(name: str, tensor: Any) -> mx.array | np.ndarray:
    """Return the values of a tensor of PyTorch, wherever it is."""
    if tensor.is_meta:
        raise ValueError(f"{name} must have values, but is on PyTorch's meta device")
    try:
        tensor = tensor.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":  # which NumPy does not have
            return mx.array(tensor.float().numpy()).astype(mx.bfloat16)
        values: np.ndarray = tensor.resolve_neg().resolve_conj().numpy()
    except (TypeError, RuntimeError) as error:
        # A sparse one, one of float8, a subclass: PyTorch says which.
        raise ValueError(
            f"{name} must be a tensor that NumPy can hold, but {_line(error)}"
        ) from error
    return values


def _line(error: Exception) -> str:
    """Return an error's first line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def judge_own(array: Any, name: str, seen: dict[int, str]) -> None:
    """Judge that a framework's array belongs to one layer alone.

    Args:
        array (Parameter): The framework's own object, which a layer that is used twice
            has twice.
        name (str): What the framework calls it.
        seen (dict): The names of those before, by identity. This one is added.

    Raises:
        ValueError: If it was there before: copies would be trained apart.
    """
    first = seen.setdefault(id(array), name)
    if first != name:
        raise ValueError(
            f"{name} must belong to one layer, but is {first} too: layers that share "
            "weights cannot be converted"
        )


def layer_of(
    Wxh: mx.array | np.ndarray,
    Whh: mx.array | np.ndarray,
    bias: mx.array | np.ndarray | None,
    nonlinearity: Nonlinearity | None,
    **options: Any,
) -> RNN:
    """Make a layer that holds copies of these weights, computed.

    Args:
        Wxh (array): The input's weights, ``(H, D)``.
        Whh (array): The state's weights, ``(H, H)``.
        bias (array, optional): The bias, ``(H,)``.
        nonlinearity (callable, optional): The nonlinearity. ``None`` is tanh.
        options: More arguments of :class:`mlx_recurrent.RNN`.
    """
    H, D = Wxh.shape
    layer = RNN(D, H, bias is not None, nonlinearity, **options)
    layer.Wxh, layer.Whh = array_of("Wxh", Wxh), array_of("Whh", Whh)
    if bias is not None:
        layer.bias = array_of("bias", bias)
    own: Any = tree_flatten(layer.parameters())  # type: ignore[no-untyped-call]
    evaluate(*dict(own).values())  # for other threads
    return layer


def judge_used(nonlinearity: Nonlinearity | None, model: Module) -> None:
    """Judge a nonlinearity that stands for one without a name in MLX.

    Raises:
        ValueError: If no layer of the model needed it.
    """
    if nonlinearity is not None and not any(
        isinstance(layer, RNN) and layer.nonlinearity is nonlinearity
        for layer in model.modules()  # type: ignore[no-untyped-call]
    ):
        raise ValueError(
            "nonlinearity must be None where every layer's own is known, but is "
            f"{describe(nonlinearity)}"
        )


def weights_of(layer: RNN, name: str) -> tuple[dict[str, np.ndarray], str]:
    """Return a layer's weights by name, and the name of their dtype.

    NumPy has no bfloat16: float32 holds those values.

    Args:
        layer (RNN): The layer.
        name (str): What the caller calls it.

    Raises:
        ValueError: If the shapes do not fit, or the dtypes differ.
    """
    weights = {"Wxh": layer.Wxh, "Whh": layer.Whh}
    if layer.bias is not None:
        weights["bias"] = layer.bias
    if layer.Wxh.ndim != 2:
        raise ValueError(f"{name}.Wxh must have two axes, but is {layer.Wxh.shape}")
    H, D = layer.Wxh.shape
    for key, shape in (("Whh", (H, H)), ("bias", (H,))):
        if key in weights and weights[key].shape != shape:
            raise ValueError(
                f"{name}.{key} must be {shape} where Wxh is {(H, D)}, but is "
                f"{weights[key].shape}"
            )
    dtypes = {key: dtype_name(a.dtype) for key, a in weights.items()}
    if len(set(dtypes.values())) > 1:
        raise ValueError(f"{name} must have weights of one dtype, but has {dtypes}")
    dtype = dtypes["Wxh"]
    if dtype not in _DTYPES:
        raise ValueError(f"{name} must have weights in {_LISTED}, but has {dtype}")
    return {
        key: values_of(a.astype(mx.float32) if dtype == "bfloat16" else a)
        for key, a in weights.items()
    }, dtype


def dropout_of(stack: Stack) -> float:
    """Return the probability of a stack's dropout.

    Raises:
        ValueError: If it has something else there.
    """
    if type(stack.dropout) is not Dropout:
        raise ValueError(
            "layer.dropout must be an mlx.nn.Dropout, but is "
            f"{type_name(stack.dropout)}"
        )
    # MLX keeps one minus it.
    return round(1 - stack.dropout._p_1, 15)


def judge_type(layer: Any, name: str) -> None:
    """Judge whether a layer computes what its class of this package does.

    Args:
        layer (Module): The layer.
        name (str): What the caller calls it.

    Raises:
        ValueError: If it is of a subclass that calls something else.
    """
    for base in (RNN, Bidirectional, Stack, Reversed):
        if isinstance(layer, base) and type(layer).__call__ is not base.__call__:
            raise ValueError(
                f"{name} must compute what {base.__name__} does, but its class "
                f"{type_name(layer)} has a __call__ of its own"
            )


def judge_layer(layer: Any, name: str, target: str, carried: Collection[str]) -> RNN:
    """Return a layer whose every option another framework has.

    Args:
        layer (RNN): The layer.
        name (str): What the caller calls it, such as ``"layers[1].forward"``.
        target (str): The other framework's name for such a layer.
        carried (list of str): The options, of those that :class:`mlx.nn.RNN` does not
            have, which it has too.

    Raises:
        TypeError: If it is not an :class:`mlx_recurrent.RNN`.
        ValueError: If the layer has another option, or a call of its own.
    """
    if not isinstance(layer, RNN):
        raise TypeError(
            f"{name} must be an mlx_recurrent.RNN, but is {type_name(layer)}"
        )
    judge_type(layer, name)
    for option in _OPTIONS:
        if option not in carried and (
            option in layer or getattr(layer, option, None) not in (None, 0.0)
        ):
            had = "learn_hidden" if option == "hidden0" else option
            raise ValueError(f"{name} has {had}, which {target} does not have")
    return layer
