"""Keras's recurrent layers as layers, and the way back."""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers import activations
from mlx.nn.layers.linear import Identity

from mlx_recurrent.functional.dispatch import Nonlinearity, recognise
from mlx_recurrent.functional.judging import judge_flag, type_name
from mlx_recurrent.interop.activations import describe
from mlx_recurrent.interop.gates import KINDS, Kind, Sides, kind_of, weight_sizes
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
    singles_of,
    weights_of,
)
from mlx_recurrent.layers.bidirectional import Bidirectional
from mlx_recurrent.layers.gru import GRU
from mlx_recurrent.layers.lstm import LSTM
from mlx_recurrent.layers.rnn import RNN
from mlx_recurrent.layers.stack import Stack

_LAYERS: dict[Kind, str] = {RNN: "SimpleRNN", GRU: "GRU", LSTM: "LSTM"}
# What our own compute, of what Keras leaves open.
_FIXED = {"activation": "tanh", "recurrent_activation": "sigmoid"}


def leaky_relu(a: mx.array) -> mx.array:
    """Return ``a``, or a fifth of it below zero: Keras's default slope."""
    return mx.maximum(0.2 * a, a)


def selu(a: mx.array) -> mx.array:
    """Return SELU, whose constants :func:`mlx.nn.selu` has to six places only.

    They are those of Klambauer et al., "Self-Normalizing Neural Networks" (2017).
    """
    below = 1.6732632423543772 * mx.expm1(a)
    return 1.0507009873554805 * mx.where(a > 0, a, below)


def hard_sigmoid(a: mx.array) -> mx.array:
    """Return ``relu6(a + 3) / 6``, Keras's since version 3."""
    return mx.clip(a + 3, 0, 6) / 6


def log_softmax(a: mx.array) -> mx.array:
    """Return the logarithm of softmax, over the last axis.

    :func:`mlx.nn.log_softmax`, which is compiled, ends the process where that has one
    element.
    """
    if a.shape[-1] == 1:
        return a - a  # zero, but for what is not finite
    a = a - mx.stop_gradient(mx.max(a, axis=-1, keepdims=True))
    return a - mx.logsumexp(a, axis=-1, keepdims=True)


# Keras's names for what the kernels have built in,
_NATIVE: dict[str, Nonlinearity | None] = {
    "tanh": None,
    "relu": activations.relu,
    "sigmoid": mx.sigmoid,
    "linear": Identity(),
}
# and for all else that has the same meaning in both.
_OTHERS: dict[str, Nonlinearity] = {
    "celu": activations.celu,
    "elu": activations.elu,
    "exponential": mx.exp,
    "gelu": activations.gelu,
    "hard_shrink": activations.hard_shrink,
    "hard_sigmoid": hard_sigmoid,
    "hard_silu": activations.hardswish,
    "hard_tanh": activations.hard_tanh,
    "leaky_relu": leaky_relu,
    "log_sigmoid": activations.log_sigmoid,
    "log_softmax": log_softmax,
    "mish": activations.mish,
    "relu6": activations.relu6,
    "selu": selu,
    "silu": activations.silu,
    "soft_shrink": activations.softshrink,
    "softmax": activations.softmax,
    "softplus": activations.softplus,
    "softsign": activations.softsign,
}
_KINDS = (
    "a recurrent layer of Keras (SimpleRNN, GRU, LSTM, a cell of these, RNN, "
    "StackedRNNCells, Bidirectional, or a Sequential or list of these)"
)
_BUILT_IN_NAMES = {"identity": "linear"}
_MERGES = {"ave": "mean"}
_MERGE_MODES = {"mean": "ave"}


def from_keras(layer: Any, *, nonlinearity: Nonlinearity | None = None) -> Layer:
    """Make a layer of Keras's.

    The weights are copied, the kernels transposed; ``dropout`` becomes
    ``input_dropout``. What Keras decides at construction is here an argument of the
    call: the layer returns the whole sequence unless ``return_state`` is ``"only"``.

    Args:
        layer (Layer or list): A ``SimpleRNN``, ``GRU`` or ``LSTM``, a cell of these
            (``LSTMCell``), an ``RNN`` of such cells, a ``Bidirectional`` of these, or a
            ``Sequential`` or list of them, between whose layers may be ``Dropout`` of
            one rate. All of them built. Of a larger model take its recurrent layers,
            ``model.get_layer("rnn")``.
        nonlinearity (callable, optional): What stands here for activations of a
            ``SimpleRNN`` that no function of MLX equals, such as one's own.
            Default: ``None``.

    Returns:
        Module: An :class:`mlx_recurrent.RNN`, :class:`mlx_recurrent.GRU` (with its
        ``reset_after``) or :class:`mlx_recurrent.LSTM`, or a
        :class:`mlx_recurrent.Bidirectional`; several, or stacked cells, are a
        :class:`mlx_recurrent.Stack`.

    Raises:
        ImportError: If Keras is not installed.
        TypeError: If it is, or holds, another layer. It names what is recurrent in a
            model.
        ValueError: If it is not built, or does what a layer does not do here, or if
            two layers share their weights.

    Example:
        >>> import keras
        >>> from mlx_recurrent.interop import from_keras
        >>> layer = keras.layers.SimpleRNN(8)
        >>> layer.build((None, None, 3))
        >>> from_keras(layer).Wxh.shape
        (8, 3)
    """
    keras = framework("keras", "from_keras")
    _judge_kinds(keras, layer)
    converted: Layer = _Reader(keras, nonlinearity).read(layer, "layer")
    judge_used(nonlinearity, converted)
    return converted


def to_keras(layer: Layer, *, return_sequences: bool = True) -> Any:
    """Make a layer Keras's, built and with its weights.

    Args:
        layer (RNN or GRU or LSTM or Bidirectional or Stack): The layer.
        return_sequences (bool, optional): Whether the Keras layer returns the whole
            sequence, as the layer does, or its last output. Default: ``True``.

    Returns:
        Layer: A ``SimpleRNN``, ``GRU`` or ``LSTM``, a ``Bidirectional`` of two, or for
        a stack a ``Sequential`` of those, with ``Dropout`` between them where the stack
        has it.

    Raises:
        ImportError: If Keras is not installed.
        TypeError: If an argument is of the wrong type.
        ValueError: If the layer has what Keras's does not have.

    Example:
        >>> from mlx_recurrent import RNN
        >>> from mlx_recurrent.interop import to_keras
        >>> to_keras(RNN(3, 8)).units
        8
    """
    keras = framework("keras", "to_keras")
    return_sequences = judge_flag("return_sequences", return_sequences)
    judge_type(layer, "layer")
    if not isinstance(layer, Stack):
        return _write(keras, layer, "layer", return_sequences)
    if layer.residual:
        raise ValueError("layer has residual, which keras.Sequential does not have")
    rate = dropout_of(layer)
    last = len(layer.layers) - 1
    written: list[Any] = []
    for i, inner in enumerate(layer.layers):
        written.append(
            _write(keras, inner, f"layers[{i}]", i < last or return_sequences)
        )
        if rate and i < last:
            written.append(keras.layers.Dropout(rate, dtype=written[-1].dtype_policy))
    D, dtype = _features(layer.layers[0]), written[0].variable_dtype
    return keras.Sequential([keras.Input((None, D), dtype=dtype), *written])


def _judge_kinds(keras: Any, model: Any) -> None:
    """Raise a ``TypeError`` for a layer in the way, and for a model that is no row.

    It says how to take what is recurrent out of a model.
    """
    known = keras.layers
    kinds = {*_loops(keras), *_cells(keras), known.StackedRNNCells}
    kinds.add(known.Bidirectional)
    for name, layer in _leaves(keras, model, "layer"):
        if type(layer) in kinds:
            kinds.add(known.Dropout)  # behind it
            continue
        found = type_name(layer)
        if name != "layer":
            found += f" {getattr(layer, 'name', '')!r}"
        raise TypeError(
            f"{name} must be {_KINDS}, but is {found}{_way_out(keras, model)}"
        )


def _way_out(keras: Any, model: Any) -> str:
    """Return how an error ends: how to name what is recurrent in a model."""
    if not isinstance(model, keras.Model):
        return ""
    parts = list(_parts(keras, model, "model"))
    if not parts:
        return ", and there is no such layer in the model"
    if len(parts) == 1:
        return f": from_keras({parts[0]}) takes the recurrent layer alone"
    return (
        f": from_keras takes {' and '.join(parts)} alone, or a list of those of them "
        "that follow each other"
    )


def _leaves(keras: Any, layer: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the layers of a Sequential or list, nested ones too, with their places.

    Without those that only say what the input is.
    """
    if type(layer) is keras.Sequential:
        layer, name = layer.layers, f"{name}.layers"
    if isinstance(layer, (list, tuple)):
        for i, inner in enumerate(layer):
            yield from _leaves(keras, inner, f"{name}[{i}]")
    elif type(layer) is not keras.layers.InputLayer:
        yield name, layer


def _parts(keras: Any, model: Any, path: str) -> Iterator[str]:
    """Yield how to name what is recurrent in a model, layer by layer."""
    for inner in getattr(model, "layers", ()):
        at = f'{path}.get_layer("{inner.name}")'
        if _is_recurrent(keras, inner):
            yield at
        elif type(inner) is keras.layers.TimeDistributed:
            if _is_recurrent(keras, inner.layer):
                yield f"{at}.layer"
        else:
            yield from _parts(keras, inner, at)


def _is_recurrent(keras: Any, layer: Any) -> bool:
    """Return whether a layer is of a kind that becomes one here."""
    known = keras.layers
    kind = type(layer)
    if kind is known.Bidirectional:
        return _is_recurrent(keras, layer.forward_layer)
    if kind in _loops(keras):
        return _is_recurrent(keras, layer.cell)
    if kind is known.StackedRNNCells:
        return all(_is_recurrent(keras, cell) for cell in layer.cells)
    return kind in _cells(keras)


class _Reader:
    """Layers of Keras's.

    Args:
        keras (module): Keras.
        nonlinearity (callable, optional): As :func:`from_keras` takes it.
    """

    def __init__(self, keras: Any, nonlinearity: Nonlinearity | None) -> None:
        self.keras, self.nonlinearity = keras, nonlinearity
        self.seen: dict[int, str] = {}

    def read(self, layer: Any, name: str) -> Any:
        """Make a layer of one of any of the kinds that there are."""
        keras, kind = self.keras, type(layer)  # a subclass may do anything
        if kind is keras.Sequential or isinstance(layer, (list, tuple)):
            return self._several(layer, name)
        if kind is keras.layers.StackedRNNCells:
            return Stack(
                [
                    self.read(cell, f"{name}.cells[{i}]")
                    for i, cell in enumerate(layer.cells)
                ]
            )
        if (ours := _cells(keras).get(kind)) is not None:
            return self._cell(layer, ours, name)
        if kind in _loops(keras):
            _judge_call(layer, name)
            if layer.go_backwards:
                raise ValueError(
                    f"{name} has go_backwards=True, but here reverse=True is an "
                    "argument of the call, with outputs at their inputs' places: "
                    "convert it with go_backwards=False"
                )
            return self.read(layer.cell, f"{name}.cell")
        if kind is keras.layers.Bidirectional:
            return self._both(layer, name)
        raise TypeError(f"{name} must be {_KINDS}, but is {type_name(layer)}")

    def _several(self, layers: Any, name: str) -> Stack:
        """Make a stack of a Sequential or of a list."""
        if not isinstance(layers, (list, tuple)):
            layers, name = layers.layers, f"{name}.layers"
        dropout = self.keras.layers.Dropout
        read: list[Layer] = []
        rates: list[float] = []
        for i, layer in enumerate(layers):
            if type(layer) is self.keras.layers.InputLayer:
                continue
            if type(layer) is dropout and len(rates) == len(read) - 1:
                if layer.noise_shape is not None:
                    raise ValueError(
                        f"{name}[{i}] has noise_shape, which a Stack's dropout does "
                        "not have"
                    )
                rates.append(layer.rate)
                continue
            if len(rates) < len(read):
                rates.append(0.0)
            read.append(self.read(layer, f"{name}[{i}]"))
            is_last = all(type(other) is dropout for other in layers[i + 1 :])
            if not is_last and not getattr(layer, "return_sequences", True):
                raise ValueError(
                    f"{name}[{i}] has return_sequences=False, but the layer after it "
                    "takes a sequence"
                )
        if len(rates) == len(read) and read:
            raise ValueError(
                f"{name} must not end with Dropout, which a Stack has between layers "
                "only: give a list of the layers before it"
            )
        if len(set(rates)) > 1:
            raise ValueError(
                f"{name} must have one rate of dropout between its layers, as a Stack "
                f"has, but has {rates}"
            )
        return Stack(read, rates[0] if rates else 0.0)

    def _both(self, layer: Any, name: str) -> Bidirectional:
        """Make both directions of Keras's."""
        directions = []
        for part, backwards in (("forward_layer", False), ("backward_layer", True)):
            inner, at = getattr(layer, part), f"{name}.{part}"
            if type(inner) not in _loops(self.keras):
                raise TypeError(
                    f"{at} must be a Keras SimpleRNN, GRU, LSTM or RNN, but is "
                    f"{type_name(inner)}"
                )
            _judge_call(inner, at)
            if inner.go_backwards is not backwards:
                raise ValueError(
                    f"{at} must have go_backwards={backwards}: with directions "
                    "exchanged Keras returns the steps in reverse"
                )
            directions.append(self.read(inner.cell, f"{at}.cell"))
        merge = _MERGES.get(layer.merge_mode, layer.merge_mode)
        return Bidirectional(directions[0], directions[1], merge)

    def _cell(self, cell: Any, kind: Kind, name: str) -> Layer:
        """Make a layer of a cell."""
        if not cell.built:
            raise ValueError(
                f"{name} is not built, so that it has no weights: call the Keras layer "
                "once or use its build()"
            )

        def values(variable: Any) -> mx.array:
            judge_own(variable, f"{name}.{variable.name}", self.seen)
            # The backend's own: of it Keras would make NumPy's with a warning.
            return array_of(f"{name}.{variable.name}", variable.value)

        options = {
            "input_dropout": cell.dropout,
            "recurrent_dropout": cell.recurrent_dropout,
        }
        if kind is RNN:
            options["nonlinearity"] = self._nonlinearity(cell, name)
        else:
            for which, fixed in _FIXED.items():
                if (own := getattr(cell, which)) is not getattr(
                    self.keras.activations, fixed
                ):
                    raise ValueError(
                        f"{name} has the {which} {describe(own)}, where an "
                        f"mlx_recurrent.{kind.__name__} has {fixed}"
                    )
        with mx.stream(mx.cpu):
            kernels = [values(a).T for a in (cell.kernel, cell.recurrent_kernel)]
            biases = [] if cell.bias is None else [values(cell.bias)]
            if kind is GRU:
                options["reset_after"] = cell.reset_after
                if biases and cell.reset_after:  # of both sides
                    biases = list(biases[0])
        made: Layer = made_of(kind, Sides(*kernels, *biases), "keras", **options)
        return made

    def _nonlinearity(self, cell: Any, name: str) -> Nonlinearity | None:
        """Return what a cell's activation is in MLX."""
        for known, function in (_NATIVE | _OTHERS).items():
            if getattr(self.keras.activations, known, None) is cell.activation:
                return function
        if self.nonlinearity is not None:
            return self.nonlinearity
        raise ValueError(
            f"{name} has the activation {describe(cell.activation)}, which no function "
            "of MLX is known to equal: give one as nonlinearity"
        )


def _judge_call(layer: Any, name: str) -> None:
    if layer.stateful:
        raise ValueError(
            f"{name} has stateful=True, but the state is an argument of the call here "
            "(outputs, state = layer(x, state, return_state=True)): convert it with "
            "stateful=False"
        )


def _cells(keras: Any) -> dict[type, Kind]:
    """Return ours for each of Keras's cells."""
    return {getattr(keras.layers, f"{_LAYERS[kind]}Cell"): kind for kind in KINDS}


def _loops(keras: Any) -> set[type]:
    """Return Keras's layers that run a cell."""
    return {keras.layers.RNN, *(getattr(keras.layers, n) for n in _LAYERS.values())}


def _write(keras: Any, layer: Any, name: str, return_sequences: bool) -> Any:
    """Make one of Keras's layers of a layer or of both directions."""
    judge_type(layer, name)
    if not isinstance(layer, Bidirectional):
        single, weights = _write_single(keras, layer, name, return_sequences)
        single.build((None, None, _features(layer)))
        single.set_weights(weights)
        return single
    merge = layer.merge
    if callable(merge):
        raise ValueError(
            f"{name} has the merge {describe(merge)}, which keras.layers.Bidirectional "
            "does not have"
        )
    forward, weights = _write_single(
        keras, layer.forward, f"{name}.forward", return_sequences
    )
    backward, others = _write_single(
        keras, layer.backward, f"{name}.backward", return_sequences, go_backwards=True
    )
    if forward.units != backward.units:
        raise ValueError(
            f"{name}.backward must have {forward.units} hidden features as forward has "
            f"for keras.layers.Bidirectional, but has {backward.units}"
        )
    if type(forward) is not type(backward):
        raise ValueError(
            f"{name}.backward must be a {kind_of(layer.forward).__name__} as forward "
            "is for keras.layers.Bidirectional, but is another layer"
        )
    both = keras.layers.Bidirectional(
        forward,
        merge_mode=_MERGE_MODES.get(merge, merge) if merge else None,
        backward_layer=backward,
        dtype=forward.dtype_policy,
    )
    both.build((None, None, _features(layer)))
    # It has made a layer of its own like the first.
    both.forward_layer.set_weights(weights)
    both.backward_layer.set_weights(others)
    return both


def _write_single(
    keras: Any, layer: Any, name: str, return_sequences: bool, **options: Any
) -> tuple[Any, list[Any]]:
    """Make one of Keras's layers, and its weights in Keras's order."""
    known = _LAYERS.get(kind_of(layer)) if isinstance(layer, KINDS) else "SimpleRNN"
    judge_layer(
        layer,
        name,
        f"keras.layers.{known}",
        ("input_dropout", "recurrent_dropout", "reset_after=False"),
    )
    sides, dtype = weights_of(layer, name, "keras")
    if dtype == "float64" and keras.backend.backend() == "jax":
        # JAX would make float32 of it.
        if not framework("jax", "to_keras").config.jax_enable_x64:
            raise ValueError(
                f"{name} has weights in float64, which Keras on JAX holds only where "
                "jax_enable_x64 is set"
            )
    biases = [] if sides.bx is None else [sides.bx]
    if isinstance(layer, RNN):
        options["activation"] = _activation(layer, name)
    if isinstance(layer, GRU):
        options["reset_after"] = layer.reset_after
        if biases and layer.reset_after:
            biases = [np.stack([sides.bx, sides.bh])]
    if dtype in ("float16", "bfloat16"):
        # The default needs a decomposition that backends lack for these.
        options["recurrent_initializer"] = "glorot_uniform"
    single = getattr(keras.layers, str(known))(
        layer.hidden_size,
        use_bias=bool(biases),
        dropout=layer.input_dropout,
        recurrent_dropout=layer.recurrent_dropout,
        return_sequences=return_sequences,
        dtype=dtype,
        **options,
    )
    return single, [sides.Wx.T, sides.Wh.T, *biases]


def _activation(layer: RNN, name: str) -> str:
    """Return Keras's name for a layer's nonlinearity."""
    choice = recognise(layer.nonlinearity)
    if choice is not None:
        activation = str(choice.activation)
        return _BUILT_IN_NAMES.get(activation, activation)
    others = [*_OTHERS.items(), ("log_softmax", activations.log_softmax)]
    same = [key for key, f in others if f is layer.nonlinearity]
    if not same:
        raise ValueError(
            f"{name} has the nonlinearity {describe(layer.nonlinearity)}, which no "
            "activation of Keras is known to equal"
        )
    return same[0]


def _features(layer: Any) -> int:
    """Return the number of input features of a layer or of both directions."""
    _, single = next(singles_of(layer))
    return weight_sizes(single)[0]
