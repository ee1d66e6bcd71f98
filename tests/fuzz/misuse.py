"""Wrong arguments: each call must raise in the name of one of them, and change nothing.

What is wrong is written as an expression, so that a case can be read and pasted. The
letters in them are the sizes: ``lead``, ``L``, ``D``, ``H``.
"""

import re
import types
from decimal import Decimal
from fractions import Fraction
from importlib.util import find_spec

import mlx.core as mx
import mlx.nn as nn
import numpy as np

import mlx_recurrent
from conftest import unreadable
from mlx_recurrent import RNN, Bidirectional, Linear, Stack, init, interop
from tolerances import equal

# An error is one line that can be read.
LONGEST = 400

# Of no use for any argument. Callables are a nonlinearity, so there is none.
JUNK = [
    "'text'",
    "b'bytes'",
    "object()",
    "[[1], [2, 3]]",
    "{}",
    "{1, 2}",
    "1j",
    "(i for i in range(2))",
    "np.datetime64('2020-01-01')",
    "np.array([object()])",
    "np.array('a')",
    "np.zeros(2, 'i4, i4')",
    "np",
    "...",
    "Decimal('nan')",
    "'x' * 10000",
    "type('Long' * 1000, (), {})()",
]
NUMBERS = ["0", "-1", "1.5", "True", "nan", "2**31", "2**63", "2**64", "10**5000"]
ARRAYS = [
    *JUNK,
    *NUMBERS,
    "[0.0] * H",
    "np.zeros((2, 3))",
    "zeros()",
    "len",
    "mx.zeros",
]
NUMBER = [*JUNK, "None", "len", "mx.zeros((2,))", "np.zeros(2)", "[1]", "'1'"]
BEYOND = ["nan", "inf", "-inf", "10**400", "-10**400", "10**5000", "-(10**5000)"]
PROBABILITY = [*NUMBER, *BEYOND, "1", "1.5", "-0.1", "True", "mx.array(0.5)"]
PROBABILITY += ["Fraction(10**30 - 1, 10**30)", "np.float16(1)", "Decimal('0.5')"]
FLAG = [*JUNK, *NUMBERS[:3], "'True'", "mx.array(True)", "np.array(True)", "[True]"]
EVERY = [x for x in NUMBER if x != "None"] + ["0", "-1", "2.0", "nan", "2**31", "2**63"]
EVERY += ["10**5000", "-(10**5000)", "False", "mx.array(2.0)", "mx.array([2, 2])"]
SIZE = [*EVERY, "None"]


def _integers(shape, least, most):
    """Wrong integers of a shape, between two bounds."""
    return [
        *JUNK,
        *[x for x in NUMBERS if x not in ("0", "True")],
        "len",
        f"np.full({shape}, {least} - 1)",
        f"np.full({shape}, {most} + 1)",
        f"mx.full({shape}, {most} + 1)",
        f"np.full({shape}, 2**40)",
        f"np.full({shape}, 2**63, np.uint64)",
        f"mx.full({shape}, -1, mx.int64)",
        f"np.full({shape}, 1.0)",
        f"np.full({shape}, nan)",
        f"np.full({shape}, 1, object)",
        f"np.full({shape}, 1, 'm8[s]')",
        f"np.full({shape}, 1j)",
        f"np.full({shape}, '1')",
        f"mx.ones({shape})",
        f"mx.ones({shape}, mx.complex64)",
        f"np.ones((*{shape}, 1), int)",
        f"np.ones((2, *{shape}), int).tolist()",
        f"np.ones(({shape})[1:], int)",
        f"mx.ones(({shape})[:-1], mx.int32)",
    ]


# By argument: what is wrong for it.
WRONG = {
    "x": ["zeros(D)", "zeros(*lead, L, D + 1)", "zeros(*lead, L, D, complex=True)"],
    "z": ["zeros(H)", "zeros(*lead, L, H, complex=True)"],
    "Wxh": [
        "zeros(H)",
        "zeros(H, D + 2)",  # not what a wrong x has
        "zeros(H, D, 1)",
        "zeros(H, D, complex=True)",
    ],
    "Whh": [
        "zeros(H)",
        "zeros(H + 1, H + 2)",
        "zeros(H, H, 1)",
        "zeros(H, H, complex=1)",
    ],
    "bias": ["zeros(H + 1)", "zeros(2, *lead, L, H)", "zeros(H, complex=True)"],
    "hidden": [
        "zeros(H + 1)",
        "zeros(*(n + 7 for n in lead), H)",
        "zeros(*lead, H, complex=True)",
    ],
    "hidden0": ["zeros(H + 1)", "zeros(1, H)", "zeros(H, complex=True)"],
    "w": ["zeros(H)", "zeros(H, D + 2)", "zeros(H, D, 1)", "zeros(H, D, complex=True)"],
}
for name, values in WRONG.items():
    required = name not in ("bias", "hidden", "hidden0")
    WRONG[name] = [*ARRAYS, *values, *(["None"] if required else [])]
# A bias of any shape that broadcasts is one.
WRONG["bias"].remove("zeros()")
WRONG |= {
    "lengths": [*_integers("lead", 0, "L"), "np.zeros(lead, bool)", "True", "0"],
    "reset": [*_integers("(*lead, L)", 0, 1), "True"],
    "mask": [*_integers("(*lead, L)", 0, 1), "True"],
    "reverse": [*FLAG, "None", "2**64"],
    "training": [*FLAG, "None"],
    "return_all": [*FLAG, "None"],
    "residual": [*FLAG, "None"],
    "bidirectional": [*FLAG, "None"],
    "learn_hidden": [*FLAG, "None"],
    "return_state": [*JUNK, "None", "0", "1", "np.True_", "[True]", "mx.array(True)"],
    "leak": [
        *[x for x in NUMBER if x != "None"],
        *BEYOND,
        *("0", "-0.5", "1.01", "False", "Decimal('0.5')", "Fraction(3, 2)"),
        *("[0.5] * H", "zeros(H + 1)", "mx.ones((H,), mx.int32)"),
        "zeros(H, complex=True)",
    ],
    **dict.fromkeys(
        ("zoneout", "input_dropout", "recurrent_dropout", "dropout"), PROBABILITY
    ),
    **dict.fromkeys(("checkpoint_every", "truncate_every"), EVERY),
    "nonlinearity": [
        *JUNK,
        *NUMBERS,
        "len",
        "lambda a: None",
        "lambda a: a.tolist()",
        "lambda a: a.sum()",
        "lambda a: a[..., :0]",
        "lambda a: a.astype(mx.complex64)",
        "lambda a: np.zeros(a.shape)",
    ],
    "stream": [*JUNK, *NUMBERS, "len", "mx", "zeros(2)"],
    "input_size": [x for x in SIZE if x not in ("0", "False")],
    "hidden_size": [*SIZE, "0"],
    "num_layers": [*SIZE, "0"],
    "layers": [
        *JUNK,
        *NUMBERS,
        *("None", "[]", "[None]", "(3,)", "RNN(2, 3)", "[RNN(2, 3), RNN(4, 3)]"),
        "[Bidirectional(RNN(2, 3), merge=None), RNN(3, 3)]",
    ],
    "merge": [*JUNK, *NUMBERS, "'last'", "''", "[]", "b'sum'"],
    "forward": [*JUNK, *NUMBERS, "None", "nn.RNN(2, 3)", "len"],
    "backward": [*JUNK, *NUMBERS, "RNN(D + 1, H)"],
    "layer": [*JUNK, *NUMBERS, "None", "nn.Linear(2, 3)", "nn.Module()", "[RNN(2, 3)]"],
    "r": [
        *NUMBER,
        *BEYOND,
        "0",
        "-1",
        "False",
        "mx.array(1.0)",
        "Fraction(1, 10**400)",
    ],
    "n": [*NUMBER, "0", "-1", "1.5", "nan", "inf", "-(10**5000)", "False"],
    "mode": [*JUNK, "'gpu'", "''", "'CPU'", "None", "mx.cpu", "1"],
    "model": [x for x in [*JUNK, *NUMBERS] if x not in ("{}", "[[1], [2, 3]]")]
    + ["None", "nn.RNN", "zeros(2)", "len"],
    "out": [
        *JUNK,
        *NUMBERS,
        "[0.0] * H",
        "zeros(H)",
        "np.zeros(H)",
        "np.zeros(H + 1, np.float32)",
        "np.frombuffer(bytes(4 * H), np.float32)",
        "np.zeros((1, H), np.float32)",
        "np.zeros(H, '>f4')",
        "np.broadcast_to(np.float32(0), (H,))",
    ],
    "states": [*JUNK, *NUMBERS, "[]", "[None] * 5", "zeros(H)", "[3, 3]", "len"],
    "stream x": [
        *[x for x in ARRAYS if x != "np.zeros((2, 3))"],
        *("None", "zeros(D + 1)", "zeros(2, 2, D)", "np.zeros(D, complex)"),
        *("np.array(['a'] * D)", "np.array([None] * D)", "np.zeros(D, 'm8[s]')"),
        *("mx.zeros((D,), mx.complex64)", "np.zeros((0, D + 1))"),
    ],
    "stream hidden": [*ARRAYS, "zeros(H + 1)", "np.zeros(H, complex)"],
    "stream reset": [
        *[x for x in _integers("()", 0, 1) if "ones((2, *" not in x and ")[" not in x],
        *("[True]", "mx.array([0])", "np.zeros((1, 1), bool)"),
    ],
}
WRONG["stream hidden"].remove("np.zeros((2, 3))")
# Of gated cells, with G slabs: a weight of another number of rows, or of columns.
for gates, cell in ((3, "gru"), (4, "lstm")):
    for name, columns in (("Wx", "D"), ("Wh", "H")):
        WRONG[f"{name} of {cell}"] = [
            *ARRAYS,
            *("None", "zeros(H)", f"zeros({gates} * H, {columns}, 1)"),
            f"zeros({gates} * H, {columns}, complex=True)",
            f"zeros({gates} * H + {gates}, {columns} + 2)",
        ]
WRONG["bhn"] = [*WRONG["hidden0"], "zeros(3 * H + 1)"]
WRONG["cell"], WRONG["cell0"] = WRONG["hidden"], WRONG["hidden0"]
WRONG["reset_after"] = WRONG["reverse"]
_NETWORK = [*JUNK, *NUMBERS, "None", "nn.RNN(2, 3)", "len", "RNN", "[RNN(2, 3)]"]
WRONG |= {
    "network": _NETWORK,
    # Any text is a path, any bytes are a damaged model.
    "model of onnx": [x for x in _NETWORK if x not in ("'text'", "'x' * 10000")],
    "path": [x for x in _NETWORK if x not in ("'text'", "'x' * 10000", "None")],
    "node": [*[x for x in _NETWORK if x != "None"], "[]", "['a', 'a']", "[3]"],
    "layout": [*EVERY, "2", "-1"],
    "opset": [x for x in [*EVERY, "13", "1000", "15.0"] if x != "None"],
    "sizes": [
        *[x for x in _NETWORK if x != "None"],
        *("{'M': 3}", "{'N': 0}", "{'L': 2.0}", "{3: 3}"),
    ],
    "module": [*_NETWORK, "{3: 4}", "'x'", "[]"],
    "layer of weights": [
        *_NETWORK,
        *("RNN(D, H)", "RNN(D, H + 1, False)", "mlx_recurrent.GRU(D, H, False)"),
        *("nn.LSTM(D, H)", "interop.Reversed(RNN(D, H, False))"),
    ],
    "tree": [x for x in _NETWORK if x != "RNN"] + ["{'i': 3, 'h': 4}", "{'cell': 3}"],
    "of two": [*JUNK, *NUMBERS, "len", "mx.tanh", "b'relu'", "'Relu'", "['tanh']"],
    "prefix": [*JUNK, *NUMBERS, "None", "b'rnn'", "'rnn'", "'weight_ih'"],
    "backward of Reversed": [*JUNK, *NUMBERS, "None"],
}
WRONG["layout"].remove("0")
for name in ("x", "z"):
    WRONG[f"{name} of {'matmul' if name == 'x' else 'Linear'}"] = [
        *ARRAYS,
        "zeros(D + 1)",
        "zeros(*lead, L, D + 1)",
        "None",
    ]
# Another way to write the same.
SAME = {
    "lengths": [
        (f"({v})", "counts")
        for v in ("counts[::-1][::-1]", "counts.tolist()", "np.ma.array(counts)")
    ]
    + [
        ("mx.array(counts)[::-1][::-1]", "counts[:]"),
        ("counts.astype('>u2')", "counts"),
    ],
    "leak": [("Fraction(1, 2)", "0.5"), ("np.float16(0.5)", "0.5"), ("1", "None")],
    "zoneout": [("np.float64(0)", "0.0"), ("False", "0.0"), ("Fraction(0)", "0.0")],
    "reverse": [("np.True_", "True"), ("np.False_", "False")],
    "checkpoint_every": [("np.int8(2)", "2"), ("2**31 - 1", "None")],
    "truncate_every": [("np.uint64(2)", "2"), ("2**31 - 1", "None")],
}

# What a call has beside what is wrong: the arguments without which it cannot be, and
# those that it may have.
_CALL = {
    "lengths": "counts",
    "reset": "np.zeros((*lead, L), bool)",
    "mask": "np.ones((*lead, L), bool)",
    "reverse": "True",
    "return_state": "True",
    "checkpoint_every": "2",
    "truncate_every": "2",
}
_OPTIONS = {
    "leak": "0.5",
    "zoneout": "0.1",
    "recurrent_dropout": "0.1",
    "nonlinearity": "nonlinearity",
}
_FUNCTION = {
    **_CALL,
    **_OPTIONS,
    "hidden": "zeros(*lead, H)",
    "hidden0": "zeros(H)",
    "training": "False",
    "stream": "mx.cpu",
}
_X = {"x": "zeros(*lead, L, D)"}
_GATED = {
    name: value
    for name, value in _FUNCTION.items()
    if name not in ("leak", "nonlinearity")
} | {"input_dropout": "0.1"}
_PRODUCT = {"x": "zeros(*lead, L, D)", "w": "zeros(H, D)"}


def _with_weight(sizes, f, **given):
    """A layer whose weights may be wrong."""
    layer = RNN(sizes["D"], sizes["H"], nonlinearity=f)
    for name in ("Wxh", "Whh", "bias"):
        if name in given:
            value = given.pop(name)
            setattr(layer, name, value)
    return layer(**given)


class Function:
    """What is called, with what, and which table tells what is wrong."""

    def __init__(self, call, needs, may=(), other=(), unlike=()):
        self.call, self.needs, self.may = call, needs, dict(may)
        self.tables, self.unlike = dict(other), dict(unlike)

    def wrong(self, name):
        values = WRONG[self.tables.get(name, name)]
        without = self.unlike.get(name, ())
        return [v for v in values if v not in without]


def _layer(sizes, f):
    return RNN(sizes["D"], sizes["H"], nonlinearity=f)


_LAYER_CALL = {**_CALL, "hidden": "zeros(*lead, H)"}
_STACK_CALL = {**_CALL, "return_all": "True", "hidden": "None"}
_BOTH_CALL = {n: v for n, v in _CALL.items() if n != "reverse"} | {"hidden": "None"}
_MADE = {
    **_OPTIONS,
    "input_dropout": "0.1",
    "learn_hidden": "True",
}
# Whatever Python can take for true or false is a flag of MLX's.
_SIZES = {"input_size": "D", "hidden_size": "H"}
# No callable is called when a layer is made.
_CALLABLE = {
    "nonlinearity": [v for v in WRONG["nonlinearity"] if "lambda" in v] + ["len"]
}
_OF_STATES = {"hidden": "states"}
# What is wrong for a sequence, but not for a step.
_OF_A_STEP = {
    "x": ["zeros(D)", "zeros(*lead, L, D + 1)", "zeros(*lead, L, D, complex=True)"],
    "reset": [
        "np.ones(((*lead, L))[1:], int)",
        "mx.ones(((*lead, L))[:-1], mx.int32)",
    ],
}
FUNCTIONS = {
    "rnn": Function(
        lambda s, f, **a: mlx_recurrent.rnn(**a),
        {**_X, "Wxh": "zeros(H, D)", "Whh": "zeros(H, H)"},
        {**_FUNCTION, "bias": "zeros(H)", "input_dropout": "0.1"},
    ),
    "gru": Function(
        lambda s, f, **a: mlx_recurrent.gru(**a),
        {**_X, "Wx": "zeros(3 * H, D)", "Wh": "zeros(3 * H, H)"},
        {**_GATED, "bhn": "zeros(H)"},
        {"Wx": "Wx of gru", "Wh": "Wh of gru"},
    ),
    "lstm": Function(
        lambda s, f, **a: mlx_recurrent.lstm(**a),
        {**_X, "Wx": "zeros(4 * H, D)", "Wh": "zeros(4 * H, H)"},
        {**_GATED, "cell": "zeros(*lead, H)", "cell0": "zeros(H)"},
        {"Wx": "Wx of lstm", "Wh": "Wh of lstm"},
    ),
    "scan": Function(
        lambda s, f, **a: mlx_recurrent.scan(**a),
        {"z": "zeros(*lead, L, H)", "Whh": "zeros(H, H)"},
        _FUNCTION,
    ),
    "RNN()": Function(lambda s, f, **a: RNN(**a), _SIZES, _MADE, unlike=_CALLABLE),
    "RNN": Function(lambda s, f, **a: _layer(s, f)(**a), _X, _LAYER_CALL),
    "RNN's weights": Function(
        _with_weight,
        _X,
        {"Wxh": "zeros(H, D)", "Whh": "zeros(H, H)", "bias": "zeros(H)"},
    ),
    "plan": Function(lambda s, f, **a: _layer(s, f).plan(**a), _X, _LAYER_CALL),
    "step": Function(
        lambda s, f, **a: _layer(s, f).step(**a),
        {"x": "zeros(*lead, D)"},
        {"hidden": "zeros(*lead, H)", "reset": "np.zeros(lead, bool)"},
        unlike=_OF_A_STEP,
    ),
    "stream": Function(
        lambda s, f, **a: _layer(s, f).stream(**a),
        {"hidden": "None"},
        other={"hidden": "stream hidden"},
    ),
    "stream()": Function(
        lambda s, f, **a: _unmoved(_layer(s, f).stream(), **a),
        {"x": "zeros(D)"},
        {"out": "np.zeros(H, np.float32)", "reset": "True"},
        {"x": "stream x", "reset": "stream reset"},
    ),
    "stream.reset": Function(
        lambda s, f, **a: _unmoved(_layer(s, f).stream(), "reset", **a),
        {"hidden": "zeros(H)"},
        other={"hidden": "stream hidden"},
    ),
    "Stack()": Function(
        lambda s, f, **a: Stack(**a),
        {"layers": "[RNN(2, 3)]"},
        {"dropout": "0.1", "residual": "True"},
    ),
    "Stack.build": Function(
        lambda s, f, **a: Stack.build(**a),
        {**_SIZES, "num_layers": "2"},
        {**_MADE, "bidirectional": "True", "dropout": "0.1", "residual": "True"},
        unlike=_CALLABLE,
    ),
    "Stack": Function(
        lambda s, f, **a: Stack.build(s["D"], s["H"], 2, nonlinearity=f)(**a),
        _X,
        _STACK_CALL,
        _OF_STATES,
    ),
    "Stack.plan": Function(
        lambda s, f, **a: Stack.build(s["D"], s["H"], 2, nonlinearity=f).plan(**a),
        _X,
        _STACK_CALL,
        _OF_STATES,
    ),
    "Stack.step": Function(
        lambda s, f, **a: Stack.build(s["D"], s["H"], 2, nonlinearity=f).step(**a),
        {"x": "zeros(*lead, D)"},
        {"hidden": "None", "reset": "np.zeros(lead, bool)"},
        _OF_STATES,
        unlike=_OF_A_STEP,
    ),
    "Stack.stream": Function(
        lambda s, f, **a: Stack.build(s["D"], s["H"], 2, nonlinearity=f).stream(**a),
        {"hidden": "None"},
        other=_OF_STATES,
    ),
    "Stack.stream()": Function(
        lambda s, f, **a: _unmoved(_stack_stream(s, f), **a),
        {"x": "zeros(D)"},
        {"out": "np.zeros(H, np.float32)", "reset": "True"},
        {"x": "stream x", "reset": "stream reset"},
    ),
    "Stack.stream.reset": Function(
        lambda s, f, **a: _unmoved(_stack_stream(s, f), "reset", **a),
        {"hidden": "[zeros(H), None]"},
        other=_OF_STATES,
    ),
    "Bidirectional()": Function(
        lambda s, f, **a: Bidirectional(**a),
        {"forward": "RNN(D, H)"},
        {"backward": "RNN(D, H)", "merge": "'sum'"},
        unlike={"forward": ["len", "nn.RNN(2, 3)"]},
    ),
    "Bidirectional": Function(
        lambda s, f, **a: Bidirectional(_layer(s, f))(**a), _X, _BOTH_CALL, _OF_STATES
    ),
    "matmul": Function(
        lambda s, f, **a: mlx_recurrent.matmul(**a),
        _PRODUCT,
        {"bias": "zeros(H)", "stream": "mx.cpu"},
        {"x": "x of matmul"},
    ),
    "Linear": Function(
        lambda s, f, **a: Linear(s["D"], s["H"])(**a),
        {"x": "zeros(*lead, L, D)"},
        other={"x": "x of matmul"},
    ),
    "accelerate": Function(
        lambda s, f, **a: mlx_recurrent.accelerate(**a), {"model": "RNN(2, 3)"}
    ),
    "init.orthogonal_": Function(
        lambda s, f, **a: init.orthogonal_(**a), {"layer": "RNN(2, 3)"}
    ),
    "init.identity_": Function(
        lambda s, f, **a: init.identity_(**a), {"layer": "RNN(2, 3)"}
    ),
    "init.spectral_radius_": Function(
        lambda s, f, **a: init.spectral_radius_(**a), {"layer": "RNN(2, 3)", "r": "1"}
    ),
    "set_num_threads": Function(
        lambda s, f, **a: mlx_recurrent.set_num_threads(**a), {"n": "2"}
    ),
    "set_placement": Function(
        lambda s, f, **a: mlx_recurrent.set_placement(**a), {"mode": "'auto'"}
    ),
}


_TWO = "{'kernel': zeros(H, H)}"
_CELL = f"{{'i': {{'kernel': zeros(D, H)}}, 'h': {_TWO}}}"
_FLAGS = dict.fromkeys(("batch_first", "cell", "return_sequences", "nnx"), "residual")
_FLAGS |= dict.fromkeys(("sequence_lens", "initial_h"), "residual")
_TABLES = {"layer": "network", **_FLAGS}
# By the module without which they cannot be called.
_INTERCHANGE = {
    "to_torch": (
        "torch",
        {"layer": "RNN(D, H)"},
        {"batch_first": "True", "cell": "True"},
        _TABLES,
    ),
    "from_torch": (
        "torch",
        {"module": "{'weight_ih': zeros(H, D), 'weight_hh': zeros(H, H)}"},
        {"prefix": "''", "nonlinearity": "'relu'"},
        {"prefix": "prefix", "nonlinearity": "of two"},
    ),
    "to_keras": (
        "keras",
        {"layer": "RNN(D, H)"},
        {"return_sequences": "True"},
        _TABLES,
    ),
    "from_keras": ("keras", {"layer": "3"}, {}, {"layer": "network"}),
    "to_flax": ("flax", {"layer": "RNN(D, H)"}, {"nnx": "True"}, _TABLES),
    "from_flax": (
        "flax",
        {"params": f"{{'forward_rnn': {_CELL}, 'backward_rnn': {_CELL}}}"},
        {"nonlinearity": "mx.tanh", "merge": "'sum'"},
        {"params": "tree"},
    ),
    "to_onnx": (
        "onnx",
        {"layer": "RNN(D, H)"},
        {
            "path": "None",
            "layout": "1",
            "opset": "17",
            "sequence_lens": "True",
            "initial_h": "True",
            "sizes": "{'N': 3, 'L': 2}",
        },
        _TABLES,
    ),
    "from_onnx": (
        "onnx",
        {"model": "interop.to_onnx(RNN(D, H))"},
        {"node": "'RNN'"},
        {"model": "model of onnx"},
    ),
}
_PACKAGES = dict.fromkeys(package for package, *_ in _INTERCHANGE.values())
# What a case may call, by the case's name.
TABLES = {
    "misuse": FUNCTIONS,
    **{
        f"misuse of {package}": {
            name: Function(
                lambda s, f, name=name, **a: getattr(interop, name)(**a),
                needs,
                may,
                tables,
                unlike=_CALLABLE,
            )
            for name, (of, needs, may, tables) in _INTERCHANGE.items()
            if of == package
        }
        for package in _PACKAGES
    },
}
FUNCTIONS |= {
    "torch_weights": Function(
        lambda s, f, **a: interop.torch_weights(**a),
        {
            "weights": "{'weight_ih': zeros(H, D), 'weight_hh': zeros(H, H)}",
            "layer": "RNN(D, H, False)",
        },
        {"prefix": "''"},
        {"weights": "module", "layer": "layer of weights"},
    ),
    "Reversed()": Function(
        lambda s, f, **a: interop.Reversed(**a),
        {"backward": "RNN(D, H)"},
        other={"backward": "backward of Reversed"},
    ),
    "Reversed": Function(
        lambda s, f, **a: interop.Reversed(_layer(s, f))(**a), _X, _LAYER_CALL
    ),
}


def _stack_stream(sizes, f):
    """A stream whose states are not the first ones."""
    stream = Stack.build(sizes["D"], sizes["H"], 2, nonlinearity=f).stream()
    stream(np.ones(sizes["D"]))
    return stream


def _unmoved(stream, method="__call__", **arguments):
    """A stream's call, after which, if it raises, the state is as it was."""
    before = stream.state
    try:
        return getattr(stream, method)(**arguments)
    finally:
        np.testing.assert_array_equal(stream.state, before)


class Misuse:
    """A call with one or two wrong arguments, or one that is written otherwise."""

    def __init__(self, name, choose, rng):
        self.table = TABLES[name]
        self.function = choose("function", list(self.table))
        spec = self.table[self.function]
        self.sizes = {
            "lead": choose("lead", [(3,), (2, 3)]),
            "L": choose("L", [2, 3, 9]),
            "D": choose("D", [2, 1, 5]),
            "H": choose("H", [4, 1, 17]),
        }
        self.path = choose("path", ["native", "traced", "composed"])
        self.given = dict(spec.needs)
        for argument, value in spec.may.items():
            if choose.rarely(f"with {argument}", [False, True], 0.3):
                self.given[argument] = value
        known = [*spec.needs, *spec.may]
        self.wrong, self.same = [], None
        others = [a for a in known if a in SAME]
        if others and choose.rarely("rewritten", [False, True], 0.3):
            self.same = choose("argument", others)
            pairs = SAME[self.same]
            at = choose("other form", range(len(pairs)))
            self.given[self.same], self.meaning = pairs[at]
            return
        for i in range(choose("wrong arguments", [1, 2]) if len(known) > 1 else 1):
            argument = choose(f"argument {i}", known)
            if argument in self.wrong:
                continue
            self.wrong.append(argument)
            self.given[argument] = choose(f"value {i}", spec.wrong(argument))

    def names(self):
        def zeros(*shape, complex=False):
            return mx.zeros(shape, mx.complex64 if complex else mx.float32)

        lead, L = self.sizes["lead"], self.sizes["L"]
        f = {
            "native": None,
            "traced": lambda a: mx.tanh(a),
            "composed": unreadable(mx.tanh),
        }[self.path]
        return {
            **self.sizes,
            **{"np": np, "mx": mx, "nn": nn, "RNN": RNN, "Decimal": Decimal},
            **{"Fraction": Fraction, "Bidirectional": Bidirectional},
            "mlx_recurrent": mlx_recurrent,
            "interop": interop,
            **{"nan": float("nan"), "inf": float("inf"), "zeros": zeros},
            "counts": np.arange(np.prod(lead)).reshape(lead) % (L + 1),
            "nonlinearity": f,
        }

    def run(self, **others):
        spec, names = self.table[self.function], self.names()
        # A generator's or a lambda's names are global.
        values = {n: eval(text, names) for n, text in (self.given | others).items()}
        mx.random.seed(3)
        result = spec.call(self.sizes, names["nonlinearity"], **values)
        if isinstance(result, (mx.array, list, tuple)):
            mx.eval(result)
        return result

    def check(self):
        if self.same is not None:
            got, expected = self.run(), self.run(**{self.same: self.meaning})
            _same(got, expected)
            return
        try:
            result = self.run()
        except (TypeError, ValueError) as error:
            check_error(error, self.wrong, self.described())
        else:
            raise AssertionError(
                f"{self.described()} was accepted, and gave {str(result)[:200]}"
            )

    def described(self):
        return ", ".join(f"{name}={self.given[name]}" for name in self.wrong)


def check_error(error, names, described):
    """An error must be of arguments, name one of these and be one line."""
    message = str(error)
    assert type(error) in (TypeError, ValueError), type(error)
    named = any(re.search(rf"\b{name}\b", message, re.IGNORECASE) for name in names)
    assert named, f"for {described} the error names none: {message[:300]}"
    if message.startswith("Nonlinearity"):  # in MLX's words
        return
    assert len(message) <= LONGEST, f"{len(message)} letters: {message[:300]}"
    assert "\n" not in message, message


def _same(a, b):
    if isinstance(a, mx.array):
        equal(a, b)
    elif isinstance(a, (list, tuple)):
        for one, other in zip(a, b, strict=True):
            _same(one, other)
    elif not isinstance(a, (nn.Module, types.NoneType)):
        assert a == b, f"{a} is not {b}"


LEFT_OUT = {
    f"misuse of {package}": package
    for package in _PACKAGES
    if find_spec(package) is None
}
KINDS = {name: Misuse for name in TABLES if name not in LEFT_OUT | {"misuse": ""}}
