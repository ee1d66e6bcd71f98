"""What each operator makes of the tensors that it is given.

A rule returns ``None`` for what it does not know.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import onnx
from onnx import NodeProto

from mlx_recurrent.interop.onnx_tensors import (
    DIRECTIONS,
    MOST_AXES,
    MOST_PARTS,
    WHOLE,
    Axis,
    Counted,
    Dims,
    Fixed,
    Joined,
    Last,
    Mask,
    Opaque,
    Order,
    Output,
    Padding,
    Part,
    Parts,
    Permutation,
    Residual,
    Source,
    Spread,
    Tracked,
    Value,
    attributes_of,
    by_node,
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
    known = isinstance(value, (Dims, Counted, Spread, Permutation))
    if isinstance(value, Tracked) and isinstance(value.of, Source):
        known = value.of.integers
    return value if is_integer and known else None


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
        isinstance(value.of, (Output, Last))
        and direction is not None
        and features is not None
        and (direction.kind, features.kind) == ("direction", "features")
    ):
        width = Axis(features.size and 2 * features.size, "features")
        found = _matched(value.axes, (*lead, width), sizes, exact)
        if found is not None and isinstance(value.of, Output):
            run = value.of.run
            return Tracked(found, Joined("concat", run, run), value.masked)
        return None if found is None else replace(value, axes=found)
    return None


def _split(node: NodeProto, inputs: list[Value]) -> list[Value] | None:
    value, axis = inputs[0], attributes_of(node).get("axis", 0)
    number = len(node.output)
    if not isinstance(value, Tracked) or (size := value.axes[axis].size) is None:
        return None
    sizes = _integers(node, inputs, 1, "split")
    if sizes is None and len(inputs) == 1 and size % number == 0:
        sizes = [size // number] * number
    if sizes is None or len(sizes) != number or sum(sizes) != size:
        return None
    ends = [sum(sizes[: i + 1]) for i in range(number)]
    parts = [
        _picked(node, value, axis, range(end - n, end))
        for n, end in zip(sizes, ends, strict=True)
    ]
    return None if None in parts else parts


def _slice(node: NodeProto, inputs: list[Value]) -> Value:
    value = inputs[0]
    starts = _integers(node, inputs, 1, "starts")
    ends = _integers(node, inputs, 2, "ends")
    # What is computed is not what is left out.
    computed = any(v is not None and _numbers(v) is None for v in inputs[3:])
    axes = _integers(node, inputs, 3, "axes")
    steps = _integers(node, inputs, 4, "steps") or [1]
    if starts is None or ends is None or len(starts) != 1 or computed or steps != [1]:
        return None
    start, end = starts[0], ends[0]
    axis = axes[0] if axes else 0
    if isinstance(value, Dims):
        return Dims(value.entries[start:end])
    if isinstance(value, Spread):
        return _of_one_number(value)
    if not isinstance(value, Tracked):
        return None
    size = value.axes[axis].size
    if start == 0 and end >= (size or 2**31 - 1):
        return value
    return _picked(node, value, axis, range(size or 0)[start:end])


def _gather(node: NodeProto, inputs: list[Value]) -> Value:
    value, indices = inputs[:2]
    axis = attributes_of(node).get("axis", 0)
    if isinstance(indices, Permutation):
        return _permuted(value, axis, indices)
    numbers = _numbers(indices)
    if not isinstance(indices, Fixed) or numbers is None or indices.array.ndim > 1:
        return None
    scalar = indices.array.ndim == 0
    if isinstance(value, Dims):
        return Dims(tuple(value.entries[i] for i in numbers), scalar)
    if not isinstance(value, Tracked):
        return None
    part = _picked(node, value, axis, numbers)
    if isinstance(part, Tracked) and scalar:
        place = axis % len(part.axes)
        return replace(part, axes=part.axes[:place] + part.axes[place + 1 :])
    return part


def _permuted(value: Value, axis: int, by: Permutation) -> Value:
    """Return rows in an order, or back in their own."""
    if not isinstance(value, Tracked):
        return None
    place = axis % len(value.axes)
    old = value.axes[place]
    if by.inverse:
        new = old.base if old.order is by.order else None
    else:
        same = old.order is None and old.size in (None, by.axis.size)
        new = Axis(old.size, old.kind, by.order, old) if same else None
    if new is None:
        return None
    return replace(value, axes=(*value.axes[:place], new, *value.axes[place + 1 :]))


def _topk(node: NodeProto, inputs: list[Value]) -> list[Value] | None:
    """All of the lengths in order, and the order."""
    lengths, number = inputs[0], inputs[1]
    if not isinstance(lengths, Tracked) or not whole_input_of(lengths):
        return None
    (axis,) = lengths.axes if len(lengths.axes) == 1 else (Axis(None),)
    if isinstance(number, Dims):
        whole = number.entries == (axis,)
    else:
        whole = axis.size is not None and _numbers(number) == [axis.size]
    if not whole or axis.order is not None:
        return None
    order = Order(by_node(node))
    ordered = Axis(axis.size, axis.kind, order, axis)
    return [replace(lengths, axes=(ordered,)), Permutation(order, ordered)]


def _scatter(node: NodeProto, inputs: list[Value]) -> Value:
    """0, 1, ... at the places that a permutation names: its inverse."""
    under, by, numbers = inputs
    if not isinstance(by, Permutation) or attributes_of(node).get("reduction"):
        return None
    size, rows = by.axis.size, (by.axis,)
    if isinstance(under, Spread):
        fits = under.sizes == rows
    else:
        fits = isinstance(under, Fixed) and under.array.shape == (size,)
    if isinstance(numbers, Counted):
        fits &= numbers.axes == rows
    else:
        fits &= size is not None and _numbers(numbers) == list(range(size))
    return replace(by, inverse=True) if fits and not by.inverse else None


def _shape(node: NodeProto, inputs: list[Value]) -> Value:
    value = inputs[0]
    if isinstance(value, Permutation):
        return Dims((value.axis,))
    if not isinstance(value, Tracked):
        return None
    attributes = attributes_of(node)
    entries = value.axes[attributes.get("start", 0) : attributes.get("end")]
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
        if (over is padding.time and axis is not over) or axis.order is not over.order:
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
    axis = attributes_of(node)["axis"]
    joined = _joined("concat", inputs)
    if joined is not None and joined.axes[axis].kind == "features":
        return joined
    return _stacked(node, inputs, axis)


def _stacked(node: NodeProto, inputs: list[Value], axis: int) -> Value:
    """Return parts one after another."""
    first = inputs[0]
    entries: list[Part] = []
    for value in inputs:
        if not isinstance(value, Tracked) or not isinstance(first, Tracked):
            return None
        more = entries_of(value, axis)
        place = axis % len(value.axes)
        if more is None or not _same_axes(first, value, but=place):
            return None
        if value.masked != first.masked or len(entries) + len(more) > MOST_PARTS:
            return None
        entries += more
    return _parts(node, first, axis, entries) if isinstance(first, Tracked) else None


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


def _reduced(merge: str, node: NodeProto, inputs: list[Value]) -> Value:
    value, axes = inputs[0], _integers(node, inputs, 1, "axes")
    keeps = attributes_of(node).get("keepdims", 1)
    if isinstance(value, Dims) and merge == "mul" and len(value.entries) == 1:
        return replace(value, scalar=not keeps)
    if not isinstance(value, Tracked) or axes is None or len(axes) != 1:
        return None
    place = axes[0] % len(value.axes)
    if value.axes[place].kind != "direction" or not isinstance(value.of, Output):
        return None
    ones = (Axis(1, "one"),) if keeps else ()
    run = value.of.run
    return Tracked(
        value.axes[:place] + ones + value.axes[place + 1 :],
        Joined(merge, run, run),
        value.masked,
    )


def of_one_number(node: NodeProto, inputs: list[Value]) -> list[Value] | None:
    """Return one number repeated, wherever a node moves it."""
    values = inputs if node.op_type == "Concat" else inputs[:1]
    found = [_of_one_number(value) for value in values]
    numbers = {
        same.of.array.reshape(-1)[0] if isinstance(same.of, Fixed) else same.of
        for same in found
        if isinstance(same, Spread)
    }
    same_all = None not in found and len(numbers) == 1
    return found[:1] * len(node.output) if same_all else None


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


def entries_of(value: Tracked, axis: int, open_size: int = 0) -> list[Part] | None:
    """Return the parts along an axis, ``None`` if there are none to speak of."""
    place, of = value.axes[axis], value.of
    if isinstance(of, Parts):
        known = place.kind == "parts" or (place.size == 1 == len(of.entries))
        return list(of.entries) if known else None
    if not isinstance(of, (Source, Output, Last)):
        return None
    kinds = ("given",) if isinstance(of, Source) else ("direction", "one")
    size = place.size or open_size
    if place in of.axes and place.kind in kinds and 0 < size <= MOST_PARTS:
        return [Part(of, of.axes.index(place), i) for i in range(size)]
    if place.kind != "one":
        return None
    ones = [i for i, a in enumerate(of.axes) if a.size == 1 and a.kind in kinds]
    return [Part(of, ones[0] if ones else WHOLE, 0)]


def _picked(node: NodeProto, value: Tracked, axis: int, i: Sequence[int]) -> Value:
    """Return entries of an axis."""
    entries = entries_of(value, axis)
    if entries is None or not i or not -len(entries) <= min(i) <= max(i) < len(entries):
        return None
    return _parts(node, value, axis, [entries[index] for index in i])


def _parts(node: NodeProto, value: Tracked, axis: int, entries: list[Part]) -> Tracked:
    """Return a value as these parts along an axis, or as the whole that they are."""
    place, first = axis % len(value.axes), entries[0]
    new = Axis(1, "one") if first.axis == WHOLE else first.of.axes[first.axis]
    of: Source | Output | Last | Parts = first.of
    if entries != [Part(first.of, first.axis, i) for i in range(new.size or 0)]:
        of = Parts(tuple(entries), by_node(node))
        new = Axis(len(entries), "parts") if len(entries) > 1 else Axis(1, "one")
    axes = (*value.axes[:place], new, *value.axes[place + 1 :])
    return replace(value, axes=axes, of=of)


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
    if merge != "concat" and _direction(b) == 0:
        a, b = b, a
    if (_direction(a), _direction(b)) != (0, 1) or a.masked != b.masked:
        return None
    forward, backward = last_run(a.of), last_run(b.of)
    assert forward is not None and backward is not None
    if forward is not backward and (
        forward.x != backward.x
        or forward.directions + backward.directions != 2
        or forward.obstacle
        or backward.obstacle
    ):
        return None
    last = len(a.axes) - 1
    if a.axes[-1].kind == "one" or not _same_axes(
        a, b, but=last if merge == "concat" else None
    ):
        return None
    axes = a.axes
    if merge == "concat":
        if axes[-1].kind != "features":
            return None
        sizes = a.axes[-1].size, b.axes[-1].size
        wide = None if None in sizes else sum(n for n in sizes if n)
        axes = (*a.axes[:-1], Axis(wide, "features"))
    return Tracked(axes, Joined(merge, forward, backward), a.masked)


def _direction(value: Tracked) -> int | None:
    """Return which direction's outputs a value is, 0 or 1."""
    of = value.of
    if isinstance(of, Parts) and isinstance(of.entries[0].of, Output):
        return of.entries[0].index if len(of.entries) == 1 else None
    if isinstance(of, Output) and of.run.directions == 1:
        return DIRECTIONS.index(of.run.direction)
    return None


def _same_axes(a: Tracked, b: Tracked, but: int | None = None) -> bool:
    if len(a.axes) != len(b.axes):
        return False
    last = len(a.axes) - 1
    return all(
        i == but
        or x is y
        or (x.kind == y.kind == "one")
        or (i == last and (None in (x.size, y.size) or x.size == y.size))
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
        whole = whole and masked and not run.obstacle and y.axes[-1].kind != "one"
        whole = whole and not isinstance(y.of, Parts)
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
    "ReduceMean": partial(_reduced, "mean"),
    "ReduceProd": partial(_reduced, "mul"),
    "ReduceSum": partial(_reduced, "sum"),
    "Reshape": _reshape,
    "ScatterElements": _scatter,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "TopK": _topk,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
