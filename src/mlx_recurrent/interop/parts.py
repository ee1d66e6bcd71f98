"""What conversions share: a layer from arrays, and what stands in the way."""

from collections.abc import Collection, Iterator, Mapping
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
from mlx_recurrent.interop.gates import (
    KINDS,
    LISTED,
    Kind,
    Sides,
    Single,
    kind_of,
    own_of,
    shapes_of,
    sides_of,
    weight_names,
)
from mlx_recurrent.interop.reversed import Reversed
from mlx_recurrent.layers.bidirectional import Bidirectional
from mlx_recurrent.layers.rnn import RNN
from mlx_recurrent.layers.stack import Stack

Layer: TypeAlias = Single | Bidirectional | Stack

DTYPES = {
    dtype_name(dtype): dtype
    for dtype in (mx.float32, mx.float64, mx.float16, mx.bfloat16)
}
_LISTED = "float32, float64, float16 or bfloat16"

# What MLX's layers do not have, and a framework may not have either.
_OPTIONS = ("leak", "zoneout", "input_dropout", "recurrent_dropout", "hidden0", "cell0")


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
    if dtype not in DTYPES:
        raise ValueError(f"{name} must be {_LISTED}, but is {dtype}")
    if shape is not None and values.shape != shape:
        raise ValueError(f"{name} must be {shape}, but is {values.shape}")
    return mx.array(values, dtype=DTYPES[dtype])


def _of_numpy(name: str, values: Any) -> np.ndarray:
    """Return what NumPy reads as an array in the order that MLX takes."""
    try:
        array = np.array(values, order="C")
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name} must be an array, but {line_of(error)}") from error
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
            f"{name} must be a tensor that NumPy can hold, but {line_of(error)}"
        ) from error
    return values


def line_of(error: BaseException) -> str:
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
    kind: Kind,
    own: Mapping[str, Any],
    **options: Any,
) -> Any:
    """Make a layer that holds copies of these parameters, computed.

    Args:
        kind (type): :class:`mlx_recurrent.RNN`, or another of its classes.
        own (dict): The parameters by their names here, in shapes that fit.
        options: More arguments of the class.
    """
    Wx, *others = weight_names(kind)
    D, H = own[Wx].shape[1], own[others[0]].shape[1]
    bias = not set(others[1:]).isdisjoint(own)
    learns = "hidden0" in own or "cell0" in own
    layer = kind(D, H, bias, learn_hidden=learns, **options)
    for name, a in own.items():
        setattr(layer, name, array_of(name, a))
    parameters: Any = tree_flatten(layer.parameters())  # type: ignore[no-untyped-call]
    evaluate(*dict(parameters).values())  # for other threads
    return layer


def made_of(kind: Kind, sides: Sides, framework: str, **options: Any) -> Any:
    """Make a layer of a framework's weights, as :func:`own_of` takes them."""
    own = own_of(kind, sides, framework, options.get("reset_after", True))
    return layer_of(kind, own, **options)


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


def judge_weights(layer: Single, name: str) -> dict[str, mx.array]:
    """Return a layer's parameters, found to fit together.

    Args:
        layer (RNN or GRU or LSTM): The layer.
        name (str): What the caller calls it.

    Raises:
        ValueError: If their shapes do not fit.
    """
    kind = kind_of(layer)
    Wx, *others = weight_names(kind)
    own = {
        key: a
        for key in (Wx, *others, "hidden0", "cell0")
        if (a := getattr(layer, key, None)) is not None
    }
    if own[Wx].ndim != 2:
        raise ValueError(f"{name}.{Wx} must have two axes, but is {own[Wx].shape}")
    shapes = shapes_of(kind, own[Wx])
    for key, a in own.items():
        if a.shape != shapes[key]:
            raise ValueError(
                f"{name}.{key} must be {shapes[key]} where {Wx} is {own[Wx].shape}, "
                f"but is {a.shape}"
            )
    return own


def weights_of(layer: Single, name: str, framework: str) -> tuple[Sides, str]:
    """Return a layer's weights in a framework's order, and the name of their dtype.

    NumPy has no bfloat16: float32 holds those values.

    Args:
        layer (RNN or GRU or LSTM): The layer.
        name (str): What the caller calls it.
        framework (str): Whose order of the gates.

    Raises:
        ValueError: If the shapes do not fit, or the dtypes differ.
    """
    dtypes = {
        key: dtype_name(a.dtype)
        for key, a in judge_weights(layer, name).items()
        if key in weight_names(kind_of(layer))
    }
    if len(set(dtypes.values())) > 1:
        raise ValueError(f"{name} must have weights of one dtype, but has {dtypes}")
    (dtype,) = set(dtypes.values())
    if dtype not in DTYPES:
        raise ValueError(f"{name} must have weights in {_LISTED}, but has {dtype}")
    with mx.stream(mx.cpu):
        return Sides(
            *(
                None
                if a is None
                else values_of(a.astype(mx.float32) if dtype == "bfloat16" else a)
                for a in sides_of(layer, framework)
            )
        ), dtype


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


def singles_of(layer: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the layers of one direction in a network, with their paths.

    Args:
        layer (Module): The network.
        path (str, optional): Its own, such as ``"layers.0."``. Default: ``""``.

    Raises:
        ValueError: If a layer is of a subclass that calls something else.
    """
    judge_type(layer, called(path))
    if isinstance(layer, Stack):
        for i, inner in enumerate(layer.layers):
            yield from singles_of(inner, f"{path}layers.{i}.")
        return
    if not isinstance(layer, (Bidirectional, Reversed)):
        yield path, layer
        return
    for way in ("forward", "backward"):
        if way in layer:
            yield f"{path}{way}.", layer[way]


def called(path: str) -> str:
    """Return what a message calls the layer of a path, ``layers[0].forward``."""
    words = path.rstrip(".").split(".") if path else []
    start = "" if words[:1] == ["layers"] else "layer"
    name = "".join(f"[{word}]" if word.isdigit() else f".{word}" for word in words)
    return start + name if start else name[1:]


def judge_type(layer: Any, name: str) -> None:
    """Judge whether a layer computes what its class of this package does.

    Args:
        layer (Module): The layer.
        name (str): What the caller calls it.

    Raises:
        ValueError: If it is of a subclass that calls something else.
    """
    for base in (*KINDS, Bidirectional, Stack, Reversed):
        if isinstance(layer, base) and type(layer).__call__ is not base.__call__:
            raise ValueError(
                f"{name} must compute what {base.__name__} does, but its class "
                f"{type_name(layer)} has a __call__ of its own"
            )


def judge_layer(
    layer: Any, name: str, target: str, carried: Collection[str] = ()
) -> Single:
    """Return a layer whose every option another framework has.

    Args:
        layer (RNN or GRU or LSTM): The layer.
        name (str): What the caller calls it, such as ``"layers[1].forward"``.
        target (str): The other framework's name for such a layer.
        carried (list of str): The options, of those that MLX's layers do not have,
            which it has too. Default: ``()``.

    Raises:
        TypeError: If it is no :class:`mlx_recurrent.RNN` or another of its kind.
        ValueError: If the layer has another option, or a call of its own.
    """
    if not isinstance(layer, KINDS):
        raise TypeError(
            f"{name} must be an mlx_recurrent.{LISTED}, but is {type_name(layer)}"
        )
    judge_type(layer, name)
    had = [
        "learn_hidden" if option in ("hidden0", "cell0") else option
        for option in _OPTIONS
        if option in layer or getattr(layer, option, None) not in (None, 0.0)
    ]
    if not getattr(layer, "reset_after", True):
        had.append("reset_after=False")
    for option in had:
        if option not in carried:
            raise ValueError(f"{name} has {option}, which {target} does not have")
    return layer
