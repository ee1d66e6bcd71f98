"""Which path a call takes, decided here and nowhere else."""

import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import mlx.core as mx
from mlx.nn.layers import activations
from mlx.nn.layers.base import Module
from mlx.nn.layers.linear import Identity
from mlx.utils import tree_flatten

from mlx_recurrent import _native
from mlx_recurrent.functional.cells import Cell, DeclaredCell, sigmoid
from mlx_recurrent.functional.devices import StreamOrDevice, on_cpu

Nonlinearity: TypeAlias = Callable[[mx.array], mx.array]

# How many exporting() the present context is inside of.
_exporting: ContextVar[int] = ContextVar("mlx_recurrent.exporting", default=0)

# MLX's Linux wheel multiplies with reference BLAS; elsewhere its own product is fast.
SLOW_MLX_PRODUCT = sys.platform.startswith("linux")


@dataclass(frozen=True, slots=True)
class Choice:
    """The path of a call.

    Args:
        activation (str or Traced or CellProgram, optional): The kernel's name for the
            nonlinearity or the cell, or what the kernel was told of a nonlinearity or
            of a declared cell. ``None`` means the composed path.
        nonlinearity (callable, optional): What the composed path calls. ``None`` where
            the cell says it.
        obstacle (str): Why no kernel is used, where that does not follow from the
            nonlinearity. Default: ``""``.
        found (str): Why the kernels cannot run the nonlinearity; of a declared cell
            that they run its name. Default: ``""``.
    """

    activation: "str | _native.Traced | _native.CellProgram | None"
    nonlinearity: Nonlinearity | None
    obstacle: str = ""
    found: str = ""

    @property
    def path(self) -> Literal["native", "traced", "composed"]:
        """The name of the path."""
        if self.activation is None:
            return "composed"
        return "native" if isinstance(self.activation, str) else "traced"

    @property
    def readable(self) -> bool:
        """Whether reading the nonlinearity may lead to the traced path."""
        return self.activation is None and not self.obstacle

    @property
    def reason(self) -> str:
        """Why this path was chosen."""
        if isinstance(self.activation, str):
            name = self.activation
            if self.nonlinearity is None:
                name = f"the {name.upper()} cell"
            return f"{name} is built into the native kernel"
        if self.activation is None:
            return self.obstacle or _why_not(self.nonlinearity, self.found)
        operations = ", ".join(self.activation.operations) or "none"
        what = f"the cell {self.found}"
        if not isinstance(self.activation, _native.CellProgram):
            what = f"the nonlinearity {_name(self.nonlinearity)}"
        return f"{what} is made of elementwise operations ({operations})"

    def composed(self, obstacle: str) -> "Choice":
        """Return the composed path for the same nonlinearity."""
        function = sigmoid if self.activation == "sigmoid" else self.nonlinearity
        both = " and ".join(why for why in (self.obstacle, obstacle) if why)
        return Choice(None, function, both)

    def after_reading(self, function: "_native.Traced | None", found: str) -> "Choice":
        """Return the path after the nonlinearity was read, with what was found."""
        return Choice(function, self.nonlinearity, found=found)

    def after_examining(
        self, cell: DeclaredCell, found: "_native.CellProgram | str"
    ) -> "Choice":
        """Return the path after a declared cell was looked at, with what was found."""
        if isinstance(found, str):
            return self.composed(f"the cell {cell.name} {found}")
        return self if self.obstacle else Choice(found, None, found=cell.name)


_TANH = Choice("tanh", mx.tanh)

# MLX's functions may be compiled objects without a useful name or hash: what they are
# is known by identity alone, and these references keep the identities from reuse.
_FUNCTIONS = {
    id(choice.nonlinearity): choice
    for choice in (
        _TANH,
        Choice("tanh", activations.tanh),
        Choice("sigmoid", sigmoid),
        Choice("sigmoid", mx.sigmoid),
        Choice("sigmoid", activations.sigmoid),
        Choice("relu", activations.relu),
    )
}
# A subclass may do anything: only the exact types count.
_MODULES: dict[type, Choice] = {
    activations.Tanh: Choice("tanh", activations.tanh),
    activations.Sigmoid: Choice("sigmoid", activations.sigmoid),
    activations.ReLU: Choice("relu", activations.relu),
    Identity: Choice("identity", Identity()),
}


class exporting:
    """Run every layer inside the context in plain MLX operations.

    MLX can write only its own operations to a file, so trace a function inside this
    context to export it.

    All layers and functions of this package then take the composed path, with MLX's own
    products; the values agree within rounding. The graph holds every step, so a file
    made with ``shapeless=True`` cannot be called. The context is that of
    :mod:`contextvars`: other threads and tasks are not inside it. It can be entered
    again at any depth.

    What :func:`mlx.core.compile` has traced inside, outside of an export, stays slow.

    Example:
        >>> import mlx.core as mx
        >>> from mlx_recurrent import RNN, exporting
        >>> layer, x = RNN(3, 8), mx.zeros((2, 5, 3))
        >>> with exporting():
        ...     mx.export_function("layer.mlxfn", layer, x)
        >>> mx.import_function("layer.mlxfn")(x)[0].shape
        (2, 5, 8)
    """

    def __enter__(self) -> None:
        _exporting.set(_exporting.get() + 1)

    def __exit__(self, *raised: object) -> None:
        _exporting.set(_exporting.get() - 1)


def choose(nonlinearity: Nonlinearity | None) -> Choice:
    """Return the path for a nonlinearity on the CPU.

    Args:
        nonlinearity (callable, optional): The nonlinearity. ``None`` is tanh.
    """
    if nonlinearity is None:
        choice = _TANH
    else:
        choice = recognise(nonlinearity) or Choice(None, nonlinearity)
    return _unless_exporting(choice)


def choose_cell(cell: Cell) -> Choice:
    """Return the path for a cell with a function of its own on the CPU.

    Args:
        cell (Cell): The cell.
    """
    choice = Choice(cell.name, None)
    if isinstance(cell, DeclaredCell):  # until it is looked at
        choice = Choice(None, None)
    elif cell.step is None:
        choice = choice.composed(
            "reset_after is False: the reset comes before the product, which is then a "
            "second one at each step"
        )
    return _unless_exporting(choice)


def on_gpu(choice: Choice) -> Choice:
    """Return the path of a call on the GPU that would take another on the CPU."""
    return choice.composed(
        "the call is on the GPU, where the native kernels, written for the CPU, cannot "
        'run (stream=mx.cpu and the placement "cpu" select the CPU)'
    )


def _unless_exporting(choice: Choice) -> Choice:
    if _exporting.get():
        choice = choice.composed(
            "the call is inside mlx_recurrent.exporting(), where all is made of MLX's "
            "own operations"
        )
    return choice


def native(nonlinearity: Nonlinearity | None) -> str | None:
    """Return the kernel's name for a nonlinearity where a call runs it, else ``None``.

    What :func:`choose` finds, in less time.
    """
    choice = _TANH if nonlinearity is None else recognise(nonlinearity)
    if choice is None or not has_kernels(None):
        return None
    return choice.activation if isinstance(choice.activation, str) else None


def product(
    x: mx.array, w: mx.array, c: mx.array | None, stream: StreamOrDevice
) -> mx.array:
    """Return ``x w^T + c`` from the faster of this package's product and MLX's.

    Args:
        x (array): ``(..., K)``.
        w (array): ``(M, K)``, of the dtype of ``x``.
        c (array, optional): Of the dtype of ``x``, broadcast to ``(..., M)``.
        stream (Stream or Device, optional): The stream. ``None`` is the default one.
    """
    if has_own_product(stream):
        if c is None or c.shape == w.shape[:1]:
            return _native.matmul(x, w, c, stream)
        y = _native.matmul(x, w, None, stream)
        if y.size == 0:  # MLX's sum of an empty cotangent may not end
            c = _native.widen(c, 0, y, 0, stream)
        return mx.add(y, c, stream=stream)
    _native.expect_operands([x, w] if c is None else [x, w, c], stream)
    transposed = mx.transpose(w, stream=stream)
    if c is None:
        return mx.matmul(x, transposed, stream=stream)
    if w.size == 0:  # mx.addmm refuses an empty sum
        return mx.add(mx.matmul(x, transposed, stream=stream), c, stream=stream)
    return mx.addmm(c, x, transposed, stream=stream)


def has_own_product(stream: StreamOrDevice, *operands: Any) -> bool:
    """Return whether this package's matrix product is the one to use on a stream.

    Inside :class:`exporting` it never is.

    Args:
        stream (Stream or Device, optional): The stream. ``None`` is the default one.
        operands (array, optional): What is multiplied and added. MLX's product takes
            complex numbers, this package's does not.
    """
    return SLOW_MLX_PRODUCT and has_kernels(stream) and are_real(*operands)


def are_real(*operands: Any) -> bool:
    """Return whether none is an array of complex numbers."""
    return not any(
        isinstance(a, mx.array) and a.dtype == mx.complex64 for a in operands
    )


def has_kernels(stream: StreamOrDevice) -> bool:
    """Return whether this package's primitives may be used on a stream.

    Args:
        stream (Stream or Device, optional): The stream. ``None`` is the default one.
    """
    return not _exporting.get() and on_cpu(stream)


def recognise(nonlinearity: Nonlinearity) -> Choice | None:
    """Return the native path for a nonlinearity that the kernels have built in."""
    choice = _FUNCTIONS.get(id(nonlinearity))
    return _MODULES.get(type(nonlinearity)) if choice is None else choice


def _name(nonlinearity: Any) -> str:
    # Not its repr, which may be long, and evaluates arrays that it holds.
    return getattr(nonlinearity, "__name__", type(nonlinearity).__name__)


def _why_not(nonlinearity: Any, found: str) -> str:
    if isinstance(nonlinearity, Module):
        tree = nonlinearity.parameters()  # type: ignore[no-untyped-call]
        parameters = list(dict(tree_flatten(tree)))
        if parameters:
            listed = ", ".join(parameters[:4]) + (", ..." if parameters[4:] else "")
            found = f"is a module with parameters ({listed})"
    return f"the nonlinearity {_name(nonlinearity)} {found}"
