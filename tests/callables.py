"""Nonlinearities that users write, each with a twin in NumPy, and the path it takes.

A twin also takes complex numbers, going by the real part where it branches: so it has a
derivative by a complex step. It imports nothing of the package.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np


class Nonlinearity(NamedTuple):
    """One nonlinearity.

    Args:
        make (callable): Gives it, from the arrays that it captures.
        twin (callable): The same in NumPy, of an array (..., H) and what is captured.
        path (str): What ``plan`` says of it.
        kinks (tuple): Where its derivative jumps.
        captured (tuple): The shapes of what it captures, given the hidden features.
        width (int): The features that it takes for each that it gives.
        scale (float): Of the inputs: less where values would explode.
    """

    make: Callable
    twin: Callable
    path: str = "traced"
    kinks: tuple = ()
    captured: Callable = lambda H: ()
    width: int = 1
    scale: float = 1.0


def _sigmoid(a):
    return 1 / (1 + np.exp(-a))


def _real_erf(a):
    return np.vectorize(math.erf, otypes=[a.dtype])(a)


def _erf(a):
    if not np.iscomplexobj(a):
        return _real_erf(a)
    # The imaginary part of a complex step carries the derivative.
    slope = 2 / np.sqrt(np.pi) * np.exp(-(a.real**2))
    return _real_erf(a.real) + 1j * (a.imag * slope)


def _softplus(a):
    return np.log(1 + np.exp(a))


def _elu(a, alpha=1.0):
    return np.where(a.real > 0, a, alpha * (np.exp(a) - 1))


def _leaky(a, slope):
    return np.where(a.real > 0, a, slope * a)


def _clip(a, low, high):
    return np.where(a.real < low, low, np.where(a.real > high, high, a))


def _gelu(a):
    return a * (1 + _erf(a / np.sqrt(a.real.dtype.type(2)))) / 2


def _softsign(a):
    return a / (1 + np.where(a.real < 0, -a, a))


def _gelu_approx(a):
    return 0.5 * a * (1 + np.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))


def _softmax(a):
    e = np.exp(a - a.real.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _layer_norm(a, weight, bias):
    centred = a - a.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    return weight * centred / np.sqrt(variance + 1e-5) + bias


def _over_largest(a):
    largest = np.take_along_axis(a, a.real.argmax(-1)[..., None], -1)
    return a / (3 + largest)


def _positions(a):
    return np.arange(a.shape[-1]) / a.shape[-1]


def _glu(a):
    first, second = np.split(a, 2, -1)
    return first * _sigmoid(second)


def _with(module, **parameters):
    module.update(parameters)
    return module


def _square_then(f, a):
    return f(0.5 * mx.square(a))


def _doubled_slope():
    """A rule of the user's: the slope of sin, doubled."""

    @mx.custom_function
    def function(a):
        return mx.sin(a)

    @function.vjp
    def rule(a, cotangent, output):
        return 2 * mx.cos(a) * cotangent

    return function


def _doubled_slope_twin(a):
    if not np.iscomplexobj(a):
        return np.sin(a)
    return np.sin(a.real) + 1j * (a.imag * 2 * np.cos(a.real))


def _narrow(a):
    return mx.tanh(a).astype(mx.bfloat16 if a.dtype == mx.float16 else mx.float16)


TRACED = {
    "leaky_relu": Nonlinearity(
        lambda: nn.leaky_relu, lambda a: _leaky(a, 0.01), kinks=(0,)
    ),
    "leaky_lambda": Nonlinearity(
        lambda: lambda a: mx.maximum(0.25 * a, a),
        lambda a: _leaky(a, 0.25),
        kinks=(0,),
    ),
    "gelu": Nonlinearity(lambda: nn.gelu, _gelu),
    "gelu_approx": Nonlinearity(lambda: nn.gelu_approx, _gelu_approx),
    "silu": Nonlinearity(lambda: nn.silu, lambda a: a * _sigmoid(a)),
    "softsign": Nonlinearity(lambda: nn.softsign, _softsign),
    "hard_tanh": Nonlinearity(
        lambda: nn.hard_tanh, lambda a: _clip(a, -1, 1), kinks=(-1, 1)
    ),
    "elu": Nonlinearity(lambda: nn.elu, _elu, kinks=(0,)),
    "celu": Nonlinearity(lambda: nn.celu, _elu, kinks=(0,)),
    "selu": Nonlinearity(
        lambda: nn.selu, lambda a: _elu(a, 1.67326) * 1.0507, kinks=(0,)
    ),
    "softplus": Nonlinearity(lambda: nn.softplus, _softplus),
    "mish": Nonlinearity(lambda: nn.mish, lambda a: a * np.tanh(_softplus(a))),
    "hardswish": Nonlinearity(
        lambda: nn.hardswish, lambda a: a * _clip(a + 3, 0, 6) / 6, kinks=(-3, 3)
    ),
    "clip_tanh": Nonlinearity(
        lambda: lambda a: mx.tanh(mx.clip(a, -1, 1)),
        lambda a: np.tanh(_clip(a, -1, 1)),
        kinks=(-1, 1),
    ),
    "times_sigmoid": Nonlinearity(
        lambda: lambda a: a * mx.sigmoid(a), lambda a: a * _sigmoid(a)
    ),
    "sin": Nonlinearity(lambda: mx.sin, np.sin),
    "square": Nonlinearity(lambda: mx.square, lambda a: a * a, scale=0.6),
    "cube": Nonlinearity(lambda: lambda a: a**3, lambda a: a * a * a, scale=0.4),
    "where": Nonlinearity(
        lambda: lambda a: mx.where(a > 0.5, 0.5 * a + 0.25, mx.where(a < -1, -1, a)),
        lambda a: np.where(a.real > 0.5, 0.5 * a + 0.25, np.where(a.real < -1, -1, a)),
        kinks=(-1, 0.5),
    ),
    "SiLU": Nonlinearity(nn.SiLU, lambda a: a * _sigmoid(a)),
    "GELU": Nonlinearity(nn.GELU, _gelu),
    "LeakyReLU": Nonlinearity(
        lambda: nn.LeakyReLU(0.2), lambda a: _leaky(a, 0.2), kinks=(0,)
    ),
    "Sequential": Nonlinearity(
        lambda: nn.Sequential(nn.Tanh(), nn.Softsign()), lambda a: _softsign(np.tanh(a))
    ),
    "partial": Nonlinearity(
        lambda: functools.partial(_square_then, mx.tanh),
        lambda a: np.tanh(0.5 * a * a),
    ),
    "relu6": Nonlinearity(lambda: nn.relu6, lambda a: _clip(a, 0, 6), kinks=(0, 6)),
}

COMPOSED = {
    "softmax": Nonlinearity(
        lambda: lambda a: mx.softmax(a, axis=-1), _softmax, "composed"
    ),
    "layer_norm": Nonlinearity(
        lambda weight, bias: _with(
            nn.LayerNorm(weight.shape[0]), weight=weight, bias=bias
        ),
        _layer_norm,
        "composed",
        captured=lambda H: ((H,), (H,)),
    ),
    "prelu": Nonlinearity(
        lambda weight: _with(nn.PReLU(weight.shape[0]), weight=weight),
        _leaky,
        "composed",
        kinks=(0,),
        captured=lambda H: ((H,),),
    ),
    "captured_row": Nonlinearity(
        lambda scale: lambda a: mx.tanh(scale * a),
        lambda a, scale: np.tanh(scale * a),
        "composed",
        captured=lambda H: ((H,),),
    ),
    "captured_number": Nonlinearity(
        # Positive, so that no sum over all entries cancels.
        lambda scale: lambda a: scale * mx.sigmoid(a),
        lambda a, scale: scale * _sigmoid(a),
        "composed",
        captured=lambda H: ((),),
    ),
    "cumsum": Nonlinearity(
        lambda: lambda a: mx.tanh(0.2 * mx.cumsum(a, axis=-1)),
        lambda a: np.tanh(0.2 * np.cumsum(a, -1)),
        "composed",
    ),
    "positions": Nonlinearity(
        lambda: (
            lambda a: mx.tanh(
                a * (mx.arange(a.shape[-1]) / a.shape[-1]).astype(a.dtype)
            )
        ),
        lambda a: np.tanh(a * _positions(a)),
        "composed",
    ),
    "over_largest": Nonlinearity(
        lambda: lambda a: a / (3 + mx.max(a, axis=-1, keepdims=True)),
        _over_largest,
        "composed",
    ),
    "mean_free": Nonlinearity(
        lambda: lambda a: mx.tanh(a - mx.mean(a, axis=-1, keepdims=True)),
        lambda a: np.tanh(a - a.mean(-1, keepdims=True)),
        "composed",
    ),
    "other_dtype": Nonlinearity(lambda: _narrow, np.tanh, "composed"),
    "glu": Nonlinearity(lambda: nn.glu, _glu, "composed", width=2),
    "own_rule": Nonlinearity(_doubled_slope, _doubled_slope_twin, "composed"),
}

CALLABLES = {**TRACED, **COMPOSED}
