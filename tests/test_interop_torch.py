"""Layers made of PyTorch's, and PyTorch's made of layers."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from conftest import DTYPES, draw
from interchange import check, equal_weights, states_for
from mlx_recurrent import GRU, LSTM, RNN, Bidirectional, Stack
from mlx_recurrent.interop import Reversed, from_torch, to_torch
from networks import each_layer, in_dtype
from tolerances import agree

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

N, L, D, H = 3, 7, 5, 6


def to_torch_dtype(dtype):
    return getattr(torch, str(dtype).rpartition(".")[2])


def names_of(layer):
    """PyTorch's name of each of our parameters."""
    kinds = {"Wxh": "weight_ih", "Whh": "weight_hh", "bias": "bias_ih"}
    kinds |= {"Wx": "weight_ih", "Wh": "weight_hh", "b": "bias_ih", "bhn": "bias_hh"}
    names = {}
    for name, _ in tree_flatten(layer.parameters()):
        parts = name.split(".")
        i = parts[1] if "layers" in parts else 0
        suffix = "_reverse" if "backward" in parts else ""
        names[name] = f"{kinds[parts[-1]]}_l{i}{suffix}"
    return names


def runner(module, layer, lengths=None):
    """The module as `check` calls it."""

    def run(x, hidden, c, last):
        count = 2 if isinstance(module, torch.nn.LSTM) else 1
        x = torch.tensor(x, requires_grad=True)
        hidden = [
            torch.tensor(np.stack(hidden[i::count]), requires_grad=True)
            for i in range(count)
        ]
        given = x if module.batch_first else x.transpose(0, 1)
        if lengths is not None:
            given = torch.nn.utils.rnn.pack_padded_sequence(
                given, lengths, module.batch_first, enforce_sorted=False
            )
        outputs, states = module(given, hidden[0] if count == 1 else tuple(hidden))
        states = [states] if count == 1 else states
        if lengths is not None:
            outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(
                outputs, module.batch_first, total_length=L
            )
        if not module.batch_first:
            outputs = outputs.transpose(0, 1)
        total = (outputs * torch.tensor(c)).sum()
        for i, state in enumerate(states):
            total = total + (state * torch.tensor(np.stack(last[i::count]))).sum()
        total.backward()
        gradients = {"x": x.grad.numpy()}
        for name, theirs in names_of(layer).items():
            gradient = getattr(module, theirs).grad.numpy()
            # Of two biases the second counts where the reset multiplies it.
            gradients[name] = gradient[-H:] if name.endswith("bhn") else gradient
        flat = [None] * len(last)
        for i, state in enumerate(states):
            flat[i::count] = list(state.detach().numpy())
        return outputs.detach().numpy(), flat, gradients

    return run


@pytest.mark.parametrize("std", [1.0, 10.0], ids=["random", "saturating"])
@pytest.mark.parametrize("lengths", [None, [7, 1, 4]], ids=["full", "packed"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False, "dtype": torch.float64},
        {"nonlinearity": "relu", "batch_first": False},
        {"bidirectional": True},
        {"num_layers": 3, "dtype": torch.float64},
        {"num_layers": 2, "bidirectional": True, "nonlinearity": "relu"},
    ],
    ids=str,
)
@each_layer
def test_agreement(rng, seed, kind, options, lengths, std):
    torch.manual_seed(seed)
    options = {"batch_first": True, **options}
    if kind is not RNN:
        options.pop("nonlinearity", None)
    module = getattr(torch.nn, kind.__name__)(D, H, **options)
    dtype = mx.float64 if options.get("dtype") else mx.float32
    layer = from_torch(module)
    x = draw(rng, (N, L, D), dtype, std)
    activation = options.get("nonlinearity", "tanh")
    check(
        rng,
        layer,
        x,
        states_for(rng, layer, N, dtype),
        runner(module, layer, lengths),
        lengths,
        activation=activation,
    )
    # And back, with the sum of the biases.
    again = to_torch(layer, batch_first=options["batch_first"])
    assert again.state_dict().keys() == module.state_dict().keys()
    equal_weights(from_torch(again), layer)
    assert kind is not RNN or again.nonlinearity == activation
    for theirs in (module, again):
        theirs.zero_grad()
    check(
        rng,
        layer,
        x,
        states_for(rng, layer, N, dtype),
        runner(again, layer, lengths),
        lengths,
        activation=activation,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "layer",
    [
        lambda: RNN(D, H),
        lambda: RNN(D, H, bias=False, nonlinearity=nn.ReLU()),
        lambda: Bidirectional(RNN(D, H)),
        lambda: Stack.build(D, H, 2, bidirectional=True, dropout=0.25),
        lambda: Stack.build(D, H, 3, nonlinearity=nn.relu),
        lambda: GRU(D, H),
        lambda: GRU(D, H, bias=False),
        lambda: Stack.build(D, H, 2, bidirectional=True, dropout=0.25, layer=GRU),
        lambda: LSTM(D, H),
        lambda: Bidirectional(LSTM(D, H, bias=False)),
        lambda: Stack.build(D, H, 2, bidirectional=True, layer=LSTM),
    ],
    ids=[
        *("one", "relu", "both ways", "stack of both", "stack"),
        *("GRU", "GRU without bias", "stack of GRUs both ways"),
        *("LSTM", "LSTM both ways", "stack of LSTMs both ways"),
    ],
)
def test_round_trip(layer, dtype):
    layer = in_dtype(layer(), dtype)
    module = to_torch(layer)
    assert module.batch_first and module.weight_hh_l0.dtype == to_torch_dtype(dtype)
    again = from_torch(module)
    equal_weights(again, layer)
    assert type(again) is type(layer)
    nonlinearity = getattr(module, "nonlinearity", None)
    state = from_torch(module.state_dict(), nonlinearity=nonlinearity)
    equal_weights(state, layer)


@each_layer
def test_biases_are_added(rng, kind):
    """By hand: of a pair the sum, but for what a GRU's reset multiplies."""
    module = getattr(torch.nn, kind.__name__)(D, H)
    given, state = (
        getattr(module, f"bias_{side}_l0").detach().numpy() for side in ("ih", "hh")
    )
    layer = from_torch(module)
    if kind is GRU:
        assert np.array_equal(layer.bhn, state[2 * H :])
        state = np.concatenate([state[: 2 * H], np.zeros(H, np.float32)])
    assert np.array_equal(layer.b if kind is GRU else layer.bias, given + state)


def test_weights_are_copies():
    module = torch.nn.RNN(D, H)
    layer = from_torch(module)
    before = mx.array(layer.Wxh)
    with torch.no_grad():
        module.weight_ih_l0.zero_()
    assert mx.array_equal(layer.Wxh, before)


@pytest.mark.parametrize("kind", [GRU, LSTM])
def test_gated_cells(rng, kind):
    cell = getattr(torch.nn, f"{kind.__name__}Cell")(D, H)
    layer = from_torch(cell)
    equal_weights(from_torch(cell.state_dict()), layer)
    again = to_torch(layer, cell=True)
    assert type(again) is type(cell)
    x, states = draw(rng, (N, D), mx.float32), states_for(rng, layer, N)
    states = states if kind is LSTM else [states]
    mine = layer.step(x, *states)
    x, *states = (torch.tensor(np.array(a)) for a in (x, *states))
    for theirs in (cell, again):
        other = theirs(x, tuple(states) if kind is LSTM else states[0])
        pairs = zip(mine, other, strict=True) if kind is LSTM else [(mine, other)]
        for a, b in pairs:
            agree(a, mx.array(b.detach().numpy()))


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_cells(rng, nonlinearity):
    cell = torch.nn.RNNCell(D, H, nonlinearity=nonlinearity)
    layer = from_torch(cell)
    equal_weights(from_torch(cell.state_dict(), nonlinearity=nonlinearity), layer)
    again = to_torch(layer, cell=True)
    assert isinstance(again, torch.nn.RNNCell)
    x, hidden = draw(rng, (N, D), mx.float32), draw(rng, (N, H), mx.float32)
    mine = layer.step(x, hidden)
    for theirs in (cell, again):
        other = theirs(*(torch.tensor(np.array(a)) for a in (x, hidden)))
        agree(mine, mx.array(other.detach().numpy()))


@pytest.mark.parametrize("residual", [False, True])
def test_several_layers_step_by_step(rng, residual):
    """In real time from PyTorch's weights, and in the graph."""
    module = torch.nn.RNN(H, H, num_layers=2, batch_first=True)
    model = from_torch(module)
    model.residual = residual
    x = draw(rng, (N, L, H), mx.float32)
    expected = theirs = torch.tensor(np.array(x))
    with torch.no_grad():
        states = []
        for i in range(2):
            one = torch.nn.RNN(H, H, batch_first=True)
            weights = {
                k[:-1] + "0": v
                for k, v in module.state_dict().items()
                if k.endswith(str(i))
            }
            one.load_state_dict(weights)
            theirs, state = one(expected)
            expected = theirs + expected if residual else theirs
            states.append(state[0])
    expected = [mx.array(a.numpy()) for a in (expected, *states)]
    stream = model.stream([mx.zeros((N, H))] * 2)
    chunks = [stream(x[:, :2]), *(stream(x[:, t])[:, None] for t in range(2, L))]
    for a, b in zip([np.concatenate(chunks, 1), *stream.state], expected, strict=True):
        agree(mx.array(a), b)
    states, ys = None, []
    for t in range(L):
        y, states = model.step(x[:, t], states)
        ys.append(y)
    for a, b in zip([mx.stack(ys, 1), *states], expected, strict=True):
        agree(a, b)


def test_what_else_is_carried(rng):
    module = torch.nn.RNN(D, H, num_layers=2, dropout=0.5)
    layer = from_torch(module)
    assert layer.training and layer.dropout.training
    assert to_torch(layer).dropout == 0.5 and to_torch(layer).training
    assert not from_torch(module.eval()).dropout.training
    assert not to_torch(from_torch(module)).training
    module.requires_grad_(False)
    equal_weights(from_torch(module), layer)
    # Its dropout is between no layers.
    assert to_torch(Stack([RNN(D, H)], dropout=0.5)).dropout == 0
    state = torch.get_rng_state()
    to_torch(layer)
    assert torch.equal(state, torch.get_rng_state())


def test_parametrized_weights(rng):
    module = torch.nn.RNN(D, H, batch_first=True)
    torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    with torch.no_grad():
        module.parametrizations.weight_hh_l0.original0.mul_(0.25)
    x = draw(rng, (N, L, D), mx.float32)
    outputs, _ = module(torch.tensor(np.array(x)))
    agree(from_torch(module)(x), mx.array(outputs.detach().numpy()))


def test_state_dict_of_arrays(tmp_path):
    """As MLX reads it from a file, without PyTorch."""
    module = torch.nn.RNN(D, H, num_layers=2)
    arrays = {name: a.numpy() for name, a in module.state_dict().items()}
    equal_weights(from_torch(arrays), from_torch(module))
    mx.save_safetensors(
        str(tmp_path / "rnn.safetensors"), {k: mx.array(v) for k, v in arrays.items()}
    )
    loaded = mx.load(str(tmp_path / "rnn.safetensors"))
    equal_weights(from_torch(loaded), from_torch(module))


class Larger(torch.nn.Module):
    """A model with recurrent layers in it."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Sequential()
        self.encoder.rnn = torch.nn.RNN(D, H, 2, bidirectional=True, batch_first=True)
        self.decoder = torch.nn.RNNCell(2 * H, H, nonlinearity="relu")
        self.out = torch.nn.Linear(H, 2)
        self.lstm = torch.nn.LSTM(D, H)
        self.again = self.decoder


@pytest.mark.parametrize("wrapped", ["", "module."])
@pytest.mark.parametrize("dot", ["", "."])
def test_prefix(rng, wrapped, dot):
    model = Larger()
    x = draw(rng, (3, 5, D), mx.float32)
    outputs, _ = model.encoder.rnn(torch.tensor(np.array(x)))
    whole = torch.nn.DataParallel(model) if wrapped else model
    arrays = {name: mx.array(a.numpy()) for name, a in whole.state_dict().items()}
    for given in (whole, whole.state_dict(), arrays):
        layer = from_torch(given, prefix=f"{wrapped}encoder.rnn{dot}")
        assert isinstance(layer, Stack)
        agree(layer(x), mx.array(outputs.detach().numpy()))
        relu = None if given is whole else "relu"
        for name in ("decoder", "again"):
            cell = from_torch(given, prefix=f"{wrapped}{name}{dot}", nonlinearity=relu)
            equal_weights(cell, from_torch(model.decoder))
            assert cell.plan(mx.zeros((5, 2 * H))).reason.startswith("relu")


FOUND = r" \(of a larger model give a layer's prefix: "


@pytest.mark.parametrize(
    "given, prefix, error, message",
    [
        ("module", "", TypeError, f"but is .*Larger{FOUND}'encoder.rnn', 'decoder'"),
        (
            "state",
            "",
            ValueError,
            f"such as weight_ih_l0, but holds 'e.*{FOUND}'encoder.rnn'",
        ),
        ("module", "rnn", ValueError, f"prefix must be .*'rnn'{FOUND}'encoder.rnn', '"),
        ("state", "rnn.", ValueError, f"prefix must be .*'rnn'{FOUND}'encoder.rnn', '"),
        ("module", "encoder", TypeError, f"'encoder' is .*{FOUND}'encoder.rnn', 'dec"),
        ("state", "encoder", ValueError, f"holds 'encoder.rnn.w.*{FOUND}'encoder.rnn'"),
        ("module", "encodr.rnn", ValueError, f"'encodr.rnn'{FOUND}'encoder.rnn', '"),
        ("state", "encodr.rnn", ValueError, f"'encodr.rnn'{FOUND}'encoder.rnn', '"),
        ("module", "out", TypeError, f"'out' is torch.*Linear{FOUND}'"),
        ("state", "out", ValueError, f"holds 'out.weight'{FOUND}'"),
        ("parallel", "decoder", ValueError, f"{FOUND}'module.decoder', 'module.e"),
        ("plain", "rnn", ValueError, f"'rnn'{FOUND}''"),
        ("plain state", "rnn", ValueError, f"'rnn'{FOUND}''"),
        ("without", "rnn", ValueError, "is 'rnn', and there is no torch.nn.RNN, GRU"),
        ("checkpoint", "", ValueError, "holds a dict as 'model': give the one with"),
        ("checkpoint", "rnn", ValueError, "holds a dict as 'model': give the one with"),
        ("state", None, TypeError, "prefix must be a string, but is NoneType"),
        ("text", "rnn", TypeError, "but 'rnn' is str"),
    ],
)
def test_refused_prefixes(given, prefix, error, message):
    model = Larger()
    module = {
        "module": model,
        "state": model.state_dict(),
        "parallel": torch.nn.DataParallel(model),
        "plain": torch.nn.RNN(D, H),
        "plain state": state(),
        "without": torch.nn.Linear(D, H).state_dict(),
        "checkpoint": {"epoch": 3, "model": model.state_dict()},
        "text": "rnn",
    }[given]
    with pytest.raises(error, match=message):
        from_torch(module, prefix=prefix)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_scripted_modules_are_refused():
    module = torch.jit.script(torch.nn.RNN(D, H))
    with pytest.raises(TypeError, match=r"but is torch\.jit.*RecursiveScriptModule"):
        from_torch(module)
    with pytest.raises(
        ValueError, match=r"but is 'rnn', and there is no torch\.nn\.RNN"
    ):
        from_torch(module, prefix="rnn")


def hooked():
    from torch.nn.utils import prune

    module = torch.nn.RNN(D, H)
    prune.l1_unstructured(module, "weight_hh_l0", 0.5)
    return module


def state(**changes):
    made = {k: v.numpy() for k, v in torch.nn.RNN(D, H).state_dict().items()}
    made |= changes
    return {name: a for name, a in made.items() if a is not None}


def watched(kind):
    module = torch.nn.RNN(D, H)
    getattr(module, f"register_{kind}")(lambda module, *given: None)
    return module


def tied():
    module = torch.nn.RNN(H, H, num_layers=2)
    module.weight_hh_l1 = module.weight_hh_l0
    return module


def patched():
    module = torch.nn.RNN(D, H)
    module.forward = lambda x: x
    return module


def lopsided(*missing):
    weights = torch.nn.RNN(D, H, bidirectional=True).state_dict()
    return {name: a for name, a in weights.items() if name not in missing}


class Other(torch.nn.RNN):
    def forward(self, x):
        return x


@pytest.mark.parametrize(
    "module, error, message",
    [
        (
            lambda: torch.nn.LSTM(D, H, proj_size=3),
            ValueError,
            r"module must have no projections \(proj_size\), .* has proj_size=3",
        ),
        (
            lambda: torch.nn.LSTM(D, H, proj_size=3).state_dict(),
            ValueError,
            r"module must have no projections .* but has weight_hr_l0",
        ),
        (
            lambda: {
                **torch.nn.LSTM(D, H).state_dict(),
                **{
                    name.replace("l0", "l1"): a
                    for name, a in torch.nn.GRU(H, H).state_dict().items()
                },
            },
            ValueError,
            "layers of one kind, but holds those of GRU and LSTM",
        ),
        (lambda: torch.nn.Linear(D, H), TypeError, r"but is torch\.nn\.\S+\.Linear$"),
        (lambda: Other(D, H), TypeError, r"but is \S+\.Other$"),
        (patched, TypeError, r"but is torch\.nn\.\S+\.RNN with another forward$"),
        (hooked, ValueError, r"weight_hh_l0 must be a parameter, but a hook"),
        (
            lambda: watched("forward_hook"),
            ValueError,
            r"must have no forward hooks, but has _forward_hooks",
        ),
        (
            lambda: watched("forward_pre_hook"),
            ValueError,
            r"must have no forward hooks, but has _forward_pre_hooks",
        ),
        (
            tied,
            ValueError,
            r"weight_hh_l1 must belong to one layer, but is weight_hh_l0 too",
        ),
        (
            lambda: lopsided("bias_hh_l0_reverse"),
            ValueError,
            r"module must hold bias_hh_l0_reverse, but does not",
        ),
        (
            lambda: lopsided("bias_ih_l0", "bias_hh_l0"),
            ValueError,
            r"module must hold bias_ih_l0, but does not",
        ),
        (
            lambda: torch.nn.RNN(D, H, device="meta"),
            ValueError,
            r"weight_ih_l0 must have values, but is on PyTorch's meta device",
        ),
        (
            lambda: torch.nn.RNN(D, H, num_layers=2, dropout=1.0),
            ValueError,
            r"dropout must be",
        ),
        (dict, ValueError, r"module must hold weights, but is empty"),
        (
            lambda: {"encoder.rnn.weight_ih_l0": np.zeros((H, D))},
            ValueError,
            r"but holds 'encoder\.rnn\.weight_ih_l0'",
        ),
        (
            lambda: state(weight_hh_l0=np.zeros((H, 4))),
            ValueError,
            r"weight_hh_l0 must be \(H, H\), .* but they are \(6, 4\) and \(6, 5\)",
        ),
        (
            lambda: state(weight_hh_l0=np.zeros((4 * H, H))),
            ValueError,
            r"weight_hh_l0 must be .* but they are \(24, 6\) and \(6, 5\)",
        ),
        (
            lambda: state(bias_hh_l0=np.zeros(4)),
            ValueError,
            r"bias_hh_l0 must be \(6,\), but is \(4,\)",
        ),
        (
            lambda: state(weight_ih_l0=np.zeros(4)),
            ValueError,
            r"weight_ih_l0 must have two axes, but is \(4,\)",
        ),
        (
            lambda: state(weight_hh_l0=None),
            ValueError,
            r"module must hold weight_hh_l0, but does not",
        ),
        (
            lambda: state(weight_ih_l0_reverse=np.zeros((H, D))),
            ValueError,
            r"module must hold weight_hh_l0_reverse, but does not",
        ),
        (
            lambda: state(weight_ih_l999999999999=np.zeros((H, D))),
            ValueError,
            r"every layer from _l0 on, but holds those of \[0, 999999999999\]",
        ),
        (
            lambda: state(weight_ih=np.zeros((H, D))),
            ValueError,
            r"holds both, or odd names",
        ),
        (
            lambda: state(weight_ih_l0=np.zeros((H, D), np.int32)),
            ValueError,
            r"weight_ih_l0 must be float32, float64, float16 or bfloat16, but is int32",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused(module, error, message):
    with pytest.raises(error, match=message):
        from_torch(module())


def test_hooks_that_change_no_outputs():
    module = watched("full_backward_hook")
    equal_weights(from_torch(module), from_torch(module.state_dict()))


def test_refused_nonlinearities():
    with pytest.raises(ValueError, match='nonlinearity must be "tanh" or "relu", but'):
        from_torch(state(), nonlinearity="gelu")
    with pytest.raises(
        ValueError, match=r"None for a torch.nn.LSTM, which has its own"
    ):
        from_torch(torch.nn.LSTM(D, H).state_dict(), nonlinearity="relu")
    with pytest.raises(ValueError, match="nonlinearity must be None for a module"):
        from_torch(torch.nn.RNN(D, H), nonlinearity="relu")


def odd(**arrays):
    layer = RNN(D, H)
    layer.update(arrays)
    return layer


@pytest.mark.parametrize(
    "layer, error, message",
    [
        (RNN(D, H, leak=0.5), ValueError, "layer has leak, which torch.nn.RNN does"),
        (RNN(D, H, leak=mx.ones(H)), ValueError, "layer has leak, which"),
        (RNN(D, H, zoneout=0.5), ValueError, "layer has zoneout, which"),
        (RNN(D, H, input_dropout=0.5), ValueError, "layer has input_dropout, which"),
        (
            Stack([RNN(D, H), RNN(H, H, recurrent_dropout=0.5)]),
            ValueError,
            r"layers\[1\] has recurrent_dropout, which torch.nn.RNN does not have",
        ),
        (
            Bidirectional(RNN(D, H), RNN(D, H, learn_hidden=True)),
            ValueError,
            r"layer.backward has learn_hidden, which",
        ),
        (
            RNN(D, H, nonlinearity=nn.gelu),
            ValueError,
            "layer must have the nonlinearity tanh or relu for torch.nn.RNN, but has "
            "gelu",
        ),
        (RNN(D, H, nonlinearity=mx.sigmoid), ValueError, "tanh or relu"),
        (
            Bidirectional(RNN(D, H), merge="sum"),
            ValueError,
            "layer must have the merge \"concat\" for torch.nn.RNN, but has 'sum'",
        ),
        (Bidirectional(RNN(D, H), merge=mx.add), ValueError, "but has 'add'"),
        (
            Stack.build(D, H, 2, residual=True),
            ValueError,
            "layer has residual, which torch.nn.RNN does not have",
        ),
        (
            Stack([RNN(D, 4), RNN(4, H)]),
            ValueError,
            r"layers\[1\] has hidden_size 6 and layers\[0\] 4, but torch.nn.RNN has "
            "one for all",
        ),
        (
            Stack([RNN(D, H), RNN(H, H, nonlinearity=nn.relu)]),
            ValueError,
            r"layers\[1\] has nonlinearity relu and layers\[0\] tanh",
        ),
        (
            Bidirectional(RNN(D, H), RNN(D, H, bias=False)),
            ValueError,
            r"layer.backward has bias False and layer.forward True",
        ),
        (
            Stack([RNN(D, H), in_dtype(RNN(H, H), mx.float16)]),
            ValueError,
            r"layers\[1\] has dtype float16 and layers\[0\] float32",
        ),
        (
            GRU(D, H, reset_after=False),
            ValueError,
            "layer has reset_after=False, which torch.nn.GRU does not have",
        ),
        (
            LSTM(D, H, learn_hidden=True),
            ValueError,
            "layer has learn_hidden, which torch.nn.LSTM does not have",
        ),
        (
            LSTM(D, H, zoneout=(0.0, 0.5)),
            ValueError,
            "layer has zoneout, which torch.nn.LSTM does not have",
        ),
        (
            Stack([LSTM(D, H), GRU(H, H)]),
            ValueError,
            r"layers\[1\] has layers of the kind GRU and layers\[0\] LSTM, but torch",
        ),
        (
            Stack([RNN(D, H), Bidirectional(RNN(H, H))]),
            ValueError,
            r"layers\[1\] must run in as many directions as layers\[0\]",
        ),
        (
            Stack([Stack([RNN(D, H)])]),
            TypeError,
            r"layers\[0\] must be an mlx_recurrent.RNN, GRU or LSTM, but is \S*Stack",
        ),
        (
            Stack([RNN(D, H), Reversed(RNN(H, H))]),
            TypeError,
            r"layers\[1\] must be an mlx_recurrent.RNN, GRU or LSTM, but .*Reversed",
        ),
        (
            nn.RNN(D, H),
            TypeError,
            "layer must be an mlx_recurrent.RNN, GRU or LSTM, Bidirectional or Stack, "
            "but is mlx.nn",
        ),
        (
            odd(bias=mx.zeros((1, H))),
            ValueError,
            r"layer.bias must be \(6,\) where Wxh is \(6, 5\), but is \(1, 6\)",
        ),
        (
            odd(Wxh=mx.zeros(H)),
            ValueError,
            r"layer.Wxh must have two axes, but is \(6,\)",
        ),
        (
            odd(Wxh=mx.zeros((H, D), mx.float16)),
            ValueError,
            "layer must have weights of one dtype, but has",
        ),
        (
            in_dtype(RNN(D, H), mx.complex64),
            ValueError,
            "layer must have weights in float32, .* but has complex64",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_layers_that_pytorch_does_not_have(layer, error, message):
    with pytest.raises(error, match=message):
        to_torch(layer)


@pytest.mark.parametrize(
    "make", [lambda layer: Stack([RNN(D, H), layer]), Bidirectional, Reversed]
)
def test_a_layer_of_pytorch_among_those_of_mlx(make):
    with pytest.raises(TypeError, match=r"layer of MLX, but is .*torch.*from_torch"):
        make(torch.nn.RNN(H, H))


def test_refused_arguments():
    with pytest.raises(TypeError, match="LSTM for cell=True, but is mlx_rec"):
        to_torch(Stack.build(D, H, 2), cell=True)
    with pytest.raises(TypeError, match="batch_first must be"):
        to_torch(RNN(D, H), batch_first="yes")
    replaced = Stack.build(D, H, 2)
    replaced.dropout = nn.Identity()
    with pytest.raises(ValueError, match=r"layer.dropout must be an mlx.nn.Dropout"):
        to_torch(replaced)
