"""Every public name has an example in its docstring, and each gives what it says."""

import doctest
import inspect
import os
from importlib.util import find_spec

import pytest

import mlx_recurrent
from mlx_recurrent import init, interop
from mlx_recurrent.layers import stack_stream
from mlx_recurrent.layers.recurrent_layer import RecurrentLayer


def methods(kind):
    """What a class defines, and what a layer has of :class:`RecurrentLayer`."""
    shared = [base for base in kind.__mro__ if issubclass(base, RecurrentLayer)]
    found = {}
    for base in reversed(shared or [kind]):
        found |= vars(base)
    return found


def public():
    """Every public class, function and method, by its full name."""
    owners = [(mlx_recurrent, name) for name in mlx_recurrent.__all__]
    owners += [(stack_stream, "StackStream")]  # what Stack.stream returns
    owners += [(init, name) for name in vars(init) if name.endswith("_")]
    for owner, name in owners:
        value = getattr(owner, name)
        if name.startswith("_") or inspect.ismodule(value):
            continue
        yield f"{owner.__name__}.{name}", value
        if inspect.isclass(value):
            for method, function in methods(value).items():
                function = getattr(function, "__func__", function)
                if inspect.isfunction(function) and not method.startswith("_"):
                    yield f"{owner.__name__}.{name}.{method}", function


PUBLIC = dict(public())


def run(value, name):
    text = inspect.getdoc(value) or ""
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    assert example.examples, f"{name} has no example"
    failures, _ = doctest.DocTestRunner().run(example)
    assert not failures


@pytest.mark.parametrize("name", PUBLIC)
def test_example(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    run(PUBLIC[name], name)


@pytest.mark.parametrize("name", interop.__all__)
# Keras's own, of its arrays.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_example_of_a_conversion(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Keras reads it when it is imported; one's own choice stays.
    os.environ.setdefault("KERAS_BACKEND", "torch" if find_spec("torch") else "jax")
    way, _, peer = name.partition("_")
    if way in ("from", "to"):
        pytest.importorskip(peer, reason=f"{peer} is not installed")
    run(getattr(interop, name), name)
