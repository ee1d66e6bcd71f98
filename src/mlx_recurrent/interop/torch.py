"""PyTorch's recurrent layers as layers, and the way back."""

import re
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from typing import Any

import mlx.core as mx
from mlx.nn.layers import activations

from mlx_recurrent.functional.dispatch import Nonlinearity, recognise
from mlx_recurrent.functional.judging import judge_flag, shown, type_name
from mlx_recurrent.interop.activations import describe
from mlx_recurrent.interop.parts import (
    Layer,
    array_of,
    dropout_of,
    framework,
    judge_layer,
    judge_own,
    judge_type,
    layer_of,
    weights_of,
)
from mlx_recurrent.layers.bidirectional import Bidirectional
from mlx_recurrent.layers.rnn import RNN
from mlx_recurrent.layers.stack import Stack

_NONLINEARITIES: dict[str, Nonlinearity | None] = {
    "tanh": None,
    "relu": activations.relu,
}
# weight_ih_l0, weight_ih_l0_reverse; weight_ih of a cell.
_NAME = re.compile(
    r"(weight|bias)_(ih|hh)(?:_l(?P<layer>[0-9]{1,18})(?P<reverse>_reverse)?)?"
)
# The same in a larger model.
_PLACE = re.compile(rf"(?:(.*)\.)?{_NAME.pattern}", re.DOTALL)


def from_torch(
    module: Any, *, prefix: str = "", nonlinearity: str | None = None
) -> Layer:
    """Make a layer of PyTorch's.

    The weights are copied; of the two biases the sum is kept. Inputs are batch first
    here, whatever ``batch_first`` is there. The layer is in training mode where the
    module is.

    Args:
        module (torch.nn.RNN or torch.nn.RNNCell or dict): The module, or a state dict
            with its names, such as ``weight_ih_l0``, for arrays of PyTorch, NumPy or
            MLX. With a prefix a larger model, or its state dict.
        prefix (str, optional): The layer's name in a larger model, such as
            ``"encoder.rnn"``, with or without a dot at its end. Default: ``""``.
        nonlinearity (str, optional): ``"tanh"`` or ``"relu"``, for a state dict, which
            does not tell it. ``None`` is tanh there. Default: ``None``.

    Returns:
        RNN or Bidirectional or Stack: A layer, or a stack of several. The dropout
        between those is the stack's; a state dict does not tell it.

    Raises:
        ImportError: If a module is given and PyTorch is not installed.
        TypeError: If it is another module, or an argument is of the wrong type.
        ValueError: If a name, a shape or a dtype does not fit, or if the module has
            forward hooks or shares a weight between layers. It lists the layers that a
            larger model has.

    Example:
        >>> import torch
        >>> from mlx_recurrent.interop import from_torch
        >>> from_torch(torch.nn.RNN(3, 8)).Wxh.shape
        (8, 3)
    """
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a string, but is {type_name(prefix)}")
    prefix = prefix.removesuffix(".")
    if isinstance(module, Mapping):
        if nonlinearity is not None and not (
            isinstance(nonlinearity, str) and nonlinearity in _NONLINEARITIES
        ):
            raise ValueError(
                f'nonlinearity must be "tanh" or "relu", but is {shown(nonlinearity)}'
            )
        weights = _entries(module, prefix)
        return _from_weights(weights, _NONLINEARITIES[nonlinearity or "tanh"], 0.0)
    torch = framework("torch", "from_torch")
    if nonlinearity is not None:
        raise ValueError(
            "nonlinearity must be None for a module, which has its own, but is "
            f"{shown(nonlinearity)}"
        )
    module = _named(torch, module, prefix)
    names = _names(torch, module)
    for name in names:
        if name not in module._parameters and not (
            torch.nn.utils.parametrize.is_parametrized(module, name)
        ):
            raise ValueError(
                f"{name} must be a parameter, but a hook computes it at each call "
                "(torch.nn.utils.remove_weight_norm or prune.remove makes it one)"
            )
    for hooks in ("_forward_pre_hooks", "_forward_hooks"):
        if getattr(module, hooks):
            raise ValueError(
                f"module must have no forward hooks, but has {hooks}: they may change "
                "inputs or outputs (a hook's handle has remove())"
            )
    seen: dict[int, str] = {}
    for name in names:
        if name in module._parameters:
            judge_own(module._parameters[name], name, seen)
    # A parametrized weight is computed when it is read.
    with torch.no_grad():
        layer = _from_weights(
            {name: getattr(module, name) for name in names},
            _NONLINEARITIES[module.nonlinearity],
            getattr(module, "dropout", 0.0),
        )
    layer.train(module.training)
    return layer


def to_torch(layer: Layer, *, batch_first: bool = True, cell: bool = False) -> Any:
    """Make a layer PyTorch's.

    The weights are copied; the second bias is zero. The module is in training mode
    where the layer is.

    Args:
        layer (RNN or Bidirectional or Stack): The layer. A stack's layers must be
            alike, as those of one ``torch.nn.RNN`` are.
        batch_first (bool, optional): Whether the module takes ``NLD``, as the layer
            does, or ``LND``. Default: ``True``.
        cell (bool, optional): Whether to make a ``torch.nn.RNNCell``, of an
            :class:`mlx_recurrent.RNN` alone. Default: ``False``.

    Returns:
        torch.nn.RNN or torch.nn.RNNCell: The module.

    Raises:
        ImportError: If PyTorch is not installed.
        TypeError: If an argument is of the wrong type.
        ValueError: If the layer has what PyTorch's does not have.

    Example:
        >>> from mlx_recurrent import RNN
        >>> from mlx_recurrent.interop import to_torch
        >>> to_torch(RNN(3, 8))
        RNN(3, 8, batch_first=True)
    """
    torch = framework("torch", "to_torch")
    batch_first = judge_flag("batch_first", batch_first)
    if judge_flag("cell", cell) and not isinstance(layer, RNN):
        raise TypeError(
            "layer must be an mlx_recurrent.RNN for cell=True, but is "
            f"{type_name(layer)}"
        )
    target = "torch.nn.RNNCell" if cell else "torch.nn.RNN"
    rows, dropout = _rows(layer, target)
    options: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    first = ""
    for i, row in enumerate(rows):
        for suffix, (name, single) in zip(("", "_reverse"), row, strict=False):
            judge_layer(single, name, target, ())
            weights, dtype = weights_of(single, name)
            found = {
                "hidden_size": weights["Whh"].shape[0],
                "bias": "bias" in weights,
                "nonlinearity": _nonlinearity(single, name, target),
                "dtype": dtype,
            }
            first, options = first or name, options or found
            for option, value in found.items():
                if value != options[option]:
                    raise ValueError(
                        f"{name} has {option} {value} and {first} {options[option]}, "
                        f"but {target} has one for all"
                    )
            place = "" if cell else f"_l{i}{suffix}"
            tensors[f"weight_ih{place}"] = weights["Wxh"]
            tensors[f"weight_hh{place}"] = weights["Whh"]
            if "bias" in weights:
                tensors[f"bias_ih{place}"] = weights["bias"]
                tensors[f"bias_hh{place}"] = 0 * weights["bias"]
    options["dtype"] = getattr(torch, options["dtype"])
    options["input_size"] = rows[0][0][1].Wxh.shape[1]
    kind = torch.nn.RNNCell
    if not cell:
        kind = torch.nn.RNN
        options |= {
            "num_layers": len(rows),
            "bidirectional": len(rows[0]) == 2,
            "batch_first": batch_first,
            "dropout": dropout,
        }
    # On the meta device nothing is drawn from PyTorch's random state.
    module = kind(**options, device="meta").to_empty(device="cpu")
    module.load_state_dict(
        {name: torch.from_numpy(a.copy()) for name, a in tensors.items()}
    )
    return module.train(layer.training)


def _named(torch: Any, module: Any, prefix: str) -> Any:
    """Return the recurrent layer of that name in a module: itself where it is empty."""
    kinds = (torch.nn.RNN, torch.nn.RNNCell)
    found, layers = module, []
    if isinstance(module, torch.nn.Module):
        named = dict(module.named_modules(remove_duplicate=False))
        layers = [name for name, m in named.items() if isinstance(m, kinds)]
        if prefix not in named:
            raise ValueError(
                f"prefix must be the name of a layer in module, but is {shown(prefix)}"
                f"{_listed(layers, prefix)}"
            )
        found = named[prefix]
    replaced = "forward" in getattr(found, "__dict__", ())
    # One that runs something else is not what it is called.
    if replaced or not any(
        isinstance(found, kind) and type(found).forward is kind.forward
        for kind in kinds
    ):
        layers = [name for name in layers if name != prefix]
        raise TypeError(
            "module must be a torch.nn.RNN or a torch.nn.RNNCell, or a state dict, but "
            f"{prefix and shown(prefix) + ' '}is {type_name(found)}"
            + (" with another forward" if replaced else "")
            + (_listed(layers, prefix) if layers else "")
        )
    return found


def _listed(layers: Iterable[str], prefix: str) -> str:
    """Return how an error ends: the layers that there are, the likeliest first."""
    by_likeness = sorted(
        layers,
        key=lambda name: (
            prefix not in name,
            -SequenceMatcher(None, name[:100], prefix[:100]).ratio(),
        ),
    )
    if not by_likeness:
        return ", and there is no torch.nn.RNN in it"
    listed = ", ".join(map(shown, by_likeness[:5])) + ", ..." * bool(by_likeness[5:])
    return f" (of a larger model give a layer's prefix: {listed})"


def _entries(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the entries of a state dict for the layer of that name, without it."""
    named = {str(name): value for name, value in state.items()}
    start = prefix and f"{prefix}."
    weights = {
        name.removeprefix(start): value
        for name, value in named.items()
        if name.startswith(start)
    }
    unknown = [name for name in weights if not _NAME.fullmatch(name)]
    if weights and not unknown:
        return weights
    for name, value in named.items():
        if isinstance(value, Mapping):
            raise ValueError(
                f"module must hold arrays, but holds a dict as {shown(name)}: give the "
                "one with the weights"
            )
    places = {m[1] or "": m for name in named if (m := _PLACE.fullmatch(name))}
    if not weights and prefix:
        raise ValueError(
            f"prefix must be that of a layer's weights in module, but is "
            f"{shown(prefix)}{_listed(places, prefix)}"
        )
    if not weights:
        raise ValueError("module must hold weights, but is empty")
    raise ValueError(
        "module must hold the weights of one torch.nn.RNN or torch.nn.RNNCell, such as "
        f"weight_ih_l0, but holds {shown(start + unknown[0])}{_listed(places, prefix)}"
    )


def _names(torch: Any, module: Any) -> list[str]:
    """Return the names of a module's weights."""
    places = [""]
    if isinstance(module, torch.nn.RNN):
        ways = ("", "_reverse") if module.bidirectional else ("",)
        places = [f"_l{i}{way}" for i in range(module.num_layers) for way in ways]
    kinds = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if module.bias else ()))
    return [f"{kind}{place}" for place in places for kind in kinds]


def _from_weights(
    weights: Mapping[str, Any], nonlinearity: Nonlinearity | None, dropout: float
) -> Layer:
    """Make a layer from weights by PyTorch's names."""
    found: set[tuple[str | None, str | None]] = {
        (m["layer"], m["reverse"]) for m in map(_NAME.fullmatch, weights) if m
    }
    places: set[tuple[str | None, str | None]]
    if (None, None) in found:
        count, places = 1, {(None, None)}
    else:
        numbers = sorted({int(layer or 0) for layer, _ in found})
        count = len(numbers)
        if numbers != list(range(count)):
            raise ValueError(
                "module must hold the weights of every layer from _l0 on, but holds "
                f"those of {shown(numbers)}"
            )
        ways = (None, "_reverse") if any(way for _, way in found) else (None,)
        places = {(str(i), way) for i in range(count) for way in ways}
    if found - places:
        raise ValueError(
            "module must hold the weights of one torch.nn.RNN or of one "
            f"torch.nn.RNNCell, but holds both, or odd names: {shown(sorted(weights))}"
        )
    rows = []
    for i in range(count):
        layer = None if (None, None) in places else str(i)
        row = [
            _single(weights, layer, way, nonlinearity)
            for way in (None, "_reverse")
            if (layer, way) in places
        ]
        rows.append(row[0] if len(row) == 1 else Bidirectional(*row))
    return Stack(rows, dropout) if len(rows) > 1 else rows[0]


def _single(
    weights: Mapping[str, Any],
    layer: str | None,
    way: str | None,
    nonlinearity: Nonlinearity | None,
) -> RNN:
    """Make a layer of one direction from its entries."""
    place = "" if layer is None else f"_l{layer}{way or ''}"

    def named_array(kind: str, shape: tuple[int, ...] | None = None) -> mx.array:
        name = f"{kind}{place}"
        if name not in weights:
            raise ValueError(f"module must hold {name}, but does not")
        return array_of(name, weights[name], shape)

    Wxh, Whh = named_array("weight_ih"), named_array("weight_hh")
    for name, a in (("weight_ih", Wxh), ("weight_hh", Whh)):
        if a.ndim != 2:
            raise ValueError(f"{name}{place} must have two axes, but is {a.shape}")
    H, size = Whh.shape
    for gates, other in ((4, "LSTM"), (3, "GRU")):
        if H == gates * size:
            raise ValueError(
                f"weight_hh{place} must be (H, H), but is {Whh.shape}, as a "
                f"torch.nn.{other} has it"
            )
    Whh = array_of(f"weight_hh{place}", Whh, (Wxh.shape[0], Wxh.shape[0]))
    bias = None
    # A module has every bias or none.
    if any(str(name).startswith("bias") for name in weights):
        given, state = (named_array(kind, (H,)) for kind in ("bias_ih", "bias_hh"))
        bias = mx.add(given, state, stream=mx.cpu)  # which adds float64 too
    return layer_of(Wxh, Whh, bias, nonlinearity)


def _rows(layer: Layer, target: str) -> tuple[list[list[tuple[str, Any]]], float]:
    """Return each layer's directions, with their names, and the dropout between."""
    if not isinstance(layer, (RNN, Bidirectional, Stack)):
        raise TypeError(
            "layer must be an mlx_recurrent.RNN, Bidirectional or Stack, but is "
            f"{type_name(layer)}"
        )
    judge_type(layer, "layer")
    if not isinstance(layer, Stack):
        return [_row(layer, "layer", target)], 0.0
    if layer.residual:
        raise ValueError(f"layer has residual, which {target} does not have")
    rows = [_row(inner, f"layers[{i}]", target) for i, inner in enumerate(layer.layers)]
    for i, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(
                f"layers[{i}] must run in as many directions as layers[0], as in "
                f"{target}"
            )
    # PyTorch warns of dropout that is between no layers.
    return rows, dropout_of(layer) if len(rows) > 1 else 0.0


def _row(layer: Any, name: str, target: str) -> list[tuple[str, Any]]:
    judge_type(layer, name)
    if not isinstance(layer, Bidirectional):
        return [(name, layer)]
    if layer.merge != "concat":
        merge = describe(layer.merge) if callable(layer.merge) else layer.merge
        raise ValueError(
            f'{name} must have the merge "concat" for {target}, but has {merge!r}'
        )
    return [(f"{name}.forward", layer.forward), (f"{name}.backward", layer.backward)]


def _nonlinearity(layer: RNN, name: str, target: str) -> str:
    choice = recognise(layer.nonlinearity)
    if choice is None or choice.activation not in _NONLINEARITIES:
        raise ValueError(
            f"{name} must have the nonlinearity tanh or relu for {target}, but has "
            f"{describe(layer.nonlinearity)}"
        )
    return str(choice.activation)
