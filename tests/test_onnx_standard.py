"""The operators RNN, GRU and LSTM as the standard has them.

The truth is what ONNX's own cases state, ONNX's reference evaluator, ONNX Runtime, or
loops over plain MLX operations.
"""

import warnings

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import reference
from conftest import array, draw
from mlx_recurrent import GRU, LSTM, Bidirectional
from mlx_recurrent.interop import from_onnx
from tolerances import DIFFERENCE, agree, equal, largest, wide

onnx = pytest.importorskip("onnx", reason="onnx is not installed")

from onnx import helper, numpy_helper  # noqa: E402

from onnx_models import (  # noqa: E402
    D,
    H,
    L,
    N,
    in_evaluator,
    in_runtime,
    model_of,
    single,
    weights,
)

DIRECTIONS = ["forward", "reverse", "bidirectional"]


def outputs_of(layer, x, hidden=None, lengths=None):
    """Y, Y_h and Y_c as the operator of layout 0 shapes them, for x (N, L, D).

    The hidden states are an array or a pair of directions; of an LSTM a pair of such.
    """
    pair = isinstance(layer, Bidirectional)
    one = layer.forward if pair else getattr(layer, "backward", layer)
    if isinstance(one, LSTM):
        states = (
            hidden if hidden is None or not pair else list(zip(*hidden, strict=True))
        )
        apart = states or [None] if layer is one else [states]
        y, last = layer(x, *apart, lengths=lengths, return_state=True)
        lasts = [mx.stack(a) for a in zip(*last, strict=True)] if pair else last
        lasts = lasts if pair else [a[None] for a in last]
        return (shaped(layer, y), *lasts)
    y, last = layer(x, hidden, lengths=lengths, return_state=True)
    return shaped(layer, y), mx.stack(last) if pair else last[None]


def shaped(layer, y):
    """Y of what a layer gives."""
    pair = isinstance(layer, Bidirectional)
    if pair and layer.merge == "concat":
        y = mx.split(y, 2, axis=-1)
    y = mx.stack(y) if pair else y[None]
    return mx.moveaxis(mx.swapaxes(y, 1, 2), 0, 1)


def conformance_cases():
    from onnx.backend.test.case import node

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ONNX's own
        from onnx.backend.test.case.node import gru, lstm, rnn  # noqa: F401, makes them
    return [
        case
        for case in node._NodeTestCases
        if {made.op_type for made in case.model.graph.node} <= {"RNN", "GRU", "LSTM"}
    ]


CONFORMANCE = conformance_cases()
# Of all of them, those that are refused, and why.
REFUSED = {"test_lstm_with_peepholes": "with P: .*has no peepholes"}


def test_the_standards_cases_are_those_that_are_known():
    assert {case.name for case in CONFORMANCE} >= {
        "test_simple_rnn_defaults",
        "test_simple_rnn_with_initial_bias",
        "test_rnn_seq_length",
        "test_simple_rnn_batchwise",
        "test_gru_defaults",
        "test_gru_seq_length",
        "test_gru_batchwise",
        "test_lstm_defaults",
        "test_lstm_with_initial_bias",
        "test_lstm_with_peepholes",
        "test_lstm_batchwise",
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
        if case.name in REFUSED:
            with pytest.raises(ValueError, match=REFUSED[case.name]):
                from_onnx(model.SerializeToString())
            continue
        layer = from_onnx(model.SerializeToString())
        batch_first = any(a.name == "layout" and a.i for a in node.attribute)
        x = x if batch_first else np.swapaxes(x, 0, 1)
        y, *lasts = outputs_of(layer, array(x, mx.float32))
        if batch_first:
            y = mx.transpose(y, (2, 0, 1, 3))
            lasts = [mx.swapaxes(last, 0, 1) for last in lasts]
        for name, mine in zip(("Y", "Y_h", "Y_c"), (y, *lasts), strict=False):
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


@pytest.mark.parametrize("lengths", [None, [L, 1, 4]], ids=["full", "lengths"])
@pytest.mark.parametrize("operator", ["GRU", "GRU, reset before", "LSTM"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_onnx_runtime_agrees_of_gates(rng, direction, operator, lengths):
    """Outputs and last states, from first states given."""
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    attributes = {"linear_before_reset": 1} if operator == "GRU" else {}
    operator = operator.partition(",")[0]
    both = 2 if direction == "bidirectional" else 1
    model = single(rng, direction, True, operator=operator, **attributes)
    layer = from_onnx(model)
    x = draw(rng, (N, L, D), mx.float32)
    states = [
        draw(rng, (both, N, H), mx.float32) for _ in range(1 + (operator == "LSTM"))
    ]
    given = [list(s) if both == 2 else s[0] for s in states]
    mine = outputs_of(layer, x, given if operator == "LSTM" else given[0], lengths)
    inputs = {
        "X": np.array(mx.swapaxes(x, 0, 1)),
        "sequence_lens": np.array(lengths or [L] * N, np.int32),
    }
    names = ("initial_h", "initial_c")
    inputs |= {n: np.array(s) for n, s in zip(names, states, strict=False)}
    for a, b in zip(mine, in_runtime(model, inputs), strict=True):
        agree(a, array(b, mx.float32))


def gru_of_the_standard(x, W, R, B, h, before):
    """Y (N, L, H), gates z, r, h as the standard has them."""
    wz, wr, wh, rz, rr, rh = np.split(B, 6)
    Wz, Wr, Wh, Rz, Rr, Rh = *np.split(W, 3), *np.split(R, 3)
    ys = []
    for t in range(L):
        z = sigmoid(x[:, t] @ Wz.T + h @ Rz.T + wz + rz)
        r = sigmoid(x[:, t] @ Wr.T + h @ Rr.T + wr + rr)
        state = (r * h) @ Rh.T + rh if before else r * (h @ Rh.T + rh)
        n = np.tanh(x[:, t] @ Wh.T + wh + state)
        h = (1 - z) * n + z * h
        ys.append(h)
    return np.stack(ys, axis=1)


def lstm_of_the_standard(x, W, R, B, h, c):
    """Y (N, L, H), gates i, o, f, c as the standard has them."""
    ys = []
    for t in range(L):
        a = x[:, t] @ W.T + h @ R.T + B[: 4 * H] + B[4 * H :]
        i, o, f, new = np.split(a, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(new)
        h = sigmoid(o) * np.tanh(c)
        ys.append(h)
    return np.stack(ys, axis=1)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


@pytest.mark.parametrize("operator", ["GRU", "GRU, reset before", "LSTM"])
def test_gradients_of_gates(rng, operator):
    """In float64, against the differences of a loop in the standard's own weights."""
    before = operator == "GRU, reset before"
    operator = operator.partition(",")[0]
    attributes = {"linear_before_reset": 1} if operator == "GRU" and not before else {}
    model = single(rng, dtype=mx.float64, operator=operator, **attributes)
    layer = from_onnx(model)
    held = {a.name: numpy_helper.to_array(a) for a in model.graph.initializer}
    W, R, B = (held[name][0] for name in "WRB")
    lstm = operator == "LSTM"
    x = draw(rng, (N, L, D), mx.float64)
    states = [draw(rng, (N, H), mx.float64) for _ in range(1 + lstm)]
    cotangent = draw(rng, (N, L, H), mx.float64)
    names = [name for name in ("Wx", "Wh", "bias", "b", "bhn") if name in layer]

    def ours(x, *rest):
        layer.update(dict(zip(names, rest, strict=False)))
        outputs = layer(x, *rest[len(names) :])
        return [outputs[0] if lstm else outputs]

    values, gradients = mx.vjp(
        ours, [x, *(layer[name] for name in names), *states], [cotangent]
    )
    mine = dict(zip(["x", *names, "h", "c"], gradients, strict=False))

    def standard(*arrays):
        if lstm:
            return lstm_of_the_standard(*arrays)
        return gru_of_the_standard(*arrays, before)

    arrays = [wide(x), W, R, B, *map(wide, states)]
    truth = reference.gradient(standard, arrays, wide(cotangent))
    dx, dW, dR, dB, *rest = truth
    order = [0, 2, 3, 1] if lstm else [1, 0, 2]  # i, f, g, o; r, z, n

    def ordered(a):
        return np.concatenate([np.split(a, len(order))[k] for k in order])

    expected = {"x": dx, "Wx": ordered(dW), "Wh": ordered(dR)}
    expected |= {"bias" if lstm else "b": ordered(np.split(dB, 2)[0])}
    expected |= {"bhn": dB[-H:]} if "bhn" in names else {}
    expected |= dict(zip(("h", "c"), rest, strict=False))
    assert mine.keys() == expected.keys()
    everything = [(values[0], standard(*arrays))]
    everything += [(mine[name], expected[name]) for name in mine]
    for got, true in everything:
        assert largest(wide(got) - true) <= DIFFERENCE * largest(true)


def test_what_gates_have_fixed_is_refused(rng):
    """By name, with what the layer has in its place."""
    for operator, keywords, said in (
        ("LSTM", {"clip": 3.0}, "'rnn' with clip: an mlx_recurrent.LSTM clips nothing"),
        ("GRU", {"clip": 3.0}, "the GRU node 'rnn' with clip"),
        (
            "LSTM",
            {"input_forget": 1},
            "with input_forget: an mlx_recurrent.LSTM has an",
        ),
        (
            "GRU",
            {"activations": ["HardSigmoid", "Tanh"]},
            "with activations: an mlx_recurrent.GRU has sigmoid, tanh, but they are",
        ),
        (
            "LSTM",
            {"activations": ["Sigmoid", "Tanh", "Relu"]},
            "with activations: an mlx_recurrent.LSTM has sigmoid, tanh, tanh, but they",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            from_onnx(single(rng, operator=operator, **keywords))
    own = {"activations": ["sigmoid", "Tanh", "Tanh"], "input_forget": 0}
    assert type(from_onnx(single(rng, operator="LSTM", **own))) is LSTM
    layer = from_onnx(single(rng, operator="GRU", linear_before_reset=0))
    assert type(layer) is GRU and not layer.reset_after and layer.bhn is None


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
