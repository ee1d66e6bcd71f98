"""An ONNX graph with recurrent nodes, followed node by node."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
from onnx import NodeProto, external_data_helper, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mlx_recurrent.interop.gates import LISTED
from mlx_recurrent.interop.onnx import LARGEST
from mlx_recurrent.interop.onnx_operators import RULES, of_one_number
from mlx_recurrent.interop.onnx_tensors import (
    OPERATORS,
    SEQUENCE_LENS,
    Axis,
    Dims,
    Fixed,
    Last,
    Opaque,
    Output,
    P,
    Padding,
    Parts,
    Run,
    Source,
    Spread,
    Tracked,
    Value,
    attributes_of,
    by_node,
    label_of,
    last_run,
    origins_of,
    whole_input_of,
    why_of,
)
from mlx_recurrent.interop.parts import line_of

# They only move what they are given.
_MOVES = frozenset(
    {
        "Concat",
        "Gather",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
_FOLDED = _MOVES | {"Cast", "Identity"}
_INTEGERS = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
# What lies between the same weights and their products.
_PASSED = ("Identity", "Transpose", "Cast")
_LAYERS = "take the layer itself: from_torch, from_keras"
# How many numbers nodes may make of constants for each byte of them. Exporters take
# weights apart and put them together; more is a small file that asks for much memory.
_MADE_OF_A_BYTE = 8
# What ONNX and NumPy raise for files that are not what they say.
_DAMAGE = (
    ValueError,
    TypeError,
    KeyError,
    OSError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    onnx.checker.ValidationError,
)


class Graph:
    """What the nodes of a graph make of its inputs.

    Any way to write a transposition or to join two directions is understood, and what
    no layer does is found, with the node that does it.

    Args:
        model (ModelProto): The model, found right by ONNX's checker.
        name (str): What messages call it.
        folder (Path, optional): Where its external data are. ``None`` is nowhere.
    """

    def __init__(self, model: onnx.ModelProto, name: str, folder: Path | None) -> None:
        self.name, self.folder = name, folder
        self.graph, self.functions = model.graph, model.functions
        self.opsets = list(model.opset_import)
        self.runs: list[Run] = []
        self._bytes, self._made = model.ByteSize(), 0
        self.values: dict[str, Value] = {"": None}
        version = next(
            (o.version for o in self.opsets if o.domain in ("", "ai.onnx")), 0
        )
        if version < 7:
            self.refuse(f"has opset {version}, but 7 is the first that can be read")
        self._follow()

    def refuse(self, why: str) -> NoReturn:
        """Raise a ``ValueError`` that names the model."""
        raise ValueError(f"{self.name} {why}")

    def refuse_without_run(self) -> NoReturn:
        """Raise a ``ValueError`` that says what there is in place of such nodes."""
        inner = [
            _within(f.node, f" in the function {f.name!r}") for f in self.functions
        ]
        nodes = [*_within(self.graph.node), *itertools.chain(*inner)]
        own = f"; only ONNX's own, in the graph itself, are read: {_LAYERS}"
        loop = f", a loop over steps; {_LAYERS}"
        for kind, why in (
            *((kind, own) for kind in OPERATORS),
            ("Loop", loop),
            ("Scan", loop),
        ):
            for node, where in nodes:
                if node.op_type == kind:
                    domain = node.domain and f" of the domain {node.domain!r}"
                    self.refuse(
                        f"has no {LISTED} node, but {kind} {label_of(node)!r}{domain}"
                        f"{where}{why}"
                    )
        made = {node.output[0]: node for node, _ in nodes if node.output}
        weights: Counter[str] = Counter()
        for node, _ in nodes:
            if node.op_type in ("MatMul", "Gemm"):
                name, seen = node.input[1], 0
                while (
                    name in made and made[name].op_type in _PASSED and seen < len(made)
                ):
                    name, seen = made[name].input[0], seen + 1
                weights[name] += 1
        (_, times) = weights.most_common(1)[0] if weights else ("", 0)
        loop = f", but {times} products with the same weights, a loop that was unrolled"
        self.refuse(
            f"has no {LISTED} node{loop if times > 1 else ''}: export with "
            f"dynamo=False (PyTorch), or {_LAYERS}"
        )

    def _follow(self) -> None:
        for given in self.graph.input:
            shape = given.type.tensor_type
            sizes: list[int | None] = [None] * 3
            if shape.HasField("shape"):
                sizes = [
                    d.dim_value if d.HasField("dim_value") else None
                    for d in shape.shape.dim
                ]
            axes = tuple(Axis(size) for size in sizes)
            source = Source(given.name, axes, shape.elem_type in _INTEGERS)
            self.values[given.name] = Tracked(axes, source)
        for tensor in self.graph.initializer:
            self.values[tensor.name] = self._constant(tensor)
        for tensor in self.graph.sparse_initializer:
            name = tensor.values.name
            self.values[name] = Opaque(f"is the sparse constant {name!r}")
        for node in self.graph.node:
            inputs = [
                self.values.get(name, Opaque(f"is made of {name!r}, which is nowhere"))
                for name in node.input
            ]
            outputs = self._node(node, inputs)
            for name, value in zip(node.output, outputs, strict=False):
                if name:
                    self.values[name] = value

    def _node(self, node: NodeProto, inputs: list[Value]) -> list[Value]:
        kind = node.op_type
        origins = origins_of(*inputs)
        missing = Opaque(
            f"is made{origins and ' of '}{origins}{by_node(node)}", bool(origins)
        )
        # The first reason stays, but one that names an input goes before all others.
        reasons = [v for v in [*inputs, missing] if isinstance(v, Opaque)]
        reason: Value = max(reasons, key=lambda reason: reason.has_origin)
        made = [reason] * len(node.output)
        if node.domain not in ("", "ai.onnx"):
            return made
        if kind in OPERATORS:
            return self._run(node, inputs)
        found: Value | list[Value] | None = None
        if kind == "Constant":
            found = self._constant_node(node)
        elif kind == "ConstantOfShape":
            sizes = inputs[0].entries if isinstance(inputs[0], Dims) else ()
            found = Spread(self._fill(node), sizes)
        elif (
            kind in _FOLDED
            and inputs
            and all(value is None or isinstance(value, Fixed) for value in inputs)
        ):
            found = self._folded(node, inputs)
        elif (rule := RULES.get(kind)) is not None:
            with suppress(IndexError, ZeroDivisionError):  # axes that are not there
                found = rule(node, inputs)
        if found is None and kind in _MOVES:
            found = of_one_number(node, inputs)
        if found is None:
            return made
        return found if isinstance(found, list) else [found]

    def _run(self, node: NodeProto, inputs: list[Value]) -> list[Value]:
        attributes = attributes_of(node)
        batch_first = attributes.get("layout", 0) == 1
        inputs = inputs + [None] * (P + 1 - len(inputs))
        x, obstacle = inputs[0], ""
        if isinstance(x, Tracked) and len(x.axes) == 3:
            batch, time = x.axes[:2] if batch_first else x.axes[1::-1]
            before = last_run(x.of)
            if isinstance(x.of, (Parts, Last)):
                obstacle = f"whose X {why_of(x)}"
            elif time.order is not None or x.axes[2].order is not None:
                obstacle = "whose X has steps or features in the order of its lengths"
            elif before is not None and (time, batch) != (before.time, before.batch):
                obstacle = f"whose X has not the axes of {before.label!r} in its places"
            elif x.masked not in (
                None,
                Padding(whole_input_of(inputs[SEQUENCE_LENS]), time, batch),
            ):
                obstacle = "whose X is masked, but not by its own sequence_lens"
        else:
            batch, time = Axis(None), Axis(None)
            obstacle = f"whose X {why_of(x)}"
        run = Run(node, inputs, time, batch, obstacle)
        self.runs.append(run)
        both = run.directions == 2
        direction = Axis(2, "direction") if both else Axis(1, "one")
        size = run.attributes.get("hidden_size")
        features = Axis(size if isinstance(size, int) else None, "features")
        if batch_first:
            axes = (batch, time, direction, features)
        else:
            axes = (time, direction, batch, features)
        ends = (direction, batch, features)
        if batch_first:
            ends = (batch, direction, features)
        lasts = [Tracked(ends, Last(run, ends, state)) for state in run.states]
        return [Tracked(axes, Output(run, axes)), *lasts]

    def _constant(self, tensor: onnx.TensorProto) -> Fixed:
        def load() -> np.ndarray:
            where = f"has the tensor {tensor.name!r}"
            loaded = tensor
            try:
                if external_data_helper.uses_external_data(tensor):
                    loaded = self._read(tensor)
                    self._bytes += loaded.ByteSize()
                return np.asarray(numpy_helper.to_array(loaded))
            except _DAMAGE as error:
                raise ValueError(
                    f"{self.name} {where}, which cannot be read: {line_of(error)}"
                ) from error

        return Fixed(load)

    def _read(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """Read a tensor's numbers from another file, and no more than those.

        The whole of a large file would be read, and copied by protocol buffers, which
        do not survive it where memory is short.
        """
        if self.folder is None:
            raise ValueError("it is in another file: give the model's path")
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        needed = math.prod(tensor.dims) * dtype.itemsize
        given = [e.value for e in tensor.external_data if e.key == "length"]
        if needed > LARGEST or any(int(length) > needed for length in given):
            raise ValueError(
                f"it takes {given[0] if given else needed} bytes of another file, "
                f"where its shape needs {needed} and {LARGEST} is the most"
            )
        loaded = onnx.TensorProto()
        loaded.CopyFrom(tensor)
        if not given:
            loaded.external_data.add(key="length", value=str(needed))
        external_data_helper.load_external_data_for_tensor(loaded, str(self.folder))
        return loaded

    def _constant_node(self, node: NodeProto) -> Value:
        for attribute in node.attribute:
            if attribute.name == "value":
                return self._constant(attribute.t)
            if attribute.name in ("value_float", "value_floats"):
                return _held(helper.get_attribute_value(attribute), np.float32)
            if attribute.name in ("value_int", "value_ints"):
                return _held(helper.get_attribute_value(attribute), np.int64)
        return None

    def _fill(self, node: NodeProto) -> Fixed:
        tensor = attributes_of(node).get("value")
        return _held([0], np.float32) if tensor is None else self._constant(tensor)

    def _folded(self, node: NodeProto, inputs: list[Value]) -> list[Value]:
        arrays: dict[str, np.ndarray] = {}

        def load(i: int) -> np.ndarray:
            if not arrays:
                given = {
                    name: value.array
                    for name, value in zip(node.input, inputs, strict=True)
                    if isinstance(value, Fixed)
                }
                self._judge_size(node, list(given.values()))
                infos = [
                    helper.make_tensor_value_info(
                        name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape
                    )
                    for name, a in given.items()
                ]
                names = [name for name in node.output if name]
                outputs = [onnx.ValueInfoProto(name=name) for name in names]
                graph = helper.make_graph([node], "constant", infos, outputs)
                model = helper.make_model(graph, opset_imports=self.opsets)
                try:
                    results = ReferenceEvaluator(model).run(None, given)
                except Exception as error:
                    raise ValueError(
                        f"{self.name} has the node {label_of(node)!r} "
                        f"({node.op_type}), which fails: {line_of(error)}"
                    ) from error
                arrays.update(zip(names, map(np.asarray, results), strict=True))
            return arrays[node.output[i]]

        def value(i: int) -> Value:
            return Fixed(lambda: load(i))

        return [value(i) for i in range(len(node.output))]

    def _judge_size(self, node: NodeProto, given: list[np.ndarray]) -> None:
        """Refuse a node that makes much of little, before it does."""
        size = given[0].size if given else 0
        if node.op_type == "Concat":
            size = sum(a.size for a in given)
        elif node.op_type == "Gather" and len(given) == 2 and given[0].ndim:
            shape = list(given[0].shape)
            shape.pop(attributes_of(node).get("axis", 0) % len(shape))
            size = math.prod(shape) * given[1].size
        self._made += size
        if self._made > _MADE_OF_A_BYTE * self._bytes:
            self.refuse(
                f"has the node {label_of(node)!r} ({node.op_type}), with which its "
                f"nodes make {self._made} numbers of {self._bytes} bytes"
            )


def _within(
    nodes: Iterable[NodeProto], where: str = ""
) -> Iterator[tuple[NodeProto, str]]:
    """Return nodes, and those of their graphs, with the words for where they are."""
    for node in nodes:
        yield node, where
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                inner = f" in the node {label_of(node)!r} ({node.op_type})"
                yield from _within(graph.node, inner)


def _held(values: Any, dtype: type) -> Fixed:
    return Fixed(lambda: np.array(values, dtype))
