"""The benchmark: its limit, its gate, the peers' results, and what it writes."""

import csv
import struct
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from mlx_recurrent.benchmarks import gate, machine, process, report, sections, tables
from mlx_recurrent.benchmarks.cases import (
    CALLABLES,
    CASES,
    CELLS,
    CHECKPOINTED,
    DECODE,
    LENGTHS_CASES,
    LONG_WAYS,
    NETWORKS,
    PADDED,
    PASSES,
    REGULARISERS,
    RNN,
    SECTIONS,
    SKIPPING,
    STREAM_CALL,
    STREAM_WEIGHTS,
    STREAMING,
    TRANSFORMS,
    Case,
    Work,
    cells_of,
)
from mlx_recurrent.benchmarks.machine import Machine
from mlx_recurrent.benchmarks.options import Options
from mlx_recurrent.benchmarks.peers import LIBRARIES, OURS, PEERS, UPSTREAM
from mlx_recurrent.benchmarks.process import (
    Library,
    LibraryError,
    take_turns,
    wait_until_idle,
)
from mlx_recurrent.benchmarks.result import Result, Row

SMALL = Case("small", 3, 9, 5, 33)
CORES = 2
# A little longer than the blocks of the ways to train on a long sequence.
BLOCKS = Case("blocks", 1, 1004, 2, 5)
OPTIONS = ["lengths", SKIPPING, *NETWORKS, *REGULARISERS]

# One machine and the limits, in milliseconds, that were published for it.
MEASURED = Machine(
    threads=2,
    flops_one=265e9,
    flops=533e9,
    caches=(
        (48 * 2**10, 490e9),
        (2**20, 135e9),
        (32 * 2**20, 120e9),
        (float("inf"), 51e9),
    ),
    exchange=0.126e-6,
    evaluation=35e-6,
    tanh=0.15e-9,
)
PUBLISHED = {
    "forward": ["0.05", "0.74", "0.31", "1.6", "26.2", "0.62", "50.4", "41"],
    "training": ["0.06", "1.6", "0.69", "4.2", "67", "1.4", "132", "90"],
}


@pytest.mark.parametrize("pass_", PUBLISHED)
@pytest.mark.parametrize("index", range(len(CASES)))
def test_limit_is_the_published_one(index, pass_):
    published = PUBLISHED[pass_][index]
    decimals = len(published.partition(".")[2])
    rounding = max(0.5 * 10**-decimals, 0.03 * float(published))
    found = 1e3 * MEASURED.limit(CASES[index], pass_)
    assert abs(found - float(published)) <= rounding


@pytest.mark.parametrize("name", CELLS)
def test_limit_counts_gates_and_functions(name):
    """Of a cell: the terms by hand, one after another made all there is."""
    cell, (_, N, L, D, H) = CELLS[name], CASES[3]
    G, functions = {"RNN": (1, 1), "GRU": (3, 3), "LSTM": (4, 5)}[name]
    free = Machine(2, 1e30, 1e30, ((float("inf"), 1e30),), 0.0, -machine.CALL, 0.0)

    def limit(pass_, **measured):
        return replace(free, **measured).limit(CASES[3], pass_, cell)

    for pass_ in PASSES:
        found = limit(pass_, tanh=1.0)
        assert found == pytest.approx(functions * N * L * H / 2)
    steps, projection = 2 * N * L * G * H**2, 2 * N * L * G * D * H
    of_weights = 2 * N * L * G * H * (D + H)
    assert limit("forward", flops=1.0) == pytest.approx(steps + projection)
    assert limit("training", flops=1.0) == pytest.approx(
        2 * steps + projection + of_weights
    )
    read = 4 * G * H**2 * L
    slow = {"caches": ((float("inf"), 1.0),), "exchange": 1e30}
    assert limit("forward", **slow) == pytest.approx(read)
    assert limit("training", **slow) == pytest.approx(2 * read)


def test_one_thread_divides_nothing():
    alone = Machine(1, 265e9, 265e9, MEASURED.caches, 0.0, 35e-6, 0.15e-9)
    case = CASES[3]
    assert alone.step(case) == pytest.approx(2 * case.N * case.H**2 / 265e9)
    assert alone.limit(case, "forward") > MEASURED.limit(case, "forward")


def test_limit_uses_the_exchange_that_was_measured_beside_it():
    alone, batch = CASES[1], CASES[4]
    assert MEASURED.divides_units(alone) and not MEASURED.divides_units(batch)
    result = Result("", "", {}, {}, {}, MEASURED)
    result.rows = [
        Row("forward", alone, "forward", "mlx_recurrent"),
        Row("exchange", alone, "forward", "mlx_recurrent").of([0.426e-6]),
        Row("training", alone, "training", "mlx_recurrent"),
    ]
    result.set_limits()
    forward, _, training = result.rows
    slower = 0.3e-6 * alone.L
    assert forward.limit == pytest.approx(MEASURED.limit(alone, "forward") + slower)
    assert training.limit == pytest.approx(MEASURED.limit(alone, "training"))


def test_better_takes_the_best_of_each_figure():
    worse = Machine(
        2, 200e9, 600e9, tuple((s, r / 2) for s, r in MEASURED.caches), 1e-6, 9e-6, 1e-9
    )
    best = Machine(2, 265e9, 600e9, MEASURED.caches, 0.126e-6, 9e-6, 0.15e-9)
    assert MEASURED.better(worse) == worse.better(MEASURED) == best


def test_caches_grow():
    sizes = machine.cache_sizes()
    assert sizes == sorted(sizes) and sizes[0] > 0


def exact(work):
    return {name: a.astype(np.float32) for name, a in gate.truth(work).items()}


def options_of(cell, library=OURS):
    """The options that a library has for a cell."""
    lacking = CELLS[cell].lacks
    return [o for o in LIBRARIES[library].options if o not in lacking]


def works():
    """A piece of work of every kind, option and cell."""
    for cell in CELLS:
        for kind in ("stream", *TRANSFORMS):
            yield Work(kind, SMALL, cell=cell)
        for option in ("", *options_of(cell)):
            for pass_ in PASSES:
                yield Work(pass_, SMALL, option=option, cell=cell)
        yield from (Work("kept", BLOCKS, option=way, cell=cell) for way in LONG_WAYS)
    yield from (Work(kind, SMALL) for kind in ("matmul", "linear"))


WORKS = pytest.mark.parametrize(
    "work", list(works()), ids=lambda w: f"{w.cell} {w.kind} {w.option}"
)


@WORKS
def test_gate_passes_what_is_right(work):
    got = exact(work)
    assert not gate.peer_is_wrong(got, work)
    assert not gate.ours_is_wrong(got, got, work)


@WORKS
def test_gate_names_what_is_wrong(work):
    got, base = exact(work), exact(work)
    name = next(iter(got))
    got[name].flat[0] += 1e-3
    assert name in gate.peer_is_wrong(got, work, base)
    assert name in gate.ours_is_wrong(got, base, work)
    got[name].flat[0] = np.nan
    assert gate.peer_is_wrong(got, work, base) and gate.ours_is_wrong(got, base, work)
    got[name] = got[name][:-1]
    assert "shape" in gate.peer_is_wrong(got, work, base)


def test_ours_has_every_option():
    assert options_of(RNN) == list(LIBRARIES[OURS].options)
    assert sorted(LIBRARIES[OURS].options) == sorted(OPTIONS)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", LIBRARIES)
def test_every_library_passes_the_gate(name, cell):
    library = Library(name, CORES)
    if library.missing():
        pytest.skip(f"{library.label} is not installed: no module {library.missing()}")
    try:
        for kind in library.passes:
            options = options_of(cell, name) if kind in PASSES else []
            for option in ("", *options):
                work = Work(kind, SMALL, option=option, cell=cell)
                seconds, got = library.prepare("pass", work, save=True)
                assert seconds > 0
                assert gate.peer_is_wrong(got, work) == "", (kind, option)
        ((first, second),) = take_turns([(library, "pass")], 2, 60, 0, turn=0.001)
        assert first > 0 and second > 0
    finally:
        library.close()


class Scripted(Library):
    """A library that answers what it is told to, and counts its turns."""

    def __init__(self, name, error):
        super().__init__(name, 1)
        self.error = error
        self.turns = 0

    def prepare(self, key, work, save=False):
        return 0.0, {name: a + self.error for name, a in exact(work).items()}

    def seconds(self, key, turn=0):
        self.turns += 1
        return 1e-3 * self.turns

    def memory(self, key):
        return 10**6

    def forget(self):
        pass


def scripted_run(errors, case=SMALL):
    result = Result("", "", {}, {n: n for n in errors}, {}, MEASURED)
    options = Options(
        list(SECTIONS),
        list(CELLS),
        [case],
        True,
        PEERS,
        3,
        9,
        2e-3,
        1,
        None,
        None,
        None,
        None,
        True,
    )
    return sections.Run(
        options, {n: Scripted(n, error) for n, error in errors.items()}, result
    )


@pytest.mark.parametrize("cell", CELLS)
def test_a_wrong_result_is_named_and_never_timed(cell, capsys):
    run = scripted_run({OURS: 0, UPSTREAM: 0, "torch": 0.01})
    sections.passes(run, "forward", cell)
    assert {row.cell for row in run.result.rows} == {cell}
    rows = {row.library: row for row in run.result.rows}
    assert rows["torch"].median is None and rows["torch"].note.startswith("wrong: h")
    assert run.libraries["torch"].turns == 0 and not run.failed
    assert rows[OURS].median == 2e-3 and rows[OURS].rounds == 3
    assert "torch" in capsys.readouterr().err


def test_our_wrong_result_fails_the_run(capsys):
    run = scripted_run({OURS: 0.01, UPSTREAM: 0})
    sections.passes(run, "forward", RNN)
    assert run.failed and run.ours.turns == 0
    assert "wrong" in capsys.readouterr().err


NEW_SECTIONS = ["lengths", *NETWORKS, "regularisers", "long"]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("section", NEW_SECTIONS)
def test_sections_judge_every_row(section, cell, capsys):
    run = scripted_run({OURS: 0, UPSTREAM: 0, "torch": 0, "jax": 0.01})
    sections.RUN[section](run, cell)
    assert not run.failed
    rows = run.result.find(section)
    mine = [row for row in rows if row.library == OURS and row.unit == "s"]
    assert run.ours.turns == sum(row.rounds for row in mine)
    assert all(row.median is not None for row in mine)
    assert run.libraries["jax"].turns == 0
    beside = section not in ("regularisers", "long")
    assert bool([row for row in rows if row.note.startswith("wrong")]) == beside
    (table,) = tables.TABLES[section](run.result)
    assert table.rows and all(len(row) == len(table.header) for row in table.rows)
    assert all(cell in row[:2] for row in table.rows)

    run = scripted_run({OURS: 0.01, UPSTREAM: 0})
    sections.RUN[section](run, cell)
    assert run.failed and "wrong" in capsys.readouterr().err
    (table,) = tables.TABLES[section](run.result)
    assert all("wrong" in row for row in table.rows)


@pytest.mark.parametrize("case", [*LENGTHS_CASES, SMALL])
def test_lengths_have_the_mean_that_is_said(case):
    lengths = Work("forward", case, option="lengths").lengths()
    assert lengths.shape == (case.N,)
    assert lengths.min() >= 1 and lengths.max() == case.L
    if case.N > 3:
        assert lengths.mean() == pytest.approx(case.L / 4, rel=0.05)


def test_cells_of_a_section():
    assert cells_of("forward", list(CELLS)) == list(CELLS)
    assert cells_of("callables", list(CELLS)) == [RNN]
    assert cells_of("matmul", ["GRU"]) == []


@pytest.mark.parametrize("cell", CELLS)
def test_memory_that_is_allowed(cell):
    """By hand: packed weights, a megabyte a thread; in training arrays, gradients."""
    case = Case("long", 2, 2048, 3, 32)
    kept = {"RNN": 1, "GRU": 4, "LSTM": 5}[cell]
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[cell]
    columns = {1: 64, 3: 128, 4: 128}[gates]
    packed, output = 4 * (3 + 32) * columns, 4 * 2 * 2048 * 32
    gradients = 4 * gates * 32 * (3 + 32 + 1)
    run = scripted_run({OURS: 0, UPSTREAM: 0}, case)
    sections.memory(run, cell)
    limits = {(row.kind, row.variant): row.limit for row in run.result.rows}
    forward = packed + 2**20
    assert limits == {
        ("forward", ""): forward,
        ("training", ""): forward + kept * output + gradients,
        ("training", CHECKPOINTED): forward + 0.1 * kept * output + gradients,
    }
    (table,) = tables.memory_tables(run.result)
    assert table.rows[2][:4] == [cell, "long", case.shape, f"training, {CHECKPOINTED}"]


def test_a_slow_library_takes_fewer_turns(monkeypatch):
    now = 0.0

    class Slow(Scripted):
        def seconds(self, key, turn=0):
            nonlocal now
            now += 2
            return super().seconds(key)

    monkeypatch.setattr(process.time, "perf_counter", lambda: now)
    monkeypatch.setattr(process, "wait_until_idle", lambda *_: None)
    slow, fast = Slow("torch", 0), Scripted("jax", 0)
    medians = take_turns([(slow, ""), (fast, "")], rounds=5, budget=3, pause=0)
    assert len(medians[0]) == 2 and len(medians[1]) == 5


SPIN = """
import time
print(flush=True)
end = time.perf_counter() + 0.25
while time.perf_counter() < end: pass
time.sleep(9)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_turn_waits_for_threads_that_spin():
    with subprocess.Popen(
        [sys.executable, "-c", SPIN], stdout=subprocess.PIPE
    ) as spinning:
        spinning.stdout.readline()
        start = time.perf_counter()
        wait_until_idle(spinning.pid, 0.02)
        waited = time.perf_counter() - start
        spinning.kill()
    assert waited > 0.1


def test_a_library_that_fails_says_why():
    library = Library(OURS, CORES)
    with pytest.raises(LibraryError, match="AttributeError"):
        library.prepare("pass", Work("forward", SMALL, dtype="float8"))
    library.close()


def test_a_process_that_ends_says_why():
    library = Library(OURS, 0)  # a process without a core
    with pytest.raises(LibraryError, match=r"ended with code 1: .*Error"):
        library.prepare("pass", Work("forward", SMALL))


def synthetic():
    """A result with every section and cell, and of everything else one.

    A losing row, a wrong peer and an absent one.
    """
    names = (OURS, UPSTREAM, "torch", "onnxruntime", "jax")
    labels = {name: LIBRARIES[name].label for name in names}
    result = Result(
        "mlx-recurrent bench",
        "2026-01-01",
        {"processor": "a processor", "mlx.nn with": "libopenblas.so.0"},
        labels,
        {"OpenVINO": "not installed (no module openvino)"},
        MEASURED,
    )
    add = result.rows.append
    for pass_ in ("forward", "training"):
        for i, case in enumerate(CASES[:2]):
            for library, seconds in ((OURS, 2e-3), (UPSTREAM, 8e-3), ("jax", 4e-3)):
                # Ours takes longer than JAX in the second case.
                seconds = 1e-3 if (i, library) == (1, "jax") else seconds
                row = Row(pass_, case, pass_, library, limit=1e-3)
                add(row.of([seconds, 1.1 * seconds, 0.9 * seconds, seconds]))
            add(Row(pass_, case, pass_, "torch", note="wrong: h has error 1"))
            for threads, seconds in (("1", 4e-3), ("2", 2e-3)):
                add(Row("threads", case, pass_, OURS, threads).of([seconds]))
            row = Row("memory", case, pass_, OURS, unit="bytes", limit=2e6)
            add(row.of([1e6 + 2e6 * i]))
            for variant in ("float32", "float16"):
                add(Row("types", case, pass_, OURS, variant).of([2e-3]))
    for library in (OURS, UPSTREAM):
        add(Row("matmul", Case("64", 1, 64, 64, 64), "matmul", library).of([1e-5]))
        for steps in (10, 100):
            case = CASES[0]._replace(L=steps)
            add(Row("length", case, "training", library).of([1e-5 * steps]))
    add(Row("length", case, "memory", OURS, unit="bytes").of([1e8]))
    add(Row("decode", DECODE, "forward", OURS).of([30e-6]))
    add(Row("decode", DECODE, "addition", OURS).of([15e-6]))
    for library, kind, seconds in (
        (OURS, "stream", 1e-6),
        (OURS, "step", 20e-6),
        ("torch", "stream", 8e-6),
    ):
        for variant, times in (("median", 1), ("p99", 11)):
            row = Row("streaming", STREAMING[1], kind, library, variant)
            add(row.of([times * seconds]))
    # Weights of 393,216 and 524,288 bytes, read at 135 GB/s in 2.9 and 3.9 us.
    for case, cell, library, seconds in (
        (STREAM_CALL, "GRU", OURS, 1e-6),
        (STREAM_WEIGHTS, "GRU", OURS, 5e-6),
        (STREAM_WEIGHTS, "GRU", "onnxruntime", 13e-6),
        (STREAM_CALL, "LSTM", OURS, 1e-6),
        (STREAM_WEIGHTS, "LSTM", OURS, 6e-6),
        (STREAM_WEIGHTS, "LSTM", "onnxruntime", 13e-6),
    ):
        for variant in ("median", "p99"):
            row = Row("streaming", case, "stream", library, variant, cell=cell)
            add(row.of([seconds]))
    add(Row("call", CASES[0], "call", OURS).of([9e-6]))
    for library, seconds in ((OURS, 1e-3), (UPSTREAM, 30e-3)):
        for kind in ("penalty", "hessian"):
            add(Row("transforms", CASES[0], kind, library).of([seconds]))
    add(Row("transforms", CASES[0], "ensemble", OURS, note="wrong: h"))
    for library, variant, seconds in (
        (OURS, "", 5e-3),
        (OURS, PADDED, 10e-3),
        ("torch", "", 15e-3),
    ):
        add(Row("lengths", CASES[0], "forward", library, variant).of([seconds]))
    for network in NETWORKS:
        for library, seconds in ((OURS, 2e-3), (UPSTREAM, 4e-3), ("jax", 1e-3)):
            add(Row(network, CASES[0], "training", library).of([seconds]))
    for pass_, longer in (("forward", 1.1), ("training", 1.2)):
        for variant, times in (("none", 1), ("leak", longer), ("zoneout", 1)):
            row = Row("regularisers", CASES[0], pass_, OURS, variant)
            add(row.of([1e-3 * times]))
    for cell in ("GRU", "LSTM"):
        for pass_ in PASSES:
            for library, seconds in ((OURS, 2e-3), ("onnxruntime", 3e-3)):
                row = Row(pass_, CASES[0], pass_, library, limit=1e-3, cell=cell)
                add(row.of([seconds]))
            for variant in ("none", "zoneout"):
                row = Row("regularisers", CASES[0], pass_, OURS, variant, cell=cell)
                add(row.of([1e-3]))
    for way in LONG_WAYS:
        row = Row("long", BLOCKS, "kept", OURS, way)
        add(row.of([1.004e-3]))
        add(Row("long", BLOCKS, "memory", OURS, way, unit="bytes").of([60e6]))
    for variant, seconds in (("tanh", 1e-3), ("gelu", 3e-3)):
        add(Row("callables", CASES[0], "forward", OURS, variant).of([seconds]))
    return result


def test_tables_of_a_result():
    result = synthetic()
    table, *of_others = tables.passes_tables(result, "forward")
    assert table.title == "Forward pass: RNN"
    assert [other.title for other in of_others] == [
        "Forward pass: GRU",
        "Forward pass: LSTM",
    ]
    for other in of_others:
        assert other.rows[0][2:] == [
            *("2.00 (2.00 to 2.00)", "3.00 (1.50x)", "1.00", "50 %", "1.50")
        ]
    won, lost, mean = table.rows
    assert won[2:] == [
        *("2.00 (1.95 to 2.05)", "8.00 (4.00x)", "wrong", "4.00 (2.00x)"),
        *("1.00", "50 %", "2.00"),
    ]
    assert lost[-1] == "0.50 lost" and lost[5] == "1.00 (0.50x)"
    assert mean[3:] == ["4.00x", "-", "1.00x", "", "", "1.00x"]
    (table,) = tables.threads_tables(result)
    assert [row[6] for row in table.rows] == ["2.00"] * 4
    (table,) = tables.decode_tables(result)
    assert table.rows == [[RNN, "30.0", "15.0", "15.0", "no, wanted at most 10"]]
    (table,) = tables.streaming_tables(result)
    assert [row[3:] for row in table.rows if row[0] == RNN] == [
        ["1.00", "11.00", "1.0x", "no, wanted under 3, 99 % under 10"],
        ["20.00", "220.00", "20.0x", ""],
        ["8.00", "88.00", "8.0x", ""],
    ]
    square = [row for row in table.rows if row[1] == STREAM_WEIGHTS.shape]
    assert [(row[0], row[-1]) for row in square if row[2].startswith("ours")] == [
        ("GRU", "yes"),
        ("LSTM", "no, wanted under 6.35, under 5.20"),
    ]
    (table,) = tables.memory_tables(result)
    assert {row[2]: row[-1] for row in table.rows} == {
        "1, 128, 64, 64": "yes",
        "1, 512, 256, 256": "no",
    }

    (table,) = tables.transforms_tables(result)
    assert [row[3:] for row in table.rows] == [
        ["1.00", "30.0 (30.00x)", "yes"],
        ["1.00", "30.0 (30.00x)", ""],
        ["wrong", "-", ""],
    ]
    (table,) = tables.callables_tables(result)
    assert table.rows[0][4:] == ["1.00", "3.00x"]
    (table,) = tables.lengths_tables(result)
    assert [row[4:] for row in table.rows] == [
        ["5.00", "15.0 (3.00x)", "3.00", "10.0", "0.50", "no, wanted at most 0.4"]
    ]
    for network in NETWORKS:
        (table,) = tables.network_tables(result, network)
        assert [row[4:] for row in table.rows] == [
            ["2.00", "4.00 (2.00x)", "1.00 (0.50x)", "0.50 lost"]
        ]
    (table,) = tables.regularisers_tables(result)
    assert [row[4:] for row in table.rows] == [
        ["1.00", "1.10x", "1.00x", "yes"],
        ["1.00", "1.20x", "1.00x", "no, wanted at most 1.15"],
        *[["1.00", "-", "1.00x", "yes"]] * 4,
    ]
    (table,) = tables.long_tables(result)
    assert [row[3:] for row in table.rows] == [
        ["1.00", "1.000", "60.0", met]
        for met in ("", "no, wanted under 50 MB", "", "yes", "")
    ]


@pytest.mark.parametrize("nonlinearity", CALLABLES)
@pytest.mark.parametrize("kind", ["forward", "training"])
def test_callables_pass_the_gate(ours_alone, kind, nonlinearity):
    work = Work(kind, SMALL, nonlinearity=nonlinearity)
    _, got = ours_alone.prepare("pass", work, save=True)
    assert gate.peer_is_wrong(got, work) == ""


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("option", LONG_WAYS)
def test_ways_to_train_pass_the_gate(ours_alone, option, cell):
    work = Work("kept", BLOCKS, option=option, cell=cell)
    _, got = ours_alone.prepare("pass", work, save=True)
    assert gate.peer_is_wrong(got, work) == ""


@pytest.fixture(scope="module")
def ours_alone():
    library = Library(OURS, CORES)
    yield library
    library.close()


def test_page_shows_the_rows_that_lose(tmp_path):
    result = synthetic()
    path, image = tmp_path / "docs.md", tmp_path / "images" / "picture.png"
    report.write_markdown(result, path, image)
    text = path.read_text()
    assert "**0.50 lost**" in text and "](images/picture.png)" in text
    assert "| OpenVINO | not installed (no module openvino) |" in text
    assert "to the power 1.00" in text and "| processor | a processor |" in text
    for section in SECTIONS:
        for table in tables.TABLES[section](result):
            assert f"## {table.title}" in text
            assert all(len(row) == len(table.header) for row in table.rows)
    for name in ("multiply-adds", "cache line", "tanh"):
        assert name in text


def test_terminal_aligns_its_columns():
    lines = report.terminal(tables.passes_tables(synthetic(), "forward")).splitlines()
    assert lines[1] == "Forward pass: RNN"
    ends = {line.index("x") for line in lines[3:5]}
    assert len({len(line) for line in lines[2:5]}) <= 2 and ends


def test_csv_has_every_figure(tmp_path):
    result = synthetic()
    report.write_csv(result, tmp_path / "result.csv")
    with (tmp_path / "result.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(result.rows) + len(MEASURED.figures())
    assert {len(row) for row in rows} == {len(report.COLUMNS.split(","))}
    assert rows[0]["median"] == "0.002" and rows[0]["unit"] == "s"


def test_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from mlx_recurrent.benchmarks import picture

    picture.draw(synthetic(), tmp_path / "picture.png")
    header = (tmp_path / "picture.png").read_bytes()[:24]
    width, height = struct.unpack(">II", header[16:])
    assert header[1:4] == b"PNG" and min(width, height) > 400


def test_quartiles_of_rounds():
    row = Row("forward", SMALL, "forward", OURS).of([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (row.low, row.median, row.high, row.rounds) == (2.0, 3.0, 4.0, 5)
    row = Row("forward", SMALL, "forward", OURS).of([5.0, 1.0])
    assert (row.low, row.median, row.high) == (1.0, 3.0, 5.0)
