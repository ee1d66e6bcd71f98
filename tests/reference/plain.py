"""The Elman recurrence without optional terms, all rows at once.

h_t = f(z_t + Whh h_{t-1}),   z_t = Wxh x_t + bias
"""

import numpy as np

from .activations import activate, slope
from .arrays import rows, sum_to, wide
from .differences import complex_step


def slopes(name, z, Whh, hidden, states):
    """f'(a) at every step; a function f is differentiated as one of each entry."""
    if not callable(name):
        return slope(name, states)
    a = z + np.zeros_like(states)
    a[..., 1:, :] += states[..., :-1, :] @ Whh.T
    if hidden is not None:
        a[..., :1, :] += (hidden @ Whh.T)[..., None, :]
    return complex_step(name, [a], [np.ones_like(a)])


def matmul(x, w, bias=None):
    """x w^T + bias: (..., K) x (M, K) -> (..., M)."""
    x, w, bias = wide(x, w, bias)
    y = x @ w.T
    return y if bias is None else y + bias


def matmul_grad(x, w, bias, cotangent):
    """Gradients (dx, dw, dbias) of sum(cotangent * matmul(x, w, bias))."""
    x, w, bias, cotangent = wide(x, w, bias, cotangent)
    dx = cotangent @ w
    dw = rows(cotangent).T @ rows(x)
    return dx, dw, None if bias is None else sum_to(cotangent, bias.shape)


def scan(z, Whh, hidden=None, activation="tanh"):
    """All states (..., L, H) for projected inputs z (..., L, H).

    ``hidden`` (..., H) may have leading axes that z lacks. Without it the first step
    has no product.
    """
    z, Whh, hidden = wide(z, Whh, hidden)
    lead = z.shape[:-2]
    if hidden is not None:
        lead = np.broadcast_shapes(lead, hidden.shape[:-1])
    states = []
    h = hidden
    for t in range(z.shape[-2]):
        a = z[..., t, :] if h is None else z[..., t, :] + h @ Whh.T
        h = activate(activation, a)
        states.append(h)
    return np.stack(states, -2) if states else np.zeros(lead + z.shape[-2:], z.dtype)


def scan_grad(z, Whh, hidden, activation, d_states=None, d_last=None):
    """Back-propagation by hand: (dz, dWhh, dhidden) of

    sum(d_states * states) + sum(d_last * states[..., -1, :]).
    """
    z, Whh, hidden, d_states, d_last = wide(z, Whh, hidden, d_states, d_last)
    states = scan(z, Whh, hidden, activation)
    g = slopes(activation, z, Whh, hidden, states)
    delta = np.zeros_like(states)
    dWhh = np.zeros_like(Whh)
    dh = np.zeros_like(states[..., 0, :]) if d_last is None else d_last
    for t in reversed(range(z.shape[-2])):
        if d_states is not None:
            dh = dh + d_states[..., t, :]
        da = dh * g[..., t, :]
        delta[..., t, :] = da
        before = hidden if t == 0 else states[..., t - 1, :]
        if before is not None:
            dWhh = dWhh + rows(da).T @ rows(before)
            dh = da @ Whh
    dhidden = None if hidden is None else sum_to(dh, hidden.shape)
    return sum_to(delta, z.shape), dWhh, dhidden


def scan_tangent(z, Whh, hidden, activation, dz=None, dWhh=None, dhidden=None):
    """The tangent of all states in forward mode; a tangent of None is zero."""
    z, Whh, hidden, dz, dWhh, dhidden = wide(z, Whh, hidden, dz, dWhh, dhidden)
    states = scan(z, Whh, hidden, activation)
    tangent = np.zeros_like(states)
    h, dh = hidden, dhidden
    for t in range(z.shape[-2]):
        da = np.zeros_like(states[..., t, :])
        if dz is not None:
            da = da + dz[..., t, :]
        if dWhh is not None and h is not None:
            da = da + h @ dWhh.T
        if dh is not None:
            da = da + dh @ Whh.T
        h = states[..., t, :]
        dh = slope(activation, h) * da
        tangent[..., t, :] = dh
    return tangent


def rnn(x, Wxh, Whh, bias=None, hidden=None, activation="tanh"):
    """All states (..., L, H) of the layer for x (..., L, D)."""
    return scan(matmul(x, Wxh, bias), Whh, hidden, activation)


def rnn_grad(x, Wxh, Whh, bias, hidden, activation="tanh", d_states=None, d_last=None):
    """Gradients (dx, dWxh, dWhh, dbias, dhidden); None where the input is None."""
    z = matmul(x, Wxh, bias)
    dz, dWhh, dhidden = scan_grad(z, Whh, hidden, activation, d_states, d_last)
    dx, dWxh, dbias = matmul_grad(x, Wxh, bias, dz)
    return dx, dWxh, dWhh, dbias, dhidden


def rnn_tangent(primals, tangents, activation="tanh"):
    """The tangent of all states; both lists are (x, Wxh, Whh, bias, hidden).

    A tangent of None is zero.
    """
    x, Wxh, Whh, bias, hidden = primals
    dx, dWxh, dWhh, dbias, dhidden = tangents
    z = matmul(x, Wxh, bias)
    dz = np.zeros_like(z)
    if dx is not None:
        dz = dz + matmul(dx, Wxh)
    if dWxh is not None:
        dz = dz + matmul(x, dWxh)
    if dbias is not None:
        dz = dz + dbias
    return scan_tangent(z, Whh, hidden, activation, dz, dWhh, dhidden)


def rnn_hessian_vector(primals, tangents, activation="tanh", d_states=None):
    """The derivative of rnn_grad along tangents: second order, by a complex step."""

    def gradient(x, Wxh, Whh, bias, hidden):
        return rnn_grad(x, Wxh, Whh, bias, hidden, activation, d_states)

    return complex_step(gradient, primals, tangents)
