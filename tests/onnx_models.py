"""ONNX models of the operator RNN, written by hand, and what runs them."""

import mlx.core as mx
import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from conftest import draw

# Rows, steps, features and hidden units.
N, L, D, H = 3, 6, 3, 4
TYPES = {
    mx.float32: TensorProto.FLOAT,
    mx.float64: TensorProto.DOUBLE,
    mx.float16: TensorProto.FLOAT16,
    mx.bfloat16: TensorProto.BFLOAT16,
}


def numpy(a):
    """An MLX array in NumPy, in its own dtype, but bfloat16 as ONNX's integers."""
    return np.array(a.view(mx.uint16) if a.dtype == mx.bfloat16 else a)


def tensor(name, a):
    """A constant from an MLX or NumPy array."""
    if isinstance(a, np.ndarray):
        return numpy_helper.from_array(a, name)
    return helper.make_tensor(name, TYPES[a.dtype], a.shape, numpy(a).tobytes(), True)


GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def weights(rng, directions=1, D=D, H=H, dtype=mx.float32, bias=True, operator="RNN"):
    """W, R and B by name."""
    rows = GATES[operator] * H
    arrays = {
        "W": draw(rng, (directions, rows, D), dtype, D**-0.5),
        "R": draw(rng, (directions, rows, H), dtype, H**-0.5),
        "B": draw(rng, (directions, 2 * rows), dtype, 0.5),
    }
    return arrays if bias else {"W": arrays["W"], "R": arrays["R"]}


def model_of(nodes, inputs, outputs, constants, opset=22, dtype=mx.float32):
    """A model; inputs and outputs are shapes by name, those of lengths int32."""

    def infos(shapes):
        return [
            helper.make_tensor_value_info(
                name,
                TensorProto.INT32 if name == "sequence_lens" else TYPES[dtype],
                shape,
            )
            for name, shape in shapes.items()
        ]

    graph = helper.make_graph(
        nodes,
        "graph",
        infos(inputs),
        infos(outputs),
        [tensor(name, a) for name, a in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        graph,
        opset_imports=opsets,
        # From 4 on weights need not be inputs.
        ir_version=max(4, helper.find_min_ir_version_for(opsets)),
    )
    checker.check_model(model, full_check=True)
    return model


def single(
    rng,
    direction="forward",
    initial_h=False,
    dtype=mx.float32,
    operator="RNN",
    **attributes,
):
    """One node alone, with lengths and without a known number of rows or steps."""
    directions = 2 if direction == "bidirectional" else 1
    batch_first = attributes.get("layout") == 1
    inputs = {
        "X": ["N", "L", D] if batch_first else ["L", "N", D],
        "sequence_lens": ["N"],
    }
    state = ["N", directions, H] if batch_first else [directions, "N", H]
    lasts = ["Y_h", "Y_c"] if operator == "LSTM" else ["Y_h"]
    names = [last.replace("Y", "initial") for last in lasts]
    if initial_h:
        inputs |= dict.fromkeys(names, state)
    node = helper.make_node(
        operator,
        ["X", "W", "R", "B", "sequence_lens", *(names if initial_h else [""])],
        ["Y", *lasts],
        "rnn",
        hidden_size=H,
        direction=direction,
        **attributes,
    )
    y = ["N", "L", directions, H] if batch_first else ["L", directions, "N", H]
    arrays = weights(rng, directions, D, H, dtype, operator=operator)
    outputs = {"Y": y, **dict.fromkeys(lasts, state)}
    return model_of([node], inputs, outputs, arrays, dtype=dtype)


INTEGERS = {
    "zero": np.array([0]),
    "one": np.array([1]),
    "two": np.array([2]),
    "ones": np.array([1, 1]),
    "first": np.array(0),
    "second": np.array(1),
    "wide": np.array([0, 0, -1]),
    "deux": np.array(2, np.float32),
}
BOTH = {"shapes": [(2, D, H)]}
TWO = {"shapes": [(1, D, H), (1, H, H)]}


def graph(rng, nodes, outputs, constants=None, inputs=None, **keywords):
    """A model of nodes around RNN nodes with the weights 1W, 1R, 1B, 2W, ..."""
    arrays = {}
    for i, shape in enumerate(keywords.pop("shapes", [(1, D, H)]), start=1):
        directions, features, hidden = shape
        made = weights(rng, directions, features, hidden)
        arrays |= {f"{i}{name}": a for name, a in made.items()}
    inputs = {"X": ["L", "N", D], **(inputs or {})}
    return model_of(nodes, inputs, outputs, {**arrays, **(constants or {})}, **keywords)


def rnn(i, x, y, h="", lens="", direction="forward", **attributes):
    return helper.make_node(
        "RNN",
        [x, f"{i}W", f"{i}R", f"{i}B", lens, h],
        [y, f"{y}_h"],
        f"rnn{i}",
        direction=direction,
        hidden_size=H,
        **attributes,
    )


def node(kind, inputs, outputs, **attributes):
    return helper.make_node(
        kind, inputs.split(), outputs.split(), f"the {kind}", **attributes
    )


def zero_state(start="X"):
    """The first state as tf2onnx and PyTorch write it: zeros for the rows there are."""
    return [
        node("Shape", start, "sizes"),
        node("Gather", "sizes second", "rows", axis=0),
        node("Unsqueeze", "rows zero", "row"),
        node("Concat", "one row hidden", "shape", axis=0),
        node("ConstantOfShape", "shape", "h"),
    ]


def in_runtime(model, inputs):
    """The outputs of ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, inputs)


def in_evaluator(model, inputs):
    """The outputs of ONNX's reference evaluator."""
    return ReferenceEvaluator(model).run(None, inputs)
