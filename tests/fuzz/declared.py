"""Cells that users declare: random programs of random gates, states and parameters."""

from functools import partial

import mlx.core as mx
import numpy as np

import reference
from cells import flat
from conftest import DTYPES, draw, sigmoid
from fuzz.calls import all_right
from mlx_recurrent import Recurrent, cell, check_cell, exporting
from tolerances import wide

# By NumPy, and by MLX as users write it. Bounded, and continuous but for the last.
ONE = {
    "tanh": (np.tanh, mx.tanh),
    "sigmoid": (lambda a: 1 / (1 + np.exp(-a)), sigmoid),
    "sin": (np.sin, mx.sin),
    "cos": (np.cos, mx.cos),
    "exp": (lambda a: np.exp(-a * a), lambda a: mx.exp(-a * a)),
    "abs": (np.abs, mx.abs),
    "negative": (lambda a: -a, lambda a: -a),
    "scaled": (lambda a: 0.3 * a + 0.1, lambda a: 0.3 * a + 0.1),
}
TWO = {
    "add": (np.add, mx.add),
    "subtract": (np.subtract, mx.subtract),
    "multiply": (np.multiply, mx.multiply),
    "divide": (lambda a, b: a / (1 + b * b), lambda a, b: a / (1 + b * b)),
    "maximum": (np.maximum, mx.maximum),
    "minimum": (np.minimum, mx.minimum),
    "stopped": (lambda a, b: a + b, lambda a, b: a + mx.stop_gradient(b)),
    "where": (
        lambda a, b: np.where(a > 0.05, a, b),
        lambda a, b: mx.where(a > 0.05, a, b),
    ),
}
SINGLE = (mx.float32, mx.float64)


class Program:
    """A random function of named numbers: the states after a step.

    Args:
        rng (Generator): Draws it.
        names (list(str)): What it takes.
        states (list(str)): Those of its arguments that it returns.
        length (int): How many operations it has.
        jumps (bool): Whether it may jump.
    """

    def __init__(self, rng, names, states, length, jumps):
        self.names, self.states, self.code = names, states, []
        two = list(TWO) if jumps else [name for name in TWO if name != "where"]
        for i in range(length):
            place = partial(int, rng.integers(len(names) + i))
            if rng.random() < 0.4:
                self.code.append((str(rng.choice(list(ONE))), place()))
            else:
                other = int(rng.integers(len(names) + i))
                self.code.append((str(rng.choice(two)), place(), other))
        count = len(names) + length
        self.results = [int(rng.integers(count)) for _ in states]

    def __call__(self, of_mlx, **given):
        """The new states: what each was, in part, and a bounded number."""
        values = [given[name] for name in self.names]
        for name, *places in self.code:
            both = ONE[name] if len(places) == 1 else TWO[name]
            values.append(both[of_mlx](*(values[i] for i in places)))
        tanh = (np.tanh, mx.tanh)[of_mlx]
        return tuple(
            0.5 * given[s] + tanh(values[i])
            for s, i in zip(self.states, self.results, strict=True)
        )

    def declared(self, **kinds):
        """The cell, of a function with these arguments."""
        scope = {"run": self}
        given = ", ".join(f"{n}={n}" for n in self.names)
        code = f"def made({', '.join(self.names)}): return run(True, {given})"
        exec(code, scope)
        return cell(**kinds)(scope["made"])


class OfCell:
    """A layer of a random cell, with a random course of its rows."""

    def __init__(self, name, choose, rng):
        self.rng = rng
        kinds = {
            "gates": choose("gates", [1, 0, 2, 4]),
            "input_gates": choose("input_gates", [0, 1, 2]),
            "hidden_gates": choose("hidden_gates", [0, 1, 2]),
            "states": choose("states", [1, 2, 3, 4]),
        }
        if not kinds["gates"] and not kinds["input_gates"]:
            kinds["input_gates"] = 1
        of = {kind: [f"{kind[0]}{i}" for i in range(n)] for kind, n in kinds.items()}
        own = [f"p{i}" for i in range(choose("parameters", [0, 1, 3]))]
        self.dtype = choose("dtype", DTYPES)
        names = [n for each in of.values() for n in each] + own
        length = choose("length", [2, 1, 4, 8, 16])
        jumps = self.dtype in SINGLE
        self.program = Program(rng, names, of["states"], length, jumps)
        starts = dict.fromkeys(own, 0.3)
        self.made = self.program.declared(**of, parameters=starts)
        self.truth_of = reference.Declared(
            partial(self.program, False),
            " ".join(of["gates"]),
            " ".join(of["input_gates"]),
            " ".join(of["hidden_gates"]),
            " ".join(of["states"]),
            " ".join(own),
        )
        self.N, self.L = choose("N", [2, 1, 3, 20]), choose("L", [3, 0, 1, 7])
        self.D, self.H = choose("D", [2, 1, 5]), choose("H", [3, 1, 17, 70])
        shapes = {"x": (self.N, self.L, self.D)}
        shapes |= self.truth_of.shapes(self.D, self.H)
        if not choose("bias", [True, False]):
            shapes = {n: s for n, s in shapes.items() if n not in ("b", "bh")}
        for s in of["states"]:
            if choose(f"first {s}", [True, False]):
                shapes[s] = (self.N, self.H)
        self.learns = choose("learn_hidden", [False, True])
        if self.learns:
            shapes |= {f"{s}0": (self.H,) for s in of["states"]}
        std = {"Wx": self.D**-0.5, "Wh": self.H**-0.5}
        self.arrays = {
            n: draw(rng, s, self.dtype, 0.8 * std.get(n, 1)) for n, s in shapes.items()
        }
        self.keywords = {}
        if choose("lengths", [False, True]):
            self.keywords["lengths"] = rng.integers(0, self.L + 1, self.N)
        if choose("reset", [False, True]):
            self.keywords["reset"] = rng.random((self.N, self.L)) < 0.3
        if choose("mask", [False, True]):
            self.keywords["mask"] = rng.random((self.N, self.L)) < 0.7
        if choose("reverse", [False, True]):
            self.keywords["reverse"] = True
        self.composed = choose("path", ["traced", "composed"]) == "composed"
        self.differentiates = choose("derivatives", [False, False, True])

    def check(self):
        layer = Recurrent(self.made, self.D, self.H, learn_hidden=self.learns)
        for n in ("b", "bh"):
            if n not in self.arrays and n in layer:
                setattr(layer, n, None)
        states = {n: a for n, a in self.arrays.items() if n in self.made.states}
        layer.update({n: a for n, a in self.arrays.items() if n in layer})
        x = self.arrays["x"]
        if not self.composed:
            got = layer(x, **states, **self.keywords, return_state=True)
        else:
            with exporting():
                got = layer(x, **states, **self.keywords, return_state=True)
        values = list(self.arrays.values())
        all_right(self.rng, flat(got), values, self.truth, self.plain)
        if self.differentiates:
            check_cell(self.made, int(self.rng.integers(2**31)))

    def truth(self, *values):
        given = dict(zip(self.arrays, values, strict=True))
        primals = [given.get(n) for n in self.truth_of.arguments]
        primals = [None if a is None else wide(a) for a in primals]
        terms = reference.Terms(**self.keywords)
        outputs, last = reference.recurrence(self.truth_of, primals, terms)
        return [outputs[0], *last]

    def plain(self, *values):
        """A loop over rows and steps in MLX's operations."""
        given = dict(zip(self.arrays, values, strict=True))
        zeros = mx.zeros((self.H,), self.dtype)
        rows = [self._row(given, zeros, n) for n in range(self.N)]
        last = [
            mx.stack([states[s] for _, states in rows])
            for s in range(len(self.made.states))
        ]
        if not self.L:
            return [mx.zeros((self.N, 0, self.H), self.dtype), *last]
        return [mx.stack([mx.stack(outputs) for outputs, _ in rows]), *last]

    def _row(self, given, zeros, n):
        made, keywords = self.made, self.keywords
        anew = [given.get(f"{s}0") for s in made.states]
        q = [
            given[s][n] if s in given else a
            for s, a in zip(made.states, anew, strict=True)
        ]
        outputs, reverse = [zeros] * self.L, keywords.get("reverse", False)
        places = range(int(keywords.get("lengths", [self.L] * self.N)[n]))
        for i, t in enumerate(reversed(places) if reverse else places):
            border = t + 1 if reverse else t
            if (
                "reset" in keywords
                and (i or not reverse)
                and keywords["reset"][n, border]
            ):
                q = anew
            seen, q = q[0], [zeros if a is None else a for a in q]
            if "mask" not in keywords or keywords["mask"][n, t]:
                q = self._step(given, given["x"][n, t], seen, q)
            outputs[t] = q[0]
        return outputs, [zeros if a is None else a for a in q]

    def _step(self, given, x, seen, q):
        made, both = self.made, len(self.made.gates)
        z = x @ given["Wx"].T
        if "b" in given:
            z = z + given["b"]
        a = dict(
            zip(
                (*made.gates, *made.input_gates),
                mx.split(z, made.input_rows),
                strict=True,
            )
        )
        if made.hidden_rows:
            u = mx.zeros((made.hidden_rows * self.H,), self.dtype)
            if seen is not None:
                u = seen @ given["Wh"].T
            u = mx.split(u, made.hidden_rows)
            a |= {g: a[g] + u[i] for i, g in enumerate(made.gates)}
            own = u[both:]
            if "bh" in given and own:
                biases = mx.split(given["bh"], len(own))
                own = [v + bias for v, bias in zip(own, biases, strict=True)]
            a |= dict(zip(made.hidden_gates, own, strict=True))
        a |= dict(zip(made.states, q, strict=True))
        a |= {name: given[name] for name in made.parameters}
        return list(self.program(True, **a))


KINDS = {"Recurrent": OfCell}
