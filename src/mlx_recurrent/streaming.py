"""A layer in real time, outside the graph."""

from dataclasses import replace
from typing import Any, TypeAlias, cast

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from mlx_recurrent import _native, composed, dispatch, functional
from mlx_recurrent.dispatch import Nonlinearity
from mlx_recurrent.duplicate import duplicate
from mlx_recurrent.judging import type_name
from mlx_recurrent.operands import Operands
from mlx_recurrent.options import (
    BoundOptions,
    Values,
    judge_hidden0,
    judge_reset_now,
    new_share,
)
from mlx_recurrent.plan import Plan
from mlx_recurrent.tracing import trace
from mlx_recurrent.turns import Turns
from mlx_recurrent.values import evaluate, values_of

Array: TypeAlias = np.ndarray | mx.array

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


class Stream:
    """A layer in real time: it takes steps as they come, and keeps the state.

    :meth:`RNN.stream` makes one. It runs outside the graph, on the thread that calls
    it, always in evaluation mode. Its weights are a copy: what happens to the layer
    later does not change them. A callable that the kernels can run is read once, when
    the stream is made. Any other is called at each step, and MLX evaluates what it
    returns; :attr:`plan` tells.

    However a sequence is cut into chunks, the results are the same bit for bit.

    Threads may use streams of their own at the same time, and take turns at one. A
    forked process can go on with a stream that the kernels run, and make new ones of
    weights that were evaluated before the fork.

    Args:
        Wxh (array): The input weight, ``(H, D)``.
        Whh (array): The recurrent weight, ``(H, H)``.
        bias (array, optional): The bias, ``(H,)``. Default: ``None``.
        hidden (array, optional): The state before the first step, ``NH`` or ``H``. Its
            leading axes become those of every input. ``None`` is ``H``, with the values
            of ``hidden0``. Default: ``None``.
        nonlinearity (callable, optional): A function of an array ``(..., H)``.
            ``None`` is tanh. Default: ``None``.
        leak (float or array, optional): In (0, 1], or an array ``(H,)``. ``None`` is 1.
            Default: ``None``.
        zoneout (float, optional): The probability that a unit keeps its state, of which
            a stream takes the expectation. Default: ``0``.
        hidden0 (array, optional): The state ``(H,)`` to begin with where no ``hidden``
            is given. ``None`` is zero. Default: ``None``.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a shape or a dtype does not fit.
        RuntimeError: If MLX would have to compute something that another thread made
            and has not evaluated, or, in a forked process, something on a stream whose
            thread the fork has left behind.

    Example:
        >>> import numpy as np
        >>> from mlx_recurrent import RNN
        >>> stream, x = RNN(3, 8).stream(), np.ones((5, 3), np.float32)
        >>> first, rest = stream(x[0]), stream(x[1:])
        >>> rest.shape, np.array_equal(stream.state, rest[-1])
        ((4, 8), True)
    """

    def __init__(
        self,
        Wxh: mx.array,
        Whh: mx.array,
        bias: mx.array | None = None,
        hidden: Array | None = None,
        *,
        nonlinearity: Nonlinearity | None = None,
        leak: float | mx.array | None = None,
        zoneout: float = 0.0,
        hidden0: mx.array | None = None,
    ) -> None:
        if isinstance(nonlinearity, Module):
            nonlinearity = duplicate(nonlinearity)
            nonlinearity.eval()
        if hidden0 is not None and getattr(Whh, "ndim", 0) == 2:
            judge_hidden0(hidden0, Whh.shape[0])
        learned = (Wxh, Whh, bias, leak, hidden0)
        arrays = [a for a in learned if isinstance(a, mx.array)]
        _native.expect_threads(arrays)
        dtype = mx.result_type(*arrays)
        self._lead = () if hidden is None else numpy_of("hidden", hidden).shape[:-1]
        # Two steps like those that will come. What is found of them judges the weights.
        features = Wxh.shape[-1] if getattr(Wxh, "ndim", 0) else 0
        x = mx.broadcast_to(_as(_ZERO, dtype), (*self._lead, 2, features))
        self._plan = functional.plan(
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
        self._mlx_dtype, self._dtype = dtype, _NUMPY[dtype]
        Wxh, Whh, bias = _weights(Wxh, Whh, bias, dtype, self._plan.path == "composed")
        self._D, self._H = Wxh.shape[1], Whh.shape[1]
        new = self._each(new_share(leak, zoneout, dtype, mx.cpu))
        start = None if hidden0 is None else self._converted("hidden0", hidden0)
        self._hidden0 = start

        choice = dispatch.choose(nonlinearity, mx.cpu)
        if self._plan.path == "traced":
            operands = Operands(x=x, Wxh=Wxh, bias=bias, Whh=Whh, hidden=None)
            function, obstacle, _ = trace(choice.nonlinearity, operands, mx.cpu)
            choice = choice.after_reading(function, obstacle)
        elif self._plan.path == "composed":
            choice = choice.composed(self._plan.reason)
        self._native: _native.Stream | None = None
        if choice.activation is None:
            reason = f"{self._plan.reason} (MLX evaluates every step by itself)"
            self._plan = Plan("composed", reason)
            f = choice.nonlinearity
            self._core: Core = _Composed(
                Wxh, Whh, bias, f, new, start, self._lead, dtype
            )
        else:
            self._plan = replace(self._plan, threads=1, partition="none")
            self._core = self._native = _native.Stream(
                Wxh=Wxh,
                bias=bias,
                Whh=Whh,
                leak=new,
                hidden0=start,
                activation=choice.activation,
                lead=self._lead,
                dtype=self._dtype,
            )
        self._cores: list[Core] = [self._core]  # of a stack: those of all layers
        self.reset(hidden)

    def __call__(
        self,
        x: Array,
        *,
        out: np.ndarray | None = None,
        reset: Values | None = None,
    ) -> np.ndarray:
        """Run one step, or the steps of a chunk, from the state before them.

        Args:
            x (array): A step, ``(D,)``, or a chunk, ``(L, D)``, after the leading axes
                of the state, if it has any. NumPy or MLX, or anything that exports
                DLPack. It is converted to the layer's dtype; what has it already and
                is a contiguous NumPy array is read where it lies.
            out (numpy.ndarray, optional): Where the result goes: of its shape and
                dtype, contiguous and writeable. ``None`` makes a new array. Default:
                ``None``.
            reset (array, optional): Where an episode starts, so that nothing of the
                state before is used: booleans of the shape of the leading axes, of a
                chunk with ``(L,)`` behind them. A row then begins with ``hidden0``, or
                with no state. Default: ``None``.

        Returns:
            numpy.ndarray: The state after each step: ``x`` with ``H`` in place of
            ``D``, in the layer's dtype, float32 for bfloat16. It is ``out``, or the
            caller's own.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a shape or a dtype does not fit. The state is then as it was,
                and also where a nonlinearity raises.

        Example:
            >>> import numpy as np
            >>> from mlx_recurrent import RNN
            >>> layer, x = RNN(3, 8), np.ones((2, 3), np.float32)  # two environments
            >>> stream = layer.stream(np.zeros((2, 8), np.float32))
            >>> first, second = stream(x), stream(x, reset=[False, True])
            >>> np.allclose(second[1], first[1], atol=1e-6)  # a new episode
            True
        """
        if self._native is not None:
            result = self._native.run(x, out, reset)
            if result is not NotImplemented:
                return cast(np.ndarray, result)
        values = self._converted("x", x)
        lead = self._lead
        shape = values.shape
        if shape[-1:] != (self._D,) or (
            shape[:-1] != lead and (shape[:-2] != lead or len(shape) < 2)
        ):
            step = (*lead, self._D)
            chunk = ", ".join(map(str, (*lead, "L", self._D)))
            raise ValueError(
                f"x must have shape {step} or ({chunk}), but has shape {shape}"
            )
        if out is not None:
            self._judge_out(out, (*shape[:-1], self._H))
        if reset is not None:
            reset = judge_reset_now(reset, "x", lead, shape[len(lead) : -1])
        return self._core.run(values, out, reset)

    @property
    def state(self) -> np.ndarray:
        """A copy of the state, ``(..., H)``."""
        return self._core.state()

    @property
    def plan(self) -> Plan:
        """What runs each step, and why."""
        return self._plan

    def reset(self, hidden: Array | None = None) -> None:
        """Start anew.

        Args:
            hidden (array, optional): The state, ``(..., H)`` with the leading axes that
                the stream has. ``None`` is ``hidden0``, or zero. Default: ``None``.

        Raises:
            TypeError: If ``hidden`` is not an array.
            ValueError: If its shape or dtype does not fit.

        Example:
            >>> import numpy as np
            >>> from mlx_recurrent import RNN
            >>> stream, x = RNN(3, 8).stream(), np.ones((5, 3), np.float32)
            >>> first = stream(x)
            >>> stream.reset()
            >>> np.array_equal(stream(x), first)
            True
        """
        start = self._hidden0 if hidden is None else hidden
        if start is None:
            self._core.reset(None)
            return
        name = "hidden0" if hidden is None else "hidden"
        values = self._converted(name, start)
        shape = (*self._lead, self._H)
        if values.shape != (shape[-1:] if hidden is None else shape):
            raise ValueError(
                f"{name} must have shape {shape}, but has shape {values.shape}"
            )
        self._core.reset(np.array(np.broadcast_to(values, shape), order="C"))

    def _converted(self, name: str, value: Any) -> np.ndarray:
        """A contiguous copy in the layer's dtype."""
        values = numpy_of(name, value)
        with as_mlx_converts():
            return np.array(values, self._dtype, order="C", subok=False)

    def _each(self, leak: float | mx.array | None) -> np.ndarray | None:
        """What is new in a state, of each unit, as MLX converts it."""
        if leak is None:
            return None
        if isinstance(leak, mx.array):
            return self._converted("leak", leak)
        with as_mlx_converts():
            value = leak if self._dtype == np.float64 else np.float32(leak)
            return np.full(self._H, value, self._dtype)

    def _judge_out(self, out: Any, shape: tuple[int, ...]) -> None:
        if not isinstance(out, np.ndarray):
            raise TypeError(f"out must be a numpy.ndarray, but is {type_name(out)}")
        if out.shape != shape:
            raise ValueError(f"out must have shape {shape}, but has shape {out.shape}")
        if out.dtype != self._dtype:
            raise ValueError(
                f"out must have dtype {self._dtype}, but has dtype {out.dtype}"
            )
        if not out.flags.carray:
            raise ValueError("out must be contiguous, aligned and writeable")


class _Composed:
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
Core: TypeAlias = _native.Stream | _Composed


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
    convert = mx.array if copies else _as
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


def as_mlx_converts() -> np.errstate:
    """Return a context in which NumPy rounds and overflows without a warning."""
    return np.errstate(over="ignore", under="ignore", invalid="ignore")


def _as(a: mx.array, dtype: mx.Dtype) -> mx.array:
    return a if a.dtype == dtype else a.astype(dtype)


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
