"""``mlx-recurrent convert``: both ways, and what it refuses in one line."""

import json
import sys

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from conftest import draw
from interchange import computed
from mlx_recurrent import GRU, LSTM, RNN, Bidirectional, Stack
from mlx_recurrent.command.cli import main
from mlx_recurrent.interop import Reversed, from_onnx, to_onnx
from networks import in_dtype
from test_cli import command
from tolerances import equal

onnx = pytest.importorskip("onnx", reason="onnx is not installed")

N, L, D, H = 2, 5, 3, 4


def learned(layer):
    layer.hidden0 = mx.arange(H) / H
    if isinstance(layer, LSTM):
        layer.cell0 = -layer.hidden0
    return layer


NETWORKS = {
    "rnn": lambda: learned(RNN(D, H, learn_hidden=True)),
    "reversed": lambda: Reversed(RNN(D, H, False, nn.LeakyReLU(0.25))),
    "pair": lambda: Bidirectional(
        RNN(D, H, nonlinearity=nn.relu6), RNN(D, H, nonlinearity=nn.relu6), None
    ),
    "stack": lambda: Stack(
        [
            Bidirectional(RNN(D, H), RNN(D, H, nonlinearity=nn.ReLU())),
            Reversed(RNN(2 * H, H)),
            RNN(H, H, nonlinearity=nn.ELU(0.5)),
        ],
    ),
    "residual": lambda: Stack.build(
        D, H, 2, residual=True, bidirectional=True, merge="mean"
    ),
    "GRU": lambda: learned(GRU(D, H, learn_hidden=True)),
    "GRU, reset before": lambda: GRU(D, H, False, reset_after=False),
    "LSTM": lambda: learned(LSTM(D, H, learn_hidden=True)),
    "all": lambda: Stack(
        [
            Bidirectional(LSTM(D, H), merge="sum"),
            Reversed(GRU(H, H, reset_after=False)),
            RNN(H, H, nonlinearity=nn.relu),
            LSTM(H, H, False),
        ]
    ),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def convert(*arguments):
    return main(["convert", *arguments])


def weights(layer):
    return dict(tree_flatten(layer.parameters()))


def same(a, b):
    """The same weights, and the same results from another's structure."""
    ours, others = weights(a), weights(b)
    assert ours.keys() == others.keys()
    for name in ours:
        equal(ours[name], others[name], name)


def outputs(layer, x):
    y = layer(x)
    return y if isinstance(y, mx.array) else mx.stack(y)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("network", NETWORKS)
def test_there_and_back(network, dtype, rng, capsys):
    layer = in_dtype(NETWORKS[network](), dtype)
    to_onnx(layer, "model.onnx")
    assert convert("model.onnx", "weights.safetensors") == 0
    printed = capsys.readouterr().out
    for name, a in weights(layer).items():
        assert f"{name} {a.shape} {str(dtype).rpartition('.')[2]}" in printed
    # The layer's own method takes the file.
    loaded = in_dtype(NETWORKS[network](), dtype)
    loaded.load_weights("weights.safetensors")
    same(layer, loaded)
    assert convert("weights.safetensors", "back.onnx", "--layout", "1") == 0
    back = from_onnx("back.onnx")
    computed(back)
    same(layer, back)
    x = draw(rng, (N, L, D), dtype)
    equal(outputs(back, x), outputs(layer, x))


def test_the_inputs_of_the_graph():
    to_onnx(RNN(D, H), "model.onnx")
    assert convert("model.onnx", "w.safetensors") == 0
    options = ("--sequence-lens", "--initial-h", "--opset", "17", "--sizes", "N=3,L=9")
    assert convert("w.safetensors", "back.onnx", *options) == 0
    model = onnx.load("back.onnx")
    assert [i.name for i in model.graph.input] == ["X", "sequence_lens", "initial_h"]
    assert model.opset_import[0].version == 17
    shapes = [
        [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input
    ]
    assert shapes == [[9, 3, D], [3], [3, H]]


def test_one_node_of_several():
    to_onnx(Stack.build(D, H, 2), "model.onnx")
    node = ("--node", "layers.1.RNN")
    assert convert("model.onnx", "w.safetensors", *node) == 0
    assert mx.load("w.safetensors")["Wxh"].shape == (H, H)
    both = ("--node", "layers.0.RNN", *node, "--overwrite")
    assert convert("model.onnx", "w.safetensors", *both) == 0
    assert mx.load("w.safetensors")["layers.0.Wxh"].shape == (H, D)


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (RNN(D, H), ["--nonlinearity", "tanh"]),
        (RNN(D, H, nonlinearity=nn.relu), ["--nonlinearity", "relu"]),
        (RNN(D, H, nonlinearity=nn.Identity()), ["--nonlinearity", "identity"]),
        (
            RNN(D, H, nonlinearity=nn.LeakyReLU(0.25)),
            ["--nonlinearity", "LeakyRelu", "--alpha", "0.25"],
        ),
        (RNN(D, H, nonlinearity=nn.relu6), ["--nonlinearity", "relu", "--clip", "6"]),
        (
            Bidirectional(RNN(D, H), merge="sum"),
            ["--nonlinearity", "tanh", "--merge", "sum"],
        ),
        (
            Bidirectional(RNN(D, H), merge=None),
            ["--nonlinearity", "tanh", "--merge", "none"],
        ),
        (
            Stack.build(D, H, 2, bidirectional=True),
            ["--nonlinearity", "tanh", "--merge", "concat"],
        ),
        (
            Stack([Bidirectional(RNN(D, H)), RNN(2 * H, H)]),
            ["--nonlinearity", "tanh"],  # sizes tell the merge
        ),
        (GRU(D, H), []),
        (GRU(D, H, bias=False), []),
        (GRU(D, H, reset_after=False), []),
        (LSTM(D, H), []),
        (Bidirectional(LSTM(D, H, bias=False), merge="sum"), ["--merge", "sum"]),
        (Stack([GRU(D, H), LSTM(H, 2)]), []),
        (Stack([LSTM(D, H), RNN(H, 2)]), ["--nonlinearity", "tanh"]),
        (
            Stack.build(D, H, 2, residual=True),
            ["--nonlinearity", "tanh", "--residual"],
        ),
    ],
)
def test_weights_that_were_saved_by_a_layer(layer, options, rng):
    layer.save_weights("weights.safetensors")
    assert convert("weights.safetensors", "model.onnx", *options) == 0
    back = from_onnx("model.onnx")
    same(layer, back)
    x = draw(rng, (N, L, D), mx.float32)
    equal(outputs(back, x), outputs(layer, x))


def save(**arrays):
    mx.save_safetensors(
        "weights.safetensors", {k.replace("__", "."): a for k, a in arrays.items()}
    )


def layer_arrays(**others):
    return {"Wxh": mx.ones((H, D)), "Whh": mx.ones((H, H)), **others}


def gated_arrays(gates, **others):
    return {"Wx": mx.ones((gates * H, D)), "Wh": mx.ones((gates * H, H)), **others}


TANH = ["--nonlinearity", "tanh"]
SUM, SUM_AGAIN = (Bidirectional(RNN(size, H), merge="sum") for size in (D, H))


@pytest.mark.parametrize(
    ("arrays", "options", "said"),
    [
        (layer_arrays(), [], "does not say the nonlinearity: give --nonlinearity"),
        (layer_arrays(), [*TANH, "--merge", "sum"], "no two directions: --merge must"),
        (layer_arrays(), [*TANH, "--residual"], "no stack of layers: --residual must"),
        (
            dict(
                tree_flatten(Stack.build(D, H, 2, bidirectional=True).parameters()),
            ),
            [*TANH, "--merge", "none"],
            "must be merged: --merge must not be none",
        ),
        (
            layer_arrays(),
            ["--nonlinearity", "gelu"],
            "--nonlinearity must be of Relu, Tanh",
        ),
        (layer_arrays(), ["--nonlinearity", "Affine"], "--alpha must be given for A"),
        (layer_arrays(), [*TANH, "--alpha", "2"], "--alpha must belong to a --nonline"),
        (layer_arrays(), ["--clip", "2"], "--clip must belong to a --nonlinearity"),
        (layer_arrays(), ["--node", "a"], "--node must not be given for a .safetenso"),
        (layer_arrays(), [*TANH, "--opset", "3"], "--opset must be an integer from 14"),
        (
            layer_arrays(),
            [*TANH, "--sizes", "M=3"],
            "--sizes must be of 'N', rows, and",
        ),
        (layer_arrays(), [*TANH, "--sizes", "N=0"], "--sizes N must be from 1 to"),
        (layer_arrays(leak=mx.ones(H)), TANH, "has leak, which no layer to convert"),
        (layer_arrays(fc__weight=mx.ones(H)), TANH, "has fc"),
        ({"Wxh": mx.ones((H, D))}, TANH, "Whh must be there"),
        (gated_arrays(3), TANH, "has no RNN: --nonlinearity must not be given"),
        (
            gated_arrays(5),
            [],
            "Wh of shape (20, 4), which must be (3 H, H) of a GRU or",
        ),
        (gated_arrays(3, b=mx.ones(H)), [], "b of shape (4,), which must be (12,)"),
        (gated_arrays(4, b=mx.ones(4 * H)), [], "Wx of shape (16, 3), which must be"),
        (gated_arrays(3, hidden0=mx.ones(3)), [], "hidden0 of shape (3,), which must"),
        (gated_arrays(4, leak=mx.ones(H)), [], "has leak, which no layer to convert"),
        ({"Wx": mx.ones((12, D))}, [], "has Wx, which is no layer's: Wh must be there"),
        ({"a": mx.ones(3)}, TANH, "has a, which is no layer's: Wxh, Whh must be"),
        ({}, TANH, "holds no arrays"),
        (layer_arrays(Wxh=mx.ones(3)), TANH, "Wxh of shape (3,), which must be (H, D)"),
        (layer_arrays(Wxh=mx.ones((0, 3))), TANH, "Wxh of shape (0, 3), which must"),
        (layer_arrays(Whh=mx.ones((H, 1))), TANH, "Whh of shape (4, 1), which must"),
        (layer_arrays(bias=mx.ones((1, H))), TANH, "bias of shape (1, 4), which must"),
        (layer_arrays(bias=mx.ones(H, mx.int32)), TANH, "bias of dtype int32"),
        (
            {f"layers__1__{k}": a for k, a in layer_arrays().items()},
            TANH,
            "has layers 1, which must be 0, 1, ... without gaps",
        ),
        (
            {
                f"{direction}__{k}": a
                for direction in ("forward", "backward")
                for k, a in layer_arrays().items()
            },
            TANH,
            "does not say what the network makes of two directions: give --merge",
        ),
        (
            # Neither the last layer's sizes tell it, nor those that a sum also has.
            dict(tree_flatten(Stack([RNN(2 * H, H), Bidirectional(RNN(H, H))]))),
            TANH,
            "does not say what layers.1 makes of two directions: give --merge",
        ),
        (
            dict(tree_flatten(Stack([SUM, RNN(H, H)]))),
            TANH,
            "does not say what layers.0 makes of two directions: give --merge",
        ),
        (
            dict(tree_flatten(Stack([SUM, SUM_AGAIN, RNN(H, H)]))),
            [*TANH, "--merge", "concat"],
            "layers[1] must take the 8 features that layers[0] gives, but takes 4",
        ),
        (
            dict(tree_flatten(Stack([Bidirectional(RNN(D, H)), RNN(2 * H, H)]))),
            [*TANH, "--merge", "mul"],
            "layers[1] must take the 4 features that layers[0] gives, but takes 8",
        ),
        (
            {
                f"layers__{i}__{k}": a
                for i in range(2)
                for k, a in layer_arrays().items()
            },
            TANH,
            "layers[1] must take the 4 features that layers[0] gives, but takes 3",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_that_are_refused(arrays, options, said, folder, capsys):
    save(**arrays)
    assert convert("weights.safetensors", "model.onnx", *options) == 2
    refused_in_one_line(capsys, said)
    assert [path.name for path in folder.iterdir()] == ["weights.safetensors"]


def refused_in_one_line(capsys, said):
    printed = capsys.readouterr()
    assert not printed.out
    (line,) = printed.err.splitlines()
    assert line.startswith("mlx-recurrent convert: error: ") and said in line, line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.onnx", "w.safetensors"], "No such file: 'none.onnx'"),
        (["model.onnx", "none/w.safetensors"], "No such folder: 'none'"),
        (["model.onnx", "folder.safetensors"], "Is a folder: 'folder.safetensors'"),
        (["model.onnx", "old.safetensors"], "File exists (--overwrite replaces it)"),
        (["model.onnx", "model.npz"], "'model.npz' must end in .onnx or .safetensors"),
        (["model", "w.safetensors"], "'model' must end in .onnx or .safetensors"),
        (["model.onnx", "other.onnx"], "must be of different kinds, but both end in"),
        (
            ["model.onnx", "w.safetensors", "--merge", "sum"],
            "--merge must not be",
        ),
        (["model.onnx", "w.safetensors", "--layout", "0"], "--layout must not be giv"),
        (
            ["model.onnx", "w.safetensors", "--node", "x"],
            "--node must be a recurrent node",
        ),
        (["damaged.onnx", "old.safetensors", "--overwrite"], "'damaged.onnx'"),
        (["double.onnx", "old.safetensors", "--overwrite"], "to be written by MLX to"),
        (["damaged.safetensors", "new.onnx"], "is no valid safetensors file"),
        (["written.safetensors", "new.onnx", *TANH], "says itself what the network is"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments_that_are_refused(arguments, said, folder, capsys):
    to_onnx(RNN(D, H), "model.onnx")
    to_onnx(in_dtype(RNN(D, H), mx.float64), "double.onnx")
    convert("model.onnx", "written.safetensors")
    for name in ("damaged.onnx", "damaged.safetensors", "old.safetensors"):
        (folder / name).write_bytes(b"old")
    (folder / "folder.safetensors").mkdir()
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    capsys.readouterr()
    assert convert(*arguments) == 2
    refused_in_one_line(capsys, said)
    assert before == {p: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_layout_zero_is_an_option_like_the_other(folder, capsys):
    to_onnx(RNN(D, H), "model.onnx")
    assert convert("model.onnx", "w.safetensors", "--layout", "1") == 2
    refused_in_one_line(capsys, "--layout must not be given for a .onnx file")


def network_of(**changes):
    network = {"kind": "RNN", "name": "Tanh", "alpha": None, "beta": None, "clip": None}
    return {"version": 1, "network": {**network, **changes}}


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "[]",
        "null",
        "{",
        "[" * 100_000,
        {"version": 2, "network": {}},
        {"version": 1, "network": []},
        {"version": 1, "network": {"kind": "Stack", "residual": False, "layers": []}},
        {"version": 1, "network": {"kind": ["RNN"]}},
        network_of(name="Eval"),
        network_of(name=None),
        network_of(clip="1"),
        network_of(clip=-1),
        network_of(name="Affine"),
        network_of(code="print()"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_metadata_that_are_damaged(metadata, capsys):
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    held = {"mlx_recurrent": text}
    mx.save_safetensors("weights.safetensors", layer_arrays(), held)
    assert convert("weights.safetensors", "model.onnx") == 2
    refused_in_one_line(capsys, "'weights.safetensors' ")


def test_damaged_weights(folder, rng, capsys):
    to_onnx(NETWORKS["stack"](), "model.onnx")
    convert("model.onnx", "weights.safetensors")
    content = (folder / "weights.safetensors").read_bytes()
    header = int.from_bytes(content[:8], "little") + 8
    for _ in range(60):
        damaged = bytearray(content)
        if rng.random() < 0.5:
            del damaged[int(rng.integers(len(content))) :]
        elif damaged:
            damaged[int(rng.integers(header))] = int(rng.integers(256))
        (folder / "weights.safetensors").write_bytes(damaged)
        capsys.readouterr()
        code = convert("weights.safetensors", "back.onnx", "--overwrite")
        assert code in (0, 2)
        if code:
            refused_in_one_line(capsys, "'weights.safetensors' ")


def test_without_onnx(monkeypatch, folder, capsys):
    to_onnx(RNN(D, H), "model.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert convert("model.onnx", "w.safetensors") == 2
    refused_in_one_line(capsys, "from_onnx needs onnx")


def test_the_command_itself(folder):
    to_onnx(RNN(D, H), "model.onnx")
    run = command("convert", "model.onnx", "w.safetensors")
    assert run.returncode == 0 and not run.stderr, run.stderr
    assert run.stdout.splitlines()[0] == "w.safetensors holds"
    run = command("convert", "model.onnx", "w.safetensors")
    assert run.returncode == 2 and "Traceback" not in run.stderr
    assert len(run.stderr.splitlines()) == 1
    run = command("convert", "model.onnx", "x.safetensors", MLX_RECURRENT_ISA="sse9")
    assert run.returncode == 1 and "doctor says more" in run.stderr


def test_help(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["convert", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for option in (
        *("SOURCE", "TARGET", "--overwrite", "--node", "--nonlinearity", "--alpha"),
        *("--beta", "--clip", "--merge", "--residual", "--layout", "--opset"),
        *("--sequence-lens", "--initial-h", "--sizes"),
    ):
        assert option in text
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "convert" in capsys.readouterr().out
