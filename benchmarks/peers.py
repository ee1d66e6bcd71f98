"""How each library runs one piece of work: the layer as its users would write it.

Imported in the worker's process, where a library is loaded when it is first used;
elsewhere only for the names.
"""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    from cases import Work


class Prepared(NamedTuple):
    """A piece of work, ready to run.

    Args:
        run (callable): Does it once, and returns when the result is there.
        named (callable): Gives what ``run`` returned as NumPy arrays by name.
        begin (callable, optional): Called before a turn.
        measures (bool, optional): Whether what ``run`` returns is the seconds that are
            wanted, in place of its own. Default: ``False``.
    """

    run: Callable[[], Any]
    named: Callable[[Any], "dict[str, np.ndarray]"]
    begin: Callable[[], None] = lambda: None
    measures: bool = False


WEIGHTS = ("Wxh", "Whh", "bias")


def _states(h: Any) -> "dict[str, np.ndarray]":
    import numpy as np

    return {"h": np.asarray(h)}


def _gradients(gradients: Sequence[Any]) -> "dict[str, np.ndarray]":
    import numpy as np

    layers = range(len(gradients) // len(WEIGHTS))
    names = [f"{name}{i or ''}" for i in layers for name in WEIGHTS]
    return dict(zip(names, map(np.asarray, gradients), strict=True))


def _members(h: Any) -> "dict[str, np.ndarray]":
    import numpy as np

    return {"h": np.stack([np.asarray(member) for member in h])}


def _mlx_network(work: "Work", library: Any, **made: Any) -> tuple[list[Any], Any]:
    """The layers, and what calls them all, of ``mlx_recurrent`` or ``mlx.nn``."""
    import mlx.core as mx

    D, H = work.case.D, work.case.H
    if work.option == "bidirectional":
        forward, backward = layers = [library.RNN(D, H, **made) for _ in range(2)]
        if hasattr(library, "Bidirectional"):
            return layers, library.Bidirectional(forward, backward)
        return layers, lambda x: mx.concatenate(
            [forward(x), backward(x[:, ::-1])[:, ::-1]], axis=-1
        )
    sizes = [D, *[H] * (work.layers - 1)]
    layers = [library.RNN(size, H, **made) for size in sizes]
    if work.option != "depth":
        return layers, layers[0]
    if hasattr(library, "Stack"):
        return layers, library.Stack(layers)

    def one_after_another(x: mx.array) -> mx.array:
        for layer in layers:
            x = layer(x)
        return x

    return layers, one_after_another


def mlx(work: "Work", threads: int, package: str) -> Prepared:
    """``package.RNN``, or one of MLX's operations and this package's own."""
    import mlx.core as mx
    import mlx.nn as nn
    import numpy as np

    from cases import SEED

    if package == "mlx_recurrent":
        import mlx_recurrent as library

        product = library.matmul
    else:
        library = nn

        def product(x: mx.array, w: mx.array) -> mx.array:
            return x @ w.T

    if work.kind == "exchange":
        from mlx_recurrent import _native

        return Prepared(_native.measure_exchange, lambda _: {}, measures=True)

    def begin() -> None:
        mx.random.seed(SEED)
        if package == "mlx_recurrent":
            library.set_num_threads(work.threads or threads)

    dtype = getattr(mx, work.dtype)
    arrays = {name: mx.array(a).astype(dtype) for name, a in work.arrays().items()}
    x, cotangent = arrays.pop("x"), arrays.pop("cotangent")
    weights = list(arrays.values())
    mx.eval(x, cotangent, weights)
    nonlinearity = None
    if work.nonlinearity != "tanh":
        from callables import TRACED

        nonlinearity = TRACED[work.nonlinearity].make()
    layers, network = _mlx_network(
        work, library, nonlinearity=nonlinearity, **work.layer_arguments()
    )
    layer, called = layers[0], work.call_arguments()

    def set_weights(weights: Sequence[mx.array]) -> None:
        for i, layer in enumerate(layers):
            layer.Wxh, layer.Whh, layer.bias = weights[3 * i : 3 * i + 3]

    set_weights(weights)

    def wide(*results: mx.array) -> list[np.ndarray]:
        if work.dtype == "bfloat16":  # which NumPy does not have
            results = tuple(a.astype(mx.float32) for a in results)
        return [np.array(a) for a in results]

    def evaluated(function: Callable[..., mx.array], *operands: mx.array) -> Prepared:
        def run() -> mx.array:
            result = function(*operands)
            mx.eval(result)
            return result

        return Prepared(run, lambda h: {"h": wide(h)[0]}, begin)

    def states(x: mx.array, *weights: mx.array) -> mx.array:
        set_weights(weights)
        return network(x, **called)

    def loss(x: mx.array, cotangent: mx.array, *weights: mx.array) -> mx.array:
        return (states(x, *weights) * cotangent).sum()

    gradient = mx.grad(loss, (2, 3, 4))

    def penalty(*weights: mx.array) -> mx.array:
        return mx.grad(loss)(x, cotangent, *weights).square().sum()

    def outputs_and_gradients() -> tuple[list[mx.array], list[mx.array]]:
        return mx.vjp(lambda *w: [states(x, *w)], weights, [cotangent])

    def training() -> list[mx.array]:
        return outputs_and_gradients()[1]

    def kept() -> list[mx.array]:
        outputs, gradients = outputs_and_gradients()
        mx.eval(outputs, gradients)
        return gradients

    def hessian() -> list[mx.array]:
        return mx.jvp(lambda *w: gradient(x, cotangent, *w), weights, directions)[1]

    def of_weights(function: Callable[[], Any]) -> Prepared:
        def run() -> Any:
            gradients = function()
            mx.eval(gradients)
            return gradients

        return Prepared(run, lambda g: _gradients(wide(*g)), begin)

    def of_members(function: Callable[[], Any]) -> Prepared:
        def run() -> Any:
            outputs = function()
            mx.eval(outputs)
            return outputs

        return Prepared(run, _members, begin)

    if work.kind in STEPS:
        _, N, L, _, H = work.case
        row = x if N > 1 else x[0]
        steps = [row[..., t, :] for t in range(L)]
        hidden = mx.zeros((N, H)) if N > 1 else mx.zeros(H)
        mx.eval(steps, hidden)
        if package == "mlx_recurrent" and work.kind == "stream":
            stream = layer.stream(hidden)
            steps = [np.array(a) for a in steps]

            def sequence() -> np.ndarray:
                stream.reset(hidden)
                return np.stack([stream(a) for a in steps], axis=-2)

            def next_step() -> np.ndarray:
                return stream(steps[0])

        else:
            state = hidden

            def following(x: mx.array, hidden: mx.array) -> mx.array:
                if work.kind == "step":
                    state = layer.step(x, hidden)
                else:
                    state = layer(x[..., None, :], hidden)[..., 0, :]
                mx.eval(state)
                return state

            def sequence() -> np.ndarray:
                states = [hidden]
                for a in steps:
                    states.append(following(a, states[-1]))
                return np.stack([np.array(a) for a in states[1:]], axis=-2)

            def next_step() -> mx.array:
                nonlocal state
                state = following(steps[0], state)
                return state

        return Prepared(
            next_step, lambda _: _states(sequence().reshape(N, L, H)), begin
        )
    if work.kind == "training":
        return of_weights(training)
    if work.kind == "kept":
        return of_weights(kept)
    if work.kind == "penalty":
        return of_weights(lambda: mx.grad(penalty, (0, 1, 2))(*weights))
    if work.kind == "hessian":
        directions = [mx.array(a) for a in work.directions().values()]
        return of_weights(hessian)
    if work.kind == "examples":
        mapped = mx.vmap(gradient, (0, 0, None, None, None))
        return of_weights(lambda: mapped(x, cotangent, *weights))
    if work.kind in ("ensemble", "calls"):
        stacked = [mx.array(a) for a in work.ensemble().values()]
        apart = [[a[i] for a in stacked] for i in range(stacked[0].shape[0])]
        mx.eval(stacked, apart)
        ensemble = mx.vmap(states, (None, 0, 0, 0))
        if work.kind == "ensemble":
            return of_members(lambda: ensemble(x, *stacked))
        return of_members(lambda: [states(x, *member) for member in apart])
    if work.kind == "call":
        return Prepared(lambda: layer(x), lambda h: {"h": wide(h)[0]}, begin)
    if work.kind == "matmul":
        return evaluated(product, x[0], layer.Wxh)
    if work.kind == "linear":
        linear = library.Linear(work.case.D, work.case.H)
        linear.weight, linear.bias = layer.Wxh, layer.bias
        return evaluated(linear, x[0])
    if work.kind == "addition":
        return evaluated(mx.add, layer.bias, layer.bias)
    return evaluated(lambda x: network(x, **called), x)


def torch(work: "Work", threads: int) -> Prepared:
    """``torch.nn.RNN``."""
    import torch

    arrays = {name: torch.from_numpy(a) for name, a in work.arrays().items()}
    x, cotangent = arrays.pop("x"), arrays.pop("cotangent")
    bidirectional = work.option == "bidirectional"
    layer = torch.nn.RNN(
        work.case.D,
        work.case.H,
        num_layers=1 if bidirectional else work.layers,
        bidirectional=bidirectional,
        batch_first=True,
    )
    weights = []
    with torch.no_grad():
        for *of_layer, hidden_bias in layer.all_weights:
            weights += of_layer
            hidden_bias.zero_()
        for weight, values in zip(weights, arrays.values(), strict=True):
            weight.copy_(values)
    outputs = _states
    if work.option == "lengths":
        # Once: a program packs a batch when it is made.
        def packed(rows: Any) -> Any:
            return torch.nn.utils.rnn.pack_padded_sequence(
                rows, torch.from_numpy(work.lengths()), True, enforce_sorted=False
            )

        x, cotangent = packed(x), packed(cotangent).data

        def outputs(h: Any) -> "dict[str, np.ndarray]":
            rows = torch.nn.utils.rnn.pad_packed_sequence(h, batch_first=True)[0]
            return _states(rows)

    def begin() -> None:
        # As a program in real time would: once, and without a second thread, which
        # a step would have to wait for.
        stream = work.kind == "stream"
        torch.set_grad_enabled(not stream)
        torch.set_num_threads(1 if stream else threads)

    def forward() -> Any:
        with torch.inference_mode():
            return layer(x)[0]

    def training() -> Any:
        h = layer(x)[0]
        h = h.data if work.option == "lengths" else h
        return torch.autograd.grad(h, weights, grad_outputs=cotangent)

    def gradient(x: Any, cotangent: Any, of: Any) -> Any:
        loss = (layer(x)[0] * cotangent).sum()
        return torch.autograd.grad(loss, of, create_graph=True)

    def penalty() -> Any:
        moving = x.detach().requires_grad_()
        (slope,) = gradient(moving, cotangent, [moving])
        return torch.autograd.grad(slope.square().sum(), weights)

    def hessian() -> Any:
        found = zip(gradient(x, cotangent, weights), directions, strict=True)
        return torch.autograd.grad(sum((g * d).sum() for g, d in found), weights)

    def examples() -> Any:
        # Its RNN has no rule for vmap: a row at a time.
        rows = [
            torch.autograd.grad(layer(a)[0], weights, grad_outputs=c)
            for a, c in zip(x, cotangent, strict=True)
        ]
        return [torch.stack(same) for same in zip(*rows, strict=True)]

    directions = [torch.from_numpy(a) for a in work.directions().values()]
    of_weights = {
        "training": training,
        "penalty": penalty,
        "hessian": hessian,
        "examples": examples,
    }
    if work.kind in of_weights:
        return Prepared(of_weights[work.kind], _gradients, begin)
    if work.kind == "stream":
        cell = torch.nn.RNNCell(work.case.D, work.case.H)
        cell.load_state_dict(
            {name.removesuffix("_l0"): a for name, a in layer.state_dict().items()}
        )
        steps = list(x.unbind(1))
        state = first = torch.zeros(work.case.N, work.case.H)

        def next_step() -> Any:
            nonlocal state
            state = cell(steps[0], state)
            return state

        def sequence() -> Any:
            states = [first]
            for step in steps:
                states.append(cell(step, states[-1]))
            return torch.stack(states[1:], 1)

        return Prepared(next_step, lambda _: _states(sequence()), begin)
    return Prepared(forward, outputs, begin)


def jax(work: "Work", threads: int) -> Prepared:
    """``jax.lax.scan`` under ``jax.jit``, the projection before it."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import jax.numpy as jnp

    arrays = {name: jnp.asarray(a) for name, a in work.arrays().items()}
    x, cotangent = arrays.pop("x"), arrays.pop("cotangent")
    weights = list(arrays.values())

    def one(x: Any, Wxh: Any, Whh: Any, bias: Any, reverse: bool = False) -> Any:
        def step(h: Any, z: Any) -> tuple[Any, Any]:
            h = jnp.tanh(z + h @ Whh.T)
            return h, h

        def masked_step(h: Any, z_and_runs: tuple[Any, Any]) -> tuple[Any, Any]:
            z, runs = z_and_runs
            new = jnp.tanh(z + h @ Whh.T)
            return jnp.where(runs, new, h), jnp.where(runs, new, 0)

        z = x.swapaxes(0, 1) @ Wxh.T + bias
        first = jnp.zeros((x.shape[0], Whh.shape[0]))
        if work.option == "lengths":
            runs = jnp.arange(len(z))[:, None, None] < work.lengths()[:, None]
            _, h = jax.lax.scan(masked_step, first, (z, runs))
        else:
            _, h = jax.lax.scan(step, first, z, reverse=reverse)
        return h.swapaxes(0, 1)

    def states(x: Any, *weights: Any) -> Any:
        if work.option == "bidirectional":
            backward = one(x, *weights[3:], reverse=True)
            return jnp.concatenate([one(x, *weights[:3]), backward], -1)
        for i in range(0, len(weights), 3):
            x = one(x, *weights[i : i + 3])
        return x

    def gradients(x: Any, cotangent: Any, *weights: Any) -> Any:
        _, pull_back = jax.vjp(lambda *w: states(x, *w), *weights)
        return pull_back(cotangent)

    def loss(x: Any, cotangent: Any, *weights: Any) -> Any:
        return (states(x, *weights) * cotangent).sum()

    def penalty(x: Any, cotangent: Any, *weights: Any) -> Any:
        def norm(*weights: Any) -> Any:
            return jnp.square(jax.grad(loss)(x, cotangent, *weights)).sum()

        return jax.grad(norm, (0, 1, 2))(*weights)

    def hessian(x: Any, cotangent: Any, *weights: Any) -> Any:
        def gradient(*weights: Any) -> Any:
            return jax.grad(loss, (2, 3, 4))(x, cotangent, *weights)

        return jax.jvp(gradient, weights, directions)[1]

    def examples(x: Any, cotangent: Any, *weights: Any) -> Any:
        def row(x: Any, cotangent: Any) -> Any:
            return jax.grad(loss, (2, 3, 4))(x[None], cotangent[None], *weights)

        return jax.vmap(row)(x, cotangent)

    def run(function: Any, *operands: Any) -> Callable[[], Any]:
        compiled = jax.jit(function)
        return lambda: jax.block_until_ready(compiled(*operands))

    directions = tuple(jnp.asarray(a) for a in work.directions().values())
    of_weights = {
        "training": gradients,
        "penalty": penalty,
        "hessian": hessian,
        "examples": examples,
    }
    if work.kind in of_weights:
        function = of_weights[work.kind]
        return Prepared(run(function, x, cotangent, *weights), _gradients)
    stacked = [jnp.asarray(a) for a in work.ensemble().values()]
    if work.kind == "ensemble":
        ensemble = jax.vmap(states, (None, 0, 0, 0))
        return Prepared(run(ensemble, x, *stacked), _states)
    if work.kind == "calls":
        apart = [[a[i] for a in stacked] for i in range(len(stacked[0]))]
        call = jax.jit(states)
        return Prepared(
            lambda: jax.block_until_ready([call(x, *member) for member in apart]),
            _members,
        )
    return Prepared(run(states, x, *weights), _states)


def onnxruntime(work: "Work", threads: int) -> Prepared:
    """ONNX's ``RNN`` operator, given the time-major input that it asks for."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    _, N, L, D, H = work.case
    x = np.ascontiguousarray(work.arrays()["x"].swapaxes(0, 1))
    # A step is given the state, and gives it back.
    stream, rows_end = work.kind == "stream", work.option == "lengths"
    constants, nodes = {}, []
    both = work.option == "bidirectional"
    weights = work.weights()
    # A node has one direction of one layer, or both.
    for i, of_node in enumerate([weights] if both else [[one] for one in weights]):
        Wxh, Whh, bias = map(np.stack, zip(*of_node, strict=True))
        constants[f"W{i}"], constants[f"R{i}"] = Wxh, Whh
        constants[f"B{i}"] = np.concatenate([bias, np.zeros_like(bias)], axis=1)
        if i:
            nodes.append(helper.make_node("Squeeze", [f"Y{i - 1}", "axis"], [f"X{i}"]))
            constants["axis"] = np.array([1])
        given = [f"{name}{i}" for name in "XWRB"]
        given.append("lengths" if rows_end else "")
        given.append("H" if stream else "")
        result = "Y_h" if stream else f"Y{i}"
        nodes.append(
            helper.make_node(
                "RNN",
                given,
                ["", result] if stream else [result],
                hidden_size=H,
                direction="bidirectional" if both else "forward",
            )
        )
    if rows_end:
        constants["lengths"] = work.lengths()
    states = helper.make_tensor_value_info("H", TensorProto.FLOAT, (1, N, H))
    steps_of_x = helper.make_tensor_value_info(
        "X0", TensorProto.FLOAT, (1 if stream else L, N, D)
    )
    shape = (1, N, H) if stream else (L, 2 if both else 1, N, H)
    graph = helper.make_graph(
        nodes,
        "layer",
        [steps_of_x, states] if stream else [steps_of_x],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)])
    model.ir_version = 8
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1 if stream else threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    inputs = {"X0": x}
    if stream:
        first = np.zeros((1, N, H), np.float32)
        steps = [x[t : t + 1] for t in range(L)]
        state = first

        def next_step() -> Any:
            nonlocal state
            state = session.run(None, {"X0": steps[0], "H": state})[0]
            return state

        def sequence() -> Any:
            states = [first]
            for step in steps:
                states.append(session.run(None, {"X0": step, "H": states[-1]})[0])
            return np.stack([a[0] for a in states[1:]], axis=1)

        return Prepared(next_step, lambda _: _states(sequence()))
    return Prepared(
        lambda: session.run(None, inputs)[0],
        lambda y: _states(y.transpose(2, 0, 1, 3).reshape(N, L, -1)),
    )


def openvino(work: "Work", threads: int) -> Prepared:
    """OpenVINO's ``RNNSequence``, in float32 throughout."""
    import numpy as np
    import openvino
    from openvino import opset13 as ops

    _, N, L, D, H = work.case
    both = work.option == "bidirectional"
    weights = work.weights()
    lengths = work.lengths() if work.option == "lengths" else np.full(N, L, np.int32)
    x = states = ops.parameter([N, L, D], np.float32)
    for of_node in [weights] if both else [[one] for one in weights]:
        if states is not x:
            states = ops.squeeze(states, ops.constant(1))
        sequence = ops.rnn_sequence(
            states,
            ops.constant(np.zeros((N, len(of_node), H), np.float32)),
            ops.constant(lengths),
            *(ops.constant(np.stack(same)) for same in zip(*of_node, strict=True)),
            H,
            "bidirectional" if both else "forward",
            activations=["tanh"],
        )
        states = sequence.output(0)
    model = openvino.Model([states], [x], "layer")
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

    return Prepared(run, lambda y: _states(y.swapaxes(1, 2).reshape(N, L, -1)))


class Peer(NamedTuple):
    """A library to compare with.

    Args:
        label (str): Its name in tables.
        prepare (callable): Makes a piece of work ready, given it and the threads.
        needs (tuple of str): The modules without which it cannot run.
        distribution (str): What carries its version.
        passes (tuple of str): What it can do, of the kinds of work.
        options (tuple of str): The options of work that it has, for a forward pass and
            training where it can do them.
    """

    label: str
    prepare: Callable[["Work", int], Prepared]
    needs: tuple[str, ...]
    distribution: str
    passes: tuple[str, ...]
    options: tuple[str, ...]


DERIVATIVES = ("forward", "training", "penalty", "hessian", "examples")
EVERYTHING = (*DERIVATIVES, "ensemble", "calls")
STEPS = ("stream", "step")
NETWORKS = ("bidirectional", "depth")
REGULARISERS = ("leak", "zoneout", "input dropout", "recurrent dropout")
OURS, UPSTREAM = "mlx_recurrent", "mlx.nn"
LIBRARIES = {
    OURS: Peer(
        "ours",
        lambda w, n: mlx(w, n, OURS),
        ("mlx_recurrent",),
        "mlx-recurrent",
        (*EVERYTHING, *STEPS, "kept"),
        ("lengths", *NETWORKS, *REGULARISERS),
    ),
    UPSTREAM: Peer(
        "mlx.nn.RNN",
        lambda w, n: mlx(w, n, UPSTREAM),
        ("mlx",),
        "mlx",
        (*EVERYTHING, "stream"),
        NETWORKS,
    ),
    "torch": Peer(
        "PyTorch",
        torch,
        ("torch",),
        "torch",
        (*DERIVATIVES, "stream"),
        ("lengths", *NETWORKS),
    ),
    "onnxruntime": Peer(
        "ONNX Runtime",
        onnxruntime,
        ("onnxruntime", "onnx"),
        "onnxruntime",
        ("forward", "stream"),
        ("lengths", *NETWORKS),
    ),
    "jax": Peer("JAX scan", jax, ("jax",), "jax", EVERYTHING, ("lengths", *NETWORKS)),
    "openvino": Peer(
        "OpenVINO",
        openvino,
        ("openvino",),
        "openvino",
        ("forward",),
        ("lengths", *NETWORKS),
    ),
}
PEERS = [name for name in LIBRARIES if name != OURS]
