"""Calls of several layers that must be right: random networks of random cells."""

from contextlib import nullcontext

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

import networks
from cells import CELLS, flat
from conftest import DTYPES, array, draw
from fuzz.calls import (
    CALLABLES,
    LAYERS,
    NEIGHBOURS,
    SEVERAL,
    all_right,
    in_form,
    in_pieces,
    with_layout,
)
from mlx_recurrent import Bidirectional, Stack, exporting
from mlx_recurrent.interop import Reversed
from tolerances import wide

# Rows, steps and features that are worth it to run two directions in one launch, and
# what may have two.
LARGE = (4, 40, 160)
BOTH_WAYS = ("Bidirectional", "Stack.build")


class OfNetwork:
    """A network of layers by one name, with lengths, episodes and states."""

    def __init__(self, name, choose, rng):
        self.name, self.rng = name, rng
        self.dtype = choose("dtype", DTYPES)
        self.path = choose("path", LAYERS)
        self.N, self.L = choose("N", [2, 1, 3]), choose("L", [3, 1, 2, 7])
        self.D, self.H = choose("D", [2, 1, 5, 20]), choose("H", [3, 1, 17, 20])
        if name in BOTH_WAYS and choose.rarely("large", [False, True]):
            self.N, self.L, self.H = LARGE
        self.alone = alone = name in ("Bidirectional", "Reversed")
        self.goes_on = name in ("Stack.step", "Stack.stream")
        merges = ["concat", "sum", "mul", "mean"]
        self.merge = choose("merge", [*merges, None] if alone else merges)
        self.residual = not alone and choose("residual", [False, True])
        self.depth = 1 if alone else choose("num_layers", [2, 1, 3])
        self.bias = choose("bias", [True, False])
        mx.random.seed(int(rng.integers(2**32)))
        self.model, self.cells = self._model(choose, choose("cell", list(CELLS)))
        networks.in_dtype(self.model, self.dtype)
        self._choose_keywords(choose)
        self.x = with_layout(choose, "x", draw(rng, (*self.shape, self.D), self.dtype))
        self.hidden = None
        if choose("hidden", [False, True]):
            self.hidden = networks.states_for(rng, self.model, self.N, self.dtype)
            if choose.rarely("some of hidden", [False, True]):
                self.hidden = some_of(rng, self.hidden)
        # A stream that was begun with other states.
        self.begins_later = name == "Stack.stream" and choose("reset to", [False, True])
        self.return_all = not (alone or self.goes_on) and choose(
            "return_all", [False, True]
        )
        wanted = [True, False, "only"]
        self.return_state = True if self.goes_on else choose("return_state", wanted)
        # The reference runs once for each number.
        numbers = sum(a.size for a in networks.leaves(self.tree).values())
        self.differentiates = (
            numbers * self.N * self.L < 2000
            and not self.goes_on
            and self.H >= SEVERAL
            and self.dtype == mx.float64
            and choose("gradients", [False, True])
        )
        if self.unseen.any() and not self.differentiates:
            filler = choose("padding", ["as is", "nan", "inf"])
            if filler != "as is":
                unseen = mx.array(self.unseen)[..., None]
                self.x = mx.where(unseen, float(filler), self.x).astype(self.dtype)

    @property
    def shape(self):
        return self.N, self.L

    def _model(self, choose, cell):
        """The network and its cells, which are mostly this one."""
        if self.name == "Stack.build":
            both_ways = choose("bidirectional", [False, True])
            model = Stack.build(
                self.D,
                self.H,
                self.depth,
                bidirectional=both_ways,
                merge=self.merge,
                residual=self.residual,
                layer=CELLS[cell].layer,
                bias=self.bias,
                **self._arguments(cell),
            )
            return model, [(cell, cell) if both_ways else cell] * self.depth
        if self.alone:
            return self._layer(choose, 0, self.name, cell, self.D)
        kinds = ["forward", "Bidirectional", "Reversed"][: 1 if self.goes_on else None]
        usual, layers, cells, D = choose("of", kinds), [], [], self.D
        for i in range(self.depth):
            kind = mostly(choose, f"of {i}", usual, kinds)
            layer, cells_of_it = self._layer(choose, i, kind, cell, D)
            layers.append(layer)
            cells.append(cells_of_it)
            D = self.H * (1 + (kind == "Bidirectional" and self.merge == "concat"))
        return Stack(layers, residual=self.residual), cells

    def _layer(self, choose, i, kind, usual, D):
        cell = mostly(choose, f"cell {i}", usual, CELLS)
        layer = self._of_cell(cell, D)
        if kind == "Reversed":
            return Reversed(layer), cell
        if kind == "forward":
            return layer, cell
        back = mostly(choose, f"cell {i} backward", cell, CELLS)
        backward = None if back == cell else self._of_cell(back, D)
        return Bidirectional(layer, backward, merge=self.merge), (cell, back)

    def _of_cell(self, name, D):
        return CELLS[name].layer(D, self.H, self.bias, **self._arguments(name))

    def _arguments(self, name):
        cell = CELLS[name]
        if cell is CELLS["rnn"]:
            return {"nonlinearity": CALLABLES[self.path]["tanh"]}
        return cell.arguments

    def _choose_keywords(self, choose):
        rng, shape = self.rng, self.shape
        self.keywords, self.forms = {}, {}
        for of, values in {
            "lengths": rng.integers(0, self.L + 1, self.N),
            "reset": rng.random(shape) < 0.3,
            "mask": rng.random(shape) < 0.7,
        }.items():
            if choose(of, [False, True]) and not (self.goes_on and of != "reset"):
                self.keywords[of] = values
                self.forms[of] = in_form(choose, of, values)
        both_ways = any(isinstance(of, Bidirectional) for of in self.model.modules())
        forward = both_ways or self.goes_on
        if not forward and choose("reverse", [False, True]):
            self.keywords["reverse"] = True
        # Of no effect on the values; every one has tests of its own.
        self.every = {}
        if every := choose("checkpoint_every", [None, 1, 2, 1000]):
            self.every["checkpoint_every"] = every
        if every := choose("truncate_every", [None, 1, 2]):
            self.every["truncate_every"] = every

    @property
    def unseen(self):
        """Where no input counts, (N, L)."""
        unseen = np.zeros(self.shape, bool)
        if "lengths" in self.keywords:
            unseen |= np.arange(self.L) >= self.keywords["lengths"][:, None]
        if "mask" in self.keywords:
            unseen |= ~self.keywords["mask"]
        return unseen

    def other(self, xp):
        """A function of the network's arrays, by NumPy or MLX."""
        run = networks.results_of(xp, self.tree, self.wanted, **self.options)
        return (lambda *values: run(*map(wide, values))) if xp is np else run

    @property
    def options(self):
        """Those of ``network``."""
        options = {"cells": self.cells, "merge": self.merge, "residual": self.residual}
        return options | self.keywords

    @property
    def tree(self):
        return {"model": self.model.parameters(), "x": self.x, "hidden": self.hidden}

    @property
    def gated(self):
        """Whether a cell has no callable, and runs composed where it is exported."""
        return any(cell != "rnn" for cell in flat(self.cells))

    def wanted(self, both):
        outputs, states = both
        if not self.alone and not self.return_all:
            outputs = outputs[-1]
        both = {True: (outputs, states), False: outputs, "only": states}
        return flat(both[self.return_state])

    def run(self):
        """What the call returns, or the same step by step."""
        if self.name == "Stack.stream":
            return self._by_stream()
        if self.name == "Stack.step":
            return self._by_steps()
        every = {} if self.alone else {"return_all": self.return_all}
        return flat(
            self.model(
                self.x,
                self.hidden,
                return_state=self.return_state,
                **every,
                **self.every,
                **(self.keywords | self.forms),
            )
        )

    def _by_stream(self):
        hidden, later = self.hidden, self.begins_later
        if later or not networks.leaves({"hidden": hidden}):  # how many rows there are
            states = networks.states_for(self.rng, self.model, self.N)
            hidden = states if later else tree_map(mx.zeros_like, states)
        stream = self.model.stream(hidden)
        if later:
            stream.reset(self.hidden)
        outputs = in_pieces(stream, self.x, self.forms.get("reset"), self.H, self.L)
        return [array(a, self.dtype) for a in flat([outputs, stream.state])]

    def _by_steps(self):
        states, outputs = self.hidden, []
        for t in range(self.L):
            starts = self.keywords.get("reset")
            y, states = self.model.step(
                self.x[:, t], states, reset=None if starts is None else starts[:, t]
            )
            outputs.append(y)
        return flat([mx.stack(outputs, -2), states])

    def check(self):
        exports = self.path == "composed" and self.gated
        with exporting() if exports else nullcontext():
            got = self.run()
            mx.eval(got)
            values = list(networks.leaves(self.tree).values())
            all_right(self.rng, got, values, self.other(np), self.other(mx))
            if self.differentiates:
                self.check_gradients()

    def check_gradients(self):
        networks.check(
            self.rng,
            self.model,
            self.x,
            self.hidden,
            neighbours=NEIGHBOURS,
            **self.options,
        )


def mostly(choose, name, usual, values):
    """What is usual or, in some cases, another of the values."""
    return choose.rarely(name, [usual, *(v for v in values if v != usual)], 0.3)


def some_of(rng, states):
    """The same states, of which some are absent, alone or a layer's together."""
    if rng.random() < 0.3:
        return None
    if isinstance(states, (tuple, list)):
        return type(states)(some_of(rng, state) for state in states)
    return states


KINDS = dict.fromkeys(
    ("Stack", "Stack.build", "Stack.step", "Stack.stream", "Bidirectional", "Reversed"),
    OfNetwork,
)
