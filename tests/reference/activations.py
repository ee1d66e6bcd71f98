"""Nonlinearities by name, and their slopes."""

import numpy as np

from .differences import complex_step


def activate(name, a):
    """f(a); f may also be a function of an array (..., H)."""
    if callable(name):
        return name(a)
    if name == "tanh":
        return np.tanh(a)
    if name == "sigmoid":
        # Either branch alone overflows on one side.
        e = np.exp(np.where(a.real < 0, a, -a))
        return np.where(a.real < 0, e / (1 + e), 1 / (1 + e))
    if name == "relu":
        # Not np.maximum: a NaN must stay, and a complex number goes by its real part,
        # of which products of complex steps leave next to nothing where it is zero.
        corner = 1e-50 if np.iscomplexobj(a) else 0
        return np.where(a.real <= corner, np.zeros_like(a), a)
    if name == "identity":
        return a + 0
    raise ValueError(name)


def slope(name, h):
    """f'(a), written in h = f(a)."""
    if name == "tanh":
        return 1 - h * h
    if name == "sigmoid":
        return h * (1 - h)
    if name == "relu":
        return (h.real > 0).astype(h.dtype)
    if name == "identity":
        return np.ones_like(h)
    raise ValueError(name)


def slope_at(name, a, h):
    """f'(a) for h = f(a), also of a function, as one of each entry."""
    if callable(name):
        return complex_step(name, [a], [np.ones_like(a)])
    return slope(name, h)
