"""Layers as other frameworks' and back: exact, or refused in the name of what is lost.

What each framework can hold is said here once more, in ``BARRED`` and ``KNOWN``.
"""

import io
import os
import tempfile
import warnings
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from conftest import DTYPES, array, draw
from fuzz.misuse import check_error
from mlx_recurrent import RNN, Bidirectional, Stack, interop
from mlx_recurrent.command.cli import main
from mlx_recurrent.interop import Reversed
from mlx_recurrent.interop.activations import Clipped, HardSigmoid, LeakyRelu
from tolerances import agree, equal

# Keras reads it when it is imported; one's own choice stays.
os.environ.setdefault("KERAS_BACKEND", "torch" if find_spec("torch") else "jax")

# Without nn.log_softmax, which MLX may never end for one unit.
NONLINEARITIES = {
    "tanh": None,
    "Tanh": nn.Tanh(),
    "relu": nn.relu,
    "ReLU": nn.ReLU(),
    "sigmoid": mx.sigmoid,
    "Identity": nn.Identity(),
    "elu": nn.elu,
    "softplus": nn.softplus,
    "relu6": nn.relu6,
    "silu": nn.silu,
    "gelu": nn.gelu,
    "softmax": nn.softmax,
    "ELU of 0.5": nn.ELU(0.5),
    "LeakyReLU of 0.25": nn.LeakyReLU(0.25),
    "LeakyReLU of 0.1": nn.LeakyReLU(0.1),
    "LeakyRelu of 1.5": LeakyRelu(1.5),
    "HardSigmoid": HardSigmoid(0.25, 0.5),
    "clipped": Clipped(nn.relu, 0.75),
    "sin": mx.sin,
    "lambda": lambda a: mx.tanh(a),
    "array": nn.ELU(mx.array(0.5)),
}
_NATIVE = {"tanh", "Tanh", "relu", "ReLU", "sigmoid", "Identity"}
KNOWN = {
    "torch": {"tanh", "Tanh", "relu", "ReLU"},
    "keras": _NATIVE | {"elu", "softplus", "relu6", "silu", "gelu", "softmax"},
    # Which has no names for them.
    "flax": set(NONLINEARITIES),
    "onnx": _NATIVE
    | {"elu", "softplus", "relu6", "ELU of 0.5", "LeakyReLU of 0.25", "clipped"}
    | {"LeakyReLU of 0.1", "LeakyRelu of 1.5", "HardSigmoid"},
}
OPTIONS = {
    "leak": {"leak": 0.5},
    "learned leak": {"leak": mx.array(0.5)},
    "zoneout": {"zoneout": 0.25},
    "input_dropout": {"input_dropout": 0.25},
    "recurrent_dropout": {"recurrent_dropout": 0.5},
    "learn_hidden": {"learn_hidden": True},
}
# What a framework's layers do not have, and the word for it in the error.
_NOWHERE = {
    "leak": "leak",
    "learned leak": "leak",
    "zoneout": "zoneout",
    "a merge of one's own": "merge",
}
_ONE_LAYER = {
    **_NOWHERE,
    "learn_hidden": "learn_hidden",
    "residual": "residual",
    "Reversed": "Reversed",
    "a Stack in a Stack": "layers",
}
_DROPOUTS = {name: name for name in ("input_dropout", "recurrent_dropout")}
BARRED = {
    "torch": {
        **_ONE_LAYER,
        **_DROPOUTS,
        "another merge": "merge",
        "other directions": "directions",
        "other bias": "bias",
        "other size": "hidden_size",
        "other nonlinearity": "nonlinearity",
        "other dtype": "dtype",
    },
    "keras": {**_ONE_LAYER, "unlike directions": "hidden"},
    "flax": {**_ONE_LAYER, **_DROPOUTS, "dropout": "dropout"},
    "onnx": {**_NOWHERE, "unlike directions": "hidden"},
}
# The merge is no parameter there.
del BARRED["flax"]["a merge of one's own"]
ARRAYS = ("Wxh", "Whh", "bias", "hidden0")
N, L = 2, 3


class Network:
    """Random layers, most of them such as a framework has.

    Args:
        peer (str): The framework.
        choose (Choices): Chooses.
        rng (Generator): Draws the numbers.
    """

    def __init__(self, peer, choose, rng):
        common = list(SHAPES)[:4]
        kinds = choose.rarely("any kind", [False, True], 0.4)
        self.kind = kind = choose("kind", list(SHAPES) if kinds else common)
        merges = ["concat", "sum", "mul", "mean", None, "own"]
        self.merge = choose.rarely("merge", merges, 0.5)
        self.dtype = choose("dtype", DTYPES)
        self.D, self.H = choose("D", [2, 1, 3]), choose("H", [3, 1, 8])
        self.bias = choose("bias", [True, False])
        every = choose.rarely("any nonlinearity", [False, True])
        known = [n for n in NONLINEARITIES if every or n in KNOWN[peer]]
        self.names = [choose("nonlinearity", known)]
        self.option = choose.rarely("option", [None, *OPTIONS], 0.2)
        odd = ["bias", "size", "nonlinearity", "dtype"]
        self.odd = choose.rarely("other", [None, *odd], 0.15)
        self.dropout = choose("dropout", [0.0, 0.25])
        self.residual = choose.rarely("residual", [False, True])
        self.depth = choose("num_layers", [2, 1, 3])
        if "Stack" in kind and self.merge is None:
            self.merge = "concat"
        if self.odd == "size":
            self.merge = "concat"
        # What a framework may not have.
        self.facts = {self.option} if self.option else set()
        # The last single layer, of so many, has the option or is unlike the others.
        counts = {"RNN": 1, "Reversed": 1, "Stack": self.depth, "Stack of both": 3}
        counts["Stack of Bidirectional"] = 2 * self.depth
        self.count = self.left = counts.get(kind, 2)
        self.split = False
        self.layer = SHAPES[kind](self)
        dtype = mx.result_type(*self._filled(rng))
        self.x = draw(rng, (N, L, self.D), dtype)

    def single(self, D):
        self.left -= 1
        odd = self.odd if self.left == 0 and self.count > 1 else None
        if odd:
            self.facts.add(f"other {odd}")
        name = self.names[0]
        if odd == "nonlinearity":
            name = "relu" if name.lower() == "tanh" else "tanh"
            self.names.append(name)
        options = dict(OPTIONS.get(self.option, {}) if self.left == 0 else {})
        H = self.H + (odd == "size")
        if self.option == "learned leak" and options:
            options["leak"] = mx.full((H,), 0.5)
        bias = self.bias is not (odd == "bias")
        layer = RNN(D, H, bias, NONLINEARITIES[name], **options)
        layer.set_dtype(self.dtype)
        if odd == "dtype":
            other = mx.float16 if self.dtype != mx.float16 else mx.float32
            layer.set_dtype(other)
        return layer

    def both(self, D):
        merge = mx.maximum if self.merge == "own" else self.merge
        forward, backward = self.single(D), self.single(D)
        if forward.hidden_size != backward.hidden_size:
            self.facts.add("unlike directions")
        self.split = forward.nonlinearity is not backward.nonlinearity
        if merge != "concat":
            self.facts.add("another merge")
        if self.merge == "own":
            self.facts.add("a merge of one's own")
        return Bidirectional(forward, backward, merge)

    def reversed(self, D):
        self.facts.add("Reversed")
        return Reversed(self.single(D))

    def stack(self, makes):
        layers, D = [], self.D
        for make in makes:
            layers.append(make(D))
            both = isinstance(layers[-1], Bidirectional) and self.merge == "concat"
            D = 2 * self.H if both else self.H
        if self.kind == "Stack of both":
            self.facts.add("other directions")
        if self.residual:
            self.facts.add("residual")
        if self.dropout:
            self.facts.add("dropout")
        return Stack(layers, self.dropout, self.residual)

    def nested(self):
        self.facts.add("a Stack in a Stack")
        return Stack([Stack([self.single(self.D)]), self.single(self.H)])

    def _filled(self, rng):
        """The layers' arrays, drawn anew."""
        self.layer.eval()
        arrays = []
        for single in singles(self.layer):
            for name in (n for n in ARRAYS if n in single):
                a = single[name]
                std = 0.5 if a.ndim == 1 else a.shape[-1] ** -0.5
                single[name] = draw(rng, a.shape, a.dtype, std)
                arrays.append(single[name])
        return arrays

    def barred(self, peer):
        """The words of which the error must have one; none where it can be held."""
        words = {BARRED[peer][fact] for fact in self.facts if fact in BARRED[peer]}
        if not set(self.names) <= KNOWN[peer]:
            words.add("nonlinearity")
        return words


SHAPES = {
    "RNN": lambda of: of.single(of.D),
    "Bidirectional": lambda of: of.both(of.D),
    "Stack": lambda of: of.stack([of.single] * of.depth),
    "Stack of Bidirectional": lambda of: of.stack([of.both] * of.depth),
    "Stack of both": lambda of: of.stack([of.single, of.both]),
    "Reversed": lambda of: of.reversed(of.D),
    "Stack of Reversed": lambda of: of.stack([of.single, of.reversed]),
    "Stack in a Stack": lambda of: of.nested(),
}


def singles(layer):
    """The single layers of a network, in their order."""
    if isinstance(layer, Stack):
        return [single for inner in layer.layers for single in singles(inner)]
    if isinstance(layer, Bidirectional):
        return [*singles(layer.forward), *singles(layer.backward)]
    return singles(layer.backward) if isinstance(layer, Reversed) else [layer]


def stacked(outputs):
    """The outputs as one array."""
    return outputs if isinstance(outputs, mx.array) else mx.stack(outputs)


def same_layers(got, layer):
    """The same weights to the bit; what is not there is as good as zero."""
    mine, theirs = singles(got), singles(layer)
    assert len(mine) == len(theirs), f"{len(mine)} layers, not {len(theirs)}"
    for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        for name in ARRAYS:
            one, other = a.get(name), b.get(name)
            if one is None and other is None:
                continue
            one = mx.zeros_like(other) if one is None else one
            other = mx.zeros_like(one) if other is None else other
            equal(one, other.astype(one.dtype), f"{name} of layer {i}")


def alike(x, y, theirs, label="outputs"):
    """Outputs agree, on the scale of the largest number, one of the input or of them.

    What is left of numbers that cancel each other is no measure of their roundings.
    """
    assert y.shape == theirs.shape, f"{label}: {y.shape} != {theirs.shape}"
    x = x.astype(y.dtype).flatten()
    agree(*(mx.concatenate([a.flatten(), x]) for a in (y, theirs)), label)


def refuses(convert, words, described):
    """The conversion must be refused, in one of these words."""
    try:
        made = convert()
    except (TypeError, ValueError) as error:
        check_error(error, words, described)
    else:
        raise AssertionError(f"{described} was taken, as {str(made)[:200]}")


class Peer:
    """A framework that may have more to say of a network than ``BARRED``."""

    def barred(self, network):
        """More words of which the error must have one."""
        return set()


class Torch(Peer):
    """PyTorch."""

    needs, name = ("torch",), "torch"
    runs_in = (mx.float32, mx.float64)

    def __init__(self, choose, network):
        self.batch_first = choose("batch_first", [True, False])
        self.cell = choose("cell", [False, True]) and network.kind == "RNN"

    def to(self, network):
        return interop.to_torch(
            network.layer, batch_first=self.batch_first, cell=self.cell
        )

    def back(self, module, network):
        state = interop.from_torch(
            module.state_dict(), nonlinearity=module.nonlinearity
        )
        same_layers(state, network.layer)
        return interop.from_torch(module)

    def run(self, module, x):
        import torch

        x = torch.tensor(np.array(x))
        with torch.no_grad():
            if self.cell:
                h, states = None, []
                for t in range(L):
                    h = module(x[:, t], h)
                    states.append(h)
                return torch.stack(states, 1).numpy()
            y, _ = module(x if self.batch_first else x.swapaxes(0, 1))
        return (y if self.batch_first else y.swapaxes(0, 1)).numpy()


class Keras(Peer):
    """Keras, on whichever backend."""

    needs, name = ("keras", os.environ["KERAS_BACKEND"]), "keras"
    runs_in = (mx.float32,)

    def __init__(self, choose, network):
        self.return_sequences = choose("return_sequences", [True, False])

    def barred(self, network):
        # Of which JAX has none unless told.
        on_jax = os.environ["KERAS_BACKEND"] == "jax"
        return {"float64"} if on_jax and network.dtype == mx.float64 else set()

    def to(self, network):
        return interop.to_keras(network.layer, return_sequences=self.return_sequences)

    def back(self, model, network):
        again = interop.from_keras(model)
        for a, b in zip(singles(again), singles(network.layer), strict=True):
            for name in _DROPOUTS:
                assert getattr(a, name) == getattr(b, name), name
        return again

    def run(self, model, x):
        return in_keras(model, x) if self.return_sequences else None


def in_keras(model, x):
    """The outputs of a model of Keras's."""
    import keras

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Keras, by PyTorch and NumPy
        y = model(np.array(x))
        many = y if isinstance(y, (list, tuple)) else [y]
        arrays = [np.array(keras.ops.convert_to_numpy(a)) for a in many]
    return np.stack(arrays) if len(arrays) > 1 else arrays[0]


class Flax(Peer):
    """Flax, linen and nnx."""

    needs, name = ("flax", "jax"), "flax"
    runs_in = (mx.float32,)

    def __init__(self, choose, network):
        self.nnx = choose("nnx", [False, True])
        self.network = network
        self.around = choose("around", ["nothing", "params"])

    def to(self, network):
        return interop.to_flax(network.layer, nnx=self.nnx)

    def back(self, tree, network):
        tree = {"params": tree} if self.around == "params" else tree
        f = NONLINEARITIES[network.names[0]]
        merge = mx.maximum if network.merge == "own" else network.merge
        return interop.from_flax(tree, nonlinearity=f, merge=merge)

    def run(self, tree, x):
        """Its own cell on our array: the tree is what it takes."""
        network = self.network
        if network.kind != "RNN" or network.names[0] != "tanh" or self.nnx:
            return None
        import flax.linen

        cell = flax.linen.SimpleCell(network.H)
        h, states = np.zeros((N, network.H), np.float32), []
        for t in range(L):
            h, y = cell.apply({"params": tree["cell"]}, h, np.array(x[:, t]))
            states.append(np.array(y))
        return np.stack(states, 1)


class Onnx(Peer):
    """ONNX, run by ONNX Runtime where that is installed."""

    needs, name = ("onnx",), "onnx"
    runs_in = (mx.float32,) if find_spec("onnxruntime") else ()

    def __init__(self, choose, network):
        self.options = {
            "layout": choose("layout", [0, 1]),
            "opset": choose("opset", [None, 22]),
            "sequence_lens": choose("sequence_lens", [False, True]),
            "initial_h": choose.rarely("initial_h", [False, True]),
            "sizes": choose.rarely("sizes", [None, {"N": N}, {"N": N, "L": L}]),
        }

    def barred(self, network):
        words = set()
        if self.options["initial_h"] and "learn_hidden" in network.facts:
            words.add("learn_hidden")
        if network.x.dtype == mx.float64 and "LeakyReLU of 0.1" in network.names:
            words.add("alpha")  # which is a float32 number there
        clips = {name in ("relu6", "clipped") for name in network.names}
        if len(clips) > 1 and network.split and network.merge != "concat":
            words.add("clip")
        return words

    def to(self, network):
        return interop.to_onnx(network.layer, **self.options)

    def back(self, model, network):
        return interop.from_onnx(model.SerializeToString())

    def run(self, model, x):
        from onnx_models import in_runtime

        if self.options["initial_h"]:
            return None
        batch_first = self.options["layout"]
        x = np.array(x) if batch_first else np.array(x).swapaxes(0, 1).copy()
        inputs = {"X": x}
        if self.options["sequence_lens"]:
            inputs["sequence_lens"] = np.full(N, L, np.int32)
        y, *_ = in_runtime(model, inputs)
        if y.ndim == 4:  # a pair
            y = np.moveaxis(y, 2 if batch_first else 1, 0)
        return y if batch_first else y.swapaxes(-3, -2)


class Files(Onnx):
    """The files of ``mlx-recurrent convert``."""

    runs_in = ()

    def to(self, network):
        model = super().to(network)
        with tempfile.TemporaryDirectory() as folder:
            names = ("model.onnx", "weights.safetensors", "back.onnx")
            first, weights, back = (str(Path(folder) / name) for name in names)
            Path(first).write_bytes(model.SerializeToString())
            self._convert(first, weights)
            self._convert(weights, back)
            network.loaded = mx.load(weights)
            mx.eval(network.loaded)
            return interop.from_onnx(back)

    def _convert(self, source, target):
        said, error = io.StringIO(), io.StringIO()
        with redirect_stdout(said), redirect_stderr(error):
            code = main(["convert", source, target])
        if code:
            assert code == 2 and not Path(target).exists(), target
            raise ValueError(error.getvalue().strip())
        assert said.getvalue().startswith(target)

    def back(self, layer, network):
        # An older layer takes the file.
        layer.load_weights(list(network.loaded.items()))
        return layer

    def barred(self, network):
        wide = network.x.dtype == mx.float64
        return super().barred(network) | ({"float32"} if wide else set())


class ThereAndBack:
    """Random layers as a framework's, and back."""

    def __init__(self, name, choose, rng):
        peer = PEERS[name]
        self.network = Network(peer.name, choose, rng)
        self.peer = peer(choose, self.network)

    def check(self):
        network, peer = self.network, self.peer
        if words := network.barred(peer.name) | peer.barred(network):
            refuses(lambda: peer.to(network), words, f"{network.facts}")
            return
        made = peer.to(network)
        back = peer.back(made, network).eval()
        same_layers(back, network.layer)
        x, expected = network.x, stacked(network.layer(network.x))
        if len(set(network.names)) == 1 or peer.name != "flax":
            alike(x, stacked(back(x)), expected)
        if x.dtype in peer.runs_in and "other dtype" not in network.facts:
            theirs = peer.run(made, x)
            if theirs is not None:
                alike(x, expected, array(theirs, x.dtype), "their outputs")


PEERS = {
    "to_torch": Torch,
    "to_keras": Keras,
    "to_flax": Flax,
    "to_onnx": Onnx,
    "convert": Files,
}
LEFT_OUT = {
    name: missing[0]
    for name, peer in PEERS.items()
    if (missing := [needed for needed in peer.needs if not find_spec(needed)])
}
KINDS = {name: ThereAndBack for name in PEERS if name not in LEFT_OUT}
