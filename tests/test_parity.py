"""Layers in the place of the installed ``mlx.nn``'s: everything but their values."""

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
from cells import CELLS, flat
from conftest import array, draw, unreadable, upstream_layer
from mlx_recurrent import GRU, LSTM, RNN
from tolerances import all_close, close, equal, wide

OF = {RNN: CELLS["rnn"], GRU: CELLS["gru"], LSTM: CELLS["lstm"]}
each_kind = pytest.mark.parametrize("kind", OF)
# Each kind with each of its weights, and with each of its states.
each_weight = pytest.mark.parametrize(
    "kind, name", [(kind, name) for kind, cell in OF.items() for name in cell.weights]
)
each_state = pytest.mark.parametrize(
    "kind, name", [(kind, name) for kind, cell in OF.items() for name in cell.states]
)
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


def pair(*args, kind=RNN, **kwargs):
    """Ours and upstream's layer, made from the same seed."""
    mx.random.seed(7)
    layer = kind(*args, **kwargs)
    mx.random.seed(7)
    return layer, OF[kind].upstream(*args, **kwargs)


def check(layer, theirs, x, **states):
    """All states of a call agree with upstream's and with the reference."""
    cell = OF[type(layer)].truth("tanh")
    given = {"x": x, **layer.parameters(), **states}
    primals = [given.get(name) for name in cell.arguments]
    truth, _ = reference.recurrence(
        cell, [None if a is None else wide(a) for a in primals]
    )
    got, expected = flat(layer(x, **states)), flat(theirs(x, **states))
    for i, each in enumerate(zip(got, expected, truth, strict=True)):
        close(*each, f"state {i}")


def same_trees(a, b):
    a, b = dict(tree_flatten(a)), dict(tree_flatten(b))
    assert a.keys() == b.keys()
    for name in a:
        equal(a[name], b[name], name)


def named(argument):
    """Matches a message that names the argument as a word."""
    return rf"\b{argument}\b"


@each_kind
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("D, H", [(1, 1), (5, 12), (33, 7)])
def test_parameters_from_the_same_seed(D, H, bias, kind):
    layer, theirs = pair(D, H, kind=kind, bias=bias)
    same_trees(layer.parameters(), theirs.parameters())
    assert list(layer.parameters()) == list(theirs.parameters())
    for name in OF[kind].weights[2:]:
        assert (getattr(layer, name) is None) != bias


@each_kind
def test_construction_draws_as_much_as_upstream(kind):
    mx.random.seed(3)
    kind(4, 5)
    after = mx.random.normal((8,))
    mx.random.seed(3)
    OF[kind].upstream(4, 5)
    equal(after, mx.random.normal((8,)))


@each_kind
def test_is_an_rnn(kind):
    assert isinstance(kind(3, 4), OF[kind].upstream)
    assert issubclass(kind, OF[kind].upstream)


def test_positional_arguments():
    layer = RNN(3, 4, False, nn.relu)
    assert layer.bias is None and layer.nonlinearity is nn.relu
    for kind in (GRU, LSTM):
        assert list(kind(3, 4, False).parameters()) == ["Wx", "Wh"]
        with pytest.raises(TypeError):
            kind(3, 4, False, 0.5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "nonlinearity", [None, nn.relu, mx.sin, nn.LayerNorm(4), nn.PReLU()]
)
def test_repr(nonlinearity, bias):
    layer, theirs = pair(3, 4, bias=bias, nonlinearity=nonlinearity)
    assert repr(layer) == repr(theirs)


@each_kind
def test_repr_inside_a_model(kind):
    ours, theirs = (nn.Sequential(made) for made in pair(3, 4, kind=kind))
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize(
    "layer, words",
    [
        (RNN(3, 4, leak=0.5, zoneout=0.25), ", leak=0.5, zoneout=0.25)"),
        (GRU(3, 4, reset_after=False), "bias=True, reset_after=False)"),
        (
            GRU(3, 4, zoneout=0.1, learn_hidden=True),
            ", zoneout=0.1, learn_hidden=True)",
        ),
        (LSTM(3, 4, zoneout=(0.1, 0)), "bias=True, zoneout=(0.1, 0.0))"),
        (LSTM(3, 4, recurrent_dropout=0.5), "bias=True, recurrent_dropout=0.5)"),
    ],
    ids=str,
)
def test_repr_of_options(layer, words):
    assert repr(layer).rstrip(")").endswith(words.rstrip(")"))


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


@each_kind
def test_no_input_features(rng, kind):
    """D = 0, where upstream fails: the projection is the bias."""
    layer, theirs = kind(0, 4), OF[kind].upstream(1, 4)
    x, wider = mx.zeros((2, 3, 0)), mx.zeros((2, 3, 1))
    for name in OF[kind].weights[1:]:
        theirs[name] = layer[name]
    states = {n: draw(rng, (2, 4), mx.float32) for n in OF[kind].states}
    check(layer, lambda x, **states: theirs(wider, **states), x, **states)
    name = OF[kind].weights[0]

    def total(x, W):
        layer[name] = W
        return flat(layer(x, **states))[0].sum()

    values = x, layer[name]
    for grad, a in zip(mx.grad(total, (0, 1))(*values), values, strict=True):
        equal(grad, mx.zeros(a.shape))


@each_kind
@pytest.mark.parametrize("size", [0, -1])
def test_hidden_size_is_positive(size, kind):
    """Upstream divides by zero, or takes the root of a negative number."""
    with pytest.raises(ValueError, match=named("hidden_size")):
        kind(3, size)


@each_kind
@pytest.mark.parametrize("keyword", ["activation", "lengths", "stream"])
def test_no_other_keyword_of_the_layer(keyword, kind):
    with pytest.raises(TypeError, match=keyword):
        kind(3, 4, **{keyword: 0.5})


@pytest.mark.parametrize("keyword", ["leak", "nonlinearity"])
@pytest.mark.parametrize("kind", [GRU, LSTM])
def test_what_rnn_alone_has(kind, keyword):
    with pytest.raises(TypeError, match=f"'{keyword}': RNN has it"):
        kind(3, 4, **{keyword: 0.5})


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


@each_kind
@pytest.mark.parametrize(
    "keyword",
    [
        "leak",
        "zoneout",
        "input_dropout",
        "recurrent_dropout",
        "training",
        "hidden0",
        "cell0",
        "reset_after",
    ],
)
def test_what_the_layer_has_is_no_keyword_of_its_call(keyword, kind):
    layer, x = kind(3, 4), mx.zeros((2, 3, 3))
    for function in (layer, layer.plan, layer.step):
        with pytest.raises(TypeError, match=keyword):
            function(x, **{keyword: 0.5})


@each_kind
def test_return_state_is_keyword_only(kind):
    nothing = [None] * len(OF[kind].states)
    with pytest.raises(TypeError):
        kind(3, 4)(mx.zeros((2, 3, 3)), *nothing, True)


@each_kind
@pytest.mark.parametrize("value", ["last", "", 2, None])
def test_return_state_values(value, kind):
    with pytest.raises((ValueError, TypeError), match=named("return_state")):
        kind(3, 4)(mx.zeros((2, 3, 3)), return_state=value)


@each_kind
def test_states_by_name_and_by_place(rng, kind):
    layer, theirs = pair(3, 4, kind=kind)
    x = draw(rng, (2, 5, 3), mx.float32)
    states = {n: draw(rng, (2, 4), mx.float32) for n in OF[kind].states}
    for name in OF[kind].states:  # each by itself
        check(layer, theirs, x, **{name: states[name]})
    check(layer, theirs, x, **states)
    by_place = flat(layer(x, *states.values()))
    for a, b in zip(flat(layer(x, **states)), by_place, strict=True):
        equal(a, b)


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


@each_kind
def test_complex_raises(kind):
    for name in ("x", *OF[kind].weights, *OF[kind].states):
        layer, inputs = kind(3, 4), {"x": mx.zeros((2, 3, 3))}
        inputs |= {n: mx.zeros((2, 4)) for n in OF[kind].states}
        if name in inputs:
            inputs[name] = inputs[name].astype(mx.complex64)
        else:
            layer[name] = layer[name].astype(mx.complex64)
        with pytest.raises((ValueError, TypeError), match=named(name) + " complex64"):
            layer(**inputs)


@each_kind
@pytest.mark.parametrize("value", [np.zeros((2, 3, 3), np.float32), [[0.0] * 3], 1.0])
def test_x_is_an_array(value, kind):
    with pytest.raises(TypeError):
        OF[kind].upstream(3, 4)(value)
    with pytest.raises(TypeError, match=named("x")):
        kind(3, 4)(value)


@each_state
@pytest.mark.parametrize("value", [np.zeros((2, 4), np.float32), [0.0] * 4, (None, 0)])
def test_a_state_is_an_array(value, kind, name):
    layer, x = kind(3, 4), mx.zeros((2, 3, 3))
    for use in (layer, layer.plan):
        with pytest.raises(TypeError, match=f"^{name} must be an mlx.core.array"):
            use(x, **{name: value})


@each_kind
@pytest.mark.parametrize("shape", [(), (3,), (4,), (2, 5), (2, 3, 4), (2, 3, 0)])
def test_shapes_of_x_that_raise(shape, kind):
    x = mx.zeros(shape)
    with pytest.raises((ValueError, IndexError)):
        mx.eval(OF[kind].upstream(3, 4)(x))
    with pytest.raises(ValueError, match=named("x") + ".*" + re.escape(str(shape))):
        kind(3, 4)(x)


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


@each_state
@pytest.mark.parametrize("state_shape", HIDDEN_SHAPES)
@pytest.mark.parametrize(
    "x_shape", [(6, 3), (1, 6, 3), (2, 6, 3), (5, 2, 6, 3), (2, 1, 3)]
)
def test_shapes_of_states(rng, x_shape, state_shape, kind, name):
    """Broadcast where upstream does; else an error, or what equal shapes give."""
    layer, theirs = pair(3, 4, kind=kind)
    x, state = (draw(rng, s, mx.float32) for s in (x_shape, state_shape))
    try:
        mx.eval(theirs(x, **{name: state}))
    except ValueError:
        fits = state_shape[-1:] == (4,) and kind is not RNN
        if fits and _broadcast(x_shape[:-2], state_shape[:-1]):
            lead = np.broadcast_shapes(x_shape[:-2], state_shape[:-1])
            x = mx.broadcast_to(x, (*lead, *x_shape[-2:]))
            whole = mx.broadcast_to(state, (*lead, 4))
            for a, b in zip(
                flat(layer(x, **{name: state})),
                flat(layer(x, **{name: whole})),
                strict=True,
            ):
                equal(a, b)
            return
        shape = re.escape(str(state_shape))
        for use in (layer, layer.plan):
            with pytest.raises(ValueError, match=f"^{name} must have .*{shape}"):
                use(x, **{name: state})
        return
    check(layer, theirs, x, **{name: state})


def _broadcast(a, b):
    return all(m == n or 1 in (m, n) for m, n in zip(a[::-1], b[::-1], strict=False))


@pytest.mark.parametrize("cell_shape", [(4,), (1, 4), (2, 4), (5, 1, 4), (5, 2, 4)])
@pytest.mark.parametrize("hidden_shape", [(4,), (1, 4), (2, 4), (5, 2, 4)])
@pytest.mark.parametrize("x_shape", [(6, 3), (2, 6, 3)])
def test_shapes_of_two_states(rng, x_shape, hidden_shape, cell_shape):
    layer, theirs = pair(3, 4, kind=LSTM)
    shapes = x_shape, hidden_shape, cell_shape
    x, hidden, cell = (draw(rng, s, mx.float32) for s in shapes)
    leads = x_shape[:-2], hidden_shape[:-1], cell_shape[:-1]
    whole = np.broadcast_shapes(*leads)
    x = mx.broadcast_to(x, (*whole, *x_shape[-2:]))  # upstream cannot always
    hidden = mx.broadcast_to(hidden, (*whole, 4))
    check(layer, theirs, x, hidden=hidden, cell=cell)
    given = draw(rng, hidden_shape, mx.float32)
    got = layer(draw(rng, x_shape, mx.float32), given, cell, return_state="only")
    assert [a.shape for a in got] == [(*whole, 4)] * 2


def test_two_states_that_do_not_fit():
    layer, x = LSTM(3, 4), mx.zeros((2, 5, 3))
    with pytest.raises(ValueError, match=r"^cell must have leading axes .*\(2,\), .*3"):
        layer(x, mx.zeros((2, 4)), mx.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"^hidden must have leading axes .*\(3, 4\)"):
        layer(x, mx.zeros((3, 4)), mx.zeros((3, 4)))


@each_weight
def test_shapes_of_weights_that_raise(kind, name):
    gates = {RNN: 1, GRU: 3, LSTM: 4}[kind]
    shapes = [(3,), (5,)]
    if name in OF[kind].weights[:1]:
        shapes = [(), (3,), (4 * gates, 3, 1), (7, 4, 3)]
    elif name in OF[kind].weights[:2]:
        shapes = [(4 * gates + 1, 4), (4 * gates, 5), (4,)]
    for shape in shapes:
        layer, x = kind(3, 4), mx.zeros((2, 6, 3))
        layer[name] = mx.zeros(shape)
        theirs = OF[kind].upstream(3, 4)
        theirs.update(layer.parameters())
        if name not in OF[kind].weights[:1]:
            with pytest.raises(ValueError):
                mx.eval(theirs(x))
        message = f"{name} must have .*{re.escape(str(shape))}"
        for use in (layer, layer.plan):
            with pytest.raises(ValueError, match=message):
                use(x)


@pytest.mark.parametrize("kind", [GRU, LSTM])
def test_rows_of_the_input_weight(kind):
    """They say how many hidden features there are, so they are a multiple."""
    layer, gates = kind(3, 4, bias=False), {GRU: 3, LSTM: 4}[kind]
    layer.Wx = mx.zeros((4 * gates + 1, 3))
    with pytest.raises(ValueError, match=rf"Wx must have shape \({gates}H, D\), but"):
        layer(mx.zeros((2, 6, 3)))
    layer.Wx = mx.zeros((5 * gates, 3))
    needed = rf"Wh must have shape \({gates}H, H\) = \({5 * gates}, 5\), but"
    with pytest.raises(ValueError, match=needed):
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


@each_kind
@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ours_to_theirs", [True, False])
def test_weights_load_both_ways(tmp_path, ours_to_theirs, bias, suffix, kind):
    source, target = kind(5, 6, bias=bias), OF[kind].upstream(5, 6, bias=bias)
    if not ours_to_theirs:
        source, target = target, source
    path = str(tmp_path / f"weights.{suffix}")
    source.save_weights(path)
    target.load_weights(path, strict=True)
    same_trees(target.parameters(), source.parameters())


def test_strict_loading_refuses_what_upstream_refuses():
    weights = [("Wxh", mx.zeros((4, 3))), ("Whh", mx.zeros((4, 5)))]
    for cls in (nn.RNN, RNN):
        with pytest.raises(ValueError):
            cls(3, 4).load_weights(weights)


@each_kind
def test_update_replaces_the_weights(rng, kind):
    layer, theirs = pair(3, 4, kind=kind)
    x = draw(rng, (2, 5, 3), mx.float32)
    layer(x)
    double = tree_map(lambda a: 2 * a, layer.parameters())
    layer.update(double)
    theirs.update(double)
    check(layer, theirs, x)


@each_kind
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float64, mx.float32])
def test_set_dtype(rng, dtype, kind):
    layer, theirs = pair(3, 4, kind=kind)
    layer.set_dtype(dtype)
    theirs.set_dtype(dtype)
    same_trees(layer.parameters(), theirs.parameters())
    check(layer, theirs, draw(rng, (2, 5, 3), dtype))


@each_kind
@pytest.mark.parametrize("chosen", [None, [1], [0, 2]], ids=str)
def test_freeze(chosen, kind):
    layer, theirs = pair(3, 4, kind=kind)
    weights = OF[kind].weights
    keys = None if chosen is None else [weights[i] for i in chosen]
    for one in (layer, theirs):
        one.freeze(keys=keys)
    same_trees(layer.trainable_parameters(), theirs.trainable_parameters())
    assert len(tree_flatten(layer.trainable_parameters())) < len(weights)
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


MADE = [
    (RNN, {}),
    (RNN, {"nonlinearity": nn.LayerNorm(4)}),
    (RNN, {"nonlinearity": nn.PReLU()}),
    (GRU, {}),
    (GRU, {"bias": False}),
    (LSTM, {}),
]


@pytest.mark.parametrize("kind, arguments", MADE)
def test_trees(kind, arguments):
    layer, theirs = pair(3, 4, kind=kind, **arguments)
    same_trees(layer.parameters(), theirs.parameters())
    same_trees(layer.trainable_parameters(), theirs.trainable_parameters())
    for names in (
        lambda m: m.state,
        lambda m: m.children(),
        lambda m: [n for n, _ in m.named_modules()],
        lambda m: m.leaf_modules(),
    ):
        assert sorted(names(layer)) == sorted(names(theirs))


@each_kind
def test_a_call_leaves_nothing_on_the_layer(rng, kind):
    layer = kind(3, 4)
    before = dict(layer), dict(vars(layer))
    mx.eval(layer(draw(rng, (2, 5, 3), mx.float32), return_state=True))
    layer.plan(mx.zeros((2, 5, 3)))
    assert list(layer) == list(before[0]) and list(vars(layer)) == list(before[1])


@pytest.mark.parametrize(
    "clone",
    [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["copy", "deepcopy", "pickle"],
)
@pytest.mark.parametrize(
    "kind, arguments",
    [
        *MADE,
        (RNN, {"nonlinearity": nn.ReLU()}),
        (GRU, {"reset_after": False, "learn_hidden": True}),
        (LSTM, {"zoneout": (0.1, 0.2), "learn_hidden": True}),
    ],
)
def test_clones(rng, kind, arguments, clone):
    layer = kind(3, 4, **arguments)
    name = OF[kind].weights[1]
    layer.freeze(keys=name)
    x = draw(rng, (2, 5, 3), mx.float32)
    mx.eval(layer(x))
    layer.eval()
    other = clone(layer)
    assert type(other) is kind and repr(other) == repr(layer)
    assert other.zoneout == layer.zoneout and not other.training
    same_trees(other.parameters(), layer.parameters())
    same_trees(other.trainable_parameters(), layer.trainable_parameters())
    for a, b in zip(flat(other(x)), flat(layer(x)), strict=True):
        equal(a, b)


@each_kind
def test_deepcopy_shares_nothing(kind):
    layer, name = kind(3, 4), OF[kind].weights[1]
    other = copy.deepcopy(layer)
    other[name][0, 0] = 100.0
    assert layer[name][0, 0].item() != 100.0


@each_kind
def test_quantize_leaves_it_alone(rng, kind):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = kind(64, 64), nn.Linear(64, 64)

    model = Model()
    before = dict(model.rnn.parameters())
    nn.quantize(model, group_size=64, bits=4)
    assert isinstance(model.out, nn.QuantizedLinear)
    assert type(model.rnn) is kind
    same_trees(model.rnn.parameters(), before)


@each_kind
def test_in_a_model(rng, kind):
    """Three steps of upstream's optimizer, beside upstream's layer."""
    x = draw(rng, (2, 6, 3), mx.float32)

    def train(layer, dtype):
        layer.set_dtype(dtype)
        step = nn.value_and_grad(
            layer, lambda m, x: sum((a**2).mean() for a in flat(m(x)))
        )
        optimizer = optim.SGD(learning_rate=0.5)
        for _ in range(3):
            loss, grads = step(layer, x.astype(dtype))
            optimizer.update(layer, grads)
        return {"loss": loss, **layer.parameters()}

    layer, theirs = pair(3, 4, kind=kind)
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


@each_kind
def test_layer_without_its_weight(kind):
    for name in OF[kind].weights[:2]:
        layer = kind(4, 4)
        setattr(layer, name, None)
        for use in (layer, layer.plan):
            with pytest.raises(TypeError, match=f"^{name} must be"):
                use(mx.zeros((2, 6, 4)))


def test_no_bias_of_the_state_before_the_reset():
    layer, x = GRU(3, 4, reset_after=False), mx.zeros((2, 6, 3))
    assert layer.bhn is None and set(layer.parameters()) == {"Wx", "Wh", "b"}
    layer.bhn = mx.zeros(4)
    with pytest.raises(ValueError, match="bhn must be None where reset_after is False"):
        layer(x)
    with pytest.raises(TypeError, match="reset_after must be a bool, but is int"):
        GRU(3, 4, reset_after=1)
