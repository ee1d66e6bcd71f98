"""Parameters of Flax's recurrent cells as layers, and the way back."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.nn.layers import activations
from mlx.nn.layers.linear import Identity

from mlx_recurrent.functional.dispatch import Nonlinearity
from mlx_recurrent.functional.judging import judge_flag, shown, type_name
from mlx_recurrent.interop.activations import describe
from mlx_recurrent.interop.gates import KINDS, Kind, Sides, gates_in, gates_of, kind_of
from mlx_recurrent.interop.parts import (
    Layer,
    array_of,
    dropout_of,
    framework,
    judge_layer,
    judge_own,
    judge_type,
    judge_used,
    made_of,
    weights_of,
)
from mlx_recurrent.layers.bidirectional import Bidirectional, Merge
from mlx_recurrent.layers.gru import GRU
from mlx_recurrent.layers.lstm import LSTM
from mlx_recurrent.layers.rnn import RNN
from mlx_recurrent.layers.stack import Stack

_CELLS: dict[Kind, str] = {RNN: "SimpleCell", GRU: "GRUCell", LSTM: "LSTMCell"}
_LISTED = "SimpleCell, GRUCell or LSTMCell"
# The parts with a bias, of those that hold one gate or an only one.
_BIASED = frozenset("i ir iz in hn hi hf hg ho".split())


class _Parts(NamedTuple):
    """What a cell calls its parts: of the input, and of the state.

    One part holds all gates, or each has its own.
    """

    of_input: tuple[str, ...]
    of_state: tuple[str, ...]


def _parts_of(kind: Kind, nnx: bool) -> _Parts:
    if kind is RNN and not nnx:
        return _Parts(("i",), ("h",))
    if kind is not LSTM and nnx:
        return _FUSED
    gates = gates_of(kind, "flax")
    names = _Parts(*(tuple(f"{side}{g}" for g in gates) for side in "ih"))
    # A word of Python's is no name there.
    renamed = (f"{name}_" if nnx and name == "if" else name for name in names.of_input)
    return names._replace(of_input=tuple(renamed))


_FUSED = _Parts(("dense_i",), ("dense_h",))
_LAYOUTS = [(_parts_of(kind, nnx), kind) for nnx in (False, True) for kind in KINDS]


def from_flax(
    params: Any, *, nonlinearity: Nonlinearity | None = None, merge: Merge = "concat"
) -> Layer:
    """Make a layer of the parameters of Flax's recurrent cells.

    The weights are copied, the kernels transposed. Flax is imported for a module only:
    a tree of parameters is made of dictionaries and arrays. The layer computes in the
    dtype of its weights, whatever ``dtype`` is there, and inputs are batch first here,
    whatever ``time_major`` is there. An LSTM's states are ``(h, c)`` here and
    ``(c, h)`` there.

    Args:
        params (dict or Module or list): The parameters of a ``SimpleCell``,
            ``GRUCell``, ``LSTMCell`` or ``OptimizedLSTMCell``, or of an ``RNN``,
            ``Bidirectional`` or ``Sequential`` of such cells, as ``flax.linen`` or
            ``flax.nnx`` has them, also with ``"params"`` around them; such a module of
            ``flax.nnx``; or a list of these, one after another.
        nonlinearity (callable, optional): What stands for a ``SimpleCell``'s
            ``activation_fn``, which a tree does not tell: ``None`` is tanh there. For a
            module, what stands for a function other than tanh, relu, sigmoid and
            identity. Default: ``None``.
        merge (str or callable, optional): As for :class:`mlx_recurrent.Bidirectional`,
            in place of ``merge_fn``, which a tree does not tell.
            Default: ``"concat"``.

    Returns:
        Module: An :class:`mlx_recurrent.RNN`, :class:`mlx_recurrent.GRU` or
        :class:`mlx_recurrent.LSTM`, a :class:`mlx_recurrent.Bidirectional` or a
        :class:`mlx_recurrent.Stack` of them.

    Raises:
        ImportError: If a module is given and Flax is not installed.
        TypeError: If it is, or holds, something else.
        ValueError: If it holds the parameters of something else, or a shape or a dtype
            does not fit; if a module does what a layer does not do here, or shares
            weights with another.

    Example:
        >>> import flax.nnx
        >>> from mlx_recurrent.interop import from_flax
        >>> cell = flax.nnx.SimpleCell(3, 8, rngs=flax.nnx.Rngs(0))
        >>> from_flax(cell).Wxh.shape
        (8, 3)
    """
    layer = _Reader(nonlinearity, merge).read(params, "params")
    judge_used(nonlinearity, layer)
    return layer


def to_flax(layer: Layer, *, nnx: bool = False) -> dict[str, Any]:
    """Return a layer's parameters as Flax's tree, of NumPy arrays.

    It is that of an ``RNN`` of a ``SimpleCell``, ``GRUCell`` or ``LSTMCell``, of a
    ``Bidirectional`` of two, or of a ``Sequential`` of those. The nonlinearity and the
    merge are no parameters: give them to Flax as ``activation_fn`` and ``merge_fn``.
    The cells have a bias always; it is zero for a layer without. The ``GRUCell`` of
    ``flax.nnx`` has none for ``bhn``, which must be zero there.

    Args:
        layer (RNN or GRU or LSTM or Bidirectional or Stack): The layer.
        nnx (bool, optional): Whether the names are those of ``flax.nnx``, for
            ``nnx.update(module, tree)``, in place of those of ``flax.linen``, for
            ``module.apply({"params": tree}, x)``. Default: ``False``.

    Returns:
        dict: The tree.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the layer has what Flax's does not have.

    Example:
        >>> from mlx_recurrent import RNN
        >>> from mlx_recurrent.interop import to_flax
        >>> sorted(to_flax(RNN(3, 8))["cell"])
        ['h', 'i']
    """
    nnx = judge_flag("nnx", nnx)
    judge_type(layer, "layer")
    if not isinstance(layer, Stack):
        return _write(layer, "layer", nnx)
    for option, value in (("residual", layer.residual), ("dropout", dropout_of(layer))):
        if value:
            raise ValueError(
                f"layer has {option}, which Flax's Sequential does not have"
            )
    trees = [_write(inner, f"layers[{i}]", nnx) for i, inner in enumerate(layer.layers)]
    if nnx:
        return {"layers": dict(enumerate(trees))}
    return {f"layers_{i}": tree for i, tree in enumerate(trees)}


class _Reader:
    """Layers of trees of parameters and of modules.

    Args:
        nonlinearity (callable, optional): As :func:`from_flax` takes it.
        merge (str or callable, optional): Like that.
    """

    def __init__(self, nonlinearity: Nonlinearity | None, merge: Merge) -> None:
        self.nonlinearity, self.merge = nonlinearity, merge
        self.seen: dict[int, str] = {}

    def read(self, params: Any, name: str) -> Layer:
        """Make a layer of any of the kinds that there are."""
        if isinstance(params, (list, tuple)):
            return Stack(
                [self.read(inner, f"{name}[{i}]") for i, inner in enumerate(params)]
            )
        if isinstance(params, Mapping):
            return self._of_tree(params, name)
        return self._of_module(framework("flax.nnx", "from_flax"), params, name)

    def _of_tree(self, tree: Any, name: str) -> Layer:
        """Make a layer of a tree of parameters, by its names."""
        if not isinstance(tree, Mapping):
            raise TypeError(
                f"{name} must be a tree of parameters, but is {type_name(tree)}"
            )

        def read(*path: Any) -> Layer:
            inner, at = tree, name
            for key in path:
                inner, at = inner[key], f"{at}[{key!r}]"
            return self._of_tree(inner, at)

        keys = set(tree) - {"rngs"}  # which modules of nnx have beside parameters
        for parts, kind in _LAYOUTS:
            if keys == {*parts.of_input, *parts.of_state}:
                at = f"{name}[%r]"
                return _of_cell(tree, at, f"{at}[%r]", parts, kind, self.nonlinearity)
        for only in ("params", "cell"):
            if keys == {only}:
                return read(only)
        if keys == {"forward_rnn", "backward_rnn"}:
            return Bidirectional(read("forward_rnn"), read("backward_rnn"), self.merge)
        if keys == {"layers"} and isinstance(tree["layers"], Mapping):
            places = {str(i): i for i in tree["layers"]}
            numbers = [str(i) for i in range(len(places))]
            if places and set(places) == set(numbers):
                return Stack([read("layers", places[i]) for i in numbers])
        if keys and keys == {f"layers_{i}" for i in range(len(keys))}:
            return Stack([read(f"layers_{i}") for i in range(len(keys))])
        raise ValueError(
            f"{name} must be the parameters of Flax's {_LISTED}, or of an RNN, "
            "Bidirectional or Sequential of such cells, but holds "
            f"{', '.join(map(shown, sorted(keys, key=str)[:3])) or 'nothing'}"
        )

    def _of_module(self, nnx: Any, module: Any, name: str) -> Layer:
        """Make a layer of a module of nnx."""

        def read(inner: Any, at: str) -> Layer:
            return self._of_module(nnx, inner, f"{name}.{at}")

        kind = type(module)  # a subclass may do anything
        if kind in (
            nnx.SimpleCell,
            nnx.GRUCell,
            nnx.LSTMCell,
            nnx.OptimizedLSTMCell,
        ):
            return self._of_nnx_cell(nnx, module, name)
        if kind is nnx.RNN:
            if module.reverse:
                raise ValueError(
                    f"{name} has reverse=True, which is an argument of the call here: "
                    "convert it with reverse=False"
                )
            return read(module.cell, "cell")
        if kind is nnx.Bidirectional:
            merges = module.merge_fn is nnx.Bidirectional.merge_fn
            if not merges and self.merge == "concat":
                raise ValueError(
                    f"{name} has the merge_fn {describe(module.merge_fn)}, which has "
                    "no name here: give a function of MLX as merge"
                )
            for part in ("forward_rnn", "backward_rnn"):
                inner = getattr(module, part)
                if type(inner) is not nnx.RNN:
                    raise TypeError(
                        f"{name}.{part} must be a flax.nnx.RNN, but is "
                        f"{type_name(inner)}"
                    )
            # Their own directions do not count there.
            return Bidirectional(
                read(module.forward_rnn.cell, "forward_rnn.cell"),
                read(module.backward_rnn.cell, "backward_rnn.cell"),
                self.merge,
            )
        if kind is nnx.Sequential:
            return Stack(
                [read(inner, f"layers[{i}]") for i, inner in enumerate(module.layers)]
            )
        raise TypeError(
            f"{name} must be a tree of parameters, or a flax.nnx {_LISTED}, RNN, "
            f"Bidirectional or Sequential, but is {type_name(module)} (a module of "
            "flax.linen does not hold its parameters: give those)"
        )

    def _of_nnx_cell(self, nnx: Any, cell: Any, name: str) -> Layer:
        """Make a layer of a cell of nnx."""
        if cell.carry_init not in (None, nnx.initializers.zeros):
            raise ValueError(
                f"{name} has the carry_init {describe(cell.carry_init)}, but a layer "
                "starts from zeros: convert it without, and give its values as hidden "
                "in the call"
            )
        parts = _parts_of(LSTM, nnx=True) if type(cell) is nnx.LSTMCell else _FUSED
        tree: dict[str, dict[str, Any]] = {}
        for part in (*parts.of_input, *parts.of_state):
            dense, tree[part] = getattr(cell, part), {}
            if type(dense) is not nnx.Linear:
                raise TypeError(
                    f"{name}.{part} must be a flax.nnx.Linear, but is "
                    f"{type_name(dense)}"
                )
            for leaf in ("kernel", "bias"):
                if (array := getattr(dense, leaf)) is not None:
                    judge_own(array, f"{name}.{part}.{leaf}", self.seen)
                    tree[part][leaf] = array
        if getattr(cell, "residual", False):
            raise ValueError(f"{name} has residual=True, which a layer does not have")
        jax = framework("jax", "from_flax")
        simple = type(cell) is nnx.SimpleCell
        nonlinearity = None
        if simple:
            nonlinearity = self._nonlinearity(jax, cell, name)
        for function, known in (
            ("gate_fn", jax.nn.sigmoid),
            ("activation_fn", jax.numpy.tanh),
        ):
            own = getattr(cell, function, known)
            if not simple and own is not known:
                raise ValueError(
                    f"{name} has the {function} {describe(own)}, where a layer of that "
                    f"kind has {describe(known)}"
                )
        at = f"{name}.%s"
        return _of_cell(tree, at, f"{at}.%s", parts, LSTM, nonlinearity)

    def _nonlinearity(self, jax: Any, cell: Any, name: str) -> Nonlinearity | None:
        """Return what a cell's activation is in MLX."""
        known: list[tuple[Any, Nonlinearity | None]] = [
            (jax.numpy.tanh, None),
            (jax.nn.relu, activations.relu),
            (jax.nn.sigmoid, mx.sigmoid),
            (jax.nn.identity, Identity()),
        ]
        same = [f for theirs, f in known if theirs is cell.activation_fn]
        if not same and self.nonlinearity is None:
            raise ValueError(
                f"{name} has the activation_fn {describe(cell.activation_fn)}, which "
                "is not tanh, relu, sigmoid or identity: give a function of MLX as "
                "nonlinearity"
            )
        return same[0] if same else self.nonlinearity


def _of_cell(
    tree: Mapping[str, Any],
    part_name: str,
    leaf_name: str,
    parts: _Parts,
    kind: Kind,
    nonlinearity: Nonlinearity | None,
) -> Layer:
    """Make a layer of a cell's parameters.

    Args:
        tree (dict): Its parts, with ``kernel`` and ``bias``.
        part_name (str): What a message calls a part, with a place for its name.
        leaf_name (str): What it calls an array, with places for two names.
        parts (tuple): The names of the parts.
        kind (type): What they make, where there is no more than one gate in each.
        nonlinearity (callable, optional): Of an :class:`mlx_recurrent.RNN`.
    """
    if parts == _FUSED:
        kind = _fused_kind(tree)
    for part in (*parts.of_input, *parts.of_state):
        allowed = {"kernel", "bias"} if _has_bias(part, kind) else {"kernel"}
        held = tree[part]
        if not isinstance(held, Mapping) or not {"kernel"} <= set(held) <= allowed:
            raise ValueError(
                f"{part_name % part} must hold {' and '.join(sorted(allowed))} as "
                f"in Flax's {_CELLS[kind]}, but is or holds something else"
            )

    def array(part: str, leaf: str, shape: Any = None) -> mx.array:
        return array_of(leaf_name % (part, leaf), tree[part][leaf], shape)

    first = array(parts.of_input[0], "kernel")
    if first.ndim != 2:
        at = leaf_name % (parts.of_input[0], "kernel")
        raise ValueError(f"{at} must have two axes, but is {first.shape}")
    D, width = first.shape
    H = width // gates_in(kind) if parts == _FUSED else width
    kernels, biases = [], []
    with mx.stream(mx.cpu):
        for names, features in zip(parts, (D, H), strict=True):
            found = [array(part, "kernel", (features, width)) for part in names]
            kernels.append(mx.concatenate(found, axis=1).T)
            found = [
                array(part, "bias", (width,))
                if "bias" in tree[part]
                else mx.zeros((width,), first.dtype)
                for part in names
            ]
            has = any("bias" in tree[part] for part in names)
            biases.append(mx.concatenate(found) if has else None)
    options = {"nonlinearity": nonlinearity} if kind is RNN else {}
    made: Layer = made_of(kind, Sides(*kernels, *biases), "flax", **options)
    return made


def _fused_kind(tree: Mapping[str, Any]) -> Kind:
    """Return what a cell is whose parts hold all gates."""
    held = tree["dense_h"]
    kernel = held.get("kernel") if isinstance(held, Mapping) else None
    shape = tuple(getattr(kernel, "shape", ()))
    for kind in KINDS:
        if len(shape) == 2 and shape[1] == gates_in(kind) * shape[0]:
            return kind
    return RNN


def _has_bias(part: str, kind: Kind) -> bool:
    """Return whether a part of a cell has a bias."""
    if part in ("dense_i", "dense_h"):
        return part == ("dense_h" if kind is LSTM else "dense_i")
    return part in _BIASED


def _write(layer: Any, name: str, nnx: bool) -> dict[str, Any]:
    """Return the tree of a layer or of both directions."""
    judge_type(layer, name)
    if isinstance(layer, Bidirectional):
        return {
            "forward_rnn": _write(layer.forward, f"{name}.forward", nnx),
            "backward_rnn": _write(layer.backward, f"{name}.backward", nnx),
        }
    known = _CELLS.get(kind_of(layer)) if isinstance(layer, KINDS) else "SimpleCell"
    target = f"Flax's {known}"
    kind = kind_of(judge_layer(layer, name, target))
    sides, dtype = weights_of(layer, name, "flax")
    as_dtype = np.dtype(
        framework("ml_dtypes", "to_flax").bfloat16 if dtype == "bfloat16" else dtype
    )
    zeros = np.zeros(len(sides.Wh))
    biases = [zeros if b is None else b for b in (sides.bx, sides.bh)]
    parts, cell = _parts_of(kind, nnx), {}
    for names, W, b in zip(
        parts, sides[:2], biases[::-1] if kind is LSTM else biases, strict=True
    ):
        for part, rows, bias in zip(
            names, np.split(W, len(names)), np.split(b, len(names)), strict=True
        ):
            held = {"kernel": rows.T}
            if _has_bias(part, kind):
                held["bias"] = bias
            elif bias.any():
                raise ValueError(
                    f"{name} has bhn, which {target} of flax.nnx does not have"
                )
            cell[part] = {
                key: np.array(a, as_dtype, order="C") for key, a in held.items()
            }
    return {"cell": cell}
