"""Bidirectional: two layers, one of them backward in time."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

import mlx_recurrent
from conftest import DTYPES, array, draw, name_of
from mlx_recurrent import (
    GRU,
    LSTM,
    RNN,
    Bidirectional,
    Stack,
    accelerate,
    exporting,
)
from networks import MERGES, check, check_outputs, each_layer, in_dtype, states_for
from tolerances import agree, equal


@each_layer
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("merge", MERGES)
def test_merges_states_and_gradients(rng, merge, dtype, kind):
    model = in_dtype(Bidirectional(kind(3, 4), merge=merge), dtype)
    x = draw(rng, (2, 5, 3), dtype)
    check(rng, model, x, states_for(rng, model, 2, dtype), merge)


@each_layer
def test_without_a_state(rng, kind):
    check(rng, Bidirectional(kind(3, 4)), draw(rng, (2, 5, 3), mx.float32))


def test_two_sizes_are_concatenated(rng):
    check(rng, Bidirectional(RNN(3, 4), RNN(3, 5)), draw(rng, (2, 6, 3), mx.float32))


def test_two_kinds(rng):
    model = Bidirectional(GRU(3, 4), LSTM(3, 4), merge="sum")
    x = draw(rng, (2, 6, 3), mx.float32)
    check(rng, model, x, states_for(rng, model, 2), "sum")


@each_layer
@pytest.mark.parametrize("merge", MERGES)
def test_lengths(rng, merge, kind):
    x = np.array(draw(rng, (4, 6, 3), mx.float32))
    lengths = [6, 0, 1, 4]
    for row, length in zip(x, lengths, strict=True):
        row[length:] = np.nan
    model = Bidirectional(kind(3, 4), merge=merge)
    hidden = states_for(rng, model, 4)
    check(rng, model, mx.array(x), hidden, merge, lengths=lengths)
    check(rng, model, mx.array(x), merge=merge, lengths=lengths)


def test_a_callable_merges(rng):
    gate = nn.Linear(8, 4)

    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = gate

        def __call__(self, forward, backward):
            g = mx.sigmoid(self.gate(mx.concatenate([forward, backward], -1)))
            return g * forward + (1 - g) * backward

    x = draw(rng, (2, 5, 3), mx.float32)
    model = Bidirectional(RNN(3, 4), merge=Gate())
    forward, backward = model.forward(x), model.backward(x, reverse=True)
    equal(model(x), Gate()(forward, backward))
    assert "merge.gate.weight" in dict(tree_flatten(model.parameters()))


@pytest.mark.parametrize("merge", MERGES)
def test_every_return(rng, merge):
    model = Bidirectional(RNN(3, 4), merge=merge)
    for x in (draw(rng, (2, 5, 3), mx.float32), draw(rng, (5, 3), mx.float32)):
        outputs, states = model(x, return_state=True)
        only = model(x, return_state="only")
        assert type(states) is tuple and type(only) is tuple
        for a, b in zip(states, only, strict=True):
            assert a.shape == b.shape == (*x.shape[:-2], 4)
            equal(a, b)
        got = model(x)
        if merge is None:
            assert type(got) is tuple and type(outputs) is tuple
            equal(states[0], outputs[0][..., -1, :])
            equal(states[1], outputs[1][..., 0, :])
        else:
            got, outputs = (got,), (outputs,)
        for a, b in zip(got, outputs, strict=True):
            equal(a, b)


def test_going_on_from_states(rng):
    """Forward from the first part's state, backward from the last part's."""
    x = draw(rng, (2, 9, 3), mx.float64)
    model = in_dtype(Bidirectional(RNN(3, 4), merge=None), mx.float64)
    _, before = model(x[:, :5], return_state=True)
    _, after = model(x[:, 5:], return_state=True)
    early = model(x[:, :5], (None, after[1]))
    late = model(x[:, 5:], [before[0], None])
    whole = [mx.concatenate(parts, 1) for parts in zip(early, late, strict=True)]
    check_outputs(whole, model, x, merge=None)


class TestANewLayerLikeForward:
    @each_layer
    def test_draws_the_weights_of_a_new_layer(self, kind):
        mx.random.seed(7)
        both = [kind(3, 4), kind(3, 4)]
        mx.random.seed(7)
        model = Bidirectional(kind(3, 4))
        for layer, other in zip(both, (model.forward, model.backward), strict=True):
            assert layer.keys() == other.keys()
            for name in layer:
                equal(layer[name], other[name], name)

    def test_options_of_gated_layers(self):
        forward = GRU(3, 4, bias=False, reset_after=False, input_dropout=0.5)
        backward = Bidirectional(forward).backward
        assert repr(backward) == repr(forward) and backward.b is None
        forward = LSTM(3, 4, zoneout=(0.25, 0.5), learn_hidden=True)
        forward.hidden0, forward.cell0 = mx.ones(4), mx.ones(4)
        backward = Bidirectional(forward).backward
        assert repr(backward) == repr(forward) and backward.zoneout == (0.25, 0.5)
        assert not backward.hidden0.any() and not backward.cell0.any()
        assert forward.cell0.all()

    def test_options_and_mode(self):
        forward = RNN(3, 4, bias=False, nonlinearity=nn.relu, zoneout=0.25, leak=0.5)
        forward.eval()
        backward = Bidirectional(forward).backward
        assert backward.bias is None and backward.nonlinearity is nn.relu
        assert backward.zoneout == 0.25 and backward.leak == 0.5
        assert not backward.training
        assert repr(backward) == repr(forward)

    def test_parameters_are_its_own(self):
        forward = RNN(
            3, 4, nonlinearity=nn.PReLU(), learn_hidden=True, leak=mx.full((4,), 0.5)
        )
        forward.hidden0 = mx.ones(4)
        forward.freeze(keys="leak")
        model = Bidirectional(forward)
        names = {n.partition(".")[2] for n, _ in tree_flatten(model.parameters())}
        assert names == {
            "Wxh", "Whh", "bias", "hidden0", "leak", "nonlinearity.weight"
        }  # fmt: skip
        backward = model.backward
        assert not backward.hidden0.any() and forward.hidden0.all()
        equal(backward.leak, forward.leak)
        assert "leak" not in backward.trainable_parameters()
        assert backward.nonlinearity is not forward.nonlinearity
        backward.unfreeze()
        backward.nonlinearity.weight[0] = 3.0
        backward.leak[0] = 1.0
        assert forward.nonlinearity.weight[0] != 3.0 and forward.leak[0] == 0.5
        assert "leak" not in forward.trainable_parameters()

    def test_compiled_functions_inside_its_nonlinearity(self):
        forward = RNN(3, 4, nonlinearity=nn.Sequential(nn.Linear(4, 4), nn.relu))
        backward = Bidirectional(forward).backward
        mine, new = forward.nonlinearity.layers, backward.nonlinearity.layers
        assert new[0] is not mine[0] and new[1] is nn.relu
        equal(new[0].weight, mine[0].weight)

    def test_dtype(self):
        forward = RNN(3, 4)
        forward.set_dtype(mx.bfloat16)
        assert Bidirectional(forward).backward.Whh.dtype == mx.bfloat16

    @each_layer
    def test_subclasses(self, kind):
        class Mine(kind):
            def __init__(self):
                super().__init__(3, 4)
                self.own = mx.ones(2)

        backward = Bidirectional(Mine()).backward
        assert type(backward) is Mine and "own" in backward


def test_parameters_and_weights_that_load(tmp_path, rng):
    model, other = Bidirectional(RNN(3, 4)), Bidirectional(RNN(3, 4))
    names = [n for n, _ in tree_flatten(model.parameters())]
    assert sorted(names) == [
        f"{d}.{n}" for d in ("backward", "forward") for n in ("Whh", "Wxh", "bias")
    ]
    model.save_weights(str(tmp_path / "weights.safetensors"))
    other.load_weights(str(tmp_path / "weights.safetensors"))
    x = draw(rng, (2, 5, 3), mx.float32)
    equal(model(x), other(x))


def test_each_direction_draws_its_own_masks(rng):
    model = Bidirectional(RNN(3, 64, zoneout=0.5), merge=None)
    model.backward.update(model.forward.parameters())
    x = mx.broadcast_to(draw(rng, (1, 1, 3), mx.float32), (1, 20, 3))
    forward, backward = model(x)
    assert not mx.array_equal(forward, backward[:, ::-1])
    model.eval()
    forward, backward = model(x)
    equal(forward, backward[:, ::-1])


@each_layer
def test_resets_in_both_directions(rng, kind):
    """The pieces run alone."""
    reset = np.zeros((2, 7), bool)
    reset[0, [0, 3]] = reset[1, 5] = True
    model = Bidirectional(kind(3, 4))
    hidden = states_for(rng, model, 2)
    check(rng, model, draw(rng, (2, 7, 3), mx.float32), hidden, reset=reset)


def test_states_that_are_no_pairs():
    model, x = Bidirectional(LSTM(3, 4)), mx.zeros((2, 5, 3))
    for use in (model, model.plan):
        with pytest.raises(TypeError, match=r"hidden\[1\] must be a pair .*array"):
            use(x, (None, mx.zeros((2, 4))))
        with pytest.raises(ValueError, match=r"hidden\[0\] must be a pair .* has 3"):
            use(x, ([None] * 3, None))


@each_layer
@pytest.mark.parametrize("merge", MERGES)
def test_skipped_steps_in_both_directions(rng, merge, kind):
    mask = np.array([[1, 0, 0, 1, 1, 0], [0, 1, 1, 1, 0, 0], [0] * 6], bool)
    x = mx.where(mx.array(mask)[..., None], draw(rng, (3, 6, 3), mx.float32), mx.nan)
    model = Bidirectional(kind(3, 4), merge=merge)
    check(rng, model, x, states_for(rng, model, 3), merge, mask=mask)
    reset = np.array([[0, 1, 0, 0, 1, 0]] * 3, bool)
    check(rng, model, x, None, merge, mask=mask, reset=reset, lengths=[6, 5, 2])


@pytest.mark.parametrize("keywords", [{"checkpoint_every": 2}, {"truncate_every": 3}])
def test_keywords_reach_both_layers(rng, keywords):
    x, c = draw(rng, (2, 7, 3), mx.float64), draw(rng, (2, 7, 8), mx.float64)
    model = in_dtype(Bidirectional(RNN(3, 4)), mx.float64)

    def together(x):
        return model(x, **keywords)

    def apart(x):
        forward = model.forward(x, **keywords)
        return mx.concatenate([forward, model.backward(x, reverse=True, **keywords)], 2)

    for a, b in zip(mx.vjp(together, [x], [c]), mx.vjp(apart, [x], [c]), strict=True):
        equal(a[0], b[0])


@each_layer
def test_transforms(rng, kind):
    model = Bidirectional(kind(3, 4))
    x, h = draw(rng, (4, 5, 3), mx.float32), states_for(rng, model, 4)
    lengths = [5, 0, 2, 3]
    run = lambda x, h, n: model(x, h, lengths=n)  # noqa: E731
    for transform in (mx.compile, mx.vmap):
        check_outputs(transform(model)(x, h), model, x, h)
        got = transform(run)(x, h, mx.array(lengths))
        check_outputs(got, model, x, h, lengths=lengths)
    with exporting():
        check_outputs(model(x, h), model, x, h)


@each_layer
def test_shapeless(rng, kind):
    """Another number of steps and rows."""
    model = Bidirectional(kind(3, 4))
    mx.eval(model.parameters())  # a shapeless function cannot draw them
    x, hidden = draw(rng, (4, 5, 3), mx.float32), states_for(rng, model, 4)

    def run(x, hidden, lengths):
        return model(x, hidden, lengths=lengths)

    shapeless = mx.compile(run, shapeless=True)
    for n, steps, lengths in ((4, 5, [5, 0, 2, 3]), (3, 4, [4, 0, 2])):
        part, before = tree_map(lambda a, n=n: a[:n], (x[:, :steps], hidden))
        got = shapeless(part, before, mx.array(lengths))
        check_outputs(got, model, part, before, lengths=lengths)


@each_layer
@pytest.mark.parametrize("merge", [m for m in MERGES if m])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=name_of)
def test_one_launch_of_both(rng, merge, dtype, monkeypatch, kind):
    """A long row alone: each direction has a thread of its own."""
    mlx_recurrent.set_num_threads(2)
    model = in_dtype(Bidirectional(kind(60, 64), merge=merge), dtype)
    mx.eval(model.parameters())
    x, c = draw(rng, (1, 800, 60), dtype), draw(rng, (1, 800, 64), dtype)
    c = mx.concatenate([c, -c], -1) if merge == "concat" else c
    h = states_for(rng, model, 1, dtype)
    reset = mx.array(rng.random((1, 800)) < 0.01)
    calls = [
        {},
        {"hidden": h},
        {"lengths": [530], "hidden": h},
        {"reset": reset, "truncate_every": 50},
        {"mask": mx.array(rng.random((1, 800)) < 0.7), "hidden": h},
    ]

    def outputs_and_gradients(**call):
        def loss(tree, x):
            model.update(tree)
            outputs = model(x, **call)
            return (outputs * c).sum(), outputs

        (_, outputs), gradients = mx.value_and_grad(loss, (0, 1))(model.parameters(), x)
        return [outputs, *(a for _, a in tree_flatten(gradients))]

    with monkeypatch.context() as patch:
        patch.setattr(Bidirectional, "_run_at_once", lambda *_: None)
        expected = [outputs_and_gradients(**call) for call in calls]
    monkeypatch.setattr(Bidirectional, "_run", None)
    shapeless = mx.compile(lambda x: model(x), shapeless=True)
    equal(shapeless(x), model(x))
    equal(shapeless(x[:, :600]), model(x[:, :600]))
    for call, wanted in zip(calls, expected, strict=True):
        for a, b in zip(outputs_and_gradients(**call), wanted, strict=True):
            agree(a, b)


@each_layer
def test_one_launch_keeps_directions_apart(rng, kind):
    """NaN of one direction does not reach the other's gradients."""
    mlx_recurrent.set_num_threads(2)
    model = Bidirectional(kind(60, 64))
    x = draw(rng, (1, 800, 60), mx.float32)
    hidden = states_for(rng, model, 1)
    hidden = hidden[0], tree_map(lambda a: mx.full(a.shape, mx.nan), hidden[1])

    def forward_half(tree):
        model.update(tree)
        return model(x, hidden)[..., :64].sum()

    gradients = mx.grad(forward_half)(model.parameters())
    for name, a in gradients["forward"].items():
        assert mx.all(mx.isfinite(a)), name


@pytest.mark.parametrize("shape", [(1, 64), (800, 64), (1,)], ids=name_of)
def test_one_launch_of_other_biases(rng, shape):
    mlx_recurrent.set_num_threads(2)
    model = Bidirectional(RNN(60, 64))
    for layer in (model.forward, model.backward):
        layer.bias = draw(rng, shape, mx.float32)
    x = draw(rng, (1, 800, 60), mx.float32)
    two = [model.forward(x), model.backward(x, reverse=True)]
    equal(model(x), mx.concatenate(two, -1))


def test_accelerate(rng):
    model = accelerate(Bidirectional(nn.RNN(3, 4), nn.RNN(3, 4)))
    assert type(model.forward) is RNN and type(model.backward) is RNN
    assert model(draw(rng, (2, 5, 3), mx.float32)).shape == (2, 5, 8)


def test_directions_may_be_stacks(rng):
    model = Bidirectional(Stack.build(3, 4, 2), Stack.build(3, 4, 2))
    x = draw(rng, (2, 5, 3), mx.float32)
    outputs, (forward, backward) = model(x, return_state=True)
    check_outputs(outputs[..., :4], model.forward, x)
    check_outputs(outputs[..., 4:], model.backward, x, reverse=True)
    equal(outputs[:, -1, :4], forward[1])
    equal(outputs[:, 0, 4:], backward[1])


def test_repr():
    assert repr(Bidirectional(RNN(3, 4), merge="sum")).startswith(
        "Bidirectional(merge=sum\n  (forward): RNN(input_dims=3, hidden_size=4"
    )


class Foreign:
    """What a module of PyTorch looks like, which need not be installed."""

    __module__ = "torch.nn.modules.rnn"

    def __call__(self, x):
        return x


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((RNN(3, 4), None, "add"), ValueError, "merge must be .* 'add'"),
        ((RNN(3, 4), None, 3), ValueError, "merge must be .* 3"),
        (
            (nn.RNN(3, 4),),
            TypeError,
            "forward must be an .* is mlx.nn",
        ),
        (
            (nn.LSTM(3, 4),),
            TypeError,
            "GRU, LSTM or Recurrent where .* mlx.nn",
        ),
        ((3, RNN(3, 4)), TypeError, "forward must be a layer, but is int"),
        ((RNN(3, 4), 3), TypeError, "backward must be a layer, but is int"),
        (
            (RNN,),
            TypeError,
            r"forward .* is the class RNN: give RNN\(\.\.\.\), an inst",
        ),
        ((RNN(3, 4), nn.GRU), TypeError, "backward must be .* is the class GRU: give"),
        ((Foreign(),), TypeError, r"forward must be .*Foreign: .*interop.from_torch"),
        ((RNN(3, 4), RNN(5, 4)), ValueError, "backward must take 3 .* takes 5"),
        ((RNN(3, 4), RNN(3, 5), "sum"), ValueError, 'have 4 .* "sum", but has 5'),
    ],
)
def test_construction_errors(arguments, error, words):
    with pytest.raises(error, match=words):
        Bidirectional(*arguments)


@pytest.mark.parametrize(
    ("hidden", "error", "words"),
    [
        (mx.zeros((2, 2, 4)), TypeError, "hidden must be a pair .* is mlx.core.array"),
        ((None,), ValueError, "hidden must have two entries, .* has 1"),
        ((None, mx.zeros((6, 2, 4))), ValueError, "hidden .* equal leading axes"),
        ((mx.zeros((2, 5)), None), ValueError, "hidden must have shape"),
    ],
    ids=["array", "one", "batches", "features"],
)
def test_hidden_errors(hidden, error, words):
    with pytest.raises(error, match=words):
        Bidirectional(RNN(3, 4))(mx.zeros((2, 5, 3)), hidden)


def test_no_reverse():
    with pytest.raises(TypeError, match="reverse"):
        Bidirectional(RNN(3, 4))(array(np.zeros((2, 3)), mx.float32), reverse=True)
