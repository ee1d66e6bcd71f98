"""Reads a callable at a call of the layer: whether the kernels can run it."""

from contextlib import nullcontext
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_recurrent import _native
from mlx_recurrent.dispatch import Nonlinearity, StreamOrDevice

# A new function is compared with the callable at these values and their negatives: as
# far as functions of the dtype stay finite in MLX, whose float64 has some with the
# range and the precision of float32, and in float32 beyond.
_SAMPLE = (0.0, 1e-3, 0.01, 0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 2.7, 3.0, 4.0, 5.0, 6.0)
_BEYOND = {
    mx.float32: (9.0, 20.0, 50.0, 120.0),
    mx.float64: (9.0, 20.0),
    mx.float16: (),
    mx.bfloat16: (),
}
# How far they may differ, absolutely and relatively: some units in the last place of
# one. Both round some operations, MLX half types after each.
_ALLOWED = {
    mx.float32: 64 * mx.finfo(mx.float32).eps,
    mx.float64: 64 * mx.finfo(mx.float32).eps,
    mx.float16: 16 * mx.finfo(mx.float16).eps,
    mx.bfloat16: 16 * mx.finfo(mx.bfloat16).eps,
}
_CAPTURES = "may use an array that was there before the call"


class Trace(NamedTuple):
    """What reading a callable gave.

    Args:
        function (Traced, optional): What the kernels run. ``None`` where they cannot.
        obstacle (str): Why they cannot.
        begun (list(array)): What the callable returned for the first steps. On the
            composed path those are its calls for them.
    """

    function: _native.Traced | None
    obstacle: str
    begun: list[mx.array]


def trace(
    nonlinearity: Nonlinearity,
    x: mx.array,
    Wxh: mx.array | None,
    bias: mx.array | None,
    Whh: mx.array,
    hidden: mx.array | None,
    stream: StreamOrDevice,
) -> Trace:
    """Call a callable for the first step of a sequence, and read what it did.

    Where that graph was not seen before, or may hold what was there before the call, it
    is called for the second step too. A sequence of one step has none: its graph is one
    that the kernels run when it is seen again.

    Args:
        nonlinearity (callable): The callable.
        x (array): The sequence, ``(..., L, D)``, or ``(..., L, H)`` where ``Wxh`` is
            ``None``, with L of at least 1. All operands are of one dtype.
        Wxh (array, optional): The input weight, ``(H, D)``.
        bias (array, optional): The bias, ``(H,)``.
        Whh (array): The recurrent weight, ``(H, H)``.
        hidden (array, optional): The initial state, ``(..., H)``.
        stream (Stream or Device, optional): The stream. ``None`` is the default one.
    """
    begun: list[mx.array] = []

    def call(previous: mx.array | None) -> "_native.Reading | None":
        t = len(begun)
        a = _native.pre_activation(x, Wxh, bias, Whh, previous, t, stream)
        begun.append(nonlinearity(a))
        # What is no array is refused on the composed path, in its words.
        return _native.read(begun[t], a) if isinstance(begun[t], mx.array) else None

    # The callable's own operations belong on the stream too.
    with nullcontext() if stream is None else mx.stream(stream):
        first = call(hidden)
        if first is None:
            return Trace(None, "", begun)
        if first.obstacle:
            return Trace(None, first.obstacle, begun)
        function = first.known(x.dtype)
        if function is None or not first.own:
            if x.shape[-2] > 1:
                second = call(begun[0])
                obstacle = "" if second is None else first.difference(second)
                if second is None or obstacle:
                    return Trace(None, obstacle, begun)
            try:
                function = first.trace(x.dtype)
            except ValueError as error:
                return Trace(None, str(error), begun)
            if x.shape[-2] == 1:
                # Known to the next call, which reads it for the second time.
                seen = "is seen in one step for the first time"
                return Trace(None, seen if first.own else _CAPTURES, begun)
        if function.verdict is None:
            function.verdict = _agrees(nonlinearity, function, x.dtype, Whh.shape[0])
    if not function.verdict:
        return Trace(None, "gives other values in the kernel than when called", begun)
    return Trace(function, "", begun)


def _agrees(
    nonlinearity: Nonlinearity, function: "_native.Traced", dtype: mx.Dtype, H: int
) -> bool:
    half = mx.finfo(dtype).bits == 16
    values = np.array(_SAMPLE + _BEYOND[dtype])
    values = np.concatenate([values, -values])
    # Each value in each place: one row after another begins with the next.
    places = np.arange(values.size)[:, None] + np.arange(H)
    sample = mx.array(values[places % values.size], dtype)
    ones = mx.ones_like(sample)

    def numbers(f: Nonlinearity) -> list[np.ndarray]:
        results = mx.vjp(lambda a: [f(a)], [sample], [ones])
        wide = mx.float32 if half else dtype
        arrays = [a.astype(wide) for (a,) in results]
        mx.eval(arrays)
        return [np.array(a) for a in arrays]

    try:
        expected = numbers(nonlinearity)
    except Exception:
        # It does not take every array of its kind.
        return False
    found = numbers(lambda a: _native.pointwise(a, function, None))
    allowed = _ALLOWED[dtype]
    return all(
        np.allclose(a, b, rtol=allowed, atol=allowed, equal_nan=True)
        for a, b in zip(found, expected, strict=True)
    )
