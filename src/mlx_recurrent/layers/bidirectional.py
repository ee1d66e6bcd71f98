import math
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import mlx.core as mx

from mlx_recurrent import functional
from mlx_recurrent.functional.foreign import names_ways_out
from mlx_recurrent.functional.judging import ReturnState, judge_layer, shown, type_name
from mlx_recurrent.functional.options import (
    BidirectionalOptions,
    documented,
)
from mlx_recurrent.functional.plan import Plan, together
from mlx_recurrent.layers.duplicate import duplicate
from mlx_recurrent.layers.gru import GRU
from mlx_recurrent.layers.lstm import LSTM
from mlx_recurrent.layers.recurrent_layer import RecurrentLayer
from mlx_recurrent.layers.rnn import RNN
from mlx_recurrent.layers.sizes import sizes_of
from mlx_recurrent.layers.states import run_layer, states_of
from mlx_recurrent.layers.whole_time import WholeTime, judge_method
from mlx_recurrent.mlx_faults.loading import Loading
from mlx_recurrent.mlx_faults.pickling import reduce_ex

if TYPE_CHECKING:
    from typing_extensions import Unpack

Merge: TypeAlias = str | Callable[[mx.array, mx.array], Any] | None


class _Merge(NamedTuple):
    """A merge of two outputs, and of both behind one axis.

    The second is made of operations that a shapeless function can have, which cannot
    take such an axis apart.
    """

    of_two: Callable[[mx.array, mx.array], mx.array]
    of_both: Callable[[mx.array], mx.array]


_MERGES = {
    "concat": _Merge(
        lambda forward, backward: mx.concatenate([forward, backward], axis=-1),
        lambda both: mx.flatten(mx.moveaxis(both, 0, -2), -2),
    ),
    "sum": _Merge(operator.add, lambda both: both.sum(axis=0)),
    "mul": _Merge(operator.mul, lambda both: both.prod(axis=0)),
    "mean": _Merge(
        lambda forward, backward: (forward + backward) / 2,
        lambda both: both.mean(axis=0),
    ),
}


class Bidirectional(WholeTime, Loading):
    """Two layers over the same sequence, one of them backward in time.

    Each runs on its own; their outputs at each step are merged. The parameters are
    ``forward.Wxh``, ``backward.Wxh`` and so on. It has no ``step`` and no ``stream``:
    one direction begins at the end of the sequence.

    Args:
        forward (Module): The layer that runs forward: :class:`RNN`, :class:`GRU`,
            :class:`LSTM` (whose output here is its hidden state), or what is called
            like them.
        backward (Module, optional): The layer that runs backward. ``None`` is a new one
            like ``forward``: the same sizes, options and nonlinearity (its parameters
            copied), with weights of its own. Default: ``None``.
        merge (str or callable, optional): What is made of the two outputs:
            ``"concat"`` (along the features), ``"sum"``, ``"mul"``, ``"mean"`` or what
            a callable returns for the two. ``None`` leaves the pair.
            Default: ``"concat"``.

    Raises:
        TypeError: If one is no layer, or ``backward`` is ``None`` and
            ``forward`` is no :class:`RNN`, :class:`GRU`, :class:`LSTM` or
            :class:`Recurrent`.
        ValueError: If ``merge`` is none of these, or the layers' sizes do not fit.

    Example:
        >>> import mlx.core as mx
        >>> from mlx_recurrent import RNN, Bidirectional
        >>> both = Bidirectional(RNN(3, 8))
        >>> outputs, (forward, backward) = both(mx.zeros((2, 5, 3)), return_state=True)
        >>> outputs.shape, backward.shape
        ((2, 5, 16), (2, 8))
    """

    __reduce_ex__ = reduce_ex

    @names_ways_out
    def __init__(
        self, forward: Any, backward: Any = None, merge: Merge = "concat"
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        judge_layer("forward", forward)
        if backward is None:
            backward = _like(forward)
        judge_layer("backward", backward)
        known = isinstance(merge, str) and merge in _MERGES
        if not (known or merge is None or callable(merge)):
            raise ValueError(
                'merge must be "concat", "sum", "mul", "mean", None or a callable, but '
                f"is {shown(merge)}"
            )
        self.forward = forward
        self.backward = backward
        self.merge = merge
        self._judge_sizes()

    @names_ways_out
    @documented(BidirectionalOptions)
    def __call__(
        self,
        x: mx.array,
        hidden: Sequence[Any] | None = None,
        *,
        return_state: ReturnState = False,
        **options: "Unpack[BidirectionalOptions]",
    ) -> Any:
        """Run both layers over a sequence.

        Args:
            x (array): The sequence, ``NLD`` or ``LD``.
            hidden (tuple, optional): The state before each layer's first step, which is
                the last one of the sequence for ``backward``: arrays, of :class:`LSTM`
                pairs of arrays. An entry may be ``None``. Default: ``None``.
            return_state (bool or str, optional): ``True`` returns the outputs and the
                pair of states, ``"only"`` the pair of states alone; outputs are then
                never stored. Default: ``False``.
            options: Of both layers.

        Returns:
            array or tuple: The merged outputs (a pair where ``merge`` is ``None``); the
            pair of states; or both.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a shape, a dtype or a value does not fit.
        """
        keywords: dict[str, Any] = {
            name: value for name, value in options.items() if value is not None
        }
        if return_state is not False:
            keywords["return_state"] = return_state
        if return_state is False and isinstance(self.merge, str):
            both = self._run_at_once(x, _pair(hidden), keywords)
            if both is not None:
                return _MERGES[self.merge].of_both(both)
        forward, backward = self._run(x, _pair(hidden), keywords)
        if return_state is False:
            return self._merged(forward, backward)
        if return_state is True:
            outputs, states = zip(forward, backward, strict=True)
            return self._merged(*outputs), states
        return forward, backward

    def plan(
        self, x: mx.array, hidden: Sequence[Any] | None = None, **keywords: Any
    ) -> Plan:
        """Return what a call with the same arguments would run, and why.

        The arguments and what they raise are those of the call; nothing is computed.
        Each direction is planned as it runs alone, though both may share one launch.

        Example:
            >>> import mlx.core as mx
            >>> from mlx_recurrent import RNN, Bidirectional
            >>> plan = Bidirectional(RNN(3, 8)).plan(mx.zeros((2, 5, 3)))
            >>> plan.path, list(plan.parts)
            ('native', ['forward', 'backward'])
        """
        both = {"forward": self.forward, "backward": self.backward}
        for name, layer in both.items():
            judge_method(layer, name, "plan")
        parts: dict[str, Plan] = {}
        for i, (name, layer) in enumerate(both.items()):
            states = states_of(layer, f"hidden[{i}]", _pair(hidden)[i])
            reverse = {"reverse": True} if name == "backward" else {}
            parts[name] = layer.plan(x, *states, **reverse, **keywords)
        return together(parts)

    def _run(
        self, x: mx.array, hidden: Sequence[Any], keywords: dict[str, Any]
    ) -> tuple[Any, Any]:
        """Return what the two layers return, each from its own state."""
        return (
            run_layer(self.forward, x, "hidden[0]", hidden[0], **keywords),
            run_layer(
                self.backward, x, "hidden[1]", hidden[1], reverse=True, **keywords
            ),
        )

    def _run_at_once(
        self, x: mx.array, hidden: Sequence[Any], keywords: dict[str, Any]
    ) -> mx.array | None:
        """Return the outputs of both, ``(2, ..., L, H)``, where that is faster."""
        both, kind = (self.forward, self.backward), type(self.forward)
        if type(self.backward) is not kind or kind not in (RNN, GRU, LSTM):
            return None
        one, other = (
            states_of(layer, f"hidden[{i}]", hidden[i]) for i, layer in enumerate(both)
        )
        layers = (self.forward._arguments(), self.backward._arguments())
        options = cast(BidirectionalOptions, keywords)
        return functional.bidirectional(
            kind._function, x, layers, (one, other), options
        )

    def _merged(self, forward: Any, backward: Any) -> Any:
        if self.merge is None:
            return forward, backward
        if callable(self.merge):
            return self.merge(forward, backward)
        if forward.shape[:-1] != backward.shape[:-1]:
            raise ValueError(
                "hidden must have two entries that give outputs with equal leading "
                f"axes, but they are {forward.shape} and {backward.shape}"
            )
        return _MERGES[self.merge].of_two(forward, backward)

    def _judge_sizes(self) -> None:
        (D, H), (also_D, also_H) = sizes_of(self.forward), sizes_of(self.backward)
        if None not in (D, also_D) and D != also_D:
            raise ValueError(
                f"backward must take {D} input features as forward does, but takes "
                f"{also_D}"
            )
        if self.merge == "concat" or not isinstance(self.merge, str):
            return
        if None not in (H, also_H) and H != also_H:
            raise ValueError(
                f"backward must have {H} hidden features as forward has for merge "
                f'"{self.merge}", but has {also_H}'
            )

    @property
    def _sizes(self) -> tuple[int | None, int | None]:
        (D, H), (_, also_H) = sizes_of(self.forward), sizes_of(self.backward)
        if not isinstance(self.merge, str) or H is None or also_H is None:
            return D, None
        return D, H + also_H if self.merge == "concat" else H

    def _extra_repr(self) -> str:
        return f"merge={self.merge}"


def _like(layer: Any) -> RecurrentLayer:
    """Return a layer with the options of another one and new weights."""
    if not isinstance(layer, RecurrentLayer):
        raise TypeError(
            "forward must be an mlx_recurrent.RNN, GRU, LSTM or Recurrent where "
            f"backward is None, but is {type_name(layer)}"
        )
    new = duplicate(layer)
    bound = 1 / math.sqrt(layer.hidden_size)
    own = layer._own_parameters()
    for name in layer._weight_names():
        if name in layer:
            old = layer[name]
            drawn = own.get(name)
            if drawn is None:
                drawn = mx.random.uniform(-bound, bound, old.shape)
            new[name] = drawn.astype(old.dtype)
    for name in layer._start_names():
        if name in layer:
            new[name] = mx.zeros_like(layer[name])
    return new


def _pair(hidden: Any) -> Sequence[Any]:
    if hidden is None:
        return None, None
    if not isinstance(hidden, (tuple, list)):
        raise TypeError(
            "hidden must be a pair of states, one for each direction, but is "
            f"{type_name(hidden)}"
        )
    if len(hidden) != 2:
        raise ValueError(
            "hidden must have two entries, one for each direction, but has "
            f"{len(hidden)}"
        )
    return hidden
