"""The layer in the place of the installed ``mlx.nn.RNN``: everything but its values."""

import copy
import itertools
import pickle
import re

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

import mlx_recurrent
import reference
from conftest import array, draw, unreadable, upstream_layer
from mlx_recurrent import RNN
from tolerances import all_close, close, equal, wide

KINDS = {
    "float32": mx.float32,
    "float16": mx.float16,
    "bfloat16": mx.bfloat16,
    "float64": mx.float64,
    "int32": mx.int32,
    "int8": mx.int8,
    "bool": mx.bool_,
}
FLOATS = ["float32", "float16", "bfloat16", "float64"]


def pair(*args, **kwargs):
    """Ours and upstream's layer, made from the same seed."""
    mx.random.seed(7)
    layer = RNN(*args, **kwargs)
    mx.random.seed(7)
    return layer, nn.RNN(*args, **kwargs)


def same_trees(a, b):
    a, b = dict(tree_flatten(a)), dict(tree_flatten(b))
    assert a.keys() == b.keys()
    for name in a:
        equal(a[name], b[name], name)


def named(argument):
    """Matches a message that names the argument as a word."""
    return rf"\b{argument}\b"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("D, H", [(1, 1), (5, 12), (33, 7)])
def test_parameters_from_the_same_seed(D, H, bias):
    layer, theirs = pair(D, H, bias=bias)
    same_trees(layer.parameters(), theirs.parameters())
    assert list(layer.parameters()) == list(theirs.parameters())
    if not bias:
        assert layer.bias is None


def test_construction_draws_as_much_as_upstream():
    mx.random.seed(3)
    RNN(4, 5)
    after = mx.random.normal((8,))
    mx.random.seed(3)
    nn.RNN(4, 5)
    equal(after, mx.random.normal((8,)))


def test_is_an_rnn():
    assert isinstance(RNN(3, 4), nn.RNN)
    assert issubclass(RNN, nn.RNN)


def test_positional_arguments():
    layer = RNN(3, 4, False, nn.relu)
    assert layer.bias is None and layer.nonlinearity is nn.relu


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "nonlinearity", [None, nn.relu, mx.sin, nn.LayerNorm(4), nn.PReLU()]
)
def test_repr(nonlinearity, bias):
    layer, theirs = pair(3, 4, bias=bias, nonlinearity=nonlinearity)
    assert repr(layer) == repr(theirs)


def test_repr_inside_a_model():
    ours, theirs = nn.Sequential(RNN(3, 4)), nn.Sequential(nn.RNN(3, 4))
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("nonlinearity", ["tanh", 3, 1.5, [mx.tanh], mx.array(2.0)])
def test_nonlinearity_must_be_callable(nonlinearity):
    with pytest.raises(ValueError) as theirs:
        nn.RNN(3, 4, nonlinearity=nonlinearity)
    with pytest.raises(ValueError, match=re.escape(str(theirs.value))):
        RNN(3, 4, nonlinearity=nonlinearity)


@pytest.mark.parametrize("nonlinearity", ["", 0, False, []])
def test_only_none_is_tanh(nonlinearity):
    """Upstream takes whatever is false for tanh; here it is not callable."""
    with pytest.raises(ValueError, match="must be callable"):
        RNN(3, 4, nonlinearity=nonlinearity)


@pytest.mark.parametrize(
    "module, function",
    [
        (nn.ReLU(), lambda a: mx.maximum(a, 0)),
        (nn.Sigmoid(), mx.sigmoid),
        (nn.Tanh(), mx.tanh),
        (nn.Identity(), lambda a: a),
        (nn.SiLU(), lambda a: a * mx.sigmoid(a)),
    ],
    ids=["ReLU", "Sigmoid", "Tanh", "Identity", "SiLU"],
)
def test_modules_without_parameters_are_honoured(rng, module, function):
    layer = RNN(3, 4, nonlinearity=module)
    assert layer.nonlinearity is module
    x = draw(rng, (2, 5, 3), mx.float32)
    values = x, layer.Wxh, layer.Whh, layer.bias
    exact = [a.astype(mx.float64) for a in values]
    truth = upstream_layer(*exact, function)(exact[0])
    close(layer(x), upstream_layer(*values, function)(x), wide(truth))


@pytest.mark.parametrize(
    "alias", [None, nn.tanh, mx.tanh, nn.Tanh(), lambda a: mx.tanh(a)]
)
def test_aliases_of_tanh(rng, alias):
    layer, theirs = pair(3, 4)
    layer.nonlinearity = layer.nonlinearity if alias is None else alias
    x, h = draw(rng, (2, 5, 3), mx.float32), draw(rng, (2, 4), mx.float32)
    truth = reference.rnn(*map(wide, (x, layer.Wxh, layer.Whh, layer.bias, h)))
    close(layer(x, h), theirs(x, h), truth)


def test_no_input_features(rng):
    """D = 0, where upstream fails: the projection is the bias."""
    layer, x = RNN(0, 4), mx.zeros((2, 3, 0))
    values, h = (x, layer.Wxh, layer.Whh, layer.bias), draw(rng, (2, 4), mx.float32)
    theirs = nn.RNN(1, 4)
    theirs.Whh, theirs.bias = layer.Whh, layer.bias
    expected = theirs(mx.zeros((2, 3, 1)), h)
    close(layer(x, h), expected, reference.rnn(*map(wide, (*values, h))))
    grads = mx.grad(lambda x, W: mlx_recurrent.rnn(x, W, *values[2:]).sum(), (0, 1))
    for grad, a in zip(grads(*values[:2]), values, strict=False):
        equal(grad, mx.zeros(a.shape))


@pytest.mark.parametrize("size", [0, -1])
def test_hidden_size_is_positive(size):
    """Upstream divides by zero, or takes the root of a negative number."""
    with pytest.raises(ValueError, match=named("hidden_size")):
        RNN(3, size)


@pytest.mark.parametrize("keyword", ["activation", "lengths", "stream"])
def test_no_other_keyword_of_the_layer(keyword):
    with pytest.raises(TypeError, match=keyword):
        RNN(3, 4, **{keyword: 0.5})


@pytest.mark.parametrize("keyword", ["h0", "input_size", "learn_hidden"])
def test_no_other_keyword_of_the_call(keyword):
    x, z = mx.zeros((2, 3, 3)), mx.zeros((2, 3, 4))
    layer = RNN(3, 4)
    for function in (
        lambda **k: layer(x, **k),
        lambda **k: layer.plan(x, **k),
        lambda **k: layer.step(x, **k),
        lambda **k: mlx_recurrent.rnn(x, layer.Wxh, layer.Whh, **k),
        lambda **k: mlx_recurrent.scan(z, layer.Whh, **k),
    ):
        with pytest.raises(TypeError, match=keyword):
            function(**{keyword: True})


@pytest.mark.parametrize(
    "keyword", ["leak", "zoneout", "input_dropout", "recurrent_dropout", "training"]
)
def test_what_the_layer_has_is_no_keyword_of_its_call(keyword):
    layer, x = RNN(3, 4), mx.zeros((2, 3, 3))
    for function in (layer, layer.plan, layer.step):
        with pytest.raises(TypeError, match=keyword):
            function(x, **{keyword: 0.5})


def test_return_state_is_keyword_only():
    with pytest.raises(TypeError):
        RNN(3, 4)(mx.zeros((2, 3, 3)), None, True)


@pytest.mark.parametrize("value", ["last", "", 2, None])
def test_return_state_values(value):
    with pytest.raises((ValueError, TypeError), match=named("return_state")):
        RNN(3, 4)(mx.zeros((2, 3, 3)), return_state=value)


def test_keyword_hidden(rng):
    layer, theirs = pair(3, 4)
    x, h = draw(rng, (2, 5, 3), mx.float32), draw(rng, (2, 4), mx.float32)
    equal(layer(x, hidden=h), layer(x, h))
    truth = reference.rnn(*map(wide, (x, layer.Wxh, layer.Whh, layer.bias, h)))
    close(layer(x, hidden=h), theirs(x, hidden=h), truth)


def promotion(rng, L, x, Wxh, Whh, bias, hidden):
    """Ours and upstream's output for operands of these dtypes (None: absent)."""

    def operand(shape, kind):
        if kind is None:
            return None
        values = rng.standard_normal(shape)
        if kind.startswith(("int", "bool")):
            values = np.round(values) if kind != "bool" else values > 0
        return array(values, mx.float64).astype(KINDS[kind])

    operands = [
        operand(shape, kind)
        for shape, kind in (
            ((2, L, 3), x),
            ((4, 3), Wxh),
            ((4, 4), Whh),
            ((4,), bias),
            ((2, 4), hidden),
        )
    ]
    x, Wxh, Whh, bias, hidden = operands
    layer = RNN(3, 4)
    layer.Wxh, layer.Whh, layer.bias = Wxh, Whh, bias
    theirs = upstream_layer(x, Wxh, Whh, bias)
    try:
        expected = theirs(x, hidden)
        mx.eval(expected)
    except ValueError:
        with pytest.raises((ValueError, TypeError), match=named("(Wxh|x)")):
            layer(x, hidden)
        return
    close(
        layer(x, hidden),
        expected,
        reference.rnn(*(None if a is None else wide(a) for a in operands)),
        f"L={L}",
    )


@pytest.mark.parametrize("L", [1, 2])
@pytest.mark.parametrize("weights", [*FLOATS, "int32"])
@pytest.mark.parametrize("x", KINDS)
def test_promotion_of_x_and_weights(rng, x, weights, L):
    promotion(rng, L, x, weights, weights, weights, None)
    promotion(rng, L, x, weights, weights, None, None)
    promotion(rng, L, x, weights, weights, weights, weights)


@pytest.mark.parametrize("L", [1, 2])
@pytest.mark.parametrize("weights", FLOATS)
@pytest.mark.parametrize("hidden", KINDS)
def test_promotion_of_hidden(rng, hidden, weights, L):
    promotion(rng, L, weights, weights, weights, weights, hidden)
    promotion(rng, L, "int32", weights, weights, None, hidden)


@pytest.mark.parametrize("L", [1, 2])
@pytest.mark.parametrize("bias, rest", list(itertools.permutations(KINDS, 2)))
def test_promotion_of_bias(rng, bias, rest, L):
    promotion(rng, L, rest, rest, rest, bias, None)
    promotion(rng, L, rest, rest, rest, bias, rest)


# One step without hidden has no product with Whh, so its dtype has no say there.
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("L", [1, 2])
@pytest.mark.parametrize("Whh", KINDS)
@pytest.mark.parametrize("rest", FLOATS)
def test_promotion_of_Whh(rng, rest, Whh, L, hidden):
    promotion(rng, L, rest, rest, Whh, rest, rest if hidden else None)


@pytest.mark.parametrize("kinds", list(itertools.product(FLOATS[:3], repeat=3)))
def test_promotion_of_three(rng, kinds):
    x, weights, hidden = kinds
    promotion(rng, 3, x, weights, weights, weights, hidden)


@pytest.mark.parametrize("name", ["x", "hidden", "Wxh", "Whh", "bias"])
def test_complex_raises(name):
    layer = RNN(3, 4)
    inputs = {"x": mx.zeros((2, 3, 3)), "hidden": mx.zeros((2, 4))}
    if name in inputs:
        inputs[name] = inputs[name].astype(mx.complex64)
    else:
        layer[name] = layer[name].astype(mx.complex64)
    with pytest.raises((ValueError, TypeError), match=named(name)):
        layer(**inputs)


@pytest.mark.parametrize("value", [np.zeros((2, 3, 3), np.float32), [[0.0] * 3], 1.0])
def test_x_is_an_array(value):
    with pytest.raises(TypeError):
        nn.RNN(3, 4)(value)
    with pytest.raises(TypeError, match=named("x")):
        RNN(3, 4)(value)


@pytest.mark.parametrize("value", [np.zeros((2, 4), np.float32), [0.0] * 4, 0.0])
def test_hidden_is_an_array(value):
    x = mx.zeros((2, 3, 3))
    with pytest.raises(TypeError):
        nn.RNN(3, 4)(x, value)
    with pytest.raises(TypeError, match=named("hidden")):
        RNN(3, 4)(x, value)


@pytest.mark.parametrize("shape", [(), (3,), (4,), (2, 5), (2, 3, 4), (2, 3, 0)])
def test_shapes_of_x_that_raise(shape):
    x = mx.zeros(shape)
    with pytest.raises((ValueError, IndexError)):
        mx.eval(nn.RNN(3, 4)(x))
    with pytest.raises(ValueError, match=named("x") + ".*" + re.escape(str(shape))):
        RNN(3, 4)(x)


HIDDEN_SHAPES = [
    (4,),
    (1, 4),
    (2, 4),
    (3, 4),
    (2, 1, 4),
    (5, 2, 4),
    (5, 1, 4),
    (0, 4),
    (),
    (1,),
    (3,),
    (5,),
    (2, 1),
    (2, 3),
    (2, 5),
]


@pytest.mark.parametrize("hidden_shape", HIDDEN_SHAPES)
@pytest.mark.parametrize(
    "x_shape", [(6, 3), (1, 6, 3), (2, 6, 3), (5, 2, 6, 3), (2, 1, 3)]
)
def test_shapes_of_hidden(rng, x_shape, hidden_shape):
    """Broadcast where upstream does, and an error where upstream has one."""
    layer, theirs = pair(3, 4)
    x, hidden = (draw(rng, s, mx.float32) for s in (x_shape, hidden_shape))
    try:
        expected = theirs(x, hidden)
        mx.eval(expected)
    except ValueError:
        shape = re.escape(str(hidden_shape))
        with pytest.raises(ValueError, match=named("hidden") + ".*" + shape):
            layer(x, hidden)
        return
    truth = reference.rnn(*map(wide, (x, layer.Wxh, layer.Whh, layer.bias, hidden)))
    close(layer(x, hidden), expected, truth)


@pytest.mark.parametrize(
    "name, shape",
    [("Whh", (5, 4)), ("Whh", (4, 5)), ("Whh", (4,)), ("bias", (3,)), ("bias", (5,))],
)
def test_shapes_of_weights_that_raise(name, shape):
    layer = RNN(3, 4)
    layer[name] = mx.zeros(shape)
    theirs = upstream_layer(None, layer.Wxh, layer.Whh, layer.bias)
    x = mx.zeros((2, 6, 3))
    with pytest.raises(ValueError):
        mx.eval(theirs(x))
    with pytest.raises(ValueError, match=named(name) + ".*" + re.escape(str(shape))):
        layer(x)


@pytest.mark.parametrize("shape", [(), (3,), (4, 3, 1), (7, 4, 3)])
def test_shapes_of_Wxh_that_raise(shape):
    layer = RNN(3, 4)
    layer.Wxh = mx.zeros(shape)
    with pytest.raises(ValueError, match="Wxh.*" + re.escape(str(shape))):
        layer(mx.zeros((2, 6, 3)))


@pytest.mark.parametrize("shape", [(), (1,), (1, 4), (6, 4), (2, 1, 4)])
def test_bias_broadcasts(rng, shape):
    """Upstream adds any bias that broadcasts to the projection."""
    layer = RNN(3, 4)
    layer.bias = draw(rng, shape, mx.float32)
    x = draw(rng, (2, 6, 3), mx.float32)
    theirs = upstream_layer(x, layer.Wxh, layer.Whh, layer.bias)
    truth = reference.rnn(wide(x), wide(layer.Wxh), wide(layer.Whh), wide(layer.bias))
    close(layer(x), theirs(x), truth)


def test_unused_Whh_may_have_any_shape(rng):
    """One step without hidden reads no Whh, upstream either."""
    layer = RNN(3, 4)
    layer.Whh = mx.zeros((5, 7))
    x = draw(rng, (2, 1, 3), mx.float32)
    theirs = upstream_layer(x, layer.Wxh, layer.Whh, layer.bias)
    truth = np.tanh(reference.matmul(wide(x), wide(layer.Wxh), wide(layer.bias)))
    close(layer(x), theirs(x), truth)


@pytest.mark.parametrize(
    "nonlinearity",
    [None, lambda a: mx.tanh(a), unreadable(mx.tanh)],
    ids=["native", "traced", "composed"],
)
@pytest.mark.parametrize("lead", [(), (2,), (2, 3), (0,), (2, 0)])
@pytest.mark.parametrize("hidden", [False, True])
def test_empty_sequence(hidden, lead, nonlinearity):
    """Upstream cannot; here the outputs are empty and the state is the hidden."""
    layer = RNN(3, 4, nonlinearity=nonlinearity)
    h = mx.ones((*lead, 4)) if hidden else None
    outputs, state = layer(mx.zeros((*lead, 0, 3)), h, return_state=True)
    equal(outputs, mx.zeros((*lead, 0, 4)))
    equal(state, mx.ones((*lead, 4)) if hidden else mx.zeros((*lead, 4)))
    equal(layer(mx.zeros((*lead, 0, 3)), h), outputs)
    equal(layer(mx.zeros((*lead, 0, 3)), h, return_state="only"), state)


@pytest.mark.parametrize(
    "nonlinearity",
    [None, lambda a: mx.tanh(a), unreadable(mx.tanh)],
    ids=["native", "traced", "composed"],
)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_empty_batch(dtype, nonlinearity):
    layer = RNN(3, 4, nonlinearity=nonlinearity)
    layer.set_dtype(dtype)
    equal(layer(mx.zeros((0, 5, 3), dtype)), mx.zeros((0, 5, 4), dtype))
    grads = mx.grad(lambda x: layer(x).sum())(mx.zeros((0, 5, 3), dtype))
    equal(grads, mx.zeros((0, 5, 3), dtype))


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ours_to_theirs", [True, False])
def test_weights_load_both_ways(tmp_path, ours_to_theirs, bias, suffix):
    source, target = RNN(5, 6, bias=bias), nn.RNN(5, 6, bias=bias)
    if not ours_to_theirs:
        source, target = nn.RNN(5, 6, bias=bias), RNN(5, 6, bias=bias)
    path = str(tmp_path / f"weights.{suffix}")
    source.save_weights(path)
    target.load_weights(path, strict=True)
    same_trees(target.parameters(), source.parameters())


def test_strict_loading_refuses_what_upstream_refuses():
    weights = [("Wxh", mx.zeros((4, 3))), ("Whh", mx.zeros((4, 5)))]
    for cls in (nn.RNN, RNN):
        with pytest.raises(ValueError):
            cls(3, 4).load_weights(weights)


def test_update_replaces_the_weights(rng):
    layer, theirs = pair(3, 4)
    x = draw(rng, (2, 5, 3), mx.float32)
    layer(x)
    double = tree_map(lambda a: 2 * a, layer.parameters())
    layer.update(double)
    theirs.update(double)
    truth = reference.rnn(*map(wide, (x, layer.Wxh, layer.Whh, layer.bias)))
    close(layer(x), theirs(x), truth)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float64, mx.float32])
def test_set_dtype(rng, dtype):
    layer, theirs = pair(3, 4)
    layer.set_dtype(dtype)
    theirs.set_dtype(dtype)
    same_trees(layer.parameters(), theirs.parameters())
    x = draw(rng, (2, 5, 3), dtype)
    truth = reference.rnn(*map(wide, (x, layer.Wxh, layer.Whh, layer.bias)))
    close(layer(x), theirs(x), truth)


@pytest.mark.parametrize("keys", [None, "Whh", ["Wxh", "bias"]], ids=str)
def test_freeze(keys):
    layer, theirs = pair(3, 4)
    for one in (layer, theirs):
        one.freeze(keys=keys)
    same_trees(layer.trainable_parameters(), theirs.trainable_parameters())
    assert len(tree_flatten(layer.trainable_parameters())) < 3
    for one in (layer, theirs):
        one.unfreeze()
    same_trees(layer.trainable_parameters(), theirs.trainable_parameters())


def test_train_and_eval():
    layer = RNN(3, 4)
    assert layer.training
    layer.eval()
    assert not layer.training
    layer.train()
    assert layer.training


@pytest.mark.parametrize("nonlinearity", [None, nn.LayerNorm(4), nn.PReLU()], ids=str)
def test_trees(nonlinearity):
    layer, theirs = pair(3, 4, nonlinearity=nonlinearity)
    same_trees(layer.parameters(), theirs.parameters())
    same_trees(layer.trainable_parameters(), theirs.trainable_parameters())
    for names in (
        lambda m: m.state,
        lambda m: m.children(),
        lambda m: [n for n, _ in m.named_modules()],
        lambda m: m.leaf_modules(),
    ):
        assert sorted(names(layer)) == sorted(names(theirs))


def test_a_call_leaves_nothing_on_the_layer(rng):
    layer = RNN(3, 4)
    before = dict(layer), dict(vars(layer))
    mx.eval(layer(draw(rng, (2, 5, 3), mx.float32), return_state=True))
    layer.plan(mx.zeros((2, 5, 3)))
    assert list(layer) == list(before[0]) and list(vars(layer)) == list(before[1])


@pytest.mark.parametrize(
    "clone",
    [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["copy", "deepcopy", "pickle"],
)
@pytest.mark.parametrize("nonlinearity", [None, nn.LayerNorm(4), nn.ReLU()], ids=str)
def test_clones(rng, nonlinearity, clone):
    layer = RNN(3, 4, nonlinearity=nonlinearity)
    layer.freeze(keys="Whh")
    x = draw(rng, (2, 5, 3), mx.float32)
    mx.eval(layer(x))
    other = clone(layer)
    assert type(other) is RNN and repr(other) == repr(layer)
    same_trees(other.parameters(), layer.parameters())
    same_trees(other.trainable_parameters(), layer.trainable_parameters())
    equal(other(x), layer(x))


def test_deepcopy_shares_nothing():
    layer = RNN(3, 4)
    other = copy.deepcopy(layer)
    other.Whh[0, 0] = 100.0
    assert layer.Whh[0, 0].item() != 100.0


def test_quantize_leaves_it_alone(rng):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = RNN(64, 64), nn.Linear(64, 64)

    model = Model()
    before = dict(model.rnn.parameters())
    nn.quantize(model, group_size=64, bits=4)
    assert isinstance(model.out, nn.QuantizedLinear)
    assert type(model.rnn) is RNN
    same_trees(model.rnn.parameters(), before)


def test_in_a_model(rng):
    """Three steps of upstream's optimizer, beside upstream's layer."""
    x = draw(rng, (2, 6, 3), mx.float32)

    def train(layer, dtype):
        layer.set_dtype(dtype)
        step = nn.value_and_grad(layer, lambda m, x: (m(x) ** 2).mean())
        optimizer = optim.SGD(learning_rate=0.5)
        for _ in range(3):
            loss, grads = step(layer, x.astype(dtype))
            optimizer.update(layer, grads)
        return {"loss": loss, **layer.parameters()}

    layer, theirs = pair(3, 4)
    exact = copy.deepcopy(theirs)
    truth = {n: wide(a) for n, a in train(exact, mx.float64).items()}
    all_close(train(layer, mx.float32), train(theirs, mx.float32), truth)


@pytest.mark.parametrize(
    "nonlinearity",
    [None, mx.sin, unreadable(mx.sin)],
    ids=["native", "traced", "composed"],
)
@pytest.mark.parametrize("missing", ["x", "Wxh", "Whh"])
def test_required_arrays(missing, nonlinearity):
    """D equals H, so that no shape tells a layer from a scan."""
    arrays = {"x": mx.zeros((2, 6, 4)), "Wxh": mx.eye(4), "Whh": mx.eye(4)}
    arrays |= {"bias": mx.zeros(4), missing: None}
    with pytest.raises(TypeError, match=rf"^{missing} must be"):
        mlx_recurrent.rnn(**arrays, nonlinearity=nonlinearity)


def test_layer_without_its_weight():
    layer = RNN(4, 4)
    layer.Wxh = None
    for use in (layer, layer.plan):
        with pytest.raises(TypeError, match=r"^Wxh must be"):
            use(mx.zeros((2, 6, 4)))
