"""Cells of the page on declared cells, once more: what one step makes of numbers."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .cells import Cell


@dataclass(frozen=True)
class Declared(Cell):
    """A cell by the names of its gates, states and parameters, which a function has."""

    function: Callable
    both: str = ""  # gates of the input and the state together
    of_input: str = ""
    of_state: str = ""
    of_states: str = "h"
    parameters: str = ""

    @property
    def gates(self):
        return len((self.both + " " + self.of_input).split())

    @property
    def states(self):
        return tuple(self.of_states.split())

    @property
    def weights(self):
        return ("Wx", "Wh", "b", "bh", *self.parameters.split())

    def shapes(self, D, H):
        both, of_state = len(self.both.split()), len(self.of_state.split())
        shapes = {"Wx": (self.gates * H, D), "b": (self.gates * H,)}
        if both + of_state:
            shapes["Wh"] = ((both + of_state) * H, H)
        if of_state:
            shapes["bh"] = (of_state * H,)
        return shapes | dict.fromkeys(self.parameters.split(), (H,))

    def step(self, weights, z, p, q):
        both, of_input = self.both.split(), self.of_input.split()
        of_state = self.of_state.split()
        a = dict(zip(both + of_input, np.split(z, self.gates, -1), strict=True))
        if both or of_state:
            u = np.split(p @ weights["Wh"].T, len(both + of_state), -1)
            a |= {name: a[name] + u[i] for i, name in enumerate(both)}
            a |= dict(zip(of_state, u[len(both) :], strict=True))
        if of_state and weights["bh"] is not None:
            biases = np.split(weights["bh"], len(of_state))
            a |= {n: a[n] + bias for n, bias in zip(of_state, biases, strict=True)}
        own = {name: weights[name] for name in self.parameters.split()}
        y = self.function(**a, **dict(zip(self.states, q, strict=True)), **own)
        return y if isinstance(y, tuple) else (y,), None


def sigma(a):
    return 1 / (1 + np.exp(-a))


def peephole(i, f, g, o, h, c, pi, pf, po):
    i, f = sigma(i + pi * c), sigma(f + pf * c)
    c = f * c + i * np.tanh(g)
    return sigma(o + po * c) * np.tanh(c), c


def slstm(i, f, g, o, h, c, n, m):
    # log sigma(f), as log of 1 + exp of a negative number
    log_f = np.where(f.real > 0, -np.log1p(np.exp(-f)), f - np.log1p(np.exp(f)))
    stays = (log_f + m).real > i.real
    new_m = np.where(stays, log_f + m, i)
    i, f = np.exp(i - new_m), np.exp(log_f + m - new_m)
    c, n = f * c + i * np.tanh(g), f * n + i
    return sigma(o) * c / n, c, n, new_m


def mgu(f, n, u, h):
    f = sigma(f)
    return (1 - f) * h + f * np.tanh(n + f * u)


def ugrnn(f, n, h):
    f = sigma(f)
    return f * h + (1 - f) * np.tanh(n)


def li_gru(z, n, h):
    z = sigma(z)
    return z * h + (1 - z) * np.where(n.real > 0, n, 0)


def ind_rnn(a, h, w):
    return np.where((a + w * h).real > 0, a + w * h, 0)


def min_gru(z, n, h):
    z = sigma(z)
    return (1 - z) * h + z * n


def coupled(f, g, o, h, c):
    f = sigma(f)
    c = f * c + (1 - f) * np.tanh(g)
    return sigma(o) * np.tanh(c), c


def rate(a, y, v, k):
    v = (1 - k) * v + k * a
    return np.tanh(v), v


def lif(a, s, v, beta):
    v = beta * v * (1 - s) + a
    return np.where(v > 1, 1.0, 0.0), v


DECLARED = {
    "peephole": Declared(peephole, "i f g o", of_states="h c", parameters="pi pf po"),
    "slstm": Declared(slstm, "i f g o", of_states="h c n m"),
    "mgu": Declared(mgu, "f", "n", "u"),
    "ugrnn": Declared(ugrnn, "f n"),
    "li_gru": Declared(li_gru, "z n"),
    "ind_rnn": Declared(ind_rnn, of_input="a", parameters="w"),
    "min_gru": Declared(min_gru, of_input="z n"),
    "coupled": Declared(coupled, "f g o", of_states="h c"),
    "rate": Declared(rate, "a", of_states="y v", parameters="k"),
    "lif": Declared(lif, "a", of_states="s v", parameters="beta"),
}
