"""Arguments of other frameworks: each error says what stands for them here."""

import inspect
import re

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_recurrent import (
    GRU,
    LSTM,
    RNN,
    Bidirectional,
    Linear,
    Stack,
    lstm,
    matmul,
    rnn,
    scan,
)
from mlx_recurrent.interop import Reversed

LAYER = RNN(3, 4)
X = mx.ones((2, 5, 3))
RENAMED = {
    "activation": "nonlinearity",
    "activation_fn": "nonlinearity",
    "units": "hidden_size",
    "hidden_dim": "hidden_size",
    "features": "hidden_size",
    "input_dim": "input_size",
    "in_features": "input_size",
    "use_bias": "bias",
}
OF_LAYERS = {
    "num_layers": "Stack.build(input_size, hidden_size, num_layers)",
    "bidirectional": "Bidirectional(RNN(...))",
    "batch_first": "the batch always comes first",
    "time_major": "the batch always comes first",
    "dropout": "input_dropout and recurrent_dropout",
    "device": "mx.set_default_device",
    "dtype": "layer.set_dtype",
    "param_dtype": "layer.set_dtype",
    "return_sequences": 'return_state="only"',
    "return_state": "argument of the layer's call",
    "reverse": "argument of the layer's call",
    "lengths": "argument of the layer's call",
    "mask": "argument of the layer's call",
    "go_backwards": "reverse=True",
    "stateful": "return_state=True",
    "recurrent_initializer": "mlx_recurrent.init",
    "unroll": "leave it out",
    "proj_size": "Linear",
    **{name: f"it is {here} here" for name, here in RENAMED.items()},
}
OF_CALLS = {
    "h0": "it is hidden here",
    "hx": "it is hidden here",
    "initial_state": "it is hidden here",
    "initial_carry": "it is hidden here",
    "sequence_length": "it is lengths here",
    "seq_lengths": "it is lengths here",
    "time_major": "the batch always comes first",
    "batch_first": "the batch always comes first",
    "return_sequences": 'return_state="only"',
}
CALLS = {
    "RNN": LAYER,
    "Stack": Stack([LAYER]),
    "Bidirectional": Bidirectional(LAYER),
    "Reversed": Reversed(LAYER),
    "plan": LAYER.plan,
    "rnn": lambda x, **keywords: rnn(x, LAYER.Wxh, LAYER.Whh, **keywords),
    "scan": lambda x, **keywords: scan(LAYER(x), LAYER.Whh, **keywords),
}


def refused(name, way_out):
    message = f"there is no keyword argument '{name}': "
    return pytest.raises(
        TypeError, match=re.escape(message) + ".*" + re.escape(way_out)
    )


@pytest.mark.parametrize("name", OF_LAYERS)
def test_layers(name):
    with refused(name, OF_LAYERS[name]):
        RNN(3, 4, **{name: 1})
    if name not in inspect.signature(Stack.build).parameters:
        with refused(name, OF_LAYERS[name]):
            Stack.build(3, 4, 2, **{name: 1})


@pytest.mark.parametrize("name", OF_CALLS)
@pytest.mark.parametrize("call", CALLS)
def test_calls(call, name):
    with refused(name, OF_CALLS[name]):
        CALLS[call](X, **{name: 1})


def test_what_the_others_call_otherwise():
    with refused("merge_mode", "it is merge here"):
        Bidirectional(LAYER, merge_mode="sum")
    with refused("num_layers", "Stack.build"):
        Stack([LAYER], num_layers=2)
    with refused("in_features", "it is input_dims here"):
        Linear(in_features=3, out_features=4)
    with refused("units", "it is output_dims here"):
        Linear(3, units=4)
    with refused("training", "layer.train()"):
        LAYER(X, training=True)
    with refused("stream", "mx.stream(...)"):
        Stack([LAYER])(X, stream=mx.cpu)
    with refused("leak", "give it to the constructor"):
        LAYER(X, leak=0.5)
    with refused("activation", "it is nonlinearity here"):
        rnn(X, LAYER.Wxh, LAYER.Whh, activation=nn.relu)


@pytest.mark.parametrize("make", [RNN, Stack.build, Linear])
def test_other_words_stay_refused(make):
    with pytest.raises(TypeError, match="keyword argument 'hiden'"):
        make(3, 4, **({"num_layers": 2} if make == Stack.build else {}), hiden=1)


def test_signatures_stay():
    """What a reader, help() and an editor see has no word of this."""
    for function in (RNN, Linear, Stack, Bidirectional, Reversed, Stack.__call__):
        kinds = {p.kind for p in inspect.signature(function).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds
        assert inspect.Parameter.VAR_POSITIONAL not in kinds
    assert list(inspect.signature(RNN).parameters)[:4] == [
        *inspect.signature(nn.RNN).parameters
    ]
    assert Stack.__call__.__doc__ and Bidirectional.__call__.__doc__


@pytest.mark.parametrize(
    "name, function",
    [
        ("relu", "nn.relu"),
        ("ReLU", "nn.relu"),
        ("tanh", "None or mx.tanh"),
        ("sigmoid", "nn.sigmoid"),
        ("LeakyReLU", "nn.leaky_relu"),
        ("gelu", "nn.gelu"),
        ("linear", "nn.Identity()"),
        ("of my own", "a function, such as mx.tanh or nn.relu"),
        ("partial", "a function, such as mx.tanh or nn.relu"),
        (3, "a function, such as mx.tanh or nn.relu"),
    ],
)
def test_names_of_nonlinearities(name, function):
    """MLX's own sentence is the first."""
    with pytest.raises(ValueError) as theirs:
        nn.RNN(3, 4, nonlinearity=name)
    makes = (
        lambda: RNN(3, 4, nonlinearity=name),
        lambda: Stack.build(3, 4, 2, nonlinearity=name),
        lambda: rnn(X, LAYER.Wxh, LAYER.Whh, nonlinearity=name),
        lambda: scan(LAYER(X), LAYER.Whh, nonlinearity=name),
    )
    for make in makes:
        with pytest.raises(ValueError) as raised:
            make()
        assert str(raised.value) == f"{theirs.value} Give {function}."


class Own(nn.Module):
    def __call__(self, a):
        return a


@pytest.mark.parametrize(
    "kind, named", [(nn.ReLU, "nn.ReLU"), (nn.PReLU, "nn.PReLU"), (Own, "Own")]
)
def test_classes_of_nonlinearities(kind, named):
    message = re.escape(f"is the class {named}: give {named}(), an instance")
    with pytest.raises(ValueError, match=message):
        RNN(3, 4, nonlinearity=kind)
    with pytest.raises(ValueError, match=message):
        rnn(X, LAYER.Wxh, LAYER.Whh, nonlinearity=kind)
    RNN(3, 4, nonlinearity=kind())(X)


def test_a_class_that_makes_an_array_is_a_function():
    assert RNN(3, 4, nonlinearity=mx.array)(X).shape == (2, 5, 4)


class OfAnother:
    """Such as a tensor of PyTorch."""

    array = np.ones((2, 5, 3), np.float32)

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.mark.parametrize(
    "x", [np.ones((2, 5, 3)), np.ones((2, 5, 3)).tolist(), OfAnother()], ids=type
)
def test_what_mlx_makes_an_array_of(x):
    cure = re.escape(": mx.array(x) makes one")
    for call in (*(CALLS[name] for name in CALLS if name != "scan"), Linear(3, 4)):
        with pytest.raises(TypeError, match=r"^x must be .* but is .*" + cure):
            call(x)
    with pytest.raises(TypeError, match=cure):
        LAYER.step(x)
    with pytest.raises(TypeError, match=cure):
        matmul(x, LAYER.Wxh)
    with pytest.raises(TypeError, match=r"mx.array\(hidden\) makes one"):
        LAYER(X, np.ones((2, 4)))
    assert LAYER(mx.array(x)).shape == (2, 5, 4)


@pytest.mark.parametrize("x", [None, "x", 3, (1, 2), {}], ids=str)
def test_what_it_makes_none_of(x):
    with pytest.raises(TypeError, match=r"^x must be an mlx.core.array, but is \w+$"):
        LAYER(x)


OF_LSTM = dict.fromkeys(("c0", "cx", "c_0"), "it is cell here")
OF_LSTM["h_0"] = "it is hidden here"


@pytest.mark.parametrize("name", OF_LSTM)
def test_of_a_call_of_an_lstm(name):
    layer = LSTM(3, 4)
    for use in (layer, layer.plan):
        with refused(name, OF_LSTM[name]):
            use(X, **{name: None})
    with refused(name, OF_LSTM[name]):
        lstm(X, layer.Wx, layer.Wh, **{name: None})


@pytest.mark.parametrize(
    "kind, name, way_out",
    [
        (GRU, "linear_before_reset", "it is reset_after here"),
        (GRU, "recurrent_activation", "sigmoid and tanh"),
        (LSTM, "activation", "sigmoid and tanh"),
        (LSTM, "unit_forget_bias", "init.forget_bias_"),
        (LSTM, "num_layers", "Stack.build"),
        (LSTM, "proj_size", "Linear"),
        (LSTM, "units", "it is hidden_size here"),
    ],
)
def test_of_gated_layers(kind, name, way_out):
    with refused(name, way_out):
        kind(3, 4, **{name: 1})
