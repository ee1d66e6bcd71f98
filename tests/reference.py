"""The Elman recurrence in NumPy, slow and obvious: the truth that tests compare with.

Letters: ``L`` steps, ``D`` input features, ``H`` hidden features; any leading axes.

    h_t = f(z_t + Whh h_{t-1}),   z_t = Wxh x_t + bias

Everything is at least float64. Longdouble stays longdouble, and complex stays complex,
so that a derivative can be taken by a complex step. Nothing conjugates.

With terms (``terms_rnn``) a row runs alone, step by step:

    h_t = (1 - k_t) q_t + k_t f(z_t + Whh (m_h q_t)),   z_t = Wxh (m_x x_t) + bias

where q_t is the state before, or what an episode starts from.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

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


# What terms_rnn takes a derivative by, in the order of its lists.
TERMS_ARGUMENTS = ["x", "Wxh", "Whh", "bias", "hidden", "hidden0", "leak"]


@dataclass(frozen=True)
class Terms:
    """The optional terms, but for the arrays that have a derivative.

    Args:
        lengths (array, optional): The steps of each row, of the leading axes' shape.
        reset (array, optional): Where episodes start, leading axes + (L,).
        reverse (bool): Whether time runs backwards.
        share (float): What zoneout's expectation leaves of the leak.
        kept (array, optional): Where zoneout keeps a unit, leading axes + (L, H).
        m_x (array, optional): The factors of the inputs, leading axes + (D,).
        m_h (array, optional): The factors of the states, leading axes + (H,).
        truncate_every (int): The steps of a block. 0 is one block.
        frozen (dict, optional): The states at the borders of blocks, by row and place:
            taken instead of those that come about.
    """

    lengths: Any = None
    reset: Any = None
    reverse: bool = False
    share: float = 1.0
    kept: Any = None
    m_x: Any = None
    m_h: Any = None
    truncate_every: int = 0
    frozen: Any = None


class _Step(NamedTuple):
    """One step of one row: where, from what state and whence, and what it made."""

    t: int
    q: Any  # None where there is no state
    source: Any  # "before", "hidden", "hidden0" or None
    border: bool
    k: Any
    p: Any  # m_h q
    a: Any
    f: Any
    h: Any


def _masked(values, factors):
    if factors is None:
        return values
    return np.where(factors == 0, 0, np.where(factors == 0, 0, values) * factors)


class _Batch:
    """The rows of a call, one after another."""

    def __init__(self, primals, activation, terms):
        self.activation, self.terms = activation, terms
        x, *rest = _wide(*primals)
        self.Wxh, self.Whh, self.bias, self.hidden, self.hidden0, self.leak = rest
        self.lead = x.shape[:-2] if self.hidden is None else self.hidden.shape[:-1]
        (L, D), (H, _) = x.shape[-2:], self.Whh.shape
        self.N, self.L, self.D, self.H = math.prod(self.lead), L, D, H
        self.x_shape = x.shape
        self.x = np.broadcast_to(x, (*self.lead, L, D)).reshape(self.N, L, D)
        self.dtype = x.dtype
        self.lengths = self.rows(terms.lengths)
        self.resets = self.rows(terms.reset, L)
        self.kept = self.rows(terms.kept, L, H)
        self.m_x, self.m_h = self.rows(terms.m_x, D), self.rows(terms.m_h, H)
        self.initial = self.rows(self.hidden, H)

    def rows(self, a, *shape):
        return [None] * self.N if a is None else np.reshape(a, (self.N, *shape))

    def places(self, n):
        length = self.L if self.lengths[n] is None else int(self.lengths[n])
        return range(length)[::-1] if self.terms.reverse else range(length)

    def start(self, n):
        """The state before the first step, and whence it is."""
        if self.initial[n] is not None:
            return self.initial[n], "hidden"
        return self.hidden0, None if self.hidden0 is None else "hidden0"

    def starts_episode(self, n, i, t):
        if self.resets[n] is None:
            return False
        if not self.terms.reverse:
            return self.resets[n][t]
        return i > 0 and self.resets[n][t + 1]

    def projection(self, n, x_t, Wxh):
        """Wxh (m_x x_t) for a row's x_t (D,)."""
        return Wxh @ _masked(x_t, self.m_x[n])

    def run(self, n):
        """The steps of a row, in the order in which they run."""
        steps, terms = [], self.terms
        q, source = self.start(n)
        bias = 0 if self.bias is None else self.bias
        bias = np.broadcast_to(bias, (self.L, self.H))
        for i, t in enumerate(self.places(n)):
            if self.starts_episode(n, i, t):
                q, source = self.hidden0, None if self.hidden0 is None else "hidden0"
            every = terms.truncate_every
            border = bool(every and i and i % every == 0 and source == "before")
            if border and terms.frozen is not None:
                q = terms.frozen[n, t]
            k = terms.share * (1 if self.leak is None else self.leak)
            k = np.broadcast_to(np.asarray(k, self.dtype), self.H)
            if self.kept[n] is not None:
                k = np.where(self.kept[n][t], 0, k)
            p = None if q is None else _masked(q, self.m_h[n])
            a = self.projection(n, self.x[n, t], self.Wxh) + bias[t]
            if p is not None:
                a = a + self.Whh @ p
            f = activate(self.activation, a)
            before = np.zeros_like(a) if q is None else q
            h = np.where(k == 1, f, np.where(k == 0, before, (1 - k) * before + k * f))
            steps.append(_Step(t, q, source, border, k, p, a, f, h))
            q, source = h, "before"
        return steps

    def slope(self, step):
        if callable(self.activation):
            return complex_step(self.activation, [step.a], [np.ones_like(step.a)])
        return slope(self.activation, step.f)


def terms_rnn(primals, activation="tanh", terms=None):
    """The outputs (..., L, H) and each row's last state (..., H), with terms.

    ``primals`` are those of ``TERMS_ARGUMENTS``; all but the first three may be None.
    """
    batch = _Batch(primals, activation, terms or Terms())
    outputs = np.zeros((batch.N, batch.L, batch.H), batch.dtype)
    last = np.zeros((batch.N, batch.H), batch.dtype)
    for n in range(batch.N):
        start, _ = batch.start(n)
        if start is not None:
            last[n] = start
        for step in batch.run(n):
            outputs[n, step.t] = last[n] = step.h
    return (
        outputs.reshape(*batch.lead, batch.L, batch.H),
        last.reshape(*batch.lead, batch.H),
    )


def border_states(primals, activation, terms):
    """The states at the borders of blocks, for ``Terms.frozen``."""
    batch = _Batch(primals, activation, terms)
    return {
        (n, step.t): step.q
        for n in range(batch.N)
        for step in batch.run(n)
        if step.border
    }


def terms_rnn_grad(primals, activation="tanh", terms=None, d_outputs=None, d_last=None):
    """Back-propagation by hand: gradients by ``TERMS_ARGUMENTS`` of

    sum(d_outputs * outputs) + sum(d_last * last).
    """
    batch = _Batch(primals, activation, terms or Terms())
    N, L, D, H = batch.N, batch.L, batch.D, batch.H
    d_outputs = np.zeros((N, L, H)) if d_outputs is None else d_outputs
    d_outputs = np.reshape(d_outputs, (N, L, H))
    d_last = np.zeros((N, H)) if d_last is None else np.reshape(d_last, (N, H))
    dx, dz = np.zeros((N, L, D), batch.dtype), np.zeros((N, L, H), batch.dtype)
    dWxh, dWhh = np.zeros_like(batch.Wxh), np.zeros_like(batch.Whh)
    dhidden, dhidden0 = np.zeros((N, H), batch.dtype), np.zeros(H, batch.dtype)
    dleak = np.zeros(H, batch.dtype)
    for n in range(N):
        dh = d_last[n].astype(batch.dtype)
        steps = batch.run(n)
        for step in reversed(steps):
            dh = dh + d_outputs[n, step.t]
            q = np.zeros(H) if step.q is None else step.q
            dk = dh * (step.f - q)
            if batch.kept[n] is not None:
                dk = np.where(batch.kept[n][step.t], 0, dk)
            dleak += batch.terms.share * dk
            da = np.where(step.k == 0, 0, dh * step.k * batch.slope(step))
            dz[n, step.t] = da
            dq = np.where(step.k == 1, 0, dh * (1 - step.k))
            if step.p is not None:
                dWhh += np.outer(da, step.p)
                dq = dq + _masked(batch.Whh.T @ da, batch.m_h[n])
            dh = np.zeros(H, batch.dtype)
            if step.border or step.source is None:
                continue
            if step.source == "before":
                dh = dq
            elif step.source == "hidden":
                dhidden[n] += dq
            else:
                dhidden0 += dq
        if not steps:  # the state after no step is the one before
            if batch.start(n)[1] == "hidden":
                dhidden[n] += dh
            elif batch.start(n)[1] == "hidden0":
                dhidden0 += dh
        ran = list(batch.places(n))
        dx[n] = _masked(dz[n] @ batch.Wxh, batch.m_x[n])
        dWxh += dz[n, ran].T @ _masked(batch.x[n, ran], batch.m_x[n])
    lead = batch.lead
    return [
        _sum_to(dx.reshape(*lead, L, D), batch.x_shape),
        dWxh,
        dWhh,
        None
        if batch.bias is None
        else _sum_to(dz.reshape(*lead, L, H), batch.bias.shape),
        None if batch.hidden is None else dhidden.reshape(*lead, H),
        None if batch.hidden0 is None else dhidden0,
        None if batch.leak is None else _sum_to(dleak, batch.leak.shape),
    ]


def terms_rnn_tangent(primals, tangents, activation="tanh", terms=None):
    """The tangents of the outputs and of the last states, in forward mode.

    A tangent of None is zero.
    """
    batch = _Batch(primals, activation, terms or Terms())
    N, L, D, H = batch.N, batch.L, batch.D, batch.H
    zeros = [None if p is None else np.zeros(np.shape(p)) for p in primals]
    dx, dWxh, dWhh, dbias, dhidden, dhidden0, dleak = (
        zero if v is None else np.asarray(v)
        for v, zero in zip(tangents, zeros, strict=True)
    )
    dx = np.broadcast_to(dx, (*batch.lead, L, D)).reshape(N, L, D)
    dhidden = batch.rows(dhidden, H)
    outputs, last = np.zeros((N, L, H), batch.dtype), np.zeros((N, H), batch.dtype)
    for n in range(N):
        _, source = batch.start(n)
        if source is not None:
            last[n] = dhidden[n] if source == "hidden" else dhidden0
        for step in batch.run(n):
            dq = np.zeros(H)
            if not step.border and step.source is not None:
                dq = {"before": last[n], "hidden": dhidden[n], "hidden0": dhidden0}[
                    step.source
                ]
            da = batch.projection(n, dx[n, step.t], batch.Wxh)
            da = da + batch.projection(n, batch.x[n, step.t], dWxh)
            if dbias is not None:
                da = da + np.broadcast_to(dbias, (L, H))[step.t]
            if step.p is not None:
                da = da + dWhh @ step.p + batch.Whh @ _masked(dq, batch.m_h[n])
            q = np.zeros(H) if step.q is None else step.q
            dk = 0 if dleak is None else batch.terms.share * dleak
            if batch.kept[n] is not None:
                dk = np.where(batch.kept[n][step.t], 0, dk)
            dh = dk * (step.f - q) + (1 - step.k) * dq
            dh = dh + np.where(step.k == 0, 0, step.k * batch.slope(step) * da)
            outputs[n, step.t] = last[n] = dh
    return outputs.reshape(*batch.lead, L, H), last.reshape(*batch.lead, H)


_SKEIN = 0x1BD11BDA
_TURNS = [10, 26, 11, 21, 13, 27, 23, 5, 6, 20, 17, 11, 25, 10, 18, 20]


def threefry(key, counter, rounds=13):
    """Threefry-4x32 (Salmon and others, 2011): four words of a key and a counter.

    The key is two words, here in the first places; both may be arrays.
    """
    word = 2**32 - 1
    ks = [int(key[0]), int(key[1]), 0, 0]
    ks.append(_SKEIN ^ ks[0] ^ ks[1] ^ ks[2] ^ ks[3])
    X = [(np.asarray(c, np.uint64) + ks[i]) & word for i, c in enumerate(counter)]

    def mix(into, other, turn):
        X[into] = (X[into] + X[other]) & word
        X[other] = ((X[other] << turn) | (X[other] >> (32 - turn))) & word
        X[other] = X[other] ^ X[into]

    for r in range(rounds):
        one, other = _TURNS[2 * (r % 8)], _TURNS[2 * (r % 8) + 1]
        if r % 2 == 0:
            mix(0, 1, one)
            mix(2, 3, other)
        else:
            mix(0, 3, one)
            mix(2, 1, other)
        if r % 4 == 3:
            s = r // 4 + 1
            for i in range(4):
                X[i] = (X[i] + ks[(s + i) % 5] + (s if i == 3 else 0)) & word
    return X


# The last number of a mask's counters.
ZONEOUT, RECURRENT_DROPOUT, INPUT_DROPOUT = range(3)


def hits(key, mask, probability, rows, steps, units):
    """Which elements a mask hits: booleans (rows, steps, units)."""
    n, t, j = np.indices((rows, steps, units))
    block, word = 16 * (j // 64) + j % 16, j % 64 // 16
    words = np.choose(word, threefry(key, [block, t, n, mask]))
    return words < round(probability * 2**32)


def factors(hit, probability):
    """What a dropout multiplies with."""
    return np.where(hit, 0, 1 / (1 - probability))
