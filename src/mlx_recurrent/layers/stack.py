from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from mlx.nn.layers.dropout import Dropout

from mlx_recurrent import functional
from mlx_recurrent.functional.foreign import judge_keywords, names_ways_out
from mlx_recurrent.functional.judging import (
    ReturnState,
    broadcasts,
    judge_array,
    judge_entries,
    judge_flag,
    judge_layer,
    judge_probability,
    judge_size,
    type_name,
)
from mlx_recurrent.functional.masks import undrawn
from mlx_recurrent.functional.options import (
    BidirectionalOptions,
    CallOptions,
    Values,
    documented,
    judge_flags,
    judge_lengths,
)
from mlx_recurrent.functional.padding import only_taken
from mlx_recurrent.functional.placement import moved
from mlx_recurrent.functional.plan import Plan, together
from mlx_recurrent.functional.stream_core import numpy_of
from mlx_recurrent.layers.bidirectional import Bidirectional, Merge
from mlx_recurrent.layers.duplicate import duplicate
from mlx_recurrent.layers.rnn import RNN
from mlx_recurrent.layers.sizes import sizes_of
from mlx_recurrent.layers.stack_stream import StackStream
from mlx_recurrent.layers.states import run_layer, states_of
from mlx_recurrent.layers.streaming import Stream
from mlx_recurrent.layers.whole_time import judge_method
from mlx_recurrent.mlx_faults.loading import Loading
from mlx_recurrent.mlx_faults.pickling import reduce_ex

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Stack(Loading):
    """Layers one after another: each one's outputs are the next one's input.

    The parameters are ``layers.0.Wxh`` and so on.

    Args:
        layers (list(Module)): At least one :class:`RNN`, :class:`GRU`, :class:`LSTM`
            (whose output here is its hidden state) or :class:`Bidirectional`, another
            stack, or what is called like them.
        dropout (float, optional): The probability that a number between two layers
            becomes zero in training, as of :class:`mlx.nn.Dropout`; the last layer's
            outputs are left as they are. Default: ``0.0``.
        residual (bool, optional): Whether a layer's input is added to its outputs,
            after the dropout, where both have the same number of features.
            Default: ``False``.

    Raises:
        TypeError: If ``layers`` is no list, an entry is no layer, or another argument
            is of the wrong type.
        ValueError: If there is no layer, if a layer does not take what the one before
            it gives, or if ``dropout`` is not in [0, 1).

    Example:
        >>> import mlx.core as mx
        >>> from mlx_recurrent import RNN, Stack
        >>> model = Stack([RNN(3, 8), RNN(8, 4)], dropout=0.1)
        >>> outputs, states = model(mx.zeros((2, 5, 3)), return_state=True)
        >>> outputs.shape, [state.shape for state in states]
        ((2, 5, 4), [(2, 8), (2, 4)])
    """

    __reduce_ex__ = reduce_ex

    @names_ways_out
    def __init__(
        self, layers: Sequence[Any], dropout: float = 0.0, residual: bool = False
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if not isinstance(layers, (list, tuple)):
            raise TypeError(
                f"layers must be a list of layers, but is {type_name(layers)}"
            )
        if not layers:
            raise ValueError("layers must hold at least one layer, but is empty")
        for i, layer in enumerate(layers):
            judge_layer(f"layers[{i}]", layer)
        self.layers = list(layers)
        self.dropout = Dropout(judge_probability("dropout", dropout))
        self.residual = judge_flag("residual", residual)
        self._judge_sizes()

    @classmethod
    def build(
        cls,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        *,
        bidirectional: bool = False,
        merge: Merge = "concat",
        dropout: float = 0.0,
        residual: bool = False,
        layer: Callable[..., Any] = RNN,
        **layer_arguments: Any,
    ) -> "Stack":
        """Make a stack of layers of one size.

        Args:
            input_size (int): Dimension of the input, ``D``.
            hidden_size (int): Dimension of each layer's hidden state, ``H``.
            num_layers (int): How many layers. At least 1.
            bidirectional (bool, optional): Whether each layer is a
                :class:`Bidirectional`. Default: ``False``.
            merge (str or callable, optional): What those make of their two outputs.
                ``None`` is for a single layer. Default: ``"concat"``.
            dropout (float, optional): As for :class:`Stack`. Default: ``0.0``.
            residual (bool, optional): As for :class:`Stack`. Default: ``False``.
            layer (callable, optional): :class:`RNN`, :class:`GRU`, :class:`LSTM` or
                another function ``(input_size, hidden_size, **layer_arguments)`` that
                makes a layer. Default: :class:`RNN`.
            layer_arguments: What each layer is made with beside its sizes. A module
                among them is copied for every layer but the first.

        Returns:
            Stack: The stack.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a size or a value does not fit.

        Example:
            >>> import mlx.core as mx
            >>> from mlx_recurrent import Stack
            >>> model = Stack.build(3, 8, 2, bidirectional=True)
            >>> model(mx.zeros((2, 5, 3))).shape
            (2, 5, 16)
        """
        judge_size("num_layers", num_layers, 1)
        _judge_maker(layer)
        bidirectional = judge_flag("bidirectional", bidirectional)
        layers: list[Any] = []
        features = input_size
        for i in range(num_layers):
            if i:
                layer_arguments = duplicate(layer_arguments)
            made = layer(features, hidden_size, **layer_arguments)
            judge_layer("what layer returns", made)
            if bidirectional:
                made = Bidirectional(made, merge=merge)
            layers.append(made)
            if bidirectional and callable(merge) and i + 1 < num_layers:
                step = mx.zeros((1, 1, hidden_size))
                features = merge(step, step).shape[-1]
            else:
                features = sizes_of(made)[1] or hidden_size
        return cls(layers, dropout, residual)

    @names_ways_out
    @documented(BidirectionalOptions, CallOptions)
    def __call__(
        self,
        x: mx.array,
        hidden: Sequence[Any] | None = None,
        *,
        return_all: bool = False,
        return_state: ReturnState = False,
        **options: "Unpack[CallOptions]",
    ) -> Any:
        """Run the layers over a sequence.

        Args:
            x (array): The sequence, ``NLD`` or ``LD``.
            hidden (list, optional): The states before the first step, one entry for
                each layer: an array for :class:`RNN` and :class:`GRU`, a pair of
                arrays for :class:`LSTM`, a pair of states for :class:`Bidirectional`,
                or ``None``. Default: ``None``.
            return_all (bool, optional): Whether the outputs are those of every layer, a
                list, in place of the last one's. Default: ``False``.
            return_state (bool or str, optional): ``True`` returns the outputs and the
                list of every layer's state, ``"only"`` that list alone.
                Default: ``False``.
            options: Of every layer.

        Returns:
            array or list or tuple: The outputs, ``NLH`` or ``LH``, or the list of them;
            the list of states; or both.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a shape, a dtype or a value does not fit.
        """
        keywords = self._keywords(options)
        return_all = judge_flag("return_all", return_all)
        states: list[Any] = []
        last = len(self.layers) - 1

        def run(i: int, x: mx.array, state: Any) -> Any:
            layer, name = self.layers[i], f"hidden[{i}]"
            if return_state is False:
                return run_layer(layer, x, name, state, **keywords)
            wanted = True if i < last else return_state
            result = run_layer(layer, x, name, state, return_state=wanted, **keywords)
            y, state = (None, result) if wanted == "only" else result
            states.append(state)
            return y

        outputs = self._through(x, hidden, options, run)
        if return_state == "only":
            return states
        returned = outputs if return_all else outputs[-1]
        return returned if return_state is False else (returned, states)

    def step(
        self,
        x: mx.array,
        hidden: Sequence[Any] | None = None,
        *,
        reset: Values | None = None,
    ) -> tuple[mx.array, list[Any]]:
        """Run a single step.

        In training mode it draws new masks at each call, those of the dropout between
        layers too: for one mask over a sequence call the stack.

        Args:
            x (array): The input, ``ND`` or ``D``.
            hidden (list, optional): The states before, one entry for each layer, or
                ``None``. Default: ``None``.
            reset (array, optional): Where an episode starts, so that no state before is
                used: booleans, of the shape of the leading axes. Default: ``None``.

        Returns:
            tuple(array, list): The last layer's output, ``NH`` or ``H``, and the states
            after.

        Raises:
            TypeError: If an argument is of the wrong type, or a layer cannot go step by
                step, as a :class:`Bidirectional`.
            ValueError: If a shape, a dtype or a value does not fit.

        Example:
            >>> import mlx.core as mx
            >>> from mlx_recurrent import Stack
            >>> model, x = Stack.build(3, 8, 2), mx.random.normal((5, 3))
            >>> y, states = model.step(x[0])
            >>> y, states = model.step(x[1], states)
            >>> mx.allclose(y, model(x)[1], atol=1e-5).item()
            True
        """
        self._judge_methods("step")
        judge_array("x", x)
        D = self._sizes[0]
        if not x.ndim or D not in (None, x.shape[-1]):
            size = "D" if D is None else D
            raise ValueError(
                f"x must have shape (..., {size}), but has shape {x.shape}"
            )
        if reset is not None:
            lead = x.shape[:-1]
            first = _first_of(judge_entries(hidden, len(self.layers)))
            if isinstance(first, mx.array) and broadcasts(lead, first.shape[:-1]):
                lead = first.shape[:-1]
            reset = functional.one_step(judge_flags("reset", reset, "x", lead, ()), -1)
        x = functional.one_step(x, -2)
        y, states = self(x, hidden, reset=reset, return_state=True)
        return mx.squeeze(y, -2, stream=moved(None)), states

    def plan(
        self,
        x: mx.array,
        hidden: Sequence[Any] | None = None,
        *,
        return_all: bool = False,
        return_state: ReturnState = False,
        **options: "Unpack[CallOptions]",
    ) -> Plan:
        """Return what a call with the same arguments would run, and why.

        The arguments and what they raise are those of the call; nothing is computed.

        Example:
            >>> import mlx.core as mx
            >>> import mlx.nn as nn
            >>> from mlx_recurrent import RNN, Stack
            >>> model = Stack([RNN(3, 8), RNN(8, 8, nonlinearity=nn.softmax)])
            >>> plan = model.plan(mx.zeros((5, 3)))
            >>> plan.path, plan.parts["layers[0]"].path
            ('composed', 'native')
        """
        judge_keywords(options, CallOptions)
        keywords = self._keywords(options)
        judge_flag("return_all", return_all)
        self._judge_methods("plan")
        parts: dict[str, Plan] = {}
        last = len(self.layers) - 1

        def run(i: int, x: mx.array, state: Any) -> Any:
            layer, name = self.layers[i], f"hidden[{i}]"
            states = states_of(layer, name, state)
            wanted = True if return_state is not False and i < last else return_state
            parts[f"layers[{i}]"] = layer.plan(
                x, *states, return_state=wanted, **keywords
            )
            if i == last:
                return None
            # Its outputs' shape and dtype, from those of one step.
            y = run_layer(layer, x[..., :1, :], name, state)
            *lead, _, H = y.shape
            return mx.broadcast_to(y, (*lead, x.shape[-2], H))

        with undrawn():
            self._through(x, hidden, options, run)
        return together(parts)

    def stream(self, hidden: Sequence[Any] | None = None) -> StackStream:
        """Return the stack for real-time use: a copy that takes steps as they come.

        Args:
            hidden (list, optional): The states before the first step, one entry for
                each layer: an array, a pair of arrays for :class:`LSTM`, or ``None``,
                which is zero or what the layer has learned. Their leading axes become
                those of every input. Default: ``None``.

        Raises:
            TypeError: If ``hidden`` is no list or an entry no array, or if a layer
                cannot go step by step, as a :class:`Bidirectional`.
            ValueError: If a shape or a dtype does not fit.

        Example:
            >>> import numpy as np
            >>> from mlx_recurrent import Stack
            >>> stream = Stack.build(3, 8, 2).stream()
            >>> stream(np.ones(3)).shape  # a step
            (8,)
        """
        self._judge_methods("stream")
        entries = judge_entries(hidden, len(self.layers))
        first = _first_of(entries)
        lead = () if first is None else numpy_of("hidden", first).shape[:-1]
        streams: list[Stream | StackStream] = []
        for i, (layer, state) in enumerate(zip(self.layers, entries, strict=True)):
            states = states_of(layer, f"hidden[{i}]", state)
            stream = _stream_of(f"layers[{i}]", layer, states, lead)
            if streams:
                dtype = mx.result_type(streams[-1]._mlx_dtype, stream._mlx_dtype)
                if dtype != stream._mlx_dtype:  # wider inputs, as in a call
                    layer = duplicate(layer)
                    layer.set_dtype(dtype)
                    stream = _stream_of(f"layers[{i}]", layer, states, lead)
            if stream._lead != lead:
                raise ValueError(
                    "hidden must have entries with equal leading axes, but they are "
                    f"{lead} and, for layers[{i}], {stream._lead}"
                )
            streams.append(stream)
        return StackStream(streams, self.residual)

    def _keywords(self, options: CallOptions) -> dict[str, Any]:
        """Return what is given to every layer: what asks for something."""
        reverse = judge_flag("reverse", options.get("reverse", False))
        if reverse:
            self._judge_reverse()
        given = {**options, "reverse": reverse or None}
        return {name: value for name, value in given.items() if value is not None}

    def _through(
        self,
        x: mx.array,
        hidden: Sequence[Any] | None,
        options: CallOptions,
        run: Callable[[int, mx.array, Any], Any],
    ) -> list[Any]:
        """Take a sequence through the layers; return the outputs of each.

        ``run`` is called for each, with its number, its input and its first state.
        """
        outputs: list[Any] = []
        last = len(self.layers) - 1
        for i, state in enumerate(judge_entries(hidden, len(self.layers))):
            y = run(i, x, state)
            if i < last:
                y = self.dropout(y)
            if self.residual and _agree(x, y):
                # Padding and skipped steps of the first input may hold anything.
                y = y + (x if i else _taken(x, y, options))
            outputs.append(y)
            x = y
        return outputs

    def _judge_methods(self, method: str, prefix: str = "") -> None:
        """Raise a ``TypeError`` for a layer that lacks a method."""
        for i, layer in enumerate(self.layers):
            name = f"{prefix}layers[{i}]"
            if isinstance(layer, Stack):
                layer._judge_methods(method, f"{name}.")
            else:
                judge_method(layer, name, method)

    def _judge_sizes(self) -> None:
        for i, (layer, following) in enumerate(pairwise(self.layers)):
            if isinstance(layer, Bidirectional) and layer.merge is None:
                raise ValueError(
                    f"layers[{i}] must give one array to the layer after it, but its "
                    "merge is None"
                )
            H, D = sizes_of(layer)[1], sizes_of(following)[0]
            if None not in (H, D) and H != D:
                raise ValueError(
                    f"layers[{i + 1}] must take the {H} features that layers[{i}] "
                    f"gives, but takes {D}"
                )

    def _judge_reverse(self) -> None:
        for i, layer in enumerate(self.layers):
            if isinstance(layer, Bidirectional):
                raise ValueError(
                    f"reverse must be False where layers[{i}] runs in both directions"
                )

    @property
    def _sizes(self) -> tuple[int | None, int | None]:
        return sizes_of(self.layers[0])[0], sizes_of(self.layers[-1])[1]

    def _extra_repr(self) -> str:
        return f"residual={self.residual}"


def _taken(x: mx.array, y: mx.array, options: CallOptions) -> mx.array:
    """Return a sequence with zeros at steps that no row takes.

    Args:
        x (array): The sequence, ``(..., L, D)``.
        y (array): With the leading axes of the call.
        options (CallOptions): What the call was given.
    """
    *lead, L, _ = y.shape
    rows = tuple(lead)
    lengths, mask = options.get("lengths"), options.get("mask")
    return only_taken(
        x,
        None if lengths is None else judge_lengths(lengths, "x", rows, L),
        None if mask is None else judge_flags("mask", mask, "x", rows, (L,)),
    )


def _judge_maker(layer: Any) -> None:
    """Raise a ``TypeError`` for what does not make layers."""
    if isinstance(layer, Module) or not callable(layer):
        raise TypeError(
            "layer must be RNN, GRU, LSTM or a function that makes a layer, but is "
            f"{type_name(layer)}"
        )


def _stream_of(
    name: str, layer: Any, states: tuple[Any, ...], lead: tuple[int, ...]
) -> Stream | StackStream:
    """Return a layer's stream, with these leading axes also where it has no state."""
    begins_empty = _first_of(states) is None and lead
    stream = (
        layer.stream(_zeros(layer, lead)) if begins_empty else layer.stream(*states)
    )
    if not isinstance(stream, (Stream, StackStream)):
        raise TypeError(
            f"{name}.stream must return an mlx_recurrent.Stream, but returned "
            f"{type_name(stream)}"
        )
    if begins_empty:
        stream.reset(*states)
    return stream


def _zeros(layer: Any, lead: tuple[int, ...]) -> Any:
    if isinstance(layer, Stack):
        return [_zeros(inner, lead) for inner in layer.layers]
    return np.zeros((*lead, sizes_of(layer)[1] or 0), np.float32)


def _first_of(entries: Any) -> Any:
    """Return the first state that is given in a list of them, if there is one."""
    if not isinstance(entries, (list, tuple)):
        return entries
    found = (_first_of(entry) for entry in entries)
    return next((state for state in found if state is not None), None)


def _agree(x: mx.array, y: Any) -> bool:
    return isinstance(y, mx.array) and x.shape[-1] == y.shape[-1]
