"""Draws a case by its number, and judges one."""

from itertools import count

import mlx.core as mx
import numpy as np

from fuzz import calls, declared, interchange, misuse, models, operators, stacks
from fuzz.choices import Choices

_PARTS = (interchange, models, operators, misuse)
OF_FRAMEWORKS = {name: kind for of in _PARTS for name, kind in of.KINDS.items()}
_RIGHT = calls.KINDS | stacks.KINDS | declared.KINDS
OURS = {**_RIGHT, "misuse": misuse.Misuse}
CALLS = OURS | OF_FRAMEWORKS
# What cannot be called here, and the package that it needs.
LEFT_OUT = {name: package for of in _PARTS for name, package in of.LEFT_OUT.items()}
# Of three cases one is wrong on purpose; each round has two of another framework's.
_ROUND = [*_RIGHT, *["misuse"] * (len(_RIGHT) // 2)]
_ORDER = [
    name
    for i, _ in enumerate(OF_FRAMEWORKS)
    for name in [*_ROUND, *(2 * [*OF_FRAMEWORKS])[i : i + 2]]
] or _ROUND


def numbers_of(calls, first=0):
    """The numbers of the cases of these calls, from one on."""
    return (n for n in count(first) if _ORDER[n % len(_ORDER)] in calls)


def draw(seed, number):
    """The case of a number, as a dictionary of literals."""
    rng = np.random.default_rng([seed, number])
    case = {"call": _ORDER[number % len(_ORDER)], "seed": int(rng.integers(2**31))}
    _made(case, Choices(case, rng))
    return case


def judge(case):
    """Raise an ``AssertionError``, or what a call raised, where a case is not right."""
    mx.set_default_device(mx.cpu)
    _made(case, Choices(case)).check()


def _made(case, choose):
    rng = np.random.default_rng(case["seed"])
    return CALLS[case["call"]](case["call"], choose, rng)


def simpler(case, fails):
    """The case with all those choices made simple without which it fails too.

    Args:
        case (dict): The case.
        fails (callable): Whether a case fails in the same way.
    """
    case = dict(case)
    for name in [n for n in case if n not in ("call", "seed")]:
        less = {n: v for n, v in case.items() if n != name}
        if fails(less):
            case = less
    return case
