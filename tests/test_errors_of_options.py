"""What an option may not be: the error names it, its value or shape, and the rule."""

import copy
import pickle

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import mlx_recurrent
from cells import flat
from mlx_recurrent import GRU, LSTM, RNN
from tolerances import equal

# name, value, the error, and what it says.
CALL = [
    ("lengths", [1], ValueError, "(2,)", "(1,)"),
    ("lengths", [[1, 2]], ValueError, "(2,)", "(1, 2)"),
    ("lengths", 3, ValueError, "(2,)", "()"),
    ("lengths", mx.array([1, 2, 3]), ValueError, "(2,)", "(3,)"),
    ("lengths", [1, 5], ValueError, "lengths[1]", "5", "0 to L = 4"),
    ("lengths", [-1, 3], ValueError, "lengths[0]", "-1", "0 to L = 4"),
    ("lengths", mx.array([1, 2**31 - 1]), ValueError, "lengths[1]", "0 to L = 4"),
    ("lengths", np.array([1, 2**40]), ValueError, "lengths[1]", "0 to L = 4"),
    ("lengths", [1.0, 2.0], ValueError, "integers", "float64"),
    ("lengths", mx.array([1.0, 2.0]), ValueError, "integers", "float32"),
    ("lengths", [True, False], ValueError, "integers", "bool"),
    ("lengths", mx.array([True, False]), ValueError, "integers", "bool"),
    ("lengths", "ab", TypeError, "integers", "str"),
    ("lengths", [None, 1], TypeError, "integers", "[None, 1]"),
    ("lengths", [2**70, 1], TypeError, "integers", str(2**70)),
    ("lengths", [[1], [2, 3]], ValueError, "integers"),
    ("reset", [1, 0], ValueError, "(2, 4)", "(2,)"),
    ("reset", np.zeros((4, 2), bool), ValueError, "(2, 4)", "(4, 2)"),
    ("reset", np.zeros((2, 4)), ValueError, "booleans", "float64"),
    ("reset", mx.zeros((2, 4)), ValueError, "booleans", "float32"),
    ("reset", np.full((2, 4), 2), ValueError, "reset[0, 0]", "2", "0 or 1"),
    ("reset", mx.full((2, 4), -1, mx.int32), ValueError, "reset[0, 0]", "-1"),
    ("reset", "no", TypeError, "booleans", "str"),
    ("mask", [1, 0], ValueError, "(2, 4)", "(2,)"),
    ("mask", np.zeros((4, 2), bool), ValueError, "(2, 4)", "(4, 2)"),
    ("mask", np.zeros((2, 4)), ValueError, "booleans", "float64"),
    ("mask", mx.zeros((2, 4)), ValueError, "booleans", "float32"),
    ("mask", np.full((2, 4), 2), ValueError, "mask[0, 0]", "2", "0 or 1"),
    ("mask", mx.full((2, 4), -1, mx.int32), ValueError, "mask[0, 0]", "-1"),
    ("mask", "no", TypeError, "booleans", "str"),
    ("reverse", 1, TypeError, "bool", "int"),
    ("reverse", None, TypeError, "bool", "NoneType"),
    ("checkpoint_every", 0, ValueError, "from 1", "0"),
    ("checkpoint_every", -3, ValueError, "from 1", "-3"),
    ("checkpoint_every", 2.0, TypeError, "integer", "float"),
    ("truncate_every", 0, ValueError, "from 1", "0"),
    ("truncate_every", 2**31, ValueError, "2**31 - 1"),
    ("truncate_every", "2", TypeError, "integer", "str"),
]
PROBABILITIES = [
    (1, ValueError, "[0, 1)", "1"),
    (1.5, ValueError, "[0, 1)", "1.5"),
    (-0.1, ValueError, "[0, 1)", "-0.1"),
    (float("nan"), ValueError, "[0, 1)", "nan"),
    (None, TypeError, "number", "NoneType"),
    ("0.5", TypeError, "number", "str"),
    (mx.array(0.5), TypeError, "number", "mlx.core.array"),
]
LAYER = [
    *(
        (name, *row)
        for name in ("zoneout", "input_dropout", "recurrent_dropout")
        for row in PROBABILITIES
    ),
    ("leak", 0, ValueError, "(0, 1]", "0"),
    ("leak", -0.5, ValueError, "(0, 1]", "-0.5"),
    ("leak", 1.01, ValueError, "(0, 1]", "1.01"),
    ("leak", float("nan"), ValueError, "(0, 1]", "nan"),
    ("leak", "0.5", TypeError, "number", "str"),
    ("leak", [0.5] * 5, TypeError, "number", "list"),
    ("leak", mx.full((4,), 0.5), ValueError, "(5,)", "(4,)"),
    ("leak", mx.array(0.5), ValueError, "(5,)", "()"),
    ("leak", mx.ones((5,), mx.int32), ValueError, "floating", "int32"),
    ("leak", mx.ones((5,), mx.complex64), ValueError, "floating", "complex64"),
]
# Of a layer alone: the functions take an array of leaks as it is.
AT_CONSTRUCTION = [
    ("leak", mx.array([0.5, 0, 1, 1, 1]), ValueError, "leak[1]", "0", "(0, 1]"),
    ("leak", np.array([0.5, 1, 1, 2, 1]), ValueError, "leak[3]", "2", "(0, 1]"),
    ("leak", mx.full((5,), mx.nan), ValueError, "leak[0]", "nan", "(0, 1]"),
    ("learn_hidden", 1, TypeError, "bool", "int"),
]
FUNCTIONS = [
    ("hidden0", [0.0] * 5, TypeError, "mlx.core.array", "list"),
    ("hidden0", mx.zeros((4,)), ValueError, "(5,)", "(4,)"),
    ("hidden0", mx.zeros((2, 5)), ValueError, "(5,)", "(2, 5)"),
    ("hidden0", mx.zeros((5,), mx.complex64), ValueError, "hidden0", "complex64"),
    ("training", 1, TypeError, "bool", "int"),
]
X, Z = mx.zeros((2, 4, 3)), mx.zeros((2, 4, 5))


def check(function, row):
    name, value, error, *words = row
    with pytest.raises(error) as caught:
        function(**{name: value})
    message = str(caught.value)
    assert type(caught.value) is error
    for word in (name, *words):
        assert word in message, message


@pytest.mark.parametrize("row", CALL, ids=lambda row: f"{row[0]}={row[1]}"[:40])
def test_of_the_call(row):
    layer, gru, lstm = RNN(3, 5), GRU(3, 5), LSTM(3, 5)
    for function in (
        lambda **k: layer(X, **k),
        lambda **k: layer.plan(X, **k),
        lambda **k: mlx_recurrent.rnn(X, layer.Wxh, layer.Whh, **k),
        lambda **k: mlx_recurrent.scan(Z, layer.Whh, **k),
        lambda **k: gru(X, **k),
        lambda **k: mlx_recurrent.gru(X, gru.Wx, gru.Wh, **k),
        lambda **k: lstm(X, **k),
        lambda **k: lstm.plan(X, **k),
        lambda **k: mlx_recurrent.lstm(X, lstm.Wx, lstm.Wh, **k),
    ):
        check(function, row)


@pytest.mark.parametrize(
    "row", LAYER + AT_CONSTRUCTION, ids=lambda row: f"{row[0]}={row[1]}"[:40]
)
def test_of_the_layer(row):
    before = np.array(mx.random.state[0])
    check(lambda **k: RNN(3, 5, **k), row)
    for kind in (GRU, LSTM):
        if row[0] != "leak":
            check(lambda kind=kind, **k: kind(3, 5, **k), row)
    # Nothing was drawn: the next layer's weights are what they would have been.
    np.testing.assert_array_equal(np.array(mx.random.state[0]), before)


@pytest.mark.parametrize(
    "row", LAYER + FUNCTIONS, ids=lambda row: f"{row[0]}={row[1]}"[:40]
)
def test_of_the_functions(row):
    layer = RNN(3, 5)
    check(
        lambda **k: mlx_recurrent.rnn(X, layer.Wxh, layer.Whh, reverse=True, **k), row
    )
    if row[0] != "input_dropout":
        check(lambda **k: mlx_recurrent.scan(Z, layer.Whh, reverse=True, **k), row)
    if row[0] != "leak":
        gru, lstm = GRU(3, 5), LSTM(3, 5)
        check(lambda **k: mlx_recurrent.gru(X, gru.Wx, gru.Wh, **k), row)
        check(lambda **k: mlx_recurrent.lstm(X, lstm.Wx, lstm.Wh, **k), row)
    if row[0] == "hidden0":
        words = ("cell0" if word == "hidden0" else word for word in row)
        check(lambda **k: mlx_recurrent.lstm(X, lstm.Wx, lstm.Wh, **k), tuple(words))


def test_errors_draw_nothing():
    layer = RNN(3, 5, zoneout=0.5)
    before = np.array(mx.random.state[0])
    with pytest.raises(ValueError, match="lengths"):
        layer(X, lengths=[9, 9])
    np.testing.assert_array_equal(np.array(mx.random.state[0]), before)


@pytest.mark.parametrize(
    "option",
    [
        {"lengths": [4, 4]},
        {"reset": np.zeros((2, 4), bool)},
        {"mask": np.ones((2, 4), bool)},
        {"reverse": True},
        {"leak": 0.5},
        {"zoneout": 0.5},
        {"hidden0": mx.zeros((10,))},
        {"truncate_every": 2},
        {"checkpoint_every": 2},
    ],
    ids=lambda option: next(iter(option)),
)
def test_a_whh_that_is_not_square(option):
    """A callable may change the number of features, but not with an option."""
    Wxh, Whh = mx.ones((10, 3)), mx.ones((10, 5))
    mlx_recurrent.rnn(X, Wxh, Whh, nonlinearity=nn.glu)
    given = {"zoneout": float("0"), "leak": 1, "hidden0": None}  # no option
    mlx_recurrent.rnn(X, Wxh, Whh, nonlinearity=nn.glu, **given)
    with pytest.raises(ValueError, match=r"Whh .*\(10, 10\).* \(10, 5\)"):
        mlx_recurrent.rnn(X, Wxh, Whh, nonlinearity=nn.glu, **option)


def test_a_callable_that_changes_the_shape():
    layer = RNN(3, 5, nonlinearity=lambda a: a[..., :2])
    assert layer(X[:, :1]).shape == (2, 1, 2)
    with pytest.raises(ValueError, match=r"nonlinearity .*\(2, 2\).*\(2, 5\)"):
        layer(X[:, :1], lengths=[1, 0])


def test_options_are_keyword_only():
    with pytest.raises(TypeError):
        RNN(3, 5, True, None, 0.5)
    layer = RNN(3, 5)
    with pytest.raises(TypeError):
        layer(X, None, [1, 2])
    with pytest.raises(TypeError):
        layer.step(X[:, 0], None, [True, False])


def test_repr():
    plain, theirs = RNN(3, 5), nn.RNN(3, 5)
    assert repr(plain) == repr(theirs)
    layer = RNN(
        3,
        5,
        leak=mx.full((5,), 0.5),
        zoneout=0.1,
        input_dropout=0.2,
        recurrent_dropout=0.3,
        learn_hidden=True,
    )
    assert repr(layer) == repr(theirs)[:-1] + (
        ", leak=learned, zoneout=0.1, input_dropout=0.2, recurrent_dropout=0.3, "
        "learn_hidden=True)"
    )
    assert "leak=0.5" in repr(RNN(3, 5, leak=0.5))


@pytest.mark.parametrize("kind", [RNN, GRU, LSTM])
def test_a_layer_without_options_is_as_it_was(kind):
    """It holds no more than upstream's, so that files go both ways."""
    layer, theirs = kind(3, 5), getattr(nn, kind.__name__)(3, 5)
    assert vars(layer).keys() == vars(theirs).keys()
    assert set(layer) == set(theirs)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
@pytest.mark.parametrize(
    "layer",
    [
        RNN(3, 5, leak=0.5, zoneout=0.1, recurrent_dropout=0.3, learn_hidden=True),
        GRU(3, 5, reset_after=False, zoneout=0.1, recurrent_dropout=0.3),
        LSTM(3, 5, zoneout=(0.1, 0.5), input_dropout=0.3, learn_hidden=True),
    ],
    ids=["RNN", "GRU", "LSTM"],
)
def test_copies_keep_their_options(copied, layer):
    other = copied(layer)
    assert repr(other) == repr(layer)
    results = []
    for one in (layer, other):
        mx.random.seed(2)
        results.append(one(mx.ones((2, 4, 3)), lengths=[3, 4], return_state="only"))
    for a, b in zip(flat(results[0]), flat(results[1]), strict=True):
        equal(a, b)


@pytest.mark.parametrize(
    "zoneout, error, words",
    [
        ((0.1, 0.2, 0.3), ValueError, "zoneout must be a number, or a pair .* has 3"),
        ((0.1, 1.0), ValueError, r"zoneout\[1\] must be in \[0, 1\), but is 1.0"),
        (("a", 0.1), TypeError, r"zoneout\[0\] must be a number, but is str"),
        (1.5, ValueError, r"zoneout must be in \[0, 1\), but is 1.5"),
    ],
)
def test_zoneout_of_two_states(zoneout, error, words):
    layer, x = LSTM(3, 4), mx.zeros((2, 5, 3))
    with pytest.raises(error, match=words):
        LSTM(3, 4, zoneout=zoneout)
    layer.zoneout = zoneout
    for use in (layer, layer.plan, lambda x: layer.stream()):
        with pytest.raises(error, match=words):
            use(x)


@pytest.mark.parametrize("kind", [RNN, GRU])
def test_zoneout_of_one_state_is_a_number(kind):
    with pytest.raises(TypeError, match="zoneout must be a number, but is tuple"):
        kind(3, 4, zoneout=(0.1, 0.2))
