"""The cells: their weights and states by name, and what one step makes of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import mlx.core as mx

from mlx_recurrent import _native

# The states of a cell, each ``(..., H)``. ``None`` is zero, and makes no product.
States: TypeAlias = tuple[mx.array | None, ...]
# What a learned vector starts from: a number, or a function of the shape.
Start: TypeAlias = float | Callable[[tuple[int, ...]], mx.array]


@dataclass(frozen=True)
class Cell:
    """A cell of recurrent layers.

    A unit has several pre-activations, one for each name of the first three arguments.
    The rows of the weights belong to them: those of ``Wx`` to ``gates`` and then
    ``input_gates``, those of ``Wh`` to ``gates`` and then ``hidden_gates``.

    Args:
        name (str): The cell's name, which is the kernels'.
        gates (tuple(str)): Pre-activations of the input and of the state together.
        states (tuple(str)): What the user calls the states. The first one is the
            output, and what ``Wh`` multiplies.
        Wx (str): What the user calls the input weight.
        Wh (str): The recurrent weight.
        bias (str): The bias.
        hidden_bias (str): That of ``hidden_gates``. Default: ``""``, none.
        input_gates (tuple(str)): Pre-activations of the input alone. Default: ``()``.
        hidden_gates (tuple(str)): Pre-activations of the state alone. Default: ``()``.
        step (callable, optional): One step, in MLX's operations: from pre-activations
            ``(..., H)``, of ``gates``, ``input_gates`` and ``hidden_gates``, the states
            and the parameters, to the new states. ``None`` where a call says what is
            done. Default: ``None``.
        parameters (tuple(str)): Learned vectors ``(H,)`` that a step has beside these.
            Default: ``()``.
        outputs (int): Of how many states a plain call returns every step.
            Default: ``1``.
    """

    name: str
    gates: tuple[str, ...]
    states: tuple[str, ...]
    Wx: str = "Wx"
    Wh: str = "Wh"
    bias: str = "b"
    hidden_bias: str = ""
    input_gates: tuple[str, ...] = ()
    hidden_gates: tuple[str, ...] = ()
    step: Callable[..., tuple[mx.array, ...]] | None = None
    parameters: tuple[str, ...] = ()
    outputs: int = 1

    @property
    def kernel(self) -> str:
        """The name by which the kernels know its shape."""
        return "tanh" if self is ELMAN else self.name

    @property
    def input_rows(self) -> int:
        """How many times ``H`` rows ``Wx`` has."""
        return len(self.gates) + len(self.input_gates)

    @property
    def hidden_rows(self) -> int:
        """How many times ``H`` rows ``Wh`` has; 0 where there is none."""
        return len(self.gates) + len(self.hidden_gates)

    @property
    def starts(self) -> tuple[str, ...]:
        """What the user calls the states that episodes start from."""
        return tuple(f"{name}0" for name in self.states)


@dataclass(frozen=True, eq=False, kw_only=True)
class DeclaredCell(Cell):
    """A cell that a user has declared: :func:`mlx_recurrent.cell` makes one.

    It can be called as the function that it was made of.

    Args:
        function (callable): The function of one step.
        initial (dict): What the parameters start from, by name.
        found (dict): What looking at the function for a dtype and a number of units
            gave: what the kernels run, or why they cannot.
    """

    function: Callable[..., Any]
    initial: Mapping[str, Start]
    found: "dict[tuple[mx.Dtype, int], _native.CellProgram | str]" = field(
        default_factory=dict
    )

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the function."""
        return self.function(*arguments, **keywords)

    def __repr__(self) -> str:
        return f"cell {self.name}"

    def __reduce__(self) -> str:
        # Like a function: found under its name, and shared by copies.
        return self.function.__qualname__

    @property
    def arguments(self) -> tuple[str, ...]:
        """What the function takes, in the order of :attr:`step`."""
        gates = (*self.gates, *self.input_gates, *self.hidden_gates)
        return (*gates, *self.states, *self.parameters)


def sigmoid(a: mx.array) -> mx.array:
    """Return the sigmoid in the precision of the dtype."""
    # MLX's own has the precision of float32 also in float64.
    return 0.5 + 0.5 * mx.tanh(0.5 * a) if a.dtype == mx.float64 else mx.sigmoid(a)


def _gru(
    r: mx.array, z: mx.array, n: mx.array, u: mx.array, h: mx.array
) -> tuple[mx.array, ...]:
    r, z = sigmoid(r), sigmoid(z)
    return ((1 - z) * mx.tanh(n + r * u) + z * h,)


def _lstm(
    i: mx.array, f: mx.array, g: mx.array, o: mx.array, h: mx.array, c: mx.array
) -> tuple[mx.array, ...]:
    c = sigmoid(f) * c + sigmoid(i) * mx.tanh(g)
    return sigmoid(o) * mx.tanh(c), c


# Its nonlinearity is any function, which a call brings.
ELMAN = Cell("rnn", ("a",), ("hidden",), "Wxh", "Whh", "bias")
GRU = Cell(
    "gru",
    ("r", "z"),
    ("hidden",),
    hidden_bias="bhn",
    input_gates=("n",),
    hidden_gates=("u",),
    step=_gru,
)
# With the reset before the product, which is then a second one: no function of a unit's
# own pre-activations.
GRU_RESET_BEFORE = Cell("gru", ("r", "z", "n"), ("hidden",))
LSTM = Cell(
    "lstm",
    ("i", "f", "g", "o"),
    ("hidden", "cell"),
    bias="bias",
    step=_lstm,
    outputs=2,
)
