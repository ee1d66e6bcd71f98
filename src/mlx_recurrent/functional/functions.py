"""The functions: the recurrent layer, its recurrence and a product."""

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import mlx.core as mx

from mlx_recurrent import _native
from mlx_recurrent.functional import dispatch, placement
from mlx_recurrent.functional.calls import judge_rnn, judge_scan
from mlx_recurrent.functional.devices import StreamOrDevice
from mlx_recurrent.functional.dispatch import Nonlinearity
from mlx_recurrent.functional.judging import (
    ReturnState,
    judge_array,
    judge_return_state,
    judge_stream,
    shown,
    type_name,
)
from mlx_recurrent.functional.operands import (
    judge_bias,
    judge_count,
    judge_floating,
    project,
)
from mlx_recurrent.functional.options import (
    BidirectionalOptions,
    CallOptions,
    CellOptions,
    InputOptions,
    Options,
    ScanOptions,
    ZoneoutOptions,
    documented,
)
from mlx_recurrent.functional.running import run

if TYPE_CHECKING:
    from typing_extensions import Unpack


@overload
def rnn(
    x: mx.array,
    Wxh: mx.array,
    Whh: mx.array,
    bias: mx.array | None = None,
    hidden: mx.array | None = None,
    *,
    nonlinearity: Nonlinearity | None = None,
    return_state: Literal[False, "only"] = False,
    stream: StreamOrDevice = None,
    **options: "Unpack[Options]",
) -> mx.array: ...
@overload
def rnn(
    x: mx.array,
    Wxh: mx.array,
    Whh: mx.array,
    bias: mx.array | None = None,
    hidden: mx.array | None = None,
    *,
    nonlinearity: Nonlinearity | None = None,
    return_state: Literal[True],
    stream: StreamOrDevice = None,
    **options: "Unpack[Options]",
) -> tuple[mx.array, mx.array]: ...
@overload
def rnn(
    x: mx.array,
    Wxh: mx.array,
    Whh: mx.array,
    bias: mx.array | None = None,
    hidden: mx.array | None = None,
    *,
    nonlinearity: Nonlinearity | None = None,
    return_state: ReturnState,
    stream: StreamOrDevice = None,
    **options: "Unpack[Options]",
) -> mx.array | tuple[mx.array, mx.array]: ...
@documented(
    BidirectionalOptions,
    CallOptions,
    ScanOptions,
    ZoneoutOptions,
    CellOptions,
    InputOptions,
    Options,
)
def rnn(
    x: mx.array,
    Wxh: mx.array,
    Whh: mx.array,
    bias: mx.array | None = None,
    hidden: mx.array | None = None,
    *,
    nonlinearity: Nonlinearity | None = None,
    return_state: ReturnState = False,
    stream: StreamOrDevice = None,
    **options: "Unpack[Options]",
) -> mx.array | tuple[mx.array, mx.array]:
    r"""Run an Elman recurrent layer over a sequence.

    With letters ``N`` for any number of leading axes, ``L`` for steps, ``D`` for input
    and ``H`` for hidden features, and zero for :math:`W_{hh} h_{-1}` where there is no
    ``hidden``:

    .. math::

        h_t = f(W_{xh} x_t + b + W_{hh} h_{t-1})

    With a leak :math:`k`, :math:`h_t = (1 - k) h_{t-1} + k f(\ldots)`.

    Args:
        x (array): The sequence, ``NLD`` or ``LD``. Integers promote as in MLX.
        Wxh (array): The input weight, ``(H, D)``.
        Whh (array): The recurrent weight, ``(H, H)``.
        bias (array, optional): The bias, ``(H,)``. Default: ``None``.
        hidden (array, optional): The state before the first step, ``NH`` or ``H``. The
            leading axes of ``x`` broadcast to its own. Default: ``None``.
        nonlinearity (callable, optional): A function of an array ``(..., H)``.
            ``None`` is tanh. Default: ``None``.
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
        >>> from mlx_recurrent import rnn
        >>> x, Wxh, Whh = mx.ones((5, 3)), mx.ones((8, 3)), mx.zeros((8, 8))
        >>> rnn(x, Wxh, Whh, reverse=True).shape
        (5, 8)
    """
    if not options and stream is None:
        # Quickly, where there is nothing to judge.
        activation = dispatch.native(nonlinearity)
        if activation is not None:
            operands = x, Wxh, bias, Whh, hidden
            result = _native.plain_recurrence(operands, activation, return_state)
            if result is not None:
                return cast("mx.array", result)
    judge_return_state(return_state)
    call = judge_rnn(
        x,
        Wxh,
        Whh,
        bias,
        hidden,
        nonlinearity=nonlinearity,
        stream=stream,
        **options,
    )
    return cast("mx.array | tuple[mx.array, mx.array]", run(call, return_state))


@overload
def scan(
    z: mx.array,
    Whh: mx.array,
    hidden: mx.array | None = None,
    *,
    nonlinearity: Nonlinearity | None = None,
    return_state: Literal[False, "only"] = False,
    stream: StreamOrDevice = None,
    **options: "Unpack[ScanOptions]",
) -> mx.array: ...
@overload
def scan(
    z: mx.array,
    Whh: mx.array,
    hidden: mx.array | None = None,
    *,
    nonlinearity: Nonlinearity | None = None,
    return_state: Literal[True],
    stream: StreamOrDevice = None,
    **options: "Unpack[ScanOptions]",
) -> tuple[mx.array, mx.array]: ...
@overload
def scan(
    z: mx.array,
    Whh: mx.array,
    hidden: mx.array | None = None,
    *,
    nonlinearity: Nonlinearity | None = None,
    return_state: ReturnState,
    stream: StreamOrDevice = None,
    **options: "Unpack[ScanOptions]",
) -> mx.array | tuple[mx.array, mx.array]: ...
@documented(BidirectionalOptions, CallOptions, ZoneoutOptions, CellOptions, ScanOptions)
def scan(
    z: mx.array,
    Whh: mx.array,
    hidden: mx.array | None = None,
    *,
    nonlinearity: Nonlinearity | None = None,
    return_state: ReturnState = False,
    stream: StreamOrDevice = None,
    **options: "Unpack[ScanOptions]",
) -> mx.array | tuple[mx.array, mx.array]:
    r"""Run the recurrence alone, on inputs that are already projected.

    .. math::

        h_t = f(z_t + W_{hh} h_{t-1})

    Args:
        z (array): The projected inputs, ``NLH`` or ``LH``.
        Whh (array): The recurrent weight, ``(H, H)``.
        hidden (array, optional): The state before the first step, ``NH`` or ``H``. The
            leading axes of ``z`` broadcast to its own. Default: ``None``.
        nonlinearity (callable, optional): A function of an array ``(..., H)``.
            ``None`` is tanh. Default: ``None``.
        return_state (bool or str, optional): ``True`` returns the outputs and the state
            after the last step, ``"only"`` that state alone; the outputs are then never
            stored. Default: ``False``.
        stream (Stream or Device, optional): Where to run. ``None`` is the default
            stream. Default: ``None``.
        options: Of the recurrence.

    Returns:
        array or tuple(array, array): The outputs, ``NLH`` or ``LH``; the state, ``NH``
        or ``H``; or both.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a shape, a dtype or a value does not fit.

    Example:
        >>> import mlx.core as mx
        >>> from mlx_recurrent import scan
        >>> z, Whh = mx.ones((4, 1)), mx.array([[1.0]])
        >>> scan(z, Whh, nonlinearity=lambda a: a).tolist()
        [[1.0], [2.0], [3.0], [4.0]]
    """
    judge_return_state(return_state)
    call = judge_scan(
        z, Whh, hidden, nonlinearity=nonlinearity, stream=stream, **options
    )
    return cast("mx.array | tuple[mx.array, mx.array]", run(call, return_state))


def matmul(
    x: mx.array,
    w: mx.array,
    bias: mx.array | None = None,
    *,
    stream: StreamOrDevice = None,
) -> mx.array:
    r"""Return :math:`x w^\top + b`.

    It is this package's product where MLX's own is slow (the CPU on Linux) and MLX's
    elsewhere.

    Args:
        x (array): ``(..., K)`` or ``(K,)``.
        w (array): ``(M, K)``.
        bias (array, optional): ``(M,)``, or anything that broadcasts to the result.
            Default: ``None``.
        stream (Stream or Device, optional): Where to run. ``None`` is the default
            stream. Default: ``None``.

    Returns:
        array: ``(..., M)`` or ``(M,)``, in the dtype that the operands promote to.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the shapes do not fit or the dtypes do not promote to a real
            floating one.

    Example:
        >>> import mlx.core as mx
        >>> from mlx_recurrent import matmul
        >>> x, w, bias = mx.array([1.0, 2.0]), mx.array([[3.0, 4.0]]), mx.array([5.0])
        >>> matmul(x, w, bias).tolist()
        [16.0]
    """
    judge_stream(stream)
    judge_array("x", x)
    judge_array("w", w)
    if w.ndim != 2:
        raise ValueError(f"w must have shape (M, K), but has shape {w.shape}")
    M, K = w.shape
    shape = x.shape
    if not shape or shape[-1] != K:
        raise ValueError(
            f"x must have shape (..., {K}) to fit w {w.shape}, but has shape {shape}"
        )
    judge_count("x", shape, "w", w.shape)
    operands = {"x": x, "w": w}
    if bias is not None:
        judge_bias(bias, (*shape[:-1], M))
        operands["bias"] = bias
    judge_floating(operands)
    return project(x, w, bias, placement.moved(stream))


def linear(
    x: Any, weight: mx.array, bias: mx.array | None, upstream: Callable[[Any], mx.array]
) -> mx.array:
    """Return ``x W^T + b`` from the faster of this package's product and MLX's.

    Args:
        x (array): ``(..., K)``.
        weight (array): ``(M, K)``; MLX's layer also takes what is no matrix.
        bias (array, optional): ``(M,)``.
        upstream (callable): MLX's layer, of ``x``.
    """
    stream = placement.moved(None)
    operands = (x, weight, bias)
    moves = stream is not None and dispatch.are_real(*operands)
    if weight.ndim == 2 and (moves or dispatch.has_own_product(None, *operands)):
        return matmul(x, weight, bias, stream=stream)
    _native.expect_operands([a for a in operands if isinstance(a, mx.array)], None)
    return upstream(x)


def set_num_threads(n: int) -> None:
    """Set how many threads the kernels may use.

    Args:
        n (int): At least 1; at most 256 are used. At first it is the number of cores
            of the fastest kind that this process may use.

    Raises:
        TypeError: If ``n`` is not an integer.
        ValueError: If ``n`` is less than 1.

    Example:
        >>> from mlx_recurrent import get_num_threads, set_num_threads
        >>> set_num_threads(1)
        >>> get_num_threads()
        1
    """
    try:
        count = operator.index(n)
    except TypeError:
        raise TypeError(f"n must be an integer, but is {type_name(n)}") from None
    if count < 1:
        raise ValueError(f"n must be at least 1, but is {shown(count)}")
    _native.set_num_threads(min(count, 2**31 - 1))


def get_num_threads() -> int:
    """Return how many threads the kernels may use.

    Example:
        >>> from mlx_recurrent import get_num_threads
        >>> get_num_threads() >= 1
        True
    """
    return _native.get_num_threads()
