"""Layers as nodes of an ONNX graph, all of them time first."""

from typing import Any

import mlx.core as mx
import numpy as np
import onnx
from onnx import TensorProto, helper

from mlx_recurrent.functional.judging import dtype_name
from mlx_recurrent.functional.values import values_of
from mlx_recurrent.interop.activations import Activation, activation_of, describe
from mlx_recurrent.interop.gates import (
    LISTED,
    Single,
    kind_of,
    sides_of,
    weight_sizes,
)
from mlx_recurrent.interop.parts import (
    called,
    judge_layer,
    judge_weights,
    singles_of,
)
from mlx_recurrent.interop.reversed import Reversed
from mlx_recurrent.layers.bidirectional import Bidirectional
from mlx_recurrent.layers.gru import GRU
from mlx_recurrent.layers.lstm import LSTM
from mlx_recurrent.layers.rnn import RNN
from mlx_recurrent.layers.stack import Stack

_TYPES = {
    mx.float32: TensorProto.FLOAT,
    mx.float64: TensorProto.DOUBLE,
    mx.float16: TensorProto.FLOAT16,
    mx.bfloat16: TensorProto.BFLOAT16,
}
# The operator itself; bfloat16 came later.
FIRST_OPSET = 14
_BFLOAT16_OPSET = 22
# Options that the operators have, or that act in training alone: a model of ONNX's is
# evaluated.
_TRAINING = ("input_dropout", "recurrent_dropout", "learn_hidden", "reset_after=False")
# What is written for a state before the first step, and after the last one.
_STATES = {"hidden0": ("initial_h", "Y_h"), "cell0": ("initial_c", "Y_c")}


class Writer:
    """The graph of a network.

    Args:
        network (Module): The layers.
        layout (int): 0 for sequences ``(L, N, D)``, 1 for ``(N, L, D)``.
        sequence_lens (bool): Whether lengths are an input.
        initial_h (bool): Whether states are inputs.
    """

    def __init__(
        self, network: Any, layout: int, sequence_lens: bool, initial_h: bool
    ) -> None:
        self.layout, self.initial_h = layout, initial_h
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self.layers = _single_layers(network)
        # Of each layer of a stack: whether its input is added, and could be.
        self.residuals: dict[str, tuple[bool, bool]] = {}
        self.dtype = self._common_dtype()
        self.type = _TYPES[self.dtype]
        D, _ = weight_sizes(self.layers[0][1])
        self.inputs = [self._value("X", self._sequence_axes(D))]
        self.outputs: list[onnx.ValueInfoProto] = []
        self.lengths = "sequence_lens" if sequence_lens else ""
        if sequence_lens:
            value = helper.make_tensor_value_info
            self.inputs.append(value(self.lengths, TensorProto.INT32, ["N"]))
        x = self._transposed("X", "X_time_first")
        y, axes, states = self._network(network, x, D, "")
        if layout == 1:
            # (L, N, H), or (L, 2, N, H) of a pair.
            order = [1, 0, 2] if len(axes) == 1 else [2, 0, 1, 3]
            y = self._add("Transpose", [y], "Y_batch_first", perm=order)
        self._judge_residuals()
        self._rename(y, "Y")
        self.outputs = [self._value("Y", self._sequence_axes(*axes)), *states]

    def model(self, opset: int | None, sizes: dict[str, int]) -> onnx.ModelProto:
        """Return the graph as a model, whose axes of these names have these sizes.

        Raises:
            ValueError: If the operator does not take the weights' dtype there.
        """
        least = _BFLOAT16_OPSET if self.dtype == mx.bfloat16 else FIRST_OPSET
        opset = least if opset is None else opset
        if opset < least:
            raise ValueError(
                f"opset must be at least {least} for {dtype_name(self.dtype)}, but is "
                f"{opset}"
            )
        for value in (*self.inputs, *self.outputs):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param in sizes:
                    dim.dim_value = sizes[dim.dim_param]
        graph = helper.make_graph(
            self.nodes, "mlx_recurrent", self.inputs, self.outputs, self.constants
        )
        opsets = [helper.make_opsetid("", opset)]
        return helper.make_model(
            graph,
            opset_imports=opsets,
            # The oldest that has it: runtimes refuse what is newer than they are.
            ir_version=helper.find_min_ir_version_for(opsets),
            producer_name="mlx-recurrent",
        )

    def _network(
        self, layer: Any, x: str, D: int, path: str
    ) -> tuple[str, list[int], list[onnx.ValueInfoProto]]:
        """Write a layer; return its outputs, their last axes, and its states."""
        if isinstance(layer, Stack):
            return self._stack(layer, x, D, path)
        if isinstance(layer, Bidirectional):
            return self._bidirectional(layer, x, path)
        reverse = isinstance(layer, Reversed)
        single = layer.backward if isinstance(layer, Reversed) else layer
        H = _width(single)
        name = f"{path}backward." if reverse else path
        direction = "reverse" if reverse else "forward"
        starts = self._starts([(name, single)], path, x)
        if self.initial_h:
            zero = self._integers([0])
            starts = [
                self._add("Unsqueeze", [start, zero], f"{start}_of_one")
                for start in starts
            ]
        y, *lasts = self._node([(name, single)], x, starts, direction, path)
        y = self._add("Squeeze", [y, self._integers([1])], f"{path}outputs")
        for last, (_, end) in zip(lasts, _STATES.values(), strict=False):
            self._add("Squeeze", [last, self._integers([0])], f"{path}{end}")
        return y, [H], self._ends(lasts, path, "N", H)

    def _stack(
        self, stack: Stack, x: str, D: int, path: str
    ) -> tuple[str, list[int], list[onnx.ValueInfoProto]]:
        states: list[onnx.ValueInfoProto] = []
        axes: list[int] = []
        for i, layer in enumerate(stack.layers):
            inner = f"{path}layers.{i}."
            y, axes, state = self._network(layer, x, D, inner)
            states += state
            added = stack.residual and axes == [D]
            if not isinstance(layer, Stack):
                self.residuals[inner] = added, axes == [D]
            elif added:
                raise ValueError(
                    f"{called(inner)} is a Stack in a Stack with residual, which adds "
                    "its input to its outputs: no model that from_onnx reads has that"
                )
            if added:
                if i == 0 and self.lengths:
                    x = self._without_padding(x, inner)
                y = self._add("Add", [y, x], f"{inner}residual")
            x, D = y, axes[-1]
        return x, axes, states

    def _bidirectional(
        self, layer: Bidirectional, x: str, path: str
    ) -> tuple[str, list[int], list[onnx.ValueInfoProto]]:
        pair = [
            (f"{path}forward.", layer.forward),
            (f"{path}backward.", layer.backward),
        ]
        H, also_H = (_width(single) for _, single in pair)
        if callable(layer.merge):
            raise ValueError(
                f"{called(path)} has the merge {describe(layer.merge)}, which no node "
                'of ONNX\'s is known to stand for: it must be "concat", "sum", "mul", '
                '"mean" or None'
            )
        kinds = [kind_of(single).__name__ for _, single in pair]
        common = [_common(name, single) for name, single in pair]
        unlike = f"{H} and {also_H} hidden features" if H != also_H else ""
        if not unlike and kinds[0] == kinds[1] and common[0] == common[1]:
            return self._both(pair, layer.merge, x, H, path)
        if layer.merge != "concat" or unlike:
            if not unlike and kinds[0] == kinds[1]:
                key = next(iter(common[0] | common[1]))
                unlike = f"{key} {common[0].get(key)} and {common[1].get(key)}"
            raise ValueError(
                f"{called(path)} has directions with {unlike or ' and '.join(kinds)}, "
                f"which one node of ONNX's cannot have"
            )
        return self._apart(pair, x, H, path)

    def _both(
        self,
        pair: list[tuple[str, Single]],
        merge: Any,
        x: str,
        H: int,
        path: str,
    ) -> tuple[str, list[int], list[onnx.ValueInfoProto]]:
        starts = self._starts(pair, path, x)
        y, *lasts = self._node(pair, x, starts, "bidirectional", path)
        for last, (_, end) in zip(lasts, _STATES.values(), strict=False):
            self._rename(last, f"{path}{end}")
        states = self._ends(lasts, path, 2, "N", H)
        if merge is None:
            return y, [2, H], states
        if merge == "concat":
            y = self._add("Transpose", [y], f"{path}side_by_side", perm=[0, 2, 1, 3])
            shape = self._integers([0, 0, 2 * H])
            return self._add("Reshape", [y, shape], f"{path}outputs"), [2 * H], states
        parts = [f"{path}forward", f"{path}backward"]
        self._add("Split", [y, self._integers([1, 1])], *parts, axis=1)
        parts = [
            self._add("Squeeze", [part, self._integers([1])], f"{part}_outputs")
            for part in parts
        ]
        operator = "Mul" if merge == "mul" else "Add"
        y = self._add(operator, parts, f"{path}{merge}")
        if merge == "mean":
            half = self._constant(f"{path}half", mx.array(0.5, self.dtype))
            y = self._add("Mul", [y, half], f"{path}outputs")
        return y, [H], states

    def _apart(
        self, pair: list[tuple[str, Single]], x: str, H: int, path: str
    ) -> tuple[str, list[int], list[onnx.ValueInfoProto]]:
        """Write two nodes: one has a single clip, for example, for both directions."""
        if {kind_of(single) for _, single in pair} & {LSTM}:
            raise ValueError(
                f"{called(path)} has an LSTM beside another layer, which one node of "
                "ONNX's cannot have"
            )
        if self.initial_h:
            (h,) = self._starts(pair, path, x)
            hs = [f"{path}forward.initial", f"{path}backward.initial"]
            self._add("Split", [h, self._integers([1, 1])], *hs, axis=0)
            starts = [[h] for h in hs]
        else:
            starts = [self._starts([single], single[0], x) for single in pair]
        ys, states = [], []
        for (name, single), first, direction in zip(
            pair, starts, ("forward", "reverse"), strict=True
        ):
            y, state = self._node([(name, single)], x, first, direction, name)
            ys.append(self._add("Squeeze", [y, self._integers([1])], f"{name}outputs"))
            states.append(state)
        y = self._add("Concat", ys, f"{path}outputs", axis=2)
        self._add("Concat", states, f"{path}Y_h", axis=0)
        return y, [2 * H], self._ends(states[:1], path, 2, "N", H)

    def _ends(
        self, lasts: list[str], path: str, *shape: int | str
    ) -> list[onnx.ValueInfoProto]:
        """Return the last states as results, as many as there are."""
        ends = zip(lasts, _STATES.values(), strict=False)
        return [self._value(f"{path}{end}", [*shape]) for _, (_, end) in ends]

    def _node(
        self,
        singles: list[tuple[str, Single]],
        x: str,
        starts: list[str],
        direction: str,
        path: str,
    ) -> list[str]:
        """Write one recurrent node; return its outputs."""
        name, first = singles[0]
        kind = kind_of(first)
        attributes = {"hidden_size": _width(first), "direction": direction}
        attributes |= _common(name, first) | self._activations(singles)
        sides = [sides_of(single, "onnx") for _, single in singles]
        biases = []
        with mx.stream(mx.cpu):
            for Wx, _, *both in sides:
                zeros = mx.zeros((len(Wx),), self.dtype)
                biases.append(mx.concatenate([zeros if b is None else b for b in both]))
        biased = any(side.bx is not None for side in sides)
        inputs = [
            x,
            self._stacked(f"{path}W", [side.Wx for side in sides]),
            self._stacked(f"{path}R", [side.Wh for side in sides]),
            self._stacked(f"{path}B", biases) if biased else "",
            self.lengths,
            *starts,
        ]
        while not inputs[-1]:
            inputs.pop()
        known = list(_STATES.values())[: len(kind._start_names())]
        outputs = [f"{path}Y_steps", *(f"{path}{end}_last" for _, end in known)]
        operator = kind.__name__
        self.nodes.append(
            helper.make_node(
                operator, inputs, outputs, f"{path}{operator}", **attributes
            )
        )
        return outputs

    def _activations(self, singles: list[tuple[str, Single]]) -> dict[str, Any]:
        """Return the attributes for nonlinearities, where layers have them."""
        found = [(path, _activation(path, single)) for path, single in singles]
        known = [(path, f) for path, f in found if f is not None]
        attributes: dict[str, Any] = {}
        if known:
            attributes["activations"] = [f.name for _, f in known]
        for which in ("alpha", "beta"):
            values = [getattr(f, which) for _, f in known]
            given = [value for value in values if value is not None]
            if given:
                # One value for each direction, also where one has no use for it:
                # runtimes differ in whether they skip that.
                attributes[f"activation_{which}"] = [
                    float(given[0] if value is None else value) for value in values
                ]
        self._judge_exact(known)
        return attributes

    def _starts(
        self, singles: list[tuple[str, Single]], path: str, x: str
    ) -> list[str]:
        """Return the states before the first step, inputs or what was learned."""
        H, starts = _width(singles[0][1]), []
        for key in kind_of(singles[0][1])._start_names():
            name = f"{path}{_STATES[key][0]}"
            learned = [getattr(single, key) for _, single in singles]
            starts.append("")
            if self.initial_h:
                for (at, _), row in zip(singles, learned, strict=True):
                    if row is not None:
                        raise ValueError(
                            f"initial_h must be False where {called(at)} has "
                            "learn_hidden, whose state the model would not hold"
                        )
                both = [2] if len(singles) == 2 else []
                self.inputs.append(self._value(name, [*both, "N", H]))
                starts[-1] = name
            elif any(row is not None for row in learned):
                rows = [mx.zeros((H,)) if row is None else row for row in learned]
                states = self._stacked(f"{name}_row", [row[None] for row in rows])
                one = self._integers([1])
                sizes = self._add("Shape", [x], f"{name}_sizes")
                batch = self._add("Gather", [sizes, one], f"{name}_batch")
                shape = self._add("Concat", [one, batch, one], f"{name}_shape", axis=0)
                starts[-1] = self._add("Expand", [states, shape], name)
        return starts

    def _without_padding(self, x: str, path: str) -> str:
        # As the layers do: what is in the padding of an input reaches no output.
        sizes = self._add("Shape", [x], f"{path}sizes")
        zero, one = (
            self._constant(f"{path}{name}", mx.array(i, mx.int64))
            for i, name in enumerate(("zero", "one"))
        )
        length = self._add("Gather", [sizes, zero], f"{path}length")
        steps = self._add("Range", [zero, length, one], f"{path}steps")
        column = self._add("Unsqueeze", [steps, self._integers([1])], f"{path}column")
        ends = self._add("Cast", [self.lengths], f"{path}ends", to=TensorProto.INT64)
        runs = self._add("Less", [column, ends], f"{path}runs")
        mask = self._add("Unsqueeze", [runs, self._integers([2])], f"{path}mask")
        nothing = self._constant(f"{path}nothing", mx.array(0, self.dtype))
        return self._add("Where", [mask, x, nothing], f"{path}without_padding")

    def _transposed(self, x: str, name: str) -> str:
        return self._add("Transpose", [x], name, perm=[1, 0, 2]) if self.layout else x

    def _add(
        self, kind: str, inputs: list[str], *outputs: str, **attributes: Any
    ) -> str:
        name = f"{outputs[0]}_{kind}"
        self.nodes.append(helper.make_node(kind, inputs, outputs, name, **attributes))
        return outputs[0]

    def _rename(self, old: str, new: str) -> None:
        for node in self.nodes:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == old:
                        names[i] = new

    def _integers(self, values: list[int]) -> str:
        name = "_".join(["integers", *map(str, values)])
        if all(constant.name != name for constant in self.constants):
            self._constant(name, mx.array(values, mx.int64))
        return name

    def _stacked(self, name: str, arrays: list[mx.array]) -> str:
        arrays = [a.astype(self.dtype, stream=mx.cpu) for a in arrays]
        return self._constant(name, mx.stack(arrays, stream=mx.cpu))

    def _constant(self, name: str, a: mx.array) -> str:
        kind = TensorProto.INT64 if a.dtype == mx.int64 else self.type
        if a.dtype == mx.bfloat16:
            a = a.view(mx.uint16, stream=mx.cpu)
        raw = values_of(mx.contiguous(a, stream=mx.cpu)).tobytes()
        self.constants.append(helper.make_tensor(name, kind, a.shape, raw, raw=True))
        return name

    def _value(self, name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, self.type, shape)

    def _sequence_axes(self, *axes: int) -> list[int | str]:
        """Return the shape of a sequence whose last axes are these."""
        if self.layout == 1:
            return ["N", "L", *axes]
        *directions, features = axes
        return ["L", *directions, "N", features]

    def _common_dtype(self) -> mx.Dtype:
        arrays = [
            a
            for path, layer in self.layers
            for a in judge_weights(layer, called(path)).values()
        ]
        dtype = mx.result_type(*arrays)
        if dtype not in _TYPES:
            raise ValueError(
                "the weights must be of a real floating dtype, but are "
                f"{dtype_name(dtype)}"
            )
        return dtype

    def _judge_exact(self, activations: list[tuple[str, Activation]]) -> None:
        # The standard's parameters are float32, whatever the weights are.
        for path, activation in activations:
            for which in ("alpha", "beta", "clip"):
                value = getattr(activation, which)
                if value is None:
                    continue
                held = float(np.float32(value))
                if not np.isfinite(held) or (
                    self.dtype == mx.float64 and held != value
                ):
                    raise ValueError(
                        f"{called(path)} has a nonlinearity with {which} {value}, "
                        "which must be a finite float32 number: ONNX holds it as one"
                    )

    def _judge_residuals(self) -> None:
        """Refuse nested stacks that one stack in their place would not equal."""
        if not any(added for added, _ in self.residuals.values()):
            return
        for path, (added, could) in self.residuals.items():
            if could and not added:
                raise ValueError(
                    f"{called(path)} is in a Stack without residual, where others "
                    "have it: no model that from_onnx reads has that"
                )


def _single_layers(network: Any) -> list[tuple[str, Single]]:
    """Return every layer of a network with its path, each found fit for ONNX."""
    found = list(singles_of(network))
    for path, layer in found:
        judge_layer(layer, called(path), f"ONNX's {LISTED}", _TRAINING)
        judge_weights(layer, called(path))
        _activation(path, layer)
    return found


def _activation(path: str, layer: Single) -> Activation | None:
    """Return ONNX's name for a nonlinearity, where a layer has one."""
    if not isinstance(layer, RNN):
        return None
    activation = activation_of(layer.nonlinearity)
    if activation is None:
        raise ValueError(
            f"{called(path)} has the nonlinearity {describe(layer.nonlinearity)}, "
            "which is none of ONNX's activations"
        )
    return activation


def _common(path: str, layer: Single) -> dict[str, Any]:
    """Return the attributes that one node has for both of its directions."""
    activation = _activation(path, layer)
    if activation is not None:
        return {} if activation.clip is None else {"clip": float(activation.clip)}
    is_gru = isinstance(layer, GRU)
    return {"linear_before_reset": int(layer.reset_after)} if is_gru else {}


def _width(layer: Single) -> int:
    """Return the number of hidden features."""
    return weight_sizes(layer)[1]
