"""How the runtimes of ONNX's operators run a piece of work."""

from typing import TYPE_CHECKING, Any

from .prepared import Prepared, states

if TYPE_CHECKING:
    import numpy as np

    from cases import Work


def _nodes(work: "Work", gates: tuple[int, ...]) -> "list[tuple[np.ndarray, ...]]":
    """W, R and both biases of each node: one direction of a layer, or both of it.

    Args:
        work (Work): The work.
        gates (tuple of int): Which of the gates is in each place.
    """
    import numpy as np

    def in_order(a: "np.ndarray") -> "np.ndarray":
        slabs = np.split(a, len(gates))
        return np.concatenate([slabs[i] for i in gates])

    def of_layer(weights: "list[np.ndarray]") -> "list[np.ndarray]":
        Wx, Wh, bx, bh = work.layer.sides(np.concatenate, *weights)
        sides = Wx, Wh, bx, np.zeros_like(bx) if bh is None else bh
        return [in_order(side) for side in sides]

    layers = list(map(of_layer, work.weights()))
    each = [layers] if work.option == "bidirectional" else [[one] for one in layers]
    return [tuple(map(np.stack, zip(*node, strict=True))) for node in each]


def _model(work: "Work") -> bytes:
    """ONNX's operator, with the time-major input that it asks for."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    _, N, L, D, H = work.case
    stream, rows_end = work.kind == "stream", work.option == "lengths"
    both = work.option == "bidirectional"
    names = ["H", "C"][: work.layer.states] if stream else []
    constants, nodes = {}, []
    for i, (W, R, *biases) in enumerate(_nodes(work, work.layer.onnx_gates)):
        constants |= {f"W{i}": W, f"R{i}": R, f"B{i}": np.concatenate(biases, -1)}
        if i:
            nodes.append(helper.make_node("Squeeze", [f"Y{i - 1}", "axis"], [f"X{i}"]))
            constants["axis"] = np.array([1])
        given = [f"{name}{i}" for name in "XWRB"]
        given += ["lengths" if rows_end else "", *names]
        # A step gives back the states that it is given.
        results = ["", *(f"Y_{name}" for name in names)] if stream else [f"Y{i}"]
        nodes.append(
            helper.make_node(
                work.cell,
                given,
                results,
                hidden_size=H,
                direction="bidirectional" if both else "forward",
                **({"linear_before_reset": 1} if work.cell == "GRU" else {}),
            )
        )
    if rows_end:
        constants["lengths"] = work.lengths()
    shape = (1, N, H) if stream else (L, 2 if both else 1, N, H)

    def described(name: str, shape: tuple[int, ...]) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "layer",
        [
            described("X0", (1 if stream else L, N, D)),
            *(described(name, shape) for name in names),
        ],
        [described(name, shape) for name in results if name],
        [numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)])
    model.ir_version = 8
    made: bytes = model.SerializeToString()
    return made


def onnxruntime(work: "Work", threads: int) -> Prepared:
    """ONNX Runtime."""
    import numpy as np
    import onnxruntime

    _, N, L, _, H = work.case
    x = np.ascontiguousarray(work.arrays()["x"].swapaxes(0, 1))
    stream = work.kind == "stream"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1 if stream else threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        _model(work), options, providers=["CPUExecutionProvider"]
    )
    if not stream:
        inputs = {"X0": x}
        return Prepared(
            lambda: session.run(None, inputs)[0],
            lambda y: states(y.transpose(2, 0, 1, 3).reshape(N, L, -1)),
        )
    names = ["H", "C"][: work.layer.states]
    first = [np.zeros((1, N, H), np.float32) for _ in names]
    steps = [x[t : t + 1] for t in range(L)]
    state = first

    def following(x: np.ndarray, state: list[np.ndarray]) -> list[np.ndarray]:
        return session.run(None, {"X0": x, **dict(zip(names, state, strict=True))})

    def next_step() -> Any:
        nonlocal state
        state = following(steps[0], state)
        return state

    def sequence() -> Any:
        all_states = [first]
        for step in steps:
            all_states.append(following(step, all_states[-1]))
        return np.stack([h[0] for h, *_ in all_states[1:]], axis=1)

    return Prepared(next_step, lambda _: states(sequence()))


def openvino(work: "Work", threads: int) -> Prepared:
    """OpenVINO's sequences, in float32 throughout."""
    import numpy as np
    import openvino
    from openvino import opset13 as ops

    _, N, L, D, H = work.case
    both = work.option == "bidirectional"
    lengths = work.lengths() if work.option == "lengths" else np.full(N, L, np.int32)
    x = outputs = ops.parameter([N, L, D], np.float32)
    # Its GRU's reset comes before the product unless it is told so.
    after = {"linear_before_reset": True} if work.cell == "GRU" else {}
    for W, R, bx, bh in _nodes(work, work.layer.openvino_gates):
        if outputs is not x:
            outputs = ops.squeeze(outputs, ops.constant(1))
        zeros = ops.constant(np.zeros((N, len(W), H), np.float32))
        bias = bx + bh
        if after:  # the new gate's two are apart
            bias = np.concatenate([bias[:, : 2 * H], bx[:, 2 * H :], bh[:, 2 * H :]], 1)
        sequence = getattr(ops, f"{work.cell.lower()}_sequence")(
            outputs,
            *[zeros] * work.layer.states,
            ops.constant(lengths),
            *map(ops.constant, (W, R, bias)),
            H,
            "bidirectional" if both else "forward",
            **after,
        )
        outputs = sequence.output(0)
    model = openvino.Model([outputs], [x], "layer")
    request = openvino.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        },
    ).create_infer_request()
    request.set_input_tensor(0, openvino.Tensor(work.arrays()["x"]))

    def run() -> Any:
        request.infer()
        return request.get_output_tensor(0).data

    return Prepared(run, lambda y: states(y.swapaxes(1, 2).reshape(N, L, -1)))
