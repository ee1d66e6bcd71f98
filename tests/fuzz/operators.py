"""Models of ONNX's operator RNN as layers, with random attributes."""

from importlib.util import find_spec

import mlx.core as mx
import numpy as np

from conftest import array
from fuzz.interchange import N, singles
from fuzz.models import L, Model
from mlx_recurrent import interop
from tolerances import EPS, WAYS, equal, largest, wide


def _softsign(a):
    return a / (1 + np.abs(a))


# ONNX's functions as its standard writes them, of alpha and beta, with the parameters
# that they have and whether those have defaults.
FUNCTIONS = {
    "Tanh": ((), lambda a: np.tanh(a)),
    "Relu": ((), lambda a: np.maximum(a, 0)),
    "Sigmoid": ((), lambda a: 1 / (1 + np.exp(-a))),
    "Affine": (("alpha",), lambda a, alpha, beta=0.0: alpha * a + beta),
    "LeakyRelu": ((), lambda a, alpha=0.01: np.where(a >= 0, a, alpha * a)),
    "ThresholdedRelu": ((), lambda a, alpha=1.0: np.where(a >= alpha, a, 0)),
    "ScaledTanh": (
        ("alpha", "beta"),
        lambda a, alpha, beta: alpha * np.tanh(beta * a),
    ),
    "HardSigmoid": (
        (),
        lambda a, alpha=0.2, beta=0.5: np.clip(alpha * a + beta, 0, 1),
    ),
    "Elu": ((), lambda a, alpha=1.0: np.where(a >= 0, a, alpha * np.expm1(a))),
    "Softsign": ((), _softsign),
    "Softplus": ((), lambda a: np.logaddexp(0, a)),
}
TAKES = {
    "alpha": {"Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid"}
    | {"Elu"},
    "beta": {"Affine", "ScaledTanh", "HardSigmoid"},
}


# What is not as the standard has it, and what the error must name. ONNX's checker
# judges some of it, in its own words.
SPOILT = {
    "direction": {"direction"},
    "layout": {"layout"},
    "clip": {"clip"},
    "nan clip": {"clip"},
    "activation": {"activations"},
    "one activation": {"activations"},
    "alphas": {"activation_alpha"},
    "nan alpha": {"activation_alpha"},
    "hidden_size": {"hidden_size"},
    "W": {"W"},
    "axes of W": {"W"},
    "R": {"R"},
    "B": {"B"},
    "integers": {"W"},
    "W as an input": {"W"},
    "another domain": {"node", "model"},
    "LSTM": {"LSTM", "model"},
    "Tanh before": {"Tanh"},
    "bytes": {"model"},
}


class OfOnnx(Model):
    """A model of one RNN node with random attributes."""

    def choose(self, choose):
        self.direction = choose("direction", ["forward", "reverse", "bidirectional"])
        self.both = both = 2 if self.direction == "bidirectional" else 1
        self.dtype = choose("dtype", [mx.float32, mx.float64, mx.float16, mx.bfloat16])
        self.layout = choose("layout", [0, 1])
        self.bias = choose("bias", [True, False])
        self.lengths = choose("sequence_lens", [None, "input", "constant"])
        self.hidden = choose("initial_h", [None, "input", "constant", "rows", "zeros"])
        self.opset = choose("opset", [22, 14, 17])
        self.attributes = {"direction": self.direction, "layout": self.layout}
        self.names = ["Tanh"] * both
        if choose("activations", [False, True]):
            self.names = [choose(f"f {i}", list(FUNCTIONS)) for i in range(both)]
            self.attributes["activations"] = self.names
            case = choose("in", ["its case", "lower", "upper"])
            if case != "its case":
                change = str.lower if case == "lower" else str.upper
                self.attributes["activations"] = [change(n) for n in self.names]
        self.parameters = [{} for _ in range(both)]
        for which, values in {
            "alpha": [0.25, 1.0, 0.5, -0.5, 2.0, 0.0],
            "beta": [0.5, 0.0, -0.25, 1.0],
        }.items():
            takers = [i for i, n in enumerate(self.names) if n in TAKES[which]]
            if takers and choose(f"give {which}", [True, False]):
                given = [choose(f"{which} {i}", values) for i in takers]
                self.attributes[f"activation_{which}"] = given
                for i, value in zip(takers, given, strict=True):
                    self.parameters[i][which] = value
        for name, parameters in zip(self.names, self.parameters, strict=True):
            if missing := set(FUNCTIONS[name][0]) - set(parameters):
                self.words |= {f"activation_{which}" for which in missing}
        self.clip = choose("clip", [None, 0.5, 0.0, 2.0])
        if self.clip is not None:
            self.attributes["clip"] = self.clip
        if self.lengths == "constant":
            self.words |= {"sequence_lens"}
        if self.hidden == "rows":
            self.words |= {"initial_h"}
        if self.dtype == mx.bfloat16:
            self.opset = 22
        self.wrong = choose.rarely("wrong", [None, *SPOILT], 0.25)
        if self.wrong:
            self.words |= SPOILT[self.wrong]

    def made(self):
        from onnx import helper, numpy_helper

        from onnx_models import TYPES, tensor, weights

        both, H = self.both, self.H
        arrays = weights(self.rng, both, self.D, H, self.dtype, self.bias)
        self.weights = dict(arrays)
        attributes = {"hidden_size": H, **self.attributes}
        self._spoil(attributes, arrays)
        inputs = {"X": ["N", "L", self.D] if self.layout else ["L", "N", self.D]}
        if self.lengths == "input":
            inputs["sequence_lens"] = ["N"]
        elif self.lengths:
            arrays["sequence_lens"] = np.array([L, 1], np.int32)
        state = [N, both, H] if self.layout else [both, N, H]
        self.hidden0 = None
        if self.hidden == "input":
            inputs["initial_h"] = state
        elif self.hidden:
            rows = self.rng.standard_normal(
                (both, 1 if self.hidden == "constant" else N, H)
            )
            rows = rows * (self.hidden != "zeros")
            rows = np.broadcast_to(rows, (both, N, H))
            self.hidden0 = array(rows[:, 0], self.dtype)
            arrays["initial_h"] = array(
                rows.swapaxes(0, 1) if self.layout else rows, self.dtype
            )
        given = ["x" if self.wrong == "Tanh before" else "X", "W", "R"]
        given += ["B" if self.bias else "", "sequence_lens" if self.lengths else ""]
        given += ["initial_h" if self.hidden else ""]
        kind = "LSTM" if self.wrong == "LSTM" else "RNN"
        domain = "com.example" if self.wrong == "another domain" else ""
        nodes = [
            helper.make_node(kind, given, ["Y"], "rnn", domain=domain, **attributes)
        ]
        if self.wrong == "Tanh before":
            nodes.insert(0, helper.make_node("Tanh", ["X"], ["x"], "tanh"))
        if self.wrong == "W as an input":
            del arrays["W"]
            inputs["W"] = [both, H, self.D]

        def info(name, shape):
            integers = name == "sequence_lens"
            kind = 6 if integers else TYPES[self.dtype]
            return helper.make_tensor_value_info(name, kind, shape)

        graph = helper.make_graph(
            nodes,
            "graph",
            [info(name, shape) for name, shape in inputs.items()],
            [info("Y", [None] * 4)],
            [
                numpy_helper.from_array(a, name)
                if isinstance(a, np.ndarray)
                else tensor(name, a)
                for name, a in arrays.items()
            ],
        )
        opsets = [helper.make_opsetid("", self.opset)]
        if domain:
            opsets.append(helper.make_opsetid(domain, 1))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        content = model.SerializeToString()
        return content[: len(content) // 2] if self.wrong == "bytes" else content

    def _spoil(self, attributes, arrays):
        H, both, wrong = self.H, self.both, self.wrong
        if wrong in ("direction", "layout"):
            attributes[wrong] = {"direction": "backward", "layout": 2}[wrong]
        elif wrong in ("clip", "nan clip"):
            attributes["clip"] = -1.0 if wrong == "clip" else float("nan")
        elif wrong == "activation":
            attributes["activations"] = ["Gelu"] * both
        elif wrong == "one activation":
            attributes["activations"] = ["Tanh"] if both == 2 else ["x" * 1000]
        elif wrong in ("alphas", "nan alpha"):
            value = float("nan") if wrong == "nan alpha" else 0.5
            attributes["activations"] = ["Elu"] * both
            attributes["activation_alpha"] = [value] * (both + (wrong == "alphas"))
        elif wrong == "hidden_size":
            attributes["hidden_size"] = H + 1
        elif wrong == "W":
            arrays["W"] = mx.zeros((both + 1, H, self.D), self.dtype)
        elif wrong == "axes of W":
            arrays["W"] = mx.zeros((H, self.D), self.dtype)
        elif wrong == "R":
            arrays["R"] = mx.zeros((both, H, H + 1), self.dtype)
        elif wrong == "B":
            if not self.bias:
                self.words = self.words - {"B"}
            arrays["B"] = mx.zeros((both, H), self.dtype)
        elif wrong == "integers":
            arrays["W"] = np.zeros((both, H, self.D), np.int32)

    def convert(self, model):
        return interop.from_onnx(model)

    def judge(self, layer, model):
        W, R = self.weights["W"], self.weights["R"]
        for i, single in enumerate(singles(layer)):
            equal(single.Wxh, W[i], "W")
            equal(single.Whh, R[i], "R")
            if self.bias:
                halves = mx.split(self.weights["B"][i], 2)
                equal(single.bias, mx.add(*halves, stream=mx.cpu), "B")
        if self.dtype not in (mx.float32, mx.float64):
            return
        x, keywords = self.x.astype(self.dtype), {}
        lengths = np.full(N, L)
        if self.lengths == "input":
            keywords["lengths"] = lengths = self.rng.integers(0, L + 1, N)
        states = None
        if self.hidden == "input":
            states = array(self.rng.standard_normal((self.both, N, self.H)), self.dtype)
            keywords["hidden"] = tuple(states) if self.both == 2 else states[0]
        elif self.hidden == "constant":
            states = mx.stack([self.hidden0] * N, 1)
        y = layer(x, **keywords)
        y = mx.stack(y) if self.both == 2 else y[None]
        truth = self.truth(x, lengths, states)
        error = largest(wide(y) - truth)
        bound = WAYS * EPS[self.dtype] * max(largest(truth), largest(wide(x)))
        assert error <= bound, f"outputs: {error:.3g} > {bound:.3g}"

    def truth(self, x, lengths, states):
        """The operator in loops, (directions, N, L, H)."""
        x, H = wide(x), self.H
        W, R = wide(self.weights["W"]), wide(self.weights["R"])
        B = wide(self.weights["B"]) if self.bias else np.zeros((self.both, 2 * H))
        y = np.zeros((self.both, N, L, H))
        for i in range(self.both):
            _, f = FUNCTIONS[self.names[i]]
            backward = self.direction == "reverse" or i == 1
            for n in range(N):
                h = np.zeros(H) if states is None else wide(states)[i, n]
                steps = range(int(lengths[n]))
                for t in reversed(steps) if backward else steps:
                    a = W[i] @ x[n, t] + R[i] @ h + B[i, :H] + B[i, H:]
                    if self.clip is not None:
                        a = np.clip(a, -self.clip, self.clip)
                    y[i, n, t] = h = f(a, **self.parameters[i])
        return y


LEFT_OUT = {"from_onnx": "onnx"} if find_spec("onnx") is None else {}
KINDS = {} if LEFT_OUT else {"from_onnx": OfOnnx}
