"""Draws a case by its number, and judges one."""

import mlx.core as mx
import numpy as np

from fuzz.calls import KINDS
from fuzz.choices import Choices
from fuzz.misuse import Misuse

# Of three cases one is wrong on purpose.
_CALLS = {**KINDS, "misuse": Misuse}
_ORDER = [*KINDS, *["misuse"] * (len(KINDS) // 2)]


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
    return _CALLS[case["call"]](case["call"], choose, rng)


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
