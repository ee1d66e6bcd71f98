"""Layers in a safetensors file: their parameters, and what arrays do not say.

The names are the layers' own (``layers.0.forward.Wxh``), so ``load_weights`` takes the
file. What is not in the arrays is JSON in the file's metadata.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_recurrent import atomic
from mlx_recurrent.functional.judging import dtype_name
from mlx_recurrent.functional.values import evaluate
from mlx_recurrent.interop.activations import (
    Activation,
    activation_of,
    complete,
    describe,
    nonlinearity_of,
)
from mlx_recurrent.interop.gates import (
    KINDS,
    Kind,
    gates_in,
    kind_of,
    shapes_of,
    weight_names,
)
from mlx_recurrent.interop.parts import layer_of
from mlx_recurrent.interop.reversed import Reversed
from mlx_recurrent.layers.bidirectional import Bidirectional
from mlx_recurrent.layers.gru import GRU
from mlx_recurrent.layers.rnn import RNN
from mlx_recurrent.layers.stack import Stack
from mlx_recurrent.mlx_faults import safetensors_header
from mlx_recurrent.mlx_faults.loading import expect_file_readers

_KEY = "mlx_recurrent"
_VERSION = 1
_MERGES = ("concat", "sum", "mul", "mean", None)
_FLOATING = (mx.float32, mx.float16, mx.bfloat16)
# What a layer of each kind must have, and what it may have.
_REQUIRED = {kind: frozenset(weight_names(kind)[:2]) for kind in KINDS}
_ALLOWED = {kind: {*weight_names(kind), *kind._start_names()} for kind in KINDS}


@dataclass(frozen=True)
class Unsaid:
    """What a file without this package's metadata leaves open.

    Args:
        activation (Activation, optional): Every layer's nonlinearity.
        merge (str, optional): What is made of two directions; ``"none"`` is ``None``.
        residual (bool): Whether a stack has residuals. Default: ``False``.
    """

    activation: Activation | None = None
    merge: str | None = None
    residual: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing is given."""
        return self == Unsaid()


def write(layer: Any, path: str | os.PathLike[str]) -> None:
    """Write layers to a safetensors file, in one go.

    Args:
        layer (Module): An :class:`mlx_recurrent.RNN`, :class:`mlx_recurrent.GRU`,
            :class:`mlx_recurrent.LSTM`, :class:`Reversed`,
            :class:`mlx_recurrent.Bidirectional` or :class:`mlx_recurrent.Stack`.
        path (str): The file.

    Raises:
        ValueError: If a part of it cannot be written.
        OSError: If the file cannot be written.
    """
    described = {"version": _VERSION, "network": _described(layer)}
    arrays = dict(tree_flatten(layer.parameters()))
    for name, a in arrays.items():
        if a.dtype not in _FLOATING:
            raise ValueError(
                f"{name} must be float32, float16 or bfloat16 to be written by MLX to "
                f"safetensors, but is {dtype_name(a.dtype)}"
            )
    evaluate(*arrays.values())
    metadata = {"format": "mlx", _KEY: json.dumps(described)}
    atomic.write(path, lambda file: mx.save_safetensors(file, arrays, metadata))


def read(path: str | os.PathLike[str], unsaid: Unsaid) -> Any:
    """Make the layers of a safetensors file.

    Args:
        path (str): The file.
        unsaid (Unsaid): What it leaves open.

    Returns:
        Module: The layers.

    Raises:
        ValueError: If the file is damaged, holds what is no layer's, or leaves more
            open.
        OSError: If it cannot be opened.
        RuntimeError: In a forked process, where MLX would wait for ever.
    """
    name = repr(os.fspath(path))
    expect_file_readers()  # MLX reads an open file at once
    try:
        with open(path, "rb") as file:
            safetensors_header.judge(file)
            loaded: Any = mx.load(file, format="safetensors", return_metadata=True)
        arrays, metadata = loaded
    except (RuntimeError, ValueError, MemoryError) as error:
        raise ValueError(f"{name} is no valid safetensors file: {error}") from error
    for key, a in arrays.items():
        if a.dtype not in _FLOATING:
            raise ValueError(
                f"{name} has {key} of dtype {dtype_name(a.dtype)}, which must be "
                "float32, float16 or bfloat16"
            )
    try:
        tree = _tree(arrays)
        if _KEY in metadata:
            if not unsaid.is_empty:
                raise ValueError(
                    "says itself what the network is: --nonlinearity, --merge and "
                    "--residual must not be given"
                )
            network = _parsed(metadata[_KEY])
        else:
            _judge_used(tree, unsaid)
            network = _completed(tree, unsaid, "", None)
        return _built(network, tree, "")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} {error}") from error


def _described(layer: Any) -> dict[str, Any]:
    if isinstance(layer, Stack):
        inner = [_described(item) for item in layer.layers]
        return {"kind": "Stack", "residual": layer.residual, "layers": inner}
    if isinstance(layer, Bidirectional):
        if callable(layer.merge):
            raise ValueError(f"merge {describe(layer.merge)} has no name in a file")
        return {
            "kind": "Bidirectional",
            "merge": layer.merge,
            "forward": _described(layer.forward),
            "backward": _described(layer.backward),
        }
    if isinstance(layer, Reversed):
        return {"kind": "Reversed", "backward": _described(layer.backward)}
    kind = kind_of(layer)
    if kind is GRU:
        return {"kind": "GRU", "reset_after": layer.reset_after}
    if kind is not RNN:
        return {"kind": kind.__name__}
    activation = activation_of(layer.nonlinearity)
    if activation is None:
        raise ValueError(
            f"nonlinearity {describe(layer.nonlinearity)} has no name in a file"
        )
    return {"kind": "RNN", **activation._asdict()}


class _Ways(dict[str, "_Tree"]):
    """The arrays of two directions, or of the backward one alone."""


# Of a stack's layers, of directions, or of one layer by their names.
_Tree: TypeAlias = "list[_Tree] | _Ways | dict[str, mx.array]"


def _tree(arrays: Mapping[str, mx.array]) -> _Tree:
    """Return arrays in the places that their names say."""
    heads: dict[str, dict[str, mx.array]] = {}
    for name, a in arrays.items():
        head, _, rest = name.partition(".")
        heads.setdefault(head, {})[rest] = a
    if set(heads) == {"layers"}:
        return _stacked(heads["layers"])
    if set(heads) in ({"forward", "backward"}, {"backward"}):
        inner = _Ways({head: _tree(rest) for head, rest in heads.items()})
        if all(type(tree) is dict for tree in inner.values()):
            return inner
    if not heads:
        raise ValueError("holds no arrays")
    near = [kind for kind in KINDS if heads.keys() >= _REQUIRED[kind]]
    if not near:
        required = [[n for n in weight_names(k)[:2] if n not in heads] for k in KINDS]
        fewest = min(required, key=len)
        raise ValueError(
            f"has {_listed(arrays)}, which is no layer's: {', '.join(fewest)} must be "
            "there, or layers.0, forward and backward before it"
        )
    others = [[n for n in arrays if n not in _ALLOWED[kind]] for kind in near]
    if all(others):
        fewest = min(others, key=len)
        raise ValueError(f"has {_listed(fewest)}, which no layer to convert has")
    return dict(arrays)


def _kind_of(held: dict[str, mx.array], path: str) -> Kind:
    """Return what layer arrays are of, by their names and shapes."""
    kinds = [k for k in KINDS if _REQUIRED[k] <= held.keys() <= _ALLOWED[k]]
    if len(kinds) == 1:
        return kinds[0]
    shape = held["Wh"].shape
    for kind in kinds:
        if len(shape) == 2 and shape[0] == gates_in(kind) * shape[1]:
            return kind
    raise ValueError(
        f"has {path}Wh of shape {shape}, which must be (3 H, H) of a GRU or (4 H, H) "
        "of an LSTM"
    )


def _stacked(arrays: dict[str, mx.array]) -> list[_Tree]:
    layers: dict[str, dict[str, mx.array]] = {}
    for name, a in arrays.items():
        index, _, rest = name.partition(".")
        layers.setdefault(index, {})[rest] = a
    if set(layers) != {str(i) for i in range(len(layers))}:
        raise ValueError(
            f"has layers {', '.join(sorted(layers))}, which must be 0, 1, ... without "
            "gaps"
        )
    return [_tree(layers[str(i)]) for i in range(len(layers))]


def _parsed(text: str) -> dict[str, Any]:
    try:
        described = json.loads(text)
        version, network = described["version"], described["network"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"has damaged metadata {_KEY}: {error}") from error
    if version != _VERSION or not isinstance(network, dict):
        raise ValueError(
            f"has metadata of version {version!r}, which this mlx_recurrent cannot "
            f"read: it knows {_VERSION}"
        )
    return network


def _judge_used(tree: _Tree, unsaid: Unsaid) -> None:
    """Refuse options for what the names say is not there.

    Raises:
        ValueError: If there are no two directions, or no layers one after another.
    """
    if unsaid.activation is not None and not _named_in(tree, "Wxh"):
        raise ValueError("has no RNN: --nonlinearity must not be given")
    if unsaid.residual and not isinstance(tree, list):
        raise ValueError("has no stack of layers: --residual must not be given")
    if unsaid.merge is not None and not _named_in(tree, "forward"):
        raise ValueError("has no two directions: --merge must not be given")
    before = tree[:-1] if isinstance(tree, list) else []
    if unsaid.merge == "none" and _named_in(before, "forward"):
        raise ValueError(
            "has layers after one of two directions, which must be merged: --merge "
            "must not be none"
        )


def _named_in(tree: Any, name: str) -> bool:
    """Return whether an array or a direction has this name."""
    if isinstance(tree, list):
        return any(_named_in(inner, name) for inner in tree)
    return name in tree or (
        isinstance(tree, _Ways) and any(_named_in(t, name) for t in tree.values())
    )


def _completed(
    tree: _Tree, unsaid: Unsaid, path: str, following: int | None
) -> dict[str, Any]:
    """Return the description that names, shapes and options give.

    Args:
        tree: The arrays.
        unsaid (Unsaid): The options.
        path (str): What is before their names.
        following (int, optional): How many features the next layer takes.
    """
    if isinstance(tree, list):
        widths = [*(_features(inner, 0) for inner in tree[1:]), following]
        inner = [
            _completed(layer, unsaid, f"{path}layers.{i}.", width)
            for i, (layer, width) in enumerate(zip(tree, widths, strict=True))
        ]
        return {"kind": "Stack", "residual": unsaid.residual, "layers": inner}
    if isinstance(tree, _Ways):
        directions = {
            key: _completed(inner, unsaid, f"{path}{key}.", None)
            for key, inner in tree.items()
        }
        if "forward" not in tree:
            return {"kind": "Reversed", **directions}
        merge = unsaid.merge
        if merge is None and following is not None:
            if following == sum(_features(inner, 1) for inner in tree.values()):
                merge = "concat"
        if merge is None:
            raise ValueError(
                f"does not say what {path.rstrip('.') or 'the network'} makes of two "
                "directions: give --merge"
            )
        merge = None if merge == "none" else merge
        return {"kind": "Bidirectional", "merge": merge, **directions}
    kind = _kind_of(tree, path)
    if kind is GRU:
        # With biases the names tell it; without them it is as MLX's layer.
        after = "bhn" in tree or "b" not in tree
        return {"kind": "GRU", "reset_after": after}
    if kind is not RNN:
        return {"kind": kind.__name__}
    if unsaid.activation is None:
        raise ValueError("does not say the nonlinearity: give --nonlinearity")
    return {"kind": "RNN", **unsaid.activation._asdict()}


def _features(tree: Any, side: int) -> int:
    """Return how many features the first layer takes, 0, or gives, 1."""
    if isinstance(tree, list):
        return _features(tree[0], side)
    if isinstance(tree, _Ways):
        return _features(tree["backward"], side)
    a = next(
        a for kind in KINDS if (a := tree.get(weight_names(kind)[side])) is not None
    )
    return a.shape[-1] if a.ndim else 0


# What each kind of description is of, and what it says.
_DESCRIBED: dict[str, tuple[type, set[str]]] = {
    "Stack": (list, {"residual", "layers"}),
    "Bidirectional": (_Ways, {"merge", "forward", "backward"}),
    "Reversed": (_Ways, {"backward"}),
    "RNN": (dict, set(Activation._fields)),
    "GRU": (dict, {"reset_after"}),
    "LSTM": (dict, set()),
}


def _built(network: Any, tree: Any, path: str) -> Any:
    """Return the layers of a description; what is against the names is refused."""
    kind = str(network.get("kind")) if isinstance(network, dict) else ""
    of, says = _DESCRIBED.get(kind, (None, set()))
    fits = type(tree) is of and set(network) == {"kind", *says}
    if not fits:
        raise ValueError(
            f"has metadata {_KEY} that do not fit its arrays at {path or 'the root'}"
        )
    if of is dict:
        return _layer(network, tree, path)
    if of is list:
        inner = network["layers"]
        if not isinstance(inner, list) or len(inner) != len(tree):
            raise ValueError(
                f"has metadata {_KEY} of another number of layers than its arrays have"
            )
        pairs = enumerate(zip(inner, tree, strict=True))
        layers = [_built(item, at, f"{path}layers.{i}.") for i, (item, at) in pairs]
        return Stack(layers, residual=network["residual"] is True)
    if set(tree) != says - {"merge"}:
        raise ValueError(f"has metadata {_KEY} of other directions than its arrays")
    made = {key: _built(network[key], tree[key], f"{path}{key}.") for key in tree}
    if kind == "Reversed":
        return Reversed(made["backward"])
    if network["merge"] not in _MERGES:
        raise ValueError(f"has metadata with the merge {network['merge']!r}")
    return Bidirectional(made["forward"], made["backward"], network["merge"])


def _layer(network: dict[str, Any], held: dict[str, mx.array], path: str) -> Any:
    """Return one layer, found to be what the names and shapes say."""
    kind, options = _kind_of(held, path), {}
    if kind is GRU and network["kind"] == "GRU":
        options["reset_after"] = after = network["reset_after"]
        fits = {"b", "bhn"} & held.keys() in ({"b", "bhn"} if after else {"b"}, set())
    else:
        fits = network["kind"] == kind.__name__
    if not fits or options.get("reset_after", True) not in (True, False):
        raise ValueError(
            f"has metadata {_KEY} that do not fit its arrays at {path or 'the root'}"
        )
    if kind is RNN:
        given = [network[field] for field in Activation._fields]
        if not isinstance(given[0], str) or not all(
            value is None or (isinstance(value, (int, float)) and value is not True)
            for value in given[1:]
        ):
            raise ValueError(f"has metadata {_KEY} with the nonlinearity {given!r}")
        options["nonlinearity"] = nonlinearity_of(complete(*given))
    Wx, G = weight_names(kind)[0], gates_in(kind)
    if held[Wx].ndim != 2 or len(held[Wx]) < G:
        rows = "H" if G == 1 else f"{G} H"
        raise ValueError(
            f"has {path}{Wx} of shape {held[Wx].shape}, which must be ({rows}, D)"
        )
    for name, shape in shapes_of(kind, held[Wx]).items():
        if name in held and held[name].shape != shape:
            raise ValueError(
                f"has {path}{name} of shape {held[name].shape}, which must be {shape}"
            )
    return layer_of(kind, held, **options)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (", ..." if names[4:] else "")
