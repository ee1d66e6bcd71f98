"""PyTorch's recurrent layers as layers, and the way back."""

import re
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from typing import Any

import mlx.core as mx
from mlx.nn.layers import activations

from mlx_recurrent.functional.dispatch import Nonlinearity, recognise
from mlx_recurrent.functional.judging import judge_flag, shown, type_name
from mlx_recurrent.functional.values import evaluate
from mlx_recurrent.interop.activations import describe
from mlx_recurrent.interop.gates import (
    KINDS,
    LISTED,
    Kind,
    Sides,
    Single,
    gates_in,
    kind_of,
    own_of,
    weight_names,
)
from mlx_recurrent.interop.parts import (
    Layer,
    array_of,
    called,
    dropout_of,
    framework,
    judge_layer,
    judge_own,
    judge_type,
    judge_weights,
    made_of,
    singles_of,
    weights_of,
)
from mlx_recurrent.layers.bidirectional import Bidirectional
from mlx_recurrent.layers.rnn import RNN
from mlx_recurrent.layers.stack import Stack

_NONLINEARITIES: dict[str, Nonlinearity | None] = {
    "tanh": None,
    "relu": activations.relu,
}
# weight_ih_l0, weight_ih_l0_reverse; weight_ih of a cell; weight_hr_l0 of a projection.
_NAME = re.compile(
    r"(?:weight_(?:ih|hh|hr)|bias_(?:ih|hh))"
    r"(?P<place>_l(?P<layer>[0-9]{1,18})(?P<reverse>_reverse)?)?"
)
# The same in a larger model.
_PLACE = re.compile(rf"(?:(.*)\.)?{_NAME.pattern}", re.DOTALL)


def from_torch(
    module: Any, *, prefix: str = "", nonlinearity: str | None = None
) -> Layer:
    """Make a layer of PyTorch's.

    The weights are copied; of the two biases the sum is kept, and of a GRU the part of
    the second that the reset multiplies, ``bhn``. Inputs are batch first here, whatever
    ``batch_first`` is there, and states are one for each layer and direction. The layer
    is in training mode where the module is.

    Args:
        module (Module or dict): A ``torch.nn.RNN``, ``GRU`` or ``LSTM``, or a cell
            (``torch.nn.LSTMCell``); or a state dict with its names, such as
            ``weight_ih_l0``, for arrays of PyTorch, NumPy or MLX, whose shapes tell
            which layer it is. With a prefix a larger model, or its state dict.
        prefix (str, optional): The layer's name in a larger model, such as
            ``"encoder.rnn"``, with or without a dot at its end. Default: ``""``.
        nonlinearity (str, optional): ``"tanh"`` or ``"relu"``, for the state dict of a
            ``torch.nn.RNN``, which does not tell it. ``None`` is tanh there.
            Default: ``None``.

    Returns:
        Module: An :class:`mlx_recurrent.RNN`, :class:`mlx_recurrent.GRU` or
        :class:`mlx_recurrent.LSTM`, a :class:`mlx_recurrent.Bidirectional`, or a
        :class:`mlx_recurrent.Stack` of several. The dropout between those is the
        stack's; a state dict does not tell it.

    Raises:
        ImportError: If a module is given and PyTorch is not installed.
        TypeError: If it is another module, or an argument is of the wrong type.
        ValueError: If a name, a shape or a dtype does not fit, or if the module has
            projections (``proj_size``), has forward hooks or shares a weight between
            layers. It lists the layers that a larger model has.

    Example:
        >>> import torch
        >>> from mlx_recurrent.interop import from_torch
        >>> from_torch(torch.nn.RNN(3, 8)).Wxh.shape
        (8, 3)
    """
    prefix = _prefix(prefix)
    if isinstance(module, Mapping):
        if nonlinearity is not None and not (
            isinstance(nonlinearity, str) and nonlinearity in _NONLINEARITIES
        ):
            raise ValueError(
                f'nonlinearity must be "tanh" or "relu", but is {shown(nonlinearity)}'
            )
        return _from_weights(_entries(module, prefix), nonlinearity, 0.0)
    torch = framework("torch", "from_torch")
    if nonlinearity is not None:
        raise ValueError(
            "nonlinearity must be None for a module, which has its own, but is "
            f"{shown(nonlinearity)}"
        )
    module = _named(torch, module, prefix)
    if getattr(module, "proj_size", 0):
        raise ValueError(
            "module must have no projections (proj_size), for which a layer has no "
            f"place, but has proj_size={module.proj_size}"
        )
    places = _places(0, 1)
    if isinstance(module, torch.nn.RNNBase):
        places = _places(module.num_layers, 1 + module.bidirectional)
    names = [
        f"{kind}{place}"
        for row in places
        for place in row
        for kind in _names_of(module.bias)
    ]
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
            getattr(module, "nonlinearity", None),
            getattr(module, "dropout", 0.0),
        )
    layer.train(module.training)
    return layer


def torch_weights(
    weights: Mapping[str, Any], layer: Layer, prefix: str = ""
) -> dict[str, mx.array]:
    """Return weights under PyTorch's names by those that a layer has for them.

    It is for a model's ``sanitize``, where weights come from a file. They are copied;
    biases become what :func:`from_torch` makes of them. Their dtype stays.

    Args:
        weights (dict): Arrays of MLX, NumPy or PyTorch by name, of a whole model.
        layer (RNN or GRU or LSTM or Bidirectional or Stack): The layer that they are
            for.
        prefix (str, optional): What their names begin with, such as
            ``"encoder.rnn"``, with or without a dot at its end. Weights outside it are
            left out. Default: ``""``.

    Returns:
        dict: The arrays by the layer's names, such as ``layers.0.forward.Wx``, without
        the prefix.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a weight is missing, is not the layer's, or does not fit.

    Example:
        >>> import mlx.core as mx
        >>> from mlx_recurrent import LSTM
        >>> from mlx_recurrent.interop import torch_weights
        >>> shapes = {"weight_ih_l0": (32, 3), "weight_hh_l0": (32, 8)}
        >>> held = {f"rnn.{name}": mx.zeros(shape) for name, shape in shapes.items()}
        >>> sorted(torch_weights(held, LSTM(3, 8, bias=False), "rnn"))
        ['Wh', 'Wx']
    """
    if not isinstance(weights, Mapping):
        raise TypeError(
            f"weights must be a dict of arrays, but is {type_name(weights)}"
        )
    given = _entries(weights, _prefix(prefix), "weights")
    found: dict[str, mx.array] = {}
    used: set[str] = set()
    rows, _ = _rows(layer, "torch.nn", exact=False)
    is_cell = "weight_ih" in given and rows == [[("", layer)]]
    places = _places(0 if is_cell else len(rows), len(rows[0]))
    for at, row in zip(places, rows, strict=True):
        for place, (path, single) in zip(at, row, strict=True):
            own = _fitting(given, place, single, called(path))
            found |= {f"{path}{name}": a for name, a in own.items()}
            used |= {f"{name}{place}" for name in _names_of(f"bias_ih{place}" in given)}
    if unused := sorted(set(given) - used):
        raise ValueError(
            f"weights must be those of layer, but hold {shown(unused[0])}, for which "
            "it has no place"
        )
    evaluate(*found.values())
    return found


def to_torch(layer: Layer, *, batch_first: bool = True, cell: bool = False) -> Any:
    """Make a layer PyTorch's.

    The weights are copied; the second bias is zero, but where a GRU has one, ``bhn``.
    The module is in training mode where the layer is.

    Args:
        layer (Module): An :class:`mlx_recurrent.RNN`, :class:`mlx_recurrent.GRU` or
            :class:`mlx_recurrent.LSTM`, a :class:`mlx_recurrent.Bidirectional` or a
            :class:`mlx_recurrent.Stack`, whose layers must be alike, as those of one
            ``torch.nn.RNN`` are.
        batch_first (bool, optional): Whether the module takes ``NLD``, as the layer
            does, or ``LND``. Default: ``True``.
        cell (bool, optional): Whether to make a ``torch.nn.RNNCell``, ``GRUCell`` or
            ``LSTMCell``, of a single layer alone. Default: ``False``.

    Returns:
        torch.nn.Module: The module.

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
    if judge_flag("cell", cell) and not isinstance(layer, KINDS):
        raise TypeError(
            f"layer must be an mlx_recurrent.{LISTED} for cell=True, but is "
            f"{type_name(layer)}"
        )
    _, first = next(singles_of(layer), ("", None))
    known = kind_of(first).__name__ if isinstance(first, KINDS) else "RNN"
    target = f"torch.nn.{known}{'Cell' if cell else ''}"
    rows, dropout = _rows(layer, target)
    options: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    places = _places(0 if cell else len(rows), len(rows[0]))
    for at, row in zip(places, rows, strict=True):
        for place, (path, single) in zip(at, row, strict=True):
            name = called(path)
            judge_layer(single, name, target)
            sides, dtype = weights_of(single, name, "torch")
            found = {
                "layers of the kind": kind_of(single).__name__,
                "hidden_size": sides.Wh.shape[1],
                "bias": sides.bx is not None,
                "nonlinearity": _nonlinearity(single, name, target),
                "dtype": dtype,
            }
            options = options or found
            for option, value in found.items():
                if value != options[option]:
                    raise ValueError(
                        f"{name} has {option} {value} and {called(rows[0][0][0])} "
                        f"{options[option]}, but {target} has one for all"
                    )
            for kind, a in zip(_names_of(True), sides, strict=True):
                if a is not None:
                    tensors[f"{kind}{place}"] = torch.from_numpy(a.copy())
    del options["layers of the kind"]
    if known != "RNN":
        del options["nonlinearity"]
    options["dtype"] = getattr(torch, options["dtype"])
    options["input_size"] = tensors["weight_ih" if cell else "weight_ih_l0"].shape[1]
    if not cell:
        options |= {
            "num_layers": len(rows),
            "bidirectional": len(rows[0]) == 2,
            "batch_first": batch_first,
            "dropout": dropout,
        }
    # On the meta device nothing is drawn from PyTorch's random state.
    kind = getattr(torch.nn, target.rpartition(".")[2])
    module = kind(**options, device="meta").to_empty(device="cpu")
    module.load_state_dict(tensors)
    return module.train(layer.training)


def _prefix(prefix: Any) -> str:
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a string, but is {type_name(prefix)}")
    return prefix.removesuffix(".")


def _named(torch: Any, module: Any, prefix: str) -> Any:
    """Return the recurrent layer of that name in a module: itself where it is empty."""
    names = [f"{kind.__name__}{cell}" for kind in KINDS for cell in ("", "Cell")]
    kinds = tuple(getattr(torch.nn, name) for name in names)
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
            f"module must be a torch.nn.{LISTED}, a cell of one, or a state dict, but "
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
        return f", and there is no torch.nn.{LISTED} in it"
    listed = ", ".join(map(shown, by_likeness[:5])) + ", ..." * bool(by_likeness[5:])
    return f" (of a larger model give a layer's prefix: {listed})"


def _entries(
    state: Mapping[str, Any], prefix: str, what: str = "module"
) -> dict[str, Any]:
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
                f"{what} must hold arrays, but holds a dict as {shown(name)}: give "
                "the one with the weights"
            )
    places = {m[1] or "": m for name in named if (m := _PLACE.fullmatch(name))}
    if not weights and prefix:
        raise ValueError(
            f"prefix must be that of a layer's weights in {what}, but is "
            f"{shown(prefix)}{_listed(places, prefix)}"
        )
    if not weights:
        raise ValueError(f"{what} must hold weights, but is empty")
    raise ValueError(
        f"{what} must hold the weights of one torch.nn.{LISTED}, or of a cell, such as "
        f"weight_ih_l0, but holds {shown(start + unknown[0])}{_listed(places, prefix)}"
    )


def _places(layers: int, ways: int) -> list[list[str]]:
    """Return what names end with, layer by layer, in each direction; 0 is a cell."""
    each = ("", "_reverse")[:ways]
    return [[f"_l{i}{way}" for way in each] for i in range(layers)] or [[""]]


def _names_of(biased: bool) -> tuple[str, ...]:
    """Return what PyTorch calls the sides' weights."""
    return ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if biased else ()))


def _from_weights(
    weights: Mapping[str, Any], nonlinearity: str | None, dropout: float
) -> Layer:
    """Make a layer from weights by PyTorch's names."""
    found = [m for m in map(_NAME.fullmatch, weights) if m]
    is_cell = any(not m["place"] for m in found)
    numbers = sorted({int(m["layer"]) for m in found if m["place"]})
    if not is_cell and numbers != list(range(len(numbers))):
        raise ValueError(
            "module must hold the weights of every layer from _l0 on, but holds those "
            f"of {shown(numbers)}"
        )
    places = _places(
        0 if is_cell else len(numbers), 1 + any(m["reverse"] for m in found)
    )
    if {m["place"] or "" for m in found} - {place for row in places for place in row}:
        raise ValueError(
            f"module must hold the weights of one torch.nn.{LISTED}, or of one cell, "
            f"but holds both, or odd names: {shown(sorted(weights))}"
        )
    # A module has every bias or none.
    biased = any(name.startswith("bias") for name in weights)
    made = [
        [_direction(weights, place, biased, nonlinearity) for place in row]
        for row in places
    ]
    kinds = {kind_of(layer).__name__ for row in made for layer in row}
    if len(kinds) > 1:
        raise ValueError(
            "module must hold the weights of layers of one kind, but holds those of "
            f"{' and '.join(sorted(kinds))}"
        )
    rows = [row[0] if len(row) == 1 else Bidirectional(*row) for row in made]
    return Stack(rows, dropout) if len(rows) > 1 else rows[0]


def _direction(
    weights: Mapping[str, Any], place: str, biased: bool, nonlinearity: str | None
) -> Single:
    """Make a layer of one direction from its entries."""
    kind, sides = _sides(weights, place, biased)
    options = {}
    if kind is RNN:
        options["nonlinearity"] = _NONLINEARITIES[nonlinearity or "tanh"]
    elif nonlinearity is not None:
        raise ValueError(
            f"nonlinearity must be None for a torch.nn.{kind.__name__}, which has its "
            f"own, but is {shown(nonlinearity)}"
        )
    made: Single = made_of(kind, sides, "torch", **options)
    return made


def _sides(
    weights: Mapping[str, Any], place: str, biased: bool, what: str = "module"
) -> tuple[Kind, Sides]:
    """Return the weights of one direction from its entries, and what they are of."""
    if f"weight_hr{place}" in weights:
        raise ValueError(
            f"{what} must have no projections (proj_size), for which a layer has no "
            f"place, but has weight_hr{place}"
        )

    def named(kind: str, shape: tuple[int, ...] | None = None) -> mx.array:
        name = f"{kind}{place}"
        if name not in weights:
            raise ValueError(f"{what} must hold {name}, but does not")
        a = array_of(name, weights[name], shape)
        if shape is None and a.ndim != 2:
            raise ValueError(f"{name} must have two axes, but is {a.shape}")
        return a

    Wx, Wh = named("weight_ih"), named("weight_hh")
    rows, H = Wh.shape
    kinds = [kind for kind in KINDS if rows == gates_in(kind) * H]
    if not kinds or Wx.shape[0] != rows:
        raise ValueError(
            f"weight_hh{place} must be (H, H), (3 H, H) of a GRU or (4 H, H) of an "
            f"LSTM, where weight_ih{place} has as many rows, but they are {Wh.shape} "
            f"and {Wx.shape}"
        )
    biases = [named(kind, (rows,)) for kind in _names_of(True)[2:] if biased]
    return kinds[0], Sides(Wx, Wh, *biases)


def _fitting(
    weights: Mapping[str, Any], place: str, layer: Any, name: str
) -> dict[str, mx.array]:
    """Return the parameters of one direction, in the shapes that the layer has."""
    if not isinstance(layer, KINDS) or not getattr(layer, "reset_after", True):
        judge_layer(layer, name, "PyTorch")
    kind, sides = _sides(weights, place, f"bias_ih{place}" in weights, "weights")
    own = own_of(kind, sides, "torch")
    mine = judge_weights(layer, name)
    needed, found = (
        {key: of[key].shape for key in weight_names(kind_of(layer)) if key in of}
        for of in (mine, own)
    )
    if kind is not kind_of(layer) or needed != found:
        raise ValueError(
            f"{name}, of class {kind_of(layer).__name__}, must have {needed}, but "
            f"weights hold weight_ih{place} {sides.Wx.shape} and weight_hh{place} "
            f"{sides.Wh.shape}{'' if sides.bx is None else ' with biases'}, of "
            f"{kind.__name__}"
        )
    return own


def _rows(
    layer: Any, target: str, exact: bool = True
) -> tuple[list[list[tuple[str, Any]]], float]:
    """Return each layer's directions, with their paths, and the dropout between.

    Where the module is to do the same (``exact``) what it does not do is refused.
    """
    if not isinstance(layer, (*KINDS, Bidirectional, Stack)):
        raise TypeError(
            f"layer must be an mlx_recurrent.{LISTED}, Bidirectional or Stack, but is "
            f"{type_name(layer)}"
        )
    judge_type(layer, "layer")
    stack = layer if isinstance(layer, Stack) else None
    if exact and stack is not None and stack.residual:
        raise ValueError(f"layer has residual, which {target} does not have")
    rows = []
    for i, inner in enumerate([layer] if stack is None else stack.layers):
        path = "" if stack is None else f"layers.{i}."
        merge = getattr(inner, "merge", "concat")
        if exact and merge != "concat":
            merge = describe(merge) if callable(merge) else merge
            raise ValueError(
                f'{called(path)} must have the merge "concat" for {target}, but has '
                f"{merge!r}"
            )
        both = isinstance(inner, Bidirectional)
        rows.append(list(singles_of(inner, path)) if both else [(path, inner)])
        if len(rows[i]) != len(rows[0]):
            raise ValueError(
                f"{called(path)} must run in as many directions as layers[0], as in "
                f"{target}"
            )
    # PyTorch warns of dropout that is between no layers.
    if not exact or stack is None or len(rows) == 1:
        return rows, 0.0
    return rows, dropout_of(stack)


def _nonlinearity(layer: Single, name: str, target: str) -> str | None:
    if not isinstance(layer, RNN):
        return None
    choice = recognise(layer.nonlinearity)
    if choice is None or choice.activation not in _NONLINEARITIES:
        raise ValueError(
            f"{name} must have the nonlinearity tanh or relu for {target}, but has "
            f"{describe(layer.nonlinearity)}"
        )
    return str(choice.activation)
