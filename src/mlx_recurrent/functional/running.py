"""A judged call of the recurrence, run on its path."""

from contextlib import nullcontext

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten

from mlx_recurrent import _native
from mlx_recurrent.functional import composed, dispatch
from mlx_recurrent.functional.dispatch import Choice, StreamOrDevice
from mlx_recurrent.functional.judging import FLOATING, ReturnState
from mlx_recurrent.functional.masks import draw_key
from mlx_recurrent.functional.operands import Judged, Operands, bind, project, start
from mlx_recurrent.functional.options import BoundOptions
from mlx_recurrent.functional.tracing import trace
from mlx_recurrent.functional.transition import inputs
from mlx_recurrent.functional.values import as_dtype


def run(
    call: Judged, return_state: ReturnState, stream: StreamOrDevice
) -> mx.array | tuple[mx.array, mx.array]:
    """Return the outputs of a call, the state after it, or both."""
    options = bound_options(call, stream)
    activation = call.choice.activation
    operands: Operands | None = None
    begun: list[mx.array] = []
    if activation is not None:
        operands = bind(call, stream)
    elif call.choice.readable:
        choice, operands, begun = read(call, stream)
        activation = choice.activation
    if activation is None:
        # With optional terms the first steps are others than those that were read.
        begun = begun if options is None else []
        return _run_composed(call, options, begun, return_state, stream)
    assert operands is not None  # for the type checker: there is an activation
    result: mx.array | tuple[mx.array, mx.array] = _native.recurrence(
        operands, activation, options, return_state, stream
    )
    return result


def bound_options(call: Judged, stream: StreamOrDevice) -> BoundOptions | None:
    """Return the options as the recurrence takes them, their masks' key drawn."""
    if call.options is None:
        return None
    options = call.options.bind(call.sequence.H, call.dtype, stream)
    if options is not None and options.are_random:
        options = options._replace(key=draw_key())
    return options


def read(
    call: Judged, stream: StreamOrDevice
) -> tuple[Choice, Operands | None, list[mx.array]]:
    """Read the nonlinearity; return the path, and its calls for the first steps."""
    choice = call.choice
    if call.sequence.x.shape[-2] == 0:
        return choice.after_reading(None, "is not called for no steps"), None, []
    if mx.result_type(*call.sequence.operands.values()) != call.dtype:
        return choice.after_reading(None, "is called with several dtypes"), None, []
    operands = bind(call, stream)
    function, obstacle, begun = trace(choice.nonlinearity, operands, stream)
    return choice.after_reading(function, obstacle), operands, begun


def _run_composed(
    call: Judged,
    options: BoundOptions | None,
    begun: list[mx.array],
    return_state: ReturnState,
    stream: StreamOrDevice,
) -> mx.array | tuple[mx.array, mx.array]:
    _, x, Wxh, bias, _ = call.sequence
    hidden = start(call, stream)
    f = call.choice.nonlinearity
    own = f.parameters() if isinstance(f, Module) else {}  # type: ignore[no-untyped-call]
    own = dict(tree_flatten(own)).values()
    given = (x, Wxh, bias, call.Whh, hidden, *(options or ()), *own)
    _native.expect_operands([a for a in given if isinstance(a, mx.array)], stream)
    if options is not None:
        projected = mx.result_type(*call.sequence.operands.values())
        with nullcontext() if stream is None else mx.stream(stream):
            x = inputs(x, options, call.lead, projected)
    # As in MLX's layer, each step has the dtype that its own operands promote to.
    if Wxh is not None:
        z = project(x, Wxh, bias, stream)
    else:
        z = x if x.dtype in FLOATING else as_dtype(x, call.dtype, stream)
    if z.shape[-2] == 0:
        outputs, state = _run_no_steps(as_dtype(z, call.dtype, stream), hidden, stream)
    else:
        last_only = return_state == "only"
        steps, state = composed.recurrence(
            z,
            call.Whh,
            hidden,
            f,
            begun,
            last_only,
            options,
            stream,
        )
        if last_only:
            return state
        outputs = composed.stack(steps, stream)
    if return_state is False:
        return outputs
    return (outputs, state) if return_state is True else state


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
