"""What a cell makes of one step, and back: everything that one cell has of its own.

Letters: ``z`` (N, G H) is the projection of a step's input, with its bias, ``p`` (N, H)
what the weights of the state see of the first state, ``q`` the states before, each
(N, H). Rows without a state before have zeros in ``p`` and ``q``.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .activations import activate, slope_at


@dataclass(frozen=True)
class Cell:
    """A cell, as data; the methods take arrays by the names of ``weights``."""

    # Slabs of H rows in the weights of the input.
    gates = 1
    # The input's weights, the state's, the input's bias and what else the step has.
    weights = ("Wx", "Wh", "bias")
    # Of the states, the first of which is the output, and what the weights see.
    states = ("hidden",)
    # Whether the states move by a part: the argument `leak`.
    leaks = False

    @property
    def starts(self):
        """The learned states by their names: what episodes start from."""
        return tuple(f"{name}0" for name in self.states)

    @property
    def arguments(self):
        """What there is a derivative by, in the order of the lists of the reference."""
        leak = ("leak",) if self.leaks else ()
        return ("x", *self.weights, *self.states, *self.starts, *leak)

    def shapes(self, D, H):
        """The shapes of the weights, by name."""
        input_side, state_side, bias, *others = self.weights
        G = self.gates
        shapes = {input_side: (G * H, D), state_side: (G * H, H), bias: (G * H,)}
        return shapes | dict.fromkeys(others, (H,))

    def step(self, weights, z, p, q):
        """The states after a step, and what ``pull`` needs."""
        raise NotImplementedError

    def pull(self, weights, saved, p, q, d):
        """Back-propagation through a step, of cotangents d of the states after it.

        Returns those of z and p, of the states before but for what goes through p, and
        of the weights but the input's, by name.
        """
        raise NotImplementedError


def _split(a, count):
    return np.split(a, count, -1)


def _join(*slabs):
    return np.concatenate(slabs, -1)


@dataclass(frozen=True)
class Elman(Cell):
    """h = f(z + Whh p), for a nonlinearity by name or a function of arrays (..., H)."""

    activation: Any = "tanh"
    weights = ("Wxh", "Whh", "bias")
    leaks = True

    def step(self, weights, z, p, q):
        a = z + p @ weights["Whh"].T
        h = activate(self.activation, a)
        return (h,), (a, h)

    def pull(self, weights, saved, p, q, d):
        da = d[0] * slope_at(self.activation, *saved)
        return da, da @ weights["Whh"], (np.zeros_like(da),), {"Whh": da.T @ p}


@dataclass(frozen=True)
class GRU(Cell):
    """h' = (1 - z) n + z h, with gates r, z and n = tanh(Wxn x + bn + r (Whn h + bhn)).

    With ``reset_after=False`` n = tanh(Wxn x + bn + Whn (r h)), and there is no bhn.
    """

    reset_after: bool = True
    gates = 3
    weights = ("Wx", "Wh", "b", "bhn")

    def step(self, weights, z, p, q):
        r_in, z_in, n_in = _split(z, 3)
        Wr, Wz, Wn = np.split(weights["Wh"], 3)
        r = activate("sigmoid", r_in + p @ Wr.T)
        keep = activate("sigmoid", z_in + p @ Wz.T)
        if self.reset_after:
            u = p @ Wn.T
            if weights["bhn"] is not None:
                u = u + weights["bhn"]
            n = np.tanh(n_in + r * u)
        else:
            u = r * p
            n = np.tanh(n_in + u @ Wn.T)
        return ((1 - keep) * n + keep * q[0],), (r, keep, n, u)

    def pull(self, weights, saved, p, q, d):
        r, keep, n, u = saved
        Wr, Wz, Wn = np.split(weights["Wh"], 3)
        (dh,) = d
        dn = dh * (1 - keep) * (1 - n * n)
        dz = dh * (q[0] - n) * keep * (1 - keep)
        if self.reset_after:
            du = dn * r
            dr = dn * u
            dp, dWn = du @ Wn, du.T @ p
            dbhn = du.sum(0)
        else:
            du = dn @ Wn
            dr = du * p
            dp, dWn = du * r, dn.T @ u
            dbhn = None
        dr = dr * r * (1 - r)
        dp = dp + dr @ Wr + dz @ Wz
        dWh = np.concatenate([dr.T @ p, dz.T @ p, dWn])
        return _join(dr, dz, dn), dp, (dh * keep,), {"Wh": dWh, "bhn": dbhn}


@dataclass(frozen=True)
class LSTM(Cell):
    """c' = f c + i g, h' = o tanh(c'), with gates i, f, g and o."""

    gates = 4
    states = ("hidden", "cell")

    def step(self, weights, z, p, q):
        i, f, g, o = _split(z + p @ weights["Wh"].T, 4)
        i, f, o = (activate("sigmoid", a) for a in (i, f, o))
        g = np.tanh(g)
        c = f * q[1] + i * g
        t = np.tanh(c)
        return (o * t, c), (i, f, g, o, t)

    def pull(self, weights, saved, p, q, d):
        i, f, g, o, t = saved
        dh, dc = d
        dc = dc + dh * o * (1 - t * t)
        da = _join(
            dc * g * i * (1 - i),
            dc * q[1] * f * (1 - f),
            dc * i * (1 - g * g),
            dh * t * o * (1 - o),
        )
        return da, da @ weights["Wh"], (np.zeros_like(dh), dc * f), {"Wh": da.T @ p}


# A new cell is an entry here.
CELLS = {
    **{name: Elman(name) for name in ("tanh", "relu", "sigmoid", "identity")},
    "gru": GRU(),
    "gru, reset before": GRU(reset_after=False),
    "lstm": LSTM(),
}
