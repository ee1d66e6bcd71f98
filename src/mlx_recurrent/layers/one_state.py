from typing import TYPE_CHECKING, Literal, overload

import mlx.core as mx

from mlx_recurrent import functional
from mlx_recurrent.functional.foreign import judge_keywords
from mlx_recurrent.functional.judging import ReturnState
from mlx_recurrent.functional.options import (
    BidirectionalOptions,
    CallOptions,
    Values,
    documented,
)
from mlx_recurrent.functional.plan import Plan
from mlx_recurrent.layers.recurrent_layer import RecurrentLayer
from mlx_recurrent.layers.streaming import Array, Stream

if TYPE_CHECKING:
    from typing_extensions import Unpack


class OneState(RecurrentLayer):
    """A recurrent layer with one state, which is its output."""

    @overload
    def __call__(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        *,
        return_state: Literal[False, "only"] = False,
        **options: "Unpack[CallOptions]",
    ) -> mx.array: ...
    @overload
    def __call__(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        *,
        return_state: Literal[True],
        **options: "Unpack[CallOptions]",
    ) -> tuple[mx.array, mx.array]: ...
    @overload
    def __call__(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        *,
        return_state: ReturnState,
        **options: "Unpack[CallOptions]",
    ) -> mx.array | tuple[mx.array, mx.array]: ...
    @documented(BidirectionalOptions, CallOptions)
    def __call__(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        *,
        return_state: ReturnState = False,
        **options: "Unpack[CallOptions]",
    ) -> mx.array | tuple[mx.array, mx.array]:
        """Run the layer over a sequence.

        Args:
            x (array): The sequence, ``NLD`` or ``LD``.
            hidden (array, optional): The state before the first step, ``NH`` or ``H``.
                The leading axes of ``x`` broadcast to its own. Default: ``None``.
            return_state (bool or str, optional): ``True`` returns the outputs and the
                state after the last step, ``"only"`` that state alone; the outputs are
                then never stored. Default: ``False``.
            options: Of the recurrence.

        Returns:
            array or tuple(array, array): The outputs, ``NLH`` or ``LH``; the state,
            ``NH`` or ``H``; or both.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a shape, a dtype or a value does not fit.
            RuntimeError: If an operand is another thread's, which has not evaluated
                it, or in a forked process, where MLX would wait for ever.

        Example:
            >>> import mlx.core as mx
            >>> from mlx_recurrent import RNN
            >>> layer, x = RNN(3, 8), mx.random.normal((2, 5, 3))
            >>> outputs = layer(x, lengths=[5, 2])
            >>> outputs[1, 2:].any().item()
            False
        """
        if not options and not self._has_options:
            return self._plain(x, hidden, return_state)
        judge_keywords(options, CallOptions, ("hidden", *self._own))
        result: mx.array | tuple[mx.array, mx.array] = self._function(
            x,
            hidden=hidden,
            return_state=return_state,
            **options,
            **self._arguments(),
        )
        return result

    def _plain(
        self, x: mx.array, hidden: mx.array | None, return_state: ReturnState
    ) -> mx.array | tuple[mx.array, mx.array]:
        """Run the layer that MLX has too."""
        raise NotImplementedError

    def step(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        *,
        reset: Values | None = None,
    ) -> mx.array:
        """Run a single step.

        In training mode it draws new masks at each call: for one mask over a sequence
        call the layer.

        Args:
            x (array): The input, ``ND`` or ``D``.
            hidden (array, optional): The state before, ``NH`` or ``H``. The leading
                axes of ``x`` broadcast to its own. Default: ``None``.
            reset (array, optional): Where an episode starts, so that ``hidden`` is not
                used: booleans, of the shape of the leading axes. Default: ``None``.

        Returns:
            array: The state after, ``NH`` or ``H``.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a shape, a dtype or a value does not fit.

        Example:
            >>> import mlx.core as mx
            >>> from mlx_recurrent import RNN
            >>> layer, x = RNN(3, 8), mx.random.normal((5, 3))
            >>> h = layer.step(x[1], layer.step(x[0]))
            >>> mx.allclose(h, layer(x)[1], atol=1e-5).item()
            True
        """
        state: mx.array = functional.step(
            self._function, x, {"hidden": hidden}, reset, **self._arguments()
        )
        return state

    def plan(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        *,
        return_state: ReturnState = False,
        **options: "Unpack[CallOptions]",
    ) -> Plan:
        """Return what a call with the same arguments would run, and why.

        The arguments and what they raise are those of the call; nothing is computed.

        Example:
            >>> import mlx.core as mx
            >>> import mlx.nn as nn
            >>> from mlx_recurrent import RNN
            >>> plan = RNN(3, 8, nonlinearity=nn.softmax).plan(mx.zeros((5, 3)))
            >>> plan.path
            'composed'
        """
        judge_keywords(options, CallOptions, ("hidden", *self._own))
        return functional.plan(
            self._function,
            x,
            hidden=hidden,
            return_state=return_state,
            **options,
            **self._arguments(),
        )

    def stream(self, hidden: Array | None = None) -> Stream:
        """Return the layer for real-time use: a copy that takes steps as they come.

        Args:
            hidden (array, optional): The state before the first step, ``NH`` or ``H``.
                Its leading axes become those of every input. Default: ``None``.

        Raises:
            TypeError: If ``hidden`` is not an array.
            ValueError: If its shape or dtype does not fit.

        Example:
            >>> import numpy as np
            >>> from mlx_recurrent import RNN
            >>> stream = RNN(3, 8).stream()
            >>> stream(np.ones(3)).shape  # a step
            (8,)
        """
        return self._streamed((hidden,))
