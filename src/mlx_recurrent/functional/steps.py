"""One step of each cell on the composed path."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TypeAlias

import mlx.core as mx

from mlx_recurrent.functional.cells import ELMAN, Cell, States, sigmoid
from mlx_recurrent.functional.devices import StreamOrDevice
from mlx_recurrent.functional.dispatch import Nonlinearity
from mlx_recurrent.functional.judging import broadcasts
from mlx_recurrent.functional.transition import Transition

if TYPE_CHECKING:
    from mlx_recurrent.functional.operands import Operands

# From a step's input and the states that it starts from to the states after it.
Step: TypeAlias = Callable[[mx.array, States, Transition], tuple[mx.array, ...]]


def step_of(
    cell: Cell,
    nonlinearity: Nonlinearity | None,
    weights: "Operands",
    z: mx.array,
    begun: list[mx.array],
    stream: StreamOrDevice,
) -> tuple[Step, mx.array]:
    """Return the step of a cell, and what it is given of all steps' projection.

    Args:
        cell (Cell): The cell.
        nonlinearity (callable, optional): That of an Elman cell.
        weights (Operands): What a step has beside its input and the states.
        z (array): The projected inputs, ``(..., L, K)``.
        begun (list(array)): What a nonlinearity has returned for the first steps.
        stream (Stream or Device, optional): The stream. ``None`` is the default one.
    """
    Wh = weights.Whh
    if cell.step is not None:
        step = CellStep(cell, Wh, weights.parameters, stream)
        return step, CellStep.inputs(cell, z, weights.bhn)
    assert Wh is not None  # for the type checker: only a cell of one's own has none
    if cell is ELMAN:
        assert nonlinearity is not None
        return CallableStep(nonlinearity, Wh, z, begun, stream), z
    return ResetBeforeStep(Wh, stream), z


class CallableStep:
    """A step of an Elman cell, whose nonlinearity is any function.

    The nonlinearity is called once a step, in order, for all rows. As in MLX's layer,
    each step has the dtype that its own operands promote to.

    Args:
        nonlinearity (callable): A function of an array ``(..., H)``.
        Whh (array): The recurrent weight, ``(H, H)``.
        z (array): All projected inputs, ``(..., L, H)``.
        begun (list(array)): What the nonlinearity has returned for the first steps
            already.
        stream (Stream or Device, optional): The stream. ``None`` is the default one.
    """

    def __init__(
        self,
        nonlinearity: Nonlinearity,
        Whh: mx.array,
        z: mx.array,
        begun: list[mx.array],
        stream: StreamOrDevice,
    ) -> None:
        self._nonlinearity = nonlinearity
        self._Whh = self._weight = Whh
        self._z = z
        self._begun = begun
        self._stream = stream
        self._step = -1
        self._shape: tuple[int, ...] | None = None

    def __call__(
        self, z: mx.array, starts: States, transition: Transition
    ) -> tuple[mx.array, ...]:
        """Return the state after a step, from the one before and the step's input.

        Raises:
            TypeError: If the nonlinearity returns something other than an array.
            ValueError: If what it returns is complex, does not fit the next step or
                changes its shape from one step to the next.
        """
        self._step += 1
        if self._step < len(self._begun):
            result = self._begun[self._step]
        else:
            a = self._pre_activation(z, starts[0], transition)
            result = self._nonlinearity(transition.given(a))
        if not isinstance(result, mx.array):
            _refuse(f"{type(result).__name__}", "an mx.array", TypeError)
        if self._shape is None:
            self._shape = result.shape
            self._check_first(result.shape, transition)
        elif result.shape != self._shape:
            _refuse(
                f"shape {result.shape}",
                f"the same shape at every step; the first was {self._shape}",
            )
        if result.dtype == mx.complex64:
            _refuse("a complex array", "a real one")
        return (result,)

    def _pre_activation(
        self, z: mx.array, start: mx.array | None, transition: Transition
    ) -> mx.array:
        if start is None:
            return z
        weight, stream = self._weight, self._stream
        if weight.dtype != start.dtype or weight.dtype != z.dtype:
            dtype = mx.result_type(start, self._Whh, z)
            if weight.dtype != dtype:
                weight = self._weight = self._Whh.astype(dtype, stream=stream)
            start = start.astype(dtype, stream=stream)
            z = z.astype(dtype, stream=stream)
        return transition.pre_activation(start, weight, z, stream)

    def _check_first(self, shape: tuple[int, ...], transition: Transition) -> None:
        z, Whh = self._z, self._Whh
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
            rule = f"leading axes that a step's, {step}, broadcast to"
            _refuse(f"shape {shape}", rule)


class CellStep:
    """A step of a cell with a function of its pre-activations.

    Args:
        cell (Cell): The cell.
        Wh (array, optional): The recurrent weight, of a cell that has one.
        parameters (array, optional): The cell's, ``(H,)`` each, side by side.
        stream (Stream or Device, optional): The stream. ``None`` is the default one.
    """

    def __init__(
        self,
        cell: Cell,
        Wh: mx.array | None,
        parameters: mx.array | None,
        stream: StreamOrDevice,
    ) -> None:
        self._cell = cell
        self._Wh = Wh
        self._parameters: list[mx.array] = []
        if parameters is not None:
            self._parameters = _slabs(parameters, len(cell.parameters))
        self._stream = stream

    @staticmethod
    def inputs(cell: Cell, z: mx.array, hidden_bias: mx.array | None) -> mx.array:
        """Return what steps are given: what a step's product is added to comes first.

        Args:
            cell (Cell): The cell.
            z (array): The projected inputs, of ``gates`` and ``input_gates``.
            hidden_bias (array, optional): Of ``hidden_gates``.
        """
        if not cell.hidden_gates:
            return z
        H = z.shape[-1] // cell.input_rows
        shared, inputs = mx.split(z, [len(cell.gates) * H], axis=-1)
        if hidden_bias is None:
            hidden_bias = mx.zeros((len(cell.hidden_gates) * H,), z.dtype)
        shape = (*z.shape[:-1], *hidden_bias.shape)
        hidden = mx.broadcast_to(hidden_bias, shape)
        return mx.concatenate([shared, hidden, inputs], axis=-1)

    def __call__(
        self, z: mx.array, starts: States, transition: Transition
    ) -> tuple[mx.array, ...]:
        """Return the states after a step, from those before and the step's input."""
        cell = self._cell
        inputs: list[mx.array] = []
        slabs: list[mx.array] = []
        if self._Wh is None:
            inputs = _slabs(transition.given(z), cell.input_rows)
        else:
            a = z
            if cell.input_gates:
                a, inside = mx.split(z, [self._Wh.shape[0]], axis=-1)
                inputs = _slabs(transition.given(inside), len(cell.input_gates))
            if starts[0] is not None:
                a = transition.pre_activation(starts[0], self._Wh, a, self._stream)
            slabs = _slabs(transition.given(a), cell.hidden_rows)
        shared = len(cell.gates)
        states = transition.present(starts, (slabs or inputs)[0])
        assert cell.step is not None
        return cell.step(
            *slabs[:shared], *inputs, *slabs[shared:], *states, *self._parameters
        )


def _slabs(a: mx.array, count: int) -> list[mx.array]:
    return list(mx.split(a, count, axis=-1))


class ResetBeforeStep:
    """A step of a GRU whose reset comes before the product (Cho et al. 2014).

    Args:
        Wh (array): The recurrent weight, ``(3H, H)``.
        stream (Stream or Device, optional): The stream. ``None`` is the default one.
    """

    def __init__(self, Wh: mx.array, stream: StreamOrDevice) -> None:
        self._rows = 2 * Wh.shape[-1]
        self._gates, self._candidate = mx.split(Wh, [self._rows], axis=0)
        self._stream = stream

    def __call__(
        self, z: mx.array, starts: States, transition: Transition
    ) -> tuple[mx.array, ...]:
        """Return the state after a step, from the one before and the step's input."""
        a, n = mx.split(z, [self._rows], axis=-1)
        h = starts[0]
        if h is not None:
            a = transition.pre_activation(h, self._gates, a, self._stream)
        r, keeps = mx.split(sigmoid(transition.given(a)), 2, axis=-1)
        (q,) = transition.present(starts, r)
        if h is not None:
            n = transition.pre_activation(r * q, self._candidate, n, self._stream)
        n = mx.tanh(transition.given(n))
        return ((1 - keeps) * n + keeps * q,)


def _refuse(returned: str, rule: str, error: type[Exception] = ValueError) -> NoReturn:
    raise error(f"nonlinearity returned {returned}, but must return {rule}")
