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
from mlx_recurrent.interop.gates import KINDS, Kind, Sides, gates_in, kind_of
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


class _Parts(NamedTuple):
    """What a cell calls its parts of the input and of the state, and which are biased.

    One part holds all gates, or each has its own, in the order of the rows here.
    """

    kind: Kind
    nnx: bool
    of_input: list[str]
    of_state: list[str]
    biased: list[str]


# Of two for one kind and library, the first is written. ``if_``: a word of Python's is
# no name there.
_PARTS = [
    _Parts(kind, nnx, *(names.split() for names in (of_input, of_state, biased)))
    for kind, nnx, of_input, of_state, biased in (
        (RNN, False, "i", "h", "i"),
        (GRU, False, "ir iz in", "hr hz hn", "ir iz in hn"),
        (LSTM, False, "ii if ig io", "hi hf hg ho", "hi hf hg ho"),
        (RNN, True, "dense_i", "dense_h", "dense_i"),
        (GRU, True, "dense_i", "dense_h", "dense_i"),
        (LSTM, True, "ii if_ ig io", "hi hf hg ho", "hi hf hg ho"),
        (LSTM, True, "dense_i", "dense_h", "dense_h"),
    )
]


def _parts_in(tree: Mapping[str, Any]) -> _Parts | None:
    """Return whose parts these are; of several with their names the shapes tell."""
    names = set(tree) - {"rngs"}  # which modules of nnx have beside parameters
    named = [p for p in _PARTS if names == {*p.of_input, *p.of_state}]
    if not named:
        return None
    held = tree[named[0].of_state[0]]
    kernel = held.get("kernel") if isinstance(held, Mapping) else None
    rows, *columns = getattr(kernel, "shape", None) or (0,)
    wide = [p for p in named if columns == [gates_in(p.kind) * rows]]
    return wide[0] if wide else named[0]


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

        if parts := _parts_in(tree):
            at = f"{name}[%r]"
            return _of_cell(tree, at, f"{at}[%r]", parts, self.nonlinearity)
        keys = set(tree) - {"rngs"}
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
        names = next(p for p in _PARTS if p.nnx and hasattr(cell, p.of_input[0]))
        tree: dict[str, dict[str, Any]] = {}
        for part in (*names.of_input, *names.of_state):
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
        return _of_cell(tree, at, f"{at}.%s", _parts_in(tree) or names, nonlinearity)

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
    nonlinearity: Nonlinearity | None,
) -> Layer:
    """Make a layer of a cell's parameters.

    Args:
        tree (dict): Its parts, with ``kernel`` and ``bias``.
        part_name (str): What a message calls a part, with a place for its name.
        leaf_name (str): What it calls an array, with places for two names.
        parts (tuple): The names of the parts.
        nonlinearity (callable, optional): Of an :class:`mlx_recurrent.RNN`.
    """
    kind = parts.kind
    for part in (*parts.of_input, *parts.of_state):
        allowed = {"kernel", "bias"} if part in parts.biased else {"kernel"}
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
    H = width * len(parts.of_input) // gates_in(kind)
    kernels, biases = [], []
    with mx.stream(mx.cpu):
        for names, features in ((parts.of_input, D), (parts.of_state, H)):
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
    bx, bh = (zeros if b is None else b for b in (sides.bx, sides.bh))
    if kind is LSTM:  # whose bias is the state's there
        bx, bh = bh, bx
    parts = next(p for p in _PARTS if (p.kind, p.nnx) == (kind, nnx))
    cell = {}
    for names, W, b in (
        (parts.of_input, sides.Wx, bx),
        (parts.of_state, sides.Wh, bh),
    ):
        for part, rows, bias in zip(
            names, np.split(W, len(names)), np.split(b, len(names)), strict=True
        ):
            held = {"kernel": rows.T}
            if part in parts.biased:
                held["bias"] = bias
            elif bias.any():
                raise ValueError(
                    f"{name} has bhn, which {target} of flax.nnx does not have"
                )
            cell[part] = {
                key: np.array(a, as_dtype, order="C") for key, a in held.items()
            }
    return {"cell": cell}
