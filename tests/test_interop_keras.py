"""Layers made of Keras's, and Keras's made of layers."""

import os
from importlib.util import find_spec

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from conftest import DTYPES, draw
from interchange import check, equal_weights, states_for
from mlx_recurrent import GRU, LSTM, RNN, Bidirectional, Stack
from mlx_recurrent.interop import from_keras, to_keras
from networks import in_dtype
from tolerances import agree

BACKEND = "torch" if find_spec("torch") else "jax"
if not find_spec(BACKEND):
    pytest.skip("Keras has no backend here", allow_module_level=True)
# Keras reads it when it is imported; one's own choice stays.
os.environ.setdefault("KERAS_BACKEND", BACKEND)
keras = pytest.importorskip("keras", reason="Keras is not installed")

# Keras's own get_weights, on PyTorch.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

layers = keras.layers
N, L, D, H = 3, 7, 5, 6
EVERYTHING = {"return_sequences": True, "return_state": True}


def built(layer, features=D):
    """The layer with weights, none of them zero."""
    layer.build((None, None, features))
    layer.set_weights(
        [
            np.random.default_rng(i).standard_normal(w.shape).astype(w.dtype) * 0.4
            for i, w in enumerate(layer.get_weights())
        ]
    )
    return layer


def simple(units=H, features=D, kind=layers.SimpleRNN, **options):
    return built(kind(units, **EVERYTHING, **options), features)


def both(merge, kind=layers.SimpleRNN, **options):
    one = kind(H, **EVERYTHING, **options)
    return built(layers.Bidirectional(one, merge_mode=merge))


def numpy_of(a):
    return np.array(keras.ops.convert_to_numpy(a))


def cells_of(layer):
    """The cells in the order of our parameters, with our names before them."""
    if isinstance(layer, (list, tuple)):
        return [
            (f"layers.{i}.{name}", cell)
            for i, inner in enumerate(layer)
            for name, cell in cells_of(inner)
        ]
    if isinstance(layer, layers.Bidirectional):
        return [
            ("forward.", layer.forward_layer.cell),
            ("backward.", layer.backward_layer.cell),
        ]
    if isinstance(layer.cell, layers.StackedRNNCells):
        return [(f"layers.{i}.", cell) for i, cell in enumerate(layer.cell.cells)]
    return [("", layer.cell)]


def runner(layer, mask=None):
    """The layer, or a list of layers, as `check` calls it."""
    import torch

    def run(x, hidden, c, last):
        tensors = [torch.tensor(a, requires_grad=True) for a in (x, *hidden)]
        outputs, given = tensors[0], tensors[1:]
        states = []
        for one in layer if isinstance(layer, list) else [layer]:
            count = sum(count_of(cell) for _, cell in cells_of(one))
            outputs, *found = one(outputs, initial_state=given[:count], mask=mask)
            given = given[count:]
            states += found
        total = (outputs * torch.tensor(c)).sum()
        for state, factor in zip(states, last, strict=True):
            total = total + (state * torch.tensor(factor)).sum()
        total.backward()
        gradients = {"x": tensors[0].grad.numpy()}
        for name, cell in cells_of(layer):
            for ours, gradient in gradients_of(cell).items():
                gradients[f"{name}{ours}"] = gradient
        return numpy_of(outputs), [numpy_of(s) for s in states], gradients

    return run


def count_of(cell):
    return 2 if isinstance(cell, layers.LSTMCell) else 1


def gradients_of(cell):
    """The gradients of a cell's weights by our names: a GRU's gates are z, r, h."""
    is_gru = isinstance(cell, layers.GRUCell)

    def rows(variable):
        gradient = variable.value.grad.numpy()
        if not is_gru:
            return gradient.T
        z, r, h = np.split(gradient, 3, axis=-1)
        return np.concatenate([r, z, h], axis=-1).T

    simple = isinstance(cell, layers.SimpleRNNCell)
    names = ("Wxh", "Whh") if simple else ("Wx", "Wh")
    weights = (cell.kernel, cell.recurrent_kernel)
    found = {name: rows(a) for name, a in zip(names, weights, strict=True)}
    if cell.use_bias and is_gru and cell.reset_after:
        found["b"], state = rows(cell.bias).T
        found["bhn"] = state[-cell.units :]
    elif cell.use_bias:
        found["b" if is_gru else "bias"] = rows(cell.bias)
    return found


# In float64 Keras on PyTorch has float32's precision.
CASES = {
    "one": (lambda: simple(), {}),
    "relu": (lambda: simple(activation="relu"), {"activation": "relu"}),
    "linear": (lambda: simple(activation=None), {"activation": "identity"}),
    "sigmoid": (
        lambda: simple(activation="sigmoid", use_bias=False),
        {"activation": "sigmoid"},
    ),
    "cell": (lambda: built(layers.RNN(layers.SimpleRNNCell(H), **EVERYTHING)), {}),
    "stacked cells": (
        lambda: built(
            layers.RNN([layers.SimpleRNNCell(4), layers.SimpleRNNCell(H)], **EVERYTHING)
        ),
        {},
    ),
    "list": (lambda: [simple(4), simple(H, 4, use_bias=False)], {}),
    "GRU": (lambda: simple(kind=layers.GRU), {}),
    "GRU, reset before": (lambda: simple(kind=layers.GRU, reset_after=False), {}),
    "GRU without bias": (lambda: simple(kind=layers.GRU, use_bias=False), {}),
    "LSTM": (lambda: simple(kind=layers.LSTM), {}),
    "LSTM without": (
        lambda: simple(kind=layers.LSTM, unit_forget_bias=False, use_bias=False),
        {},
    ),
    "LSTM cell": (lambda: built(layers.RNN(layers.LSTMCell(H), **EVERYTHING)), {}),
    "cells, stacked": (
        lambda: built(
            layers.RNN([layers.GRUCell(4), layers.SimpleRNNCell(H)], **EVERYTHING)
        ),
        {},
    ),
    "list of all": (
        lambda: [
            simple(4, kind=layers.LSTM),
            simple(3, 4, kind=layers.GRU),
            simple(H, 3, kind=layers.SimpleRNN),
        ],
        {},
    ),
    "both, GRU": (lambda: both("concat", layers.GRU, reset_after=False), {}),
    "both, LSTM": (lambda: both("sum", layers.LSTM), {"merge": "sum"}),
    **{
        f"both, {mode}": (
            lambda mode=mode: both(mode),
            {"merge": {"ave": "mean"}.get(mode, mode)},
        )
        for mode in ("concat", "sum", "mul", "ave")
    },
}


@pytest.mark.skipif(
    os.environ["KERAS_BACKEND"] != "torch", reason="Keras's backend is not PyTorch"
)
@pytest.mark.parametrize("std", [1.0, 10.0], ids=["random", "saturating"])
@pytest.mark.parametrize("lengths", [None, [7, 1, 4]], ids=["full", "masked"])
@pytest.mark.parametrize("name", CASES)
def test_agreement(rng, name, lengths, std):
    make, of_network = CASES[name]
    theirs = make()
    layer = from_keras(theirs)
    x = draw(rng, (N, L, D), mx.float32, std)
    hidden = states_for(rng, layer, N)
    mask = None if lengths is None else np.arange(L) < np.array(lengths)[:, None]
    check(rng, layer, x, hidden, runner(theirs, mask), lengths, **of_network)


@pytest.mark.skipif(
    os.environ["KERAS_BACKEND"] != "torch", reason="Keras's backend is not PyTorch"
)
@pytest.mark.parametrize("name", [name for name in CASES if "both" not in name])
def test_masks_with_gaps(rng, name):
    """In both directions, and before the first step, Keras gives zeros in the gaps."""
    make, of_network = CASES[name]
    theirs = make()
    layer = from_keras(theirs)
    x, hidden = draw(rng, (N, L, D), mx.float32), states_for(rng, layer, N)
    mask = rng.random((N, L)) < 0.6
    mask[:, 0] = True
    check(rng, layer, x, hidden, runner(theirs, mask), mask=mask, **of_network)


def outputs_of(model, x):
    return mx.array(numpy_of(model(np.array(x))))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "layer",
    [
        lambda: RNN(D, H, input_dropout=0.25, recurrent_dropout=0.5),
        lambda: RNN(D, H, bias=False, nonlinearity=nn.silu),
        lambda: Bidirectional(RNN(D, H), merge="mean"),
        lambda: Bidirectional(RNN(D, H), merge=None),
        lambda: Stack([RNN(D, 4), Bidirectional(RNN(4, H))], dropout=0.25),
        lambda: Stack([RNN(D, 4), RNN(4, H, nonlinearity=nn.Sigmoid())]),
        lambda: GRU(D, H, input_dropout=0.25),
        lambda: GRU(D, H, reset_after=False, recurrent_dropout=0.5),
        lambda: Bidirectional(GRU(D, H, bias=False), merge="sum"),
        lambda: LSTM(D, H, input_dropout=0.25, recurrent_dropout=0.5),
        lambda: Stack([LSTM(D, 4, bias=False), Bidirectional(LSTM(4, H))]),
        lambda: Stack([LSTM(D, 4), GRU(4, 3), RNN(3, H)]),
    ],
    ids=[
        *("dropouts", "no bias", "both ways", "pair", "stack with dropout", "stack"),
        *("GRU", "GRU reset before", "GRU both ways", "LSTM", "LSTM stack", "all"),
    ],
)
def test_round_trip(layer, dtype):
    layer = in_dtype(layer(), dtype)
    if dtype == mx.float64 and keras.backend.backend() == "jax":
        with pytest.raises(ValueError, match="float64, which Keras on JAX holds only"):
            to_keras(layer)
        return
    model = to_keras(layer)
    again = from_keras(model)
    equal_weights(again, layer)
    first = layer.layers[0] if isinstance(layer, Stack) else layer
    if isinstance(first, (RNN, GRU, LSTM)):
        assert getattr(again, "reset_after", 0) == getattr(layer, "reset_after", 0)
        for option in ("input_dropout", "recurrent_dropout"):
            other = again.layers[0] if isinstance(again, Stack) else again
            assert getattr(other, option) == getattr(first, option)
    if isinstance(layer, Stack):
        assert repr(again.dropout) == repr(layer.dropout)
    else:
        assert type(again) is type(layer)
    if isinstance(layer, Bidirectional):
        assert again.merge == layer.merge


def test_models_agree(rng):
    """Made by us, and used by Keras as its own; saved and loaded too."""
    x = draw(rng, (N, L, D), mx.float32)
    layer = Stack([RNN(D, 4), Bidirectional(RNN(4, H), merge="sum")], dropout=0.5)
    layer.eval()
    agree(layer(x), outputs_of(to_keras(layer), x))
    model = to_keras(RNN(D, H), return_sequences=False)
    assert model(np.array(x)).shape == (N, H)
    agree(from_keras(model)(x, return_state="only"), outputs_of(model, x))
    ways = to_keras(Bidirectional(RNN(D, H)), return_sequences=False)
    last = mx.concatenate(from_keras(ways)(x, return_state="only"), axis=-1)
    agree(last, outputs_of(ways, x))
    for one in (GRU(D, H), GRU(D, H, reset_after=False), LSTM(D, H)):
        theirs = outputs_of(to_keras(one), x)
        agree(one(x, return_state=True)[0], theirs)
    # One direction of several cells.
    cells = [layers.SimpleRNNCell(4), layers.SimpleRNNCell(H)]
    ways = built(layers.Bidirectional(layers.RNN(cells, return_sequences=True)))
    agree(from_keras(ways)(x), outputs_of(ways, x))


def test_trained_models(rng):
    """After some steps of training in Keras: the same numbers here, and back there."""
    model = sequential(
        layers.LSTM(4, return_sequences=True, name="a"),
        layers.Bidirectional(layers.GRU(3, return_sequences=True), name="b"),
        layers.Dense(2, name="out"),
    )
    x, y = (rng.standard_normal((N, L, n)).astype(np.float32) for n in (D, 2))
    model.compile("adam", "mse")
    model.fit(x, y, epochs=2, batch_size=1, verbose=0)
    stack = from_keras([model.get_layer("a"), model.get_layer("b")])
    theirs = model.get_layer("b")(model.get_layer("a")(x))
    agree(stack(mx.array(x)), mx.array(numpy_of(theirs)))
    agree(stack(mx.array(x)), outputs_of(to_keras(stack), x))


def test_saved_models(rng, tmp_path):
    x = draw(rng, (N, L, D), mx.float32)
    model = to_keras(Stack([RNN(D, 4), LSTM(4, 3), GRU(3, H)]))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    equal_weights(from_keras(loaded), from_keras(model))
    agree(from_keras(loaded)(x), outputs_of(model, x))


SAME = (
    "celu elu exponential gelu hard_shrink hard_sigmoid hard_silu hard_tanh leaky_relu "
    "linear log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink "
    "softmax softplus softsign tanh"
).split()


@pytest.mark.parametrize("name", SAME)
def test_activations(rng, name):
    x = 3 * draw(rng, (N, 4, D), mx.float32)
    model = built(layers.SimpleRNN(H, activation=name, return_sequences=True))
    if name == "exponential":  # which would soon be infinite
        model.set_weights([-np.abs(w) for w in model.get_weights()])
        x = mx.abs(x)
    layer = from_keras(model)
    agree(layer(x), outputs_of(model, x))
    again = to_keras(layer)
    assert again.activation is model.activation
    agree(layer(x), outputs_of(again, x))


def test_log_softmax_of_one_unit_and_of_mlx():
    """MLX's own ends the process where the axis has one element."""
    model = built(layers.SimpleRNN(1, activation="log_softmax", return_sequences=True))
    layer = from_keras(model)
    x = mx.ones((N, L, D))
    agree(layer(x), mx.zeros((N, L, 1)))
    agree(mx.compile(layer, shapeless=True)(x), mx.zeros((N, L, 1)))
    assert to_keras(layer).activation is keras.activations.log_softmax
    theirs = to_keras(RNN(D, H, nonlinearity=nn.log_softmax))
    assert theirs.activation is keras.activations.log_softmax


def test_every_activation_is_known_or_refused():
    refused = []
    for name, f in vars(keras.activations).items():
        if name.startswith("_") or name in ("get", "serialize", "deserialize"):
            continue
        try:
            from_keras(built(layers.SimpleRNN(H, activation=f)))
        except ValueError as error:
            assert f"has the activation {f.__name__}, which no" in str(error)
            refused.append(name)
        else:
            assert f.__name__ in SAME
    assert {"glu", "sparsemax", "threshold"} <= set(refused)


def own(a):
    return keras.ops.sin(a)


def test_activation_of_ones_own(rng):
    model = built(layers.SimpleRNN(H, activation=own, return_sequences=True))
    x = draw(rng, (N, L, D), mx.float32)
    agree(from_keras(model, nonlinearity=mx.sin)(x), outputs_of(model, x))
    with pytest.raises(ValueError, match="has the activation own, which no function"):
        from_keras(model)
    with pytest.raises(ValueError, match="nonlinearity must be None where every layer"):
        from_keras(simple(), nonlinearity=mx.sin)


@keras.saving.register_keras_serializable()
class Other(layers.SimpleRNN):
    pass


class OtherCell(layers.LSTMCell):
    pass


def built_cell():
    cell = layers.SimpleRNNCell(H)
    cell.build((None, D))
    return cell


def noisy():
    dropout = layers.Dropout(0.5, noise_shape=(None, 1, None))
    return [simple(), dropout, simple(features=H)]


@pytest.mark.parametrize(
    "layer, error, message",
    [
        (lambda: layers.ConvLSTM1D(H, 3), TypeError, r"layer must be .*\.ConvLSTM1D$"),
        (
            lambda: simple(kind=layers.LSTM, activation="relu"),
            ValueError,
            r"layer\.cell has the activation relu, where an mlx_recurrent.LSTM has",
        ),
        (
            lambda: simple(kind=layers.GRU, recurrent_activation="hard_sigmoid"),
            ValueError,
            r"layer\.cell has the recurrent_activation hard_sigmoid, where an mlx_",
        ),
        (lambda: Other(H), TypeError, r"but is \S+\.Other$"),
        (
            lambda: layers.RNN([built_cell(), OtherCell(H)]),
            TypeError,
            r"layer\.cell\.cells\[1\] must be .* but is \S+\.OtherCell$",
        ),
        (
            lambda: layers.Bidirectional(Other(H)),
            TypeError,
            r"layer\.forward_layer must be a Keras SimpleRNN, GRU, LSTM or RNN, but is",
        ),
        (
            lambda: keras.Sequential([simple(), layers.Dense(3)]),
            TypeError,
            r"layer\.layers\[1\] must be .* but is \S+\.Dense 'dense\S*': from_keras",
        ),
        (lambda: "rnn.keras", TypeError, "layer must be .* but is str$"),
        (
            lambda: [layers.Dropout(0.5), simple()],
            TypeError,
            r"layer\[0\] must be .* but is keras\S+\.Dropout 'dropout\S*'$",
        ),
        (
            lambda: layers.SimpleRNN(H),
            ValueError,
            r"layer\.cell is not built, so that it has no weights: call",
        ),
        (
            lambda: simple(go_backwards=True),
            ValueError,
            "layer has go_backwards=True, but here reverse=True is an argument of the "
            "call, .*: convert it with go_backwards=False",
        ),
        (
            lambda: layers.Bidirectional(
                layers.SimpleRNN(H, go_backwards=True),
                backward_layer=layers.SimpleRNN(H),
            ),
            ValueError,
            r"layer\.forward_layer must have go_backwards=False",
        ),
        (
            lambda: layers.SimpleRNN(H, stateful=True),
            ValueError,
            "layer has stateful=True, but the state is an argument of the call here",
        ),
        (
            lambda: layers.Bidirectional(layers.SimpleRNN(H, stateful=True)),
            ValueError,
            r"layer\.forward_layer has stateful=True",
        ),
        (
            lambda: [built(layers.SimpleRNN(H)), simple(features=H)],
            ValueError,
            r"layer\[0\] has return_sequences=False, but the layer after it takes a",
        ),
        (
            lambda: [simple(), simple(features=4)],
            ValueError,
            r"layers\[1\] must take the 6 features that layers\[0\] gives, but takes 4",
        ),
        (
            lambda: [twice := simple(features=H), twice],
            ValueError,
            r"layer\[1\]\.cell\.kernel must belong to one layer, but is "
            r"layer\[0\]\.cell\.kernel too",
        ),
        (
            lambda: keras.Sequential([twice := simple(features=H), twice]),
            ValueError,
            r"layers\[1\]\.cell\.kernel must belong to one layer",
        ),
        (
            lambda: built(layers.RNN([twice := layers.SimpleRNNCell(D), twice])),
            ValueError,
            r"layer\.cell\.cells\[1\]\.kernel must belong to one layer",
        ),
        (lambda: [], ValueError, "layers must hold at least one layer"),
        (noisy, ValueError, r"layer\[1\] has noise_shape"),
        (
            lambda: [simple(), layers.Dropout(0.5)],
            ValueError,
            "layer must not end with Dropout, .*: give a list of the layers before it",
        ),
        (
            lambda: [
                simple(), layers.Dropout(0.5), simple(features=H), simple(features=H)
            ],
            ValueError,
            r"layer must have one rate of dropout .* but has \[0.5, 0.0\]",
        ),
        (
            lambda: simple(recurrent_dropout=1.0),
            ValueError,
            "recurrent_dropout must be",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_refused(layer, error, message):
    with pytest.raises(error, match=message):
        from_keras(layer())


class Subclassed(keras.Model):
    """What a functional model does, written otherwise."""

    def __init__(self):
        super().__init__()
        self.rnn = layers.SimpleRNN(H, name="rnn")
        self.out = layers.Dense(2)

    def call(self, x):
        return self.out(self.rnn(x))


def sequential(*inner):
    return keras.Sequential([keras.Input((None, D)), *inner])


def functional(make):
    x = keras.Input((None, D))
    return keras.Model(x, make(x))


def rnn(name="rnn", **options):
    return layers.SimpleRNN(H, name=name, **options)


def several(name="rnn", **options):
    return rnn(name, return_sequences=True, **options)


def cells(*kinds):
    return layers.RNN([kind(H) for kind in kinds], name="rnn", return_sequences=True)


# The layer in the way, how to name what is recurrent, and the model.
LARGER = {
    "a classifier": ("Dense", ["rnn"], lambda: sequential(rnn(), layers.Dense(2))),
    "words": (
        "Embedding",
        ["rnn"],
        lambda: keras.Sequential(
            [keras.Input((None,)), layers.Embedding(9, D), rnn(), layers.Dense(2)]
        ),
    ),
    "masking": ("Masking", ["rnn"], lambda: sequential(layers.Masking(), rnn())),
    "dropout first": (
        "Dropout",
        ["rnn"],
        lambda: sequential(layers.Dropout(0.1), rnn()),
    ),
    "a norm between": (
        "BatchNormalization",
        ["a", "b"],
        lambda: sequential(several("a"), layers.BatchNormalization(), rnn("b")),
    ),
    "two and a dense": (
        "Dense",
        ["a", "b"],
        lambda: sequential(
            several("a"), layers.Dropout(0.1), rnn("b"), layers.Dense(2)
        ),
    ),
    "another cell": ("Other", ["rnn"], lambda: sequential(several(), Other(4))),
    "gru": (
        "Dense",
        ["gru"],
        lambda: sequential(layers.GRU(H, name="gru"), layers.Dense(2)),
    ),
    "each step": (
        "TimeDistributed",
        ["rnn"],
        lambda: sequential(several(), layers.TimeDistributed(layers.Dense(2))),
    ),
    "both ways": (
        "Dense",
        ["bi"],
        lambda: sequential(layers.Bidirectional(several(), name="bi"), layers.Dense(2)),
    ),
    "cells": (
        "Dense",
        ["rnn"],
        lambda: sequential(
            cells(layers.SimpleRNNCell, layers.SimpleRNNCell), layers.Dense(2)
        ),
    ),
    "functional": ("Functional", ["rnn"], lambda: functional(rnn())),
    "functional with more": (
        "Functional",
        ["rnn"],
        lambda: functional(lambda x: layers.Dense(2)(rnn()(layers.Dense(D)(x)))),
    ),
    "two beside each other": (
        "Functional",
        ["a", "b"],
        lambda: functional(lambda x: layers.Concatenate()([rnn("a")(x), rnn("b")(x)])),
    ),
    "subclassed": ("Subclassed", ["rnn"], Subclassed),
}
NESTED = {
    "a sequential": lambda: sequential(
        keras.Sequential([rnn()], name="inner"), layers.Dense(2)
    ),
    "a functional": lambda: sequential(
        keras.Model(x := keras.Input((None, D)), rnn()(x), name="inner"),
        layers.Dense(2),
    ),
}


@pytest.mark.parametrize("name", LARGER)
def test_larger_models(name):
    kind, found, make = LARGER[name]
    model = make()
    if not model.built:
        model(np.ones((2, 4, D), np.float32))
    with pytest.raises(TypeError, match=rf"\.{kind}\b") as raised:
        from_keras(model)
    message = str(raised.value)
    parts = [f'model.get_layer("{part}")' for part in found]
    ending = f": from_keras({parts[0]}) takes the recurrent layer alone"
    if parts[1:]:
        ending = f": from_keras takes {' and '.join(parts)} alone, or a list of "
    assert ending in message, message
    for inner, part in zip(found, parts, strict=True):
        theirs = model.get_layer(inner)
        layer = eval(f"from_keras({part})", {"model": model, "from_keras": from_keras})
        x = np.ones(
            (2, 4, D if inner != "b" or kind == "Functional" else H), np.float32
        )
        last = numpy_of(theirs(x))
        if theirs.return_sequences:
            last = last[:, -1]
        if isinstance(layer, (RNN, GRU)):
            agree(layer(mx.array(x), return_state="only"), mx.array(last))


@pytest.mark.parametrize("name", NESTED)
def test_nested_models(name):
    model = NESTED[name]()
    with pytest.raises(TypeError) as raised:
        from_keras(model)
    part = 'model.get_layer("inner").get_layer("rnn")'
    assert f"from_keras({part}) takes" in str(raised.value)
    layer = from_keras(eval(part, {"model": model}))
    x = np.ones((2, 4, D), np.float32)
    theirs = numpy_of(model.get_layer("inner")(x))
    agree(layer(mx.array(x), return_state="only"), mx.array(theirs))


def test_layers_in_a_list():
    """Of a model whose layers follow each other."""
    model = sequential(several("a"), layers.Dropout(0.25), rnn("b"), layers.Dense(2))
    x = np.ones((2, 4, D), np.float32)
    stack = from_keras(
        [model.get_layer("a"), layers.Dropout(0.25), model.get_layer("b")]
    )
    assert isinstance(stack, Stack) and len(stack.layers) == 2
    stack.eval()
    theirs = model.get_layer("b")(model.get_layer("a")(x))
    agree(stack(mx.array(x), return_state="only")[-1], mx.array(numpy_of(theirs)))
    chain = functional(lambda x: rnn("b")(several("a")(x)))
    agree(
        from_keras(chain.layers)(mx.array(x), return_state="only")[-1],
        mx.array(numpy_of(chain(x))),
    )


def test_a_model_without():
    with pytest.raises(
        TypeError, match=r"Dense 'dense\S*', and there is no such layer"
    ):
        from_keras(sequential(layers.Dense(2)))
    lstm = sequential(layers.Bidirectional(Other(H)), layers.Dense(2))
    with pytest.raises(TypeError, match="and there is no such layer in the model"):
        from_keras(lstm)
    steps = keras.Sequential(
        [keras.Input((3, None, D)), layers.TimeDistributed(rnn(), name="steps")]
    )
    with pytest.raises(TypeError, match=r'\(model.get_layer\("steps"\).layer\) takes'):
        from_keras(steps)


def test_a_layer_that_is_not_built():
    model = keras.Sequential([rnn(), layers.Dense(2)])
    with pytest.raises(
        TypeError, match=r'from_keras\(model.get_layer\("rnn"\)\) takes'
    ):
        from_keras(model)
    with pytest.raises(ValueError, match="is not built, so that it has no weights"):
        from_keras(model.get_layer("rnn"))


@pytest.mark.parametrize(
    "layer, error, message",
    [
        (
            RNN(D, H, leak=0.5),
            ValueError,
            r"layer has leak, which keras\.layers\.SimpleRNN does not have",
        ),
        (RNN(D, H, zoneout=0.5), ValueError, "layer has zoneout"),
        (
            Stack([RNN(D, H), RNN(H, H, learn_hidden=True)]),
            ValueError,
            r"layers\[1\] has learn_hidden",
        ),
        (
            RNN(D, H, nonlinearity=nn.gelu_approx),
            ValueError,
            "layer has the nonlinearity gelu_approx, which no activation of Keras",
        ),
        (
            RNN(D, H, nonlinearity=nn.LeakyReLU(0.1)),
            ValueError,
            r"layer has the nonlinearity mlx\.nn\S+LeakyReLU, which no",
        ),
        (
            Bidirectional(RNN(D, H), merge=mx.add),
            ValueError,
            r"layer has the merge add, which keras\.layers\.Bidirectional does not",
        ),
        (
            Bidirectional(RNN(D, H), RNN(D, 4)),
            ValueError,
            r"layer\.backward must have 6 hidden features as forward has .* but has 4",
        ),
        (
            Stack.build(D, H, 2, residual=True),
            ValueError,
            r"layer has residual, which keras\.Sequential does not have",
        ),
        (
            Stack([Stack([RNN(D, H)])]),
            TypeError,
            r"layers\[0\] must be an mlx_recurrent\.RNN, GRU or LSTM, but is",
        ),
        (nn.LSTM(D, H), TypeError, r"must be an mlx_recurrent\.RNN, GRU .* but is mlx"),
        (
            LSTM(D, H, learn_hidden=True),
            ValueError,
            r"layer has learn_hidden, which keras\.layers\.LSTM does not have",
        ),
        (
            Bidirectional(GRU(D, H), LSTM(D, H)),
            ValueError,
            r"layer\.backward must be a GRU as forward is for keras\.layers\.Bidirec",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_layers_that_keras_does_not_have(layer, error, message):
    with pytest.raises(error, match=message):
        to_keras(layer)


def test_refused_arguments():
    with pytest.raises(TypeError, match="return_sequences must be"):
        to_keras(RNN(D, H), return_sequences="yes")
