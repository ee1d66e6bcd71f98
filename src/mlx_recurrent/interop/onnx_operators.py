"""What each operator makes of the tensors that it is given.

A rule returns ``None`` for what it does not know.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import onnx
from onnx import NodeProto

from mlx_recurrent.interop.onnx_tensors import (
    DIRECTIONS,
    MOST_AXES,
    MOST_PARTS,
    Axis,
    Counted,
    Dims,
    Fixed,
    Joined,
    Loose,
    Mask,
    Opaque,
    Output,
    Padding,
    Residual,
    Run,
    Source,
    Spread,
    Tracked,
    Value,
    attributes_of,
    label_of,
    last_run,
    padding_of,
    whole_input_of,
)


def _identity(node: NodeProto, inputs: list[Value]) -> Value:
    return inputs[0]


def _dropout(node: NodeProto, inputs: list[Value]) -> Value | list[Value]:
    training = inputs[2] if len(inputs) > 2 else None
    if training is not None and not (
        isinstance(training, Fixed) and not training.array.any()
    ):
        return None
    dropped: Value = Opaque(f"is the mask of {label_of(node)!r} (Dropout)")
    return [inputs[0], dropped]


def _cast(node: NodeProto, inputs: list[Value]) -> Value:
    # Of sizes and lengths: integers all the same.
    value = inputs[0]
    is_integer = attributes_of(node)["to"] in (
        onnx.TensorProto.INT32,
        onnx.TensorProto.INT64,
    )
    if is_integer and isinstance(value, (Dims, Counted, Spread, Loose)):
        return value
    if is_integer and isinstance(value, Tracked) and len(value.axes) == 1:
        return value
    return None


def _transpose(node: NodeProto, inputs: list[Value]) -> Value:
    value = inputs[0]
    if not isinstance(value, Tracked):
        return None
    order = attributes_of(node).get("perm")
    order = order or list(reversed(range(len(value.axes))))
    return replace(value, axes=tuple(value.axes[i] for i in order))


def _squeeze(node: NodeProto, inputs: list[Value]) -> Value:
    value, axes = inputs[0], _integers(node, inputs, 1, "axes")
    if isinstance(value, Dims) and len(value.entries) == 1:
        return replace(value, scalar=True)
    if not isinstance(value, Tracked) or axes is None:
        return None
    rank = len(value.axes)
    places = {axis % rank for axis in axes}
    if any(value.axes[i].size != 1 for i in places):
        return None
    kept = tuple(a for i, a in enumerate(value.axes) if i not in places)
    return replace(value, axes=kept)


def _unsqueeze(node: NodeProto, inputs: list[Value]) -> Value:
    value, axes = inputs[0], _integers(node, inputs, 1, "axes")
    if isinstance(value, Dims):
        return replace(value, scalar=False) if value.scalar else None
    if not isinstance(value, (Tracked, Counted, Mask)) or axes is None:
        return None
    rank = len(value.axes) + len(axes)
    places = {axis % rank for axis in axes}
    if len(places) < len(axes):
        return None
    rest = iter(value.axes)
    return replace(
        value,
        axes=tuple(Axis(1, "one") if i in places else next(rest) for i in range(rank)),
    )


def _reshape(node: NodeProto, inputs: list[Value]) -> Value:
    value, shape = inputs[0], inputs[1] if len(inputs) > 1 else None
    sizes: tuple[int | Axis, ...]
    if isinstance(shape, Dims):
        sizes = shape.entries
    elif (numbers := _numbers(shape)) is not None:
        sizes = tuple(numbers)
    else:
        return None
    if isinstance(value, Dims):
        if len(value.entries) == 1 and sizes in ((), (1,), (-1,)):
            return replace(value, scalar=sizes == ())
        return None
    if not isinstance(value, Tracked):
        return None
    exact = bool(attributes_of(node).get("allowzero", 0))
    axes = tuple(a for a in value.axes if a.kind != "one")
    if (found := _matched(value.axes, axes, sizes, exact)) is not None:
        return replace(value, axes=found)
    # The directions into the features.
    *lead, direction, features = axes if len(axes) > 1 else (None, None)
    if (
        isinstance(value.of, Output)
        and direction is not None
        and features is not None
        and (direction.kind, features.kind) == ("direction", "features")
    ):
        width = Axis(features.size and 2 * features.size, "features")
        found = _matched(value.axes, (*lead, width), sizes, exact)
        if found is not None:
            run = value.of.run
            return Tracked(found, Joined("concat", run, run), value.masked)
    return None


def _split(node: NodeProto, inputs: list[Value]) -> list[Value] | None:
    value, axis = inputs[0], attributes_of(node).get("axis", 0)
    if len(node.output) != 2:
        return None
    parts = [_part(value, axis, i) for i in range(2)]
    return None if None in parts else parts


def _slice(node: NodeProto, inputs: list[Value]) -> Value:
    value = inputs[0]
    starts = _integers(node, inputs, 1, "starts")
    ends = _integers(node, inputs, 2, "ends")
    axes = _integers(node, inputs, 3, "axes")
    steps = _integers(node, inputs, 4, "steps") or [1]
    if starts is None or ends is None or len(starts) != 1 or steps != [1]:
        return None
    start, end = starts[0], ends[0]
    axis = axes[0] if axes else 0
    if isinstance(value, Dims):
        return Dims(value.entries[start:end])
    if isinstance(value, Spread):
        return _of_one_number(value)
    if not isinstance(value, Tracked):
        return None
    size = value.axes[axis].size if -len(value.axes) <= axis < len(value.axes) else 0
    if start == 0 and end >= (size or 2**31 - 1):
        return value
    kept = range(size or 0)[start:end]
    return _part(value, axis, kept[0]) if len(kept) == 1 else None


def _gather(node: NodeProto, inputs: list[Value]) -> Value:
    value, indices = inputs[:2]
    numbers = _numbers(indices)
    if not isinstance(indices, Fixed) or numbers is None:
        return None
    axis = attributes_of(node).get("axis", 0)
    if isinstance(value, Dims):
        entries = tuple(value.entries[i] for i in numbers)
        return Dims(entries, indices.array.ndim == 0)
    if isinstance(value, Tracked) and len(numbers) == 1:
        (index,) = numbers
        part = _part(value, axis, index % 2) if -2 <= index < 2 else None
        if isinstance(part, Tracked) and indices.array.ndim == 0:
            place = axis % len(part.axes)
            return replace(part, axes=part.axes[:place] + part.axes[place + 1 :])
        return part
    return None


def _shape(node: NodeProto, inputs: list[Value]) -> Value:
    if not isinstance(inputs[0], Tracked):
        return None
    attributes = attributes_of(node)
    entries = inputs[0].axes[attributes.get("start", 0) : attributes.get("end")]
    return Dims(tuple(1 if a.kind == "one" else a for a in entries))


def _expand(node: NodeProto, inputs: list[Value]) -> Value:
    value = inputs[0]
    if isinstance(value, Fixed):
        return Spread(value)
    if isinstance(value, Dims) and len(value.entries) == 1:
        (entry,) = value.entries
        return Spread(entry) if isinstance(entry, Axis) else None
    return _of_one_number(value)


def _tile(node: NodeProto, inputs: list[Value]) -> Value:
    value = inputs[0]
    if isinstance(value, Fixed) and value.array.size == 1:
        return Spread(value)
    return _expand(node, inputs) if isinstance(value, Dims) else None


def _range(node: NodeProto, inputs: list[Value]) -> Value:
    start, limit, delta = inputs
    if not (isinstance(start, Fixed) and isinstance(delta, Fixed)):
        return None
    if not (_is_number(start, 0) and _is_number(delta, 1)):
        return None
    if not (isinstance(limit, Dims) and limit.scalar):
        return None
    (entry,) = limit.entries
    return Counted((entry,)) if isinstance(entry, Axis) else None


def _less(node: NodeProto, inputs: list[Value]) -> Value:
    counted, lengths = inputs
    name = whole_input_of(lengths)
    if not (isinstance(counted, Counted) and isinstance(lengths, Tracked) and name):
        return None
    rank = max(len(counted.axes), len(lengths.axes))
    times, rows = _padded(counted.axes, rank), _padded(lengths.axes, rank)
    axes = tuple(r if t.kind == "one" else t for t, r in zip(times, rows, strict=True))
    time, *others = [axis for axis in times if axis.kind != "one"]
    (row, *more) = [axis for axis in rows if axis.kind != "one"] or [time]
    # Both along one axis: the numbers are not compared with each row's length.
    if others or more or row is time or row not in axes:
        return None
    return Mask(axes, Padding(name, time, row))


def _where(node: NodeProto, inputs: list[Value]) -> Value:
    mask, value, zero = inputs
    if not (isinstance(mask, Mask) and isinstance(value, Tracked)):
        return None
    rank = len(value.axes)
    if len(mask.axes) > rank or not (isinstance(zero, Fixed) and _is_number(zero, 0)):
        return None
    padding = mask.padding
    for over, axis in zip(_padded(mask.axes, rank), value.axes, strict=True):
        if over is padding.time and axis is not over:
            return None
        if over is padding.rows:
            padding = replace(padding, rows=axis)
    return replace(value, masked=padding)


def _concat(node: NodeProto, inputs: list[Value]) -> Value:
    if all(isinstance(value, (Dims, Fixed)) for value in inputs):
        entries: list[int | Axis] = []
        for value in inputs:
            more = value.entries if isinstance(value, Dims) else _numbers(value)
            if more is None or len(entries) + len(more) > MOST_AXES:
                return None
            entries += more
        return Dims(tuple(entries))
    joined = _joined("concat", inputs)
    if joined is None:
        return None
    axis = attributes_of(node)["axis"] % len(joined.axes)
    return joined if joined.axes[axis].kind == "features" else None


def _add(node: NodeProto, inputs: list[Value]) -> Value:
    return _joined("sum", inputs) or _residual(inputs)


def _mul(node: NodeProto, inputs: list[Value]) -> Value:
    value, factor = inputs
    if isinstance(value, Fixed):
        value, factor = factor, value
    if isinstance(factor, Fixed):
        return _mean(value, factor.array, 0.5)
    return _joined("mul", inputs)


def _div(node: NodeProto, inputs: list[Value]) -> Value:
    value, divisor = inputs
    return _mean(value, divisor.array, 2) if isinstance(divisor, Fixed) else None


def _reduce_sum(node: NodeProto, inputs: list[Value]) -> Value:
    return _reduced("sum", node, inputs)


def _reduce_mean(node: NodeProto, inputs: list[Value]) -> Value:
    return _reduced("mean", node, inputs)


def _reduce_prod(node: NodeProto, inputs: list[Value]) -> Value:
    return _reduced("mul", node, inputs)


def _reduced(merge: str, node: NodeProto, inputs: list[Value]) -> Value:
    value, axes = inputs[0], _integers(node, inputs, 1, "axes")
    if not isinstance(value, Tracked) or axes is None or len(axes) != 1:
        return None
    place = axes[0] % len(value.axes)
    if value.axes[place].kind != "direction" or not isinstance(value.of, Output):
        return None
    ones = (Axis(1, "one"),) if attributes_of(node).get("keepdims", 1) else ()
    run = value.of.run
    return Tracked(
        value.axes[:place] + ones + value.axes[place + 1 :],
        Joined(merge, run, run),
        value.masked,
    )


def moved(node: NodeProto, inputs: list[Value]) -> list[Value] | None:
    """Parts of inputs or states, whatever the order: for the call to sort out."""
    names: set[str] = set()
    states: set[Run] = set()
    disordered = _disordered(node, inputs)
    for value in inputs[: len(inputs) if node.op_type == "Concat" else 1]:
        if isinstance(value, Loose):
            names |= value.inputs
            states |= value.states
            if value.disordered:  # along axes that may be others by now
                disordered = frozenset(range(3))
        elif isinstance(value, Tracked) and isinstance(value.of, Source):
            names.add(value.of.name)
        elif isinstance(value, Spread):
            if (same := _of_one_number(value)) is None:
                return None
            return [same] * len(node.output)
        else:
            return None
    if len(names) + len(states) > MOST_PARTS:
        return None
    by = f"is made by the node {label_of(node)!r} ({node.op_type})"
    loose = Loose(frozenset(names), frozenset(states), by, disordered)
    return [loose] * len(node.output)


def _disordered(node: NodeProto, inputs: list[Value]) -> frozenset[int]:
    """Return the axes, of three, along which a node may change the order."""
    kind, along = node.op_type, attributes_of(node).get("axis", 0)
    if kind == "Concat":
        return frozenset({along % 3} if len(inputs) > 1 else ())
    if kind == "Gather":
        numbers = _numbers(inputs[1])
        return frozenset({along % 3} if numbers is None or len(numbers) > 1 else ())
    if kind == "Slice":
        steps = _integers(node, inputs, 4, "steps") if len(inputs) > 4 else [1]
        ordered = steps is not None and min(steps, default=1) > 0
        return frozenset(() if ordered else range(3))
    return frozenset()


def _integers(
    node: NodeProto, inputs: list[Value], i: int, attribute: str
) -> list[int] | None:
    """Return integers that an operator takes as an attribute or as a constant input."""
    if len(inputs) > i:
        return _numbers(inputs[i])
    found = attributes_of(node).get(attribute)
    return None if found is None else list(found)


def _numbers(value: Value) -> list[int] | None:
    """Return the integers of a constant that speaks of axes."""
    if not isinstance(value, Fixed) or value.array.size > MOST_AXES:
        return None
    if value.array.dtype.kind not in "iu":
        return None
    return [int(n) for n in value.array.reshape(-1)]


def _is_number(value: Fixed, number: int) -> bool:
    """Return whether a constant is this number alone."""
    return value.array.size == 1 and bool(value.array.reshape(-1)[0] == number)


def _padded(axes: tuple[Axis, ...], rank: int) -> tuple[Axis, ...]:
    """Return axes with those of one before them that broadcasting adds."""
    return (*(Axis(1, "one") for _ in range(rank - len(axes))), *axes)


def _of_one_number(value: Value) -> Value:
    if isinstance(value, Spread) and isinstance(value.of, Fixed):
        return value if value.of.array.size == 1 else None
    return value if isinstance(value, Spread) else None


def _part(value: Value, axis: int, i: int) -> Value:
    """Return one direction of an output, its axis of size one."""
    if not isinstance(value, Tracked) or not isinstance(value.of, Output):
        return None
    place = axis % len(value.axes)
    if value.axes[place].kind != "direction":
        return None
    axes = (*value.axes[:place], Axis(1, "one"), *value.axes[place + 1 :])
    return Tracked(axes, Output(value.of.run, i), value.masked)


def _matched(
    before: Iterable[Axis],
    axes: tuple[Axis, ...],
    sizes: tuple[int | Axis, ...],
    exact: bool,
) -> tuple[Axis, ...] | None:
    """Return axes as the sizes of a Reshape name them, with axes of one among them."""
    before = tuple(before)
    rest = list(axes)
    found: list[Axis] = []
    # Reshape keeps how many numbers there are: one size may follow from the others.
    open_size, followed = False, 0
    for i, size in enumerate(sizes):
        if size == 0 and not exact and i < len(before):
            size = before[i]
        axis = rest[0] if rest else None
        if isinstance(size, Axis):
            same = size is axis
            one = size.size == 1 and not same
        elif size == -1:
            same = axis is not None and not open_size
            one = not same and not open_size
            open_size = True
            followed += same
        else:
            same = axis is not None and axis.size in (None, size) and size != 1
            one = size == 1 and not same
            followed += same and axis is not None and axis.size is None
        if same:
            found.append(rest.pop(0))
        elif one:
            found.append(Axis(1, "one"))
        else:
            return None
    return None if rest or followed > 1 else tuple(found)


def _joined(merge: str, inputs: list[Value]) -> Tracked | None:
    """Return two directions of one input, merged."""
    if len(inputs) != 2:
        return None
    a, b = inputs
    if not (isinstance(a, Tracked) and isinstance(b, Tracked)):
        return None
    if not (isinstance(a.of, Output) and isinstance(b.of, Output)):
        return None
    if merge != "concat" and _place(b) < _place(a):
        a, b = b, a
    assert isinstance(a.of, Output) and isinstance(b.of, Output)
    forward, backward = a.of.run, b.of.run
    if (_place(a), _place(b)) != (0, 1) or a.masked != b.masked:
        return None
    if forward is not backward and (
        forward.x != backward.x
        or forward.directions + backward.directions != 2
        or forward.obstacle
        or backward.obstacle
    ):
        return None
    if not _same_axes(a, b, but_features=merge == "concat"):
        return None
    axes = a.axes
    if merge == "concat":
        sizes = a.axes[-1].size, b.axes[-1].size
        wide = None if None in sizes else sum(n for n in sizes if n)
        axes = (*a.axes[:-1], Axis(wide, "features"))
    return Tracked(axes, Joined(merge, forward, backward), a.masked)


def _place(value: Tracked) -> int:
    """Return the direction of an output: 0 is forward, 1 backward, 2 both."""
    assert isinstance(value.of, Output)
    if value.of.part is not None:
        return value.of.part
    return DIRECTIONS.index(value.of.run.direction)


def _same_axes(a: Tracked, b: Tracked, but_features: bool = False) -> bool:
    if len(a.axes) != len(b.axes) or a.axes[-1].kind == "one":
        return False
    return all(
        x is y
        or (x.kind == y.kind == "one")
        or (i == len(a.axes) - 1 and (but_features or None in (x.size, y.size)))
        or (i == len(a.axes) - 1 and x.size == y.size)
        for i, (x, y) in enumerate(zip(a.axes, b.axes, strict=True))
    )


def _residual(inputs: list[Value]) -> Tracked | None:
    """Return a layer's outputs with its input added."""
    a, b = inputs
    if not (isinstance(a, Tracked) and isinstance(b, Tracked)):
        return None
    for y, x in ((a, b), (b, a)):
        if isinstance(y.of, Residual) or (run := last_run(y.of)) is None:
            continue
        whole = not (isinstance(y.of, Output) and run.directions == 2)
        padding = padding_of(run)
        # A Stack leaves out what its input has behind the lengths.
        is_open = bool(padding.lengths) and isinstance(x.of, Source)
        masked = x.masked == padding or (x.masked is None and not is_open)
        whole = whole and masked and not run.obstacle
        if whole and run.x == x.of and _same_axes(y, x):
            return Tracked(y.axes, Residual(y.of, x.of), y.masked)
    return None


def _mean(value: Value, factor: np.ndarray, rule: float) -> Value:
    if (
        isinstance(value, Tracked)
        and isinstance(value.of, Joined)
        and value.of.merge == "sum"
        and factor.size == 1
        and factor.reshape(-1)[0] == rule
    ):
        return replace(value, of=replace(value.of, merge="mean"))
    return None


RULES: dict[str, Callable[[NodeProto, list[Value]], Value | list[Value]]] = {
    "Add": _add,
    "Cast": _cast,
    "Concat": _concat,
    "Div": _div,
    "Dropout": _dropout,
    "Expand": _expand,
    "Gather": _gather,
    "Identity": _identity,
    "Less": _less,
    "Mul": _mul,
    "Range": _range,
    "ReduceMean": _reduce_mean,
    "ReduceProd": _reduce_prod,
    "ReduceSum": _reduce_sum,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
