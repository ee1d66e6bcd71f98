"""What conversions share: a layer from arrays, and what stands in the way."""

from collections.abc import Collection
from importlib import import_module
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_recurrent.dispatch import Nonlinearity
from mlx_recurrent.judging import type_name
from mlx_recurrent.layers import RNN

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
        raise ImportError(
            f"{caller} needs {name.partition('.')[0]}, which cannot be imported "
            f"({error}): pip install {name.partition('.')[0]}",
            name=error.name,
        ) from error


def layer_of(
    Wxh: mx.array | np.ndarray,
    Whh: mx.array | np.ndarray,
    bias: mx.array | np.ndarray | None,
    nonlinearity: Nonlinearity | None,
    **options: Any,
) -> RNN:
    """Make a layer that holds copies of these weights.

    Args:
        Wxh (array): The input's weights, ``(H, D)``.
        Whh (array): The state's weights, ``(H, H)``.
        bias (array, optional): The bias, ``(H,)``.
        nonlinearity (callable, optional): The nonlinearity. ``None`` is tanh.
        options: More arguments of :class:`mlx_recurrent.RNN`.
    """
    H, D = Wxh.shape
    layer = RNN(D, H, bias is not None, nonlinearity, **options)
    layer.Wxh, layer.Whh = mx.array(Wxh), mx.array(Whh)
    if bias is not None:
        layer.bias = mx.array(bias)
    return layer


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
        ValueError: If the layer has another option.
    """
    if not isinstance(layer, RNN):
        raise TypeError(
            f"{name} must be an mlx_recurrent.RNN, but is {type_name(layer)}"
        )
    for option in _OPTIONS:
        if option not in carried and (
            option in layer or getattr(layer, option, None) not in (None, 0.0)
        ):
            had = "learn_hidden" if option == "hidden0" else option
            raise ValueError(f"{name} has {had}, which {target} does not have")
    return layer
