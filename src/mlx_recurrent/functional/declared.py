"""Cells that users declare: a function of one step, and what its arguments are."""

import inspect
import keyword
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlx_recurrent.functional.cells import DeclaredCell
from mlx_recurrent.functional.judging import (
    FLOATING,
    dtype_name,
    float_of,
    shown,
    type_name,
)
from mlx_recurrent.functional.options import CallOptions

_WEIGHTS = ("Wx", "Wh", "b", "bh")
# Of any module: what no name must hide; and of a layer, whose attributes parameters
# and learned states become.
_OF_MODULES = frozenset((*dir(Module), "training"))
_OF_LAYERS = frozenset(
    "cell hidden_size input_dropout plan recurrent_dropout step stream zoneout".split()
)
# Of its call, where states are given by name.
_KEYWORDS = frozenset(("x", "return_state", *CallOptions.__annotations__))


@dataclass(frozen=True)
class DeclaredStep:
    """A declared cell's function, of arrays in the order of these names.

    Args:
        name (str): The cell's name.
        arguments (tuple(str)): The names of what it takes.
        states (tuple(str)): The names of what it returns.
        function (callable): The function.
    """

    name: str
    arguments: tuple[str, ...]
    states: tuple[str, ...]
    function: Callable[..., Any]

    def __call__(self, *values: mx.array) -> tuple[mx.array, ...]:
        """Return the new states.

        Raises:
            TypeError: If a result is no array.
            ValueError: If there are too few or too many, or one is of another shape or
                dtype than the arrays that the function was given.
        """
        given = dict(zip(self.arguments, values, strict=True))
        results = self.function(**given)
        if not isinstance(results, (tuple, list)):
            results = (results,)
        count = len(self.states)
        if len(results) != count:
            listed = ", ".join(self.states)
            states = "1 state" if count == 1 else f"{count} states"
            raise ValueError(
                f"the cell {self.name} must return {states} ({listed}), but returned "
                f"{len(results)}"
            )
        like = given[self.states[0]]
        for name, result in zip(self.states, results, strict=True):
            self._judge(name, result, like)
        return tuple(results)

    def _judge(self, name: str, result: Any, like: mx.array) -> None:
        state = f"the cell {self.name} must return its state {name}"
        if not isinstance(result, mx.array):
            raise TypeError(f"{state} as an mx.array, but returned {type_name(result)}")
        if result.shape != like.shape:
            raise ValueError(
                f"{state} in the shape that it is given, {like.shape}, but returned "
                f"shape {result.shape}"
            )
        if result.dtype != like.dtype:
            raise ValueError(
                f"{state} in the dtype that it is given, {dtype_name(like.dtype)}, but "
                f"returned {dtype_name(result.dtype)}: {name}.astype(...) converts"
            )


def declare(
    function: Any,
    *,
    gates: Any,
    input_gates: Any,
    hidden_gates: Any,
    states: Any,
    parameters: Any,
) -> DeclaredCell:
    """Return the cell of a function, from what the user has said of its arguments.

    Raises:
        TypeError: If something is of the wrong type.
        ValueError: If the names are not those that the function takes, or one of them
            cannot be used.
    """
    if not callable(function) or isinstance(function, type):
        raise TypeError(
            f"cell must decorate a function of one step, but is {type_name(function)}"
        )
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, Mapping):
        raise TypeError(
            "parameters must be a dictionary of what each starts from, but is "
            f"{type_name(parameters)}"
        )
    named = {
        "gates": judge_names("gates", gates),
        "input_gates": judge_names("input_gates", input_gates),
        "hidden_gates": judge_names("hidden_gates", hidden_gates),
        "states": judge_names("states", states),
        "parameters": judge_names("parameters", list(parameters)),
    }
    if not named["states"]:
        raise ValueError("states must name at least one state, but is empty")
    if not named["gates"] and not named["input_gates"]:
        raise ValueError(
            "gates or input_gates must name at least one pre-activation of the input, "
            "but both are empty"
        )
    for name, start in parameters.items():
        _judge_start(name, start)
    name = getattr(function, "__name__", type(function).__name__)
    _judge_uses(named)
    _judge_signature(name, function, named)
    of_step = (*named["gates"], *named["input_gates"], *named["hidden_gates"])
    arguments = (*of_step, *named["states"], *named["parameters"])
    made = DeclaredCell(
        name=name,
        gates=named["gates"],
        states=named["states"],
        input_gates=named["input_gates"],
        hidden_gates=named["hidden_gates"],
        parameters=named["parameters"],
        hidden_bias="bh" if named["hidden_gates"] else "",
        step=DeclaredStep(name, arguments, named["states"], function),
        function=function,
        initial=dict(parameters),
    )
    for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
        object.__setattr__(made, attribute, getattr(function, attribute, None))
    return made


def judge_names(option: str, names: Any) -> tuple[str, ...]:
    """Return names, which were given in one text or as a sequence of them."""
    each = names.split() if isinstance(names, str) else names
    if not isinstance(each, Sequence) or not all(isinstance(n, str) for n in each):
        raise TypeError(
            f"{option} must be names, in a text or a list, but is {shown(names)}"
        )
    for name in each:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise ValueError(
                f"{option} must hold names of arguments, but holds {shown(name)}"
            )
    return tuple(each)


def initial_of(cell: DeclaredCell, H: int) -> dict[str, mx.array]:
    """Return what the parameters of a cell with ``H`` units start from, by name.

    Raises:
        TypeError: If a function of the user's returns no array.
        ValueError: If it returns one of another shape or dtype.
    """
    made: dict[str, mx.array] = {}
    for name, start in cell.initial.items():
        if not callable(start):
            made[name] = mx.full((H,), float_of(start))
            continue
        value = start((H,))
        what = f"parameters[{name!r}] must return"
        if not isinstance(value, mx.array):
            raise TypeError(f"{what} an mx.array, but returned {type_name(value)}")
        if value.shape != (H,) or value.dtype not in FLOATING:
            raise ValueError(
                f"{what} a real floating array of the shape ({H},) that it is given, "
                f"but returned shape {value.shape}, {dtype_name(value.dtype)}"
            )
        made[name] = value
    return made


def _judge_start(name: str, start: Any) -> None:
    if not isinstance(start, Real) and not callable(start):
        raise TypeError(
            f"parameters[{name!r}] must be what it starts from, a number or a function "
            f"of the shape, but is {type_name(start)}"
        )


def _judge_uses(named: Mapping[str, Collection[str]]) -> None:
    """Raise for a name that is used twice, or that something else has."""
    uses = [
        (name, option, f"{option} names {name!r}", option == "parameters")
        for option, names in named.items()
        for name in names
    ]
    uses += [
        (f"{name}0", "states", f"states makes {name + '0'!r} of {name!r}", True)
        for name in named["states"]
    ]
    seen: dict[str, str] = {}
    for name, option, what, becomes_attribute in uses:
        if name in _WEIGHTS:
            raise ValueError(f"{what}, which is a weight of the layer")
        if name in _OF_MODULES or (becomes_attribute and name in _OF_LAYERS):
            raise ValueError(f"{what}, which is an attribute of the layer")
        if option in ("states", "parameters") and name in _KEYWORDS:
            raise ValueError(f"{what}, which is an argument of the layer's call")
        if name in seen:
            raise ValueError(f"{what}, which {seen[name]} has already")
        seen[name] = option


def _judge_signature(
    name: str, function: Any, named: Mapping[str, Collection[str]]
) -> None:
    """Raise where the function does not take what is named, or takes more."""
    known = {n: option for option, names in named.items() for n in names}
    taken = inspect.signature(function).parameters
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for argument in taken.values():
        if argument.kind not in kinds:
            raise ValueError(
                f"the cell {name} must take its arguments by name, but has {argument}"
            )
        if argument.name not in known and argument.default is argument.empty:
            raise ValueError(
                f"the cell {name} takes {argument.name!r}, which is none of gates, "
                "input_gates, hidden_gates, states and parameters"
            )
    for argument_name, option in known.items():
        if argument_name not in taken:
            raise ValueError(
                f"{option} names {argument_name!r}, which the cell {name} does not take"
            )
