"""The recurrence for any callable: a matrix product and a call of it at each step."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import NoReturn

import mlx.core as mx

from mlx_recurrent.functional.dispatch import Nonlinearity, StreamOrDevice
from mlx_recurrent.functional.judging import broadcasts
from mlx_recurrent.functional.options import BoundOptions
from mlx_recurrent.functional.transition import OptionsTransition, Transition

# MLX's gradient of a slice is as long as what was sliced (and a split is slices): L
# slices of one array would cost L^2. So time is taken apart, and put together, by trees
# with this many branches: few, because each level costs that many times its part.
_BRANCHES = 8


def recurrence(
    z: mx.array,
    Whh: mx.array,
    hidden: mx.array | None,
    nonlinearity: Nonlinearity,
    begun: list[mx.array],
    last_only: bool,
    options: BoundOptions | None,
    stream: StreamOrDevice,
) -> tuple[list[mx.array], mx.array]:
    r"""Run :math:`h_t = f(z_t + W_{hh} h_{t-1})` over at least one step.

    Without ``hidden`` the first step is :math:`f(z_0)`. The nonlinearity is called once
    a step, in order, for all rows.

    Args:
        z (array): The projected inputs, ``(..., L, H)``.
        Whh (array): The recurrent weight, ``(H, H)``.
        hidden (array, optional): The initial state, ``(..., H)``, with leading axes
            that those of ``z`` broadcast to.
        nonlinearity (callable): Any function of an array ``(..., H)``.
        begun (list(array)): What it has returned for the first steps already.
        last_only (bool): Whether the state after the last step is all that is wanted.
        options (BoundOptions, optional): The options. Those of the inputs are in ``z``.
        stream (Stream or Device, optional): The stream. ``None`` is the default one.

    Returns:
        tuple(list(array), array): The output of each step in the order of time, or an
        empty list where it is not wanted, and the state after the last step. All are
        ``(..., H)`` and of one dtype.

    Raises:
        TypeError: If the nonlinearity returns something other than an array.
        ValueError: If what it returns is complex, does not fit the next step or
            changes its shape from one step to the next.
    """
    outputs: list[mx.array] = []
    weight = Whh
    state = hidden
    dtype = z.dtype
    shape: tuple[int, ...] | None = None
    # The nonlinearity's own operations belong on the stream too.
    with nullcontext() if stream is None else mx.stream(stream):
        transition = _transition(z, hidden, options)
        for i, a in enumerate(_steps(z, transition.reverse, stream)):
            start = transition.enter(state)
            if i >= len(begun) and start is not None:
                previous = start
                if weight.dtype != start.dtype or weight.dtype != a.dtype:
                    step = mx.result_type(start, Whh, a)
                    if weight.dtype != step:
                        weight = Whh.astype(step, stream=stream)
                    previous = start.astype(step, stream=stream)
                    a = a.astype(step, stream=stream)
                a = transition.pre_activation(previous, weight, a, stream)
            result = begun[i] if i < len(begun) else nonlinearity(transition.given(a))
            if not isinstance(result, mx.array):
                _refuse(f"{type(result).__name__}", "an mx.array", TypeError)
            if shape is None:
                shape = result.shape
                _check_result(shape, z, Whh, transition)
            elif result.shape != shape:
                _refuse(
                    f"shape {result.shape}",
                    f"the same shape at every step; the first was {shape}",
                )
            state, output = transition.leave(state, start, result)
            dtype = state.dtype if i == 0 else mx.result_type(dtype, state.dtype)
            if dtype == mx.complex64:
                _refuse("a complex array", "a real one")
            if not last_only:
                outputs.append(output)
    if transition.reverse:
        outputs.reverse()
    assert state is not None
    *outputs, state = (
        h if h.dtype == dtype else h.astype(dtype, stream=stream)
        for h in (*outputs, state)
    )
    return outputs, state


def stack(states: list[mx.array], stream: StreamOrDevice) -> mx.array:
    """Stack the states, ``(..., H)``, of one or more steps to ``(..., L, H)``."""
    pieces = [mx.expand_dims(h, -2, stream=stream) for h in states]
    while len(pieces) > 1:
        pieces = [
            mx.concatenate(pieces[i : i + _BRANCHES], axis=-2, stream=stream)
            for i in range(0, len(pieces), _BRANCHES)
        ]
    return pieces[0]


def _transition(
    z: mx.array, hidden: mx.array | None, options: BoundOptions | None
) -> Transition:
    if options is None:
        return Transition()
    lead = z.shape[:-2] if hidden is None else hidden.shape[:-1]
    L, H = z.shape[-2:]
    return OptionsTransition(options, lead, L, H, begins_empty=hidden is None)


def _steps(z: mx.array, reverse: bool, stream: StreamOrDevice) -> Iterator[mx.array]:
    length = z.shape[-2]
    if length == 1:
        yield mx.squeeze(z, -2, stream=stream)
        return
    size = 1
    while size * _BRANCHES < length:
        size *= _BRANCHES
    pieces = mx.split(z, range(size, length, size), axis=-2, stream=stream)
    for piece in reversed(pieces) if reverse else pieces:
        yield from _steps(piece, reverse, stream)


def _check_result(
    shape: tuple[int, ...], z: mx.array, Whh: mx.array, transition: Transition
) -> None:
    if len(shape) == 0:
        _refuse("shape ()", "at least one axis")
    if transition.shape is not None and shape != transition.shape:
        _refuse(f"shape {shape}", f"shape {transition.shape}, as it was given")
    if z.shape[-2] == 1:
        return
    M, K = Whh.shape
    if shape[-1] != K:
        _refuse(f"shape {shape}", f"shape (..., {K}) to fit Whh {Whh.shape}")
    step = (*z.shape[:-2], z.shape[-1])
    if not broadcasts(step, (*shape[:-1], M)):
        _refuse(f"shape {shape}", f"leading axes that a step's, {step}, broadcast to")


def _refuse(returned: str, rule: str, error: type[Exception] = ValueError) -> NoReturn:
    raise error(f"nonlinearity returned {returned}, but must return {rule}")
