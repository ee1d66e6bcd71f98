"""The functions of gated layers."""

from typing import TYPE_CHECKING, Any, Literal, cast, overload

import mlx.core as mx

from mlx_recurrent import _native
from mlx_recurrent.functional.calls import judge_gru, judge_lstm
from mlx_recurrent.functional.devices import StreamOrDevice
from mlx_recurrent.functional.dispatch import has_kernels
from mlx_recurrent.functional.judging import ReturnState, judge_return_state
from mlx_recurrent.functional.options import (
    BidirectionalOptions,
    CallOptions,
    CellOptions,
    GRUOptions,
    InputOptions,
    LSTMOptions,
    ZoneoutOptions,
    documented,
)
from mlx_recurrent.functional.running import run

if TYPE_CHECKING:
    from typing_extensions import Unpack


@overload
def gru(
    x: mx.array,
    Wx: mx.array,
    Wh: mx.array,
    b: mx.array | None = None,
    bhn: mx.array | None = None,
    hidden: mx.array | None = None,
    *,
    reset_after: bool = True,
    return_state: Literal[False, "only"] = False,
    stream: StreamOrDevice = None,
    **options: "Unpack[GRUOptions]",
) -> mx.array: ...
@overload
def gru(
    x: mx.array,
    Wx: mx.array,
    Wh: mx.array,
    b: mx.array | None = None,
    bhn: mx.array | None = None,
    hidden: mx.array | None = None,
    *,
    reset_after: bool = True,
    return_state: Literal[True],
    stream: StreamOrDevice = None,
    **options: "Unpack[GRUOptions]",
) -> tuple[mx.array, mx.array]: ...
@overload
def gru(
    x: mx.array,
    Wx: mx.array,
    Wh: mx.array,
    b: mx.array | None = None,
    bhn: mx.array | None = None,
    hidden: mx.array | None = None,
    *,
    reset_after: bool = True,
    return_state: ReturnState,
    stream: StreamOrDevice = None,
    **options: "Unpack[GRUOptions]",
) -> mx.array | tuple[mx.array, mx.array]: ...
@documented(
    BidirectionalOptions,
    CallOptions,
    ZoneoutOptions,
    CellOptions,
    InputOptions,
    GRUOptions,
)
def gru(
    x: mx.array,
    Wx: mx.array,
    Wh: mx.array,
    b: mx.array | None = None,
    bhn: mx.array | None = None,
    hidden: mx.array | None = None,
    *,
    reset_after: bool = True,
    return_state: ReturnState = False,
    stream: StreamOrDevice = None,
    **options: "Unpack[GRUOptions]",
) -> mx.array | tuple[mx.array, mx.array]:
    r"""Run a gated recurrent unit (GRU) over a sequence.

    With letters ``N`` for any number of leading axes, ``L`` for steps, ``D`` for input
    and ``H`` for hidden features, and zero for :math:`h_{-1}` where there is no
    ``hidden``:

    .. math::

        r_t, z_t &= \sigma(W_x x_t + b + W_h h_{t-1}) \\
        n_t &= \tanh(W_{xn} x_t + b_n + r_t (W_{hn} h_{t-1} + b_{hn})) \\
        h_t &= (1 - z_t) n_t + z_t h_{t-1}

    The rows of the weights are those of r, z and n.

    Args:
        x (array): The sequence, ``NLD`` or ``LD``. Integers promote as in MLX.
        Wx (array): The input weight, ``(3H, D)``.
        Wh (array): The recurrent weight, ``(3H, H)``.
        b (array, optional): The bias, ``(3H,)``. Default: ``None``.
        bhn (array, optional): The bias inside the reset, ``(H,)``. Default: ``None``.
        hidden (array, optional): The state before the first step, ``NH`` or ``H``. Its
            leading axes and those of ``x`` broadcast. Default: ``None``.
        reset_after (bool, optional): Whether the reset comes after the product.
            ``False`` is :math:`W_{hn} (r_t h_{t-1})`, without ``bhn``: a second product
            a step, in MLX's operations. Default: ``True``.
        return_state (bool or str, optional): ``True`` returns the outputs and the state
            after the last step, ``"only"`` that state alone; the outputs are then never
            stored. Default: ``False``.
        stream (Stream or Device, optional): Where to run. ``None`` is the default
            stream. Default: ``None``.
        options: Of the recurrence and its projection.

    Returns:
        array or tuple(array, array): The outputs, ``NLH`` or ``LH``; the state, ``NH``
        or ``H``; or both.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a shape, a dtype or a value does not fit.

    Example:
        >>> import mlx.core as mx
        >>> from mlx_recurrent import gru
        >>> x, Wx, Wh = mx.ones((5, 3)), mx.ones((24, 3)), mx.zeros((24, 8))
        >>> gru(x, Wx, Wh, reverse=True).shape
        (5, 8)
    """
    if not options and reset_after is True and stream is None and has_kernels(None):
        # Quickly, where there is nothing to judge.
        operands = x, Wx, b, Wh, hidden, bhn
        if (
            result := _native.plain_recurrence(operands, "gru", return_state)
        ) is not None:
            return cast("mx.array", result)
    judge_return_state(return_state)
    call = judge_gru(
        x, Wx, Wh, b, bhn, hidden, reset_after=reset_after, stream=stream, **options
    )
    return cast("mx.array | tuple[mx.array, mx.array]", run(call, return_state))


@overload
def lstm(
    x: mx.array,
    Wx: mx.array,
    Wh: mx.array,
    bias: mx.array | None = None,
    hidden: mx.array | None = None,
    cell: mx.array | None = None,
    *,
    return_state: Literal[False, "only"] = False,
    stream: StreamOrDevice = None,
    **options: "Unpack[LSTMOptions]",
) -> tuple[mx.array, mx.array]: ...
@overload
def lstm(
    x: mx.array,
    Wx: mx.array,
    Wh: mx.array,
    bias: mx.array | None = None,
    hidden: mx.array | None = None,
    cell: mx.array | None = None,
    *,
    return_state: Literal[True],
    stream: StreamOrDevice = None,
    **options: "Unpack[LSTMOptions]",
) -> tuple[mx.array, tuple[mx.array, mx.array]]: ...
@overload
def lstm(
    x: mx.array,
    Wx: mx.array,
    Wh: mx.array,
    bias: mx.array | None = None,
    hidden: mx.array | None = None,
    cell: mx.array | None = None,
    *,
    return_state: ReturnState,
    stream: StreamOrDevice = None,
    **options: "Unpack[LSTMOptions]",
) -> tuple[mx.array, Any]: ...
@documented(
    BidirectionalOptions,
    CallOptions,
    CellOptions,
    InputOptions,
    LSTMOptions,
)
def lstm(
    x: mx.array,
    Wx: mx.array,
    Wh: mx.array,
    bias: mx.array | None = None,
    hidden: mx.array | None = None,
    cell: mx.array | None = None,
    *,
    return_state: ReturnState = False,
    stream: StreamOrDevice = None,
    **options: "Unpack[LSTMOptions]",
) -> tuple[mx.array, Any]:
    r"""Run a long short-term memory (LSTM) over a sequence.

    With letters ``N`` for any number of leading axes, ``L`` for steps, ``D`` for input
    and ``H`` for hidden features, and zero for a state that is not given:

    .. math::

        i_t, f_t, o_t &= \sigma(W_x x_t + b + W_h h_{t-1}) \\
        g_t &= \tanh(W_{xg} x_t + b_g + W_{hg} h_{t-1}) \\
        c_t &= f_t c_{t-1} + i_t g_t \\
        h_t &= o_t \tanh(c_t)

    The rows of the weights are those of i, f, g and o.

    Args:
        x (array): The sequence, ``NLD`` or ``LD``. Integers promote as in MLX.
        Wx (array): The input weight, ``(4H, D)``.
        Wh (array): The recurrent weight, ``(4H, H)``.
        bias (array, optional): The bias, ``(4H,)``. Default: ``None``.
        hidden (array, optional): The hidden state before the first step, ``NH`` or
            ``H``. Its leading axes and those of ``x`` broadcast. Default: ``None``.
        cell (array, optional): The cell state before the first step, as ``hidden``.
            Default: ``None``.
        return_state (bool or str, optional): ``True`` returns the outputs, which are
            the hidden states, and the pair of states after the last step; ``"only"``
            that pair alone. Other cell states are then never a result.
            Default: ``False``.
        stream (Stream or Device, optional): Where to run. ``None`` is the default
            stream. Default: ``None``.
        options: Of the recurrence and its projection.

    Returns:
        tuple: All hidden states and all cell states, ``NLH`` or ``LH``; the hidden
        states and the pair of states after the last step; or that pair, ``NH`` or
        ``H``.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a shape, a dtype or a value does not fit.

    Example:
        >>> import mlx.core as mx
        >>> from mlx_recurrent import lstm
        >>> x, Wx, Wh = mx.ones((5, 3)), mx.ones((32, 3)), mx.zeros((32, 8))
        >>> outputs, (hidden, cell) = lstm(x, Wx, Wh, return_state=True)
        >>> outputs.shape, cell.shape
        ((5, 8), (8,))
    """
    if not options and stream is None and has_kernels(None):
        operands = x, Wx, bias, Wh, hidden, cell
        if (
            result := _native.plain_recurrence(operands, "lstm", return_state)
        ) is not None:
            return (result[0], result[1:]) if return_state else result
    judge_return_state(return_state)
    call = judge_lstm(x, Wx, Wh, bias, hidden, cell, stream=stream, **options)
    return cast("tuple[mx.array, Any]", run(call, return_state))
