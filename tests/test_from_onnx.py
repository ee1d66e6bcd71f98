"""Graphs of RNN nodes as layers: what is around the nodes, and files.

The truth is ONNX's reference evaluator, ONNX Runtime, or plain MLX operations.
"""

import math

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from conftest import array, draw
from mlx_recurrent import RNN, Bidirectional, Stack
from mlx_recurrent.interop import Reversed, from_onnx, to_onnx
from tolerances import agree, equal

onnx = pytest.importorskip("onnx", reason="onnx is not installed")

from onnx import helper, numpy_helper  # noqa: E402

from onnx_models import (  # noqa: E402
    BOTH,
    INTEGERS,
    TWO,
    D,
    H,
    L,
    N,
    graph,
    in_evaluator,
    model_of,
    node,
    rnn,
    weights,
    zero_state,
)

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
    with pytest.raises(ValueError, match=r"node must be a recurr.* but is 'rnn3'"):
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
    for each in model.graph.node:
        if each.name == "layers.0.residual_Add":
            each.input[1] = "X"
    with pytest.raises(ValueError, match=r"is made of .*residual_Add"):
        from_onnx(model)


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


def test_directions_side_by_side_along_another_axis_are_refused(rng):
    """Along rows, which stand last."""
    turned = [node("Transpose", name, f"{name}t", perm=[0, 3, 1, 2]) for name in "fb"]
    joined = node("Concat", "ft bt", "Y", axis=-1)
    model = graph(rng, [*SPLIT, *turned, joined], {"Y": [None] * 4}, INTEGERS, **BOTH)
    with pytest.raises(ValueError, match=r"the output 'Y', .* \(Concat\)"):
        from_onnx(model)


@pytest.mark.parametrize("computed", ["axes", "steps", "both"])
def test_what_a_slice_computes_is_not_left_out(rng, computed):
    """Every second step, or another axis: neither is all that there is."""
    axes = "zero" if computed == "steps" else "made"
    steps = "one" if computed == "axes" else "made"
    made = {"axes": "one zero", "steps": "one one", "both": "one zero"}[computed]
    nodes = [
        node("Add", made, "made"),
        node("Slice", f"X zero end {axes} {steps}", "x"),
        rnn(1, "x", "Y"),
    ]
    constants = {**INTEGERS, "end": np.array([L])}
    inputs = {"X": [L, N, D]}
    model = graph(rng, nodes, {"Y": [None] * 4}, constants, inputs=inputs)
    with pytest.raises(ValueError, match=r"whose X is made of the input 'X' .*Slice"):
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
    with pytest.raises(
        ValueError, match=r"the model .*'rnn1', whose X is made of the input 'X' by"
    ):
        from_onnx(model)


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
