"""What exporters write: read with the framework's own values, or named and refused."""

import warnings

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from interchange import equal_weights
from mlx_recurrent import LSTM, RNN
from mlx_recurrent.interop import from_onnx, from_torch
from networks import each_layer
from tolerances import agree

onnx = pytest.importorskip("onnx", reason="onnx is not installed")

from onnx import helper  # noqa: E402

from onnx_models import D, H, L, N  # noqa: E402


def body(nodes, inputs, outputs, name="body"):
    """A graph for an attribute, of float32."""
    infos = [
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names]
        for names in (inputs, outputs)
    ]
    return helper.make_graph(nodes, name, *infos)


def recurrent(kind, name, domain=""):
    given, made = ["X", "W", "R"], ["Y"]
    return helper.make_node(kind, given, made, name, domain=domain, hidden_size=H)


def steps(wrapped):
    """A loop that was unrolled, its weights through an operator, as exporters do."""
    nodes, h = [], "X"
    for i in range(3):
        if wrapped:
            nodes.append(helper.make_node(wrapped, ["R"], [f"R{i}"]))
        nodes += [
            helper.make_node("MatMul", [h, f"R{i}" if wrapped else "R"], [f"m{i}"]),
            helper.make_node("Tanh", [f"m{i}"], [f"h{i}" if i < 2 else "Y"]),
        ]
        h = f"h{i}"
    return nodes


LOOP = helper.make_node(
    "Loop",
    ["many", "", "X"],
    ["Y"],
    "the loop",
    body=helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["goes"]),
            helper.make_node("Tanh", ["h"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
            helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", onnx.TensorProto.FLOAT, None),
        ],
    ),
)
SCAN = helper.make_node(
    "Scan",
    ["h", "X"],
    ["last", "Y"],
    "the scan",
    num_scan_inputs=1,
    body=body(
        [
            helper.make_node("Add", ["a", "x"], ["b"]),
            helper.make_node("Identity", ["b"], ["y"]),
        ],
        ["a", "x"],
        ["b", "y"],
    ),
)


def branches(kind):
    graph = body([recurrent(kind, "inner")], [], ["Y"])
    return helper.make_node(
        "If", ["yes"], ["Y"], "the if", then_branch=graph, else_branch=graph
    )


WITHOUT = {
    "another domain": (
        [recurrent("RNN", "rnn", "com.example")],
        "but RNN 'rnn' of the domain 'com.example'; only ONNX's own",
    ),
    "If": ([branches("RNN")], r"but RNN 'inner' in the node 'the if' \(If\); only"),
    "LSTM in If": (
        [branches("LSTM")],
        r"but LSTM 'inner' in the node 'the if' \(If\); on",
    ),
    "Loop": ([LOOP], "but Loop 'the loop', a loop over steps; take the layer itself"),
    "Scan": ([SCAN], "but Scan 'the scan', a loop over steps; take the layer itself"),
    "function": (
        [helper.make_node("Layer", ["X", "W", "R"], ["Y"], domain="own")],
        "but RNN 'inner' in the function 'Layer'; only",
    ),
    "unrolled": (steps(""), "but 3 products with the same weights, a loop that was"),
    "unrolled, Keras": (steps("Identity"), r"but 3 products .* dynamo=False \(PyTorch"),
    "unrolled, turned": (steps("Transpose"), "but 3 products with the same weights"),
    "nothing": (
        [helper.make_node("Relu", ["X"], ["Y"])],
        r"has no RNN, GRU or LSTM node: export with dynamo=False .*from_torch, from_",
    ),
}


@pytest.mark.parametrize("what", WITHOUT)
def test_what_there_is_in_place_of_an_rnn_node_is_named(what):
    nodes, said = WITHOUT[what]
    value = helper.make_tensor_value_info
    inputs = [value(n, onnx.TensorProto.FLOAT, None) for n in ("X", "W", "R", "h")]
    inputs.append(value("yes", onnx.TensorProto.BOOL, []))
    inputs.append(value("many", onnx.TensorProto.INT64, []))
    layer = helper.make_function(
        "own",
        "Layer",
        ["X", "W", "R"],
        ["Y"],
        [recurrent("RNN", "inner")],
        [helper.make_opsetid("", 17)],
    )
    for info in inputs[:4]:
        info.type.tensor_type.shape.SetInParent()
    y = value("Y", onnx.TensorProto.FLOAT, [])
    domains = [("", 17), ("own", 1), ("com.example", 1)]
    model = helper.make_model(
        helper.make_graph(nodes, "graph", inputs, [y]),
        opset_imports=[helper.make_opsetid(*domain) for domain in domains],
        functions=[layer] if what == "function" else [],
        ir_version=8,
    )
    with pytest.raises(ValueError, match=said):
        from_onnx(model)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@each_layer
def test_pytorchs_export(
    tmp_path, rng, kind, layers, bidirectional, batch_first, hidden
):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    model = getattr(torch.nn, kind.__name__)(
        D,
        H,
        layers,
        **({"nonlinearity": "relu"} if kind is RNN else {}),
        bidirectional=bidirectional,
        batch_first=batch_first,
        dropout=0.5 if layers > 1 else 0,
    )
    both = 1 + bidirectional
    x = torch.from_numpy(rng.standard_normal((N, L, D)).astype(np.float32))
    count = 2 if kind is LSTM else 1
    shape = (count, layers * both, N, H)
    given_states = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
    h = tuple(given_states) if kind is LSTM else given_states[0]
    given = x if batch_first else x.swapaxes(0, 1)
    arguments = (given, h) if hidden else (given,)
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own
        torch.onnx.export(model, arguments, tmp_path / "model.onnx", dynamo=False)
    layer = from_onnx(tmp_path / "model.onnx")
    with torch.no_grad():
        y, last = model(*arguments)
    states = None
    if hidden:
        states = [mx.array(each.numpy()) for each in given_states]
        states = [tuple(a[i] for a in states) for i in range(layers * both)]
        states = states if kind is LSTM else [state[0] for state in states]
        if bidirectional:
            states = [tuple(states[i : i + 2]) for i in range(0, 2 * layers, 2)]
        states = states if layers > 1 else states[0]
    apart = states if isinstance(layer, LSTM) and hidden else [states]
    outputs, ends = layer(mx.array(x.numpy()), *apart, return_state=True)
    y = y if batch_first else y.swapaxes(0, 1)
    agree(outputs, mx.array(y.numpy()), "outputs")
    ends = [a for _, a in tree_flatten(ends)]
    for i, each in enumerate(last if kind is LSTM else [last]):
        agree(mx.stack(ends[i::count]), mx.array(each.numpy()), "states")
    equal_weights(layer, from_torch(model))


@each_layer
def test_pytorchs_export_of_packed_sequences(tmp_path, rng, kind):
    """Rows of different lengths: PyTorch's own outputs of them."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    class Packed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = getattr(torch.nn, kind.__name__)(D, H, 2, bidirectional=True)

        def forward(self, x, lengths):
            packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths)
            outputs, states = self.rnn(packed)
            outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(outputs)
            return outputs, states

    model, lengths = Packed().eval(), [L, 4, 1]
    x = torch.from_numpy(rng.standard_normal((L, N, D)).astype(np.float32))
    arguments = (x, torch.tensor(lengths))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own
        torch.onnx.export(
            model,
            arguments,
            tmp_path / "model.onnx",
            dynamo=False,
            input_names=["x", "lengths"],
            dynamic_axes={"x": [0, 1], "lengths": [0]},
        )
    layer = from_onnx(tmp_path / "model.onnx")
    with torch.no_grad():
        y, _ = model(*arguments)
    mine = layer(mx.array(x.swapaxes(0, 1).numpy()), lengths=lengths)
    agree(mine, mx.array(y.swapaxes(0, 1).numpy()))
    equal_weights(layer, from_torch(model.rnn))
