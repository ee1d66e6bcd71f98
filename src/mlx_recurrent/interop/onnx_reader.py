"""The recurrent nodes of an ONNX graph as layers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import mlx.core as mx
import numpy as np
import onnx

from mlx_recurrent.functional.judging import shown
from mlx_recurrent.interop.activations import Activation, complete, nonlinearity_of
from mlx_recurrent.interop.gates import Sides, gates_in, own_of
from mlx_recurrent.interop.onnx_graph import Graph
from mlx_recurrent.interop.onnx_operators import entries_of
from mlx_recurrent.interop.onnx_tensors import (
    DIRECTIONS,
    SEQUENCE_LENS,
    STATES,
    WHOLE,
    Axis,
    B,
    Expression,
    Fixed,
    Joined,
    Last,
    Order,
    Output,
    P,
    Part,
    Parts,
    R,
    Run,
    Source,
    Spread,
    Tracked,
    W,
    X,
    last_run,
    padding_of,
    whole_input_of,
    why_of,
)
from mlx_recurrent.interop.parts import DTYPES, layer_of
from mlx_recurrent.interop.reversed import Reversed
from mlx_recurrent.layers.bidirectional import Bidirectional
from mlx_recurrent.layers.gru import GRU
from mlx_recurrent.layers.lstm import LSTM
from mlx_recurrent.layers.rnn import RNN
from mlx_recurrent.layers.stack import Stack

# A last state: of a node, which one, and in which direction.
_End: TypeAlias = tuple[Run, int, int]


@dataclass(frozen=True)
class Step:
    """One layer: its node, or the nodes of its two directions."""

    forward: Run
    backward: Run
    merge: str | None = "concat"
    residual: bool = False

    @property
    def runs(self) -> set[Run]:
        return {self.forward, self.backward}


class Reader:
    """The layers of a graph.

    Args:
        model (ModelProto): The model, found right by ONNX's checker.
        name (str): What messages call it.
        folder (Path, optional): Where its external data are. ``None`` is nowhere.
    """

    def __init__(self, model: onnx.ModelProto, name: str, folder: Path | None) -> None:
        self.graph = Graph(model, name, folder)

    def network(self) -> Any:
        """Return the layers of the whole graph."""
        self._judge_runs()
        ends, lasts = self._ends()
        states: list[Expression] = [
            Output(run) for entries in lasts.values() for run, _, _ in entries
        ]
        steps: list[Step] = []
        for i, end in enumerate(ends + states):
            found = self._chain(end, is_end=True, is_state=i >= len(ends))
            if len(found) > len(steps):
                steps = found
        known = {run for step in steps for run in step.runs}
        for end in ends + states:
            found = self._chain(end, is_end=True)
            if others := {run for step in found for run in step.runs} - known:
                label = next(iter(others)).label
                self._refuse_rest(
                    f"has recurrent nodes that do not follow each other: {label!r} and "
                    f"{steps[-1].forward.label!r}"
                )
        self._judge_ends(ends, steps)
        self._judge_lasts(lasts, steps)
        for run in known:
            if run.obstacle:
                self._refuse_rest(f"has {run.named}, {run.obstacle}")
        return self._built(steps, whole=True)

    def _ends(self) -> tuple[list[Expression], dict[str, list[_End]]]:
        """Return what the graph gives: outputs, and last states by their names."""
        ends: list[Expression] = []
        lasts: dict[str, list[_End]] = {}
        for output in self.graph.graph.output:
            value, name = self.graph.values.get(output.name), output.name
            has = f"has the output {name!r}"
            if not isinstance(value, Tracked):
                self._refuse_rest(f"{has}, which {why_of(value)}")
            of, run = value.of, last_run(value.of)
            if states := _states_of(of):
                lasts[name] = states
            elif run is None or (isinstance(of, Parts) and len(of.entries) > 1):
                self._refuse_rest(f"{has}, which {why_of(value)}")
            elif value.masked not in (None, padding_of(run)):
                self._refuse_rest(
                    f"{has}, masked by other lengths than the sequence_lens of "
                    f"{run.label!r}"
                )
            else:
                ends.append(of)
            for order in (axis.order for axis in value.axes if axis.order):
                self._refuse_rest(f"{has}, whose rows are in the order made{order.by}")
        return ends, lasts

    def chosen(self, names: Sequence[str]) -> Any:
        """Return the layers of nodes by their names, in their order."""
        self._judge_runs()
        runs = [self._named(name) for name in names]
        last: Expression = Output(runs[-1])
        merged: dict[str, Joined] = {}
        for value in self.graph.values.values():
            if isinstance(value, Tracked) and isinstance(value.of, Joined):
                if runs[-1] in (value.of.forward, value.of.backward) and (
                    {value.of.forward, value.of.backward} <= set(runs)
                ):
                    merged[value.of.merge] = value.of
        if "mean" in merged:  # which is made of a sum
            merged.pop("sum", None)
        if len(merged) > 1:
            self._refuse_run(
                runs[-1],
                "two directions",
                f"the graph makes {' and '.join(merged)} of them, where a layer has "
                "one merge",
            )
        if merged:
            (last,) = merged.values()
        steps: list[Step] = []
        for step in reversed(self._chain(last, is_end=True)):
            if not step.runs <= set(runs):
                break
            steps.insert(0, step)
        if missing := set(runs) - {run for step in steps for run in step.runs}:
            label = next(run.named for run in runs if run in missing)
            self.graph.refuse(
                f"has {label}, which does not lead to {runs[-1].label!r} through the "
                "nodes in node"
            )
        return self._built(steps)

    def _chain(
        self, end: Expression, is_end: bool = False, is_state: bool = False
    ) -> list[Step]:
        """Return the layers up to an expression, the first one first."""
        if isinstance(end, (Source, Last)):
            return []
        if isinstance(end, (Output, Parts)):
            run = last_run(end)
            assert run is not None
            merge = None if is_end and not is_state else "concat"
            return [*self._chain(run.x), Step(run, run, merge)]
        if isinstance(end, Joined):
            step = Step(end.forward, end.backward, end.merge)
            return [*self._chain(end.forward.x), step]
        steps = self._chain(end.outputs)
        return [*steps[:-1], replace(steps[-1], residual=True)]

    def _judge_ends(self, ends: list[Expression], steps: list[Step]) -> None:
        """Refuse results that the layers' calls do not give, beside one that they do.

        The outputs of an earlier layer are among those that it gives.
        """
        parts: dict[Run, set[int]] = {}
        whole: set[Run] = set()
        for end in ends:
            run = last_run(end)
            assert run is not None
            if isinstance(end, Parts):
                parts.setdefault(run, set()).add(end.entries[0].index)
            else:
                whole.add(run)
            found = self._chain(end, is_end=True)
            *before, last = found
            mine = steps[len(found) - 1]
            # Side by side or as a pair, the numbers are the same.
            merges = {last.merge, mine.merge}
            if before != steps[: len(before)] or (
                replace(last, merge=mine.merge) != mine
                or (len(merges) > 1 and merges != {None, "concat"})
            ):
                self._refuse_rest(
                    f"has outputs that are different results of {last.forward.named}, "
                    "where a layer has one"
                )
        for run, halves in parts.items():
            if run not in whole and len(halves) < run.directions:
                self._refuse_rest(
                    f"has an output that is one direction of {run.label!r} alone"
                )

    def _judge_lasts(self, lasts: dict[str, list[_End]], steps: list[Step]) -> None:
        """Refuse last states in another order than the layers', or a direction's."""
        runs = _runs_of(steps)
        order = [
            end for state in STATES for run in runs for end in _ends_of(run, state)
        ]
        for name, entries in lasts.items():
            if entries != [entry for entry in order if entry in entries]:
                self._refuse_rest(
                    f"has the output {name!r}, of last states in another order than "
                    "the layers'"
                )
        given = {entry for entries in lasts.values() for entry in entries}
        for run, state in {(run, state) for run, state, _ in given}:
            if not given.issuperset(_ends_of(run, state)):
                self._refuse_rest(
                    "has an output that is the last state of one direction of "
                    f"{run.label!r} alone"
                )

    def _built(self, steps: list[Step], whole: bool = False) -> Any:
        self._judge_lengths(steps)
        self._judge_states(steps, whole)
        try:
            return self._network_of(steps)
        except ValueError as error:
            if str(error).startswith(self.graph.name):
                raise
            # The layers' own words, where their sizes do not fit.
            raise ValueError(
                f"{self.graph.name} has recurrent nodes that are no network: {error}"
            ) from error

    def _network_of(self, steps: list[Step]) -> Any:
        layers: list[Any] = []
        for step in steps:
            if step.forward is step.backward:
                run = step.forward
                made = self._layers(run)
                if run.directions == 2:
                    forward, backward = made
                    layers.append(Bidirectional(forward, backward, step.merge))
                elif run.direction == "reverse":
                    layers.append(Reversed(*made))
                else:
                    layers += made
            else:
                (forward,) = self._layers(step.forward)
                (backward,) = self._layers(step.backward)
                layers.append(Bidirectional(forward, backward, step.merge))
        if not any(step.residual for step in steps):
            return layers[0] if len(layers) == 1 else Stack(layers)
        stack = Stack(layers, residual=True)
        for step, layer in zip(steps, stack.layers, strict=True):
            D, H = Stack([layer])._sizes
            if (D == H) is not step.residual:
                does = "is" if step.residual else "is not"
                self.graph.refuse(
                    f"has {step.forward.named}, whose input {does} "
                    "added to its outputs: a Stack does so wherever both have the "
                    "same number of features, or nowhere"
                )
        return stack

    def _layers(self, run: Run) -> list[Any]:
        """Return a layer for each direction of a node."""
        kind, directions = run.kind, run.directions
        given = self._weights(run, W, "W")
        state = self._weights(run, R, "R")
        bias = None if run.inputs[B] is None else self._weights(run, B, "B")
        G = gates_in(kind)
        times = "" if G == 1 else f"{G} "
        if given.ndim != 3 or given.shape[0] != directions or given.shape[1] % G:
            self._refuse_shape(run, "W", f"({directions}, {times}H, D)", given)
        rows = given.shape[1]
        H = rows // G
        if state.shape != (directions, rows, H):
            self._refuse_shape(run, "R", f"({directions}, {rows}, {H})", state)
        if bias is not None and bias.shape != (directions, 2 * rows):
            self._refuse_shape(run, "B", f"({directions}, {2 * rows})", bias)
        size = run.attributes.get("hidden_size", H)
        if size != H:
            self._refuse_run(run, f"hidden_size {size}", f"W has {H}")
        options = self._options(run)
        starts = {
            name: self._start(run, place, H)
            for place, name in zip(run.states, kind._start_names(), strict=True)
        }
        layers = []
        for i in range(directions):
            with mx.stream(mx.cpu):  # which has float64 too
                biases = () if bias is None else mx.split(bias[i], 2)
                sides = Sides(given[i], state[i], *biases)
                reset_after = options[i].get("reset_after", True)
                own = own_of(kind, sides, "onnx", reset_after)
                if any(rows is not None for rows in starts.values()):
                    zeros = mx.zeros((directions, H), given.dtype)
                    for name, found in starts.items():
                        own[name] = (zeros if found is None else found)[i]
            layers.append(layer_of(kind, own, **options[i]))
        return layers

    def _options(self, run: Run) -> list[dict[str, Any]]:
        """Return the arguments of each direction's layer."""
        if run.kind is RNN:
            return [
                {"nonlinearity": nonlinearity_of(activation)}
                for activation in self._activations(run)
            ]
        attributes, name = run.attributes, run.kind.__name__
        own = {GRU: ["sigmoid", "tanh"], LSTM: ["sigmoid", "tanh", "tanh"]}[run.kind]
        given = [
            a.decode("utf-8", "replace") for a in attributes.get("activations", ())
        ]
        if given and [a.lower() for a in given] != own * run.directions:
            self._refuse_run(
                run,
                "activations",
                f"an mlx_recurrent.{name} has {', '.join(own)}, but they are "
                f"{', '.join(given)}",
            )
        if "clip" in attributes:
            self._refuse_run(run, "clip", f"an mlx_recurrent.{name} clips nothing")
        if attributes.get("input_forget"):
            why = "an mlx_recurrent.LSTM has an input gate of its own"
            self._refuse_run(run, "input_forget", why)
        peepholes = run.inputs[P]
        if peepholes is not None and not (
            isinstance(peepholes, Fixed) and not peepholes.array.any()
        ):
            self._refuse_run(run, "P", "an mlx_recurrent.LSTM has no peepholes")
        if run.kind is LSTM:
            return [{}] * run.directions
        after = attributes.get("linear_before_reset", 0) != 0
        return [{"reset_after": after}] * run.directions

    def _weights(self, run: Run, i: int, name: str) -> mx.array:
        value = run.inputs[i]
        if not isinstance(value, Fixed):
            self._refuse_run(run, name, f"it must be a constant, but {why_of(value)}")
        array = value.array
        dtype = DTYPES.get(array.dtype.name)
        if dtype is None:
            self._refuse_run(run, name, f"it has dtype {array.dtype.name}")
        return mx.array(array, dtype=dtype)

    def _activations(self, run: Run) -> list[Activation]:
        attributes = run.attributes
        directions = run.directions
        names = attributes.get("activations", [b"Tanh"] * directions)
        if len(names) < directions:
            self._refuse_run(
                run, "activations", f"there must be {directions}, but are {len(names)}"
            )
        names = [name.decode("utf-8", "replace") for name in names[:directions]]
        try:
            bare = [complete(name, 1.0, 1.0, None) for name in names]
            alphas = self._consumed(run, "alpha", [a.alpha is not None for a in bare])
            betas = self._consumed(run, "beta", [a.beta is not None for a in bare])
            return [
                complete(name, alpha, beta, attributes.get("clip"))
                for name, alpha, beta in zip(names, alphas, betas, strict=True)
            ]
        except ValueError as error:
            if str(error).startswith(self.graph.name):
                raise
            raise ValueError(
                f"{self.graph.name} has {run.named}, of which {error}"
            ) from error

    def _consumed(self, run: Run, which: str, takes: list[bool]) -> list[float | None]:
        """Return the parameter of each function, of those that have it.

        The standard says that values are consumed in the order of the functions. ONNX
        Runtime skips those without the parameter, ONNX's reference evaluator does not.
        """
        given = run.attributes.get(f"activation_{which}") or []
        rest = iter(given)
        skipping = [next(rest, None) if takes_one else None for takes_one in takes]
        by_place = [
            given[i] if takes_one and i < len(given) else None
            for i, takes_one in enumerate(takes)
        ]
        if len(given) > len(takes) or (
            len(given) > sum(takes) and any(takes) and skipping != by_place
        ):
            self._refuse_run(
                run,
                f"activation_{which}",
                f"{len(given)} values are given, where {sum(takes)} are used",
            )
        return skipping

    def _start(self, run: Run, place: int, H: int) -> mx.array | None:
        """Return the constant state before each direction's first step, if any."""
        value, name = run.inputs[place], STATES[place]
        directions = run.directions
        if value is None or (isinstance(value, Spread) and isinstance(value.of, Axis)):
            if value is None:
                return None
            self._refuse_run(run, name, "it is the size of an axis")
        if isinstance(value, (Fixed, Spread)):
            fixed = value if isinstance(value, Fixed) else value.of
            assert isinstance(fixed, Fixed)
            array = fixed.array
            if not (array != 0).any():
                return None
            if array.ndim == 3 and run.attributes.get("layout", 0) == 1:
                array = np.swapaxes(array, 0, 1)
            if array.ndim == 3 and array.shape[1] > 1:
                same = (array == array[:, :1]).all()
                array = array[:, :1] if same else array
            dtype = DTYPES.get(array.dtype.name)
            try:
                states = np.broadcast_to(array, (directions, 1, H))
            except ValueError:
                states = None
            if states is None or dtype is None:
                self._refuse_run(
                    run,
                    name,
                    "it is a constant with another state for each row, where a layer "
                    "has one for all (learn_hidden): make it an input of the graph",
                )
            return mx.array(np.ascontiguousarray(states[:, 0]), dtype=dtype)
        return None  # the call's

    def _judge_states(self, steps: list[Step], whole: bool) -> None:
        """Refuse states that are no inputs of their own, in the layers' order."""
        taken: dict[Source, list[Part]] = {}
        used_as: dict[Source, dict[str, None]] = {}
        runs = _runs_of(steps)
        used = {
            whole_input_of(run.inputs[i]) for run in runs for i in (X, SEQUENCE_LENS)
        }
        for run, place in ((run, place) for place in STATES for run in runs):
            value, why = run.inputs[place], ""
            if value is None or isinstance(value, (Fixed, Spread)):
                continue
            source, parts = self._states(run, place)
            before = taken.setdefault(source, [])
            used_as.setdefault(source, {})[STATES[place]] = None
            if source.name in used:
                why = "the same input as X or sequence_lens"
            elif len({*before, *parts}) < len(before) + len(parts):
                why = "given twice, where each layer and direction has its own"
            elif len({part.axis for part in before + parts}) > 1:
                why = "along another axis than before"
            elif (before + parts) != sorted(before + parts, key=lambda p: p.index):
                why = "in another order than that of the layers and directions"
            if why:
                self._refuse_run(run, STATES[place], f"it {why_of(value)}, {why}")
            before += parts
        for source, parts in taken.items():
            axis = parts[0].axis
            size = 1 if axis == WHOLE else source.axes[axis].size
            if whole and size is not None and len(parts) < size:
                self.graph.refuse(
                    f"has the input {source.name!r} of {size} states, of which the "
                    f"recurrent nodes take {len(parts)} alone as "
                    f"{' and '.join(used_as[source])}"
                )

    def _states(self, run: Run, place: int) -> tuple[Source, list[Part]]:
        """Return the input that a node's states are of, and which parts of it."""
        value, parts = run.inputs[place], None
        places = (1, 0, 2) if run.attributes.get("layout", 0) == 1 else (0, 1, 2)
        if isinstance(value, Tracked) and len(value.axes) == 3:
            _, rows, features = (value.axes[i] for i in places)
            parts = entries_of(value, places[0], run.directions)
        if parts and len(parts) == run.directions and isinstance(parts[0].of, Source):
            source, axis = parts[0].of, parts[0].axis
            own = [a for i, a in enumerate(source.axes) if i != axis and a.size != 1]
            mine = [a for a in (rows.base or rows, features) if a.size != 1]
            if own == mine and all((p.of, p.axis) == (source, axis) for p in parts):
                if rows.order is _order_of(run):
                    return source, parts
                self._refuse_run(
                    run, STATES[place], "its rows are in another order than those of X"
                )
        self._refuse_run(
            run,
            STATES[place],
            f"it {why_of(value)}, where a layer's call takes states: it must be an "
            "input of its own, with rows and features in their order",
        )

    def _judge_lengths(self, steps: list[Step]) -> None:
        seen: dict[str, Run] = {}
        for run in _runs_of(steps):
            value = run.inputs[SEQUENCE_LENS]
            if isinstance(value, Spread) and value.of is run.time:
                value = None
            if isinstance(value, Fixed) and run.time.size is not None:
                if (value.array == run.time.size).all():
                    value = None
            if value is not None and not whole_input_of(value):
                self._refuse_run(
                    run,
                    "sequence_lens",
                    f"it {why_of(value)}, where a layer's call takes lengths: make it "
                    "an input",
                )
            orders = {axis.order for axis in getattr(value, "axes", ())}
            if orders - {_order_of(run)}:
                self._refuse_run(
                    run, "sequence_lens", "its rows are in another order than X's"
                )
            seen[whole_input_of(value)] = run
        if len(seen) > 1:
            labels = " and ".join(repr(run.label) for run in seen.values())
            self.graph.refuse(
                f"has the recurrent nodes {labels} with different sequence_lens, where "
                "the lengths of a call are those of every layer"
            )

    def _judge_runs(self) -> None:
        if not self.graph.runs:
            self.graph.refuse_without_run()
        for run in self.graph.runs:
            if run.direction not in DIRECTIONS:
                self._refuse_run(
                    run,
                    "direction",
                    f"it must be of {', '.join(DIRECTIONS)}, but is {run.direction!r}",
                )
            if (layout := run.attributes.get("layout", 0)) not in (0, 1):
                self._refuse_run(run, "layout", f"it must be 0 or 1, but is {layout}")

    def _named(self, name: str) -> Run:
        for run in self.graph.runs:
            if name in (run.node.name, run.label):
                return run
        raise ValueError(
            f"node must be a recurrent node of {self.graph.name}, of {self._all()}, "
            f"but is {shown(name)}"
        )

    def _all(self) -> str:
        return ", ".join(repr(run.label) for run in self.graph.runs)

    def _refuse_rest(self, why: str) -> NoReturn:
        self.graph.refuse(f"{why}; node= takes recurrent nodes alone, of {self._all()}")

    def _refuse_run(self, run: Run, what: str, why: str) -> NoReturn:
        self.graph.refuse(f"has {run.named} with {what}: {why}")

    def _refuse_shape(
        self, run: Run, name: str, rule: str, found: mx.array
    ) -> NoReturn:
        self._refuse_run(run, name, f"its shape must be {rule}, but is {found.shape}")


def _runs_of(steps: Sequence[Step]) -> list[Run]:
    """Return the nodes in the layers' order, forward before backward."""
    runs = (run for step in steps for run in (step.forward, step.backward))
    return list(dict.fromkeys(runs))


def _order_of(run: Run) -> Order | None:
    """Return the order of a node's rows: X's or, where X is unknown, the lengths'."""
    lengths = run.inputs[SEQUENCE_LENS]
    if run.obstacle and isinstance(lengths, Tracked) and lengths.axes:
        return lengths.axes[0].order
    return run.batch.order


def _ends_of(run: Run, state: int) -> list[_End]:
    return [(run, state, i) for i in range(run.directions)]


def _states_of(of: Expression) -> list[_End]:
    """Return the directions whose last states these are, if it is nothing else."""
    found: list[_End] = []
    entries = of.entries if isinstance(of, Parts) else ()
    if isinstance(of, Last):
        entries = (Part(of, WHOLE, 0),)
    for part in entries:
        if not isinstance(part.of, Last):
            return []
        states = _ends_of(part.of.run, part.of.state)
        found += states if part.axis == WHOLE else [states[part.index]]
    return found
