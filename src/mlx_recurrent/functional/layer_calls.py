"""What a layer does with a function beside calling it on a sequence."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_recurrent import _native
from mlx_recurrent.functional.calls import (
    judge_declared,
    judge_gru,
    judge_lstm,
    judge_rnn,
)
from mlx_recurrent.functional.cells import ELMAN, GRU, LSTM, Cell, DeclaredCell
from mlx_recurrent.functional.devices import StreamOrDevice
from mlx_recurrent.functional.functions import rnn
from mlx_recurrent.functional.gated import gru, lstm
from mlx_recurrent.functional.judging import (
    ReturnState,
    judge_array,
    judge_return_state,
)
from mlx_recurrent.functional.masks import undrawn
from mlx_recurrent.functional.operands import Judged, Sequence, judge_state
from mlx_recurrent.functional.options import Values, judge_flags
from mlx_recurrent.functional.placement import moved
from mlx_recurrent.functional.plan import Plan
from mlx_recurrent.functional.running import read, run

Function = Callable[..., Any]


class _Kind(NamedTuple):
    cell: Cell
    judge: Callable[..., Judged]


_KINDS: dict[Function, _Kind] = {
    rnn: _Kind(ELMAN, judge_rnn),
    gru: _Kind(GRU, judge_gru),
    lstm: _Kind(LSTM, judge_lstm),
}


@dataclass(frozen=True)
class DeclaredFunction:
    """What runs a declared cell over a sequence.

    Args:
        cell (DeclaredCell): The cell.
    """

    cell: DeclaredCell

    def __call__(
        self,
        /,
        x: mx.array,
        *,
        return_state: ReturnState = False,
        stream: StreamOrDevice = None,
        **arguments: Any,
    ) -> Any:
        """Return the outputs, the state or states after the last step, or both.

        The arguments and what they raise are those of
        :func:`~mlx_recurrent.functional.calls.judge_declared`.
        """
        judge_return_state(return_state)
        call = judge_declared(self.cell, x, stream=stream, **arguments)
        return run(call, return_state)


def cell_of(function: Function) -> Cell:
    """Return the cell that a function runs over a sequence."""
    if isinstance(function, DeclaredFunction):
        return function.cell
    return _KINDS[function].cell


def judged(function: Function, /, *operands: Any, **arguments: Any) -> Judged:
    """Return the call of a function with these arguments, judged."""
    if isinstance(function, DeclaredFunction):
        return judge_declared(function.cell, *operands, **arguments)
    return _KINDS[function].judge(*operands, **arguments)


def step(
    function: Function,
    x: mx.array,
    states: dict[str, mx.array | None],
    reset: Values | None,
    /,
    **arguments: Any,
) -> Any:
    """Return the state ``(..., H)``, or states, after one step of a function.

    Args:
        function (callable): The function, such as :func:`rnn`.
        x (array): The input, ``(..., D)``.
        states (dict): The states before, ``(..., H)``, by name.
        reset (array, optional): Where an episode starts: booleans, of the shape of the
            leading axes.
        arguments: Other arguments of the function.
    """
    cell = cell_of(function)
    Wx, Wh = arguments[cell.Wx], arguments.get(cell.Wh)
    judge_array("x", x)
    if Wx.ndim == 2 and (not x.ndim or x.shape[-1] != Wx.shape[1]):
        raise ValueError(
            f"x must have shape (..., {Wx.shape[1]}) to fit {cell.Wx} {Wx.shape}, but "
            f"has shape {x.shape}"
        )
    if reset is not None:
        lead = x.shape[:-1]
        H = Wx.shape[0] // cell.input_rows
        sequence = Sequence(cell, "x", x, Wx, None, H)
        sizes = getattr(Wh, "shape", (0, H))
        for name, state in states.items():
            if isinstance(state, mx.array) and len(sizes) == 2:
                lead = judge_state(name, state, sequence, lead, sizes)
        reset = one_step(judge_flags("reset", reset, "x", lead, ()), -1)
    return function(
        one_step(x, -2), reset=reset, return_state="only", **states, **arguments
    )


def one_step(x: mx.array, axis: int) -> mx.array:
    """Return an array with an axis for a single step, where such a call runs."""
    return mx.expand_dims(x, axis, stream=moved(None))


def plan(
    function: Function,
    /,
    x: mx.array,
    *operands: Any,
    return_state: ReturnState = False,
    stream: StreamOrDevice = None,
    **arguments: Any,
) -> Plan:
    """Return what a function would run for the same arguments, and why.

    The arguments and what they raise are those of the function. Nothing is computed but
    what a nonlinearity that is read for the first time gives for some numbers.
    """
    call = judged(function, x, *operands, stream=stream, **arguments)
    judge_return_state(return_state)
    return plan_of(call)


def plan_of(call: Judged) -> Plan:
    """Return what a judged call would run, and why."""
    choice, place = call.choice, call.place
    if choice.readable:
        with undrawn():
            choice, _, _ = read(call)
    where: dict[str, Any] = {"place": place.device, "place_reason": place.reason}
    if choice.activation is None:
        if place.otherwise:
            where = {"place": "gpu", "place_reason": place.otherwise.reason}
        return Plan(choice.path, choice.reason, **where)
    L, D = call.sequence.x.shape[-2:]
    program = isinstance(choice.activation, _native.CellProgram)
    cell = choice.activation if program else call.cell.kernel
    parts = _native.partition(
        math.prod(call.lead), L, D, call.sequence.H, call.dtype, cell
    )
    return Plan(
        choice.path,
        choice.reason,
        parts["isa"],
        parts["threads"],
        parts["split"],
        by_blas=_through(parts["by_blas"]),
        **where,
    )


def _through(products: list[str]) -> str | None:
    if not products:
        return None
    verb = "goes" if len(products) == 1 else "go"
    return f"{' and '.join(products)} {verb} through {_native.blas()}"
