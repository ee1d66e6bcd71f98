"""A judged call of the recurrence, run on its path."""

from contextlib import nullcontext
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten

from mlx_recurrent import _native
from mlx_recurrent.functional import composed, dispatch
from mlx_recurrent.functional.cells import ELMAN
from mlx_recurrent.functional.devices import StreamOrDevice
from mlx_recurrent.functional.dispatch import Choice
from mlx_recurrent.functional.judging import FLOATING, ReturnState
from mlx_recurrent.functional.masks import draw_key
from mlx_recurrent.functional.operands import (
    Judged,
    Operands,
    bind,
    project,
    starts,
    without_rows,
)
from mlx_recurrent.functional.options import BoundOptions
from mlx_recurrent.functional.steps import step_of
from mlx_recurrent.functional.tracing import trace
from mlx_recurrent.functional.transition import inputs
from mlx_recurrent.functional.values import as_dtype


def run(call: Judged, return_state: ReturnState) -> Any:
    """Return the outputs of a call, the state after it, or both.

    Of a cell with several outputs all of them, a tuple; of one with several states the
    tuple of those after the last step.
    """
    stream = call.place.stream
    options = bound_options(call, stream)
    activation = call.choice.activation
    operands: Operands | None = None
    begun: list[mx.array] = []
    if activation is not None:
        operands = bind(call, stream)
    elif call.choice.readable:
        choice, operands, begun = read(call)
        activation = choice.activation
        if activation is None and call.place.otherwise:
            stream = call.place.otherwise.stream
    if activation is None:
        # With optional terms the first steps are others than those that were read.
        begun = begun if options is None else []
        return _run_composed(call, options, begun, return_state, stream)
    assert operands is not None  # for the type checker: there is an activation
    if operands.Whh is None:
        operands.Whh = without_rows(call.sequence.H, call.dtype, stream)
    result = _native.recurrence(operands, activation, options, return_state, stream)
    cell = call.cell
    if return_state is True and len(cell.states) > 1:
        outputs, *states = result
        return outputs, tuple(states)
    if return_state is False and cell.outputs < len(cell.states):
        return result[: cell.outputs] if cell.outputs > 1 else result[0]
    return result


def bound_options(call: Judged, stream: StreamOrDevice) -> BoundOptions | None:
    """Return the options as the recurrence takes them, their masks' key drawn."""
    if call.options is None:
        return None
    options = call.options.bind(call.sequence.H, call.dtype, stream)
    if options is not None and options.are_random:
        options = options._replace(key=draw_key())
    return options


def read(call: Judged) -> tuple[Choice, Operands | None, list[mx.array]]:
    """Read the nonlinearity; return the path, and its calls for the first steps."""
    choice, place = call.choice, call.place
    if call.sequence.x.shape[-2] == 0:
        return choice.after_reading(None, "is not called for no steps"), None, []
    if mx.result_type(*call.sequence.operands.values()) != call.dtype:
        return choice.after_reading(None, "is called with several dtypes"), None, []
    operands = bind(call, place.stream)
    assert choice.nonlinearity is not None  # for the type checker: it is readable
    own = (place.otherwise or place).stream
    function, obstacle, begun = trace(choice.nonlinearity, operands, place.stream, own)
    return choice.after_reading(function, obstacle), operands, begun


def _run_composed(
    call: Judged,
    options: BoundOptions | None,
    begun: list[mx.array],
    return_state: ReturnState,
    stream: StreamOrDevice,
) -> Any:
    _expect(call, options, stream)
    # A callable is given, as in MLX's layer, what its own operands promote to.
    operands = bind(call, stream) if call.cell is not ELMAN else _unbound(call, stream)
    x, Wx, bias = operands.x, operands.Wxh, operands.bias
    states = operands.states
    if options is not None:
        projected = mx.result_type(*(a for a in (x, Wx, bias) if a is not None))
        with nullcontext() if stream is None else mx.stream(stream):
            x = inputs(x, options, call.lead, projected)
    if Wx is not None:
        z = project(x, Wx, bias, stream)
    else:
        z = x if x.dtype in FLOATING else as_dtype(x, call.dtype, stream)
    if z.shape[-2] == 0:
        z = as_dtype(z, call.dtype, stream)
        if call.cell is not ELMAN:
            z = z[..., : call.sequence.H]
        several = [_run_no_steps(z, state, stream) for state in states]
        outputs, last = (tuple(each) for each in zip(*several, strict=True))
        outputs = outputs[: call.cell.outputs]
    else:
        wanted = {False: call.cell.outputs, True: 1, "only": 0}[return_state]
        with nullcontext() if stream is None else mx.stream(stream):
            step, z = step_of(
                call.cell,
                call.choice.nonlinearity,
                operands,
                z,
                begun,
                stream,
            )
        H = call.sequence.H
        kept, last = composed.recurrence(step, z, states, H, wanted, options, stream)
        outputs = tuple(composed.stack(steps, stream) for steps in kept)
    return _returned(outputs, last, return_state)


def _returned(
    outputs: tuple[mx.array, ...], last: tuple[mx.array, ...], return_state: ReturnState
) -> Any:
    """Return what a call returns, of the states that were asked for."""
    if return_state is False:
        return outputs if len(outputs) > 1 else outputs[0]
    state = last if len(last) > 1 else last[0]
    return (outputs[0], state) if return_state is True else state


def _expect(call: Judged, options: BoundOptions | None, stream: StreamOrDevice) -> None:
    """Raise ``RuntimeError`` where operands of a call can never be there."""
    f = call.choice.nonlinearity
    own = f.parameters() if isinstance(f, Module) else {}  # type: ignore[no-untyped-call]
    own = dict(tree_flatten(own)).values()
    _, _, x, Wx, bias, _ = call.sequence
    learned = () if call.options is None else call.options.weights.values()
    weights = (Wx, bias, call.Wh, call.hidden_bias, *call.parameters)
    given = (x, *weights, *call.states, *learned, *own)
    arrays = [a for a in given if isinstance(a, mx.array)]
    arrays += [] if options is None else options.arrays
    _native.expect_operands(arrays, stream)


def _unbound(call: Judged, stream: StreamOrDevice) -> Operands:
    """Return the operands of an Elman cell, each of its own dtype."""
    _, _, x, Wxh, bias, _ = call.sequence
    return Operands(x, Wxh, bias, call.Wh, starts(call, stream))


def _run_no_steps(
    z: mx.array, hidden: mx.array | None, stream: StreamOrDevice
) -> tuple[mx.array, mx.array]:
    """Return no outputs, and the state that they leave."""
    # In a shapeless function that is called with steps later NaN shows that the
    # nonlinearity was never seen.
    outputs = mx.multiply(z, mx.nan, stream=stream)
    if hidden is not None:
        hidden = as_dtype(hidden, z.dtype, stream)
    if dispatch.has_kernels(stream):
        if hidden is not None:
            outputs = _native.widen(outputs, 2, hidden, 1, stream)
        return outputs, _native.last_step(outputs, hidden, stream)
    # The sum over no steps is zero, of the right shape.
    state = mx.sum(outputs, axis=-2, stream=stream)
    if hidden is not None:
        state = mx.add(hidden, state, stream=stream)
        shape = (*state.shape[:-1], *outputs.shape[-2:])
        outputs = mx.broadcast_to(outputs, shape, stream=stream)
    return outputs, state
