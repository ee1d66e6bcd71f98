"""The recurrence for any callable: a matrix product and a call of it at each step."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import NoReturn

import mlx.core as mx

from mlx_recurrent.dispatch import Nonlinearity, StreamOrDevice, product

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
    stream: StreamOrDevice,
) -> list[mx.array]:
    r"""Run :math:`h_t = f(z_t + W_{hh} h_{t-1})` over at least one step.

    Without ``hidden`` the first step is :math:`f(z_0)`. The nonlinearity is called once
    a step, in order.

    Args:
        z (array): The projected inputs, ``(..., L, H)``.
        Whh (array): The recurrent weight, ``(H, H)``.
        hidden (array, optional): The initial state, ``(..., H)``, with leading axes
            that those of ``z`` broadcast to.
        nonlinearity (callable): Any function of an array ``(..., H)``.
        begun (list(array)): What it has returned for the first steps already.
        last_only (bool): Whether the state after the last step is all that is wanted.
        stream (Stream or Device, optional): The stream. ``None`` is the default one.

    Returns:
        list(array): The state after each step, or after the last alone, ``(..., H)``
        and all of one dtype.

    Raises:
        TypeError: If the nonlinearity returns something other than an array.
        ValueError: If what it returns is complex, does not fit the next step or
            changes its shape from one step to the next.
    """
    states: list[mx.array] = []
    weight = Whh
    dtype = z.dtype
    shape: tuple[int, ...] | None = None
    # The nonlinearity's own operations belong on the stream too.
    with nullcontext() if stream is None else mx.stream(stream):
        for t, z_t in enumerate(_steps(z, stream)):
            if t >= len(begun) and hidden is not None:
                if weight.dtype != hidden.dtype or weight.dtype != z_t.dtype:
                    step = mx.result_type(hidden, Whh, z_t)
                    if weight.dtype != step:
                        weight = Whh.astype(step, stream=stream)
                    hidden = hidden.astype(step, stream=stream)
                    z_t = z_t.astype(step, stream=stream)
                z_t = product(hidden, weight, z_t, stream)
            hidden = begun[t] if t < len(begun) else nonlinearity(z_t)
            if not isinstance(hidden, mx.array):
                _refuse(f"{type(hidden).__name__}", "an mx.array", TypeError)
            if shape is None:
                dtype, shape = hidden.dtype, hidden.shape
                _check_result(shape, z, Whh)
            elif hidden.shape != shape:
                _refuse(
                    f"shape {hidden.shape}",
                    f"the same shape at every step; the first was {shape}",
                )
            if hidden.dtype != dtype:
                dtype = mx.result_type(dtype, hidden.dtype)
            if dtype == mx.complex64:
                _refuse("a complex array", "a real one")
            if last_only:
                states.clear()
            states.append(hidden)
    return [h if h.dtype == dtype else h.astype(dtype, stream=stream) for h in states]


def stack(states: list[mx.array], stream: StreamOrDevice) -> mx.array:
    """Stack the states, ``(..., H)``, of one or more steps to ``(..., L, H)``."""
    pieces = [mx.expand_dims(h, -2, stream=stream) for h in states]
    while len(pieces) > 1:
        pieces = [
            mx.concatenate(pieces[i : i + _BRANCHES], axis=-2, stream=stream)
            for i in range(0, len(pieces), _BRANCHES)
        ]
    return pieces[0]


def broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Return whether an array of one shape broadcasts to exactly another shape."""
    return len(shape) <= len(to) and all(
        a == b or a == 1 for a, b in zip(reversed(shape), reversed(to), strict=False)
    )


def _steps(z: mx.array, stream: StreamOrDevice) -> Iterator[mx.array]:
    length = z.shape[-2]
    if length == 1:
        yield mx.squeeze(z, -2, stream=stream)
        return
    size = 1
    while size * _BRANCHES < length:
        size *= _BRANCHES
    for piece in mx.split(z, range(size, length, size), axis=-2, stream=stream):
        yield from _steps(piece, stream)


def _check_result(shape: tuple[int, ...], z: mx.array, Whh: mx.array) -> None:
    if len(shape) == 0:
        _refuse("shape ()", "at least one axis")
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
