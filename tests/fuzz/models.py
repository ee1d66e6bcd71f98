"""Other frameworks' models as layers, with random options and damaged weights.

A model is taken, with its weights to the bit and its own outputs, or refused in the
name of what a layer does not have.
"""

import warnings

import mlx.core as mx
import numpy as np

from conftest import array
from fuzz import interchange
from fuzz.interchange import N, alike, in_keras, refuses, singles, stacked
from mlx_recurrent import interop
from tolerances import equal

L = 4
# What may be wrong with an entry of a state dict or a tree: a value in its place, or
# what is done with its name.
DAMAGE = {
    "missing": None,
    "of integers": lambda a: np.asarray(a).astype(np.int32),
    "of complex numbers": lambda a: np.asarray(a).astype(np.complex64),
    "of booleans": lambda a: np.asarray(a) > 0,
    "a row more": lambda a: np.concatenate([a, a[:1]]),
    "an axis more": lambda a: np.asarray(a)[None],
    "a number": lambda a: np.float32(1),
    "a float": lambda a: 1.5,
    "None": lambda a: None,
    "text": lambda a: "x" * 1000,
    "bytes": lambda a: b"x",
    "an object": lambda a: object(),
    "a ragged list": lambda a: [[1.0], [2.0, 3.0]],
    "objects": lambda a: np.array([[object()]]),
    "times": lambda a: np.zeros(a.shape, "m8[s]"),
    "texts": lambda a: np.full(a.shape, "1"),
    "records": lambda a: np.zeros(a.shape, "i4, i4"),
    "longdouble": lambda a: np.asarray(a).astype(np.longdouble),
    "a dictionary": lambda a: {},
    "a generator": lambda a: (i for i in range(2)),
}
# What changes nothing but numbers, layout and type.
HARMLESS = {
    "NaN": lambda a: np.full_like(a, np.nan),
    "infinite": lambda a: np.full_like(a, -np.inf),
    "of MLX": lambda a: mx.array(a),
    "a list": lambda a: np.asarray(a, np.float64).tolist(),
    "backwards": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "of the other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}


class Model:
    """A model of another framework; a class of each makes it.

    ``words`` is what the error must have one of, if the model cannot be a layer.
    """

    def __init__(self, name, choose, rng):
        self.rng, self.words = rng, set()
        self.D, self.H = choose("D", [2, 1, 3]), choose("H", [3, 1, 8])
        self.x = array(rng.standard_normal((N, L, self.D)), mx.float32)
        self.choose(choose)

    def check(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs, while their models are made
            model = self.made()
        if self.words:
            refuses(lambda: self.convert(model), self.words, self.described)
            return
        layer = self.convert(model).eval()
        self.judge(layer, model)

    described = "the model"

    def with_damage(self, choose, names):
        """Choose whether an entry, of so many, is not what it should be."""
        self.damage = choose.rarely("damage", [None, *DAMAGE, *HARMLESS], 0.5)
        self.at = choose("entry", range(names)) if self.damage else 0
        return self.damage in DAMAGE

    def damaged(self, entries):
        """The entries of a state dict or tree, by name, one of them damaged."""
        entries = dict(entries)
        if self.damage:
            name = list(entries)[self.at % len(entries)]
            self.described = f"{name} {self.damage}"
            if self.damage == "missing":
                del entries[name]
            else:
                change = (DAMAGE | HARMLESS)[self.damage]
                entries[name] = change(np.array(entries[name]))
        return entries

    def agree(self, layer, theirs, x=None):
        """Outputs are the model's own."""
        x = self.x if x is None else x
        y = stacked(layer(x))
        alike(x, y, array(theirs, y.dtype))


# Tensors that NumPy cannot hold, and those that it can.
STRANGE = {
    "sparse": lambda torch, a: a.to_sparse(),
    "compressed": lambda torch, a: a.float().to_sparse_csr(),
    "float8": lambda torch, a: a.to(torch.float8_e4m3fn),
    "quantized": lambda torch, a: torch.quantize_per_tensor(
        a.float(), 0.1, 0, torch.quint8
    ),
    "conjugate": lambda torch, a: torch.complex(a.float(), a.float()).conj(),
}
FAMILIAR = {
    "negative": lambda torch, a: torch.complex(-a.float(), -a.float()).conj().imag,
    "expanded": lambda torch, a: a[:1].expand_as(a),
    "with a gradient": lambda torch, a: torch.nn.Parameter(a),
    "transposed": lambda torch, a: a.T.contiguous().T,
}


class OfTorch(Model):
    """Modules of PyTorch's, and state dicts."""

    def choose(self, choose):
        kinds = ["RNN", "RNNCell", "Linear"]
        self.kind = choose.rarely("module", kinds, 0.5)
        self.nonlinearity = choose("nonlinearity", ["tanh", "relu"])
        self.options = {"bias": choose("bias", [True, False])}
        self.dtype = choose("dtype", ["float32", "float64", "float16", "bfloat16"])
        if self.kind == "RNN":
            for name, values in {
                "num_layers": [1, 2, 3],
                "bidirectional": [False, True],
                "batch_first": [True, False],
                "dropout": [0.0, 0.5, 1.0],
            }.items():
                self.options[name] = choose(name, values)
        self.hook, self.tensor = choose.rarely("hook", [None, *HOOKS]), None
        self.given = choose("given", ["module", "state dict", "arrays"])
        self.extra = None
        if self.kind not in ("RNN", "RNNCell"):
            # A layer's weights are those of one, whatever it computes.
            self.words = {"module", "weight_hh", "weight_hh_l0", "bias_ih"}
            self.given = "module" if self.kind == "Linear" else self.given
            self.hook = None
            return
        if self.given == "module":
            if self.hook and HOOKS[self.hook]:
                self.words = HOOKS[self.hook]
            if self.options.get("dropout") == 1.0 and self.options["num_layers"] > 1:
                self.words = {"dropout", *self.words}
            return
        self.hook = None
        names = ["fc.weight", "weight_ih_l7", "weight_ih", 3, "weight_ih_l00", ""]
        names += [
            "x" * 10000,
            "weight_ih_l" + "9" * 5000,
            "weight_ih_l\N{ARABIC-INDIC DIGIT TWO}",
        ]
        self.extra = choose.rarely("extra", [None, *range(len(names))], 0.1)
        if self.extra is not None:
            self.extra = names[self.extra]
            if self.extra == "weight_ih" and self.kind == "RNNCell":
                self.extra = "weight_hh_l0"
            self.words = {"module"}
        if self.given == "state dict":
            strange = [None, *STRANGE, *FAMILIAR]
            self.tensor = choose.rarely("tensor", strange, 0.4)
            if self.tensor in STRANGE:
                self.words |= {"weight_hh_l0", "weight_hh"}
        wrong = self.given == "arrays" and self.with_damage(choose, 4)
        if wrong:
            kinds = [f"{a}_{b}" for a in ("weight", "bias") for b in ("ih", "hh")]
            suffixes = ["", *(f"_l{i}{w}" for i in range(3) for w in ("", "_reverse"))]
            self.words |= {f"{kind}{suffix}" for kind in kinds for suffix in suffixes}

    def made(self):
        import torch

        torch.manual_seed(int(self.rng.integers(2**31)))
        options = dict(self.options)
        if self.kind.startswith("RNN"):
            options["nonlinearity"] = self.nonlinearity
        dtype = getattr(torch, self.dtype)
        self.module = getattr(torch.nn, self.kind)(
            self.D, self.H, **options, dtype=dtype
        )
        module = self.module.eval()
        if self.hook:
            self._hook(module)
        if self.given == "module":
            return module
        state = module.state_dict()
        if self.given == "arrays" and self.kind.startswith("RNN"):
            if self.dtype == "bfloat16":  # which NumPy does not have
                state = {name: a.float() for name, a in state.items()}
            state = self.damaged({name: a.numpy() for name, a in state.items()})
        if self.given == "state dict" and self.tensor:
            name = "weight_hh" if self.kind == "RNNCell" else "weight_hh_l0"
            change = (STRANGE | FAMILIAR)[self.tensor]
            state = {**state, name: change(torch, state[name].clone())}
        if self.extra is not None:
            state = {**state, self.extra: np.zeros((self.H, self.D), np.float32)}
        return state

    def _hook(self, module):
        import torch

        suffix = "_l0" if self.kind == "RNN" else ""
        if self.hook == "weight_norm":
            parametrizations = torch.nn.utils.parametrizations
            parametrizations.weight_norm(module, f"weight_hh{suffix}")
        elif self.hook == "old weight_norm":
            torch.nn.utils.weight_norm(module, f"weight_hh{suffix}")
        elif self.hook == "forward":
            module.forward = lambda x: x
        elif self.hook == "meta":
            module.to("meta")
        else:
            getattr(module, f"register_{self.hook}")(lambda *given: None)

    def convert(self, model):
        of_module = self.given == "module"
        return interop.from_torch(
            model, nonlinearity=None if of_module else self.nonlinearity
        )

    def judge(self, layer, model):
        weights = {name: a for name, a in self.module.state_dict().items()}
        other = self.given == "state dict" and self.tensor
        if self.given == "arrays" or self.hook == "weight_norm" or other:
            weights = {}
        ways = ("", "_reverse") if self.options.get("bidirectional") else ("",)
        count = self.options.get("num_layers", 1)
        suffixes = [f"_l{i}{way}" for i in range(count) for way in ways]
        if self.kind == "RNNCell":
            suffixes = [""]
        for single, suffix in zip(singles(layer), suffixes, strict=True):
            if weights:
                equal(single.Wxh, _of_torch(weights[f"weight_ih{suffix}"]))
                equal(single.Whh, _of_torch(weights[f"weight_hh{suffix}"]))
            if weights and self.options["bias"]:
                both = [weights[f"bias_{kind}{suffix}"] for kind in ("ih", "hh")]
                equal(single.bias, mx.add(*map(_of_torch, both), stream=mx.cpu))
        if self.hook == "meta" or self.dtype not in ("float32", "float64"):
            return
        if not other and not (self.given == "arrays" and self.damage):
            self._run(layer)

    def _run(self, layer):
        import torch

        x = torch.tensor(np.array(self.x)).to(getattr(torch, self.dtype))
        mine = self.x.astype(getattr(mx, self.dtype))
        with torch.no_grad():
            if self.kind == "RNNCell":
                h, states = None, []
                for t in range(L):
                    h = self.module(x[:, t], h)
                    states.append(h)
                y = torch.stack(states, 1)
            elif self.options["batch_first"]:
                y, _ = self.module(x)
            else:
                y = self.module(x.swapaxes(0, 1))[0].swapaxes(0, 1)
        self.agree(layer, y.numpy(), mine)


# What is done to a module, and what the error then names.
HOOKS = {
    "weight_norm": None,
    "old weight_norm": {"weight_hh", "weight_hh_l0"},
    "forward": {"forward"},
    "forward_hook": {"hooks"},
    "forward_pre_hook": {"hooks"},
    "full_backward_hook": None,
    "meta": {"meta"},
}


def _of_torch(tensor):
    if str(tensor.dtype) == "torch.bfloat16":
        return mx.array(tensor.float().numpy()).astype(mx.bfloat16)
    values = tensor.numpy()
    return mx.array(values, getattr(mx, str(values.dtype)))


class OfKeras(Model):
    """Layers of Keras's."""

    def choose(self, choose):
        kinds = ["SimpleRNN", "RNN", "stacked cells", "Bidirectional", "Sequential"]
        kinds += ["list", "cell"]
        self.kind = choose("layer", kinds)
        if choose.rarely("other", [None, "Dense"], 0.1) is not None:
            self.kind = "Dense"
            self.words = {"layer", "forward_layer"}
        known = ["tanh", "relu", "sigmoid", "linear", "elu", "softsign", "gelu"]
        unknown = ["glu", "threshold", "own"]
        self.activation = choose("activation", known)
        if (name := choose.rarely("unknown", [None, *unknown], 0.1)) is not None:
            self.activation = name
        self.options = {
            "use_bias": choose("use_bias", [True, False]),
            "dropout": choose("dropout", [0.0, 0.25]),
            "recurrent_dropout": choose("recurrent_dropout", [0.0, 0.5]),
        }
        calls = choose.rarely("return_sequences", [True, False], 0.4)
        self.calls = {"return_sequences": calls}
        for name in ("go_backwards", "stateful", "unroll"):
            self.calls[name] = choose.rarely(name, [False, True], 0.1)
        if "Bidirectional" in self.kind:
            # Whose directions must differ; Keras makes a copy by its registered names.
            self.calls["go_backwards"] = False
            self.activation = "glu" if self.activation == "own" else self.activation
        self.merge = choose("merge_mode", ["concat", "sum", "mul", "ave", None])
        self.rate = choose("rate", [0.0, 0.5, 0.25])
        self.unlike = choose.rarely("another rate", [False, True])
        self.unbuilt = choose.rarely("unbuilt", [False, True], 0.1)
        unlike = self.activation in unknown
        self.of_its_own = choose("nonlinearity", [False, True]) and (
            unlike or choose.rarely("of no use", [False, True])
        )
        if self.words:
            return
        self.has_calls = self.kind not in ("cell",)
        if self.activation in unknown and not self.of_its_own:
            self.words |= {"activation"}
        if self.activation not in unknown and self.of_its_own:
            self.words |= {"nonlinearity"}
        if self.has_calls and self.calls["go_backwards"]:
            self.words |= {"go_backwards"}
        if self.has_calls and self.calls["stateful"]:
            self.words |= {"stateful"}
        several = self.kind in ("Sequential", "list")
        if several and not self.calls["return_sequences"]:
            self.words |= {"return_sequences"}
        if several and self.unlike and self.rate:
            self.words |= {"dropout", "rate"}
        if self.unbuilt:
            self.words |= {"built"}

    def made(self):
        import keras

        known = keras.layers
        keras.utils.set_random_seed(int(self.rng.integers(2**31)))
        activation = own if self.activation == "own" else self.activation

        def cell():
            return known.SimpleRNNCell(self.H, activation=activation, **self.options)

        def simple(features=None, **calls):
            return known.SimpleRNN(
                self.H, activation=activation, **self.options, **(self.calls | calls)
            )

        kind = self.kind
        if kind == "SimpleRNN":
            model = simple()
        elif kind == "cell":
            model = cell()
        elif kind in ("RNN", "stacked cells"):
            cells = cell() if kind == "RNN" else [cell(), cell()]
            model = known.RNN(cells, **self.calls)
        elif kind == "Bidirectional":
            model = known.Bidirectional(simple(), merge_mode=self.merge)
        elif kind in ("Sequential", "list"):
            return self._several(keras, simple)
        else:
            model = known.Dense(self.H)
        if not self.unbuilt:
            self._build(model)
        return model

    def _several(self, keras, simple):
        layers, D = [], self.D
        for i in range(3 if self.unlike else 2):
            if i and (rate := self.rate if i == 1 else 0.0):
                layers.append(keras.layers.Dropout(rate))
            layers.append(simple())
            if not self.unbuilt:
                self._build(layers[-1], D)
            D = self.H
        return keras.Sequential(layers) if self.kind == "Sequential" else layers

    def _build(self, layer, D=None):
        D = self.D if D is None else D
        layer.build((N, D) if "Cell" in type(layer).__name__ else (N, L, D))

    def convert(self, model):
        f = mx.sin if self.of_its_own else None
        return interop.from_keras(model, nonlinearity=f)

    def judge(self, layer, model):
        if self.kind in ("cell", "list") or self.activation in ("glu", "threshold"):
            return
        if self.calls["return_sequences"]:
            self.agree(layer, in_keras(model, self.x))
            return
        last = layer(self.x, return_state="only")
        if self.kind == "Bidirectional":
            f, b = last
            merges = {"concat": lambda: mx.concatenate([f, b], -1), None: lambda: None}
            merges |= {"sum": lambda: f + b, "mul": lambda: f * b}
            merges["ave"] = lambda: (f + b) / 2
            last = merges[self.merge]()
        elif self.kind == "stacked cells":
            last = last[-1]
        if last is not None:
            theirs = array(in_keras(model, self.x), last.dtype)
            alike(self.x, last, theirs, "state")


def own(a):
    """An activation of one's own."""
    import keras

    return keras.ops.sin(a)


class OfFlax(Model):
    """Modules of ``flax.nnx``, and trees of parameters."""

    def choose(self, choose):
        self.kind = choose("module", ["RNN", "cell", "Bidirectional", "Sequential"])
        self.given = choose("given", ["tree", "module", "state"])
        self.bias = choose("bias", [True, False])
        self.nnx = choose("nnx", [False, True])
        if self.given == "tree":
            if self.with_damage(choose, 6):
                # What of two layers does not fit is said in their own words.
                self.words = {"params", "layers", "backward"}
            return
        self.damage = None
        self.activation = choose("activation_fn", ["tanh", "relu", "softplus"])
        self.reverse = choose.rarely("reverse", [False, True])
        self.residual = choose.rarely("residual", [False, True], 0.1)
        # Of two that are one nnx's state has the first alone.
        shared = self.given == "module" and self.kind in ("Bidirectional", "Sequential")
        self.tied = shared and choose.rarely("tied", [False, True])
        self.other = choose.rarely("other", [None, "linen", "Linear"], 0.1)
        if self.given == "state":
            self.other = None
            return
        if self.residual:
            self.words |= {"residual"}
        if self.reverse and self.kind in ("RNN", "Sequential"):
            self.words |= {"reverse"}
        if self.activation == "softplus":
            self.words |= {"activation_fn"}
        if self.tied:
            self.words |= {"one layer"}
        if self.other:
            self.words = {"params"}

    def made(self):
        if self.given == "tree":
            return self._tree()
        from flax import nnx

        module = self._module()
        if self.given == "module":
            return module
        state = nnx.state(module, nnx.Param)
        return nnx.to_pure_dict(state) if self.nnx else state

    def _tree(self):
        parts = ("dense_i", "dense_h") if self.nnx else ("i", "h")

        def cell(D):
            def drawn(*shape):
                return self.rng.standard_normal(shape).astype(np.float32)

            given = {"kernel": drawn(D, self.H)}
            if self.bias:
                given["bias"] = drawn(self.H)
            state = {"kernel": drawn(self.H, self.H)}
            return {"cell": dict(zip(parts, (given, state), strict=True))}

        tree = {
            "RNN": lambda: cell(self.D),
            "cell": lambda: cell(self.D)["cell"],
            "Bidirectional": lambda: {
                "forward_rnn": cell(self.D), "backward_rnn": cell(self.D)
            },
            "Sequential": lambda: (
                {"layers": {0: cell(self.D), 1: cell(self.H)}}
                if self.nnx
                else {"layers_0": cell(self.D), "layers_1": cell(self.H)}
            ),
        }[self.kind]()  # fmt: skip
        leaves = _leaves(tree)
        self.entries = self.damaged(leaves)
        path = list(leaves)[self.at % len(leaves)]
        no_bias = path[-1] == "bias" and self.damage in ("missing", "None")
        # The first layer's inputs may have any number of features.
        features = self.damage == "a row more" and path[-2:] == (parts[0], "kernel")
        if no_bias or (features and self.kind in ("RNN", "cell")):
            self.words = set()
        if features and self.kind == "Sequential" and {"layers_0", 0} & set(path):
            self.words = set()
        return _nested(self.entries)

    def _module(self):
        import jax
        from flax import linen, nnx

        if self.other == "linen":
            return linen.SimpleCell(self.H)
        if self.other:
            return getattr(nnx, self.other)(self.D, self.H, rngs=nnx.Rngs(0))
        f = {"tanh": nnx.tanh, "relu": nnx.relu, "softplus": nnx.softplus}

        def init(key, shape, dtype):
            values = self.rng.standard_normal(shape) * 0.5
            return jax.numpy.asarray(values.astype(np.float32))

        def cell(D):
            return nnx.SimpleCell(
                D,
                self.H,
                kernel_init=init,
                recurrent_kernel_init=init,
                bias_init=init,
                activation_fn=f[self.activation],
                residual=self.residual,
                rngs=nnx.Rngs(0),
            )

        def rnn(D):
            return nnx.RNN(cell(D), reverse=self.reverse)

        if self.kind == "cell":
            return cell(self.D)
        if self.kind == "RNN":
            return rnn(self.D)
        if self.kind == "Bidirectional":
            first = rnn(self.D)
            other = first if self.tied else rnn(self.D)
            return nnx.Bidirectional(first, other)
        if self.tied:
            first = rnn(self.H)
            return nnx.Sequential(first, first)
        return nnx.Sequential(rnn(self.D), rnn(self.H))

    def convert(self, model):
        return interop.from_flax(model)

    def judge(self, layer, model):
        if self.given == "tree":
            found = [
                a
                for single in singles(layer)
                for a in (single.get("bias"), single.Wxh.T, single.Whh.T)
                if a is not None
            ]
            assert _numbers(found) == _numbers(self.entries.values())
            return
        if self.given == "module" and self.kind == "cell":
            y = self._steps(model)
            self.agree(layer, y)

    def _steps(self, cell):
        h, states = np.zeros((N, self.H), np.float32), []
        for t in range(L):
            h, y = cell(h, np.array(self.x[:, t]))
            states.append(np.array(y))
        return np.stack(states, 1)


def _numbers(arrays):
    """The numbers of arrays in any order, with no regard to their types."""
    arrays = [
        np.array(mx.contiguous(a) if isinstance(a, mx.array) else a)
        for a in arrays
        if a is not None
    ]
    return sorted(a.astype(np.float64).tobytes() for a in arrays)


def _leaves(tree):
    """The arrays of a tree by their paths."""
    found = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= {(key, *path): a for path, a in _leaves(value).items()}
        else:
            found[(key,)] = value
    return found


def _nested(entries):
    tree = {}
    for path, value in entries.items():
        inner = tree
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = value
    return tree


LEFT_OUT = {
    f"from_{peer}": package
    for peer in ("torch", "keras", "flax")
    if (package := interchange.LEFT_OUT.get(f"to_{peer}"))
}
KINDS = {
    name: kind
    for name, kind in {
        "from_torch": OfTorch,
        "from_keras": OfKeras,
        "from_flax": OfFlax,
    }.items()
    if name not in LEFT_OUT
}
