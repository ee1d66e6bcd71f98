"""The Elman recurrence in NumPy, slow and obvious: the truth that tests compare with.

Letters: ``L`` steps, ``D`` input features, ``H`` hidden features; any leading axes.

    h_t = f(z_t + Whh h_{t-1}),   z_t = Wxh x_t + bias

Everything is at least float64. Longdouble stays longdouble, and complex stays complex,
so that a derivative can be taken by a complex step. Nothing conjugates.
"""

import numpy as np


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
        # Not np.maximum: a NaN must stay, and a complex number goes by its real part.
        return np.where(a.real <= 0, np.zeros_like(a), a)
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


def slopes(name, z, Whh, hidden, states):
    """f'(a) at every step; a function f is differentiated as one of each entry."""
    if not callable(name):
        return slope(name, states)
    a = z + np.zeros_like(states)
    a[..., 1:, :] += states[..., :-1, :] @ Whh.T
    if hidden is not None:
        a[..., :1, :] += (hidden @ Whh.T)[..., None, :]
    return complex_step(name, [a], [np.ones_like(a)])


def _wide(*arrays):
    """The arrays (or None) in one dtype, at least float64."""
    dtype = np.result_type(np.float64, *[a for a in arrays if a is not None])
    return [None if a is None else np.asarray(a, dtype) for a in arrays]


def _sum_to(a, shape):
    """The sum of a over the axes that broadcasting gave it."""
    a = a.sum(axis=tuple(range(a.ndim - len(shape))))
    axes = tuple(i for i, n in enumerate(shape) if n == 1 and a.shape[i] != 1)
    return a.sum(axis=axes, keepdims=True)


def _rows(a):
    return a.reshape(-1, a.shape[-1])


def matmul(x, w, bias=None):
    """x w^T + bias: (..., K) x (M, K) -> (..., M)."""
    x, w, bias = _wide(x, w, bias)
    y = x @ w.T
    return y if bias is None else y + bias


def matmul_grad(x, w, bias, cotangent):
    """Gradients (dx, dw, dbias) of sum(cotangent * matmul(x, w, bias))."""
    x, w, bias, cotangent = _wide(x, w, bias, cotangent)
    dx = cotangent @ w
    dw = _rows(cotangent).T @ _rows(x)
    return dx, dw, None if bias is None else _sum_to(cotangent, bias.shape)


def scan(z, Whh, hidden=None, activation="tanh"):
    """All states (..., L, H) for projected inputs z (..., L, H).

    ``hidden`` (..., H) may have leading axes that z lacks. Without it the first step
    has no product.
    """
    z, Whh, hidden = _wide(z, Whh, hidden)
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
    z, Whh, hidden, d_states, d_last = _wide(z, Whh, hidden, d_states, d_last)
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
            dWhh = dWhh + _rows(da).T @ _rows(before)
            dh = da @ Whh
    dhidden = None if hidden is None else _sum_to(dh, hidden.shape)
    return _sum_to(delta, z.shape), dWhh, dhidden


def scan_tangent(z, Whh, hidden, activation, dz=None, dWhh=None, dhidden=None):
    """The tangent of all states in forward mode; a tangent of None is zero."""
    z, Whh, hidden, dz, dWhh, dhidden = _wide(z, Whh, hidden, dz, dWhh, dhidden)
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


def rnn_hessian_vector(primals, tangents, activation="tanh", d_states=None):
    """The derivative of rnn_grad along tangents: second order, by a complex step."""

    def gradient(x, Wxh, Whh, bias, hidden):
        return rnn_grad(x, Wxh, Whh, bias, hidden, activation, d_states)

    return complex_step(gradient, primals, tangents)
