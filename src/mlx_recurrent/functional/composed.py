"""The recurrence of any cell in MLX's operations: a matrix product and more a step."""

from collections.abc import Iterator
from contextlib import nullcontext

import mlx.core as mx

from mlx_recurrent.functional.cells import States
from mlx_recurrent.functional.devices import StreamOrDevice
from mlx_recurrent.functional.options import BoundOptions
from mlx_recurrent.functional.steps import Step
from mlx_recurrent.functional.transition import OptionsTransition, Transition

# MLX's gradient of a slice is as long as what was sliced (and a split is slices): L
# slices of one array would cost L^2. So time is taken apart, and put together, by trees
# with this many branches: few, because each level costs that many times its part.
_BRANCHES = 8


def recurrence(
    step: Step,
    z: mx.array,
    states: States,
    H: int,
    wanted: int,
    options: BoundOptions | None,
    stream: StreamOrDevice,
) -> tuple[tuple[list[mx.array], ...], tuple[mx.array, ...]]:
    """Run a cell over at least one step.

    Args:
        step (callable): One step of it.
        z (array): What it is given at each step, ``(..., L, K)``.
        states (tuple(array)): Those before the first step, ``(..., H)``, with leading
            axes that those of ``z`` broadcast to. ``None`` stands for zero.
        H (int): How many hidden features.
        wanted (int): Of how many states, from the first one, those of every step are
            wanted.
        options (BoundOptions, optional): The options. Those of the inputs are in ``z``.
        stream (Stream or Device, optional): The stream. ``None`` is the default one.

    Returns:
        tuple(tuple(list(array)), tuple(array)): Of each state that is wanted its
        outputs in the order of time; and the states after the last step. All are
        ``(..., H)`` and of one dtype.

    Raises:
        TypeError: If a nonlinearity returns something other than an array.
        ValueError: If what it returns does not fit.
    """
    outputs: tuple[list[mx.array], ...] = tuple([] for _ in range(wanted))
    dtypes: set[mx.Dtype] = set()
    # The cell's own operations belong on the stream too.
    with nullcontext() if stream is None else mx.stream(stream):
        transition = _transition(z, states, H, options)
        for z_t in _steps(z, transition.reverse, stream):
            starts = transition.enter(states)
            results = step(z_t, starts, transition)
            states, of_step = transition.leave(states, starts, results)
            dtypes.update(state.dtype for state in states if state is not None)
            for kept, output in zip(outputs, of_step, strict=False):
                kept.append(output)
    dtype = mx.result_type(*dtypes)

    def cast(a: mx.array | None) -> mx.array:
        assert a is not None  # for the type checker: there was a step
        return a if a.dtype == dtype else a.astype(dtype, stream=stream)

    for kept in outputs:
        kept[:] = map(cast, reversed(kept) if transition.reverse else kept)
    return outputs, tuple(map(cast, states))


def stack(states: list[mx.array], stream: StreamOrDevice) -> mx.array:
    """Stack the states, ``(..., H)``, of one or more steps to ``(..., L, H)``."""
    pieces = [mx.expand_dims(h, -2, stream=stream) for h in states]
    while len(pieces) > 1:
        pieces = [
            mx.concatenate(pieces[i : i + _BRANCHES], axis=-2, stream=stream)
            for i in range(0, len(pieces), _BRANCHES)
        ]
    return pieces[0]


def _transition(
    z: mx.array, states: States, H: int, options: BoundOptions | None
) -> Transition:
    if options is None:
        return Transition()
    given = next((state for state in states if state is not None), None)
    lead = z.shape[:-2] if given is None else given.shape[:-1]
    return OptionsTransition(options, lead, z.shape[-2], H, states)


def _steps(z: mx.array, reverse: bool, stream: StreamOrDevice) -> Iterator[mx.array]:
    length = z.shape[-2]
    if length == 1:
        yield mx.squeeze(z, -2, stream=stream)
        return
    size = 1
    while size * _BRANCHES < length:
        size *= _BRANCHES
    pieces = mx.split(z, range(size, length, size), axis=-2, stream=stream)
    for piece in reversed(pieces) if reverse else pieces:
        yield from _steps(piece, reverse, stream)
