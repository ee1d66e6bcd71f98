"""Derivatives of functions that need not be known: the test of those by hand."""

import numpy as np


def complex_step(function, primals, tangents):
    """The derivative of an analytic function along tangents, without cancellation.

    Im f(p + i s v) / s is the derivative to rounding when s is tiny.
    """
    step = 1e-30
    moved = [
        p if p is None or v is None else np.asarray(p) + 1j * step * np.asarray(v)
        for p, v in zip(primals, tangents, strict=True)
    ]
    out = function(*moved)
    if isinstance(out, tuple):
        return tuple(None if o is None else o.imag / step for o in out)
    return out.imag / step


def gradient(function, primals, cotangent):
    """Gradients of sum(cotangent * function(*primals)), an entry at a time.

    By complex steps, so the function must be analytic where it is evaluated, and may
    also be one whose derivative cannot be written by hand.
    """
    gradients = []
    for i, primal in enumerate(primals):
        if primal is None:
            gradients.append(None)
            continue
        gradient = np.zeros_like(primal)
        for entry in np.ndindex(primal.shape):
            along = [None] * len(primals)
            along[i] = np.zeros_like(primal)
            along[i][entry] = 1
            gradient[entry] = (cotangent * complex_step(function, primals, along)).sum()
        gradients.append(gradient)
    return gradients


def finite_difference(function, primals, tangents, step=1e-3):
    """The derivative of a function along tangents by a central difference of order 4.

    In longdouble, where the machine has one.
    """

    def at(k):
        moved = [
            p if p is None or v is None else np.longdouble(p) + k * step * v
            for p, v in zip(primals, tangents, strict=True)
        ]
        return function(*moved)

    def difference(far_back, back, forth, far_forth):
        return (8 * (forth - back) - (far_forth - far_back)) / (12 * step)

    values = [at(k) for k in (-2, -1, 1, 2)]
    if isinstance(values[0], tuple):
        return tuple(
            None if v[0] is None else difference(*v) for v in zip(*values, strict=True)
        )
    return difference(*values)
