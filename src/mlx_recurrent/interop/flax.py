"""Parameters of Flax's simple cells as layers, and the way back."""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers import activations
from mlx.nn.layers.linear import Identity

from mlx_recurrent.functional.dispatch import Nonlinearity
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
    judge_used,
    layer_of,
    weights_of,
)
from mlx_recurrent.layers.bidirectional import Bidirectional, Merge
from mlx_recurrent.layers.rnn import RNN
from mlx_recurrent.layers.stack import Stack

# The input's and the state's part of a cell, in linen and in nnx.
_LINEN = ("i", "h")
_NNX = ("dense_i", "dense_h")


def from_flax(
    params: Any, *, nonlinearity: Nonlinearity | None = None, merge: Merge = "concat"
) -> Layer:
    """Make a layer of the parameters of Flax's ``SimpleCell``.

    The weights are copied, the kernels transposed. Flax is imported for a module only:
    a tree of parameters is made of dictionaries and arrays. The layer computes in the
    dtype of its weights, whatever ``dtype`` is there, and inputs are batch first here,
    whatever ``time_major`` is there.

    Args:
        params (dict or Module or list): The parameters of a ``SimpleCell``, or of an
            ``RNN``, ``Bidirectional`` or ``Sequential`` of such cells, as
            ``flax.linen`` or ``flax.nnx`` has them, also with ``"params"`` around them;
            such a module of ``flax.nnx``; or a list of these, one after another.
        nonlinearity (callable, optional): What stands for ``activation_fn``, which a
            tree does not tell: ``None`` is tanh there. For a module, what stands for a
            function other than tanh, relu, sigmoid and identity. Default: ``None``.
        merge (str or callable, optional): As for :class:`mlx_recurrent.Bidirectional`,
            in place of ``merge_fn``, which a tree does not tell.
            Default: ``"concat"``.

    Returns:
        RNN or Bidirectional or Stack: The layer.

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
    layer = _read(params, "params", nonlinearity, merge, {})
    judge_used(nonlinearity, layer)
    return layer


def to_flax(layer: Layer, *, nnx: bool = False) -> dict[str, Any]:
    """Return a layer's parameters as Flax's tree, of NumPy arrays.

    It is that of an ``RNN`` of a ``SimpleCell``, of a ``Bidirectional`` of two, or of a
    ``Sequential`` of those. The nonlinearity and the merge are no parameters: give them
    to Flax as ``activation_fn`` and ``merge_fn``. ``SimpleCell`` has a bias always; it
    is zero for a layer without.

    Args:
        layer (RNN or Bidirectional or Stack): The layer.
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
    names = _NNX if judge_flag("nnx", nnx) else _LINEN
    judge_type(layer, "layer")
    if not isinstance(layer, Stack):
        return _write(layer, "layer", names)
    for option, value in (("residual", layer.residual), ("dropout", dropout_of(layer))):
        if value:
            raise ValueError(
                f"layer has {option}, which Flax's Sequential does not have"
            )
    trees = [
        _write(inner, f"layers[{i}]", names) for i, inner in enumerate(layer.layers)
    ]
    if nnx:
        return {"layers": dict(enumerate(trees))}
    return {f"layers_{i}": tree for i, tree in enumerate(trees)}


def _read(
    params: Any,
    name: str,
    nonlinearity: Nonlinearity | None,
    merge: Merge,
    seen: dict[int, str],
) -> Layer:
    """Make a layer of any of the kinds that there are."""
    if isinstance(params, (list, tuple)):
        return Stack(
            [
                _read(inner, f"{name}[{i}]", nonlinearity, merge, seen)
                for i, inner in enumerate(params)
            ]
        )
    if isinstance(params, Mapping):
        return _from_tree(params, name, nonlinearity, merge)
    nnx = framework("flax.nnx", "from_flax")
    return _from_module(nnx, params, name, nonlinearity, merge, seen)


def _from_tree(
    tree: Any, name: str, nonlinearity: Nonlinearity | None, merge: Merge
) -> Layer:
    """Make a layer of a tree of parameters, by its names."""
    if not isinstance(tree, Mapping):
        raise TypeError(
            f"{name} must be a tree of parameters, but is {type_name(tree)}"
        )

    def read(*path: Any) -> Layer:
        inner, at = tree, name
        for key in path:
            inner, at = inner[key], f"{at}[{key!r}]"
        return _from_tree(inner, at, nonlinearity, merge)

    keys = set(tree) - {"rngs"}  # which modules of nnx have beside parameters
    for parts in (_LINEN, _NNX):
        if keys == set(parts):
            return _from_cell(tree, name, parts, nonlinearity)
    for only in ("params", "cell"):
        if keys == {only}:
            return read(only)
    if keys == {"forward_rnn", "backward_rnn"}:
        return Bidirectional(read("forward_rnn"), read("backward_rnn"), merge)
    if keys == {"layers"} and isinstance(tree["layers"], Mapping):
        places = {str(i): i for i in tree["layers"]}
        numbers = [str(i) for i in range(len(places))]
        if places and set(places) == set(numbers):
            return Stack([read("layers", places[i]) for i in numbers])
    if keys and keys == {f"layers_{i}" for i in range(len(keys))}:
        return Stack([read(f"layers_{i}") for i in range(len(keys))])
    raise ValueError(
        f"{name} must be the parameters of Flax's SimpleCell, or of an RNN, "
        "Bidirectional or Sequential of such cells, but holds "
        f"{', '.join(map(shown, sorted(keys, key=str)[:3])) or 'nothing'}"
    )


def _from_cell(
    tree: Mapping[str, Any],
    name: str,
    parts: tuple[str, str],
    nonlinearity: Nonlinearity | None,
) -> RNN:
    """Make a layer of a cell's parameters."""
    for part, allowed in zip(parts, ({"kernel", "bias"}, {"kernel"}), strict=True):
        if not isinstance(tree[part], Mapping) or not (
            {"kernel"} <= set(tree[part]) <= allowed
        ):
            raise ValueError(
                f"{name}[{part!r}] must hold {' and '.join(sorted(allowed))} as in "
                "Flax's SimpleCell, but is or holds something else"
            )
    given, state = (tree[part] for part in parts)
    return _layer(
        (f"{name}[{parts[0]!r}]['kernel']", given["kernel"]),
        (f"{name}[{parts[1]!r}]['kernel']", state["kernel"]),
        (f"{name}[{parts[0]!r}]['bias']", given.get("bias")),
        nonlinearity,
    )


def _layer(
    kernel: tuple[str, Any],
    recurrent: tuple[str, Any],
    bias: tuple[str, Any],
    nonlinearity: Nonlinearity | None,
) -> RNN:
    """Make a layer of Flax's arrays, each with its name."""
    Wxh = array_of(*kernel)
    if Wxh.ndim != 2:
        raise ValueError(f"{kernel[0]} must have two axes, but is {Wxh.shape}")
    H = Wxh.shape[1]
    Whh = array_of(*recurrent, (H, H))
    b = None if bias[1] is None else array_of(*bias, (H,))
    return layer_of(Wxh.T, Whh.T, b, nonlinearity)


def _from_module(
    nnx: Any,
    module: Any,
    name: str,
    nonlinearity: Nonlinearity | None,
    merge: Merge,
    seen: dict[int, str],
) -> Layer:
    """Make a layer of a module of nnx."""

    def read(inner: Any, at: str) -> Layer:
        return _from_module(nnx, inner, f"{name}.{at}", nonlinearity, merge, seen)

    kind = type(module)  # a subclass may do anything
    if kind is nnx.SimpleCell:
        return _from_simple_cell(nnx, module, name, nonlinearity, seen)
    if kind is nnx.RNN:
        if module.reverse:
            raise ValueError(
                f"{name} has reverse=True, which is an argument of the call here: "
                "convert it with reverse=False"
            )
        return read(module.cell, "cell")
    if kind is nnx.Bidirectional:
        if module.merge_fn is not nnx.Bidirectional.merge_fn and merge == "concat":
            raise ValueError(
                f"{name} has the merge_fn {describe(module.merge_fn)}, which has no "
                "name here: give a function of MLX as merge"
            )
        for part in ("forward_rnn", "backward_rnn"):
            inner = getattr(module, part)
            if type(inner) is not nnx.RNN:
                raise TypeError(
                    f"{name}.{part} must be a flax.nnx.RNN, but is {type_name(inner)}"
                )
        # Their own directions do not count there.
        return Bidirectional(
            read(module.forward_rnn.cell, "forward_rnn.cell"),
            read(module.backward_rnn.cell, "backward_rnn.cell"),
            merge,
        )
    if kind is nnx.Sequential:
        return Stack(
            [read(inner, f"layers[{i}]") for i, inner in enumerate(module.layers)]
        )
    raise TypeError(
        f"{name} must be a tree of parameters, or a flax.nnx SimpleCell, RNN, "
        f"Bidirectional or Sequential, but is {type_name(module)} (a module of "
        "flax.linen does not hold its parameters: give those)"
    )


def _from_simple_cell(
    nnx: Any,
    cell: Any,
    name: str,
    nonlinearity: Nonlinearity | None,
    seen: dict[int, str],
) -> RNN:
    """Make a layer of a cell of nnx."""
    if cell.carry_init not in (None, nnx.initializers.zeros):
        raise ValueError(
            f"{name} has the carry_init {describe(cell.carry_init)}, but a layer "
            "starts from zeros: convert it without, and give its values as hidden in "
            "the call"
        )
    for part in _NNX:
        dense = getattr(cell, part)
        if type(dense) is not nnx.Linear:
            raise TypeError(
                f"{name}.{part} must be a flax.nnx.Linear, but is {type_name(dense)}"
            )
        for weight in ("kernel", "bias"):
            if (array := getattr(dense, weight)) is not None:
                judge_own(array, f"{name}.{part}.{weight}", seen)
    if cell.dense_h.bias is not None:
        raise ValueError(
            f"{name}.dense_h must have no bias, as in Flax's SimpleCell, but has one"
        )
    if cell.residual:
        raise ValueError(f"{name} has residual=True, which a layer does not have")
    jax = framework("jax", "from_flax")
    known: list[tuple[Any, Nonlinearity | None]] = [
        (jax.numpy.tanh, None),
        (jax.nn.relu, activations.relu),
        (jax.nn.sigmoid, mx.sigmoid),
        (jax.nn.identity, Identity()),
    ]
    same = [f for theirs, f in known if theirs is cell.activation_fn]
    if not same and nonlinearity is None:
        raise ValueError(
            f"{name} has the activation_fn {describe(cell.activation_fn)}, which is "
            "not tanh, relu, sigmoid or identity: give a function of MLX as "
            "nonlinearity"
        )
    return _layer(
        (f"{name}.dense_i.kernel", cell.dense_i.kernel),
        (f"{name}.dense_h.kernel", cell.dense_h.kernel),
        (f"{name}.dense_i.bias", cell.dense_i.bias),
        same[0] if same else nonlinearity,
    )


def _write(layer: Any, name: str, names: tuple[str, str]) -> dict[str, Any]:
    """Return the tree of a layer or of both directions."""
    judge_type(layer, name)
    if isinstance(layer, Bidirectional):
        return {
            "forward_rnn": _write(layer.forward, f"{name}.forward", names),
            "backward_rnn": _write(layer.backward, f"{name}.backward", names),
        }
    judge_layer(layer, name, "Flax's SimpleCell", ())
    weights, dtype = weights_of(layer, name)
    H = len(weights["Whh"])
    kind = np.dtype(
        framework("ml_dtypes", "to_flax").bfloat16 if dtype == "bfloat16" else dtype
    )
    parts = (
        {"kernel": weights["Wxh"].T, "bias": weights.get("bias", np.zeros(H))},
        {"kernel": weights["Whh"].T},
    )
    return {
        "cell": {
            part: {key: np.array(a, kind, order="C") for key, a in arrays.items()}
            for part, arrays in zip(names, parts, strict=True)
        }
    }
