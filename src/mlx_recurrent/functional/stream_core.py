"""What runs a layer in real time: the kernels, or MLX a step at a time."""

from dataclasses import replace
from itertools import zip_longest
from typing import Any, NamedTuple, TypeAlias, cast

import mlx.core as mx
import numpy as np

from mlx_recurrent import _native
from mlx_recurrent.functional import composed, dispatch
from mlx_recurrent.functional.cells import Cell, States
from mlx_recurrent.functional.dispatch import Nonlinearity
from mlx_recurrent.functional.judging import type_name
from mlx_recurrent.functional.layer_calls import Function, cell_of, judged, plan_of
from mlx_recurrent.functional.operands import (
    Judged,
    Operands,
    together,
    without_rows,
)
from mlx_recurrent.functional.options import (
    BoundOptions,
    judge_start,
    new_share,
)
from mlx_recurrent.functional.plan import Plan
from mlx_recurrent.functional.steps import step_of
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
        core (Stream or ComposedCore): What runs them, and keeps the states.
        plan (Plan): Why that.
        mlx_dtype (Dtype): The layer's dtype.
        dtype (dtype): That of its NumPy arrays.
        D (int): The features of an input.
        H (int): The features of a state.
        states (tuple(str)): What the states are called.
        starts (tuple(array)): The states to begin with, ``(H,)``, or ``None``.
    """

    core: "Core"
    plan: Plan
    mlx_dtype: mx.Dtype
    dtype: np.dtype
    D: int
    H: int
    states: tuple[str, ...]
    starts: tuple[np.ndarray | None, ...]


class Weights(NamedTuple):
    """A layer's weights, evaluated, of one dtype; biases are vectors."""

    Wx: mx.array
    Wh: mx.array | None
    bias: mx.array | None
    hidden_bias: mx.array | None
    parameters: mx.array | None


def prepare(
    function: Function, lead: tuple[int, ...], arguments: dict[str, Any]
) -> Prepared:
    """Judge a layer's weights, and make what runs its steps.

    Args:
        function (callable): What the layer runs over a sequence.
        lead (tuple(int)): The leading axes of the states.
        arguments (dict): What it is given by the layer, by name.
    """
    cell, arguments = cell_of(function), dict(arguments)
    Wx, Wh = arguments[cell.Wx], arguments.get(cell.Wh)
    learned = {name: arguments.pop(name, None) for name in cell.starts}
    for name, start in learned.items():
        if start is not None and getattr(Wx if Wh is None else Wh, "ndim", 0) == 2:
            judge_start(name, start, _units(cell, Wx, Wh))
    given = (*arguments.values(), *learned.values())
    arrays = [a for a in given if isinstance(a, mx.array)]
    _native.expect_threads(arrays)
    dtype = mx.result_type(*arrays)
    # Two steps like those that will come. What is found of them judges the weights.
    features = Wx.shape[-1] if getattr(Wx, "ndim", 0) else 0
    x = mx.broadcast_to(as_dtype(_ZERO, dtype), (*lead, 2, features))
    call = judged(function, x, **arguments, training=False, stream=mx.cpu)
    found = plan_of(call)
    to = _NUMPY[dtype]
    weights = _weights(call, dtype, found.path == "composed")
    D, H = weights.Wx.shape[1], _units(cell, Wx, weights.Wh)
    options = call.options
    assert options is not None  # for the type checker: there is one
    shares = tuple(
        _each(new_share(leak, kept, dtype, mx.cpu), H, to)
        for leak, kept in zip_longest((options.leak,), options.kept)
    )
    starts = tuple(
        None if start is None else converted(name, start, to)
        for name, start in learned.items()
    )

    choice = call.choice
    if choice.readable and found.path == "traced":
        operands = Operands(x, weights.Wx, weights.bias, weights.Wh, (None,))
        assert choice.nonlinearity is not None
        traced, obstacle, _ = trace(choice.nonlinearity, operands, mx.cpu, mx.cpu)
        choice = choice.after_reading(traced, obstacle)
    elif found.path == "composed":
        choice = choice.composed(found.reason)
    core: Core
    if choice.activation is None:
        reason = f"{found.reason} (MLX evaluates every step by itself)"
        found = Plan("composed", reason)
        core = ComposedCore(
            call.cell, choice.nonlinearity, weights, shares, starts, (*lead, H), dtype
        )
    else:
        found = replace(found, threads=1, partition="none")
        Wh = weights.Wh
        if Wh is None:
            Wh = without_rows(H, dtype, mx.cpu)
            evaluate(Wh)
        core = _native.Stream(
            Wxh=weights.Wx,
            bias=weights.bias,
            Whh=Wh,
            bhn=weights.hidden_bias,
            parameters=weights.parameters,
            leaks=shares,
            starts=starts,
            cell=choice.activation,
            lead=lead,
            dtype=to,
        )
    return Prepared(core, found, dtype, to, D, H, cell.states, starts)


class ComposedCore:
    """The same for what the kernels cannot run, a step at a time."""

    def __init__(
        self,
        cell: Cell,
        nonlinearity: Nonlinearity | None,
        weights: Weights,
        shares: tuple[np.ndarray | None, ...],
        starts: tuple[np.ndarray | None, ...],
        shape: tuple[int, ...],
        dtype: mx.Dtype,
    ) -> None:
        def of_layer(values: np.ndarray | None) -> mx.array | None:
            return None if values is None else mx.array(values, dtype)

        self._cell = cell
        self._nonlinearity = nonlinearity
        self._weights = weights
        self._shape = shape
        self._dtype = dtype
        self._options: BoundOptions | None = None
        if any(share is not None for share in shares):
            self._options = BoundOptions.of(
                len(shares), leaks=tuple(map(of_layer, shares))
            )
        self._starts = tuple(map(of_layer, starts))
        self._states: States = (None,) * len(starts)
        self._kept: States = self._states
        self._turns = Turns()

    def run(
        self, x: np.ndarray, out: np.ndarray | None, reset: np.ndarray | None
    ) -> np.ndarray:
        """Run over a step ``(..., D)`` or a chunk ``(..., L, D)``."""
        if out is None:
            out = np.empty((*x.shape[:-1], self._shape[-1]), _NUMPY[self._dtype])
        is_step = x.ndim == len(self._shape)
        with self._turns:
            states = self._states
            outputs = []
            for t, x_t in enumerate([x] if is_step else np.moveaxis(x, -2, 0)):
                starts = reset
                if reset is not None and not is_step:
                    starts = reset[..., t]
                states = self._step(mx.array(x_t, self._dtype), states, starts)
                outputs.append(states[0])
            # Only now, when nothing can raise any more.
            for t, state in enumerate(outputs):
                out[... if is_step else (..., t, slice(None))] = numpy_of("", state)
            self._states = states
        return out

    def state(self) -> Any:
        """A copy of the state, or a tuple of those of several."""
        with self._turns:
            states = self._states
        copies = tuple(
            np.zeros(self._shape, _NUMPY[self._dtype])
            if state is None
            else numpy_of("", state).copy()
            for state in states
        )
        return copies if len(copies) > 1 else copies[0]

    def reset(self, *states: np.ndarray | None) -> None:
        """Set the states."""
        new = tuple(None if s is None else mx.array(s, self._dtype) for s in states)
        with self._turns:
            self._states = new

    def keep(self) -> None:
        """Keep the states as they are now."""
        self._kept = self._states

    def restore(self) -> None:
        """Go back to the states that were kept."""
        self._states = self._kept

    def _step(
        self, x: mx.array, states: States, starts: np.ndarray | None
    ) -> tuple[mx.array, ...]:
        Wx, Wh, bias, hidden_bias, parameters = self._weights
        z = mx.expand_dims(dispatch.product(x, Wx, bias, None), -2)
        options = self._options
        if starts is not None and starts.any():
            options = (options or BoundOptions.of(len(self._starts)))._replace(
                reset=mx.array(starts[..., None]), starts=self._starts
            )
        weights = Operands(x, Wx, bias, Wh, states, hidden_bias, parameters)
        step, z = step_of(self._cell, self._nonlinearity, weights, z, [], None)
        H = self._shape[-1]
        _, new = composed.recurrence(step, z, states, H, 0, options, None)
        if new[0].shape != self._shape:
            raise ValueError(
                f"nonlinearity returned shape {new[0].shape}, but must return "
                f"{self._shape}"
            )
        new = tuple(state.astype(self._dtype) for state in new)
        evaluate(*new)
        return new


# What runs a stream.
Core: TypeAlias = _native.Stream | ComposedCore


def _units(cell: Cell, Wx: mx.array, Wh: mx.array | None) -> int:
    """Return how many features a state has; a nonlinearity may change their number."""
    return Wx.shape[0] // cell.input_rows if Wh is None else Wh.shape[-1]


def _weights(call: Judged, dtype: mx.Dtype, copies: bool) -> Weights:
    """Return evaluated weights in a dtype, the biases vectors."""
    # The kernels make their own copies. What is there is read where it lies: a forked
    # process may have no thread for another operation. Others have to be copied in any
    # case: MLX's arrays can be written into.
    convert = mx.array if copies else as_dtype
    Wx, bias, name = call.sequence.Wx, call.sequence.bias, call.cell.bias
    assert Wx is not None
    Wx = convert(Wx, dtype)
    Wh = None if call.Wh is None else convert(call.Wh, dtype)
    parameters = together(call.parameters, dtype, None)
    if parameters is not None:
        parameters = convert(parameters, dtype)
    if bias is not None:
        bias = convert(bias, dtype)
        if bias.shape != Wx.shape[:1]:
            if bias.size != 1 and bias.size != bias.shape[-1]:
                raise ValueError(
                    f"{name} must have shape {Wx.shape[:1]} for a stream, but has "
                    f"shape {bias.shape}"
                )
            bias = mx.broadcast_to(bias.reshape(bias.shape[-1:]), Wx.shape[:1])
    hidden_bias = call.hidden_bias
    if hidden_bias is not None:
        hidden_bias = convert(hidden_bias, dtype)
    weights = (Wx, Wh, bias, hidden_bias, parameters)
    evaluate(*(a for a in weights if a is not None))
    return Weights(Wx, Wh, bias, hidden_bias, parameters)


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
