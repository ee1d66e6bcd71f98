"""Agreement with ONNX's RNN operator: its directions, and lengths of rows."""

import mlx.core as mx
import numpy as np
import pytest

from conftest import array, draw
from mlx_recurrent import RNN, Bidirectional
from tolerances import agree

onnx = pytest.importorskip("onnx", reason="onnx is not installed")

DIRECTIONS = ["forward", "reverse", "bidirectional"]


def model_of(layers, direction, N, L):
    """One RNN node with our weights, on time-major inputs."""
    from onnx import TensorProto, helper, numpy_helper

    H, D = layers[0].Wxh.shape
    zeros = np.zeros(H, np.float32)
    constants = {
        "W": np.stack([layer.Wxh for layer in layers]),
        "R": np.stack([layer.Whh for layer in layers]),
        "B": np.stack([np.concatenate([layer.bias, zeros]) for layer in layers]),
    }
    node = helper.make_node(
        "RNN",
        ["X", "W", "R", "B", "sequence_lens", "initial_h"],
        ["Y", "Y_h"],
        hidden_size=H,
        direction=direction,
    )
    value = helper.make_tensor_value_info
    both = len(layers)
    graph = helper.make_graph(
        [node],
        "layer",
        [
            value("X", TensorProto.FLOAT, (L, N, D)),
            value("sequence_lens", TensorProto.INT32, (N,)),
            value("initial_h", TensorProto.FLOAT, (both, N, H)),
        ],
        [
            value("Y", TensorProto.FLOAT, (L, both, N, H)),
            value("Y_h", TensorProto.FLOAT, (both, N, H)),
        ],
        [numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model


def compare(rng, direction, lengths, run):
    N, L, D, H = 3, 6, 4, 5
    layers = [RNN(D, H) for _ in range(1 + (direction == "bidirectional"))]
    x = draw(rng, (N, L, D), mx.float32)
    hidden = draw(rng, (len(layers), N, H), mx.float32)
    inputs = {
        "X": np.ascontiguousarray(np.swapaxes(np.array(x), 0, 1)),
        "sequence_lens": np.array(lengths, np.int32),
        "initial_h": np.array(hidden),
    }
    y, last = run(model_of(layers, direction, N, L), inputs)
    # Ours is (N, L, directions times H).
    y = array(np.moveaxis(y, 2, 0).reshape(N, L, -1), mx.float32)
    if direction == "bidirectional":
        outputs, states = Bidirectional(*layers)(
            x, list(hidden), lengths=lengths, return_state=True
        )
        states = mx.stack(states)
    else:
        outputs, states = layers[0](
            x,
            hidden[0],
            lengths=lengths,
            reverse=direction == "reverse",
            return_state=True,
        )
        states = states[None]
    agree(outputs, y, "Y")
    agree(states, array(last, mx.float32), "Y_h")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_directions(rng, direction):
    from onnx.reference import ReferenceEvaluator

    def run(model, inputs):
        return ReferenceEvaluator(model).run(None, inputs)

    # The evaluator knows no lengths but the whole.
    compare(rng, direction, [6, 6, 6], run)


@pytest.mark.parametrize("lengths", [[6, 6, 6], [6, 1, 4], [2, 5, 3]], ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_lengths(rng, direction, lengths):
    onnxruntime = pytest.importorskip(
        "onnxruntime", reason="ONNX Runtime is not installed"
    )

    def run(model, inputs):
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        return session.run(None, inputs)

    compare(rng, direction, lengths, run)
