"""Reads a callable at a call of the layer: whether the kernels can run it."""

import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_recurrent import _native
from mlx_recurrent.functional.devices import StreamOrDevice
from mlx_recurrent.functional.dispatch import Nonlinearity

if TYPE_CHECKING:
    from mlx_recurrent.functional.operands import Operands

# A new function is compared at these values and their negatives: as far as functions of
# the dtype stay finite in MLX, whose float64 has some with the range and the precision
# of float32, and in float32 beyond.
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
    operands: "Operands",
    stream: StreamOrDevice,
    own: StreamOrDevice,
) -> Trace:
    """Call a callable for the first step of a sequence, and read what it did.

    Where that graph was not seen of it before, or may hold what was there before the
    call, it is called for the second step too, if there is one.

    Args:
        nonlinearity (callable): The callable.
        operands (Operands): What the recurrence has, with at least one step.
        stream (Stream or Device, optional): The stream. ``None`` is the default one.
        own (Stream or Device, optional): That of the callable's own operations.
    """
    begun: list[mx.array] = []
    dtype = operands.x.dtype

    def call(previous: mx.array | None) -> "tuple[_native.Reading | None, str]":
        t = len(begun)
        # The callable may write into the array that it is given.
        given, a = _native.pre_activation(operands, previous, t, stream)
        key = _native.random_key()
        result = nonlinearity(given)
        # This name refers to it, and the question itself.
        kept = result is not given and sys.getrefcount(result) > 2
        begun.append(result)
        if not isinstance(result, mx.array):
            return None, ""  # refused on the composed path, in its words
        if _native.random_key() is not key:
            return None, "draws random numbers"
        if kept:
            return None, "keeps its results"
        del given  # by now perhaps something that was made of it
        reading = _native.read(result, a)
        return reading, reading.obstacle

    def stop(obstacle: str) -> Trace:
        return Trace(None, obstacle, begun)

    with nullcontext() if own is None else mx.stream(own):
        first, obstacle = call(operands.states[0])
        if first is None or obstacle:
            return stop(obstacle)
        known = _sightings.of(nonlinearity)
        function = first.known(dtype) if first.own else None
        if function is not None and function in known:
            obstacle = known[function]
            return stop(obstacle) if obstacle else Trace(function, "", begun)
        several = operands.x.shape[-2] > 1
        if several:
            second, obstacle = call(begun[0])
            if second is None or obstacle:
                return stop(obstacle)
            obstacle = first.difference(second)
        elif not first.own:
            obstacle = "may use an array that was there before the call"
        if obstacle:
            return stop(obstacle)
        try:
            function = first.trace(dtype)
        except ValueError as error:
            return stop(str(error))
        if function.verdict is None:
            function.verdict = _runs_as_mlx(function, dtype, stream)
        if not function.verdict:
            return stop("gives other values in the kernels than in MLX")
        # A single step is what it was read to be. Of several only two were seen.
        if several:
            known[function] = _disagreement(nonlinearity, function, begun[0], stream)
            if known[function]:
                return stop(known[function])
    return Trace(function, "", begun)


class _Sightings:
    """What was found of callables: for each function that they were, an obstacle."""

    _CALLABLES, _FUNCTIONS = 256, 16

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[Hashable, tuple[Any, _Bounded]] = OrderedDict()

    def of(self, nonlinearity: Nonlinearity) -> "_Bounded":
        """Return what was found of a callable so far, to be added to."""
        # A function made anew for each call is the same code; what it captures shows in
        # the graph. Anything else is known by its identity, while it lives.
        code = getattr(nonlinearity, "__code__", None)
        subject = (
            nonlinearity if code is None else getattr(nonlinearity, "__self__", None)
        )
        key = (code, None if subject is None else id(subject))
        with self._lock:
            holder, found = self._found.pop(key, (None, None))
            if found is None or (holder is not None and holder() is not subject):
                holder = None if subject is None else _holder(subject)
                found = _Bounded(self._FUNCTIONS)
            self._found[key] = holder, found
            while len(self._found) > self._CALLABLES:
                self._found.popitem(last=False)
        return found


class _Bounded(OrderedDict["_native.Traced", str]):
    """A dictionary of the latest entries."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, function: "_native.Traced", obstacle: str) -> None:
        super().__setitem__(function, obstacle)
        while len(self) > self._most:
            self.popitem(last=False)


def _holder(subject: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(subject)
    except TypeError:  # of a type that lives as long as its module
        return lambda: subject


_sightings = _Sightings()


def _values(dtype: mx.Dtype) -> np.ndarray:
    values = np.array(_SAMPLE + _BEYOND[dtype])
    return np.concatenate([values, -values])


def _numbers(f: Nonlinearity, sample: mx.array) -> list[np.ndarray]:
    """What a function gives, and its derivative."""
    results = mx.vjp(lambda a: [f(a)], [sample], [mx.ones_like(sample)])
    wide = mx.float64 if sample.dtype == mx.float64 else mx.float32
    arrays = [a.astype(wide) for (a,) in results]
    mx.eval(arrays)
    return [np.array(a) for a in arrays]


def _agree(one: Nonlinearity, other: Nonlinearity, sample: mx.array) -> bool:
    allowed = _ALLOWED[sample.dtype]
    return all(
        np.allclose(a, b, rtol=allowed, atol=allowed, equal_nan=True)
        for a, b in zip(_numbers(one, sample), _numbers(other, sample), strict=True)
    )


def _runs_as_mlx(
    function: "_native.Traced", dtype: mx.Dtype, stream: StreamOrDevice
) -> bool:
    sample = mx.array(_values(dtype), dtype)
    return _agree(
        lambda a: _native.pointwise(a, function, stream),
        lambda a: _native.replay(a, function),
        sample,
    )


def _disagreement(
    nonlinearity: Nonlinearity,
    function: "_native.Traced",
    result: mx.array,
    stream: StreamOrDevice,
) -> str:
    """Why a callable is not what it was read to be; empty where it is."""
    # Each value in each place, in as many axes as the callable is given.
    values = _values(result.dtype)
    rows = np.arange(values.size if result.ndim > 1 else 1)
    places = rows[:, None] + np.arange(result.shape[-1])
    axes = (1,) * (result.ndim - 2)
    shape = (*([rows.size] if result.ndim > 1 else []), *axes, result.shape[-1])
    sample = mx.array(values[places % values.size].reshape(shape), result.dtype)
    try:
        same = _agree(
            lambda a: _native.pointwise(a, function, stream), nonlinearity, sample
        )
    except MemoryError:  # which is no word on the callable
        raise
    except Exception as error:
        return f"raises {type(error).__name__} on other numbers"
    return "" if same else "gives other values than its operations on other numbers"
