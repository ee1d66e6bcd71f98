"""A module like another one, with arrays of its own."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_recurrent import RNN
from mlx_recurrent.layers.duplicate import duplicate
from tolerances import equal


def test_arrays_and_modules_are_its_own():
    module = nn.Sequential(nn.Linear(3, 4), nn.PReLU())
    new = duplicate(module)
    for (name, a), (_, b) in zip(
        tree_flatten(module.parameters()), tree_flatten(new.parameters()), strict=True
    ):
        assert a is not b
        equal(a, b, name)
    new.layers[1].weight[0] = 7.0
    assert module.layers[1].weight[0] != 7.0


def test_functions_are_shared_and_what_is_held_twice_stays_one():
    module = nn.Module()
    module.f = [nn.relu, nn.silu]
    module.a = module.b = nn.Linear(2, 2)
    module.pair = (module.a, 3)
    module.parts = [module]
    new = duplicate(module)
    assert new.f is not module.f and new.f == module.f
    assert new.a is new.b is new.pair[0] and new.a is not module.a
    assert new.parts[0] is new


def test_mode_and_frozen_names_are_copied():
    layer = RNN(3, 4, leak=0.5)
    layer.eval()
    layer.freeze(keys="Whh")
    new = duplicate(layer)
    assert type(new) is RNN and new.leak == 0.5 and not new.training
    assert "Whh" not in new.trainable_parameters()
    new.unfreeze()
    assert "Whh" not in layer.trainable_parameters()


def test_streams_copy_such_modules():
    layer = RNN(3, 4, nonlinearity=nn.Sequential(nn.Linear(4, 4), nn.relu))
    mx.eval(layer.parameters())
    stream = layer.stream()
    first = stream(np.ones(3, np.float32))
    layer.nonlinearity.layers[0].weight += 1
    stream.reset()
    assert np.array_equal(stream(np.ones(3, np.float32)), first)
