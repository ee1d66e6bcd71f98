from typing import TYPE_CHECKING, Any

import mlx.core as mx

from mlx_recurrent.functional.foreign import names_ways_out
from mlx_recurrent.functional.judging import ReturnState, judge_flag, judge_layer
from mlx_recurrent.functional.options import BidirectionalOptions, documented
from mlx_recurrent.functional.plan import Plan
from mlx_recurrent.layers.sizes import sizes_of
from mlx_recurrent.layers.states import run_layer, states_of
from mlx_recurrent.layers.whole_time import WholeTime, judge_method
from mlx_recurrent.mlx_faults.loading import Loading
from mlx_recurrent.mlx_faults.pickling import reduce_ex

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Reversed(WholeTime, Loading):
    """A layer that runs backward in time: the second half of a bidirectional one.

    Its call and ``plan`` take what the layer's take; it has no ``step`` and no
    ``stream``, because it begins at the end of a sequence. The parameters are
    ``backward.Wxh`` and so on, as those of :class:`mlx_recurrent.Bidirectional`.

    Args:
        backward (Module): The layer: :class:`mlx_recurrent.RNN`, or what is called like
            it.

    Raises:
        TypeError: If ``backward`` is no layer.

    Example:
        >>> import mlx.core as mx
        >>> from mlx_recurrent import RNN
        >>> from mlx_recurrent.interop import Reversed
        >>> layer, x = RNN(3, 8), mx.ones((5, 3))
        >>> mx.array_equal(Reversed(layer)(x), layer(x, reverse=True)).item()
        True
    """

    __reduce_ex__ = reduce_ex

    @names_ways_out
    def __init__(self, backward: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        judge_layer("backward", backward)
        self.backward = backward

    @names_ways_out
    @documented(BidirectionalOptions)
    def __call__(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        *,
        reverse: bool = False,
        return_state: ReturnState = False,
        **options: "Unpack[BidirectionalOptions]",
    ) -> Any:
        """Run the layer over a sequence, from its end.

        Args:
            x (array): The sequence, ``NLD`` or ``LD``.
            hidden (array, optional): The state before the first step that runs, which
                is the last one of the sequence; of :class:`mlx_recurrent.LSTM` a pair.
                Default: ``None``.
            reverse (bool, optional): Whether to turn the direction again, so that the
                layer runs forward. Default: ``False``.
            return_state (bool or str, optional): As for :class:`mlx_recurrent.RNN`.
                Default: ``False``.
            options: Of the layer.

        Returns:
            array or tuple(array, array): What the layer returns, of
            :class:`mlx_recurrent.LSTM` its hidden states in the place of all states.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a shape, a dtype or a value does not fit.
        """
        return run_layer(
            self.backward,
            x,
            "hidden",
            hidden,
            reverse=not judge_flag("reverse", reverse),
            return_state=return_state,
            **options,
        )

    def plan(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        *,
        reverse: bool = False,
        **keywords: Any,
    ) -> Plan:
        """Return what a call with the same arguments would run, and why."""
        judge_method(self.backward, "backward", "plan")
        reverse = not judge_flag("reverse", reverse)
        states = states_of(self.backward, "hidden", hidden)
        plan: Plan = self.backward.plan(x, *states, reverse=reverse, **keywords)
        return plan

    @property
    def _sizes(self) -> tuple[int | None, int | None]:
        return sizes_of(self.backward)
