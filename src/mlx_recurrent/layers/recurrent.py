import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx

from mlx_recurrent import functional
from mlx_recurrent.functional.cells import DeclaredCell, Start
from mlx_recurrent.functional.declared import declare, initial_of
from mlx_recurrent.functional.foreign import judge_keywords, names_ways_out
from mlx_recurrent.functional.judging import ReturnState, judge_given, type_name
from mlx_recurrent.functional.options import (
    BidirectionalOptions,
    CallOptions,
    Values,
    documented,
)
from mlx_recurrent.functional.plan import Plan
from mlx_recurrent.layers.recurrent_layer import RecurrentLayer, judge_own, judge_sizes
from mlx_recurrent.layers.streaming import Array, Stream
from mlx_recurrent.mlx_faults.drawing import draws


def cell(
    *,
    gates: str | Sequence[str] = (),
    input_gates: str | Sequence[str] = (),
    hidden_gates: str | Sequence[str] = (),
    states: str | Sequence[str],
    parameters: Mapping[str, Start] | None = None,
) -> Callable[[Callable[..., Any]], DeclaredCell]:
    """Make a cell of a function of one step, for :class:`Recurrent`.

    The function takes pre-activations and states, each ``(..., H)``, by these names,
    in any order, and returns the new states in the order of ``states``. The first
    state is the output, and what ``Wh`` multiplies. Names are given in one text,
    ``"i f g o"``, or as a list.

    The function is looked at once for each dtype, not at each call: what it uses beside
    its arguments must not change.

    Args:
        gates (str or list(str), optional): Pre-activations of the input and the state
            together, ``Wx x + b + Wh h``. Default: ``()``.
        input_gates (str or list(str), optional): Of the input alone, ``Wx x + b``.
            Default: ``()``.
        hidden_gates (str or list(str), optional): Of the state alone, ``Wh h + bh``.
            Default: ``()``.
        states (str or list(str)): The states, at least one.
        parameters (dict, optional): Learned vectors ``(H,)`` by name, with what they
            start from: a number, or a function of the shape. Default: ``None``.

    Returns:
        callable: What makes a cell of a function.

    Raises:
        TypeError: If something is of the wrong type.
        ValueError: If the names are not those that the function takes, or one of them
            is the layer's own.

    Example:
        >>> import mlx.core as mx
        >>> from mlx_recurrent import Recurrent, cell
        >>> @cell(gates="f n", states="h")
        ... def ugrnn(f, n, h):
        ...     f = mx.sigmoid(f)
        ...     return f * h + (1 - f) * mx.tanh(n)
        >>> Recurrent(ugrnn, 3, 8)(mx.zeros((2, 5, 3))).shape
        (2, 5, 8)
    """

    def declared(function: Callable[..., Any]) -> DeclaredCell:
        return declare(
            function,
            gates=gates,
            input_gates=input_gates,
            hidden_gates=hidden_gates,
            states=states,
            parameters=parameters,
        )

    return declared


_WEIGHTS = ("Wx", "Wh", "b", "bh")


class Recurrent(RecurrentLayer):
    r"""A recurrent layer of any cell: a function of one step that :func:`cell` names.

    The input is a sequence of shape ``NLD`` or ``LD`` where:

    * ``N`` is the optional batch dimension (any number of leading axes)
    * ``L`` is the sequence length
    * ``D`` is the input's feature dimension

    Each state has shape ``NH`` or ``H``. With ``G``, ``I`` and ``U`` gates, input gates
    and hidden gates, the parameters are ``Wx`` ((G + I) H, D), ``Wh`` ((G + U) H, H),
    ``b`` ((G + I) H,) and ``bh`` (U H,), whose rows are those of the gates first, then
    those of the others, in the order declared; they are drawn in this order, uniformly
    from :math:`-1/\sqrt{H}` to :math:`1/\sqrt{H}`. Those without rows are not there.
    Then come the cell's own parameters, ``(H,)`` each, by name.

    Args:
        cell (cell): The cell.
        input_size (int): Dimension of the input, ``D``. At least 0.
        hidden_size (int): Dimension of the states, ``H``. At least 1.
        bias (bool, optional): Whether to use biases. Default: ``True``.
        zoneout (float or tuple(float), optional): The probability that a unit keeps its
            state at a step; a tuple has one for each state, whose masks are drawn
            apart. In evaluation the expectation is used. Default: ``0``.
        input_dropout (float, optional): The probability that a feature of the input is
            zero, for a whole sequence. Default: ``0``.
        recurrent_dropout (float, optional): The probability that a unit is left out of
            the product with ``Wh``, for a whole sequence. Default: ``0``.
        learn_hidden (bool, optional): Whether to learn the states that episodes start
            from: a parameter ``NAME0`` (H,) for each state, zero at first.
            Default: ``False``.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a size or a probability is out of range.

    Example:
        >>> import mlx.core as mx
        >>> from mlx_recurrent import Recurrent, cell
        >>> @cell(input_gates="a", states="v y", parameters={"k": 0.1})
        ... def leaky(a, v, y, k):
        ...     v = (1 - k) * v + k * a
        ...     return v, mx.tanh(v)
        >>> layer = Recurrent(leaky, 3, 8)
        >>> outputs, (v, y) = layer(mx.zeros((2, 5, 3)), return_state=True)
        >>> outputs.shape, y.shape
        ((2, 5, 8), (2, 8))
    """

    @names_ways_out
    def __init__(
        self,
        cell: DeclaredCell,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        zoneout: float | tuple[float, ...] = 0.0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        learn_hidden: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if not isinstance(cell, DeclaredCell):
            raise TypeError(
                "cell must be a function that mlx_recurrent.cell(...) decorates, but "
                f"is {type_name(cell)}"
            )
        bias = judge_sizes(input_size, hidden_size, bias)
        self.cell = cell
        self.hidden_size = hidden_size
        own = judge_own(
            cell.starts,
            hidden_size,
            zoneout=zoneout,
            input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout,
            learn_hidden=learn_hidden,
        )
        if "recurrent_dropout" in own and not cell.hidden_rows:
            raise ValueError(
                f"recurrent_dropout must be 0 for the cell {cell.name}, which has no "
                f"product with its state, but is {recurrent_dropout}"
            )
        D, H = input_size, hidden_size
        draws()
        scale = 1 / math.sqrt(H)
        for name, shape in _shapes(cell, D, H, bias).items():
            self[name] = mx.random.uniform(-scale, scale, shape)
        for name, value in {**initial_of(cell, H), **own}.items():
            setattr(self, name, value)

    def __getattr__(self, key: str) -> Any:
        # None for a layer without; what makes a copy may ask before there is a cell.
        made: DeclaredCell | None = vars(self).get("cell")
        if made is not None and key in (*_WEIGHTS, *made.starts):
            return self.get(key)
        return super().__getattr__(key)

    def __setattr__(self, key: str, value: Any) -> None:
        if isinstance(value, mx.array):  # MLX would first delete what it finds
            self[key] = value
        else:
            super().__setattr__(key, value)

    @documented(BidirectionalOptions, CallOptions)
    def __call__(
        self,
        x: mx.array,
        *states: mx.array | None,
        return_state: ReturnState = False,
        **options: Any,
    ) -> Any:
        """Run the layer over a sequence.

        Args:
            x (array): The sequence, ``NLD`` or ``LD``.
            states (array, optional): The states before the first step, ``NH`` or ``H``,
                in the order of the cell's, or by their names; those that are not given
                are zero. Their leading axes and those of ``x`` broadcast.
                Default: ``None`` for each.
            return_state (bool or str, optional): ``True`` returns the outputs, which
                are the first state at every step, and the state after the last step, of
                a cell with several states a tuple; ``"only"`` that alone.
                Default: ``False``.
            options: Of the recurrence.

        Returns:
            array or tuple: The outputs, ``NLH`` or ``LH``; the state or states, ``NH``
            or ``H``; or both.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a shape, a dtype or a value does not fit, or the cell's
                function is not one of a step.
            RuntimeError: If an operand is another thread's, which has not evaluated
                it, or in a forked process, where MLX would wait for ever.

        Example:
            >>> import mlx.core as mx
            >>> from mlx_recurrent import Recurrent, cell
            >>> @cell(gates="a", states="h")
            ... def elman(a, h):
            ...     return mx.tanh(a)
            >>> layer, x = Recurrent(elman, 3, 8), mx.random.normal((2, 5, 3))
            >>> first, h = layer(x[:, :3], return_state=True)
            >>> rest = layer(x[:, 3:], h)
            >>> mx.allclose(rest, layer(x)[:, 3:], atol=1e-5).item()
            True
        """
        given = self._named(states, options)
        return self._function(
            x, return_state=return_state, **given, **options, **self._arguments()
        )

    def step(
        self,
        x: mx.array,
        *states: mx.array | None,
        reset: Values | None = None,
        **named: mx.array | None,
    ) -> Any:
        """Run a single step.

        In training mode it draws new masks at each call: for one mask over a sequence
        call the layer.

        Args:
            x (array): The input, ``ND`` or ``D``.
            states (array, optional): The states before, ``NH`` or ``H``, in the order
                of the cell's or by their names. Default: ``None`` for each.
            reset (array, optional): Where an episode starts, so that the states before
                are not used: booleans, of the shape of the leading axes.
                Default: ``None``.
            named (array, optional): The states by name.

        Returns:
            array or tuple: The state after, ``NH`` or ``H``, or a tuple of several.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a shape, a dtype or a value does not fit.

        Example:
            >>> import mlx.core as mx
            >>> from mlx_recurrent import Recurrent, cell
            >>> @cell(input_gates="z n", states="h")
            ... def min_gru(z, n, h):
            ...     z = mx.sigmoid(z)
            ...     return (1 - z) * h + z * n
            >>> layer, x = Recurrent(min_gru, 3, 8), mx.random.normal((5, 3))
            >>> h = layer.step(x[1], layer.step(x[0]))
            >>> mx.allclose(h, layer(x)[1], atol=1e-5).item()
            True
        """
        names = self.cell.states
        given = dict(zip(names, judge_given(names, states, named), strict=True))
        return functional.step(self._function, x, given, reset, **self._arguments())

    def plan(
        self,
        x: mx.array,
        *states: mx.array | None,
        return_state: ReturnState = False,
        **options: Any,
    ) -> Plan:
        """Return what a call with the same arguments would run, and why.

        The arguments and what they raise are those of the call; nothing is computed.

        Example:
            >>> import mlx.core as mx
            >>> from mlx_recurrent import Recurrent, cell
            >>> @cell(gates="a", states="h")
            ... def shares(a, h):
            ...     return mx.softmax(a, axis=-1)
            >>> Recurrent(shares, 3, 8).plan(mx.zeros((5, 3))).path
            'composed'
        """
        arguments: dict[str, Any] = self._named(states, options) | options
        return functional.plan(
            self._function,
            x,
            return_state=return_state,
            **arguments,
            **self._arguments(),
        )

    def stream(self, *states: Array | None, **named: Array | None) -> Stream:
        """Return the layer for real-time use: a copy that takes steps as they come.

        Args:
            states (array, optional): The states before the first step, ``NH`` or ``H``,
                in the order of the cell's or by their names. Their leading axes become
                those of every input. Default: ``None`` for each.
            named (array, optional): The states by name.

        Raises:
            TypeError: If a state is not an array, or there is none of a name.
            ValueError: If its shape or dtype does not fit.

        Example:
            >>> import mlx.core as mx
            >>> import numpy as np
            >>> from mlx_recurrent import Recurrent, cell
            >>> @cell(input_gates="z n", states="h")
            ... def min_gru(z, n, h):
            ...     z = mx.sigmoid(z)
            ...     return (1 - z) * h + z * n
            >>> stream = Recurrent(min_gru, 3, 8).stream()
            >>> stream(np.ones(3)).shape  # a step
            (8,)
        """
        return self._streamed(judge_given(self.cell.states, states, named))

    @property
    def _function(self) -> functional.Function:  # type: ignore[override]
        return functional.DeclaredFunction(self.cell)

    @property
    def _sizes(self) -> tuple[int, int]:
        return self["Wx"].shape[-1], self.hidden_size

    def _named(
        self, states: Sequence[Any], options: dict[str, Any]
    ) -> dict[str, mx.array | None]:
        """Return the states of a call by name, those among its options taken out."""
        names = self.cell.states
        named = {name: options.pop(name) for name in names if name in options}
        judge_keywords(options, CallOptions, names)
        return dict(zip(names, judge_given(names, states, named), strict=True))

    def _weight_names(self) -> tuple[str, ...]:  # type: ignore[override]
        made = self.cell
        names = ("Wx", "Wh" if made.hidden_rows else "", "b", made.hidden_bias)
        return (*(name for name in names if name), *made.parameters)

    def _start_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.cell.starts

    def _own_parameters(self) -> dict[str, mx.array]:
        return initial_of(self.cell, self.hidden_size)

    def _extra_repr(self) -> str:
        described: str = super()._extra_repr()
        return (
            f"{self.cell.name}, input_dims={self._sizes[0]}, "
            f"hidden_size={self.hidden_size}, bias={self.b is not None}" + described
        )


def _shapes(
    made: DeclaredCell, D: int, H: int, bias: bool
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights, in the order in which they are drawn."""
    rows = made.input_rows * H
    shapes: dict[str, tuple[int, ...]] = {"Wx": (rows, D)}
    if made.hidden_rows:
        shapes["Wh"] = (made.hidden_rows * H, H)
    if bias:
        shapes["b"] = (rows,)
        if made.hidden_gates:
            shapes["bh"] = (len(made.hidden_gates) * H,)
    return shapes
