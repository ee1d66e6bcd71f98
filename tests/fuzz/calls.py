"""Calls that must be right: random problems, each by one public name."""

import copy
from contextlib import nullcontext
from functools import cache

import mlx.core as mx
import mlx.nn as nn
import numpy as np

import mlx_recurrent
import reference
from cells import CELLS, flat
from conftest import (
    ACTIVATIONS,
    COMPOSED,
    DTYPES,
    LAYOUTS,
    NATIVE,
    TRACED,
    array,
    draw,
    laid_out,
    neighbour,
)
from mlx_recurrent import RNN, exporting, init
from optional import ARRAYS, Problem, grads, without_nan
from tolerances import EPS, PRESET, PRESET_COMPUTED, ULPS, close, equal, largest, wide

CALLABLES = {"native": NATIVE, "traced": TRACED, "composed": COMPOSED}
LAYERS = ["native", "traced", "composed"]
# What values are, beside ordinary: so large, or so small.
SCALES = {"ordinary": 1.0, "large": 30.0, "tiny": 1e-3}
SINGLE = (mx.float32, mx.float64)
# The least H whose gradients are judged here. The kernels take tanh's slope from the
# state, 1 - h^2, MLX from what it is the tanh of: where all units are saturated theirs
# loses more places than the rule allows, and one unit alone often is.
SEVERAL = 3
# How many neighbours of the inputs the rule looks at, where it needs them.
NEIGHBOURS = 64
OPTIONS = ("leak", "zoneout", "input_dropout", "recurrent_dropout")


def all_right(rng, got, arrays, truth, plain, labels=None):
    """The rule of the tolerances for all results; no more is computed than it needs.

    Args:
        rng (Generator): Draws neighbours of the arrays.
        got (list): The results.
        arrays (list): What they were made of.
        truth (callable): Gives the truths, of arrays.
        plain (callable): Gives what MLX makes of arrays.
        labels (list): What each result is.
    """
    truths, expected = truth(*arrays), cache(lambda: plain(*arrays))
    assert len(got) == len(truths), f"{len(got)} results, not {len(truths)}"

    def neighbours(i):
        for _ in range(NEIGHBOURS):
            nearby = [neighbour(rng, a) for a in arrays]
            yield plain(*nearby)[i], np.asarray(truth(*nearby)[i])

    for i, (a, true) in enumerate(zip(got, truths, strict=True)):
        label = f"gradient of {labels[i]}" if labels else f"result {i}"
        b, true = wide(a), np.asarray(true)
        if a.shape == true.shape and np.isfinite(b).all() and np.isfinite(true).all():
            if largest(b - true) <= ULPS[a.dtype] * EPS[a.dtype] * largest(true):
                continue
        close(a, expected()[i], true, label, neighbours=lambda i=i: neighbours(i))


def with_layout(choose, name, a):
    """An array as it is, or the same numbers (some repeated) in another layout."""
    layout = choose.rarely(f"layout of {name}", ["as is", *LAYOUTS], 0.15)
    return a if layout == "as is" or not a.ndim else laid_out(layout, a)


def in_form(choose, name, values):
    """Lengths or resets in one of the forms that they may have."""
    forms = {
        "numpy": lambda v: v,
        # A list of no rows has no other axes.
        "list": lambda v: v.tolist() if v.size else v,
        "mlx": mx.array,
        "uint8": lambda v: v.astype(np.uint8),
        "mlx int16": lambda v: mx.array(v.astype(np.int16)),
        "int64 of the other byte order": lambda v: v.astype(">i8"),
        "backwards": lambda v: np.ascontiguousarray(v[::-1])[::-1] if v.ndim else v,
        "Fortran": lambda v: np.array(v, order="F"),
    }
    return forms[choose(f"form of {name}", list(forms))](values)


class OfOneLayer:
    """A problem by one name; the path and the layouts of the arrays are chosen.

    Args:
        name (str): Which: a key of ``RUNS``.
        choose (Choices): Chooses.
        rng (Generator): Draws the numbers.
    """

    def __init__(self, name, choose, rng):
        self.name, self.rng = name, rng
        fixed = dict(FIXED.get(name, {}))
        of = "rnn" if name == "scan" else choose("kind of cell", list(CELLS))
        if name == "scan":
            fixed["D"] = fixed["H"] = choose("H", [1, 4, 17, 70])
        if name == "stream":
            states = CELLS[of].states
            fixed |= {state: choose(state, [True, False]) for state in states}
            given = any(fixed[state] for state in states)
            fixed["lead"] = choose("lead", [(), (1,), (3,), (2, 2)]) if given else ()
        # Declared cells have calls of their own.
        paths = [path for path in CELLS[of].paths if path != "declared"]
        self.path = choose("path", paths)
        self.problem = problem = Problem(choose, rng, of=of, **fixed)
        arrays = problem.arrays
        if name == "scan":
            arrays["Wxh"] = mx.eye(problem.H, dtype=problem.dtype)
        scale = SCALES[choose.rarely("scale", list(SCALES))]
        bounded = problem.activation in ("tanh", "sigmoid")
        if scale < 1 or (bounded and problem.dtype in SINGLE):
            arrays["x"] = arrays["x"] * scale
        for of, a in arrays.items():
            if not (name == "scan" and of == "Wxh"):
                arrays[of] = with_layout(choose, of, a)
        for of in ARRAYS:
            if of in problem.keywords:
                form = in_form(choose, of, problem.keywords[of])
                problem.keywords[of + " as given"] = form
        if problem.unseen.any() and name != "stream":
            filler = choose("padding", ["nan", "inf", "as is"])
            if filler != "as is":
                arrays["x"] = problem.in_unseen(arrays["x"], float(filler))
        wanted = ["only"] if name == "step" else [True, False, "only"]
        if name == "stream" and len(problem.cell.states) > 1:
            wanted.remove(False)  # other second states are never a result
        problem.return_state = choose("return_state", wanted)
        # MLX's own sums over no rows, which may never end.
        sums_nothing = name == "exporting" and 0 in problem.lead
        self.differentiates = (
            scale <= 1
            and problem.H >= SEVERAL
            and name not in ("stream", "plan")
            and not sums_nothing
            and choose("gradients", [False, False, False, True])
        )

    @property
    def keywords(self):
        given = dict(self.problem.keywords)
        for of in ARRAYS:
            if of + " as given" in given:
                given[of] = given.pop(of + " as given")
        return given

    def run(self, *values):
        """All that the call returns: the outputs, the last state, or both."""
        p = self.problem
        arrays = dict(zip(p.names, values, strict=True)) if values else dict(p.arrays)
        mx.random.seed(p.seed)
        with exporting() if self.exports else nullcontext():
            return flat(RUNS[self.name](self, arrays, self.keywords))

    @property
    def exports(self):
        """Whether a gated cell, which has no callable, is to run composed."""
        return self.path == "composed" and "native" in self.gated_paths

    @property
    def gated_paths(self):
        cell = self.problem.cell
        return () if cell is CELLS["rnn"] else cell.paths

    def check(self):
        p = self.problem
        if self.name == "plan":
            self.check_plan()
            return
        values = list(p.arrays.values())
        got = self.run()
        for i, a in enumerate(got):
            assert a.dtype == p.dtype, f"result {i}: {a.dtype} for {p.dtype}"
        all_right(
            self.rng,
            got,
            values,
            lambda *v: self.of(v).truth(),
            p.plain,
        )
        if self.differentiates and (p.activation != "relu" or p.dtype in SINGLE):
            self.check_gradients()

    def of(self, values):
        """The problem with other arrays."""
        other = copy.copy(self.problem)
        other.arrays = dict(zip(other.names, values, strict=True))
        return other

    def check_gradients(self):
        p = self.problem
        given = [
            p.in_padding(d) if d.ndim == len(p.lead) + 2 else d for d in p.cotangents()
        ]
        values = list(p.arrays.values())
        clean = [without_nan(d) for d in given]
        kept = [i for i, n in enumerate(p.names) if (self.name, n) != ("scan", "Wxh")]

        def chosen(results):
            return [results[i] for i in kept]

        all_right(
            self.rng,
            chosen(grads(self.run, values, given)),
            values,
            lambda *v: chosen(self.of(v).gradients(*given)),
            lambda *v: chosen(grads(p.plain, v, clean)),
            chosen(p.names),
        )

    def check_plan(self):
        before = np.array(mx.random.state[0])
        (plan,) = self.run()
        expected = self.path
        if self.path == "traced" and self.problem.L == 0:
            expected = "composed"
        assert plan.path == expected, f"plan is {plan.path}, not {expected}"
        assert str(plan) and plan.reason
        mx.random.seed(self.problem.seed)
        before = np.array(mx.random.state[0])
        self.run()
        assert (before == np.array(mx.random.state[0])).all(), "plan drew"


def _rnn(call, arrays, keywords):
    run = call.problem.cell.paths[call.path]
    return run(
        call.problem.activation,
        **arrays,
        **keywords,
        return_state=call.problem.return_state,
    )


def _exporting(call, arrays, keywords):
    with exporting():
        return _rnn(call, arrays, keywords)


def _scan(call, arrays, keywords):
    arrays.pop("Wxh")
    keywords.pop("input_dropout", None)
    return mlx_recurrent.scan(
        arrays.pop("x"),
        nonlinearity=CALLABLES[call.path][call.problem.activation],
        return_state=call.problem.return_state,
        **arrays,
        **keywords,
    )


def layer_of(call, arrays, keywords):
    """A layer of these arrays and options; both lose what it takes."""
    problem, cell = call.problem, call.problem.cell
    options = {name: keywords.pop(name) for name in OPTIONS if name in keywords}
    options |= cell.arguments
    if cell is CELLS["rnn"]:
        options["nonlinearity"] = CALLABLES[call.path][problem.activation]
    of_layer = set(arrays) - {"x", *cell.states}
    layer = cell.layer(
        problem.D,
        problem.H,
        cell.weights[2] in arrays,
        learn_hidden=any(name in arrays for name in problem.reference.starts),
        **options,
    )
    for name in problem.reference.starts:  # each may be learned without the other
        if name not in arrays and name in layer:
            del layer[name]
    for name in of_layer:
        setattr(layer, name, arrays.pop(name))
    return layer.train(keywords.pop("training", True))


def _layer(call, arrays, keywords):
    stream = keywords.pop("stream", None)
    layer = layer_of(call, arrays, keywords)
    # The layer's making may have drawn.
    mx.random.seed(call.problem.seed)
    with nullcontext() if stream is None else mx.stream(stream):
        return layer(**arrays, **keywords, return_state=call.problem.return_state)


def _plan(call, arrays, keywords):
    keywords.pop("stream", None)
    layer = layer_of(call, arrays, keywords)
    mx.random.seed(call.problem.seed)
    return layer.plan(**arrays, **keywords, return_state=call.problem.return_state)


def _step(call, arrays, keywords):
    layer = layer_of(call, arrays, keywords)
    mx.random.seed(call.problem.seed)
    x = mx.squeeze(arrays["x"], -2)
    reset = keywords.get("reset")
    if reset is not None:
        shape = call.problem.lead
        reset = (
            reset.reshape(shape)
            if isinstance(reset, mx.array)
            else np.reshape(reset, shape)
        )
    states = {name: arrays.get(name) for name in call.problem.cell.states}
    return layer.step(x, **states, reset=reset)


def _stream(call, arrays, keywords):
    layer = layer_of(call, arrays, keywords)
    states = {name: arrays.get(name) for name in call.problem.cell.states}
    stream = layer.stream(**states)
    outputs = in_pieces(
        stream, arrays["x"], keywords.get("reset"), call.problem.H, call.problem.seed
    )
    dtype = call.problem.dtype
    made = [array(a, dtype) for a in flat((outputs, stream.state))]
    return (
        made
        if call.problem.return_state is True
        else (made[1:] if call.problem.return_state else made[:1])
    )


def in_pieces(stream, x, reset, H, seed):
    """What a stream gives for a sequence, (..., L, H), in random pieces of it."""
    (*lead, L, _), t, made = x.shape, 0, []
    rng = np.random.default_rng(seed)
    while t < L:
        size = int(rng.integers(0, L - t + 1))
        at = slice(t, t + size) if size else t
        piece = x[..., at, :]
        if rng.random() < 0.5:
            piece = piece.astype(mx.float32) if piece.dtype == mx.bfloat16 else piece
            piece = np.array(mx.contiguous(piece))
        starts = {}
        if isinstance(reset, list):
            starts["reset"] = np.array(reset)[..., at].tolist()
        elif reset is not None:
            starts["reset"] = reset[..., at]
        y = stream(piece, **starts)
        made.append(y if size else y[..., None, :])
        t += max(size, 1)
    return np.concatenate([np.zeros((*lead, 0, H), np.float16), *made], -2)


# A call takes only what the name can.
_ONE_STEP = {
    "L": 1,
    "lengths": False,
    "mask": False,
    "reverse": False,
    "truncate_every": None,
    "checkpoint_every": None,
    "stream": None,
}
FIXED = {
    "scan": {"input_dropout": 0.0, "bias": False},
    "step": _ONE_STEP,
    "stream": {
        **_ONE_STEP,
        "training": False,
    },
}
del FIXED["stream"]["L"]
RUNS = {
    "rnn": _rnn,
    "RNN": _layer,
    "scan": _scan,
    "exporting": _exporting,
    "step": _step,
    "stream": _stream,
    "plan": _plan,
}


class OfProduct:
    """``matmul`` and ``Linear``."""

    def __init__(self, name, choose, rng):
        self.name, self.rng = name, rng
        self.dtype = dtype = choose("dtype", DTYPES)
        lead = choose("lead", [(3,), (), (1,), (2, 3), (0,), (65,)])
        K, M = choose("K", [3, 1, 16, 100, 0]), choose("M", [4, 1, 17, 70, 0])
        shapes = {"x": (*lead, K), "w": (M, K)}
        if choose("bias", [True, False]):
            broadcast = [(M,), (1,), (), (*lead, 1), (*lead, M)]
            wide_ones = broadcast if name == "matmul" else broadcast[:1]
            shapes["bias"] = choose("shape of bias", wide_ones)
        self.arrays = {
            of: with_layout(choose, of, draw(rng, shape, dtype))
            for of, shape in shapes.items()
        }
        self.cotangent = draw(rng, (*lead, M), dtype)

    def run(self, x, w, bias=None):
        if self.name == "matmul":
            return [mlx_recurrent.matmul(x, w, bias)]
        layer = mlx_recurrent.Linear(1, 1, bias=bias is not None)
        layer.weight = w
        if bias is not None:
            layer.bias = bias
        return [layer(x)]

    def plain(self, x, w, bias=None):
        return [x @ w.T if bias is None else x @ w.T + bias]

    def check(self):
        values = list(self.arrays.values())
        all_right(
            self.rng,
            self.run(*values),
            values,
            lambda *v: [reference.matmul(*map(wide, v))],
            self.plain,
        )
        if 0 in self.arrays["w"].shape:
            return
        c = self.cotangent

        def gradients(x, w, bias=None):
            bias = None if bias is None else wide(bias)
            found = reference.matmul_grad(wide(x), wide(w), bias, wide(c))
            return [g for g in found if g is not None]

        all_right(
            self.rng,
            grads(self.run, values, [c]),
            values,
            gradients,
            lambda *v: grads(self.plain, v, [c]),
            list(self.arrays),
        )


class OfPreset:
    """``init.*``."""

    def __init__(self, name, choose, rng):
        self.dtype = choose("dtype", DTYPES)
        self.preset = choose("preset", ["orthogonal", "identity", "spectral_radius"])
        self.H, self.r = choose("H", [3, 1, 17, 40]), choose("r", [0.9, 1, 1e-3, 30.0])
        self.layer = RNN(2, self.H)
        self.layer.set_dtype(self.dtype)
        seed = int(rng.integers(2**32))
        Whh = draw(np.random.default_rng(seed), (self.H, self.H), self.dtype)
        self.layer.Whh = with_layout(choose, "Whh", Whh)

    def check(self):
        computed = self.dtype == mx.float64
        last_places = PRESET_COMPUTED if computed else PRESET
        slack = last_places * self.H * EPS[self.dtype]
        before = wide(self.layer.Whh).astype(np.float64)
        if self.preset == "orthogonal":
            Whh = wide(init.orthogonal_(self.layer).Whh)
            error = np.abs(Whh @ Whh.T - np.eye(self.H)).max()
            assert error <= slack, f"{error} > {slack}"
        elif self.preset == "identity":
            equal(init.identity_(self.layer).Whh, mx.eye(self.H, dtype=self.dtype))
        else:
            radius = np.abs(np.linalg.eigvals(before)).max()
            init.spectral_radius_(self.layer, self.r)
            truth = before * (self.r / radius)
            error = np.abs(wide(self.layer.Whh) - truth).max()
            bound = slack * np.abs(truth).max()
            assert error <= bound, f"{error} > {bound}"
        assert self.layer.Whh.dtype == self.dtype


class OfAccelerate:
    """``accelerate``: a random tree of modules, whose results stay."""

    def __init__(self, name, choose, rng):
        self.rng = rng
        self.holder = choose(
            "holder", ["itself", "list", "dict", "tuple", "Sequential"]
        )
        self.depth = choose("depth", [1, 2, 3])
        D, H = choose("D", [2, 1, 9]), choose("H", [3, 1, 17])
        activation = choose("activation", ACTIVATIONS)
        self.layers = []
        for i in range(self.depth):
            layer = nn.RNN(D if i == 0 else H, H)
            layer.nonlinearity = TRACED[activation]
            self.layers.append(layer)
        self.activation = activation
        if choose("Linear", [False, True]):
            self.layers.append(nn.Linear(H, 2))
        self.shared = choose("shared", [False, True])
        self.x = draw(rng, (2, choose("L", [4, 1]), D), mx.float32)

    def check(self):
        layers = self.layers
        before = [layer.parameters() for layer in layers]
        copies = []
        for layer in layers:
            kind = type(layer)
            twin = kind.__new__(kind)
            nn.Module.__init__(twin)
            vars(twin).update(vars(layer))
            dict.update(twin, {n: a.astype(mx.float64) for n, a in layer.items()})
            copies.append(twin)

        def expected(x):
            """What MLX makes of it, and the truth."""
            exact = x.astype(mx.float64)
            for layer, twin in zip(layers, copies, strict=True):
                x, exact = layer(x), twin(exact)
            return x, wide(exact)

        def neighbours():
            for _ in range(NEIGHBOURS):
                yield expected(neighbour(self.rng, self.x))

        if self.holder == "itself" and len(layers) == 1:
            new = [mlx_recurrent.accelerate(layers[0])]
        elif self.holder == "dict":
            new = mlx_recurrent.accelerate(dict(enumerate(layers)))
            new = list(new.values())
        elif self.holder == "Sequential":
            new = mlx_recurrent.accelerate(nn.Sequential(*layers)).layers
        else:
            held = layers * 2 if self.shared else layers
            held = tuple(held) if self.holder == "tuple" else held
            new = mlx_recurrent.accelerate(held)
            if self.shared:
                half = len(layers)
                pairs = zip(new[:half], new[half:], strict=True)
                assert all(a is b for a, b in pairs), "one layer became two"
                new = new[:half]
        ours = self.x
        for layer, arrays in zip(new, before, strict=True):
            assert type(layer).__module__.startswith("mlx_recurrent"), type(layer)
            for name, a in arrays.items():
                assert layer[name] is a, f"{name} is another array"
            ours = layer(ours)
        close(ours, *expected(self.x), neighbours=neighbours)


class OfThreads:
    """``set_num_threads``: the same bits with any number."""

    def __init__(self, name, choose, rng):
        self.n = choose("n", [1, 2, 3, 7, 255, 256, 1000, 2**31, 2**63])
        shape = choose("shape", [(2, 5, 4, 9), (64, 3, 8, 70), (1, 4, 8, 515)])
        *lead, L, D, H = shape
        shapes = [(*lead, L, D), (H, D), (H, H)]
        self.arrays = [draw(rng, s, mx.float32, 0.2) for s in shapes]

    def check(self):
        expected = mlx_recurrent.rnn(*self.arrays)
        mx.eval(expected)
        before = mlx_recurrent.get_num_threads()
        try:
            mlx_recurrent.set_num_threads(self.n)
            assert 1 <= mlx_recurrent.get_num_threads() <= self.n
            equal(mlx_recurrent.rnn(*self.arrays), expected)
        finally:
            mlx_recurrent.set_num_threads(before)


KINDS = {
    **dict.fromkeys(RUNS, OfOneLayer),
    **dict.fromkeys(("matmul", "Linear"), OfProduct),
    "init": OfPreset,
    "accelerate": OfAccelerate,
    "set_num_threads": OfThreads,
}
