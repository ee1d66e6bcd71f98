from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import mlx.core as mx
from mlx.nn.layers.dropout import Dropout

from mlx_recurrent.bidirectional import Bidirectional, Merge
from mlx_recurrent.duplicate import duplicate
from mlx_recurrent.foreign import names_ways_out
from mlx_recurrent.judging import (
    ReturnState,
    judge_flag,
    judge_probability,
    judge_size,
    type_name,
)
from mlx_recurrent.layers import RNN
from mlx_recurrent.mlx_faults.loading import Loading
from mlx_recurrent.mlx_faults.pickling import reduce_ex
from mlx_recurrent.options import Values, judge_lengths
from mlx_recurrent.padding import without_padding
from mlx_recurrent.sizes import sizes_of


class Stack(Loading):
    """Layers one after another: each one's outputs are the next one's input.

    The parameters are ``layers.0.Wxh`` and so on.

    Args:
        layers (list(Module)): At least one :class:`RNN` or :class:`Bidirectional`,
            another stack, or what is called like them.
        dropout (float, optional): The probability that a number between two layers
            becomes zero in training, as of :class:`mlx.nn.Dropout`; the last layer's
            outputs are left as they are. Default: ``0.0``.
        residual (bool, optional): Whether a layer's input is added to its outputs,
            after the dropout, where both have the same number of features.
            Default: ``False``.

    Raises:
        TypeError: If ``layers`` is no list, an entry cannot be called, or another
            argument is of the wrong type.
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
            if not callable(layer):
                raise TypeError(
                    f"layers[{i}] must be a layer, but is {type_name(layer)}"
                )
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
        **layer_arguments: Any,
    ) -> "Stack":
        """Make a stack of :class:`RNN` layers of one size.

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
            layer_arguments: What each :class:`RNN` is made with beside its sizes. A
                module among them is copied for every layer but the first.

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
        bidirectional = judge_flag("bidirectional", bidirectional)
        layers: list[Any] = []
        features = input_size
        for i in range(num_layers):
            if i:
                layer_arguments = duplicate(layer_arguments)
            layer: Any = RNN(features, hidden_size, **layer_arguments)
            if bidirectional:
                layer = Bidirectional(layer, merge=merge)
            layers.append(layer)
            if bidirectional and callable(merge) and i + 1 < num_layers:
                step = mx.zeros((1, 1, hidden_size))
                features = merge(step, step).shape[-1]
            else:
                features = sizes_of(layer)[1] or hidden_size
        return cls(layers, dropout, residual)

    @names_ways_out
    def __call__(
        self,
        x: mx.array,
        hidden: Sequence[Any] | None = None,
        *,
        lengths: Values | None = None,
        reset: Values | None = None,
        reverse: bool = False,
        return_all: bool = False,
        return_state: ReturnState = False,
        checkpoint_every: int | None = None,
        truncate_every: int | None = None,
    ) -> Any:
        """Run the layers over a sequence.

        Args:
            x (array): The sequence, ``NLD`` or ``LD``.
            hidden (list, optional): The states before the first step, one entry for
                each layer: an array for :class:`RNN`, a pair for
                :class:`Bidirectional`, or ``None``. Default: ``None``.
            lengths (array, optional): How many steps each row has, as for :class:`RNN`.
                Default: ``None``.
            reset (array, optional): Where an episode starts, as for :class:`RNN`.
                Default: ``None``.
            reverse (bool, optional): Whether every layer runs backward in time, which
                :class:`Bidirectional` cannot. Default: ``False``.
            return_all (bool, optional): Whether the outputs are those of every layer, a
                list, in place of the last one's. Default: ``False``.
            return_state (bool or str, optional): ``True`` returns the outputs and the
                list of every layer's state, ``"only"`` that list alone.
                Default: ``False``.
            checkpoint_every (int, optional): As for :class:`RNN`. Default: ``None``.
            truncate_every (int, optional): As for :class:`RNN`. Default: ``None``.

        Returns:
            array or list or tuple: The outputs, ``NLH`` or ``LH``, or the list of them;
            the list of states; or both.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a shape, a dtype or a value does not fit.
        """
        given = {
            "lengths": lengths,
            "reset": reset,
            "reverse": judge_flag("reverse", reverse) or None,
            "checkpoint_every": checkpoint_every,
            "truncate_every": truncate_every,
        }
        keywords = {name: value for name, value in given.items() if value is not None}
        return_all = judge_flag("return_all", return_all)
        if reverse:
            self._judge_reverse()
        outputs: list[Any] = []
        states: list[Any] = []
        last = len(self.layers) - 1
        for i, (layer, state) in enumerate(
            zip(self.layers, self._entries(hidden), strict=True)
        ):
            if return_state is False:
                y = layer(x, state, **keywords)
            else:
                wanted = True if i < last else return_state
                result = layer(x, state, return_state=wanted, **keywords)
                if wanted == "only":
                    return [*states, result]
                y, state = result
                states.append(state)
            if i < last:
                y = self.dropout(y)
            if self.residual and _agree(x, y):
                if i == 0 and lengths is not None:
                    # Its padding may hold anything.
                    *lead, L, _ = y.shape
                    ends = judge_lengths(lengths, "x", tuple(lead), L)
                    x = without_padding(x, ends)
                y = y + x
            outputs.append(y)
            x = y
        returned = outputs if return_all else x
        return returned if return_state is False else (returned, states)

    def _entries(self, hidden: Any) -> Sequence[Any]:
        if hidden is None:
            return [None] * len(self.layers)
        if not isinstance(hidden, (list, tuple)):
            raise TypeError(
                "hidden must be a list with one entry for each layer, but is "
                f"{type_name(hidden)}"
            )
        if len(hidden) != len(self.layers):
            raise ValueError(
                f"hidden must have one entry for each of the {len(self.layers)} "
                f"layers, but has {len(hidden)}"
            )
        return hidden

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


def _agree(x: mx.array, y: Any) -> bool:
    return isinstance(y, mx.array) and x.shape[-1] == y.shape[-1]
