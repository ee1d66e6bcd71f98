"""What is known of the tensors of an ONNX graph with recurrent nodes.

Each is known by what became of the sequence on the way to it: its axes, by identity,
and which such nodes it went through.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from onnx import NodeProto, helper

from mlx_recurrent.interop.gates import KINDS, Kind

DIRECTIONS = ("forward", "reverse", "bidirectional")
OPERATORS = {kind.__name__: kind for kind in KINDS}
# The inputs of the operators by their places.
X, W, R, B, SEQUENCE_LENS, INITIAL_H, INITIAL_C, P = range(8)
# The states' inputs, the order of their outputs.
STATES = {INITIAL_H: "initial_h", INITIAL_C: "initial_c"}
# What a graph is followed up to, so that a small file cannot ask for much memory: the
# axes that NumPy has, and parts of inputs and states put together.
MOST_AXES = 64
MOST_PARTS = 256
WHOLE = -1


@dataclass(frozen=True, eq=False)
class Order:
    """The order of rows by their lengths, known by its identity, and what made it."""

    by: str


@dataclass(frozen=True, eq=False)
class Axis:
    """An axis, known by its identity; ``size`` is ``None`` where the graph is open.

    One that was put into an order has that, and the axis before: its ``base``.
    """

    size: int | None
    kind: str = "given"
    order: Order | None = None
    base: "Axis | None" = None


@dataclass(frozen=True, eq=False)
class Run:
    """An RNN, GRU or LSTM node.

    Args:
        node (NodeProto): The node.
        inputs (list): What is known of its inputs, eight of them.
        time (Axis): The axis of time.
        batch (Axis): The axis of rows.
        obstacle (str): Why its input is none that a layer could have. Default: ``""``.
    """

    node: NodeProto
    inputs: "Sequence[Value]"
    time: Axis
    batch: Axis
    obstacle: str = ""

    @property
    def label(self) -> str:
        return label_of(self.node)

    @property
    def named(self) -> str:
        return f"the {self.node.op_type} node {self.label!r}"

    @property
    def kind(self) -> Kind:
        return OPERATORS[self.node.op_type]

    @property
    def states(self) -> tuple[int, ...]:
        """The places of the inputs of its states."""
        return tuple(STATES)[: len(self.kind._start_names())]

    @property
    def attributes(self) -> dict[str, Any]:
        return attributes_of(self.node)

    @property
    def direction(self) -> str:
        return str(
            self.attributes.get("direction", b"forward").decode("utf-8", "replace")
        )

    @property
    def directions(self) -> int:
        return 2 if self.direction == "bidirectional" else 1

    @property
    def x(self) -> "Expression":
        x = self.inputs[0]
        return x.of if isinstance(x, Tracked) and not self.obstacle else Source("")


@dataclass(frozen=True)
class Source:
    """An input of the graph, and whether it holds integers."""

    name: str
    axes: tuple[Axis, ...] = ()
    integers: bool = False


@dataclass(frozen=True)
class Output:
    """What a node gives for each step."""

    run: Run
    axes: tuple[Axis, ...] = ()


@dataclass(frozen=True)
class Last:
    """The last state that a node gives, by the place of the input of the first."""

    run: Run
    axes: tuple[Axis, ...]
    state: int = INITIAL_H


@dataclass(frozen=True)
class Part:
    """An entry of an axis; ``WHOLE`` is no axis, and all that there is."""

    of: Source | Output | Last
    axis: int
    index: int


@dataclass(frozen=True)
class Parts:
    """Parts, along the axis of the kind ``parts`` if there are more than one."""

    entries: tuple[Part, ...]
    by: str


@dataclass(frozen=True)
class Joined:
    """What was made of two directions, of one node or of two."""

    merge: str
    forward: Run
    backward: Run


@dataclass(frozen=True)
class Residual:
    """A layer's outputs and its input, added."""

    outputs: "Expression"
    x: "Expression"


Expression: TypeAlias = Source | Output | Last | Parts | Joined | Residual


@dataclass(frozen=True)
class Padding:
    """What is behind the rows' lengths.

    Args:
        lengths (str): The input of the graph that holds them.
        time (Axis): The axis of time.
        rows (Axis): The axis of rows.
    """

    lengths: str
    time: Axis
    rows: Axis


@dataclass(frozen=True)
class Tracked:
    """A sequence.

    Args:
        axes (tuple(Axis)): Its axes.
        of (Expression): Where it comes from.
        masked (Padding, optional): What was set to zero. Default: ``None``.
    """

    axes: tuple[Axis, ...]
    of: Expression
    masked: Padding | None = None


@dataclass(frozen=True, eq=False)
class Fixed:
    """A constant, loaded when it is looked at."""

    load: Callable[[], np.ndarray]

    @cached_property
    def array(self) -> np.ndarray:
        return self.load()


@dataclass(frozen=True)
class Dims:
    """Sizes of axes as numbers of the graph, a vector or a scalar."""

    entries: tuple[int | Axis, ...]
    scalar: bool = False


@dataclass(frozen=True, eq=False)
class Spread:
    """A constant, or the size of an axis, repeated along axes of any size."""

    of: "Fixed | Axis"
    sizes: tuple[int | Axis, ...] = ()


@dataclass(frozen=True)
class Counted:
    """0, 1, ... along one axis, beside it axes of size one."""

    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Mask:
    """Which steps are not padding: the axes of time and of rows, and some of one."""

    axes: tuple[Axis, ...]
    padding: Padding


@dataclass(frozen=True)
class Permutation:
    """The indices that put the rows of an axis into an order, or back."""

    order: Order
    axis: Axis
    inverse: bool = False


@dataclass(frozen=True)
class Opaque:
    """What no layer does, where it was done, and whether that says of which input."""

    why: str
    has_origin: bool = True


Value: TypeAlias = (
    Tracked | Fixed | Dims | Spread | Counted | Mask | Permutation | Opaque | None
)


def label_of(node: NodeProto) -> str:
    return str(node.name or next((name for name in node.output if name), node.op_type))


def attributes_of(node: NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def why_of(value: Value) -> str:
    if isinstance(value, Opaque):
        return value.why
    if isinstance(value, Tracked):
        by = value.of.by if isinstance(value.of, Parts) else ""
        return f"is {by and 'made of '}{origins_of(value)}{by}"
    if value is None:
        return "is missing"
    return "is a constant" if isinstance(value, (Fixed, Spread)) else "is computed"


def origins_of(*values: Value) -> str:
    """Return what values come from, in words."""
    found = []
    for of in (value.of for value in values if isinstance(value, Tracked)):
        for origin in [e.of for e in of.entries] if isinstance(of, Parts) else [of]:
            if isinstance(origin, Source):
                found.append(f"the input {origin.name!r}")
            elif isinstance(origin, Last):
                found.append(f"the last state of {origin.run.label!r}")
            elif (run := last_run(origin)) is not None:
                found.append(f"the outputs of {run.label!r}")
    return " and ".join(dict.fromkeys(found))


def by_node(node: NodeProto) -> str:
    return f" by the node {label_of(node)!r} ({node.op_type})"


def whole_input_of(value: Value) -> str:
    """Return the input that a value is, all of it in its order, or an empty string."""
    if isinstance(value, Tracked) and isinstance(value.of, Source):
        return value.of.name
    return ""


def padding_of(run: Run) -> Padding:
    """Return what a node leaves out by its lengths."""
    return Padding(whole_input_of(run.inputs[SEQUENCE_LENS]), run.time, run.batch)


def last_run(of: Expression) -> Run | None:
    if isinstance(of, Residual):
        return last_run(of.outputs)
    if isinstance(of, Joined):
        return of.forward
    if isinstance(of, Parts):
        return last_run(of.entries[0].of)
    return of.run if isinstance(of, Output) else None
