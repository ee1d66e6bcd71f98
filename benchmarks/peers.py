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

    return dict(zip(WEIGHTS, map(np.asarray, gradients), strict=True))


def _members(h: Any) -> "dict[str, np.ndarray]":
    import numpy as np

    return {"h": np.stack([np.asarray(member) for member in h])}


def mlx(work: "Work", threads: int, package: str) -> Prepared:
    """``package.RNN``, or one of MLX's operations and this package's own."""
    import mlx.core as mx
    import mlx.nn as nn
    import numpy as np

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
    layer = library.RNN(work.case.D, work.case.H, nonlinearity=nonlinearity)
    layer.Wxh, layer.Whh, layer.bias = weights

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
        layer.Wxh, layer.Whh, layer.bias = weights
        return layer(x)

    def loss(x: mx.array, cotangent: mx.array, *weights: mx.array) -> mx.array:
        return (states(x, *weights) * cotangent).sum()

    gradient = mx.grad(loss, (2, 3, 4))

    def penalty(*weights: mx.array) -> mx.array:
        return mx.grad(loss)(x, cotangent, *weights).square().sum()

    def training() -> list[mx.array]:
        return mx.vjp(lambda *w: [states(x, *w)], weights, [cotangent])[1]

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
    return evaluated(layer, x)


def torch(work: "Work", threads: int) -> Prepared:
    """``torch.nn.RNN``."""
    import torch

    arrays = {name: torch.from_numpy(a) for name, a in work.arrays().items()}
    x, cotangent = arrays["x"], arrays["cotangent"]
    layer = torch.nn.RNN(work.case.D, work.case.H, batch_first=True)
    weights = [layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0]
    with torch.no_grad():
        for weight, name in zip(weights, WEIGHTS, strict=True):
            weight.copy_(arrays[name])
        layer.bias_hh_l0.zero_()

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
        return torch.autograd.grad(layer(x)[0], weights, grad_outputs=cotangent)

    def gradient(x: Any, cotangent: Any, of: Any) -> Any:
        loss = (layer(x)[0] * cotangent).sum()
        return torch.autograd.grad(loss, of, create_graph=True)

    def penalty() -> Any:
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

    moving = x.clone().requires_grad_()
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
    return Prepared(forward, _states, begin)


def jax(work: "Work", threads: int) -> Prepared:
    """``jax.lax.scan`` under ``jax.jit``, the projection before it."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import jax.numpy as jnp

    arrays = {name: jnp.asarray(a) for name, a in work.arrays().items()}
    x, cotangent = arrays["x"], arrays["cotangent"]
    weights = [arrays[name] for name in WEIGHTS]

    def states(x: Any, Wxh: Any, Whh: Any, bias: Any) -> Any:
        def step(h: Any, z: Any) -> tuple[Any, Any]:
            h = jnp.tanh(z + h @ Whh.T)
            return h, h

        z = x.swapaxes(0, 1) @ Wxh.T + bias
        _, h = jax.lax.scan(step, jnp.zeros((x.shape[0], Whh.shape[0])), z)
        return h.swapaxes(0, 1)

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
        one = jax.jit(states)
        return Prepared(
            lambda: jax.block_until_ready([one(x, *member) for member in apart]),
            _members,
        )
    return Prepared(run(states, x, *weights), _states)


def onnxruntime(work: "Work", threads: int) -> Prepared:
    """ONNX's ``RNN`` operator, given the time-major input that it asks for."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    arrays = work.arrays()
    _, N, L, D, H = work.case
    x = np.ascontiguousarray(arrays["x"].swapaxes(0, 1))
    constants = {
        "W": arrays["Wxh"][None],
        "R": arrays["Whh"][None],
        "B": np.concatenate([arrays["bias"], np.zeros(H, np.float32)])[None],
    }
    # A step is given the state, and gives it back.
    stream = work.kind == "stream"
    given = ["X", "W", "R", "B", *(["", "H"] if stream else [])]
    shapes = {
        "X": (1 if stream else L, N, D),
        "H": (1, N, H),
        "Y": (L, 1, N, H),
        "Y_h": (1, N, H),
    }

    def described(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name])

    result = ["", "Y_h"] if stream else ["Y"]
    graph = helper.make_graph(
        [helper.make_node("RNN", given, result, hidden_size=H)],
        "layer",
        [described(name) for name in given if name in shapes],
        [described(result[-1])],
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
    inputs = {"X": x}
    if stream:
        first = np.zeros((1, N, H), np.float32)
        steps = [x[t : t + 1] for t in range(L)]
        state = first

        def next_step() -> Any:
            nonlocal state
            state = session.run(None, {"X": steps[0], "H": state})[0]
            return state

        def sequence() -> Any:
            states = [first]
            for step in steps:
                states.append(session.run(None, {"X": step, "H": states[-1]})[0])
            return np.stack([a[0] for a in states[1:]], axis=1)

        return Prepared(next_step, lambda _: _states(sequence()))
    return Prepared(
        lambda: session.run(None, inputs)[0],
        lambda y: _states(y[:, 0].swapaxes(0, 1)),
    )


def openvino(work: "Work", threads: int) -> Prepared:
    """OpenVINO's ``RNNSequence``, in float32 throughout."""
    import numpy as np
    import openvino
    from openvino import opset13 as ops

    arrays = work.arrays()
    _, N, L, D, H = work.case
    x = ops.parameter([N, L, D], np.float32)
    sequence = ops.rnn_sequence(
        x,
        ops.constant(np.zeros((N, 1, H), np.float32)),
        ops.constant(np.full(N, L, np.int32)),
        ops.constant(arrays["Wxh"][None]),
        ops.constant(arrays["Whh"][None]),
        ops.constant(arrays["bias"][None]),
        H,
        "forward",
        activations=["tanh"],
    )
    model = openvino.Model([sequence.output(0)], [x], "layer")
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
    request.set_input_tensor(0, openvino.Tensor(arrays["x"]))

    def run() -> Any:
        request.infer()
        return request.get_output_tensor(0).data

    return Prepared(run, lambda y: _states(y[:, 0].copy()))


class Peer(NamedTuple):
    """A library to compare with.

    Args:
        label (str): Its name in tables.
        prepare (callable): Makes a piece of work ready, given it and the threads.
        needs (tuple of str): The modules without which it cannot run.
        distribution (str): What carries its version.
        passes (tuple of str): What it can do, of the kinds of work.
    """

    label: str
    prepare: Callable[["Work", int], Prepared]
    needs: tuple[str, ...]
    distribution: str
    passes: tuple[str, ...]


DERIVATIVES = ("forward", "training", "penalty", "hessian", "examples")
EVERYTHING = (*DERIVATIVES, "ensemble", "calls")
STEPS = ("stream", "step")
OURS, UPSTREAM = "mlx_recurrent", "mlx.nn"
LIBRARIES = {
    OURS: Peer(
        "ours",
        lambda w, n: mlx(w, n, OURS),
        ("mlx_recurrent",),
        "mlx-recurrent",
        EVERYTHING + STEPS,
    ),
    UPSTREAM: Peer(
        "mlx.nn.RNN",
        lambda w, n: mlx(w, n, UPSTREAM),
        ("mlx",),
        "mlx",
        (*EVERYTHING, "stream"),
    ),
    "torch": Peer("PyTorch", torch, ("torch",), "torch", (*DERIVATIVES, "stream")),
    "onnxruntime": Peer(
        "ONNX Runtime",
        onnxruntime,
        ("onnxruntime", "onnx"),
        "onnxruntime",
        ("forward", "stream"),
    ),
    "jax": Peer("JAX scan", jax, ("jax",), "jax", EVERYTHING),
    "openvino": Peer("OpenVINO", openvino, ("openvino",), "openvino", ("forward",)),
}
PEERS = [name for name in LIBRARIES if name != OURS]
