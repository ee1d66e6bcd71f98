"""Several layers in real time, outside the graph."""

from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx
import numpy as np

from mlx_recurrent.functional.judging import judge_entries
from mlx_recurrent.functional.options import Values
from mlx_recurrent.functional.plan import Plan, together
from mlx_recurrent.functional.stream_core import Core, as_mlx_converts
from mlx_recurrent.functional.turns import Turns
from mlx_recurrent.layers.streaming import Array, Stream


class StackStream:
    """Layers one after another in real time: a :class:`mlx_recurrent.Stream` of each.

    :meth:`mlx_recurrent.Stack.stream` makes one, which is called and behaves as that of
    a layer: each layer's states are the next one's inputs, with the stack's residuals
    and without its dropout. Where one of them raises, all states are as they were.

    Args:
        streams (list(Stream or StackStream)): One for each layer, with the same leading
            axes.
        residual (bool, optional): Whether a layer's input is added to its outputs where
            both have the same number of features. Default: ``False``.

    Example:
        >>> import numpy as np
        >>> from mlx_recurrent import Stack
        >>> stream, x = Stack.build(3, 8, 2).stream(), np.ones((5, 3), np.float32)
        >>> first, rest = stream(x[0]), stream(x[1:])
        >>> rest.shape, [state.shape for state in stream.state]
        ((4, 8), [(8,), (8,)])
    """

    def __init__(
        self, streams: "Sequence[Stream | StackStream]", residual: bool = False
    ) -> None:
        self._streams = list(streams)
        self._residual = residual
        self._turns = Turns()
        self._cores: list[Core] = [
            core for stream in self._streams for core in stream._cores
        ]
        first, last = self._streams[0], self._streams[-1]
        self._lead: tuple[int, ...] = first._lead
        self._D: int = first._D
        self._H: int = last._H
        self._mlx_dtype: mx.Dtype = last._mlx_dtype
        self._dtype: np.dtype = first._dtype  # of inputs

    def __call__(
        self,
        x: Array,
        *,
        out: np.ndarray | None = None,
        reset: Values | None = None,
    ) -> np.ndarray:
        """Run one step, or the steps of a chunk, from the states before them.

        Args:
            x (array): A step, ``(D,)``, or a chunk, ``(L, D)``, after the leading axes
                of the states. It is converted to the first layer's dtype.
            out (numpy.ndarray, optional): Where the result goes. Default: ``None``.
            reset (array, optional): Where an episode starts, in every layer: booleans
                of the shape of the leading axes, of a chunk with ``(L,)`` behind them.
                Default: ``None``.

        Returns:
            numpy.ndarray: The last layer's outputs, ``(H,)`` or ``(L, H)``.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a shape or a dtype does not fit.
        """
        with self._turns:
            self._keep()
            try:
                if not self._residual:
                    return self._run(x, out, reset)
                with as_mlx_converts():
                    return self._run(x, out, reset)
            except BaseException:
                self._restore()
                raise

    def _run(self, x: Any, out: np.ndarray | None, reset: Values | None) -> np.ndarray:
        last = self._streams[-1]
        for stream in self._streams:
            into = out if stream is last else None
            if not self._residual or stream._D != stream._H:
                x = stream(x, out=into, reset=reset)
                continue
            if not isinstance(x, np.ndarray) or x.dtype != stream._dtype:
                x = stream._converted("x", x)
            y = stream(x, reset=reset)
            if into is not None:
                stream._judge_out(into, y.shape)
            x = _sum(y, x, stream._mlx_dtype, into)
        return cast(np.ndarray, x)

    @property
    def state(self) -> list[Any]:
        """Copies of the states, a list with one entry for each layer."""
        with self._turns:
            return [stream.state for stream in self._streams]

    @property
    def plan(self) -> Plan:
        """What runs each step in each layer, and why."""
        return together(
            {f"layers[{i}]": stream.plan for i, stream in enumerate(self._streams)}
        )

    def reset(self, hidden: Sequence[Any] | None = None) -> None:
        """Start anew.

        Args:
            hidden (list, optional): The states, one entry for each layer. ``None`` is,
                for all or for one, ``hidden0`` or zero. Default: ``None``.

        Raises:
            TypeError: If ``hidden`` is no list, or an entry no array.
            ValueError: If a length, a shape or a dtype does not fit.

        Example:
            >>> import numpy as np
            >>> from mlx_recurrent import Stack
            >>> stream, x = Stack.build(3, 8, 2).stream(), np.ones((5, 3), np.float32)
            >>> first = stream(x)
            >>> stream.reset()
            >>> np.array_equal(stream(x), first)
            True
        """
        entries = judge_entries(hidden, len(self._streams))
        with self._turns:
            self._keep()
            try:
                for i, (stream, state) in enumerate(
                    zip(self._streams, entries, strict=True)
                ):
                    stream.reset(*stream._states_of(f"hidden[{i}]", state))
            except BaseException:
                self._restore()
                raise

    def _states_of(self, _: str, state: Any) -> tuple[Any, ...]:
        """Return what :meth:`reset` takes for a state."""
        return (state,)

    def _keep(self) -> None:
        """Keep the states as they are now."""
        for core in self._cores:
            core.keep()

    def _restore(self) -> None:
        """Go back to the states that were kept."""
        for core in self._cores:
            core.restore()

    def _converted(self, name: str, value: Any) -> np.ndarray:
        return self._streams[0]._converted(name, value)

    def _judge_out(self, out: Any, shape: tuple[int, ...]) -> None:
        self._streams[-1]._judge_out(out, shape)


def _sum(
    y: np.ndarray, x: np.ndarray, dtype: mx.Dtype, out: np.ndarray | None
) -> np.ndarray:
    """Return ``y + x`` as MLX rounds it in a dtype."""
    total: np.ndarray = np.add(y, x, out=out)
    if dtype == mx.bfloat16:  # to the nearest, half to even; NaN stays
        bits = total.view(np.uint32)
        rounded = (bits + (0x7FFF + (bits >> 16 & 1))) & 0xFFFF0000
        bits[...] = np.where(np.isnan(total), bits, rounded)
    return total
