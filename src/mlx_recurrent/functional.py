"""The functions: they judge their arguments, settle dtypes and shapes, and dispatch."""

import math
import operator
from contextlib import nullcontext, suppress
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NamedTuple,
    NoReturn,
    TypeAlias,
    overload,
)

import mlx.core as mx

from mlx_recurrent import _native, composed, dispatch
from mlx_recurrent.course import inputs
from mlx_recurrent.dispatch import Choice, Nonlinearity, StreamOrDevice
from mlx_recurrent.judging import dtype_name, judge_array, shown, type_name
from mlx_recurrent.masks import draw_key
from mlx_recurrent.plan import Plan
from mlx_recurrent.terms import (
    ZERO,
    Asked,
    Options,
    ScanOptions,
    Terms,
    Values,
    judge_every,
    judge_flag,
    judge_hidden0,
    judge_leak,
    judge_lengths,
    judge_probability,
    judge_reset,
)
from mlx_recurrent.tracing import trace
from mlx_recurrent.values import values_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

ReturnState: TypeAlias = bool | Literal["only"]

# What the kernels can count: a product of sizes stays below 2**63.
_MOST_ROWS = 2**32
_MOST_ELEMENTS = 2**48
# A product of all sizes that needs no closer look.
_FEW = 2**32

_FLOATING = frozenset({mx.float32, mx.float16, mx.bfloat16, mx.float64})


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
def rnn(
    x: mx.array,
    Wxh: mx.array,
    Whh: mx.array,
    bias: mx.array | None = None,
    hidden: mx.array | None = None,
    *,
    nonlinearity: Nonlinearity | None = None,
    leak: float | mx.array | None = None,
    zoneout: float = ZERO,
    input_dropout: float = ZERO,
    recurrent_dropout: float = ZERO,
    hidden0: mx.array | None = None,
    training: bool = True,
    lengths: Values | None = None,
    reset: Values | None = None,
    reverse: bool = False,
    return_state: ReturnState = False,
    checkpoint_every: int | None = None,
    truncate_every: int | None = None,
    stream: StreamOrDevice = None,
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
        leak (float or array, optional): :math:`k`, in (0, 1], or an array ``(H,)`` of
            any values. ``None`` is 1. Default: ``None``.
        zoneout (float, optional): The probability that a unit keeps its state at a
            step. In evaluation the expectation is used. Default: ``0``.
        input_dropout (float, optional): The probability that a feature of the input is
            zero, for a whole sequence. Default: ``0``.
        recurrent_dropout (float, optional): The probability that a unit is left out of
            the product with ``Whh``, for a whole sequence. Default: ``0``.
        hidden0 (array, optional): The state that episodes start from, ``(H,)``: after a
            reset, and at first where there is no ``hidden``. Default: ``None``.
        training (bool, optional): Whether masks are drawn, from MLX's random state.
            Default: ``True``.
        lengths (array, optional): How many steps each row runs: integers, of the shape
            of the leading axes. Later outputs are zero, the state is held, and nothing
            in the padding reaches a result or a gradient. An array of MLX is evaluated
            to check it; inside a compiled function, and along a vmapped axis, it is
            clamped. Default: ``None``.
        reset (array, optional): Where an episode starts: booleans, leading axes +
            ``(L,)``. Nothing passes between the step before and this one, in either
            direction. Default: ``None``.
        reverse (bool, optional): Whether time runs backwards. Outputs stay at their
            inputs' places. Default: ``False``.
        return_state (bool or str, optional): ``True`` returns the outputs and the state
            after the last step, ``"only"`` that state alone; the outputs are then never
            stored. Default: ``False``.
        checkpoint_every (int, optional): Keep every so many states for a derivative and
            compute the others again. The composed path keeps all. Default: ``None``.
        truncate_every (int, optional): Truncated back-propagation through time: after
            so many steps of a row the state passes as a constant. Default: ``None``.
        stream (Stream or Device, optional): Where to run. ``None`` is the default
            stream. Default: ``None``.

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
    return _run(
        judge(
            "x",
            x,
            Wxh,
            Whh,
            bias,
            hidden,
            nonlinearity,
            return_state,
            stream,
            _asked(
                leak,
                zoneout,
                input_dropout,
                recurrent_dropout,
                hidden0,
                training,
                lengths,
                reset,
                reverse,
                checkpoint_every,
                truncate_every,
            ),
        ),
        return_state,
        stream,
    )


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
def scan(
    z: mx.array,
    Whh: mx.array,
    hidden: mx.array | None = None,
    *,
    nonlinearity: Nonlinearity | None = None,
    leak: float | mx.array | None = None,
    zoneout: float = ZERO,
    recurrent_dropout: float = ZERO,
    hidden0: mx.array | None = None,
    training: bool = True,
    lengths: Values | None = None,
    reset: Values | None = None,
    reverse: bool = False,
    return_state: ReturnState = False,
    checkpoint_every: int | None = None,
    truncate_every: int | None = None,
    stream: StreamOrDevice = None,
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
        leak (float or array, optional): :math:`k`, in (0, 1], or an array ``(H,)`` of
            any values. ``None`` is 1. Default: ``None``.
        zoneout (float, optional): The probability that a unit keeps its state at a
            step. In evaluation the expectation is used. Default: ``0``.
        recurrent_dropout (float, optional): The probability that a unit is left out of
            the product with ``Whh``, for a whole sequence. Default: ``0``.
        hidden0 (array, optional): The state that episodes start from, ``(H,)``: after a
            reset, and at first where there is no ``hidden``. Default: ``None``.
        training (bool, optional): Whether masks are drawn, from MLX's random state.
            Default: ``True``.
        lengths (array, optional): How many steps each row runs: integers, of the shape
            of the leading axes. Later outputs are zero, the state is held, and nothing
            in the padding reaches a result or a gradient. An array of MLX is evaluated
            to check it; inside a compiled function, and along a vmapped axis, it is
            clamped. Default: ``None``.
        reset (array, optional): Where an episode starts: booleans, leading axes +
            ``(L,)``. Nothing passes between the step before and this one, in either
            direction. Default: ``None``.
        reverse (bool, optional): Whether time runs backwards. Outputs stay at their
            inputs' places. Default: ``False``.
        return_state (bool or str, optional): ``True`` returns the outputs and the state
            after the last step, ``"only"`` that state alone; the outputs are then never
            stored. Default: ``False``.
        checkpoint_every (int, optional): Keep every so many states for a derivative and
            compute the others again. The composed path keeps all. Default: ``None``.
        truncate_every (int, optional): Truncated back-propagation through time: after
            so many steps of a row the state passes as a constant. Default: ``None``.
        stream (Stream or Device, optional): Where to run. ``None`` is the default
            stream. Default: ``None``.

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
    return _run(
        judge(
            "z",
            z,
            None,
            Whh,
            None,
            hidden,
            nonlinearity,
            return_state,
            stream,
            _asked(
                leak,
                zoneout,
                ZERO,
                recurrent_dropout,
                hidden0,
                training,
                lengths,
                reset,
                reverse,
                checkpoint_every,
                truncate_every,
            ),
        ),
        return_state,
        stream,
    )


def step(
    x: mx.array,
    hidden: mx.array | None,
    reset: Values | None,
    *,
    Wxh: mx.array,
    **arguments: Any,
) -> mx.array:
    """Return the state ``(..., H)`` after one step of :func:`rnn`.

    Args:
        x (array): The input, ``(..., D)``.
        hidden (array, optional): The state before, ``(..., H)``.
        reset (array, optional): Where an episode starts: booleans, of the shape of the
            leading axes.
        Wxh (array): The input weight, ``(H, D)``.
        arguments: Other arguments of :func:`rnn`.
    """
    judge_array("x", x)
    if Wxh.ndim == 2 and (not x.ndim or x.shape[-1] != Wxh.shape[1]):
        raise ValueError(
            f"x must have shape (..., {Wxh.shape[1]}) to fit Wxh {Wxh.shape}, but has "
            f"shape {x.shape}"
        )
    if reset is not None:
        lead, Whh = x.shape[:-1], arguments["Whh"]
        if isinstance(hidden, mx.array) and isinstance(Whh, mx.array) and Whh.ndim == 2:
            _judge_hidden("x", hidden, Whh, (*lead, Wxh.shape[0]))
            lead = hidden.shape[:-1]
        reset = mx.expand_dims(judge_reset(reset, "x", lead, ()), -1)
    state: mx.array = rnn(
        mx.expand_dims(x, -2),
        Wxh,
        hidden=hidden,
        reset=reset,
        return_state="only",
        **arguments,
    )
    return state


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
    if stream is not None:
        _judge_stream(stream)
    judge_array("x", x)
    judge_array("w", w)
    if bias is not None:
        judge_array("bias", bias)
    if w.ndim != 2:
        raise ValueError(f"w must have shape (M, K), but has shape {w.shape}")
    M, K = w.shape
    shape = x.shape
    if not shape or shape[-1] != K:
        raise ValueError(
            f"x must have shape (..., {K}) to fit w {w.shape}, but has shape {shape}"
        )
    if not 0 < math.prod(shape) * M <= _FEW:
        _judge_count("x", shape, "w", M, K)
    operands = {"x": x, "w": w}
    if bias is not None:
        _judge_bias(bias, (*shape[:-1], M))
        operands["bias"] = bias
    if mx.result_type(*operands.values()) not in _FLOATING:
        _refuse_dtypes(operands)
    return _project(x, w, bias, stream)


def plan(
    x: mx.array,
    Wxh: mx.array,
    Whh: mx.array,
    bias: mx.array | None = None,
    hidden: mx.array | None = None,
    *,
    nonlinearity: Nonlinearity | None = None,
    leak: float | mx.array | None = None,
    zoneout: float = ZERO,
    input_dropout: float = ZERO,
    recurrent_dropout: float = ZERO,
    hidden0: mx.array | None = None,
    training: bool = True,
    lengths: Values | None = None,
    reset: Values | None = None,
    reverse: bool = False,
    return_state: ReturnState = False,
    checkpoint_every: int | None = None,
    truncate_every: int | None = None,
    stream: StreamOrDevice = None,
) -> Plan:
    """Return what :func:`rnn` would run for the same arguments, and why.

    The arguments and what they raise are those of :func:`rnn`. Nothing is computed but
    what a nonlinearity that is read for the first time gives for some numbers.
    """
    call = judge(
        "x",
        x,
        Wxh,
        Whh,
        bias,
        hidden,
        nonlinearity,
        return_state,
        stream,
        _asked(
            leak,
            zoneout,
            input_dropout,
            recurrent_dropout,
            hidden0,
            training,
            lengths,
            reset,
            reverse,
            checkpoint_every,
            truncate_every,
        ),
    )
    choice = call.choice
    if choice.readable:
        key = _native.random_key()
        choice, _, _ = _read(call, stream)
        if _native.random_key() is not key:
            # What the nonlinearity drew, the call draws again. A key that is traced
            # cannot be put back.
            with suppress(ValueError):
                high, low = map(int, values_of(key))
                mx.random.seed(high << 32 | low)
    if choice.activation is None:
        return Plan(choice.path, choice.reason)
    lead, L, D = (x if hidden is None else hidden).shape, *x.shape[-2:]
    N = math.prod(lead[: -2 if hidden is None else -1])
    parts = _native.partition(N, L, D, Whh.shape[0], call.dtype)
    return Plan(
        choice.path, choice.reason, parts["isa"], parts["threads"], parts["split"]
    )


def set_num_threads(n: int) -> None:
    """Set how many threads the kernels may use.

    Args:
        n (int): At least 1; at most 256 are used. At first it is the number of cores
            this process may use.

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


def judge_nonlinearity(nonlinearity: Any) -> None:
    """Raise a ``ValueError``, in MLX's words, for what cannot be called."""
    if not callable(nonlinearity):
        try:
            value = f"{nonlinearity}"
        except Exception:  # an integer of very many digits, or the user's own
            value = shown(nonlinearity)
        raise ValueError(f"Nonlinearity must be callable. Current value: {value}.")


def judge_size(name: str, value: Any, least: int) -> None:
    """Raise for a size of a layer that is no integer, or out of range."""
    try:
        size = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} must be an integer, but is {type_name(value)}"
        ) from None
    if not least <= size < 2**31:
        raise ValueError(
            f"{name} must be from {least} to 2**31 - 1, but is {shown(size)}"
        )


def _judge_count(
    name: str, shape: tuple[int, ...], weight: str, M: int, K: int
) -> None:
    """Raise where x, the weight ``(M, K)`` or the result cannot be numbered."""
    rows = math.prod(shape[:-1])
    if max(rows, M) * max(shape[-1], M, K) > _MOST_ELEMENTS:
        raise ValueError(
            f"{name}, {weight} and the result must each have at most 2**48 elements, "
            f"but {name} has shape {shape} and {weight} {(M, K)}"
        )
    if rows > _MOST_ROWS and math.prod(shape[:-2]) > _MOST_ROWS:
        raise ValueError(
            f"{name} must have at most 2**32 rows before its last two axes, but has "
            f"shape {shape}"
        )


class Call(NamedTuple):
    """A call of :func:`rnn` or :func:`scan`, judged; the dtype is that of the state."""

    choice: Choice
    dtype: mx.Dtype
    x: mx.array
    Wxh: mx.array | None
    Whh: mx.array
    bias: mx.array | None
    hidden: mx.array | None
    terms: Terms | None


def judge(
    name: str,
    x: mx.array,
    Wxh: mx.array | None,
    Whh: mx.array,
    bias: mx.array | None,
    hidden: mx.array | None,
    nonlinearity: Nonlinearity | None,
    return_state: ReturnState,
    stream: StreamOrDevice,
    asked: Asked | None,
) -> Call:
    """Judge the arguments of :func:`rnn`, or of :func:`scan` without ``Wxh``.

    ``name`` is that of ``x``; ``asked`` is ``None`` for a call without options.
    """
    if stream is not None:
        _judge_stream(stream)
    if nonlinearity is not None:
        judge_nonlinearity(nonlinearity)
    if return_state is not False and return_state is not True:
        _judge_return_state(return_state)
    choice = dispatch.choose(nonlinearity, stream)

    judge_array(name, x)
    judge_array("Whh", Whh)
    operands = [Whh, x]
    shape = x.shape
    if name == "z":  # projected already
        if len(shape) < 2:
            raise ValueError(f"z must have shape (..., L, H), but has shape {shape}")
        H = shape[-1]
    else:
        judge_array("Wxh", Wxh)
        assert Wxh is not None  # for the type checker: it is an array
        operands.append(Wxh)
        if Wxh.ndim != 2:
            raise ValueError(f"Wxh must have shape (H, D), but has shape {Wxh.shape}")
        H, D = Wxh.shape
        if len(shape) < 2 or shape[-1] != D:
            raise ValueError(
                f"x must have shape (..., L, {D}) to fit Wxh {Wxh.shape}, but has "
                f"shape {shape}"
            )
        if bias is not None:
            judge_array("bias", bias)
            operands.append(bias)
            _judge_bias(bias, (*shape[:-1], H))
    if Whh.shape != (H, H):
        choice = _judge_uneven(choice, Whh, shape[-2], H, hidden)
    if not 0 < math.prod(shape) * H * H <= _FEW:
        _judge_count(name, shape, "Whh", *Whh.shape)
    if hidden is not None:
        judge_array("hidden", hidden)
        operands.insert(0, hidden)
        step = (*shape[:-2], H)
        if hidden.shape != step or choice.activation is None:
            _judge_hidden(name, hidden, Whh, step)
            rows = (*hidden.shape[:-1], *shape[-2:])
            _judge_count(f"{name} broadcast to hidden", rows, "Whh", *Whh.shape)

    own: dict[str, mx.array] = {}
    if asked is not None:
        own = _judge_own(H, asked, hidden is None or asked.reset is not None)
        operands += own.values()
        if hidden is None and asked.hidden0 is not None:
            hidden = _repeated(asked.hidden0, x, stream)

    dtype = mx.result_type(*operands)
    if x.dtype != dtype or dtype not in _FLOATING:
        dtype = _judge_dtypes(dtype, name, x, Wxh, Whh, bias, hidden, own)

    terms: Terms | None = None
    if asked is not None:
        lead = shape[:-2] if hidden is None else hidden.shape[:-1]
        terms = _settle(asked, name, lead, shape[-2], H, dtype, stream)
        if (terms is not None or own) and Whh.shape != (H, H):
            raise ValueError(
                f"Whh must have shape (H, H) = ({H}, {H}) where an option is given, "
                f"but has shape {Whh.shape}"
            )
    if terms is not None and bias is not None and bias.shape != Whh.shape[:1]:
        choice = choice.composed(
            f"a bias {bias.shape} that is not ({H},) stands beside optional terms"
        )
    return Call(choice, dtype, x, Wxh, Whh, bias, hidden, terms)


def _asked(
    leak: float | mx.array | None,
    zoneout: float,
    input_dropout: float,
    recurrent_dropout: float,
    hidden0: mx.array | None,
    training: bool,
    lengths: Values | None,
    reset: Values | None,
    reverse: bool,
    checkpoint_every: int | None,
    truncate_every: int | None,
) -> Asked | None:
    """Return the options that were given, or ``None`` for a call without."""
    if training is not True and training is not False:
        training = judge_flag("training", training)
    if (
        lengths is None
        and reset is None
        and leak is None
        and hidden0 is None
        and truncate_every is None
        and checkpoint_every is None
        and reverse is False
        and zoneout is ZERO
        and recurrent_dropout is ZERO
        and input_dropout is ZERO
    ):
        return None
    return Asked(
        leak,
        zoneout,
        input_dropout,
        recurrent_dropout,
        hidden0,
        training,
        lengths,
        reset,
        reverse,
        checkpoint_every,
        truncate_every,
    )


def _settle(
    asked: Asked,
    name: str,
    lead: tuple[int, ...],
    L: int,
    H: int,
    dtype: mx.Dtype,
    stream: StreamOrDevice,
) -> Terms | None:
    """Return the terms that the options ask for, or ``None`` for none."""
    training = asked.training
    zoneout = judge_probability("zoneout", asked.zoneout)
    recurrent = judge_probability("recurrent_dropout", asked.recurrent_dropout)
    at_input = judge_probability("input_dropout", asked.input_dropout)
    lengths, reset, hidden0 = asked.lengths, asked.reset, asked.hidden0
    new = settle_leak(asked.leak, 0.0 if training else zoneout, dtype, stream)
    if isinstance(new, float):
        new = mx.full((H,), new, dtype, stream=stream)
    terms = Terms(
        None if lengths is None else judge_lengths(lengths, name, lead, L),
        None if reset is None else judge_reset(reset, name, lead, (L,)),
        judge_flag("reverse", asked.reverse),
        None if reset is None or hidden0 is None else _cast(hidden0, dtype, stream),
        new,
        zoneout if training else 0.0,
        recurrent if training else 0.0,
        at_input if training else 0.0,
        None,
        judge_every("checkpoint_every", asked.checkpoint_every),
        judge_every("truncate_every", asked.truncate_every),
    )
    chosen = any(isinstance(term, mx.array) or term for term in terms)
    return terms if chosen else None


def _judge_own(H: int, asked: Asked, uses_hidden0: bool) -> dict[str, mx.array]:
    """Return the arrays of the optional terms that have a say in the dtype."""
    own: dict[str, mx.array] = {}
    if asked.leak is not None:
        leak = judge_leak(asked.leak, H)
        if isinstance(leak, mx.array):
            own["leak"] = leak
    if asked.hidden0 is not None:
        judge_hidden0(asked.hidden0, H)
        if uses_hidden0:
            own["hidden0"] = asked.hidden0
    return own


def _repeated(hidden0: mx.array, x: mx.array, stream: StreamOrDevice) -> mx.array:
    """Return a state for each row of x, ``(..., H)``."""
    if dispatch.has_kernels(stream):  # for any number of rows in a shapeless function
        return _native.widen(hidden0, 1, x, 2, stream)
    return mx.broadcast_to(hidden0, (*x.shape[:-2], *hidden0.shape), stream=stream)


def settle_leak(
    leak: float | mx.array | None,
    zoneout: float,
    dtype: mx.Dtype,
    stream: StreamOrDevice,
) -> float | mx.array | None:
    """Return what is new in a state, of each unit, where zoneout is an expectation.

    Args:
        leak (float or array, optional): The leak, an array ``(H,)``. ``None`` is one.
        zoneout (float): How probably a unit keeps its state.
        dtype (Dtype): Of the result.
        stream (Stream or Device, optional): The stream. ``None`` is the default one.

    Returns:
        float or array: ``(H,)``, a number for all units, or ``None`` where all is new.
    """
    if isinstance(leak, mx.array):
        leak = _cast(leak, dtype, stream)
        return mx.multiply(leak, 1 - zoneout, stream=stream) if zoneout else leak
    new = (1.0 if leak is None else float(leak)) * (1 - zoneout)
    return None if new == 1 else new


def _cast(a: mx.array, dtype: mx.Dtype, stream: StreamOrDevice) -> mx.array:
    return a if a.dtype == dtype else a.astype(dtype, stream=stream)


def _judge_stream(stream: Any) -> None:
    if not isinstance(
        stream, (mx.Stream, mx.Device, mx.DeviceType, mx.ThreadLocalStream)
    ):
        raise TypeError(
            f"stream must be an MLX stream or device, but is {type_name(stream)}"
        )


def _judge_return_state(return_state: Any) -> None:
    if not (isinstance(return_state, str) and return_state == "only"):
        raise ValueError(
            f'return_state must be False, True or "only", but is {shown(return_state)}'
        )


def _judge_bias(bias: mx.array, shape: tuple[int, ...]) -> None:
    if bias.shape != shape[-1:] and not composed.broadcasts(bias.shape, shape):
        raise ValueError(
            f"bias must have shape {shape[-1:]}, or broadcast to {shape}, but has "
            f"shape {bias.shape}"
        )


def _judge_uneven(
    choice: Choice, Whh: mx.array, L: int, H: int, hidden: mx.array | None
) -> Choice:
    # A nonlinearity may change the number of features, as nn.glu does; Whh is then not
    # square. One that does not can use such a Whh for a single step, or where a single
    # projected feature drives all units.
    even = choice.activation is not None and L != 1 and (H != 1 or hidden is None)
    if Whh.ndim != 2 or even:
        raise ValueError(
            f"Whh must have shape (H, H) = ({H}, {H}), but has shape {Whh.shape}"
        )
    return choice.composed(f"Whh {Whh.shape} is not ({H}, {H})")


def _judge_hidden(
    name: str, hidden: mx.array, Whh: mx.array, step: tuple[int, ...]
) -> None:
    M, K = Whh.shape
    shape = hidden.shape
    if not shape or shape[-1] != K:
        raise ValueError(
            f"hidden must have shape (..., {K}) to fit Whh {Whh.shape}, but has shape "
            f"{shape}"
        )
    if not composed.broadcasts(step, (*shape[:-1], M)):
        raise ValueError(
            f"hidden must have leading axes that those of {name}, {step[:-1]}, "
            f"broadcast to, but has shape {shape}"
        )


def _judge_dtypes(
    dtype: mx.Dtype,
    name: str,
    x: mx.array,
    Wxh: mx.array | None,
    Whh: mx.array,
    bias: mx.array | None,
    hidden: mx.array | None,
    own: dict[str, mx.array],
) -> mx.Dtype:
    projection = {name: x}
    if Wxh is not None:
        projection["Wxh"] = Wxh
    if bias is not None:
        projection["bias"] = bias
    recurrence = {"Whh": Whh} if hidden is None else {"hidden": hidden, "Whh": Whh}
    if dtype not in _FLOATING:
        _refuse_dtypes(projection | recurrence | own)
    projected = mx.result_type(*projection.values())
    if projected not in _FLOATING:
        if Wxh is None:
            return dtype
        _refuse_dtypes(projection)
    # Without a previous state the first step makes no product with Whh.
    if hidden is None and x.shape[-2] == 1:
        return mx.result_type(projected, *own.values())
    return mx.result_type(*recurrence.values(), projected, *own.values())


def _refuse_dtypes(operands: dict[str, mx.array]) -> NoReturn:
    listed = ", ".join(f"{name} {dtype_name(a.dtype)}" for name, a in operands.items())
    raise ValueError(
        f"the operands must promote to a real floating dtype, but are: {listed}"
    )


# What the kernels take, all of one dtype: x, Wxh, bias, Whh and hidden.
Operands: TypeAlias = tuple[
    mx.array, mx.array | None, mx.array | None, mx.array, mx.array | None
]


def _run(
    call: Call, return_state: ReturnState, stream: StreamOrDevice
) -> mx.array | tuple[mx.array, mx.array]:
    if call.terms is not None and call.terms.is_random:
        call = call._replace(terms=call.terms._replace(key=draw_key()))
    activation = call.choice.activation
    operands: Operands | None
    begun: list[mx.array] = []
    if activation is not None:
        operands = operands_of(call, stream)
    elif call.choice.readable:
        choice, operands, begun = _read(call, stream)
        activation = choice.activation
    terms = call.terms
    if activation is None:
        # With optional terms the first steps are others than those that were read.
        begun = begun if terms is None else []
        return _run_composed(call, begun, return_state, stream)
    assert operands is not None  # for the type checker: there is an activation
    result: mx.array | tuple[mx.array, mx.array] = _native.recurrence(
        *operands, activation, return_state, stream, *(terms or ())
    )
    return result


def operands_of(call: Call, stream: StreamOrDevice) -> Operands:
    """Return what the kernels take, all of one dtype."""
    _, dtype, x, Wxh, Whh, bias, hidden, _ = call
    if Wxh is not None and bias is not None and bias.shape != Whh.shape[:1]:
        x, Wxh, bias = _project(x, Wxh, bias, stream), None, None
    if x.dtype != dtype:
        x = x.astype(dtype, stream=stream)
    if Wxh is not None and Wxh.dtype != dtype:
        Wxh = Wxh.astype(dtype, stream=stream)
    if bias is not None and bias.dtype != dtype:
        bias = bias.astype(dtype, stream=stream)
    if Whh.dtype != dtype:
        Whh = Whh.astype(dtype, stream=stream)
    if hidden is not None:
        if hidden.dtype != dtype:
            hidden = hidden.astype(dtype, stream=stream)
        if hidden.shape[:-1] != x.shape[:-2]:
            x = _native.widen(x, 2, hidden, 1, stream)
    return x, Wxh, bias, Whh, hidden


def _read(
    call: Call, stream: StreamOrDevice
) -> tuple[Choice, Operands | None, list[mx.array]]:
    """Read the nonlinearity; return the path, and its calls for the first steps."""
    choice, dtype, x, Wxh, _, bias, _, _ = call
    if x.shape[-2] == 0:
        return choice.after_reading(None, "is not called for no steps"), None, []
    projection = [a for a in (x, Wxh, bias) if a is not None]
    if mx.result_type(*projection) != dtype:
        return choice.after_reading(None, "is called with several dtypes"), None, []
    operands = operands_of(call, stream)
    function, obstacle, begun = trace(choice.nonlinearity, *operands, stream)
    return choice.after_reading(function, obstacle), operands, begun


def _run_composed(
    call: Call,
    begun: list[mx.array],
    return_state: ReturnState,
    stream: StreamOrDevice,
) -> mx.array | tuple[mx.array, mx.array]:
    choice, dtype, x, Wxh, Whh, bias, hidden, terms = call
    if terms is not None:
        lead = x.shape[:-2] if hidden is None else hidden.shape[:-1]
        projected = mx.result_type(*(a for a in (x, Wxh, bias) if a is not None))
        with nullcontext() if stream is None else mx.stream(stream):
            x = inputs(x, terms, lead, projected)
    # As in MLX's layer, each step has the dtype that its own operands promote to.
    if Wxh is not None:
        z = _project(x, Wxh, bias, stream)
    else:
        z = x if x.dtype in _FLOATING else x.astype(dtype, stream=stream)
    if z.shape[-2] > 0:
        last_only = return_state == "only"
        steps, state = composed.recurrence(
            z, Whh, hidden, choice.nonlinearity, begun, last_only, terms, stream
        )
        if last_only:
            return state
        outputs = composed.stack(steps, stream)
    else:
        # In a shapeless function that is called with steps later NaN shows that the
        # nonlinearity was never seen.
        outputs = mx.multiply(z.astype(dtype, stream=stream), mx.nan, stream=stream)
        if hidden is not None:
            hidden = hidden.astype(dtype, stream=stream)
        if dispatch.has_kernels(stream):
            if hidden is not None:
                outputs = _native.widen(outputs, 2, hidden, 1, stream)
            state = _native.last_step(outputs, hidden, stream)
        else:
            # The sum over no steps is zero, of the right shape.
            state = mx.sum(outputs, axis=-2, stream=stream)
            if hidden is not None:
                state = mx.add(hidden, state, stream=stream)
                shape = (*state.shape[:-1], *outputs.shape[-2:])
                outputs = mx.broadcast_to(outputs, shape, stream=stream)
    if return_state is False:
        return outputs
    return (outputs, state) if return_state is True else state


def _project(
    x: mx.array, w: mx.array, bias: mx.array | None, stream: StreamOrDevice
) -> mx.array:
    dtype = mx.result_type(x, w) if bias is None else mx.result_type(x, w, bias)
    if x.dtype != dtype:
        x = x.astype(dtype, stream=stream)
    if w.dtype != dtype:
        w = w.astype(dtype, stream=stream)
    if bias is not None and bias.dtype != dtype:
        bias = bias.astype(dtype, stream=stream)
    return dispatch.product(x, w, bias, stream)
