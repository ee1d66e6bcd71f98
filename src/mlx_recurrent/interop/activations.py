"""The activation functions of ONNX's recurrent operators, as nonlinearities."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.nn.layers import activations as nn
from mlx.nn.layers.linear import Identity

from mlx_recurrent.functional.dispatch import Nonlinearity, recognise
from mlx_recurrent.functional.judging import shown, type_name


class Activation(NamedTuple):
    """A function by ONNX's name.

    Args:
        name (str): The name, such as ``"Tanh"``.
        alpha (float, optional): The first parameter, where the function has one.
        beta (float, optional): The second parameter, where the function has one.
        clip (float, optional): The largest magnitude of what the function is given.
            ``None`` is any.
    """

    name: str
    alpha: float | None = None
    beta: float | None = None
    clip: float | None = None


@dataclass(frozen=True)
class Affine:
    r""":math:`f(x) = \alpha x + \beta`, element-wise."""

    alpha: float
    beta: float

    def __call__(self, x: mx.array) -> mx.array:
        return self.alpha * x + self.beta


@dataclass(frozen=True)
class LeakyRelu:
    r""":math:`f(x) = x` where :math:`x \ge 0`, else :math:`\alpha x`, element-wise.

    For any slope: :class:`mlx.nn.LeakyReLU` is the same function up to
    :math:`\alpha = 1`.
    """

    alpha: float

    def __call__(self, x: mx.array) -> mx.array:
        return mx.where(x >= 0, x, self.alpha * x)


@dataclass(frozen=True)
class ThresholdedRelu:
    r""":math:`f(x) = x` where :math:`x \ge \alpha`, else 0, element-wise."""

    alpha: float

    def __call__(self, x: mx.array) -> mx.array:
        return mx.where(x >= self.alpha, x, 0)


@dataclass(frozen=True)
class ScaledTanh:
    r""":math:`f(x) = \alpha \tanh(\beta x)`, element-wise."""

    alpha: float
    beta: float

    def __call__(self, x: mx.array) -> mx.array:
        return self.alpha * mx.tanh(self.beta * x)


@dataclass(frozen=True)
class HardSigmoid:
    r""":math:`f(x) = \min(\max(\alpha x + \beta, 0), 1)`, element-wise."""

    alpha: float
    beta: float

    def __call__(self, x: mx.array) -> mx.array:
        return mx.clip(self.alpha * x + self.beta, 0, 1)


@dataclass(frozen=True)
class Clipped:
    r"""A nonlinearity of what is clipped, :math:`f(\min(\max(x, -c), c))`.

    Args:
        nonlinearity (callable): :math:`f`.
        clip (float): :math:`c`, at least 0.
    """

    nonlinearity: Nonlinearity
    clip: float

    def __call__(self, x: mx.array) -> mx.array:
        return self.nonlinearity(mx.clip(x, -self.clip, self.clip))


class _Function(NamedTuple):
    """A function of the standard: its defaults, and how it is made.

    A default of ``NaN`` stands for a parameter that must be given.
    """

    alpha: float | None
    beta: float | None
    make: Callable[..., Nonlinearity | None]


_REQUIRED = float("nan")


def _leaky_relu(alpha: float) -> Nonlinearity:
    # MLX's is max(alpha x, x): of another slope above 1, and NaN at infinity for 0.
    if alpha <= 1 and alpha:
        return nn.LeakyReLU(alpha)  # type: ignore[no-untyped-call]
    return LeakyRelu(alpha)


def _affine(alpha: float, beta: float) -> Nonlinearity:
    return Identity() if (alpha, beta) == (1, 0) else Affine(alpha, beta)


# The parameters' defaults are those of the operators of the same names.
FUNCTIONS = {
    "Relu": _Function(None, None, nn.ReLU),
    "Tanh": _Function(None, None, lambda: None),
    "Sigmoid": _Function(None, None, nn.Sigmoid),
    "Affine": _Function(_REQUIRED, 0.0, _affine),
    "LeakyRelu": _Function(0.01, None, _leaky_relu),
    "ThresholdedRelu": _Function(1.0, None, ThresholdedRelu),
    "ScaledTanh": _Function(_REQUIRED, _REQUIRED, ScaledTanh),
    "HardSigmoid": _Function(0.2, 0.5, HardSigmoid),
    "Elu": _Function(1.0, None, nn.ELU),
    "Softsign": _Function(None, None, nn.Softsign),
    "Softplus": _Function(None, None, nn.Softplus),
}

_NATIVE = {
    "tanh": Activation("Tanh"),
    "relu": Activation("Relu"),
    "sigmoid": Activation("Sigmoid"),
    "identity": Activation("Affine", 1.0, 0.0),
}
# By identity, as MLX's compiled functions have no useful hash.
_MLX_FUNCTIONS = {
    id(function): (function, activation)
    for function, activation in (
        (nn.leaky_relu, Activation("LeakyRelu", 0.01)),
        (nn.elu, Activation("Elu", 1.0)),
        (nn.softplus, Activation("Softplus")),
        (nn.softsign, Activation("Softsign")),
        (nn.relu6, Activation("Relu", clip=6.0)),
        (nn.hard_tanh, Activation("Affine", 1.0, 0.0, 1.0)),
    )
}
# A subclass may do anything: only the exact types count.
_TYPES: dict[type, Callable[[Any], Activation | None]] = {
    **dict.fromkeys(
        (Affine, LeakyRelu, ThresholdedRelu, ScaledTanh, HardSigmoid),
        lambda f: Activation(type(f).__name__, **vars(f)),
    ),
    nn.LeakyReLU: lambda f: (
        Activation("LeakyRelu", f._negative_slope) if f._negative_slope <= 1 else None
    ),
    nn.ELU: lambda f: Activation("Elu", f._alpha),
    nn.Softplus: lambda f: Activation("Softplus"),
    nn.Softsign: lambda f: Activation("Softsign"),
    nn.ReLU6: lambda f: Activation("Relu", clip=6.0),
    nn.HardTanh: lambda f: Activation("Affine", 1.0, 0.0, 1.0),
    Clipped: lambda f: _clipped(activation_of(f.nonlinearity), f.clip),
}


def nonlinearity_of(activation: Activation) -> Nonlinearity | None:
    """Return the function as a nonlinearity, MLX's own where that is the same.

    Args:
        activation (Activation): A function with every parameter that it has.

    Returns:
        callable: The nonlinearity. ``None`` is tanh.
    """
    name, alpha, beta, clip = activation
    given = [value for value in (alpha, beta) if value is not None]
    function = FUNCTIONS[name].make(*given)
    if clip is None:
        return function
    # Not by its truth: a module without parameters is false.
    return Clipped(nn.tanh if function is None else function, clip)


def activation_of(nonlinearity: Any) -> Activation | None:
    """Return ONNX's name for a nonlinearity, ``None`` where it has none.

    Args:
        nonlinearity (callable, optional): The nonlinearity. ``None`` is tanh.
    """
    if nonlinearity is None:
        return _NATIVE["tanh"]
    choice = recognise(nonlinearity)
    if choice is not None and isinstance(choice.activation, str):
        return _NATIVE[choice.activation]
    if id(nonlinearity) in _MLX_FUNCTIONS:
        return _MLX_FUNCTIONS[id(nonlinearity)][1]
    of = _TYPES.get(type(nonlinearity))
    activation = None if of is None else of(nonlinearity)
    if activation is None or not all(
        value is None or isinstance(value, (int, float)) for value in activation[1:]
    ):
        return None  # a parameter may be an array
    return activation


def complete(
    name: str, alpha: float | None, beta: float | None, clip: float | None
) -> Activation:
    """Return the function with its defaults in place of parameters not given.

    Args:
        name (str): The name, in any case.
        alpha (float, optional): What is given of the first parameter.
        beta (float, optional): What is given of the second parameter.
        clip (float, optional): As in :class:`Activation`.

    Raises:
        ValueError: If the standard has no such function, or a parameter without a
            default is not given, is not finite, or ``clip`` is negative.
    """
    known = {candidate.lower(): candidate for candidate in FUNCTIONS}
    if name.lower() not in known:
        raise ValueError(
            f"activations must be of {', '.join(FUNCTIONS)}, but one is {shown(name)}"
        )
    name = known[name.lower()]
    function = FUNCTIONS[name]
    alpha = _parameter(name, "alpha", alpha, function.alpha)
    beta = _parameter(name, "beta", beta, function.beta)
    if clip is not None and not clip >= 0:
        raise ValueError(f"clip must be at least 0, but is {clip}")
    return Activation(name, alpha, beta, clip)


def describe(nonlinearity: Any) -> str:
    """Return the name of a nonlinearity, or of another function, for a message."""
    # Not its repr, which may be long, and evaluates arrays that it holds.
    return getattr(nonlinearity, "__name__", None) or type_name(nonlinearity)


def _parameter(
    name: str, which: str, given: float | None, default: float | None
) -> float | None:
    if default is None:
        return None
    value = default if given is None else given
    if not -float("inf") < value < float("inf"):
        if given is None:
            raise ValueError(f"activation_{which} must be given for {name}")
        raise ValueError(f"activation_{which} must be finite, but {name} has {given}")
    return value


def _clipped(inner: Activation | None, clip: float) -> Activation | None:
    if inner is None:
        return None
    clip = clip if inner.clip is None else min(clip, inner.clip)
    return inner._replace(clip=clip)
