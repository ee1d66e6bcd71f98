from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

import mlx.core as mx
from mlx.nn.layers import recurrent

from mlx_recurrent import functional
from mlx_recurrent.functional.foreign import judge_keywords, names_ways_out
from mlx_recurrent.functional.judging import ReturnState
from mlx_recurrent.functional.options import (
    BidirectionalOptions,
    CallOptions,
    Values,
    documented,
)
from mlx_recurrent.functional.plan import Plan
from mlx_recurrent.layers.recurrent_layer import (
    RecurrentLayer,
    judge_own,
    judge_sizes,
)
from mlx_recurrent.layers.streaming import Array, Stream
from mlx_recurrent.mlx_faults.drawing import draws

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LSTM(RecurrentLayer, recurrent.LSTM):
    r"""A long short-term memory: :class:`mlx.nn.LSTM` on a native core.

    The input is a sequence of shape ``NLD`` or ``LD`` where:

    * ``N`` is the optional batch dimension (any number of leading axes)
    * ``L`` is the sequence length
    * ``D`` is the input's feature dimension

    For each element along the sequence length axis, the layer applies the function:

    .. math::

        \begin{aligned}
        i_t &= \sigma (W_{xi} x_t + b_i + W_{hi} h_{t-1}) \\
        f_t &= \sigma (W_{xf} x_t + b_f + W_{hf} h_{t-1}) \\
        g_t &= \tanh (W_{xg} x_t + b_g + W_{hg} h_{t-1}) \\
        o_t &= \sigma (W_{xo} x_t + b_o + W_{ho} h_{t-1}) \\
        c_t &= f_t \odot c_{t-1} + i_t \odot g_t \\
        h_t &= o_t \odot \tanh (c_t)
        \end{aligned}

    The hidden state :math:`h` and the cell state :math:`c` have shape ``NH`` or ``H``.
    The parameters are those of :class:`mlx.nn.LSTM`: ``Wx`` (4H, D), ``Wh`` (4H, H) and
    ``bias`` (4H,), whose rows are those of i, f, g and o, with the same values from the
    same seed; weights load both ways.

    Args:
        input_size (int): Dimension of the input, ``D``. At least 0.
        hidden_size (int): Dimension of the hidden state, ``H``. At least 1.
        bias (bool, optional): Whether to use biases. Default: ``True``.
        zoneout (float or tuple(float, float), optional): The probability that a unit
            keeps its state at a step; a pair is that for the hidden state and that for
            the cell state, whose masks are drawn apart. In evaluation the expectation
            is used. Default: ``0``.
        input_dropout (float, optional): The probability that a feature of the input is
            zero, for a whole sequence. Default: ``0``.
        recurrent_dropout (float, optional): The probability that a unit is left out of
            the product with ``Wh``, for a whole sequence. Default: ``0``.
        learn_hidden (bool, optional): Whether to learn the states that episodes start
            from: the parameters ``hidden0`` (H,) and ``cell0`` (H,), zero at first.
            Default: ``False``.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a size or a probability is out of range.

    Example:
        >>> import mlx.core as mx
        >>> from mlx_recurrent import LSTM
        >>> layer = LSTM(3, 8)
        >>> outputs, state = layer(mx.zeros((2, 5, 3)), return_state=True)
        >>> hidden, cell = state
        >>> outputs.shape, hidden.shape, cell.shape
        ((2, 5, 8), (2, 8), (2, 8))
    """

    _function: ClassVar[functional.Function] = staticmethod(functional.lstm)

    @names_ways_out
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        zoneout: float | tuple[float, float] = 0.0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        learn_hidden: bool = False,
    ) -> None:
        bias = judge_sizes(input_size, hidden_size, bias)
        own = judge_own(
            self._start_names(),
            hidden_size,
            zoneout=zoneout,
            input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout,
            learn_hidden=learn_hidden,
        )
        draws()
        super().__init__(input_size, hidden_size, bias)
        for name, value in own.items():
            setattr(self, name, value)

    @overload
    def __call__(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        cell: mx.array | None = None,
        *,
        return_state: Literal[False, "only"] = False,
        **options: "Unpack[CallOptions]",
    ) -> tuple[mx.array, mx.array]: ...
    @overload
    def __call__(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        cell: mx.array | None = None,
        *,
        return_state: Literal[True],
        **options: "Unpack[CallOptions]",
    ) -> tuple[mx.array, tuple[mx.array, mx.array]]: ...
    @overload
    def __call__(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        cell: mx.array | None = None,
        *,
        return_state: ReturnState,
        **options: "Unpack[CallOptions]",
    ) -> tuple[mx.array, Any]: ...
    @documented(BidirectionalOptions, CallOptions)
    def __call__(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        cell: mx.array | None = None,
        *,
        return_state: ReturnState = False,
        **options: "Unpack[CallOptions]",
    ) -> tuple[mx.array, Any]:
        """Run the layer over a sequence.

        Args:
            x (array): The sequence, ``NLD`` or ``LD``.
            hidden (array, optional): The hidden state before the first step, ``NH`` or
                ``H``. Its leading axes and those of ``x`` broadcast. Default: ``None``.
            cell (array, optional): The cell state before the first step, as ``hidden``;
                each may be given without the other. Default: ``None``.
            return_state (bool or str, optional): ``True`` returns the outputs, which
                are the hidden states, and the pair of states after the last step;
                ``"only"`` that pair alone. Other cell states are then never a result.
                Default: ``False``.
            options: Of the recurrence.

        Returns:
            tuple: All hidden states and all cell states, ``NLH`` or ``LH``; the hidden
            states and the pair of states after the last step; or that pair, ``NH`` or
            ``H``.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a shape, a dtype or a value does not fit.
            RuntimeError: If an operand is another thread's, which has not evaluated
                it, or in a forked process, where MLX would wait for ever.

        Example:
            >>> import mlx.core as mx
            >>> from mlx_recurrent import LSTM
            >>> layer, x = LSTM(3, 8), mx.random.normal((2, 5, 3))
            >>> first, state = layer(x[:, :3], return_state=True)
            >>> rest, state = layer(x[:, 3:], *state, return_state=True)
            >>> mx.allclose(rest, layer(x)[0][:, 3:], atol=1e-5).item()
            True
        """
        if not options and not self._has_options:
            # As in RNN: as attributes parameters take longer to find.
            return functional.lstm(
                x,
                self["Wx"] if "Wx" in self else self.Wx,
                self["Wh"] if "Wh" in self else self.Wh,
                self["bias"] if "bias" in self else self.bias,
                hidden,
                cell,
                return_state=return_state,
            )
        judge_keywords(options, CallOptions, ("hidden", "cell"))
        return functional.lstm(
            x,
            hidden=hidden,
            cell=cell,
            return_state=return_state,
            **options,
            **self._arguments(),
        )

    def step(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        cell: mx.array | None = None,
        *,
        reset: Values | None = None,
    ) -> tuple[mx.array, mx.array]:
        """Run a single step.

        In training mode it draws new masks at each call: for one mask over a sequence
        call the layer.

        Args:
            x (array): The input, ``ND`` or ``D``.
            hidden (array, optional): The hidden state before, ``NH`` or ``H``. Its
                leading axes and those of ``x`` broadcast. Default: ``None``.
            cell (array, optional): The cell state before, as ``hidden``.
                Default: ``None``.
            reset (array, optional): Where an episode starts, so that the states before
                are not used: booleans, of the shape of the leading axes.
                Default: ``None``.

        Returns:
            tuple(array, array): The states after, ``NH`` or ``H``.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a shape, a dtype or a value does not fit.

        Example:
            >>> import mlx.core as mx
            >>> from mlx_recurrent import LSTM
            >>> layer, x = LSTM(3, 8), mx.random.normal((5, 3))
            >>> h, c = layer.step(x[1], *layer.step(x[0]))
            >>> mx.allclose(c, layer(x)[1][1], atol=1e-5).item()
            True
        """
        states = {"hidden": hidden, "cell": cell}
        state: tuple[mx.array, mx.array] = functional.step(
            self._function, x, states, reset, **self._arguments()
        )
        return state

    def plan(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        cell: mx.array | None = None,
        *,
        return_state: ReturnState = False,
        **options: "Unpack[CallOptions]",
    ) -> Plan:
        """Return what a call with the same arguments would run, and why.

        The arguments and what they raise are those of the call; nothing is computed.

        Example:
            >>> import mlx.core as mx
            >>> from mlx_recurrent import LSTM, exporting
            >>> with exporting():
            ...     LSTM(3, 8).plan(mx.zeros((5, 3))).path
            'composed'
        """
        judge_keywords(options, CallOptions, ("hidden", "cell"))
        return functional.plan(
            self._function,
            x,
            hidden=hidden,
            cell=cell,
            return_state=return_state,
            **options,
            **self._arguments(),
        )

    def stream(self, hidden: Array | None = None, cell: Array | None = None) -> Stream:
        """Return the layer for real-time use: a copy that takes steps as they come.

        Args:
            hidden (array, optional): The hidden state before the first step, ``NH`` or
                ``H``. Its leading axes become those of every input. Default: ``None``.
            cell (array, optional): The cell state before the first step, as ``hidden``.
                Default: ``None``.

        Raises:
            TypeError: If a state is not an array.
            ValueError: If its shape or dtype does not fit.

        Example:
            >>> import numpy as np
            >>> from mlx_recurrent import LSTM
            >>> stream = LSTM(3, 8).stream()
            >>> stream(np.ones(3)).shape  # a step
            (8,)
            >>> hidden, cell = stream.state
        """
        return self._streamed((hidden, cell))
