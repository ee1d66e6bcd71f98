"""Copies and pickles: of MLX's functions, of layers, and what cannot be pickled."""

import copy
import functools
import operator
import pickle
import sys
import types

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.nn.layers import activations
from mlx.utils import tree_flatten

import scripts
from conftest import DTYPES, draw
from mlx_recurrent import RNN, Bidirectional, Linear, Stack
from mlx_recurrent.interop import Reversed
from mlx_recurrent.interop.activations import Clipped, HardSigmoid
from tolerances import equal

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)


def pickled(value, protocol=None):
    return pickle.loads(pickle.dumps(value, protocol))


CLONES = pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, pickled])

# Every function that MLX exports, by module and name.
EXPORTED = {
    f"{module.__name__}.{name}": value
    for module in (mx, mx.fast, mx.fft, mx.linalg, mx.random, nn, activations)
    for name, value in vars(module).items()
    if not name.startswith("_")
    and callable(value)
    and not isinstance(value, type)
    and not isinstance(value, types.GenericAlias)
    and getattr(value, "__module__", "").startswith("mlx.")
}
# Those that are activations of one array, without a change of its shape.
ACTIVATIONS = sorted(
    name
    for name in vars(activations)
    if f"mlx.nn.layers.activations.{name}" in EXPORTED and name not in ("glu", "prelu")
)


def same_trees(ours, theirs):
    ours, theirs = (dict(tree_flatten(tree)) for tree in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for name, a in ours.items():
        equal(a, theirs[name], name)


def cube(a):
    return mx.tanh(a**3)


@mx.compile
def compiled_cube(a):
    return mx.tanh(a**3)


@mx.custom_function
def own_gradient(a):
    return mx.tanh(a)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = mx.array([0.5, 1.0, 2.0, 1.0])

    def __call__(self, a):
        return mx.tanh(self.scale * a)


class Noted(RNN):
    """A subclass with attributes of its own."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.act, self.kind = nn.gelu, mx.float16
        self.notes = {"scale": mx.ones(3), "functions": [mx.tanh, cube]}

    def __call__(self, x, hidden=None, **keywords):
        return self.act(super().__call__(x, hidden, **keywords))


def test_mlx_exports_them():
    assert {"mlx.core.tanh", "mlx.core.linalg.norm"} <= set(EXPORTED)
    assert {"mlx.nn.relu", "mlx.nn.layers.activations.mish"} <= set(EXPORTED)
    assert len(EXPORTED) > 300 and len(ACTIVATIONS) > 20


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_functions_that_mlx_exports(protocol):
    for name, function in EXPORTED.items():
        assert copy.copy(function) is function, name
        assert copy.deepcopy(function) is function, name
        assert pickled(function, protocol) is function, name
    part = pickled(functools.partial(nn.leaky_relu, negative_slope=0.2), protocol)
    assert part.func is nn.leaky_relu and part.keywords == {"negative_slope": 0.2}
    assert pickled(mx.array.square, protocol) is mx.array.square
    assert pickled(compiled_cube, protocol) is compiled_cube


@CLONES
@pytest.mark.parametrize("dtype", [*DTYPES, mx.int32, mx.bool_, mx.complex64], ids=str)
def test_arrays_and_dtypes(rng, dtype, clone):
    a = draw(rng, (3, 4), mx.float64).astype(dtype)
    b = clone(a)
    assert b.dtype == dtype
    assert mx.array_equal(a, b)
    assert clone(dtype) == dtype


@CLONES
@pytest.mark.parametrize(
    "nonlinearity",
    [
        *(getattr(nn, name) for name in ACTIVATIONS),
        *(mx.tanh, mx.sigmoid, mx.exp, mx.sin, mx.softmax, mx.array.square),
        *(nn.ReLU(), nn.PReLU(), nn.Softmax(), nn.LayerNorm(4), nn.Identity()),
        *(functools.partial(nn.leaky_relu, negative_slope=0.2), cube, compiled_cube),
        *(Scaled(), nn.Sequential(nn.Linear(4, 4), nn.gelu, mx.tanh)),
        *(HardSigmoid(0.2, 0.5), Clipped(nn.relu, 1.0)),
    ],
    ids=lambda f: getattr(f, "__name__", type(f).__name__),
)
def test_layers(rng, nonlinearity, clone):
    layer = RNN(3, 4, nonlinearity=nonlinearity)
    layer.freeze(keys="Whh")
    layer.eval()
    other = clone(layer)
    assert type(other) is RNN and not other.training
    same_trees(other.parameters(), layer.parameters())
    same_trees(other.trainable_parameters(), layer.trainable_parameters())
    if not isinstance(nonlinearity, (nn.Module, functools.partial)):
        assert getattr(other.nonlinearity, "func", nonlinearity) == nonlinearity
    x = draw(rng, (2, 5, 3), mx.float32)
    assert repr(other.plan(x)) == repr(layer.plan(x))
    equal(other(x), layer(x))


@pytest.mark.parametrize("clone", [copy.deepcopy, pickled])
def test_recognised_functions_are_the_same_objects(clone):
    x = mx.zeros((5, 3))
    for function in (None, mx.tanh, nn.tanh, mx.sigmoid, nn.sigmoid, nn.relu):
        layer = RNN(3, 4, nonlinearity=function)
        other = clone(layer)
        assert other.nonlinearity is layer.nonlinearity
        assert other.plan(x).path == "native"


MODELS = {
    "linear": lambda: Linear(3, 4),
    "stack": lambda: Stack.build(3, 4, 2, dropout=0.1, nonlinearity=nn.silu),
    "both ways": lambda: Bidirectional(RNN(3, 4, nonlinearity=nn.relu)),
    "a merge": lambda: Bidirectional(RNN(3, 4), merge=mx.maximum),
    "another merge": lambda: Bidirectional(RNN(3, 4), merge=operator.sub),
    "stack of both": lambda: Stack.build(3, 4, 2, bidirectional=True, residual=True),
    "reversed": lambda: Reversed(RNN(3, 4, nonlinearity=mx.sigmoid)),
    "options": lambda: RNN(
        3, 4, False, nn.gelu, leak=mx.array([0.5] * 4), learn_hidden=True
    ),
    "subclass": lambda: Noted(3, 4, True, nn.mish),
    "in a model": lambda: nn.Sequential(
        nn.Linear(3, 3), nn.relu, RNN(3, 4, nonlinearity=nn.elu), Linear(4, 2)
    ),
}


@pytest.mark.parametrize("clone", [copy.deepcopy, pickled])
@pytest.mark.parametrize("name", MODELS)
def test_models(rng, name, clone):
    model = MODELS[name]()
    model.eval()
    other = clone(model)
    assert type(other) is type(model)
    same_trees(other.parameters(), model.parameters())
    x = draw(rng, (2, 5, 3), mx.float32)
    equal(other(x), model(x))


def test_a_subclass_keeps_its_attributes():
    layer = Noted(3, 4)
    for other in (copy.deepcopy(layer), *(pickled(layer, p) for p in PROTOCOLS)):
        assert other.act is nn.gelu and other.kind == mx.float16
        assert other.notes["functions"] == [mx.tanh, cube]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_protocol(rng, dtype):
    layer = RNN(3, 4, nonlinearity=nn.relu)
    layer.Wxh = draw(rng, (4, 3), mx.float64)
    layer.set_dtype(dtype)
    for protocol in PROTOCOLS:
        same_trees(pickled(layer, protocol).parameters(), layer.parameters())


def test_a_pickle_of_a_version_before():
    """It holds nothing that MLX's layer does not hold."""
    layer, theirs = RNN(3, 4, leak=0.5), nn.RNN(3, 4)
    for name in vars(layer).keys() - vars(theirs).keys() - {"leak"}:
        del vars(layer)[name]
    other = pickled(layer)
    assert repr(other) == repr(layer)
    equal(other(mx.ones((5, 3))), layer(mx.ones((5, 3))))


def test_a_target_network_and_an_average():
    online = RNN(3, 4, nonlinearity=nn.gelu)
    target = copy.deepcopy(online)
    before = np.array(target.Whh)
    online.Whh = online.Whh + 1
    assert np.array_equal(target.Whh, before)
    target.update({"Whh": 0.5 * target.Whh + 0.5 * online.Whh})
    assert np.allclose(target.Whh, before + 0.5)


def hold(value):
    """A layer with an attribute of its own."""
    layer = RNN(3, 4)
    layer.mine = value
    return layer


def of_a_local_class():
    class Local(nn.Module):
        def __call__(self, a):
            return a

    return Local()


NAMELESS = {
    "nonlinearity": lambda f: RNN(3, 4, nonlinearity=f),
    "merge": lambda f: Bidirectional(RNN(3, 4), merge=lambda a, b: f(a + b)),
    "mine": hold,
    "mine.parts.1": lambda f: hold({"parts": [3, f]}),
    "nonlinearity.layers.1": lambda f: RNN(
        3, 4, nonlinearity=nn.Sequential(nn.Linear(4, 4), f)
    ),
    "layers.1.nonlinearity": lambda f: Stack([RNN(3, 4), RNN(4, 4, nonlinearity=f)]),
    "layers.0.forward.nonlinearity": lambda f: Stack.build(
        3, 4, 2, bidirectional=True, nonlinearity=f
    ),
    "backward.nonlinearity": lambda f: Reversed(RNN(3, 4, nonlinearity=f)),
}


@pytest.mark.parametrize("place", NAMELESS)
def test_a_lambda_copies_and_its_pickle_error_names_the_place(rng, place):
    layer = NAMELESS[place](lambda a: mx.tanh(a) * 0.5)
    x = draw(rng, (2, 5, 3), mx.float32)
    for clone in (copy.copy, copy.deepcopy):
        equal(clone(layer)(x), layer(x))
    for protocol in PROTOCOLS:
        with pytest.raises(pickle.PicklingError) as raised:
            pickle.dumps(nn.Sequential(layer), protocol)
        sentence = str(raised.value)
        assert sentence.startswith(f"{place} cannot be pickled (")
        assert "give a function" in sentence and "copy.deepcopy" in sentence


@pytest.mark.parametrize(
    "function",
    [
        lambda a: a,
        mx.compile(lambda a: a),
        mx.compile(cube),  # another object than the function of that name
        mx.compile(functools.partial(nn.leaky_relu, negative_slope=0.2)),
        functools.partial(lambda a, b: a, b=1),
        mx.custom_function(lambda a: a),
        own_gradient,
        of_a_local_class(),
    ],
    ids=lambda f: type(f).__name__,
)
def test_what_has_no_name(function):
    layer = RNN(3, 4, nonlinearity=function)
    other = copy.deepcopy(layer)
    equal(other(mx.ones((5, 3))), layer(mx.ones((5, 3))))
    with pytest.raises(pickle.PicklingError, match=r"^nonlinearity cannot be pickled"):
        pickle.dumps(layer)


WHOLE = """
import io, pickle, types

class Pickler(pickle.Pickler):
    def reducer_override(self, value):
        if type(value) is not types.FunctionType or value.__name__ != "<lambda>":
            return NotImplemented
        return eval, ("lambda a: a * 2",)

    def dump(self, value):
        super().dump(value)

def dumps(value):
    file = io.BytesIO()
    Pickler(file).dump(value)
    return file.getvalue()
"""


def test_picklers_that_take_functions_whole(monkeypatch):
    cloudpickle = types.ModuleType("cloudpickle")
    exec(WHOLE, vars(cloudpickle))
    monkeypatch.setitem(sys.modules, "cloudpickle", cloudpickle)
    layer = RNN(3, 4, nonlinearity=lambda a: a * 2)
    other = pickle.loads(cloudpickle.dumps(nn.Sequential(layer))).layers[0]
    equal(other(mx.ones((5, 3))), layer(mx.ones((5, 3))))


SPAWNED = """
import multiprocessing
import threading

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_recurrent import RNN, Bidirectional, Stack


def run(model, x):
    return np.array(model(mx.array(x)))


def work(models, x):
    found = []
    thread = threading.Thread(target=lambda: found.append(run(models[0], x)))
    thread.start()
    thread.join()
    assert models[0].plan(mx.array(x)).path == "native"
    theirs = [run(model, x) for model in models]
    assert np.array_equal(found[0], theirs[0])
    return theirs


if __name__ == "__main__":
    models = [
        RNN(3, 4, nonlinearity=nn.relu),
        RNN(3, 4, nonlinearity=nn.gelu),
        Stack.build(3, 4, 2, bidirectional=True, nonlinearity=mx.sigmoid),
        Bidirectional(RNN(3, 4), merge=mx.maximum),
    ]
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:  # a thread of the pool pickles them
            pool.apply(work, (models, x))
        except RuntimeError as error:
            assert "mx.eval" in str(error), error
        else:
            raise AssertionError
        mx.eval([model.parameters() for model in models])
        theirs = pool.apply(work, (models, x))
    for model, y in zip(models, theirs, strict=True):
        assert np.array_equal(y, run(model, x))
    print("done")
"""


def test_spawned_workers(tmp_path):
    program = tmp_path / "spawned.py"
    program.write_text(SPAWNED)
    scripts.run(str(program))
