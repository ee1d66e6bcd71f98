"""accelerate() puts this package's layers in the place of MLX's, and nothing else."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

import mlx_recurrent
from conftest import draw
from mlx_recurrent import RNN, Linear, accelerate
from tolerances import all_close, close, equal, wide

KINDS = {
    kind: getattr(mlx_recurrent, kind.__name__) for kind in (nn.RNN, nn.GRU, nn.LSTM)
}


class Model(nn.Module):
    """MLX's layers in every place where a module may hold them."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.rnn = nn.RNN(4, 5)
        self.stack = [nn.RNN(5, 5), {"deep": [nn.RNN(5, 5, bias=False)]}]
        self.named = {"a": nn.RNN(5, 5), "b": nn.GELU()}
        self.pair = (nn.RNN(5, 5), nn.Tanh())
        self.again = self.rnn
        self.head = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))

    def __call__(self, x):
        x = self.again(self.rnn_in(x))
        for layer in (self.stack[0], self.stack[1]["deep"][0], self.named["a"]):
            x = layer(x)
        return self.head(self.named["b"](self.pair[0](x)))

    def rnn_in(self, x):
        return self.embedding(x.astype(mx.int32))


def in_float64(model, function):
    """What a function makes of the model while its parameters are float64."""
    model.set_dtype(mx.float64)
    result = function(model)
    mx.eval(result)
    model.set_dtype(mx.float32)
    return result


def accelerated(model, x):
    """The accelerated model and its output, which agrees with that of before."""
    truth = in_float64(model, lambda m: m(x.astype(mx.float64)))
    before = model(x)
    mx.eval(before)
    model = accelerate(model)
    got = model(x)
    close(got, before, wide(truth))
    return model, got


def test_root_is_the_return_value(rng):
    layer = nn.RNN(3, 4)
    new, _ = accelerated(layer, draw(rng, (2, 5, 3), mx.float32))
    assert type(new) is RNN and new is not layer and type(layer) is nn.RNN


def test_linear_root(rng):
    layer = nn.Linear(3, 4)
    new, _ = accelerated(layer, draw(rng, (2, 3), mx.float32))
    assert type(new) is Linear and repr(new) == repr(layer)


def test_everywhere_in_a_model():
    model = Model()
    names = [n for n, _ in tree_flatten(model.parameters())]
    x = mx.array([[1, 2, 3], [4, 5, 6]])
    new, _ = accelerated(model, x)
    assert new is model
    assert [n for n, _ in tree_flatten(model.parameters())] == names
    layers = [
        model.rnn,
        model.stack[0],
        model.stack[1]["deep"][0],
        model.named["a"],
        model.pair[0],
    ]
    assert all(type(layer) is RNN for layer in layers)
    assert [type(m) for m in model.head.layers] == [Linear, nn.ReLU, Linear]
    assert type(model.embedding) is nn.Embedding and type(model.named["b"]) is nn.GELU
    assert not [m for m in model.modules() if type(m) in (nn.RNN, nn.Linear)]


def test_a_shared_layer_stays_shared():
    model = accelerate(Model())
    assert model.again is model.rnn


def test_a_shared_list_stays_shared():
    model = nn.Module()
    model.a = [nn.RNN(3, 4)]
    model.b = model.a
    accelerate(model)
    assert model.a is model.b and type(model.a[0]) is RNN


def test_lists_and_dictionaries_at_the_root():
    layer = nn.RNN(3, 4)
    new = accelerate([layer, {"a": layer}, nn.Linear(3, 4)])
    assert type(new[0]) is RNN and new[1]["a"] is new[0] and type(new[2]) is Linear


def test_cycles():
    model = nn.Module()
    model.rnn, model.parts = nn.RNN(3, 4), []
    model.parts.append(model)
    model.parts.append({"parts": model.parts, "rnn": model.rnn})
    accelerate(model)
    assert model.parts[0] is model and model.parts[1]["parts"] is model.parts
    assert type(model.rnn) is RNN and model.parts[1]["rnn"] is model.rnn


def test_a_layer_that_holds_its_model():
    model = nn.Module()
    model.rnn = nn.RNN(3, 4)
    model.rnn.owner = model
    old = model.rnn
    accelerate(model)
    assert type(model.rnn) is RNN and model.rnn.owner is model and model.rnn is not old


def test_deep_models():
    """No recursion: depth is not bounded by Python's stack."""
    model = nn.RNN(3, 4)
    for _ in range(5000):
        model = [model]
    model = accelerate(model)
    for _ in range(5000):
        (model,) = model
    assert type(model) is RNN


@pytest.mark.parametrize("bias", [True, False])
def test_arrays_are_shared(bias):
    layer = nn.RNN(3, 4, bias=bias)
    new = accelerate(layer)
    assert new.Wxh is layer.Wxh and new.Whh is layer.Whh and new.bias is layer.bias
    layer = nn.Linear(3, 4, bias=bias)
    new = accelerate(layer)
    assert new.weight is layer.weight
    assert not bias or new.bias is layer.bias


@pytest.mark.parametrize("keys", [None, "Whh", ["Wxh", "bias"]], ids=str)
def test_frozen_names(keys):
    layer = nn.RNN(3, 4)
    layer.freeze(keys=keys)
    expected = [n for n, _ in tree_flatten(layer.trainable_parameters())]
    new = accelerate(layer)
    assert [n for n, _ in tree_flatten(new.trainable_parameters())] == expected
    new.unfreeze()
    assert len(tree_flatten(new.trainable_parameters())) == 3
    still = [n for n, _ in tree_flatten(layer.trainable_parameters())]
    assert still == expected, "the two layers share a list of frozen names"


@pytest.mark.parametrize("training", [True, False])
def test_mode(training):
    layer = nn.RNN(3, 4)
    layer.train(training)
    assert accelerate(layer).training is training


@pytest.mark.parametrize(
    "nonlinearity",
    [None, nn.relu, mx.sigmoid, mx.sin, lambda a: a * 0.5, nn.LayerNorm(4), nn.PReLU()],
)
def test_nonlinearity(rng, nonlinearity):
    layer = nn.RNN(3, 4, nonlinearity=nonlinearity)
    new, _ = accelerated(layer, draw(rng, (2, 5, 3), mx.float32))
    assert new.nonlinearity is layer.nonlinearity


def test_nonlinearity_is_what_really_ran(rng):
    """Upstream takes nn.ReLU() for false and runs tanh; so does what replaces it."""
    layer = nn.RNN(3, 4, nonlinearity=nn.ReLU())
    assert layer.nonlinearity is nn.tanh
    new, got = accelerated(layer, draw(rng, (2, 5, 3), mx.float32))
    assert new.nonlinearity is nn.tanh
    assert (got < 0).any()


def test_nonlinearity_set_later(rng):
    layer = nn.RNN(3, 4)
    layer.nonlinearity = nn.ReLU()
    new, _ = accelerated(layer, draw(rng, (2, 5, 3), mx.float32))
    assert new.plan(mx.zeros((2, 5, 3))).path == "native"


def test_inside_a_nonlinearity():
    layer = nn.RNN(3, 4, nonlinearity=nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    assert type(accelerate(layer).nonlinearity.layers[0]) is Linear


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer(kind, rng):
    """The same arrays, frozen names, mode and results, without a draw."""
    layer = kind(3, 4)
    layer.freeze(keys=["bias", "b"])
    layer.eval()
    x = draw(rng, (2, 5, 3), mx.float32)
    truth = in_float64(layer, lambda m: m(x.astype(mx.float64)))
    before, drawn = layer(x), mx.random.state[0].tolist()
    new = accelerate(layer)
    assert type(new) is KINDS[kind] and mx.random.state[0].tolist() == drawn
    assert list(new.parameters()) == list(layer.parameters())
    assert all(new[name] is layer[name] for name in layer)
    assert list(new.trainable_parameters()) == list(layer.trainable_parameters())
    assert not new.training and repr(new) == repr(layer)
    results = [new(x), before, truth]
    if kind is not nn.LSTM:
        results = [[a] for a in results]
    for got, theirs, right in zip(*results, strict=True):
        close(got, theirs, wide(right))


def test_subclasses_stay():
    class Mine(nn.RNN):
        pass

    class MyGRU(nn.GRU):
        pass

    class MyLSTM(nn.LSTM):
        pass

    class MyLinear(nn.Linear):
        pass

    model = nn.Sequential(Mine(3, 4), MyLinear(4, 4), MyGRU(4, 4), MyLSTM(4, 4))
    kinds = [type(m) for m in model.layers]
    layers = list(model.layers)
    accelerate(model)
    assert [type(m) for m in model.layers] == kinds
    assert all(a is b for a, b in zip(model.layers, layers, strict=True))


def test_quantized_layers_stay():
    model = nn.Sequential(nn.Linear(64, 64))
    nn.quantize(model)
    assert type(accelerate(model).layers[0]) is nn.QuantizedLinear


def test_twice_is_once():
    model = accelerate(Model())
    rnn, head = model.rnn, model.head.layers[0]
    assert accelerate(model) is model
    assert model.rnn is rnn and model.head.layers[0] is head


def test_private_names():
    """Such layers are no children and have no parameters, but they do run."""
    model = nn.Module()
    model._rnn = nn.RNN(3, 4)
    assert type(accelerate(model)._rnn) is RNN


def test_other_attributes_are_kept():
    layer = nn.RNN(3, 4)
    layer.name, layer.scale = "encoder", mx.array(2.0)
    new = accelerate(layer)
    assert new.name == "encoder" and new.scale is layer.scale and new.hidden_size == 4


def test_draws_nothing():
    model = Model()
    mx.random.seed(3)
    accelerate(model)
    after = mx.random.normal((4,))
    mx.random.seed(3)
    equal(after, mx.random.normal((4,)))


def test_keeps_dtypes():
    model = Model()
    model.set_dtype(mx.bfloat16)
    accelerate(model)
    assert all(p.dtype == mx.bfloat16 for _, p in tree_flatten(model.parameters()))


def test_gradients_go_on(rng):
    x = mx.array([[1, 2, 3], [4, 5, 6]])
    model = Model()
    step = nn.value_and_grad(model, lambda m: m(x).square().sum())
    before = dict(tree_flatten(step(model)[1]))
    mx.eval(before)
    truth = tree_flatten(in_float64(model, lambda m: step(m)[1]))
    accelerate(model)
    after = dict(tree_flatten(step(model)[1]))
    all_close(after, before, {n: wide(g) for n, g in truth})


@pytest.mark.parametrize("value", [None, 3, "model", nn.RNN])
def test_only_models(value):
    with pytest.raises(TypeError, match="model"):
        mlx_recurrent.accelerate(value)


class Pair(tuple):
    """A tuple that cannot be made from its items."""

    def __new__(cls, a, b):
        return super().__new__(cls, (a, b))


def test_tuples_of_another_class_stay():
    pair = Pair(nn.Linear(2, 3), nn.Linear(3, 4))
    model = nn.Module()
    model.pair, model.last = pair, nn.Linear(4, 5)
    assert accelerate(model) is model
    assert model.pair is pair and type(model.last) is Linear
