"""The sections of the benchmark: each adds its rows to the result of a run."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import mlx.core as mx

import mlx_recurrent
from mlx_recurrent.benchmarks import gate
from mlx_recurrent.benchmarks.cases import (
    ALONE,
    CALLABLE_CASES,
    CALLABLES,
    CELLS,
    CHECKPOINTED,
    CHECKPOINTED_LENGTH,
    CHECKPOINTED_SHARE,
    DECODE,
    DERIVATIVE_CASE,
    DERIVATIVES,
    ENSEMBLE_CASES,
    ENSEMBLES,
    LENGTH_CASE,
    LENGTHS,
    LENGTHS_CASES,
    LONG_CASE,
    LONG_JUDGED,
    LONG_LENGTHS,
    LONG_WAYS,
    MEMBERS,
    NETWORK_CASES,
    PADDED,
    PASSES,
    PLAIN,
    REGULARISER_CASES,
    REGULARISERS,
    SIDES,
    SKIPPING,
    STREAMING,
    TRANSFORMS,
    TYPE_CASES,
    Case,
    Work,
)
from mlx_recurrent.benchmarks.options import Options
from mlx_recurrent.benchmarks.peers import OURS, STEPS, UPSTREAM
from mlx_recurrent.benchmarks.process import Library, LibraryError, take_turns
from mlx_recurrent.benchmarks.result import Result, Row

if TYPE_CHECKING:
    import numpy as np


# What is prepared under a key, and the row that its time goes to.
Ready: TypeAlias = tuple[Library, str, Row]
# Of the rounds and the budget, where a section repeats what others measure.
HALF = 0.5


@dataclass
class Run:
    """A run: what was asked for, the libraries, and what was found so far."""

    options: Options
    libraries: dict[str, Library]
    result: Result
    failed: bool = False

    @property
    def ours(self) -> Library:
        """This package."""
        return self.libraries[OURS]

    @property
    def upstream(self) -> Library:
        """``mlx.nn``: every gate needs it."""
        return self.libraries[UPSTREAM]

    def say(self, text: str) -> None:
        """Tell what is being measured."""
        print(f"  {text}", file=sys.stderr, flush=True)

    def add(self, row: Row) -> None:
        """Add a row."""
        self.result.rows.append(row)

    def time(self, rows: list[Ready], part: float = 1.0) -> None:
        """Take turns at what was prepared under the keys, and add the rows.

        Args:
            rows (list): What is ready.
            part (float, optional): Of the rounds and of the budget. Default: ``1.0``.
        """
        o = self.options
        medians = take_turns(
            [(library, key) for library, key, _ in rows],
            math.ceil(part * o.rounds),
            part * o.budget,
            o.pause,
        )
        for (_, _, row), found in zip(rows, medians, strict=True):
            self.add(row.of(found))

    def forget(self) -> None:
        """Drop what the libraries prepared."""
        for library in self.libraries.values():
            library.forget()

    def refuse(self, row: Row, why: str) -> None:
        """Name what could not be timed, in place of its time."""
        label = self.result.labels[row.library]
        self.say(f"{label}, {row.cell}, {row.case.name}, {row.kind}: {why}")
        self.failed |= row.library == OURS
        self.add(replace(row, note=why))


def row_of(
    section: str, work: Work, library: str, variant: str = "", **more: Any
) -> Row:
    """Return the row, still without figures, of some work in a section."""
    of_cell = {"cell": work.cell, **more}
    return Row(section, work.case, work.kind, library, variant, **of_cell)


def passes(run: Run, section: str, cell: str) -> None:
    """Time a pass of each case beside every peer."""
    for case in run.options.cases:
        run.say(f"{section}: {cell}, {case.name} ({case.shape})")
        beside_peers(run, section, Work(section, case, cell=cell))


def beside_peers(run: Run, section: str, *works: Work, part: float = 1.0) -> None:
    """Time some work beside every peer that can do it."""
    ready = []
    for work in works:
        ready += judged(run, section, work)
        if section in PASSES and run.result.machine.divides_units(
            work.case, work.layer
        ):
            # It moves, where the cores are virtual ones: measured beside each pass.
            run.ours.prepare("exchange", work._replace(kind="exchange"))
            row = row_of("exchange", work, OURS)
            ready.append((run.ours, "exchange", row))
    run.time(ready, part)
    run.forget()
    run.result.set_limits()


def judged(run: Run, section: str, work: Work) -> list[Ready]:
    """Prepare some work in every library that can do it; return what was right."""
    ready = []
    base, why_not = upstream_result(run, work)
    for library in run.libraries.values():
        if library.name not in run.result.labels or not can(library, work):
            continue
        row = row_of(section, work, library.name)
        if library.name == UPSTREAM and base is None:
            run.refuse(row, why_not)
            continue
        try:
            _, got = library.prepare(work.kind, work, save=True)
        except LibraryError as error:
            run.refuse(row, f"failed: {error}")
            continue
        if library.name == OURS and base is not None:
            why = gate.ours_is_wrong(got, base, work)
        else:
            why = gate.peer_is_wrong(got, work, base)
        if why:
            run.refuse(row, f"wrong: {why}")
        else:
            ready.append((library, work.kind, row))
    return ready


def can(library: Library, work: Work) -> bool:
    """Return whether a library can do some work."""
    return work.kind in library.passes and work.option in ("", *library.options)


def upstream_result(run: Run, work: Work) -> "tuple[dict[str, np.ndarray] | None, str]":
    """What ``mlx.nn`` makes of it, or why there is nothing."""
    if not can(run.upstream, work):
        return None, "not timed: it cannot"
    if work.kind == "training" and work.case.L > work.layer.upstream_length:
        return None, "not timed: its time grows with the square of L"
    try:
        return run.upstream.prepare("base", work, save=True)[1], ""
    except LibraryError as error:
        return None, f"failed: {error}"


def variants(run: Run, section: str, works: dict[str, Work]) -> None:
    """Time several ways of our layer, by name, relative to each other."""
    ready = []
    for variant, work in works.items():
        row = row_of(section, work, OURS, variant)
        _, got = run.ours.prepare(variant, work, save=True)
        if why := gate.peer_is_wrong(got, work):
            run.refuse(row, f"wrong: {why}")
        else:
            ready.append((run.ours, variant, row))
    run.time(ready)


def threads(run: Run, cell: str) -> None:
    """Time our layer on one thread and on all, where the work is divided."""
    count = run.options.threads
    if count < 2:
        run.say("threads: there is only one")
        return
    cases = [*run.options.cases, *([] if run.options.chosen else [ALONE])]
    for case in cases:
        _, N, L, D, H = case
        layer = getattr(mlx_recurrent, cell)(D, H)
        split = layer.plan(mx.zeros((N, L, D), mx.float32)).partition
        if split != "batch" and (case.N > 1 or case.H < 512):
            continue
        run.say(f"threads: {cell}, {case.name} ({case.shape})")
        for pass_ in PASSES:
            ways = {str(n): Work(pass_, case, threads=n, cell=cell) for n in (1, count)}
            variants(run, "threads", ways)
        run.forget()


def matmul(run: Run, cell: str) -> None:
    """Time ``matmul`` and ``Linear`` beside MLX's."""
    for side in SIDES[:3] if run.options.quick else SIDES:
        case = Case(f"{side} on a side", 1, side, side, side)
        run.say(f"matmul: {case.name}")
        for kind in ("matmul", "linear"):
            work = Work(kind, case)
            base = run.upstream.prepare(kind, work, save=True)[1]
            _, got = run.ours.prepare(kind, work, save=True)
            row = Row("matmul", case, kind, OURS)
            ready = [(run.upstream, kind, replace(row, library=UPSTREAM))]
            if why := gate.peer_is_wrong(got, work, base):
                run.refuse(row, f"wrong: {why}")
            else:
                ready.append((run.ours, kind, row))
            run.time(ready)
        run.forget()


def decode(run: Run, cell: str) -> None:
    """Time one evaluated step of the layer beside an evaluated addition."""
    run.say(f"decode: {cell}, one step, and an addition")
    ready = []
    for kind in ("forward", "addition"):
        work = Work(kind, DECODE, cell=cell)
        _, got = run.ours.prepare(kind, work, save=True)
        row = row_of("decode", work, OURS)
        if kind == "forward" and (why := gate.peer_is_wrong(got, work)):
            run.refuse(row, f"wrong: {why}")
        else:
            ready.append((run.ours, kind, row))
    run.time(ready)
    run.forget()


# Which of the times of a turn's calls counts, by name.
QUANTILES = {"median": 0.5, "p99": 0.99}


def streaming(run: Run, cell: str) -> None:
    """Time a step, and the slowest in a hundred, beside every peer."""
    for case in run.options.cases if run.options.chosen else STREAMING:
        run.say(f"streaming: {cell}, {case.name} ({case.shape})")
        ready = []
        for library in run.libraries.values():
            if library.name not in run.result.labels:
                continue
            for kind in (kind for kind in STEPS if kind in library.passes):
                for variant, quantile in QUANTILES.items():
                    work = Work(kind, case, quantile=quantile, cell=cell)
                    row = row_of("streaming", work, library.name, variant)
                    key = f"{kind} {variant}"
                    try:
                        _, got = library.prepare(key, work, save=True)
                    except LibraryError as error:
                        run.refuse(row, f"failed: {error}")
                        continue
                    if why := gate.peer_is_wrong(got, work):
                        run.refuse(row, f"wrong: {why}")
                    else:
                        ready.append((library, key, row))
        run.time(ready)
        run.forget()


def memory(run: Run, cell: str) -> None:
    """Measure what a pass holds at its peak beside its output."""
    for case in run.options.cases:
        run.say(f"memory: {cell}, {case.name}")
        works = [Work(pass_, case, cell=cell) for pass_ in PASSES]
        if case.L >= CHECKPOINTED_LENGTH:
            works.append(works[-1]._replace(option=CHECKPOINTED))
        for work in works:
            run.ours.prepare(work.kind, work)
            extra = run.ours.memory(work.kind) - output_bytes(case)
            limit = allowed_bytes(work, run.options.threads)
            row = row_of("memory", work, OURS, work.option, unit="bytes", limit=limit)
            run.add(row.of([float(extra)]))
        run.forget()


def output_bytes(case: Case) -> int:
    """The size of the layer's output."""
    return 4 * case.N * case.L * case.H


def allowed_bytes(work: Work, threads: int) -> float:
    """What a pass may hold beside its output.

    The weights packed, in panels of up to 64 columns, and a megabyte a thread; training
    what the cell keeps, of the output's size each, and the gradients.
    """
    _, _, _, D, H = work.case
    rows = work.layer.gates * H
    packed = 4 * (D + H) * -(-rows // 64) * 64
    allowed = float(packed + threads * 2**20)
    if work.kind == "training":
        share = CHECKPOINTED_SHARE if work.option == CHECKPOINTED else 1
        allowed += share * work.layer.kept * output_bytes(work.case)
        allowed += 4 * rows * (D + H + 1)
    return allowed


def call(run: Run, cell: str) -> None:
    """Time the call of the layer without its evaluation."""
    ready = []
    for case in run.options.cases:
        work = Work("call", case, cell=cell)
        run.ours.prepare(case.shape, work)
        ready.append((run.ours, case.shape, row_of("call", work, OURS)))
    run.say(f"call: {cell}, from Python to the primitive")
    run.time(ready)
    run.forget()


def length(run: Run, cell: str) -> None:
    """Time a training step over the length, beside ``mlx.nn``."""
    for steps in LENGTHS[:4] if run.options.quick else LENGTHS:
        run.say(f"length: {cell}, L = {steps:,}")
        work = Work("training", LENGTH_CASE._replace(L=steps), cell=cell)
        row = row_of("length", work, OURS)
        ready = []
        base, failed = upstream_result(run, work)
        short = steps <= work.layer.upstream_length
        _, got = run.ours.prepare("length", work, save=short)
        # The same code has just been judged at smaller lengths.
        why = ""
        if base is not None:
            why = gate.ours_is_wrong(got, base, work)
        elif short:
            why = gate.peer_is_wrong(got, work)
            run.refuse(replace(row, library=UPSTREAM), failed)
        if why:
            run.refuse(row, f"wrong: {why}")
        else:
            ready.append((run.ours, "length", row))
        if base is not None:
            ready.append((run.upstream, "base", replace(row, library=UPSTREAM)))
        run.time(ready)
        run.forget()
    run.ours.prepare("length", work)
    row = replace(row, kind="memory", unit="bytes")
    run.add(row.of([float(run.ours.memory("length"))]))
    run.forget()


# Dtype and what is tiny, by name.
VARIANTS = {
    "float32": ("float32", ""),
    "float16": ("float16", ""),
    "bfloat16": ("bfloat16", ""),
    "denormal": ("float32", "states"),
}


def types(run: Run, cell: str) -> None:
    """Time half types, and denormal states or deltas, relative to float32."""
    cases = TYPE_CASES[2:3] if run.options.quick else TYPE_CASES
    for case in run.options.cases if run.options.chosen else cases:
        run.say(f"types: {cell}, {case.name} ({case.shape})")
        for pass_ in PASSES:
            ways = {}
            for variant, (dtype, tiny) in VARIANTS.items():
                if tiny and pass_ == "training":
                    tiny = "deltas"
                ways[variant] = Work(pass_, case, dtype, tiny, cell=cell)
            variants(run, "types", ways)
        run.forget()


def transforms(run: Run, cell: str) -> None:
    """Time derivatives of derivatives and mapped calls beside every peer."""
    quick = run.options.quick
    case = DERIVATIVE_CASE._replace(N=4, L=64) if quick else DERIVATIVE_CASE
    for chosen in run.options.cases if run.options.chosen else [case]:
        for kind in DERIVATIVES:
            run.say(f"transforms: {cell}, {TRANSFORMS[kind]} ({chosen.shape})")
            beside_peers(run, "transforms", Work(kind, chosen, cell=cell))
    for case in run.options.cases if run.options.chosen else ENSEMBLE_CASES:
        run.say(f"transforms: {cell}, {MEMBERS} layers ({case.shape})")
        works = [Work(kind, case, cell=cell) for kind in ENSEMBLES]
        beside_peers(run, "transforms", *works)


def callables(run: Run, cell: str) -> None:
    """Time other nonlinearities relative to tanh."""
    quick = run.options.quick
    cases = CALLABLE_CASES[:1] if quick else CALLABLE_CASES
    names = CALLABLES[:3] if quick else CALLABLES
    for case in run.options.cases if run.options.chosen else cases:
        run.say(f"callables: {case.name} ({case.shape})")
        for pass_ in PASSES:
            ways = {
                name: Work(pass_, case, nonlinearity=name, cell=cell) for name in names
            }
            variants(run, "callables", ways)
        run.forget()


def lengths(run: Run, cell: str) -> None:
    """Time rows that end early beside every peer, and the whole batch of ours."""
    cases = LENGTHS_CASES
    if run.options.quick:
        cases = [LENGTHS_CASES[0]._replace(N=16, L=64)]
    for case in run.options.cases if run.options.chosen else cases:
        run.say(f"lengths: {cell}, {case.name} ({case.shape})")
        for pass_ in PASSES:
            padded = Work(pass_, case, cell=cell)
            ready = judged(run, "lengths", padded._replace(option="lengths"))
            row = row_of("lengths", padded, OURS, PADDED)
            _, got = run.ours.prepare(PADDED, padded, save=True)
            if why := gate.peer_is_wrong(got, padded):
                run.refuse(row, f"wrong: {why}")
            else:
                ready.append((run.ours, PADDED, row))
            run.time(ready, HALF)
            run.forget()


def networks(run: Run, option: str, cell: str) -> None:
    """Time several layers in one beside every peer."""
    cases = NETWORK_CASES[:1] if run.options.quick else NETWORK_CASES
    for case in run.options.cases if run.options.chosen else cases:
        run.say(f"{option}: {cell}, {case.name} ({case.shape})")
        for pass_ in PASSES:
            work = Work(pass_, case, option=option, cell=cell)
            beside_peers(run, option, work, part=HALF)


def regularisers(run: Run, cell: str) -> None:
    """Time what changes a step relative to none, in training mode."""
    cases = REGULARISER_CASES[-1:] if run.options.quick else REGULARISER_CASES
    for case in run.options.cases if run.options.chosen else cases:
        run.say(f"regularisers: {cell}, {case.name} ({case.shape})")
        for pass_ in PASSES:
            ways = {
                name or PLAIN: Work(pass_, case, option=name, cell=cell)
                for name in ("", *REGULARISERS, SKIPPING)
                if name not in CELLS[cell].lacks
            }
            variants(run, "regularisers", ways)
        run.forget()


def long(run: Run, cell: str) -> None:
    """Time training over a long sequence, and measure what it holds."""
    steps = [L // 10 for L in LONG_LENGTHS] if run.options.quick else LONG_LENGTHS
    cases = [LONG_CASE._replace(L=L) for L in steps]
    for case in run.options.cases if run.options.chosen else cases:
        run.say(f"long: {cell}, {case.name} ({case.shape})")
        for way in LONG_WAYS:
            work = Work("kept", case, option=way, cell=cell)
            row = row_of("long", work, OURS, way)
            # The reference takes a step at a time: judged on the first blocks.
            short = work._replace(case=case._replace(L=min(case.L, LONG_JUDGED)))
            _, got = run.ours.prepare(way, short, save=True)
            if why := gate.peer_is_wrong(got, short):
                run.refuse(row, f"wrong: {why}")
                continue
            run.ours.prepare(way, work)
            run.time([(run.ours, way, row)], HALF)
            held = run.ours.memory(way)
            if not work.state_only:
                held -= output_bytes(case)
            run.add(replace(row, kind="memory", unit="bytes").of([float(held)]))
            run.forget()


RUN: dict[str, Callable[[Run, str], None]] = {
    "forward": lambda run, cell: passes(run, "forward", cell),
    "training": lambda run, cell: passes(run, "training", cell),
    "threads": threads,
    "matmul": matmul,
    "decode": decode,
    "streaming": streaming,
    "memory": memory,
    "call": call,
    "length": length,
    "types": types,
    "transforms": transforms,
    "callables": callables,
    "lengths": lengths,
    "bidirectional": lambda run, cell: networks(run, "bidirectional", cell),
    "depth": lambda run, cell: networks(run, "depth", cell),
    "regularisers": regularisers,
    "long": long,
}
