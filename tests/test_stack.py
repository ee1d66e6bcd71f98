"""Stack: layers one after another."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from conftest import DTYPES, draw, name_of
from mlx_recurrent import (
    GRU,
    LSTM,
    RNN,
    Bidirectional,
    Stack,
    accelerate,
    exporting,
)
from networks import check, check_outputs, each_layer, in_dtype, states_for
from tolerances import agree, equal


def mixed(kind, dtype=mx.float32):
    """A layer, a pair of them, and a layer."""
    model = Stack([kind(3, 4), Bidirectional(kind(4, 3), merge="concat"), kind(6, 6)])
    return in_dtype(model, dtype)


@each_layer
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_outputs_states_and_gradients(rng, dtype, kind):
    model = mixed(kind, dtype)
    check(rng, model, draw(rng, (2, 5, 3), dtype), states_for(rng, model, 2, dtype))


def test_layers_of_every_kind(rng):
    """Each one's states have its own form."""
    model = Stack([RNN(3, 4), LSTM(4, 4), Bidirectional(GRU(4, 2), LSTM(4, 2))])
    check(rng, model, draw(rng, (2, 5, 3), mx.float32), states_for(rng, model, 2))
    _, states = model(mx.zeros((2, 5, 3)), return_state=True)
    first, (h, c), (forward, backward) = states
    assert first.shape == h.shape == c.shape == (2, 4)
    assert type(states[1]) is type(backward) is tuple and forward.shape == (2, 2)


@pytest.mark.parametrize(
    "kind, num_layers", [(RNN, 1), (RNN, 2), (RNN, 4), (GRU, 2), (LSTM, 2)]
)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_build(rng, num_layers, bidirectional, residual, kind):
    model = Stack.build(
        4,
        4,
        num_layers,
        bidirectional=bidirectional,
        merge="mean",
        residual=residual,
        layer=kind,
    )
    assert len(model.layers) == num_layers
    check(rng, model, draw(rng, (2, 4, 4), mx.float32), None, "mean", residual)


def test_build_of_any_function():
    made = []

    def layer(input_size, hidden_size, **arguments):
        made.append((input_size, hidden_size, arguments))
        return GRU(input_size, hidden_size)

    model = Stack.build(3, 4, 2, layer=layer, bias=False)
    assert made == [(3, 4, {"bias": False}), (4, 4, {"bias": False})]
    assert [type(inner) for inner in model.layers] == [GRU, GRU]
    model = Stack.build(3, 4, 2, layer=LSTM, zoneout=(0.1, 0.2), learn_hidden=True)
    assert [inner.zoneout for inner in model.layers] == [(0.1, 0.2)] * 2


@each_layer
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_lengths(rng, residual, reverse, kind):
    x = np.array(draw(rng, (4, 5, 3), mx.float32))
    lengths = [5, 0, 1, 3]
    for row, length in zip(x, lengths, strict=True):
        row[length:] = np.nan
    model = Stack.build(3, 3, 2, residual=residual, layer=kind)
    hidden = states_for(rng, model, 4)
    keywords = {"lengths": lengths, "reverse": reverse, "residual": residual}
    check(rng, model, mx.array(x), hidden, **keywords)
    check(rng, model, mx.array(x), **keywords)


@each_layer
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_skipped_steps(rng, residual, reverse, kind):
    """With a residual, nothing of the input meets the outputs there."""
    mask = np.array([[1, 0, 0, 1, 1], [0, 1, 1, 0, 1], [0] * 5, [1] * 5], bool)
    x = mx.where(mx.array(mask)[..., None], draw(rng, (4, 5, 3), mx.float32), mx.nan)
    model = Stack.build(3, 3, 2, residual=residual, layer=kind)
    keywords = {"mask": mask, "reverse": reverse, "residual": residual}
    check(rng, model, x, states_for(rng, model, 4), **keywords)
    check(rng, model, x, lengths=[5, 4, 3, 0], **keywords)


@each_layer
@pytest.mark.parametrize("merge", ["concat", "sum"])
def test_lengths_in_both_directions(rng, merge, kind):
    x = np.array(draw(rng, (3, 4, 3), mx.float32))
    x[1, 2:] = x[2] = np.nan
    model = Stack.build(
        3, 3, 2, bidirectional=True, merge=merge, residual=True, layer=kind
    )
    check(rng, model, mx.array(x), None, merge, True, lengths=[4, 2, 0])


def test_nan_in_the_padding_of_cotangents_and_tangents(rng):
    """With a residual, the padding of the input meets the outputs."""
    lengths = [4, 2]
    ended = mx.arange(4)[:, None] >= mx.array(lengths)[:, None, None]
    model = Stack.build(3, 3, 2, residual=True)

    def run(x, Wxh):
        model.layers[0].Wxh = Wxh
        return model(x, lengths=lengths)

    inputs = [draw(rng, (2, 4, 3), mx.float32), model.layers[0].Wxh]
    for transform in (mx.vjp, mx.jvp):
        clean = [draw(rng, (2, 4, 3), mx.float32)]
        if transform is mx.jvp:
            clean.append(mx.ones((3, 3)))
        dirty = [mx.where(ended, mx.nan, clean[0]), *clean[1:]]
        (_, expected), (_, got) = (transform(run, inputs, v) for v in (clean, dirty))
        for a, b in zip(got, expected, strict=True):
            equal(a, b)
            assert not mx.isnan(a).any()


def test_every_return(rng):
    model = Stack([RNN(3, 4), Bidirectional(RNN(4, 4), merge="sum")], residual=True)
    for x in (draw(rng, (2, 5, 3), mx.float32), draw(rng, (5, 3), mx.float32)):
        outputs, every = model(x), model(x, return_all=True)
        assert isinstance(outputs, mx.array) and type(every) is list
        equal(every[-1], outputs)
        equal(every[0], model.layers[0](x))
        same, states = model(x, return_state=True)
        equal(same, outputs)
        assert type(states) is list and len(states) == 2
        equal(states[0], every[0][..., -1, :])
        assert type(states[1]) is tuple
        all_of_them, more = model(x, return_all=True, return_state=True)
        for a, b in zip(all_of_them, every, strict=True):
            equal(a, b)
        for return_all in (False, True):
            only = model(x, return_state="only", return_all=return_all)
            for other in (only, more):
                assert type(other) is list and type(other[1]) is tuple
                equal(other[0], states[0])
                for a, b in zip(other[1], states[1], strict=True):
                    equal(a, b)


@each_layer
def test_going_on_from_states(rng, kind):
    x = draw(rng, (2, 9, 3), mx.float32)
    model = Stack.build(3, 4, 3, layer=kind)
    first, states = model(x[:, :5], return_state=True)
    check_outputs(mx.concatenate([first, model(x[:, 5:], states)], 1), model, x)


def test_a_state_without_the_other(rng):
    """Of an LSTM each is given by itself."""
    x, c = draw(rng, (2, 5, 3), mx.float32), draw(rng, (2, 4), mx.float32)
    model = Stack.build(3, 4, 2, layer=LSTM)
    first, second = model.layers
    equal(model(x, [None, (None, c)]), second(first(x)[0], cell=c)[0])
    equal(model(x, [[c, None], None]), second(first(x, c)[0])[0])


def test_a_layer_without_a_state_among_others(rng):
    x, h = draw(rng, (2, 5, 3), mx.float32), draw(rng, (2, 4), mx.float32)
    model = Stack.build(3, 4, 2)
    first, second = model.layers
    equal(model(x, [None, h]), second(first(x), h))
    equal(model(x, (h, None)), second(first(x, h)))


def test_the_last_pair_may_stay_apart(rng):
    x = draw(rng, (2, 5, 3), mx.float32)
    model = Stack([RNN(3, 3), Bidirectional(RNN(3, 3), merge=None)], residual=True)
    forward, backward = model(x)
    first = model.layers[0](x) + x
    equal(forward, model.layers[1].forward(first))
    equal(backward, model.layers[1].backward(first, reverse=True))


def test_stacks_in_a_stack(rng):
    x = draw(rng, (2, 5, 3), mx.float32)
    inner = Stack.build(3, 4, 2)
    model = Stack([inner, RNN(4, 4)])
    outputs, states = model(x, return_state=True)
    equal(outputs, model.layers[1](inner(x)))
    assert [type(s) for s in states] == [list, mx.array]
    flat = Stack([*inner.layers, model.layers[1]])
    check_outputs(outputs, flat, x)
    rest = model(x[:, 3:], model(x[:, :3], return_state="only"))
    check_outputs(mx.concatenate([outputs[:, :3], rest], 1), flat, x)


def test_anything_that_is_called_like_a_layer(rng):
    x = draw(rng, (2, 5, 3), mx.float32)
    model = Stack([nn.RNN(3, 4), nn.GRU(4, 5), nn.LSTM(5, 3), lambda x, hidden: 2 * x])
    rnn, gru, lstm, _ = model.layers
    equal(model(x), 2 * lstm(gru(rnn(x)))[0])


@pytest.mark.parametrize("keywords", [{"checkpoint_every": 2}, {"truncate_every": 3}])
def test_keywords_reach_every_layer(rng, keywords):
    x, c = draw(rng, (2, 7, 3), mx.float64), draw(rng, (2, 7, 4), mx.float64)
    model = in_dtype(Stack.build(3, 4, 2), mx.float64)
    first, second = model.layers

    def together(x):
        return model(x, **keywords)

    def apart(x):
        return second(first(x, **keywords), **keywords)

    for a, b in zip(mx.vjp(together, [x], [c]), mx.vjp(apart, [x], [c]), strict=True):
        equal(a[0], b[0])


@each_layer
def test_resets(rng, kind):
    """The pieces run alone."""
    x = draw(rng, (2, 7, 3), mx.float32)
    reset = np.zeros((2, 7), bool)
    reset[:, 3] = True
    model = Stack([kind(3, 4), Bidirectional(kind(4, 4)), kind(8, 8)], residual=True)
    check(rng, model, x, residual=True, reset=reset)


class TestDropout:
    """Between layers, which here hand on what they get."""

    def stack(self, count, p):
        return Stack([lambda x, hidden: x] * count, dropout=p)

    def test_share_and_scale(self):
        x = mx.ones((100, 1000))
        y = np.array(self.stack(2, 0.25)(x))
        assert set(np.unique(y)) == {0, np.float32(1 / 0.75)}
        share, sigma = np.mean(y == 0), math.sqrt(0.25 * 0.75 / y.size)
        assert abs(share - 0.25) < 5 * sigma

    def test_between_layers_only(self):
        x = mx.ones((100, 1000))
        equal(self.stack(1, 0.5)(x), x)
        y = np.array(self.stack(3, 0.5)(x))
        assert set(np.unique(y)) == {0, 4}
        sigma = math.sqrt(0.25 * 0.75 / y.size)
        assert abs(np.mean(y == 4) - 0.25) < 5 * sigma

    def test_draws_as_mlx_does(self):
        x = mx.ones((3, 4, 5))
        mx.random.seed(1)
        y = self.stack(2, 0.5)(x)
        mx.random.seed(1)
        equal(y, nn.Dropout(0.5)(x))

    def test_mode(self):
        x, model = mx.ones((3, 4, 5)), self.stack(2, 0.5)
        model.eval()
        equal(model(x), x)
        model.train()
        assert not mx.array_equal(model(x), x)

    def test_draws_nothing_where_it_is_zero(self):
        mx.random.seed(3)
        self.stack(2, 0.0)(mx.ones((3, 4)))
        after = mx.random.normal((4,))
        mx.random.seed(3)
        equal(after, mx.random.normal((4,)))

    def test_residual_after_dropout(self):
        x = mx.ones((10, 100, 5))
        model = Stack([lambda x, hidden: x] * 2, dropout=0.5, residual=True)
        first, second = model(x, return_all=True)
        assert set(np.unique(np.array(first))) == {1, 3}
        equal(second, 2 * first)

    def test_gradients(self, rng):
        """The gradient has the mask of the outputs."""
        x = draw(rng, (4, 50), mx.float32)
        model = self.stack(2, 0.5)
        (y,), (g,) = mx.vjp(model_of_x(model), [x], [mx.ones_like(x)])
        agree(g, y / x)

    def test_under_compile_with_the_random_state(self):
        x, model = mx.ones((3, 4, 5)), self.stack(2, 0.5)
        compiled = mx.compile(model, inputs=mx.random.state, outputs=mx.random.state)
        mx.random.seed(5)
        expected = [model(x) for _ in range(2)]
        mx.random.seed(5)
        for y in expected:
            equal(compiled(x), y)


def model_of_x(model):
    return lambda x: model(x)


def test_parameters_and_weights_that_load(tmp_path, rng):
    model = Stack.build(3, 4, 2, bidirectional=True)
    names = sorted(n for n, _ in tree_flatten(model.parameters()))
    assert names == sorted(
        f"layers.{i}.{d}.{n}"
        for i in (0, 1)
        for d in ("backward", "forward")
        for n in ("Whh", "Wxh", "bias")
    )
    assert "layers.0.Wxh" in dict(tree_flatten(Stack([RNN(3, 4)]).parameters()))
    other = Stack.build(3, 4, 2, bidirectional=True)
    model.save_weights(str(tmp_path / "weights.npz"))
    other.load_weights(str(tmp_path / "weights.npz"))
    x = draw(rng, (2, 5, 3), mx.float32)
    equal(model(x), other(x))


@each_layer
def test_train_and_eval_reach_the_layers(rng, kind):
    x = draw(rng, (2, 5, 3), mx.float32)
    model = Stack.build(3, 4, 2, zoneout=0.5, layer=kind)
    assert not mx.array_equal(model(x), model(x))
    model.eval()
    equal(model(x), model(x))


class TestBuild:
    def test_passes_arguments_on(self):
        model = Stack.build(3, 4, 2, bias=False, nonlinearity=nn.relu, leak=0.5)
        for layer in model.layers:
            assert layer.bias is None and layer.nonlinearity is nn.relu
            assert layer.leak == 0.5

    def test_modules_are_copied(self):
        nonlinearity = nn.PReLU()
        model = Stack.build(3, 4, 3, nonlinearity=nonlinearity, bidirectional=True)
        inner = [
            layer.nonlinearity
            for both in model.layers
            for layer in (both.forward, both.backward)
        ]
        assert inner[0] is nonlinearity
        assert len({id(f) for f in inner}) == 6
        assert all(type(f) is nn.PReLU for f in inner)

    @pytest.mark.parametrize(
        ("merge", "features"),
        [("concat", 8), ("mul", 4), (lambda f, b: (f * b)[..., :2], 2)],
    )
    def test_sizes(self, merge, features):
        model = Stack.build(3, 4, 2, bidirectional=True, merge=merge)
        assert [layer.forward.Wxh.shape[1] for layer in model.layers] == [3, features]
        assert model(mx.zeros((2, 5, 3))).shape == (2, 5, features)

    def test_errors(self):
        for arguments, error, words in [
            ((3, 4, 0), ValueError, "num_layers must be from 1 .* is 0"),
            ((3, 4, 1.5), TypeError, "num_layers must be an integer"),
            ((3, 0, 1), ValueError, "hidden_size"),
        ]:
            with pytest.raises(error, match=words):
                Stack.build(*arguments)
        with pytest.raises(ValueError, match=r"layers\[0\] must give one array"):
            Stack.build(3, 4, 2, bidirectional=True, merge=None)
        with pytest.raises(TypeError, match="colour"):
            Stack.build(3, 4, 2, colour="red")
        with pytest.raises(TypeError, match="'leak': RNN has it"):
            Stack.build(3, 4, 2, leak=0.5, layer=GRU)
        for layer in (GRU(3, 4), "lstm", None):
            with pytest.raises(
                TypeError, match="layer must be RNN, GRU, LSTM or a fun"
            ):
                Stack.build(3, 4, 2, layer=layer)
        with pytest.raises(TypeError, match="what layer returns must be a layer, but"):
            Stack.build(3, 4, 2, layer=lambda D, H: None)


@each_layer
def test_transforms(rng, kind):
    model = Stack([kind(3, 3), Bidirectional(kind(3, 3), merge="sum")], residual=True)
    x = draw(rng, (4, 5, 3), mx.float32)
    lengths, mask = np.array([5, 0, 2, 3]), rng.random((4, 5)) < 0.7

    def run(x, lengths, mask):
        return model(x, lengths=lengths, mask=mask)

    def right(got):
        how = {"merge": "sum", "residual": True}
        check_outputs(got, model, x, lengths=lengths, mask=mask, **how)

    given = x, mx.array(lengths), mx.array(mask)
    right(mx.compile(run)(*given))
    right(mx.vmap(run)(*(a[:, None] for a in given))[:, 0])
    with exporting():
        right(run(*given))


@each_layer
def test_shapeless(rng, kind):
    """Another number of steps and rows, and every direction."""
    model = Stack([kind(3, 3), Bidirectional(kind(3, 3), merge="sum")], residual=True)
    mx.eval(model.parameters())  # a shapeless function cannot draw them
    x = draw(rng, (4, 5, 3), mx.float32)

    def run(x, lengths, mask):
        return model(x, lengths=lengths, mask=mask)

    shapeless = mx.compile(run, shapeless=True)
    for n, steps, lengths in ((4, 5, [5, 0, 2, 3]), (3, 4, [4, 0, 2])):
        part, how = x[:n, :steps], {"merge": "sum", "residual": True}
        mask = rng.random((n, steps)) < 0.7
        got = shapeless(part, mx.array(lengths), mx.array(mask))
        check_outputs(got, model, part, lengths=lengths, mask=mask, **how)


@each_layer
def test_training_step(rng, kind):
    """nn.value_and_grad and an optimizer's update go through the tree."""
    model = Stack.build(3, 4, 2, bidirectional=True, layer=kind)
    x = draw(rng, (2, 5, 3), mx.float32)
    step = nn.value_and_grad(model, lambda x: model(x).square().mean())
    before, gradients = step(x)
    scaled = [
        (n, p - 0.1 * g)
        for (n, p), (_, g) in zip(
            tree_flatten(model.parameters()), tree_flatten(gradients), strict=True
        )
    ]
    model.load_weights(scaled)
    assert step(x)[0] < before


def test_accelerate(rng):
    model = Stack([nn.RNN(3, 4), nn.GRU(4, 4), nn.LSTM(4, 4)])
    x = draw(rng, (2, 5, 3), mx.float32)
    assert accelerate(model) is model
    assert [type(layer) for layer in model.layers] == [RNN, GRU, LSTM]
    assert len(model(x, lengths=[5, 3], return_state=True)[1]) == 3


def test_repr():
    text = repr(Stack.build(3, 4, 2, dropout=0.25))
    assert text.startswith("Stack(residual=False\n")
    assert "(layers.1): RNN(" in text and "Dropout(p=0.25)" in text


@pytest.mark.parametrize(
    ("layers", "keywords", "error", "words"),
    [
        ([], {}, ValueError, "layers must hold at least one layer"),
        (RNN(3, 4), {}, TypeError, "layers must be a list of layers, but is .*RNN"),
        ([RNN(3, 4), 3], {}, TypeError, r"layers\[1\] must be a layer, but is int"),
        ([RNN(3, 4), RNN], {}, TypeError, r"layers\[1\] .* is the class RNN: give RNN"),
        ([RNN(3, 4), RNN(5, 4)], {}, ValueError, r"layers\[1\] must take the 4 .* 5"),
        (
            [Bidirectional(RNN(3, 4)), RNN(4, 4)],
            {},
            ValueError,
            r"layers\[1\] must take the 8 features that layers\[0\] gives, .* 4",
        ),
        (
            [Stack([RNN(3, 4)]), Stack([RNN(3, 4)])],
            {},
            ValueError,
            r"layers\[1\] must take the 4 features",
        ),
        ([RNN(3, 4)], {"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\)"),
        ([RNN(3, 4)], {"dropout": -0.1}, ValueError, "dropout must be in"),
        ([RNN(3, 4)], {"dropout": math.nan}, ValueError, "dropout must be in"),
    ],
)
def test_construction_errors(layers, keywords, error, words):
    with pytest.raises(error, match=words):
        Stack(layers, **keywords)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        ({"hidden": mx.zeros((2, 2, 4))}, TypeError, "hidden must be a list .*array"),
        ({"hidden": [None]}, ValueError, "each of the 2 layers, but has 1"),
        ({"hidden": [mx.zeros((2, 5)), None]}, ValueError, "hidden must have shape"),
        ({"reverse": True}, ValueError, r"reverse must be False where layers\[1\]"),
        ({"return_state": "all"}, ValueError, "return_state must be"),
        ({"lengths": [5, 6]}, ValueError, "lengths"),
    ],
)
def test_call_errors(call, error, words):
    model = Stack([RNN(3, 4), Bidirectional(RNN(4, 4))])
    with pytest.raises(error, match=words):
        model(mx.zeros((2, 5, 3)), **call)


@pytest.mark.parametrize(
    ("hidden", "error", "words"),
    [
        ([mx.zeros((2, 4)), None], TypeError, r"hidden\[0\] must be a pair .*array"),
        (
            [None, "hc"],
            TypeError,
            r"hidden\[1\] must be a pair \(hidden, cell\), .*str",
        ),
        ([None, (None,)], ValueError, r"hidden\[1\] must be a pair .* has 1 entries"),
        ([(mx.zeros((2, 5)), None), None], ValueError, r"hidden must have .*\(2, 5\)"),
        ([(None, mx.zeros((2, 5))), None], ValueError, r"cell must have .*\(2, 5\)"),
        ([(None, [0.0]), None], TypeError, "cell must be an mlx.core.array, but is li"),
        (
            [(None, mx.zeros((3, 4))), None],
            ValueError,
            r"cell must have leading .*3, 4",
        ),
    ],
)
def test_states_that_are_no_pairs(hidden, error, words):
    model, x = Stack.build(3, 4, 2, layer=LSTM), mx.zeros((2, 5, 3))
    for use in (
        lambda: model(x, hidden),
        lambda: model.plan(x, hidden),
        lambda: model.step(x[:, 0], hidden),
    ):
        with pytest.raises(error, match=words):
            use()


def test_flags_are_booleans(rng):
    with pytest.raises(TypeError, match="bidirectional must be a bool, but is str"):
        Stack.build(3, 4, 2, bidirectional="no")
    with pytest.raises(TypeError, match="return_all must be a bool, but is str"):
        Stack.build(3, 4, 2)(draw(rng, (2, 5, 3), mx.float32), return_all="no")
