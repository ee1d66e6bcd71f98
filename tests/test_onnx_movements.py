"""What graphs make of their inputs on the way to an RNN node, and of its results.

A movement is read and gives ONNX Runtime's values, or is refused by name.
"""

import io
import itertools
import warnings

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from conftest import array, draw
from mlx_recurrent import Bidirectional, Stack
from mlx_recurrent.interop import from_onnx
from tolerances import agree

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

from onnx import helper  # noqa: E402

from onnx_models import in_runtime, model_of, weights  # noqa: E402

# The input has as many features as a state, so that it could be one.
N, L, H = 3, 5, 4


def call(layer, x, states=None, lengths=None):
    """Outputs (N, L, ...) and last states (layers and directions, N, H) of a call.

    The states are an array like the last ones.
    """
    hidden = None
    if states is not None:
        layers = layer.layers if isinstance(layer, Stack) else [layer]
        rest = iter(states)
        hidden = [
            (next(rest), next(rest)) if isinstance(one, Bidirectional) else next(rest)
            for one in layers
        ]
        hidden = hidden if isinstance(layer, Stack) else hidden[0]
    y, last = layer(x, hidden, lengths=lengths, return_state=True)
    lasts = (
        [a for _, a in tree_flatten(last)]
        if isinstance(last, (list, tuple))
        else [last]
    )
    return y, mx.stack(lasts)


# PyTorch's exporter -------------------------------------------------------------------


class Export:
    """A model of PyTorch's around one RNN, exported."""

    def __init__(self, function, inputs, layers=1, bidirectional=False, open_axes=True):
        torch = pytest.importorskip("torch", reason="PyTorch is not installed")

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn = torch.nn.RNN(
                    H, H, layers, bidirectional=bidirectional, batch_first=True
                )

            def forward(self, *given):
                return function(self.rnn, *given)

        self.model = Model().eval()
        given = {name: torch.from_numpy(a) for name, a in inputs.items()}
        axes = {"x": {0: "N", 1: "L"}, "ends": {0: "N"}, "h": {1: "N"}, "g": {1: "N"}}
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's own
            torch.onnx.export(
                self.model,
                tuple(given.values()),
                file,
                dynamo=False,
                input_names=list(given),
                dynamic_axes={name: axes[name] for name in given}
                if open_axes
                else None,
            )
        self.content = file.getvalue()

    def run(self, inputs):
        return in_runtime(onnx.load_from_string(self.content), inputs)


def cat(arrays, axis):
    import torch

    return torch.cat(arrays, axis)


# The state that a model takes, of which input shapes, what is said of it.
STATES = {
    "the first frame": (
        lambda rnn, x: rnn(x, x[:, 0].unsqueeze(0)),
        {},
        {},
        r"of the input 'x' by the node '/Gather' \(Gather\)",
    ),
    "halves that change places": (
        lambda rnn, x, h: rnn(x, cat([h[..., 2:], h[..., :2]], -1)),
        {"h": 1},
        {},
        r"of the input 'h' by the node '/Concat' \(Concat\)",
    ),
    "one for two layers": (
        lambda rnn, x, h: rnn(x, cat([h, h], 0)),
        {"h": 1},
        {"layers": 2},
        "the input 'h', given twice",
    ),
    "one for two layers, expanded": (
        lambda rnn, x, h: rnn(x, h.expand(2, -1, -1)),
        {"h": 1},
        {"layers": 2},
        r"of the input 'h' by the node '/Expand' \(Expand\)",
    ),
    "one row for all": (
        lambda rnn, x, h: rnn(x, h[:, :1].expand(1, N, H)),
        {"h": 1},
        {},
        "of the input 'h' by the node '/",
    ),
    "one for both directions": (
        lambda rnn, x, h: rnn(x, cat([h, h], 0)),
        {"h": 1},
        {"bidirectional": True},
        "of the input 'h' by the node '/Concat' .*, given twice",
    ),
    "two inputs": (
        lambda rnn, x, h, g: rnn(x, cat([h, g], 0)),
        {"h": 1, "g": 1},
        {"layers": 2},
        "of the input 'h' and the input 'g' by the node '/Concat'",
    ),
    "layers that change places": (
        lambda rnn, x, h: rnn(x, h[[1, 0]]),
        {"h": 2},
        {"layers": 2},
        "another order than that of the layers and directions",
    ),
    "directions that change places": (
        lambda rnn, x, h: rnn(x, h[[1, 0]]),
        {"h": 2},
        {"bidirectional": True},
        "another order than that of the layers and directions",
    ),
    "layers backward": (
        lambda rnn, x, h: rnn(x, h.flip(0)),
        {"h": 2},
        {"layers": 2},
        r"of the input 'h' by the node '/Slice' \(Slice\)",
    ),
    "rows that change places": (
        lambda rnn, x, h: rnn(x, h[:, [1, 0, 2]]),
        {"h": 1},
        {},
        r"of the input 'h' by the node '/Gather' \(Gather\)",
    ),
    "features backward": (
        lambda rnn, x, h: rnn(x, h.flip(2)),
        {"h": 1},
        {},
        r"of the input 'h' by the node '/Slice' \(Slice\)",
    ),
    "some of the states": (
        lambda rnn, x, h: rnn(x, h[:2]),
        {"h": 3},
        {"layers": 2},
        "the input 'h' of 3 states, of which the recurrent nodes take 2 alone",
    ),
    "a computed one": (
        lambda rnn, x, h: rnn(x, h * 2),
        {"h": 1},
        {},
        r"of the input 'h' by the node '/Mul' \(Mul\)",
    ),
    "an encoder's": (
        lambda rnn, x: rnn(x, rnn(x)[1]),
        {},
        {},
        "the last state of '/rnn/RNN'",
    ),
    "an output's last step": (
        lambda rnn, x: rnn(x, rnn(x)[0][:, -1:].transpose(0, 1)),
        {},
        {},
        "of the outputs of '/rnn/RNN' by the node",
    ),
}


@pytest.mark.parametrize("open_axes", [True, False], ids=["open", "static"])
@pytest.mark.parametrize("what", STATES)
def test_a_state_that_is_not_one_input_in_order_is_refused(rng, what, open_axes):
    function, states, options, said = STATES[what]
    export = Export(function, drawn(rng, **states), open_axes=open_axes, **options)
    with pytest.raises(ValueError, match=f"initial_h.*{said}|{said}.*initial_h"):
        from_onnx(export.content)


def drawn(rng, **states):
    """Inputs of the exported models: x, and states of so many layers and directions."""
    shapes = {"x": (N, L, H)} | {name: (n, N, H) for name, n in states.items()}
    return {name: np.array(draw(rng, a, mx.float32)) for name, a in shapes.items()}


# What is only taken apart, put together and laid otherwise.
READ = {
    "as it is": lambda rnn, x, h: rnn(x, h),
    "taken apart and put together": lambda rnn, x, h: rnn(x, cat([h[:1], h[1:]], 0)),
    "in its order by an index": lambda rnn, x, h: rnn(x, h[list(range(len(h)))]),
    "turned twice": lambda rnn, x, h: rnn(x, h.transpose(0, 1)[:].transpose(0, 1)),
}


@pytest.mark.parametrize("open_axes", [True, False], ids=["open", "static"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("how", READ)
def test_states_in_order_are_read(rng, how, bidirectional, open_axes):
    inputs = drawn(rng, h=2 * (1 + bidirectional))
    export = Export(READ[how], inputs, 2, bidirectional, open_axes)
    y, last = call(
        from_onnx(export.content), mx.array(inputs["x"]), mx.array(inputs["h"])
    )
    outputs, states = export.run(inputs)
    agree(y, array(outputs, mx.float32), "outputs")
    agree(last, array(states, mx.float32), "states")


def unsorted(rnn, x, ends, *h):
    """PyTorch's way with rows of any length: they are sorted, and put back."""
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    packed = pack_padded_sequence(x, ends, batch_first=True, enforce_sorted=False)
    y, last = rnn(packed, *h)
    return pad_packed_sequence(y, batch_first=True)[0], last


@pytest.mark.parametrize("open_axes", [True, False], ids=["open", "static"])
@pytest.mark.parametrize("hidden", [False, True], ids=["", "hidden"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_packed_sequences_that_are_not_sorted(
    rng, layers, bidirectional, hidden, open_axes
):
    inputs = drawn(rng)
    inputs["ends"] = np.array([2, L, 3])
    if hidden:
        inputs |= drawn(rng, h=layers * (1 + bidirectional))
        inputs = {name: inputs[name] for name in ("x", "ends", "h")}
    export = Export(unsorted, inputs, layers, bidirectional, open_axes)
    layer = from_onnx(export.content)
    for ends in ([2, L, 3], [L, 2, L], [3, L, L], [1, 1, L]):
        inputs["ends"] = np.array(ends)
        state = mx.array(inputs["h"]) if hidden else None
        y, last = call(layer, mx.array(inputs["x"]), state, ends)
        outputs, states = export.run(inputs)
        agree(y, array(outputs, mx.float32), f"outputs {ends}")
        agree(last, array(states, mx.float32), f"states {ends}")


def in_order(model):
    """The same nodes, each after those that it uses."""
    ordered = onnx.ModelProto()
    ordered.CopyFrom(model)
    del ordered.graph.node[:]
    rest = list(model.graph.node)
    unmade = {name for node in rest for name in node.output}
    while rest:
        node = next(node for node in rest if not unmade & set(node.input))
        rest.remove(node)
        unmade -= set(node.output)
        ordered.graph.node.append(node)
    return ordered


def test_rows_that_are_sorted_in_part_are_refused(rng):
    inputs = drawn(rng)
    inputs["ends"] = np.array([2, L, 3])
    inputs["h"] = np.array(draw(rng, (1, N, H), mx.float32))
    content = Export(unsorted, inputs).content
    assert from_onnx(content, node="/rnn/RNN").Whh.shape == (H, H)
    model = onnx.load_from_string(content)
    gathers = {
        node.input[0]: node for node in model.graph.node if node.op_type == "Gather"
    }
    (inverse,) = (
        node.output[0] for node in model.graph.node if node.op_type == "ScatterElements"
    )
    forward = gathers["h"].input[1]
    refused = {
        "x": (inverse, r"has the output .*\(Gather\)"),
        "h": (inverse, r"initial_h: it is made of the input 'h' .*\(Gather\)"),
    }
    for name, node in gathers.items():
        if node.input[1] == inverse:
            refused[name] = (forward, r"has the output .*\(Gather\)")
    assert len(refused) == 4
    for name, (by, said) in refused.items():
        before, gathers[name].input[1] = gathers[name].input[1], by
        with pytest.raises(ValueError, match=said):
            from_onnx(in_order(model))
        gathers[name].input[1] = before
    gathers["h"].op_type = "Identity"
    del gathers["h"].input[1], gathers["h"].attribute[:]
    with pytest.raises(ValueError, match="initial_h: its rows are in another order"):
        from_onnx(model)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            lambda rnn, x, ends: packed(rnn, x, ends.clamp(max=3)),
            r"sequence_lens: it is made of the input 'ends' by the node '/Clip",
        ),
        (
            lambda rnn, x, ends: packed(rnn, x, ends.flip(0).flip(0)),
            r"sequence_lens: it is made of the input 'ends' by the node '/Slice",
        ),
        (
            lambda rnn, x, ends: packed(rnn, x, ends + 1),
            r"sequence_lens: it is made of the input 'ends' by the node '/Add",
        ),
        (
            lambda rnn, x, ends: packed(rnn, x, ends.sort(descending=True)[0]),
            "sequence_lens: its rows are in another order than X's",
        ),
        (
            lambda rnn, x, ends: packed(
                rnn, x[ends.sort(descending=True)[1]], ends.sort(descending=True)[0]
            ),
            "has the output .*, whose rows are in the order made by the node '/TopK",
        ),
        (
            lambda rnn, x, ends: packed(rnn, x[ends.sort(descending=True)[1]], ends),
            "has the output .*, whose rows are in the order made by the node '/TopK",
        ),
    ],
    ids=["at most 3", "backward", "one more", "sorted alone", "left sorted", "X alone"],
)
def test_lengths_that_are_not_the_input_are_refused(rng, function, said):
    inputs = {**drawn(rng), "ends": np.array([4, 3, 2])}
    with pytest.raises(ValueError, match=said):
        from_onnx(Export(function, inputs).content)


def packed(rnn, x, ends):
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    y, _ = rnn(pack_padded_sequence(x, ends, batch_first=True))
    return pad_packed_sequence(y, batch_first=True)[0]


LASTS = {
    "all": (lambda h: h, ""),
    "rows first": (lambda h: h.transpose(0, 1), ""),
    "the last layer's": (lambda h: h[2:], ""),
    "layers backward": (lambda h: h.flip(0), r"'/Slice' \(Slice\)"),
    "another order": (lambda h: h[[2, 3, 0, 1]], "in another order than the layers'"),
    "directions": (lambda h: h[[1, 0, 3, 2]], "in another order than the layers'"),
    "twice": (lambda h: cat([h, h], 0), "in another order than the layers'"),
    "one direction's": (lambda h: h[-1], "one direction of '/rnn/RNN_1' alone"),
    "the rows backward": (lambda h: h.flip(1), r"'/Slice' \(Slice\)"),
    "some features": (lambda h: h[..., :2], r"'/Slice' \(Slice\)"),
    "both directions added": (lambda h: h[2:].sum(0), r"'/ReduceSum' \(ReduceSum\)"),
    "both directions multiplied": (lambda h: h[2] * h[3], r"'/Mul' \(Mul\)"),
}


@pytest.mark.parametrize("what", LASTS)
def test_what_graphs_make_of_last_states(rng, what):
    function, said = LASTS[what]
    inputs = drawn(rng)
    export = Export(lambda rnn, x: function(rnn(x)[1]), inputs, 2, True)
    if said:
        with pytest.raises(ValueError, match=said):
            from_onnx(export.content)
        return
    _, last = call(from_onnx(export.content), mx.array(inputs["x"]))
    (theirs,) = export.run(inputs)
    import torch

    mine = function(torch.from_numpy(np.array(last))).numpy()
    agree(array(mine, mx.float32), array(theirs, mx.float32))


# Graphs at random ---------------------------------------------------------------------


class Movement:
    """Nodes that move a tensor at random, its shape known."""

    def __init__(self, rng, name, shape, others=()):
        self.rng, self.nodes, self.constants = rng, [], {}
        self.name, self.shape, self.first = name, list(shape), name
        self.others = others

    def add(self, kind, *constants, outputs=1, **attributes):
        names = [f"{self.first}_{len(self.nodes)}_{i}" for i in range(outputs)]
        given = [self.name]
        for i, values in enumerate(constants):
            given.append(f"{names[0]}_constant_{i}")
            self.constants[given[-1]] = np.array(values, np.int64)
        self.nodes.append(
            helper.make_node(kind, given, names, f"the {names[0]}", **attributes)
        )
        self.name = names[0]
        return names

    def step(self):
        kinds = ["turn", "index", "halves", "backward", "twice", "one", "other", "same"]
        kind = self.rng.choice(kinds)
        axis = int(self.rng.integers(len(self.shape)))
        size = self.shape[axis]
        if kind == "turn":
            order = self.rng.permutation(len(self.shape)).tolist()
            self.add("Transpose", perm=order)
            self.add("Transpose", perm=np.argsort(order).tolist())
        elif kind == "index":
            self.add("Gather", self.rng.permutation(size), axis=axis)
        elif kind == "same":
            self.add("Gather", np.arange(size), axis=axis)
        elif kind == "backward":
            self.add("Slice", [-1], [-(2**31)], [axis], [-1])
        elif kind == "one":
            self.add("Unsqueeze", [axis])
            self.add("Squeeze", [axis])
        elif kind == "other" and self.others:
            self.name = str(self.rng.choice(self.others))
        elif kind == "twice":
            before = self.name
            self.add("Slice", [0], [size], [axis])
            self.concat([self.name, before], axis)
            start = int(self.rng.integers(size + 1))
            self.add("Slice", [start], [start + size], [axis])
        elif kind == "halves" and size > 1:
            first = int(self.rng.integers(1, size))
            parts = self.add("Split", [first, size - first], outputs=2, axis=axis)
            self.concat(parts[:: self.rng.choice([1, -1])], axis)

    def concat(self, names, axis):
        made = f"{self.first}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node("Concat", names, [made], f"the {made}", axis=axis)
        )
        self.name = made


def random_model(rng, both, layers, open_axes, lengths):
    """Layers whose x, states, lengths and results are moved, some of them."""
    number = layers * both
    n, steps = ("N", "L") if open_axes else (N, L)
    inputs = {"X": [steps, n, H], "h": [number, n, H]}
    shapes = {"X": [L, N, H], "h": [number, N, H]}
    if lengths:
        inputs["sequence_lens"], shapes["sequence_lens"] = [n], [N]
    moved = {name: Movement(rng, name, shape) for name, shape in shapes.items()}
    if number == L:
        moved["h"].others = ["X", "h"]
    for name in rng.permutation(list(moved))[: int(rng.integers(1, 3))]:
        for _ in range(int(rng.integers(1, 4))):
            moved[name].step()
    nodes = [node for movement in moved.values() for node in movement.nodes]
    constants = {k: v for m in moved.values() for k, v in m.constants.items()}
    sizes = np.full(layers, both, np.int64)
    constants["sizes"], constants["wide"] = sizes, np.array([0, 0, both * H])
    parts = [f"h_of_{i}" for i in range(layers)]
    if layers == 2 and rng.random() < 0.25:
        parts.reverse()
    nodes.append(helper.make_node("Split", [moved["h"].name, "sizes"], parts, axis=0))
    x, lasts = moved["X"].name, []
    lens = moved["sequence_lens"].name if lengths else ""
    for i in range(layers):
        arrays = weights(rng, both, H if i == 0 else both * H, H)
        constants |= {f"{name}{i}": a for name, a in arrays.items()}
        nodes += [
            helper.make_node(
                "RNN",
                [x, f"W{i}", f"R{i}", f"B{i}", lens, f"h_of_{i}"],
                [f"y{i}", f"last{i}"],
                f"rnn{i}",
                hidden_size=H,
                direction="bidirectional" if both == 2 else "forward",
            ),
            helper.make_node("Transpose", [f"y{i}"], [f"t{i}"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"t{i}", "wide"], [f"x{i}"]),
        ]
        x = f"x{i}"
        lasts.append(f"last{i}")
    end = Movement(rng, "lasts", [number, N, H])
    end.concat(lasts, 0)
    end.first = "moved"
    if rng.random() < 0.3:
        end.step()
    nodes += [*end.nodes, helper.make_node("Identity", [end.name], ["state"])]
    outputs = {x: [None] * 3, "state": [None] * 3}
    return model_of(nodes, inputs, outputs, {**constants, **end.constants})


def test_random_movements_are_refused_or_give_the_runtimes_values():
    rng = np.random.default_rng(15)
    read, refused = 0, set()
    for both, layers, open_axes, lengths, _ in itertools.product(
        [1, 2], [1, 2], [True, False], [True, False], range(25)
    ):
        model = random_model(rng, both, layers, open_axes, lengths)
        inputs = {
            "X": np.array(draw(rng, (L, N, H), mx.float32)),
            "h": np.array(draw(rng, (layers * both, N, H), mx.float32)),
        }
        ends = rng.integers(1, L + 1, N) if lengths else None
        if lengths:
            inputs["sequence_lens"] = ends.astype(np.int32)
        y, state = in_runtime(model, inputs)
        try:
            layer = from_onnx(model)
        except ValueError as error:
            refused |= {
                word
                for word in ("initial_h", "sequence_lens", "whose X", "output 'state'")
                if word in str(error)
            }
            continue
        x = mx.swapaxes(mx.array(inputs["X"]), 0, 1)
        mine, last = call(layer, x, mx.array(inputs["h"]), ends)
        agree(mx.swapaxes(mine, 0, 1), array(y, mx.float32), "Y")
        agree(last, array(state, mx.float32), "Y_h")
        read += 1
    # Neither refuses all nor takes all.
    assert read > 50 and len(refused) == 4
