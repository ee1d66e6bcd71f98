"""ONNX models as layers: the standard's cases, exporters' graphs, and what is refused.

The truth is what ONNX's own cases state, ONNX's reference evaluator, ONNX Runtime, or
loops over plain MLX operations.
"""

import math
import warnings

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import reference
from conftest import array, draw
from mlx_recurrent import RNN, Bidirectional, Stack
from mlx_recurrent.interop import Reversed, from_onnx, to_onnx
from tolerances import DIFFERENCE, agree, equal, largest, wide

onnx = pytest.importorskip("onnx", reason="onnx is not installed")

from onnx import helper, numpy_helper  # noqa: E402

from onnx_models import (  # noqa: E402
    in_evaluator,
    in_runtime,
    model_of,
    single,
    weights,
)

N, L, D, H = 3, 6, 3, 4
DIRECTIONS = ["forward", "reverse", "bidirectional"]


def outputs_of(layer, x, hidden=None, lengths=None):
    """Y and Y_h as the operator of layout 0 shapes them, for x (N, L, D)."""
    y, last = layer(x, hidden, lengths=lengths, return_state=True)
    pair = isinstance(layer, Bidirectional)
    if pair and layer.merge == "concat":
        y = mx.split(y, 2, axis=-1)
    y = mx.stack(y) if pair else y[None]
    last = mx.stack(last) if pair else last[None]
    return mx.moveaxis(mx.swapaxes(y, 1, 2), 0, 1), last


# The standard -------------------------------------------------------------------------


def conformance_cases():
    from onnx.backend.test.case import node

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ONNX's own
        from onnx.backend.test.case.node import rnn  # noqa: F401, makes them
    return [
        case
        for case in node._NodeTestCases
        if [made.op_type for made in case.model.graph.node] == ["RNN"]
    ]


CONFORMANCE = conformance_cases()


def test_the_standards_cases_are_those_that_are_known():
    assert {case.name for case in CONFORMANCE} >= {
        "test_simple_rnn_defaults",
        "test_simple_rnn_with_initial_bias",
        "test_rnn_seq_length",
        "test_simple_rnn_batchwise",
    }


@pytest.mark.parametrize("case", CONFORMANCE, ids=lambda case: case.name)
def test_conformance(case):
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    node = model.graph.node[0]
    for inputs, outputs in case.data_sets:
        given = dict(zip([i.name for i in model.graph.input], inputs, strict=True))
        expected = dict(zip([o.name for o in model.graph.output], outputs, strict=True))
        x = given.pop("X")
        for name, a in given.items():  # weights that the cases give as inputs
            model.graph.initializer.append(numpy_helper.from_array(a, name))
        layer = from_onnx(model.SerializeToString())
        batch_first = any(a.name == "layout" and a.i for a in node.attribute)
        x = x if batch_first else np.swapaxes(x, 0, 1)
        y, last = outputs_of(layer, array(x, mx.float32))
        if batch_first:
            y, last = mx.transpose(y, (2, 0, 1, 3)), mx.swapaxes(last, 0, 1)
        for name, mine in (("Y", y), ("Y_h", last)):
            if name in expected:
                agree(mine, array(expected[name], mx.float32), name)


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float64, mx.float16])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_reference_evaluator_agrees(rng, direction, dtype, layout):
    model = single(rng, direction, True, dtype, layout=layout)
    layer = from_onnx(model)
    both = 2 if direction == "bidirectional" else 1
    for std in (1, 30):
        x = draw(rng, (N, L, D), dtype, std)
        hidden = draw(rng, (both, N, H), dtype)
        y, last = outputs_of(layer, x, list(hidden) if both == 2 else hidden[0])
        inputs = {
            "X": np.array(x if layout else mx.swapaxes(x, 0, 1)),
            "sequence_lens": np.full(N, L, np.int32),
            "initial_h": np.array(mx.swapaxes(hidden, 0, 1) if layout else hidden),
        }
        other_y, other_last = in_evaluator(model, inputs)
        if layout:
            other_y = other_y.transpose(1, 2, 0, 3)
            other_last = other_last.swapaxes(0, 1)
        agree(y, array(other_y, dtype), "Y")
        agree(last, array(other_last, dtype), "Y_h")


# Per function: alpha, beta and what the standard says it is.
FUNCTIONS = {
    "Relu": (None, None, lambda x: np.maximum(x, 0)),
    "Tanh": (None, None, np.tanh),
    "Sigmoid": (None, None, lambda x: 1 / (1 + np.exp(-x))),
    "Affine": (0.5, -0.25, lambda x: 0.5 * x - 0.25),
    "LeakyRelu": (0.25, None, lambda x: np.where(x >= 0, x, 0.25 * x)),
    "ThresholdedRelu": (0.5, None, lambda x: np.where(x >= 0.5, x, 0)),
    "ScaledTanh": (1.5, 0.5, lambda x: 1.5 * np.tanh(0.5 * x)),
    "HardSigmoid": (0.25, 0.5, lambda x: np.clip(0.25 * x + 0.5, 0, 1)),
    "Elu": (0.75, None, lambda x: np.where(x >= 0, x, 0.75 * (np.exp(x) - 1))),
    # The magnitude in a form that complex steps can go through.
    "Softsign": (None, None, lambda x: x / (1 + x * np.sign(x.real))),
    "Softplus": (None, None, lambda x: np.log(1 + np.exp(x))),
}


@pytest.mark.parametrize("clip", [None, 0.75])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_activations_are_what_the_standard_says(rng, name, clip):
    """Values and gradients in float64, against a loop in NumPy and its differences."""
    alpha, beta, f = FUNCTIONS[name]
    attributes = {"activations": [name]}
    if alpha is not None:
        attributes["activation_alpha"] = [alpha]
    if beta is not None:
        attributes["activation_beta"] = [beta]
    if clip is not None:
        attributes["clip"] = clip
    layer = from_onnx(single(rng, dtype=mx.float64, **attributes))
    x = draw(rng, (N, L, D), mx.float64)
    native = clip is None and name in ("Relu", "Tanh", "Sigmoid")
    assert layer.plan(x).path == ("native" if native else "traced")

    def ours(*arrays):
        layer.Wxh, layer.Whh, layer.bias = arrays[1:]
        return [layer(arrays[0])]

    def plain(x, Wxh, Whh, bias):
        h, states = np.zeros((N, H)), []
        for t in range(L):
            a = x[:, t] @ Wxh.T + bias + h @ Whh.T
            h = f(a if clip is None else np.clip(a, -clip, clip))
            states.append(h)
        return np.stack(states, axis=1)

    arrays = [x, layer.Wxh, layer.Whh, layer.bias]
    cotangent = draw(rng, (N, L, H), mx.float64)
    values, gradients = mx.vjp(ours, arrays, [cotangent])
    true = [wide(a) for a in arrays]
    truths = reference.gradient(plain, true, wide(cotangent))
    for mine, truth in zip([*values, *gradients], [plain(*true), *truths], strict=True):
        assert largest(wide(mine) - truth) <= DIFFERENCE * largest(truth), name


@pytest.mark.parametrize("name", ["LeakyRelu", "HardSigmoid", "Elu"])
def test_defaults_are_those_of_the_operators(rng, name):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    model = single(rng, activations=[name])
    layer = from_onnx(model)
    x = draw(rng, (N, L, D), mx.float32, 2)
    inputs = {
        "X": np.array(mx.swapaxes(x, 0, 1)),
        "sequence_lens": np.full(N, L, np.int32),
    }
    agree(outputs_of(layer, x)[0], array(in_runtime(model, inputs)[0], mx.float32))


def test_default_of_thresholded_relu(rng):
    # ONNX Runtime takes 0, against the standard.
    layer = from_onnx(single(rng, activations=["ThresholdedRelu"]))
    values = mx.array([-2.0, 0.5, 0.99, 1.0, 2.0])
    assert layer.nonlinearity(values).tolist() == [0, 0, 0, 1, 2]


def test_names_of_activations_in_any_case(rng):
    assert isinstance(
        from_onnx(single(rng, activations=["relu"])).nonlinearity, nn.ReLU
    )


def test_parameters_are_consumed_in_order(rng):
    def made(**attributes):
        layer = from_onnx(single(rng, "bidirectional", **attributes))
        return layer.forward.nonlinearity, layer.backward.nonlinearity

    activations = ["Tanh", "LeakyRelu"]
    _, leaky = made(activations=activations, activation_alpha=[0.25])
    assert leaky._negative_slope == 0.25
    # By place and in order alike.
    _, leaky = made(activations=activations, activation_alpha=[0.25, 0.25])
    assert leaky._negative_slope == 0.25
    with pytest.raises(ValueError, match="activation_alpha: 2 values are given, where"):
        made(activations=activations, activation_alpha=[0.5, 0.25])


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64, mx.float16, mx.bfloat16])
def test_weights_are_exact(rng, dtype):
    arrays = weights(rng, 2, D, H, dtype)
    node = helper.make_node(
        "RNN", ["X", "W", "R", "B"], ["Y"], hidden_size=H, direction="bidirectional"
    )
    model = model_of(
        [node], {"X": ["L", "N", D]}, {"Y": ["L", 2, "N", H]}, arrays, dtype=dtype
    )
    layer = from_onnx(model)
    for i, one in enumerate((layer.forward, layer.backward)):
        equal(one.Wxh, arrays["W"][i])
        equal(one.Whh, arrays["R"][i])
        equal(one.bias, arrays["B"][i, :H] + arrays["B"][i, H:])


# Where the weights are, and what is around the node -----------------------------------


def test_weights_from_nodes(rng):
    arrays = weights(rng)
    W, R, B = (np.array(arrays[name]) for name in "WRB")
    nodes = [
        helper.make_node(
            "Constant", [], ["w"], value=numpy_helper.from_array(W[0].T.copy(), "w")
        ),
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("Unsqueeze", ["wt", "zero"], ["W"]),
        helper.make_node("Identity", ["r"], ["R"]),
        helper.make_node("Concat", ["wb", "rb"], ["b"], axis=0),
        helper.make_node("Unsqueeze", ["b", "zero"], ["B"]),
        helper.make_node("RNN", ["X", "W", "R", "B"], ["Y"], hidden_size=H),
    ]
    constants = {"zero": np.array([0]), "r": R, "wb": B[0, :H], "rb": B[0, H:]}
    layer = from_onnx(
        model_of(nodes, {"X": ["L", "N", D]}, {"Y": ["L", 1, "N", H]}, constants)
    )
    equal(layer.Wxh, arrays["W"][0])
    equal(layer.Whh, arrays["R"][0])
    equal(layer.bias, arrays["B"][0, :H] + arrays["B"][0, H:])


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


MERGES = {
    "transpose and reshape": (
        "concat",
        [
            node("Transpose", "y", "t", perm=[0, 2, 1, 3]),
            node("Reshape", "t wide", "Y"),
        ],
    ),
    "split and concat": (
        "concat",
        [
            node("Split", "y ones", "f b", axis=1),
            node("Squeeze", "f one", "sf"),
            node("Squeeze", "b one", "sb"),
            node("Concat", "sf sb", "Y", axis=2),
        ],
    ),
    "gather and concat": (
        "concat",
        [
            node("Gather", "y first", "f", axis=1),
            node("Gather", "y second", "b", axis=1),
            node("Concat", "f b", "Y", axis=-1),
        ],
    ),
    "slice and add": (
        "sum",
        [
            node("Slice", "y zero one one", "f"),
            node("Slice", "y one two one", "b"),
            node("Add", "b f", "s"),
            node("Squeeze", "s one", "Y"),
        ],
    ),
    "sum": ("sum", [node("ReduceSum", "y one", "Y", keepdims=0)]),
    "mean": ("mean", [node("ReduceMean", "y one", "Y", keepdims=0)]),
    "product": ("mul", [node("ReduceProd", "y one", "Y", keepdims=0)]),
    "half the sum": (
        "mean",
        [node("ReduceSum", "y one", "s", keepdims=0), node("Div", "s deux", "Y")],
    ),
}
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


@pytest.mark.parametrize("how", MERGES)
def test_what_graphs_make_of_two_directions(rng, how):
    merge, nodes = MERGES[how]
    width = 2 * H if merge == "concat" else H
    model = graph(
        rng,
        [rnn(1, "X", "y", direction="bidirectional"), *nodes],
        {"Y": ["L", "N", width], "y_h": [2, "N", H]},
        INTEGERS,
        shapes=[(2, D, H)],
    )
    layer = from_onnx(model)
    assert layer.merge == merge
    x = draw(rng, (N, L, D), mx.float32)
    (y, _) = in_evaluator(model, {"X": np.array(mx.swapaxes(x, 0, 1))})
    agree(mx.swapaxes(layer(x), 0, 1), array(y, mx.float32))


def test_two_nodes_as_two_directions(rng):
    nodes = [
        rnn(1, "X", "f"),
        rnn(2, "X", "b", direction="reverse"),
        node("Squeeze", "f one", "sf"),
        node("Squeeze", "b one", "sb"),
        node("Concat", "sf sb", "Y", axis=2),
    ]
    shapes = [(1, D, H), (1, D, H)]
    model = graph(rng, nodes, {"Y": ["L", "N", 2 * H]}, INTEGERS, shapes=shapes)
    layer = from_onnx(model)
    x = draw(rng, (N, L, D), mx.float32)
    (y,) = in_evaluator(model, {"X": np.array(mx.swapaxes(x, 0, 1))})
    agree(mx.swapaxes(layer(x), 0, 1), array(y, mx.float32))
    # The other way round there is no such layer.
    nodes[-1] = node("Concat", "sb sf", "Y", axis=2)
    model = graph(rng, nodes, {"Y": ["L", "N", 2 * H]}, INTEGERS, shapes=shapes)
    with pytest.raises(ValueError, match=r"'Y', which is made of .*Concat"):
        from_onnx(model)


def zero_state(start="X"):
    """The first state as tf2onnx and PyTorch write it: zeros for the rows there are."""
    return [
        node("Shape", start, "sizes"),
        node("Gather", "sizes second", "rows", axis=0),
        node("Unsqueeze", "rows zero", "row"),
        node("Concat", "one row hidden", "shape", axis=0),
        node("ConstantOfShape", "shape", "h"),
    ]


def test_a_zero_state_and_whole_lengths_that_the_graph_makes(rng):
    nodes = [
        *zero_state(),
        node("Gather", "sizes zero", "steps", axis=0),
        node("Expand", "steps row", "wide_lens"),
        node("Cast", "wide_lens", "lens", to=onnx.TensorProto.INT32),
        rnn(1, "X", "y", "h", "lens"),
        node("Squeeze", "y one", "Y"),
    ]
    constants = {**INTEGERS, "hidden": np.array([H])}
    layer = from_onnx(graph(rng, nodes, {"Y": ["L", "N", H]}, constants))
    assert type(layer) is RNN and layer.hidden0 is None


@pytest.mark.parametrize("rows", [1, 3])
def test_a_constant_state_becomes_hidden0(rng, rows):
    row = draw(rng, (1, 1, H), mx.float32)
    state = mx.contiguous(mx.broadcast_to(row, (1, rows, H)))
    nodes = [rnn(1, "X", "Y", "h")]
    outputs = {"Y": ["L", 1, "N", H]}
    layer = from_onnx(graph(rng, nodes, outputs, {"h": state}))
    equal(layer.hidden0, row[0, 0])
    # A learned state that is repeated for the rows there are.
    nodes = [*zero_state()[:-1], node("Expand", "row0 shape", "h"), *nodes]
    constants = {**INTEGERS, "hidden": np.array([H]), "row0": row}
    equal(from_onnx(graph(rng, nodes, outputs, constants)).hidden0, row[0, 0])
    zeros = graph(rng, nodes[-1:], outputs, {"h": mx.zeros((1, rows, H))})
    assert from_onnx(zeros).hidden0 is None


def test_a_state_of_another_value_for_each_row_is_refused(rng):
    h = {"h": draw(rng, (1, 3, H), mx.float32)}
    model = graph(rng, [rnn(1, "X", "Y", "h")], {"Y": ["L", 1, "N", H]}, h)
    with pytest.raises(ValueError, match=r"'rnn1' with initial_h: .* for each row"):
        from_onnx(model)


STACK = [
    rnn(1, "X", "y1"),
    node("Squeeze", "y1 one", "s1"),
    rnn(2, "s1", "y2"),
    node("Squeeze", "y2 one", "s2"),
]
TWO = {"shapes": [(1, D, H), (1, H, H)]}


def test_dropout_of_evaluation_and_outputs_of_every_layer(rng):
    nodes = [*STACK[:2], node("Dropout", "s1", "d"), rnn(2, "d", "y2"), STACK[3]]
    outputs = {
        "s1": ["L", "N", H],
        "s2": ["L", "N", H],
        "y1_h": [1, "N", H],
        "y2_h": [1, "N", H],
    }
    model = graph(rng, nodes, outputs, INTEGERS, **TWO)
    layer = from_onnx(model)
    assert isinstance(layer, Stack) and not layer.residual
    x = draw(rng, (N, L, D), mx.float32)
    both, states = layer(x, return_all=True, return_state=True)
    results = in_evaluator(model, {"X": np.array(mx.swapaxes(x, 0, 1))})
    for mine, theirs in zip(
        [mx.swapaxes(y, 0, 1) for y in both] + [s[None] for s in states],
        results,
        strict=True,
    ):
        agree(mine, array(theirs, mx.float32))


def test_residuals_on_some_layers_only_are_refused(rng):
    nodes = [*STACK, node("Add", "s2 s1", "Y")]
    outputs = {"Y": ["L", "N", H]}
    layer = from_onnx(graph(rng, nodes, outputs, INTEGERS, **TWO))
    assert layer.residual  # the first layer's sizes differ
    same = {"shapes": [(1, H, H), (1, H, H)], "inputs": {"X": ["L", "N", H]}}
    model = graph(rng, nodes, outputs, INTEGERS, **same)
    with pytest.raises(ValueError, match="'rnn1', whose input is not added"):
        from_onnx(model)


HEAD = [
    *STACK,
    node("MatMul", "s2 weight", "Y"),
]


def test_rnn_nodes_of_a_larger_model(rng):
    nodes = [node("MatMul", "X before", "e"), rnn(1, "e", "y1"), *HEAD[1:]]
    constants = {
        **INTEGERS,
        "before": draw(rng, (D, D), mx.float32),
        "weight": draw(rng, (H, 2), mx.float32),
    }
    model = graph(rng, nodes, {"Y": ["L", "N", 2]}, constants, **TWO)
    with pytest.raises(
        ValueError, match=r"'the MatMul' \(MatMul\).*node= takes .*'rnn1', 'rnn2'"
    ):
        from_onnx(model)
    stack = from_onnx(model, node=["rnn1", "rnn2"])
    assert [type(layer) for layer in stack.layers] == [RNN, RNN]
    equal(from_onnx(model, node="rnn2").Whh, stack.layers[1].Whh)
    with pytest.raises(ValueError, match=r"node must be an RNN node .* but is 'rnn3'"):
        from_onnx(model, node="rnn3")
    with pytest.raises(ValueError, match="'rnn2', which does not lead to 'rnn1'"):
        from_onnx(model, node=["rnn2", "rnn1"])
    for wrong, error in ((3, TypeError), ([], ValueError), (["rnn1"] * 2, ValueError)):
        with pytest.raises(error, match="node must"):
            from_onnx(model, node=wrong)


def test_unrelated_nodes_are_chosen_by_name(rng):
    nodes = [rnn(1, "X", "y1"), rnn(2, "X", "y2")]
    outputs = {"y1": ["L", 1, "N", H], "y2": ["L", 1, "N", H]}
    model = graph(rng, nodes, outputs, shapes=[(1, D, H), (1, D, H)])
    with pytest.raises(ValueError, match="do not follow each other"):
        from_onnx(model)
    equal(from_onnx(model, node="rnn2").Wxh, array(tensors(model)["2W"][0], mx.float32))


def tensors(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


LENS = {"sequence_lens": ["N"]}


@pytest.mark.parametrize(
    ("nodes", "keywords", "said"),
    [
        (
            [node("Tanh", "X", "t"), rnn(1, "t", "Y")],
            {},
            r"'rnn1', whose X is made of the input 'X' by the node 'the Tanh' \(Tanh\)",
        ),
        (
            [
                node("Transpose", "X", "t", perm=[0, 1, 2]),
                rnn(1, "t", "s"),
                node("Relu", "s", "Y"),
            ],
            {},
            r"of the outputs of 'rnn1' by the node 'the Relu' \(Relu\)",
        ),
        (
            [rnn(1, "X", "Y", lens="lens")],
            {"constants": {"lens": np.int32([3, 3])}},
            "sequence_lens: it is a constant",
        ),
        (
            [rnn(1, "X", "Y", "h"), node("Relu", "X", "h")][::-1],
            {},
            "initial_h: it is made of the input 'X' by the node 'the Relu'",
        ),
        (
            [*STACK[:2], rnn(2, "s1", "Y", "y1_h")],
            TWO,
            "'rnn2' with initial_h: it is the last state of 'rnn1'",
        ),
        (
            [*STACK[:2], rnn(2, "s1", "Y", lens="sequence_lens")],
            {**TWO, "inputs": LENS},
            "'rnn1' and 'rnn2' with different sequence_lens",
        ),
        (
            [
                node("Transpose", "X", "t", perm=[1, 0, 2]),
                *STACK[:2],
                node("Transpose", "s1", "t1", perm=[1, 0, 2]),
                rnn(2, "t1", "Y"),
            ],
            TWO,
            "'rnn2', whose X has not the axes of 'rnn1' in its places",
        ),
        ([rnn(1, "X", "Y", activations=["Swish"])], {}, "activations must be of Relu,"),
        (
            [rnn(1, "X", "Y", activations=["Affine"])],
            {},
            "activation_alpha must be",
        ),
        ([rnn(1, "X", "Y", clip=-1.0)], {}, "clip must be at least 0, but is -1"),
        (
            [rnn(1, "X", "Y", activations=["Elu"], activation_alpha=[math.nan])],
            {},
            "activation_alpha must be finite, but Elu has nan",
        ),
    ],
)
def test_what_a_layer_does_not_have_is_refused(rng, nodes, keywords, said):
    keywords = {**keywords, "constants": {**INTEGERS, **keywords.get("constants", {})}}
    model = graph(rng, nodes, {"Y": [None] * 4}, **keywords)
    with pytest.raises(ValueError, match=said):
        from_onnx(model)


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
    "LSTM": ([recurrent("LSTM", "the lstm")], "but LSTM 'the lstm', which is not read"),
    "GRU": ([recurrent("GRU", "")], "but GRU 'Y', which is not read"),
    "another domain": (
        [recurrent("RNN", "rnn", "com.example")],
        "but RNN 'rnn' of the domain 'com.example'; only ONNX's own",
    ),
    "If": ([branches("RNN")], r"but RNN 'inner' in the node 'the if' \(If\); only"),
    "LSTM in If": ([branches("LSTM")], r"but LSTM 'inner' in the node 'the if' \(If\)"),
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
        r"has no RNN node: export with dynamo=False .*from_torch, from_keras",
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


def test_weights_must_be_constants_that_fit(rng):
    outputs = {"Y": ["L", 1, "N", H]}
    good = graph(rng, [rnn(1, "X", "Y")], outputs)
    for name, shape, said in (
        ("1W", (2, H, D), r"W: its shape must be \(1, H, D\)"),
        ("1R", (1, H, 5), r"R: its shape must be \(1, 4, 4\)"),
        ("1B", (1, H), r"B: its shape must be \(1, 8\)"),
        ("1W", (1, 5, D), r"R: its shape must be \(1, 5, 5\)"),
    ):
        model = onnx.ModelProto()
        model.CopyFrom(good)
        for tensor in model.graph.initializer:
            if tensor.name == name:
                zeros = np.zeros(shape, np.float32)
                tensor.CopyFrom(numpy_helper.from_array(zeros, name))
        with pytest.raises(ValueError, match=f"'rnn1' with {said}"):
            from_onnx(model)
    open_weights = onnx.ModelProto()
    open_weights.CopyFrom(good)
    R = next(t for t in open_weights.graph.initializer if t.name == "1R")
    open_weights.graph.initializer.remove(R)
    kind = onnx.TensorProto.FLOAT
    open_weights.graph.input.append(
        helper.make_tensor_value_info("1R", kind, [1, H, H])
    )
    with pytest.raises(ValueError, match="R: it must be a constant, but is the input"):
        from_onnx(open_weights)


@pytest.mark.parametrize("opset", [7, 10, 12, 13, 14, 18, 22])
def test_operators_of_every_age(rng, opset):
    from onnx.reference import ReferenceEvaluator

    def with_axes(kind, x, y, axes, **others):
        if opset >= 13:
            return helper.make_node(kind, [x, axes], [y], **others)
        return helper.make_node(kind, [x], [y], axes=[int(INTEGERS[axes][0])], **others)

    if opset >= 10:
        slices = [
            node("Slice", "y zero one one", "f"),
            node("Slice", "y one two one", "b"),
        ]
    else:
        slices = [
            helper.make_node("Slice", ["y"], [part], starts=[i], ends=[i + 1], axes=[1])
            for i, part in enumerate("fb")
        ]
    nodes = [
        rnn(1, "X", "y", direction="bidirectional"),
        *slices,
        with_axes("Squeeze", "f", "sf", "one"),
        with_axes("Squeeze", "b", "sb", "one"),
        node("Add", "sf sb", "Y"),
    ]
    arrays = weights(rng, 2)
    model = model_of(
        nodes,
        {"X": ["L", "N", D]},
        {"Y": ["L", "N", H]},
        {**{f"1{name}": a for name, a in arrays.items()}, **INTEGERS},
        opset=opset,
    )
    layer = from_onnx(model)
    assert layer.merge == "sum"
    x = draw(rng, (N, L, D), mx.float32)
    (y,) = ReferenceEvaluator(model).run(None, {"X": np.array(mx.swapaxes(x, 0, 1))})
    agree(mx.swapaxes(layer(x), 0, 1), array(y, mx.float32))


def test_opsets_that_are_too_old_are_refused(rng):
    model = to_onnx(RNN(D, H))
    model.opset_import[0].version = 6
    with pytest.raises(ValueError, match=r"the model (has opset 6|is no valid)"):
        from_onnx(model)


def masked(x, y):
    """Nodes that set the padding to zero."""
    return [
        node("Shape", "X", "sizes"),
        node("Gather", "sizes first", "steps", axis=0),
        node("Range", "first steps second", "counted"),
        node("Unsqueeze", "counted one", "column"),
        node("Cast", "sequence_lens", "lens", to=onnx.TensorProto.INT64),
        node("Less", "column lens", "runs"),
        node("Unsqueeze", "runs two", "mask"),
        node("Where", f"mask {x} nothing", y),
    ]


def test_masks(rng):
    outputs = {"Y": [None] * 4}
    constants = {**INTEGERS, "nothing": np.array(0, np.float32)}
    keywords = {"constants": constants, "inputs": LENS}
    nodes = masked("X", "x")
    layer = from_onnx(
        graph(
            rng, [*nodes, rnn(1, "x", "Y", lens="sequence_lens")], outputs, **keywords
        )
    )
    assert type(layer) is RNN
    with pytest.raises(ValueError, match="X is masked, but not by its own sequence_le"):
        from_onnx(graph(rng, [*nodes, rnn(1, "x", "Y")], outputs, **keywords))
    nodes = [rnn(1, "X", "y"), node("Squeeze", "y one", "s"), *masked("s", "Y")]
    with pytest.raises(ValueError, match="'Y', masked by other lengths than the seque"):
        from_onnx(graph(rng, nodes, {"Y": [None] * 3}, **keywords))


def test_the_padding_of_an_input_is_no_part_of_a_residual(rng):
    model = to_onnx(Stack.build(D, D, 2, residual=True), sequence_lens=True)
    assert from_onnx(model).residual
    for node in model.graph.node:
        if node.name == "layers.0.residual_Add":
            node.input[1] = "X"
    with pytest.raises(ValueError, match=r"is made of .*residual_Add"):
        from_onnx(model)


BOTH = {"shapes": [(2, D, H)]}
SPLIT = [
    rnn(1, "X", "y", direction="bidirectional"),
    node("Split", "y ones", "f b", axis=1),
]
SQUARE = [rnn(1, "X", "y"), node("Squeeze", "y one", "s"), node("Add", "X s", "Y")]


@pytest.mark.parametrize(
    ("nodes", "outputs", "shapes", "said"),
    [
        (
            [*SPLIT, node("Add", "f b", "S"), node("Mul", "f b", "P")],
            "S P",
            (2, D, H),
            "different results of the RNN node 'rnn1'",
        ),
        ([*SPLIT, node("Add", "f b", "S")], "S b", (2, D, H), "different results of"),
        (SPLIT, "b", (2, D, H), "one direction of 'rnn1' alone"),
        (SQUARE, "s Y", (1, D, D), "different results of the RNN node 'rnn1'"),
    ],
    ids=["sum and product", "sum and half", "half", "with and without its input"],
)
def test_one_of_several_results_is_not_taken_for_all(rng, nodes, outputs, shapes, said):
    for run in nodes:
        for attribute in run.attribute:
            if attribute.name == "hidden_size":
                attribute.i = shapes[2]
    for names in (outputs.split(), outputs.split()[::-1]):
        made = {name: [None] * (3 if name in ("s", "Y") else 4) for name in names}
        model = graph(rng, nodes, made, INTEGERS, shapes=[shapes])
        with pytest.raises(ValueError, match=said):
            from_onnx(model)


def test_results_that_a_call_gives_are_taken_together(rng):
    for outputs in ("f b", "y", "y b", "y C", "C y"):
        names = {name: [None] * 4 for name in outputs.split()}
        nodes = [*SPLIT, node("Concat", "f b", "C", axis=3)]
        assert isinstance(
            from_onnx(graph(rng, nodes, names, INTEGERS, **BOTH)), Bidirectional
        )


def test_merges_of_nodes_that_are_chosen(rng):
    constants = {**INTEGERS, "half": np.array(0.5, np.float32)}
    mean = [node("Add", "f b", "S"), node("Mul", "S half", "Y")]
    outputs = {"Y": [None] * 4}
    model = graph(rng, [*SPLIT, *mean], outputs, constants, **BOTH)
    assert from_onnx(model, node="rnn1").merge == "mean"
    model = graph(
        rng,
        [*SPLIT, node("Add", "f b", "S"), node("Mul", "f b", "Y")],
        {"S": [None] * 4, **outputs},
        INTEGERS,
        **BOTH,
    )
    with pytest.raises(ValueError, match="graph makes sum and mul of them"):
        from_onnx(model, node="rnn1")


@pytest.mark.parametrize("chosen", [None, "rnn1"])
def test_lengths_and_states_that_would_be_lost(rng, chosen):
    outputs = {"Y": [None] * 4}
    fixed = {"ends": np.array([5, 2], np.int32)}
    model = graph(rng, [rnn(1, "X", "Y", lens="ends")], outputs, fixed)
    with pytest.raises(ValueError, match="sequence_lens: it is a constant"):
        from_onnx(model, node=chosen)
    nodes = [node("Tanh", "h", "t"), rnn(1, "X", "Y", "t")]
    model = graph(rng, nodes, outputs, inputs={"h": [1, "N", H]})
    with pytest.raises(ValueError, match=r"initial_h: it is made of .*\(Tanh\)"):
        from_onnx(model, node=chosen)


def test_lengths_of_one_input_are_not_all_the_same(rng):
    nodes = [
        node("Gather", "sequence_lens first", "a", axis=0),
        node("Gather", "sequence_lens second", "b", axis=0),
        rnn(1, "X", "y", lens="a"),
        node("Squeeze", "y one", "s"),
        rnn(2, "s", "Y", lens="b"),
    ]
    inputs = {"sequence_lens": [2, "N"]}
    model = graph(rng, nodes, {"Y": [None] * 4}, INTEGERS, inputs, **TWO)
    with pytest.raises(ValueError, match=r"'rnn1' with sequence_lens: .*\(Gather\)"):
        from_onnx(model)


def test_rows_in_another_order_are_refused(rng):
    outputs = {"Y": [None] * 4}
    turned = {"turned": np.array([1, 0])}
    nodes = [
        node("Gather", "sequence_lens turned", "ends", axis=0),
        rnn(1, "X", "Y", lens="ends"),
    ]
    with pytest.raises(ValueError, match=r"sequence_lens: .*\(Gather\)"):
        from_onnx(graph(rng, nodes, outputs, turned, {"sequence_lens": [2]}))
    nodes = [node("Gather", "h turned", "t", axis=1), rnn(1, "X", "Y", "t")]
    with pytest.raises(
        ValueError, match=r"initial_h: it is made of the input 'h' .*Gather"
    ):
        from_onnx(graph(rng, nodes, outputs, turned, {"h": [1, 2, H]}))
    nodes = [
        node("Split", "h ones", "a b", axis=1),
        node("Concat", "b a", "t", axis=1),
        rnn(1, "X", "Y", "t"),
    ]
    with pytest.raises(
        ValueError, match=r"initial_h: it is made of the input 'h' .*Concat"
    ):
        from_onnx(graph(rng, nodes, outputs, INTEGERS, {"h": [1, 2, H]}))


STATE = {"h": [2, "N", H]}
HALF = [
    node("Split", "h ones", "h1 h2", axis=0),
    rnn(1, "X", "y1", "h1"),
    node("Squeeze", "y1 one", "s1"),
]


def test_a_state_of_which_each_layer_has_a_part(rng):
    outputs = {"Y": [None] * 4}
    nodes = [*HALF, rnn(2, "s1", "Y", "h2")]
    model = graph(rng, nodes, outputs, INTEGERS, STATE, **TWO)
    x, h = draw(rng, (N, L, D), mx.float32), draw(rng, (2, N, H), mx.float32)
    inputs = {"X": np.array(mx.swapaxes(x, 0, 1)), "h": np.array(h)}
    y = array(in_evaluator(model, inputs)[0][:, 0], mx.float32)
    agree(mx.swapaxes(from_onnx(model)(x, list(h)), 0, 1), y)
    # One of the nodes has its part alone.
    equal(from_onnx(model, node="rnn2").Whh, from_onnx(model).layers[1].Whh)
    for second, said in (
        ("h1", "'rnn2' with initial_h: it is .* 'h' .*, given twice"),
        ("", "input 'h' of 2 states, of which the RNN nodes take 1 alone"),
        ("h", "'rnn2' with initial_h: it is the input 'h', where"),
        ("y1_h", "'rnn2' with initial_h: it is the last state of 'rnn1', where"),
    ):
        nodes[-1] = rnn(2, "s1", "Y", second)
        model = graph(rng, nodes, outputs, INTEGERS, STATE, **TWO)
        with pytest.raises(ValueError, match=said):
            from_onnx(model)


@pytest.mark.parametrize("turned", [False, True])
def test_parts_of_a_state_for_two_nodes_as_two_directions(rng, turned):
    parts = ["h2", "h1"] if turned else ["h1", "h2"]
    nodes = [
        HALF[0],
        rnn(1, "X", "f", parts[0]),
        rnn(2, "X", "b", parts[1], direction="reverse"),
        node("Concat", "f b", "Y", axis=3),
    ]
    shapes = [(1, D, H), (1, D, H)]
    model = graph(rng, nodes, {"Y": [None] * 4}, INTEGERS, STATE, shapes=shapes)
    if turned:
        with pytest.raises(ValueError, match=r"'rnn2' .* in another order"):
            from_onnx(model)
        return
    x, h = draw(rng, (N, L, D), mx.float32), draw(rng, (2, N, H), mx.float32)
    inputs = {"X": np.array(mx.swapaxes(x, 0, 1)), "h": np.array(h)}
    y = array(in_evaluator(model, inputs)[0][:, 0], mx.float32)
    agree(mx.swapaxes(from_onnx(model)(x, list(h)), 0, 1), y)


@pytest.mark.parametrize("layout", [0, 1])
def test_axes_of_a_state_are_known_by_their_places(rng, layout):
    own = ["N", 1, H] if layout else [1, "N", H]
    for perm, shape, taken in (
        ([0, 1, 2], own, True),
        ([1, 0, 2], [own[1], own[0], H], True),
        ([0, 2, 1], [own[0], H, own[1]], layout == 1),  # an axis of one may be anywhere
        ([2, 1, 0], [H, own[1], own[0]], False),
    ):
        nodes = [
            node("Transpose", "h", "t", perm=perm),
            rnn(1, "X", "Y", "t", layout=layout),
        ]
        model = graph(rng, nodes, {"Y": [None] * 4}, INTEGERS, {"h": shape})
        if taken:
            assert type(from_onnx(model)) is RNN
        else:
            with pytest.raises(ValueError, match="rows and features in their order"):
                from_onnx(model)


@pytest.mark.parametrize("chosen", [None, "rnn1"])
def test_part_of_a_state_is_not_taken_for_zeros(rng, chosen):
    nodes = [
        *zero_state()[:-1],
        node("ConstantOfShape", "shape", "zeros"),
        node("Concat", "zeros h", "both", axis=0),
        rnn(1, "X", "Y", "both", direction="bidirectional"),
    ]
    constants = {**INTEGERS, "hidden": np.array([H])}
    inputs = {"h": [1, "N", H]}
    model = graph(rng, nodes, {"Y": [None] * 4}, constants, inputs, **BOTH)
    with pytest.raises(ValueError, match=r"initial_h: it is made of the input 'h' by"):
        from_onnx(model, node=chosen)


def test_other_uses_of_a_states_input(rng):
    square = {"shapes": [(1, H, H)], "constants": INTEGERS}
    nodes = [rnn(1, "X", "Y", "X")]
    model = graph(rng, nodes, {"Y": [None] * 4}, inputs={"X": [1, "N", H]}, **square)
    with pytest.raises(ValueError, match="the input 'X', the same input as X or"):
        from_onnx(model)
    nodes = [rnn(1, "X", "Y", "h"), node("Identity", "h", "again")]
    outputs = {"Y": [None] * 4, "again": [None] * 3}
    model = graph(rng, nodes, outputs, inputs={"h": [1, "N", H]})
    with pytest.raises(ValueError, match="output 'again', which is the input 'h'"):
        from_onnx(model)


def test_lengths_are_integers_from_the_start(rng):
    nodes = [
        node("Cast", "ends", "lens", to=onnx.TensorProto.INT32),
        rnn(1, "X", "Y", lens="lens"),
    ]
    model = graph(rng, nodes, {"Y": [None] * 4}, inputs={"ends": ["N"]})
    with pytest.raises(ValueError, match=r"of the input 'ends' by .*\(Cast\)"):
        from_onnx(model)


def test_inputs_that_have_a_default_are_that(rng):
    """As ONNX Runtime takes them where nothing is given."""
    model = graph(
        rng, [rnn(1, "X", "Y", "h")], {"Y": [None] * 4}, inputs={"h": [1, "N", H]}
    )
    row = draw(rng, (1, 1, H), mx.float32)
    model.graph.initializer.append(numpy_helper.from_array(np.array(row), "h"))
    kind = onnx.TensorProto.FLOAT
    model.graph.input.append(helper.make_tensor_value_info("1W", kind, [1, H, D]))
    layer = from_onnx(model)
    equal(layer.hidden0, row[0, 0])
    equal(layer.Wxh, array(tensors(model)["1W"][0], mx.float32))
    lens = graph(
        rng, [rnn(1, "X", "Y", lens="sequence_lens")], {"Y": [None] * 4}, inputs=LENS
    )
    ends = numpy_helper.from_array(np.int32([2, 1]), "sequence_lens")
    lens.graph.initializer.append(ends)
    with pytest.raises(ValueError, match="sequence_lens: it is a constant"):
        from_onnx(lens)


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([node("Split", "y sizes", "Y rest", axis=1)], {"sizes": np.array([2, 0])}),
        ([node("Gather", "y at", "Y", axis=1)], {"at": np.array([[0]])}),
        ([node("Concat", "f f", "Y", axis=3)], {}),
        ([node("Concat", "b f", "Y", axis=1)], {}),
    ],
    ids=["all and none", "two axes of one", "forward twice", "turned"],
)
def test_directions_that_are_put_together_otherwise_are_refused(rng, nodes, constants):
    nodes = [*SPLIT, *nodes]
    rank = 5 if "at" in constants else 4
    outputs = {"Y": [None] * rank}
    model = graph(rng, nodes, outputs, {**INTEGERS, **constants}, **BOTH)
    with pytest.raises(ValueError, match=r"the output 'Y'|one direction of 'rnn1'"):
        from_onnx(model)


@pytest.mark.parametrize("column", [[1], [0, 2], [0]], ids=str)
def test_a_mask_of_rows_is_no_padding(rng, column):
    # It counts rows in place of steps, or has the two axes in each other's places.
    nodes = [
        node("Shape", "X", "sizes"),
        node("Gather", f"sizes {'second' if column != [0] else 'first'}", "n", axis=0),
        node("Range", "first n second", "counted"),
        node("Cast", "sequence_lens", "lens", to=onnx.TensorProto.INT64),
        node("Unsqueeze", "counted column", "turned"),
        node("Unsqueeze", "lens across", "ends"),
        node("Less", "turned ends", "runs"),
        node("Unsqueeze", "runs last", "mask"),
        node("Where", "mask X nothing", "x"),
        rnn(1, "x", "Y", lens="sequence_lens"),
    ]
    constants = {
        **INTEGERS,
        "nothing": np.array(0, np.float32),
        "column": np.array(column),
        "across": np.array([1] if column == [0] else []).astype(np.int64),
        "last": np.array([2] if len(column) == 1 else []).astype(np.int64),
    }
    with pytest.raises(ValueError, match=r"'rnn1', whose X is (made|masked)"):
        from_onnx(graph(rng, nodes, {"Y": [None] * 4}, constants, LENS))


@pytest.mark.parametrize(
    ("sizes", "taken"),
    [
        ([2, -1, D], False),
        ([-1, 2, D], False),
        ([0, 2, -1], False),
        ([0, -1, D], True),
        ([-1, 0, D], True),
        ([0, 0, -1], True),
    ],
    ids=str,
)
def test_a_reshape_of_open_axes(rng, sizes, taken):
    nodes = [node("Reshape", "X sizes", "x"), rnn(1, "x", "Y")]
    constants = {"sizes": np.array(sizes)}
    model = graph(rng, nodes, {"Y": [None] * 4}, constants)
    if taken:
        assert type(from_onnx(model)) is RNN
    else:
        with pytest.raises(ValueError, match=r"'rnn1', whose X is made of .*\(Resha"):
            from_onnx(model)


def test_a_range_of_several_limits_is_refused_by_name(rng):
    nodes = [
        node("Shape", "X", "sizes"),
        node("Range", "first sizes second", "counted"),
        node("Gather", "X counted", "x", axis=0),
        rnn(1, "x", "Y"),
    ]
    model = graph(rng, nodes, {"Y": [None] * 4}, INTEGERS)
    with pytest.raises(ValueError, match=r"the model .*'rnn1', whose X is made by"):
        from_onnx(model)


# PyTorch's exporter -------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_pytorchs_export(tmp_path, rng, layers, bidirectional, batch_first, hidden):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    model = torch.nn.RNN(
        D,
        H,
        layers,
        nonlinearity="relu",
        bidirectional=bidirectional,
        batch_first=batch_first,
        dropout=0.5 if layers > 1 else 0,
    )
    both = 1 + bidirectional
    x = torch.from_numpy(rng.standard_normal((N, L, D)).astype(np.float32))
    h = torch.from_numpy(rng.standard_normal((layers * both, N, H)).astype(np.float32))
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
        states = list(mx.array(h.numpy()))
        if bidirectional:
            states = [tuple(states[i : i + 2]) for i in range(0, 2 * layers, 2)]
        states = states if layers > 1 else states[0]
    outputs, ends = layer(mx.array(x.numpy()), states, return_state=True)
    y = y if batch_first else y.swapaxes(0, 1)
    agree(outputs, mx.array(y.numpy()), "outputs")
    ends = [a for _, a in tree_flatten(ends)] if layers * both > 1 else [ends]
    agree(mx.stack(ends), mx.array(last.numpy()), "states")


# Files --------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.onnx"
    to_onnx(Stack.build(D, H, 2, bidirectional=True), path)
    return path


def test_a_path_bytes_and_a_model_are_the_same(file):
    models = [file, str(file), file.read_bytes(), onnx.load(file)]
    first, *others = [dict(tree_flatten(from_onnx(m).parameters())) for m in models]
    for other in others:
        for name, a in first.items():
            equal(other[name], a, name)


def test_damaged_files_give_a_value_error_or_the_same_kind_of_layer(file, rng):
    content = file.read_bytes()
    for _ in range(150):
        damaged = bytearray(content)
        if rng.random() < 0.5:
            del damaged[int(rng.integers(len(content))) :]
        for _ in range(int(rng.integers(1, 5))):
            if damaged:
                damaged[int(rng.integers(len(damaged)))] = int(rng.integers(256))
        file.write_bytes(damaged)
        try:
            layer = from_onnx(file)
        except ValueError as error:
            assert str(file) in str(error)
        else:
            assert isinstance(layer, (RNN, Reversed, Bidirectional, Stack))


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 64, b"not a model", b"\x08\x08" * 8, bytes(range(256))]
)
def test_other_files(file, content):
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.onnx' (must be|is no valid|has)"):
        from_onnx(file)


def test_a_missing_file_and_other_types(tmp_path):
    with pytest.raises(FileNotFoundError):
        from_onnx(tmp_path / "none.onnx")
    with pytest.raises(TypeError, match="model must be a path, bytes or"):
        from_onnx(3)


def external(file, **entries):
    """The model with its first weights in another file, as the entries say."""
    model = onnx.load(file)
    tensor = next(t for t in model.graph.initializer if t.name.endswith("W"))
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    file.write_bytes(model.SerializeToString())
    return data


def test_external_data(file):
    expected = from_onnx(file)
    data = external(file, location="data.bin", offset=4096)
    (file.parent / "data.bin").write_bytes(b"\0" * 4096 + data)
    equal(from_onnx(file).layers[0].forward.Wxh, expected.layers[0].forward.Wxh)
    (file.parent / "data.bin").write_bytes(b"\0" * 4096 + data[:-4])
    with pytest.raises(ValueError, match=r"W', which cannot be read"):
        from_onnx(file)
    with pytest.raises(ValueError, match="in another file: give the model's path"):
        from_onnx(file.read_bytes())


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "../outside.bin"},
        {"location": "/outside.bin"},
        {"location": "link.bin"},
        {"location": "none.bin"},
        {"location": ""},
        {"location": "."},
        {"location": "data.bin", "offset": -5},
        {"location": "data.bin", "offset": "x"},
        {"location": "data.bin", "length": 2**62},
    ],
    ids=str,
)
def test_external_data_that_is_not_in_the_folder(tmp_path, entries):
    folder = tmp_path / "folder"
    folder.mkdir()
    file = folder / "model.onnx"
    to_onnx(RNN(D, H), file)
    data = external(file, **entries)
    (tmp_path / "outside.bin").write_bytes(data)
    (folder / "data.bin").write_bytes(data)
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    with pytest.raises(ValueError, match=r"model\.onnx'"):
        from_onnx(file)


def test_onnx_is_needed_only_here(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"from_onnx needs onnx.* pip install onnx"):
        from_onnx(b"")
    with pytest.raises(ImportError, match=r"to_onnx needs onnx.* pip install onnx"):
        to_onnx(RNN(D, H))
