"""The random masks of a call in MLX's operations: the same that the kernels draw.

Threefry-4x32 with 13 rounds (Salmon, Moraes, Dror and Shaw, "Parallel random numbers:
as easy as 1, 2, 3", 2011) makes four words of a key and a counter. What an element
draws depends on its place alone.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum

import mlx.core as mx

from mlx_recurrent import _native
from mlx_recurrent.functional.values import values_of

_ROUNDS = 13
_ROTATIONS = (
    (10, 26),
    (11, 21),
    (13, 27),
    (23, 5),
    (6, 20),
    (17, 11),
    (25, 10),
    (18, 20),
)
_PARITY = 0x1BD11BDA
# The words of a counter belong to units this far apart: a register of the widest
# instruction set, so that a kernel fills whole registers.
_LANES = 16
_WORDS = 4


class Mask(IntEnum):
    """What a mask is for: the last number of its counters."""

    ZONEOUT = 0
    RECURRENT_DROPOUT = 1
    INPUT_DROPOUT = 2


def zoneout_mask(state: int) -> int:
    """Return what a mask is for that keeps units of a cell's state of this number."""
    return Mask.ZONEOUT if state == 0 else Mask.INPUT_DROPOUT + state


def draw_key() -> mx.array:
    """Return a key of MLX's random state, which moves on as by any other draw."""
    key = mx.random.split(_native.random_key())[1]
    mx.random.uniform(shape=())
    return key


@contextmanager
def undrawn() -> Iterator[None]:
    """Put MLX's random state back afterwards: who draws then draws the same."""
    key = _native.random_key()
    try:
        yield
    finally:
        if _native.random_key() is not key:
            with suppress(ValueError):  # a key that is traced cannot be put back
                _native.expect_after_fork([mx.random.uniform(key=key)])
                high, low = map(int, values_of(key))
                mx.random.seed(high << 32 | low)


def hits(
    mask: int,
    probability: float,
    key: mx.array,
    lead: tuple[int, ...],
    steps: int,
    units: int,
) -> mx.array:
    """Return which elements a mask hits: booleans, ``lead + (steps, units)``.

    Args:
        mask (int): What it is for: a :class:`Mask` or :func:`zoneout_mask`.
        probability (float): How probably an element is hit, less than 1.
        key (array): Two ``uint32``.
        lead (tuple(int)): The leading axes.
        steps (int): How many places in time there are.
        units (int): How many units, or features, there are.
    """
    rows, groups = math.prod(lead), -(-units // (_LANES * _WORDS))
    words = _words(
        key,
        mx.arange(groups * _LANES, dtype=mx.uint32),
        mx.arange(steps, dtype=mx.uint32)[:, None],
        mx.arange(rows, dtype=mx.uint32)[:, None, None],
        mx.array(int(mask), mx.uint32),
    )
    shape = (rows, steps, groups, _LANES)
    each = mx.stack([word.reshape(shape) for word in words], axis=-2)
    each = each.reshape(*lead, steps, groups * _LANES * _WORDS)[..., :units]
    threshold = round(probability * 2**32)
    if threshold == 2**32:  # no word
        return mx.ones_like(each, dtype=mx.bool_)
    return each < mx.array(threshold, mx.uint32)


def _words(key: mx.array, *counter: mx.array) -> list[mx.array]:
    zero = mx.array(0, mx.uint32)
    keys = [key[0], key[1], zero, zero, key[0] ^ key[1] ^ mx.array(_PARITY, mx.uint32)]
    x = [c + k for c, k in zip(counter, keys[:4], strict=True)]
    for i in range(_ROUNDS):
        first, second = (1, 3) if i % 2 == 0 else (3, 1)
        left, right = _ROTATIONS[i % len(_ROTATIONS)]
        x[0] = x[0] + x[first]
        x[first] = _rotate(x[first], left) ^ x[0]
        x[2] = x[2] + x[second]
        x[second] = _rotate(x[second], right) ^ x[2]
        if i % 4 == 3:
            injection = (i + 1) // 4
            x = [word + keys[(injection + j) % 5] for j, word in enumerate(x)]
            x[3] = x[3] + injection
    return x


def _rotate(x: mx.array, by: int) -> mx.array:
    return (x << by) | (x >> (32 - by))
