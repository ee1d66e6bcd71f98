"""First states and lengths of ONNX graphs, and their parts for several RNN nodes."""

import mlx.core as mx
import numpy as np
import pytest

from conftest import array, draw
from mlx_recurrent import RNN
from mlx_recurrent.interop import from_onnx
from tolerances import agree, equal

onnx = pytest.importorskip("onnx", reason="onnx is not installed")


from onnx import helper  # noqa: E402

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
        ("", "input 'h' of 2 states, of which the recurrent nodes take"),
        ("h", "'rnn2' with initial_h: it is the input 'h', where"),
        ("y1_h", "'rnn2' with initial_h: it is the last state of 'rnn1', where"),
    ):
        nodes[-1] = rnn(2, "s1", "Y", second)
        model = graph(rng, nodes, outputs, INTEGERS, STATE, **TWO)
        with pytest.raises(ValueError, match=said):
            from_onnx(model)


def test_parts_of_a_state_along_two_axes(rng):
    nodes = [
        node("Gather", "h zero", "h1", axis=0),
        rnn(1, "X", "y1", "h1"),
        node("Squeeze", "y1 one", "s1"),
        node("Gather", "h one", "across", axis=1),
        node("Transpose", "across", "h2", perm=[1, 0, 2]),
        rnn(2, "s1", "Y", "h2"),
    ]
    model = graph(rng, nodes, {"Y": [None] * 4}, INTEGERS, {"h": [2, 2, H]}, **TWO)
    with pytest.raises(ValueError, match=r"'rnn2' with .* along another axis than"):
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


@pytest.mark.parametrize("turned", [False, True])
def test_both_states_of_an_lstm_in_one_input(rng, turned):
    """As streaming models keep them; and as one output."""
    parts = "c h" if turned else "h c"
    nodes = [
        node("Split", "state ones", parts, axis=0),
        helper.make_node(
            "LSTM",
            ["X", "W", "R", "B", "", "h", "c"],
            ["Y", "hn", "cn"],
            "lstm",
            hidden_size=H,
        ),
        node("Concat", "hn cn", "last", axis=0),
    ]
    outputs = {"Y": [None] * 4, "last": [2, "N", H]}
    model = model_of(
        nodes,
        {"X": ["L", "N", D], "state": [2, "N", H]},
        outputs,
        {**weights(rng, operator="LSTM"), "ones": INTEGERS["ones"]},
    )
    if turned:
        with pytest.raises(
            ValueError, match=r"'lstm' with initial_c: .*in another order"
        ):
            from_onnx(model)
        return
    x, state = draw(rng, (N, L, D), mx.float32), draw(rng, (2, N, H), mx.float32)
    inputs = {"X": np.array(mx.swapaxes(x, 0, 1)), "state": np.array(state)}
    y, last = in_evaluator(model, inputs)
    mine, ends = from_onnx(model)(x, *state, return_state=True)
    agree(mx.swapaxes(mine, 0, 1), array(y[:, 0], mx.float32))
    agree(mx.stack(ends), array(last, mx.float32))


def test_a_constant_cell_state_becomes_cell0(rng):
    c = draw(rng, (1, 1, H), mx.float32)
    lstm = helper.make_node(
        "LSTM", ["X", "W", "R", "B", "", "", "c"], ["Y"], "lstm", hidden_size=H
    )
    constants = {**weights(rng, operator="LSTM"), "c": c}
    model = model_of([lstm], {"X": ["L", "N", D]}, {"Y": [None] * 4}, constants)
    layer = from_onnx(model)
    equal(layer.cell0, c[0, 0])
    assert not layer.hidden0.any()
    x = draw(rng, (1, L, D), mx.float32)
    (y,) = in_evaluator(model, {"X": np.array(mx.swapaxes(x, 0, 1))})
    agree(layer(x, return_state=True)[0][0], array(y[:, 0, 0], mx.float32))
