"""Layers as ONNX models: what others compute from them, and the way back."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_map

from conftest import array, draw, name_of
from mlx_recurrent import GRU, LSTM, RNN, Bidirectional, Stack, accelerate
from mlx_recurrent.interop import Reversed, from_onnx, to_onnx
from mlx_recurrent.interop.activations import (
    Affine,
    Clipped,
    HardSigmoid,
    LeakyRelu,
    ScaledTanh,
    ThresholdedRelu,
)
from networks import in_dtype
from tolerances import agree, equal

onnx = pytest.importorskip("onnx", reason="onnx is not installed")

from onnx_models import in_evaluator, in_runtime  # noqa: E402

N, L, D, H = 3, 6, 4, 4


def both(merge):
    return lambda **keywords: Bidirectional(
        RNN(D, H, **keywords), RNN(D, H, **keywords), merge
    )


def gated(make):
    """A network without nonlinearities to choose."""
    return lambda nonlinearity=None, **keywords: make(**keywords)


NETWORKS = {
    "rnn": lambda **keywords: RNN(D, H, **keywords),
    "no bias": lambda **keywords: RNN(D, H, False, **keywords),
    "reversed": lambda **keywords: Reversed(RNN(D, H, **keywords)),
    "concat": both("concat"),
    "sum": both("sum"),
    "mul": both("mul"),
    "mean": both("mean"),
    "pair": both(None),
    "stack": lambda **keywords: Stack.build(D, H, 3, **keywords),
    "residual": lambda **keywords: Stack.build(D, H, 2, residual=True, **keywords),
    "both, residual": lambda **keywords: Stack.build(
        D, H, 2, bidirectional=True, merge="mean", residual=True, **keywords
    ),
    "mixed": lambda **keywords: Stack(
        [both("concat")(**keywords), Reversed(RNN(2 * H, 3)), RNN(3, 5)]
    ),
    "GRU": gated(lambda **keywords: GRU(D, H, **keywords)),
    "GRU, reset before": gated(lambda **k: GRU(D, H, reset_after=False, **k)),
    "GRUs both ways": gated(lambda **k: Bidirectional(GRU(D, H, False, **k))),
    "LSTM": gated(lambda **keywords: LSTM(D, H, **keywords)),
    "LSTM reversed": gated(lambda **keywords: Reversed(LSTM(D, H, **keywords))),
    "LSTMs both ways": gated(
        lambda **keywords: Stack.build(
            D, H, 2, bidirectional=True, layer=LSTM, **keywords
        )
    ),
    "all": gated(
        lambda **keywords: Stack(
            [LSTM(D, H, **keywords), GRU(H, 3), RNN(3, 5), LSTM(5, D, False)]
        )
    ),
    "LSTMs, residual": gated(
        lambda **keywords: Stack.build(D, H, 2, residual=True, layer=LSTM, **keywords)
    ),
}
NONLINEARITIES = {
    "tanh": None,
    "relu": nn.relu,
    "sigmoid": nn.Sigmoid(),
    "identity": nn.Identity(),
    "affine": Affine(0.5, -0.25),
    "leaky": nn.LeakyReLU(0.25),
    "steep": LeakyRelu(1.5),
    "threshold": ThresholdedRelu(0.25),
    "scaled": ScaledTanh(1.5, 0.5),
    "hard sigmoid": HardSigmoid(0.25, 0.5),
    "elu": nn.ELU(0.5),
    "softsign": nn.softsign,
    "softplus": nn.Softplus(),
    "relu6": nn.relu6,
    "hard tanh": nn.HardTanh(),
    "clipped": Clipped(nn.ReLU(), 0.75),
}


IN_EVALUATOR = [
    name for name in NETWORKS if name not in ("GRUs both ways", "LSTMs both ways")
]


def drawn(rng, states):
    """States like these, with other values."""
    if isinstance(states, mx.array):
        return draw(rng, states.shape, states.dtype)
    return type(states)(drawn(rng, state) for state in states)


def stacked(state):
    return state if isinstance(state, mx.array) else mx.stack(state)


def ends_of(layer, state):
    """The states of a layer as a node has them: h, and c of an LSTM."""
    if isinstance(layer, Bidirectional):
        ways = zip((layer.forward, layer.backward), state, strict=True)
        both = [ends_of(one, each) for one, each in ways]
        return [mx.stack(pair) for pair in zip(*both, strict=True)]
    if isinstance(layer, Reversed):
        return ends_of(layer.backward, state)
    return list(state) if isinstance(layer, LSTM) else [state]


def all_ends(layer, state):
    """The same for every layer of a stack, with the paths of layers."""
    if not isinstance(layer, Stack):
        return [("", ends_of(layer, state))]
    layers = zip(layer.layers, state, strict=True)
    return [(f"layers.{i}.", ends_of(*each)) for i, each in enumerate(layers)]


def compare(
    rng,
    layer,
    run,
    dtype=mx.float32,
    layout=0,
    lens=False,
    hidden=False,
    std=1,
    sizes=None,
):
    """A layer's call and another's run of its model agree."""
    layer.eval()
    x = draw(rng, (N, L, D), dtype, std)
    lengths = rng.integers(1, L + 1, N) if lens else None
    state = None
    inputs = {"X": np.array(x) if layout else np.swapaxes(np.array(x), 0, 1).copy()}
    if lens:
        inputs["sequence_lens"] = lengths.astype(np.int32)
    if hidden:
        state = drawn(rng, layer(x, return_state=True)[1])
        for path, ends in all_ends(layer, state):
            for name, each in zip("hc", ends, strict=False):
                inputs[f"{path}initial_{name}"] = np.array(each)
    model = to_onnx(
        layer, layout=layout, sequence_lens=lens, initial_h=hidden, sizes=sizes
    )
    y, *lasts = run(model, inputs)
    apart = state if isinstance(layer, LSTM) and hidden else [state]
    outputs, last = layer(x, *apart, lengths=lengths, return_state=True)
    if isinstance(outputs, tuple):
        y = np.moveaxis(y, 2 if layout else 1, 0)
        outputs = mx.stack(outputs)
    y = y if layout else np.swapaxes(y, -3, -2)
    agree(outputs, array(y, dtype), "Y")
    ends = [a for _, of_layer in all_ends(layer, last) for a in of_layer]
    for mine, theirs in zip(ends, lasts, strict=True):
        agree(mine, array(theirs, dtype), "Y_h or Y_c")


def same(a, b):
    """The same structure, weights to the bit and nonlinearities."""
    assert type(a) is type(b)
    if isinstance(a, Stack):
        assert (len(a.layers), a.residual) == (len(b.layers), b.residual)
        for mine, theirs in zip(a.layers, b.layers, strict=True):
            same(mine, theirs)
    elif isinstance(a, Bidirectional):
        assert a.merge == b.merge
        same(a.forward, b.forward)
        same(a.backward, b.backward)
    assert getattr(a, "reset_after", True) == getattr(b, "reset_after", True)
    ours, others = (dict(tree_flatten(layer.parameters())) for layer in (a, b))
    assert ours.keys() == others.keys()
    for name in ours:
        equal(ours[name], others[name], name)


@pytest.mark.parametrize("hidden", [False, True], ids=["", "initial_h"])
@pytest.mark.parametrize("lens", [False, True], ids=["", "sequence_lens"])
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("network", NETWORKS)
def test_onnx_runtime_agrees(rng, network, layout, lens, hidden):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    compare(
        rng, NETWORKS[network](), in_runtime, layout=layout, lens=lens, hidden=hidden
    )


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64])
@pytest.mark.parametrize("network", IN_EVALUATOR)
def test_the_reference_evaluator_agrees(rng, network, dtype):
    # The evaluator knows no lengths, of the activations tanh and affine, and of gates
    # one direction.
    layer = in_dtype(NETWORKS[network](), dtype)
    for std in (1, 30):
        compare(rng, layer, in_evaluator, dtype, layout=1, hidden=True, std=std)


@pytest.mark.parametrize("network", ["rnn", "concat", "sum"])
@pytest.mark.parametrize("name", NONLINEARITIES)
def test_nonlinearities(rng, name, network):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    layer = NETWORKS[network](nonlinearity=NONLINEARITIES[name])
    # ONNX Runtime's softplus of more than 88 is infinite.
    for std in (1, 8 if name == "softplus" else 30):
        compare(rng, layer, in_runtime, lens=True, hidden=True, std=std)


@pytest.mark.parametrize("other", [None, nn.LeakyReLU(0.5), nn.relu6], ids=name_of)
@pytest.mark.parametrize("first", [HardSigmoid(0.25, 0.5), nn.ReLU()], ids=name_of)
def test_directions_with_nonlinearities_of_their_own(rng, first, other):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    for forward, backward in ((first, other), (other, first)):
        layer = Bidirectional(
            RNN(D, H, nonlinearity=forward), RNN(D, H, nonlinearity=backward)
        )
        compare(rng, layer, in_runtime, hidden=True, lens=True)
        back = from_onnx(to_onnx(layer))
        same(layer, back)
        x = draw(rng, (N, L, D), mx.float32)
        equal(back(x), layer(x))


@pytest.mark.parametrize(
    "network", ["rnn", "concat", "stack", "GRU", "LSTM", "LSTMs both ways"]
)
def test_a_learned_state_is_part_of_the_model(rng, network):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    layer = NETWORKS[network](learn_hidden=True)
    layer.update(tree_map(lambda a: draw(rng, a.shape, a.dtype), layer.parameters()))
    compare(rng, layer, in_runtime)
    compare(rng, layer, in_runtime, layout=1, lens=True)
    same(layer, from_onnx(to_onnx(layer)))
    with pytest.raises(ValueError, match=r"initial_h must be False .* learn_hidden"):
        to_onnx(layer, initial_h=True)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64, mx.float16, mx.bfloat16])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_round_trips_are_exact(dtype, data):
    network = data.draw(st.sampled_from(list(NETWORKS)))
    name = data.draw(st.sampled_from(list(NONLINEARITIES)))
    layer = NETWORKS[network](nonlinearity=NONLINEARITIES[name])
    layer = in_dtype(layer, dtype)
    opset = data.draw(st.sampled_from([None, 22, onnx.defs.onnx_opset_version()]))
    model = to_onnx(
        layer,
        layout=data.draw(st.sampled_from([0, 1])),
        opset=opset,
        sequence_lens=(lens := data.draw(st.booleans())),
        initial_h=data.draw(st.booleans()),
    )
    back = from_onnx(model.SerializeToString())
    same(layer, back)
    x = draw(np.random.default_rng(0), (N, L, D), dtype)
    lengths = [L, 1, 3] if lens else None
    ours, others = layer(x, lengths=lengths), back(x, lengths=lengths)
    equal(stacked(others), stacked(ours))
    again = to_onnx(back, opset=opset)
    assert again.graph.initializer == to_onnx(layer, opset=opset).graph.initializer


def test_dropout_is_left_out(rng):
    layer = Stack.build(D, H, 2, dropout=0.5, input_dropout=0.5, recurrent_dropout=0.25)
    compare(rng, layer, in_evaluator)


def test_the_model_is_for_any_rows_and_steps():
    model = to_onnx(Stack.build(D, H, 2), sequence_lens=True, initial_h=True)
    shapes = {
        value.name: [
            d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim
        ]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "X": ["L", "N", D],
        "sequence_lens": ["N"],
        "layers.0.initial_h": ["N", H],
        "layers.1.initial_h": ["N", H],
        "Y": ["L", "N", H],
        "layers.0.Y_h": ["N", H],
        "layers.1.Y_h": ["N", H],
    }
    assert {node.name for node in model.graph.node if node.op_type == "RNN"} == {
        "layers.0.RNN",
        "layers.1.RNN",
    }


def test_opsets():
    assert to_onnx(RNN(D, H)).opset_import[0].version == 14
    assert to_onnx(RNN(D, H), opset=17).opset_import[0].version == 17
    half = in_dtype(RNN(D, H), mx.bfloat16)
    assert to_onnx(half).opset_import[0].version == 22
    with pytest.raises(ValueError, match="opset must be at least 22 for bfloat16"):
        to_onnx(half, opset=21)


class Mine(RNN):
    def __call__(self, x, *arguments, **keywords):
        return 2 * super().__call__(x, *arguments, **keywords)


class MyPair(Bidirectional):
    def __call__(self, x, *arguments, **keywords):
        return 2 * super().__call__(x, *arguments, **keywords)


class Named(RNN):
    """A subclass that computes the same."""


def test_a_subclass_that_computes_the_same():
    layer = Named(D, H)
    equal(from_onnx(to_onnx(layer)).Wxh, layer.Wxh)


def test_a_learned_state_of_two_nodes(rng):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    layer = Bidirectional(
        RNN(D, H, nonlinearity=nn.relu6, learn_hidden=True), RNN(D, H)
    )
    layer.forward.hidden0 = draw(rng, (H,), mx.float32)
    compare(rng, layer, in_runtime, lens=True)
    same(layer, from_onnx(to_onnx(layer)))


def test_directions_of_two_kinds(rng):
    """Two nodes, side by side."""
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    for layer in (
        Bidirectional(GRU(D, H), RNN(D, H)),
        Bidirectional(GRU(D, H), GRU(D, H, reset_after=False)),
    ):
        compare(rng, layer, in_runtime, hidden=True, lens=True)
        same(layer, from_onnx(to_onnx(layer)))


def test_stacks_in_a_stack_are_read_as_one():
    layer = Stack([Stack.build(D, H, 2, residual=True), RNN(H, 3)])
    back = from_onnx(to_onnx(layer))
    assert [type(inner) for inner in back.layers] == [RNN] * 3
    x = mx.random.normal((N, L, D))
    equal(back(x), layer(x))


def odd_bias():
    layer = RNN(D, H)
    layer.bias = mx.zeros((L, H))
    return layer


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: RNN(D, H, leak=0.5), ValueError, "layer has leak"),
        (lambda: RNN(D, H, zoneout=0.5), ValueError, "layer has zoneout"),
        (lambda: RNN(D, H, nonlinearity=nn.gelu), ValueError, "layer has the nonlin"),
        (
            lambda: Stack([RNN(D, H), both("sum")(nonlinearity=nn.Softmax())]),
            ValueError,
            r"layers\[1\]\.forward has the nonlinearity .*Softmax.* ONNX's activations",
        ),
        (lambda: both(lambda a, b: a)(), ValueError, "layer has the merge <lambda>"),
        (odd_bias, ValueError, r"layer.bias must be \(4,\) .* but is \(6, 4\)"),
        (lambda: LSTM(D, H, zoneout=(0.0, 0.5)), ValueError, "layer has zoneout"),
        (
            lambda: Bidirectional(LSTM(D, H), RNN(D, H)),
            ValueError,
            "layer has an LSTM beside another layer, which one node of ONNX's cannot",
        ),
        (
            lambda: Bidirectional(GRU(D, H), RNN(D, H), "sum"),
            ValueError,
            "layer has directions with GRU and RNN, which one node of ONNX's cannot",
        ),
        (
            lambda: Bidirectional(GRU(D, H), GRU(D, H, reset_after=False), "sum"),
            ValueError,
            "layer has directions with linear_before_reset 1 and 0, which one node",
        ),
        (
            lambda: Bidirectional(RNN(D, H), RNN(D, 5)),
            ValueError,
            "layer has directions with 4 and 5 hidden features",
        ),
        (
            lambda: Bidirectional(RNN(D, H), RNN(D, H, nonlinearity=nn.relu6), "sum"),
            ValueError,
            "layer has directions with clip None and 6.0, which one node of ONNX's",
        ),
        (
            lambda: in_dtype(RNN(D, H, nonlinearity=nn.LeakyReLU(0.1)), mx.float64),
            ValueError,
            "layer has a nonlinearity with alpha 0.1, which must be a finite float32",
        ),
        (
            lambda: Stack([Stack.build(D, H, 2), RNN(H, H)], residual=True),
            ValueError,
            r"layers\[0\] is a Stack in a Stack with residual",
        ),
        (
            lambda: Stack([Stack.build(D, H, 2, residual=True), RNN(H, H)]),
            ValueError,
            r"layers\[1\] is in a Stack without residual",
        ),
        (
            lambda: Mine(D, H),
            ValueError,
            "layer must compute what RNN does, .*Mine",
        ),
        (
            lambda: Stack([MyPair(RNN(D, H))]),
            ValueError,
            r"layers\[0\] must compute what Bidirectional does, but its .*MyPair",
        ),
        (
            lambda: nn.RNN(D, H),
            TypeError,
            "layer must be .*recurrent.RNN",
        ),
        (lambda: Stack([nn.Linear(D, H)]), TypeError, r"layers\[0\] must be .*Linear"),
        (lambda: None, TypeError, "layer must be .* NoneType"),
    ],
)
def test_what_the_operator_does_not_have_is_refused(make, error, said, tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(error, match=said):
        to_onnx(make(), path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"layout": 2}, "layout must be 0 or 1, but is 2"),
        ({"layout": True}, "layout must be 0 or 1"),
        ({"opset": 13}, "opset must be an integer from 14 to"),
        ({"opset": 10_000}, "opset must be an integer from 14 to"),
        ({"opset": 14.0}, "opset must be an integer from 14 to"),
    ],
)
def test_arguments_are_judged(keywords, said):
    with pytest.raises(ValueError, match=said):
        to_onnx(RNN(D, H), **keywords)
    with pytest.raises((TypeError, ValueError), match="sequence_lens"):
        to_onnx(RNN(D, H), sequence_lens="yes")


def test_what_mlx_has_is_exported_after_accelerate(rng):
    compare(rng, accelerate(nn.RNN(D, H)), in_evaluator)


def test_a_file_is_the_old_one_until_it_is_the_new_one(tmp_path, monkeypatch):
    import os

    path = tmp_path / "model.onnx"
    to_onnx(RNN(D, H), path)
    before = path.read_bytes()

    def fails(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space left"):
        to_onnx(RNN(D, H), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    to_onnx(RNN(D, 5), path)
    assert from_onnx(path).hidden_size == 5 and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("sizes", [{"N": N}, {"L": L}, {"N": N, "L": L}], ids=str)
@pytest.mark.parametrize("network", ["rnn", "both, residual", "mixed", "pair"])
def test_sizes_that_are_fixed(rng, network, sizes):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    layer = NETWORKS[network]()
    keywords = {"layout": 1, "sequence_lens": True}
    model = to_onnx(layer, sizes=sizes, **keywords)
    open_sizes = to_onnx(layer, **keywords)
    for value, other in zip(
        [*model.graph.input, *model.graph.output],
        [*open_sizes.graph.input, *open_sizes.graph.output],
        strict=True,
    ):
        dims = [v.type.tensor_type.shape.dim for v in (value, other)]
        for dim, was in zip(*dims, strict=True):
            assert dim.dim_value == sizes.get(was.dim_param, was.dim_value)
    same(layer, from_onnx(model))
    compare(rng, layer, in_runtime, layout=1, lens=True, sizes=sizes)


def test_one_row_and_one_step_are_sizes_too():
    for network in ("rnn", "both, residual", "stack", "pair"):
        layer = NETWORKS[network]()
        model = to_onnx(layer, initial_h=True, sizes={"N": 1, "L": 1})
        same(layer, from_onnx(model))


@pytest.mark.parametrize(
    "network",
    [
        "rnn",
        "residual",
        "both, residual",
        "GRU",
        "GRU, reset before",
        "LSTMs both ways",
    ],
)
def test_openvino_takes_lengths_where_sizes_are_fixed(rng, network):
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")

    def run(model, inputs):
        core, exact = openvino.Core(), {"INFERENCE_PRECISION_HINT": "f32"}
        read = core.read_model(model.SerializeToString())
        return list(core.compile_model(read, "CPU", exact)(inputs).values())

    layer = NETWORKS[network]()
    compare(rng, layer, run, layout=1, lens=True, sizes={"N": N, "L": L})


@pytest.mark.parametrize(
    ("sizes", "error", "said"),
    [
        ([3, 4], TypeError, r"sizes must be a dict, such as .*, but is list"),
        (
            {"M": 3},
            ValueError,
            "sizes must be of 'N', rows, and 'L', steps, but has 'M'",
        ),
        ({"N": 0}, ValueError, r"sizes\['N'\] must be from 1 to 2"),
        ({"L": 2.0}, TypeError, r"sizes\['L'\] must be an integer, but is float"),
    ],
    ids=str,
)
def test_sizes_that_are_none(sizes, error, said):
    with pytest.raises(error, match=said):
        to_onnx(RNN(D, H), sizes=sizes)
