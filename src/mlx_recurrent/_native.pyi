from collections.abc import Sequence
from typing import Any, Literal, TypedDict

import mlx.core as mx
import numpy as np

from mlx_recurrent.functional.operands import Operands
from mlx_recurrent.functional.options import BoundOptions

_Stream = mx.Stream | mx.ThreadLocalStream | mx.Device | mx.DeviceType | None

class Traced:
    """A callable as the kernels run it. Those of equal graphs are equal."""

    @property
    def operations(self) -> list[str]:
        """The names of its operations, in order."""

    verdict: bool | None
    """Whether the kernels were found to compute what MLX does; ``None`` before."""

class CellProgram:
    """A declared cell as the kernels run it."""

    @property
    def operations(self) -> list[str]:
        """The names of its operations, in order."""

    def is_of(self, results: Sequence[mx.array], arguments: Sequence[mx.array]) -> bool:
        """Return whether another call made the same of its arguments."""

class Reading:
    """What one call of a callable did, by its graph."""

    @property
    def obstacle(self) -> str:
        """Why it is no elementwise function; empty where it is one."""

    @property
    def own(self) -> bool:
        """Whether all that it used beside its argument was surely made by the call."""

    def difference(self, other: Reading) -> str:
        """Return why two calls do not show one function; empty where they do."""

    def known(self, dtype: mx.Dtype) -> Traced | None:
        """Return what was traced of an equal graph before."""

    def trace(self, dtype: mx.Dtype) -> Traced:
        """Return what the kernels run. ValueError where they have no derivative."""

class Stream:
    """A layer outside the graph: its packed weights and its state, of NumPy arrays.

    Weights are evaluated arrays of one floating dtype; ``dtype`` is that of the arrays,
    float32 for bfloat16. There is a leak and a start of each state, ``(H,)`` or
    ``None``. All are copied.
    """

    def __init__(
        self,
        *,
        Wxh: mx.array,
        bias: mx.array | None,
        Whh: mx.array,
        bhn: mx.array | None,
        parameters: mx.array | None,
        leaks: Sequence[np.ndarray | None],
        starts: Sequence[np.ndarray | None],
        cell: str | Traced | CellProgram,
        lead: Sequence[int],
        dtype: np.dtype,
    ) -> None: ...
    def run(self, x: Any, out: np.ndarray | None, reset: Any) -> Any:
        """Return the states of a step ``(lead..., D)`` or a chunk ``(lead..., L, D)``.

        Where ``reset`` holds, booleans ``(lead...)`` or ``(lead..., L)``, an episode
        starts. ``NotImplemented``, and nothing done, unless all are contiguous NumPy
        arrays of the shapes and the dtype that it takes, apart from each other, but for
        ``x`` and ``out``, which may be the same.
        """

    def state(self) -> Any:
        """Return a copy of the state, ``(lead..., H)``, or of several, a tuple."""

    def reset(self, *states: np.ndarray | None) -> None:
        """Set the states: contiguous arrays of the state's shape and dtype."""

    def keep(self) -> None:
        """Keep the state as it is now."""

    def restore(self) -> None:
        """Go back to the state that was kept."""

def read(result: mx.array, argument: mx.array) -> Reading:
    """Read the graph between a callable's argument and its result."""

def trace_cell(
    results: Sequence[mx.array],
    arguments: Sequence[mx.array],
    *,
    state_only: int,
    shared: int,
    input_only: int,
    parameters: int,
) -> CellProgram | str:
    """Return what the kernels run of a cell's function, or why they cannot.

    Args:
        results (tuple(array)): The states that it made, which are not computed.
        arguments (list(array)): Of these: pre-activations of the state alone, of both
            and of the input alone, so many of each, states and parameters.
    """

def graph_of(
    results: Sequence[mx.array], arguments: Sequence[mx.array]
) -> tuple[bool, dict[int, tuple[tuple[int, ...], mx.Dtype]]]:
    """Return whether arguments were evaluated, and of what arrays results were made.

    The shape and the dtype of each, by its identity, without the arguments.
    """

def operations_of(
    results: Sequence[mx.array], arguments: Sequence[mx.array]
) -> set[str]:
    """Return the names of MLX's primitives that results were made of."""

def pre_activation(
    operands: Operands, previous: mx.array | None, t: int, stream: _Stream
) -> tuple[mx.array, mx.array]:
    """Return ``Wxh x_t + bias + Whh previous``, ``(..., H)``, as two objects."""

def replay(a: mx.array, function: Traced) -> mx.array:
    """Return the function of each element, made of MLX's operations."""

def pointwise(a: mx.array, function: Traced, stream: _Stream) -> mx.array:
    """Return the function of each element."""

class _Partition(TypedDict):
    isa: str
    threads: int
    split: Literal["none", "batch", "hidden"]
    by_blas: list[str]

def matmul(
    x: mx.array,
    w: mx.array,
    bias: mx.array | None,
    stream: mx.Stream | mx.ThreadLocalStream | mx.Device | mx.DeviceType | None,
) -> mx.array:
    """Return ``x w^T + bias`` for ``x (..., K)``, ``w (M, K)`` and ``bias (M,)``.

    All operands have one floating dtype; any strides; a CPU stream.
    """

def linear_scan(
    *,
    s: Sequence[mx.array | None],
    V: mx.array,
    slabs: int,
    A: Sequence[tuple[int, int, mx.array | None]],
    B: Sequence[tuple[int, int, mx.array | None]],
    gamma: mx.array | None,
    hidden: Sequence[mx.array | None],
    hidden0: Sequence[mx.array | None],
    lengths: mx.array | None,
    reset: mx.array | None,
    reverse: bool,
    truncate_every: int,
    transposed: bool,
    stream: _Stream,
) -> list[mx.array]:
    """Return the states of the linear recurrence that derivatives are made of.

    ``y_t[i] = s_t[i] + sum A_t y_{t-1}[j] + sum B_t V_k (gamma_t y_{t-1}[0])``, where
    ``A`` are paths ``(i, j, factor)``, ``B`` paths ``(i, k, factor)`` of slab k of
    ``V (slabs * H, H)``; without a factor it is one. Transposed it runs the other way.
    """

def recurrence(
    operands: Operands,
    cell: str | Traced | CellProgram,
    options: BoundOptions | None,
    return_state: bool | Literal["only"],
    stream: _Stream,
) -> Any:
    """Return the states of a recurrence.

    ``cell`` is an Elman cell's activation, ``"gru"``, ``"lstm"`` or a declared cell.
    ``states`` of the operands, and of the options ``starts``, ``leaks`` and
    ``zoneouts``, have an entry for each state. The other states of every step stand
    behind the first, and so do the last ones.

    ``x`` is ``(..., L, D)``, or ``(..., L, H)`` and already projected where ``Wxh``
    is ``None``. The states are ``(..., L, H)``; the state after the last step, ``(...,
    H)``, stands beside them or alone as ``return_state`` asks.

    Operands and options are read by the names of their attributes. All numbers have
    one floating dtype; ``hidden`` has the leading axes of ``x``; a CPU stream. All that
    differs for each row, and each weight, may have leading axes of sets, along one of
    which, ``flips``, the second half runs in the other direction.
    """

def plain_recurrence(operands: tuple[Any, ...], cell: str, return_state: Any) -> Any:
    """Return what :func:`recurrence` does, on the default stream, without options.

    ``None``, and nothing done, unless ``x``, ``Wxh``, ``bias``, ``Whh`` and ``hidden``,
    with a GRU ``bhn`` and with an LSTM ``cell`` behind them, are arrays of one floating
    dtype that fit each other as they are (biases and states or ``None``), and
    ``return_state`` is ``True`` or ``False``.
    """

def widen(
    x: mx.array, x_tail: int, like: mx.array, like_tail: int, stream: _Stream
) -> mx.array:
    """Return x with its axes before the last ``x_tail`` broadcast.

    To those of ``like`` before its last ``like_tail``, and they to them. No copy.
    """

def without_padding(x: mx.array, lengths: mx.array, stream: _Stream) -> mx.array:
    """Return ``x (..., L, D)`` with zeros past each row's length, ``int32`` ``(...)``.

    The leading axes of ``x`` broadcast to those of the lengths.
    """

def without_skipped(x: mx.array, mask: mx.array, stream: _Stream) -> mx.array:
    """Return ``x (..., L, D)`` with zeros where a mask is false, ``bool`` ``(..., L)``.

    The leading axes of ``x`` broadcast to those of the mask.
    """

def last_step(y: mx.array, otherwise: mx.array | None, stream: _Stream) -> mx.array:
    """Return the last step ``(..., H)`` of ``y (..., L, H)``.

    Where there are none, ``otherwise (..., H)``, or zero.
    """

def two_steps(first: mx.array, last: mx.array, stream: _Stream) -> mx.array:
    """Return two arrays ``(..., H)`` as a sequence ``(..., 2, H)``."""

def partition(
    N: int,
    L: int,
    D: int,
    H: int,
    dtype: mx.Dtype,
    cell: str | Traced | CellProgram = "tanh",
) -> _Partition:
    """Return how the kernels divide a call of these shapes, and which of its products
    go through a BLAS.

    ``cell`` is what :func:`recurrence` takes.
    """

def blas() -> str:
    """Return which library large float32 products go through; empty: none.

    RuntimeError where the one that was asked for cannot be used.
    """

def runs_apart(
    *, N: int, L: int, D: int, H: int, dtype: mx.Dtype, sets: int, cell: str = "tanh"
) -> bool:
    """Return whether so many calls of one shape run at the same time, one a thread."""

def expect_threads(arrays: Sequence[mx.array]) -> None:
    """Raise ``RuntimeError`` if this thread cannot compute what they are made of."""

def expect_file_readers() -> None:
    """Raise ``RuntimeError`` in a forked child where MLX cannot read files."""

def expect_after_fork(arrays: Sequence[mx.array]) -> None:
    """Raise ``RuntimeError`` in a forked child that cannot compute them.

    Of a graph the nearest 200 operations are looked at.
    """

def expect_operands(operands: Sequence[mx.array], stream: _Stream) -> None:
    """Raise ``RuntimeError`` where operands of a call on a stream can never be there.

    So it is after a fork, and where another thread made them and has not evaluated
    them.
    """

def random_key() -> mx.array:
    """Return MLX's random state of this thread; another object after each draw.

    A thread that asks here before it draws or compiles may end while Python closes
    down, which would end the process otherwise.
    """

def set_num_threads(n: int) -> None:
    """Set how many threads the kernels use."""

def get_num_threads() -> int:
    """Return how many threads the kernels use."""

def release_scratch() -> None:
    """Free the scratch memory that is kept for the next calls."""

def usable_cores() -> int:
    """Return how many cores the kernels use unless ``set_num_threads`` asks for more.

    The fast ones that this process may use, and no more than its quota has begun.
    """

def cores_by_kind() -> tuple[int, int]:
    """Return how many cores this process may use: of the fastest kind, and others."""

def cpu_quota() -> float | None:
    """Return the CPU quota of this process's control groups in cores, if any."""

def isa() -> str:
    """Return the instruction set of the kernels in use."""

def available_isas() -> str:
    """Return those of this build that this processor has, separated by commas."""

def measure_multiply_add(threads: int) -> float:
    """Return the operations a second of float32 multiply-adds on ``threads``."""

def measure_read(threads: int, bytes: int) -> float:
    """Return the bytes a second that ``threads`` read, from ``bytes`` each."""

def measure_tanh() -> float:
    """Return the seconds for one element of tanh on one thread."""

def measure_exchange() -> float:
    """Return the seconds for a cache line to another core and back, 0 without one."""
