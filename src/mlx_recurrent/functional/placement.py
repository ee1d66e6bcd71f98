"""Where a call runs, decided here and nowhere else. How is decided in ``dispatch``."""

import os
from contextvars import ContextVar
from typing import Literal, NamedTuple, TypeAlias, cast

from mlx_recurrent.functional.devices import Machine, StreamOrDevice, here
from mlx_recurrent.functional.judging import shown, type_name

Mode: TypeAlias = Literal["auto", "stay", "cpu"]
_MODES = ("auto", "stay", "cpu")
_VARIABLE = "MLX_RECURRENT_PLACEMENT"

# What a call is taken to cost, in microseconds: the same for every machine, so that the
# same shapes always run in the same place. Nothing of it was measured by this project.
#
# From the GPU to the CPU and back (MLX issue 4438).
CROSSING = 180.0
# A step in MLX's operations on the GPU, by its dispatches: 34 to 58 for an LSTM (MLX
# pull request 1419), 40 and 47 for an LSTM and a GRU (3089), about eleven dispatches
# each, as a cell of a user's own may have. An Elman cell has two or three.
GPU_STEP = {"rnn": 10.0}
GPU_STEP_GATED = 45.0
# Multiplications and additions in a microsecond: of a small GPU (an M1's peak is
# 2.6e6), and of some fast cores on wide batches, two thirds of 100e3 each.
GPU_RATE = 2e6
CPU_RATE = 2e5
# Fewer rows than this use the cores only in part: a row reads the weights for itself.
CPU_ROWS = 4
# A step of the kernels beside its arithmetic.
CPU_STEP = 0.5


class Work(NamedTuple):
    """What a call computes.

    Args:
        cell (str): The name of its cell.
        N (int): Rows.
        L (int): Steps.
        D (int): Input features.
        H (int): Hidden features.
        slabs (int): Rows of ``Wx`` and ``Wh`` for each hidden feature.
    """

    cell: str
    N: int
    L: int
    D: int
    H: int
    slabs: int


class Costs(NamedTuple):
    """What a call is taken to cost, in microseconds: on the CPU with the crossing."""

    cpu: float
    gpu: float


class Place(NamedTuple):
    """Where a call runs.

    Args:
        device (str): ``"cpu"`` or ``"gpu"``.
        stream (Stream or Device, optional): ``None`` is the default stream.
        reason (str): Why there.
        otherwise (Place, optional): Where it runs if no kernel turns out to be able to
            run its nonlinearity. ``None`` is here too.
    """

    device: Literal["cpu", "gpu"]
    stream: StreamOrDevice
    reason: str
    otherwise: "Place | None" = None


def costs(work: Work) -> Costs:
    """Return what a call is taken to cost.

    Its derivative has about twice the dispatches and twice the arithmetic, so that
    training costs three times as much in either place: it makes no difference.
    """
    cell, N, L, D, H, slabs = work
    arithmetic = 2.0 * N * L * slabs * H * (D + H)
    used = min(1.0, N / CPU_ROWS) if N else 1.0
    cpu = CROSSING + L * CPU_STEP + arithmetic / (CPU_RATE * used)
    return Costs(cpu, L * GPU_STEP.get(cell, GPU_STEP_GATED) + arithmetic / GPU_RATE)


def decide(
    work: Work, kernels: bool, stream: StreamOrDevice, mode: Mode, machine: Machine
) -> Place:
    """Return where a call runs.

    Args:
        work (Work): What it computes.
        kernels (bool): Whether the CPU's kernels can run it, as far as is known.
        stream (Stream or Device, optional): What the call was given.
        mode (str): The placement.
        machine (Machine): The machine.
    """
    given = "its default" if stream is None else "the stream that was given"
    if machine.on_cpu(stream):
        return Place("cpu", stream, f"{given} is on the CPU")
    stays = Place("gpu", stream, f"{given} is on the GPU")
    cpu, gpu = costs(work)
    estimate = f"about {_time(cpu)} on the CPU, crossing there and back included"
    estimate += f", {_time(gpu)} on the GPU"
    movable = kernels and machine.gpu == "metal" and machine.unified and work.L > 1
    faster = movable and cpu < gpu
    if stream is not None:
        return stays._replace(reason=stays.reason + _hint(faster, estimate))
    if mode == "cpu":
        return Place("cpu", machine.cpu, 'the placement is "cpu"')
    if mode == "stay":
        reason = 'the placement is "stay"' + _hint(faster, estimate)
        return stays._replace(reason=reason)
    if machine.gpu != "metal" or not machine.unified:
        return stays._replace(reason="nothing moves from a GPU that is not Apple's")
    if not kernels:
        return stays._replace(reason="no kernel of the CPU can run the call")
    if work.L < 2:
        reason = "a single step is not worth the way to the CPU, unless all moves"
        return stays._replace(reason=reason)
    if not faster:
        return stays._replace(reason=f"by the table of costs it takes {estimate}")
    unread = stays._replace(reason="no kernel of the CPU can run the nonlinearity")
    reason = f"by the table of costs it takes {estimate}"
    return Place("cpu", machine.cpu, reason, unread)


def place(work: Work, kernels: bool, stream: StreamOrDevice) -> Place:
    """Return where a call runs on this machine, in the present placement."""
    return decide(work, kernels, stream, _present(), here())


def moved(stream: StreamOrDevice) -> StreamOrDevice:
    """Return the stream of a call that moves only where all do, as a product."""
    machine = here()
    if stream is None and _present() == "cpu" and not machine.on_cpu(None):
        return machine.cpu
    return stream


def set_placement(mode: Mode) -> None:
    """Set where calls run whose stream is on a GPU, in all threads.

    Args:
        mode (str): ``"auto"``, as at first: on an Apple GPU, calls that are too small
            to be worth its dispatches run natively on the CPU, by a rule of shapes
            alone. ``"stay"``: no call is moved. ``"cpu"``: all calls of this package
            run on the CPU. An explicit ``stream=`` is obeyed in each.

    Raises:
        TypeError: If ``mode`` is not a string.
        ValueError: If it is another string.

    Example:
        >>> from mlx_recurrent import set_placement
        >>> set_placement("stay")
        >>> set_placement("auto")
    """
    global _mode
    _mode = _judged(mode)


class placement:
    """Run calls inside the context in another placement.

    The context is that of :mod:`contextvars`: other threads and tasks are not inside
    it. What :func:`mlx.core.compile` has traced inside keeps its place.

    Args:
        mode (str): As for :func:`set_placement`.

    Raises:
        TypeError: If ``mode`` is not a string.
        ValueError: If it is none of these.

    Example:
        >>> import mlx.core as mx
        >>> from mlx_recurrent import RNN, placement
        >>> with placement("cpu"):
        ...     RNN(3, 8).plan(mx.zeros((5, 3))).place
        'cpu'
    """

    def __init__(self, mode: Mode) -> None:
        self._mode = _judged(mode)
        self._before: list[Mode | None] = []

    def __enter__(self) -> None:
        self._before.append(_inside.get())
        _inside.set(self._mode)

    def __exit__(self, *raised: object) -> None:
        _inside.set(self._before.pop())


def _judged(mode: object, name: str = "mode") -> Mode:
    if not isinstance(mode, str):
        raise TypeError(f"{name} must be a string, but is {type_name(mode)}")
    if mode not in _MODES:
        raise ValueError(
            f'{name} must be "auto", "stay" or "cpu", but is {shown(mode)}'
        )
    return cast(Mode, mode)


def _at_first() -> Mode:
    try:
        name = f"the environment variable {_VARIABLE}"
        return _judged(os.environ.get(_VARIABLE) or "auto", name)
    except ValueError as error:
        raise ImportError(str(error)) from None


_mode: Mode = _at_first()
_inside: ContextVar[Mode | None] = ContextVar("mlx_recurrent.placement", default=None)


def _present() -> Mode:
    return _inside.get() or _mode


def _hint(faster: bool, estimate: str) -> str:
    return f" (by the table of costs it takes {estimate})" if faster else ""


def _time(microseconds: float) -> str:
    if microseconds < 1000:
        return f"{microseconds:.0f} us"
    return f"{microseconds / 1000:.3g} ms"
