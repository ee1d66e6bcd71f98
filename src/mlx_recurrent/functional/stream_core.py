"""What runs a layer in real time: the kernels, or MLX a step at a time."""

from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias, cast

import mlx.core as mx
import numpy as np

from mlx_recurrent import _native
from mlx_recurrent.functional import composed, dispatch
from mlx_recurrent.functional.dispatch import Nonlinearity
from mlx_recurrent.functional.functions import plan
from mlx_recurrent.functional.judging import type_name
from mlx_recurrent.functional.operands import Operands
from mlx_recurrent.functional.options import BoundOptions, judge_hidden0, new_share
from mlx_recurrent.functional.plan import Plan
from mlx_recurrent.functional.tracing import trace
from mlx_recurrent.functional.turns import Turns
from mlx_recurrent.functional.values import as_dtype, evaluate, values_of

# What a layer's dtype is in NumPy, which has no bfloat16.
_NUMPY: dict[mx.Dtype, np.dtype] = {
    mx.float32: np.dtype(np.float32),
    mx.float64: np.dtype(np.float64),
    mx.float16: np.dtype(np.float16),
    mx.bfloat16: np.dtype(np.float32),
}

# New memory of MLX's may keep a forked process waiting for ever: another thread of its
# parent may have been about to take some.
_ZERO = mx.array(0.0)


class Prepared(NamedTuple):
    """A layer that is ready for steps, outside the graph.

    Args:
        core (Stream or ComposedCore): What runs them, and keeps the state.
        plan (Plan): Why that.
        mlx_dtype (Dtype): The layer's dtype.
        dtype (dtype): That of its NumPy arrays.
        D (int): The features of an input.
        H (int): The features of a state.
        hidden0 (array, optional): The state to begin with, ``(H,)``.
    """

    core: "Core"
    plan: Plan
    mlx_dtype: mx.Dtype
    dtype: np.dtype
    D: int
    H: int
    hidden0: np.ndarray | None


def prepare(
    Wxh: mx.array,
    Whh: mx.array,
    bias: mx.array | None,
    nonlinearity: Nonlinearity | None,
    lead: tuple[int, ...],
    *,
    leak: float | mx.array | None,
    zoneout: float,
    hidden0: mx.array | None,
) -> Prepared:
    """Judge a layer's weights, and make what runs its steps.

    Args:
        Wxh (array): The input weight, ``(H, D)``.
        Whh (array): The recurrent weight, ``(H, H)``.
        bias (array, optional): The bias, ``(H,)``.
        nonlinearity (callable, optional): A function of an array ``(..., H)``.
        lead (tuple(int)): The leading axes of the state.
        leak (float or array, optional): In (0, 1], or an array ``(H,)``.
        zoneout (float): The probability that a unit keeps its state.
        hidden0 (array, optional): The state to begin with, ``(H,)``.
    """
    if hidden0 is not None and getattr(Whh, "ndim", 0) == 2:
        judge_hidden0(hidden0, Whh.shape[0])
    learned = (Wxh, Whh, bias, leak, hidden0)
    arrays = [a for a in learned if isinstance(a, mx.array)]
    _native.expect_threads(arrays)
    dtype = mx.result_type(*arrays)
    # Two steps like those that will come. What is found of them judges the weights.
    features = Wxh.shape[-1] if getattr(Wxh, "ndim", 0) else 0
    x = mx.broadcast_to(as_dtype(_ZERO, dtype), (*lead, 2, features))
    found = plan(
        x,
        Wxh,
        Whh,
        bias,
        nonlinearity=nonlinearity,
        leak=leak,
        zoneout=zoneout,
        training=False,
        stream=mx.cpu,
    )
    to = _NUMPY[dtype]
    Wxh, Whh, bias = _weights(Wxh, Whh, bias, dtype, found.path == "composed")
    D, H = Wxh.shape[1], Whh.shape[1]
    new = _each(new_share(leak, zoneout, dtype, mx.cpu), H, to)
    start = None if hidden0 is None else converted("hidden0", hidden0, to)

    choice = dispatch.choose(nonlinearity, mx.cpu)
    if found.path == "traced":
        operands = Operands(x=x, Wxh=Wxh, bias=bias, Whh=Whh, hidden=None)
        function, obstacle, _ = trace(choice.nonlinearity, operands, mx.cpu)
        choice = choice.after_reading(function, obstacle)
    elif found.path == "composed":
        choice = choice.composed(found.reason)
    core: Core
    if choice.activation is None:
        reason = f"{found.reason} (MLX evaluates every step by itself)"
        found = Plan("composed", reason)
        f = choice.nonlinearity
        core = ComposedCore(Wxh, Whh, bias, f, new, start, lead, dtype)
    else:
        found = replace(found, threads=1, partition="none")
        core = _native.Stream(
            Wxh=Wxh,
            bias=bias,
            Whh=Whh,
            leak=new,
            hidden0=start,
            activation=choice.activation,
            lead=lead,
            dtype=to,
        )
    return Prepared(core, found, dtype, to, D, H, start)


class ComposedCore:
    """The same for a callable that the kernels cannot run, a step at a time."""

    def __init__(
        self,
        Wxh: mx.array,
        Whh: mx.array,
        bias: mx.array | None,
        nonlinearity: Nonlinearity,
        leak: np.ndarray | None,
        hidden0: np.ndarray | None,
        lead: tuple[int, ...],
        dtype: mx.Dtype,
    ) -> None:
        self._Wxh, self._Whh, self._bias = Wxh, Whh, bias
        self._nonlinearity = nonlinearity
        self._shape = (*lead, Whh.shape[1])
        self._dtype = dtype
        self._options: BoundOptions | None = None
        if leak is not None:
            self._options = BoundOptions(leak=mx.array(leak, dtype))
        self._hidden0 = None if hidden0 is None else mx.array(hidden0, dtype)
        self._hidden: mx.array | None = None
        self._kept: mx.array | None = None
        self._turns = Turns()

    def run(
        self, x: np.ndarray, out: np.ndarray | None, reset: np.ndarray | None
    ) -> np.ndarray:
        """Run over a step ``(..., D)`` or a chunk ``(..., L, D)``."""
        if out is None:
            out = np.empty((*x.shape[:-1], self._shape[-1]), _NUMPY[self._dtype])
        is_step = x.ndim == len(self._shape)
        with self._turns:
            hidden = self._hidden
            states = []
            for t, x_t in enumerate([x] if is_step else np.moveaxis(x, -2, 0)):
                starts = reset
                if reset is not None and not is_step:
                    starts = reset[..., t]
                hidden = self._step(mx.array(x_t, self._dtype), hidden, starts)
                states.append(hidden)
            # Only now, when nothing can raise any more.
            for t, state in enumerate(states):
                out[... if is_step else (..., t, slice(None))] = numpy_of("", state)
            self._hidden = hidden
        return out

    def state(self) -> np.ndarray:
        """A copy of the state."""
        with self._turns:
            hidden = self._hidden
        if hidden is None:
            return np.zeros(self._shape, _NUMPY[self._dtype])
        return numpy_of("", hidden).copy()

    def reset(self, hidden: np.ndarray | None) -> None:
        """Set the state."""
        start = None if hidden is None else mx.array(hidden, self._dtype)
        with self._turns:
            self._hidden = start

    def keep(self) -> None:
        """Keep the state as it is now."""
        self._kept = self._hidden

    def restore(self) -> None:
        """Go back to the state that was kept."""
        self._hidden = self._kept

    def _step(
        self, x: mx.array, hidden: mx.array | None, starts: np.ndarray | None
    ) -> mx.array:
        z = mx.expand_dims(dispatch.product(x, self._Wxh, self._bias, None), -2)
        options = self._options
        if starts is not None and starts.any():
            options = (options or BoundOptions())._replace(
                reset=mx.array(starts[..., None]), hidden0=self._hidden0
            )
        _, state = composed.recurrence(
            z, self._Whh, hidden, self._nonlinearity, [], True, options, None
        )
        if state.shape != self._shape:
            raise ValueError(
                f"nonlinearity returned shape {state.shape}, but must return "
                f"{self._shape}"
            )
        state = state.astype(self._dtype)
        evaluate(state)
        return state


# What runs a stream.
Core: TypeAlias = _native.Stream | ComposedCore


def _weights(
    Wxh: mx.array,
    Whh: mx.array,
    bias: mx.array | None,
    dtype: mx.Dtype,
    copies: bool,
) -> tuple[mx.array, mx.array, mx.array | None]:
    """Return evaluated weights in a dtype, the bias ``(H,)``."""
    # The kernels make their own copies. What is there is read where it lies: a forked
    # process may have no thread for another operation. Others have to be copied in any
    # case: MLX's arrays can be written into.
    convert = mx.array if copies else as_dtype
    Wxh, Whh = convert(Wxh, dtype), convert(Whh, dtype)
    if bias is not None:
        bias = convert(bias, dtype)
        if bias.shape != Wxh.shape[:1]:
            if bias.size != 1 and bias.size != bias.shape[-1]:
                raise ValueError(
                    f"bias must have shape {Wxh.shape[:1]} for a stream, but has shape "
                    f"{bias.shape}"
                )
            bias = mx.broadcast_to(bias.reshape(bias.shape[-1:]), Wxh.shape[:1])
    evaluate(*(a for a in (Wxh, Whh, bias) if a is not None))
    return Wxh, Whh, bias


def _each(leak: float | mx.array | None, H: int, dtype: np.dtype) -> np.ndarray | None:
    """What is new in a state, of each unit, as MLX converts it."""
    if leak is None:
        return None
    if isinstance(leak, mx.array):
        return converted("leak", leak, dtype)
    with as_mlx_converts():
        value = leak if dtype == np.float64 else np.float32(leak)
        return np.full(H, value, dtype)


def converted(name: str, value: Any, dtype: np.dtype) -> np.ndarray:
    """Return a contiguous copy in a layer's dtype."""
    values = numpy_of(name, value)
    with as_mlx_converts():
        return np.array(values, dtype, order="C", subok=False)


def as_mlx_converts() -> np.errstate:
    """Return a context in which NumPy rounds and overflows without a warning."""
    return np.errstate(over="ignore", under="ignore", invalid="ignore")


def numpy_of(name: str, value: Any) -> np.ndarray:
    """The same numbers in NumPy; where it can be, in the same memory."""
    if isinstance(value, mx.array):
        if value.dtype == mx.bfloat16:
            value = value.astype(mx.float32)
        value = values_of(value)
    elif not isinstance(value, np.ndarray):
        if not hasattr(value, "__dlpack__"):
            raise TypeError(
                f"{name} must be a NumPy or MLX array, but is {type_name(value)}"
            )
        value = np.from_dlpack(value)
    values = cast(np.ndarray, value)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{name} must hold real numbers, but has dtype {values.dtype}")
    return values
