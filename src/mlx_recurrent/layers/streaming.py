"""A layer in real time, outside the graph."""

from typing import Any, TypeAlias, cast

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from mlx_recurrent import functional
from mlx_recurrent.functional.cells import LSTM
from mlx_recurrent.functional.dispatch import Nonlinearity
from mlx_recurrent.functional.judging import (
    judge_given,
    judge_pair,
    judge_states,
    type_name,
)
from mlx_recurrent.functional.options import Values, judge_flags_now
from mlx_recurrent.functional.plan import Plan
from mlx_recurrent.functional.stream_core import (
    ComposedCore,
    Core,
    converted,
    numpy_of,
    prepare,
)
from mlx_recurrent.layers.duplicate import duplicate

Array: TypeAlias = np.ndarray | mx.array


class Stream:
    """A layer in real time: it takes steps as they come, and keeps the state.

    A layer's ``stream`` makes one; the arguments here are those of a :class:`RNN`. It
    runs outside the graph, on the thread that calls it, always in evaluation mode. Its
    weights are a copy: what happens to the layer later does not change them. A callable
    that the kernels can run is read once, when the stream is made. Any other is called
    at each step, and MLX evaluates what it returns; :attr:`plan` tells.

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
        arguments = {
            "Wxh": Wxh,
            "Whh": Whh,
            "bias": bias,
            "nonlinearity": nonlinearity,
            "leak": leak,
            "zoneout": zoneout,
            "hidden0": hidden0,
        }
        self._begin(functional.rnn, arguments, (hidden,))

    @classmethod
    def _of(
        cls,
        function: functional.Function,
        arguments: dict[str, Any],
        states: tuple[Array | None, ...],
    ) -> "Stream":
        """Return the stream of a layer that runs a function with these arguments."""
        stream = cls.__new__(cls)
        stream._begin(function, arguments, states)
        return stream

    def _begin(
        self,
        function: functional.Function,
        arguments: dict[str, Any],
        states: tuple[Array | None, ...],
    ) -> None:
        given = next((state for state in states if state is not None), None)
        self._lead = () if given is None else numpy_of("hidden", given).shape[:-1]
        nonlinearity = arguments.get("nonlinearity")
        if isinstance(nonlinearity, Module):
            arguments["nonlinearity"] = duplicate(nonlinearity)
            arguments["nonlinearity"].eval()
        prepared = prepare(function, self._lead, arguments)
        self._core, self._plan = core, _ = prepared[:2]
        self._mlx_dtype, self._dtype = prepared.mlx_dtype, prepared.dtype
        self._D, self._H = prepared.D, prepared.H
        self._names, self._starts = prepared.states, prepared.starts
        self._native = None if isinstance(core, ComposedCore) else core
        self._cores: list[Core] = [self._core]  # of a stack: those of all layers
        self.reset(*states)

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
            reset = judge_flags_now("reset", reset, "x", lead, shape[len(lead) : -1])
        return self._core.run(values, out, reset)

    @property
    def state(self) -> Any:
        """A copy of the state, ``(..., H)``; of an LSTM a pair."""
        return self._core.state()

    @property
    def plan(self) -> Plan:
        """What runs each step, and why."""
        return self._plan

    def reset(self, *states: Array | None, **named: Array | None) -> None:
        """Start anew.

        Args:
            states (array, optional): The layer's states, in order: ``hidden``, and of
                an LSTM ``cell``; of a declared cell its own. Each ``(..., H)`` with the
                leading axes that the stream has. ``None`` is the state that the layer
                has learned, or zero. Default: ``None`` for each.
            named (array, optional): The same by their names.

        Raises:
            TypeError: If a state is not an array, or one that the layer does not have.
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
        given = judge_given(self._names, states, named)
        each = zip(self._names, given, self._starts, strict=True)
        self._core.reset(*(self._start(*state) for state in each))

    def _states_of(self, name: str, state: Any) -> tuple[Any, ...]:
        """Return what :meth:`reset` takes for a state, of several a tuple."""
        if self._names == LSTM.states:
            return judge_pair(name, state)
        return judge_states(name, state, self._names)

    def _start(
        self, name: str, state: Array | None, otherwise: np.ndarray | None
    ) -> np.ndarray | None:
        """Return a state as the core takes it."""
        start = otherwise if state is None else state
        if start is None:
            return None
        if state is None:
            name = f"{name}0"
        values = self._converted(name, start)
        shape = (*self._lead, self._H)
        if values.shape != (shape[-1:] if state is None else shape):
            raise ValueError(
                f"{name} must have shape {shape}, but has shape {values.shape}"
            )
        return np.array(np.broadcast_to(values, shape), order="C")

    def _converted(self, name: str, value: Any) -> np.ndarray:
        return converted(name, value, self._dtype)

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
