"""Presets for the recurrent weight ``Whh``: each changes a layer and returns it.

They take an :class:`~mlx_recurrent.RNN`, or any module that holds some, such as a
:class:`~mlx_recurrent.Stack`, and set the ``Whh`` of each in its own dtype.
"""

import math
from numbers import Real
from typing import TypeVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.nn.layers import recurrent
from mlx.nn.layers.base import Module

from mlx_recurrent.functional.judging import float_of, shown, type_name
from mlx_recurrent.functional.values import values_of
from mlx_recurrent.mlx_faults.drawing import draws

M = TypeVar("M", bound=Module)


def orthogonal_(layer: M) -> M:
    """Set ``Whh`` to a random orthogonal matrix.

    The matrix is uniformly distributed, and drawn from MLX's random state. The product
    with it keeps lengths, so neither signals nor gradients grow or vanish by it: Saxe,
    McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of learning in
    deep linear neural networks", 2013 (arXiv:1312.6120).

    Args:
        layer (Module): The layer, or a module that holds layers.

    Returns:
        Module: The same object.

    Raises:
        TypeError: If ``layer`` is no module.
        ValueError: If there is no ``Whh`` in it, or one is not square.

    Example:
        >>> import mlx.core as mx
        >>> from mlx_recurrent import RNN, init
        >>> Whh = init.orthogonal_(RNN(3, 8)).Whh
        >>> mx.allclose(Whh @ Whh.T, mx.eye(8), atol=1e-5).item()
        True
    """
    for rnn in _layers(layer):
        H = rnn.hidden_size
        # In float64, so that it is orthogonal to the last place of any dtype.
        draws()
        q, r = np.linalg.qr(values_of(mx.random.normal((H, H))).astype(np.float64))
        # Without the signs the distribution would be that of the algorithm.
        _set(rnn, q * np.where(np.diag(r) < 0, -1, 1))
    return layer


def identity_(layer: M) -> M:
    """Set ``Whh`` to the identity.

    With relu and a bias of zero a layer then keeps what it has seen until it learns
    otherwise: Le, Jaitly and Hinton, "A simple way to initialize recurrent networks of
    rectified linear units", 2015 (arXiv:1504.00941).

    Args:
        layer (Module): The layer, or a module that holds layers.

    Returns:
        Module: The same object.

    Raises:
        TypeError: If ``layer`` is no module.
        ValueError: If there is no ``Whh`` in it, or one is not square.

    Example:
        >>> import mlx.nn as nn
        >>> from mlx_recurrent import RNN, init
        >>> layer = init.identity_(RNN(3, 2, nonlinearity=nn.relu))
        >>> layer.Whh.tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    for rnn in _layers(layer):
        _set(rnn, np.eye(rnn.hidden_size))
    return layer


def spectral_radius_(layer: M, r: float) -> M:
    """Scale ``Whh`` so that its largest eigenvalue has the magnitude ``r``.

    A reservoir whose weights are not trained usually takes one a little below 1, where
    the past fades, but slowly: Jaeger, "The 'echo state' approach to analysing and
    training recurrent neural networks", 2001 (GMD report 148).

    Args:
        layer (Module): The layer, or a module that holds layers.
        r (float): The spectral radius. Positive and finite.

    Returns:
        Module: The same object.

    Raises:
        TypeError: If ``layer`` is no module, or ``r`` no number.
        ValueError: If ``r`` is out of range, if there is no ``Whh`` in the layer, or if
            one is not square, holds a number that is not finite, or has no eigenvalue
            other than zero.

    Example:
        >>> import numpy as np
        >>> from mlx_recurrent import RNN, init
        >>> reservoir = init.spectral_radius_(RNN(1, 100, leak=0.3), 0.95)
        >>> radius = np.abs(np.linalg.eigvals(np.array(reservoir.Whh))).max()
        >>> round(float(radius), 3)
        0.95
    """
    if not isinstance(r, Real):
        raise TypeError(f"r must be a number, but is {type_name(r)}")
    radius = float_of(r)
    if not (0 < radius < math.inf):
        raise ValueError(f"r must be positive and finite, but is {shown(r)}")
    scaled = []
    for rnn in _layers(layer):
        Whh = values_of(rnn.Whh.astype(mx.float64, stream=mx.cpu))
        if not np.isfinite(Whh).all():
            raise ValueError("Whh must be finite, but holds NaN or infinity")
        if _nilpotent(Whh):
            raise ValueError(
                "Whh must have an eigenvalue other than zero to be scaled, but a power "
                "of it is zero"
            )
        scaled.append((rnn, Whh * (radius / np.abs(np.linalg.eigvals(Whh)).max())))
    for rnn, Whh in scaled:
        _set(rnn, Whh)
    return layer


def _layers(layer: Module) -> list[recurrent.RNN]:
    if not isinstance(layer, Module):
        raise TypeError(f"layer must be a module, but is {type_name(layer)}")
    found = {
        id(module): module
        for module in layer.modules()  # type: ignore[no-untyped-call]
        if isinstance(module, recurrent.RNN)
    }
    if not found:
        raise ValueError(
            f"layer must be or hold an RNN, but is {type_name(layer)} without one"
        )
    for module in found.values():
        if module.Whh.ndim != 2 or module.Whh.shape[0] != module.Whh.shape[1]:
            raise ValueError(
                f"Whh must have shape (H, H), but has shape {module.Whh.shape}"
            )
    return list(found.values())


def _set(rnn: recurrent.RNN, values: npt.NDArray[np.float64]) -> None:
    # float64 arrays live on the CPU alone.
    new = mx.array(values, dtype=mx.float64)
    rnn.Whh = new.astype(rnn.Whh.dtype, stream=mx.cpu)


def _nilpotent(a: npt.NDArray[np.float64]) -> bool:
    """Return whether a power of a square matrix is zero.

    The computed eigenvalues cannot tell: rounding moves those of such a matrix by much
    more than themselves. If any power is zero, the one of the matrix's size is.
    """
    power = 1
    while a.any():
        if power >= len(a):
            return False
        # Scaled by powers of two, which round nothing.
        a = a / 2.0 ** np.frexp(np.abs(a).max())[1]
        a, power = a @ a, 2 * power
    return True
