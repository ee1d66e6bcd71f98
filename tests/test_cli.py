"""The command: what it prints, writes and refuses, and its exit codes."""

import csv
import subprocess
import sys
from types import SimpleNamespace

import pytest

import mlx_recurrent
from mlx_recurrent._build import MLX_VERSION
from mlx_recurrent.benchmarks.cases import SECTIONS, cells_of
from mlx_recurrent.command import doctor

COMMAND = "import sys; from mlx_recurrent_command import main; sys.exit(main())"


def command(*arguments, before="", **environment):
    """Run ``mlx-recurrent`` as the installed script does, warnings being errors."""
    import os

    return subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{before}\n{COMMAND}", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_doctor_of_a_healthy_machine():
    run = command("doctor")
    assert run.returncode == 0, run.stdout + run.stderr
    for text in (
        f"built for MLX {MLX_VERSION}, found {MLX_VERSION}: the same",
        f"mlx-recurrent       {mlx_recurrent.__version__}",
        "available:",
        "GFLOP/s",
        "us for an addition",
        "threads",
        "from mlx.nn.RNN, on the native path",
        "from mlx.nn.GRU, on the",
        "from mlx.nn.LSTM, on the",
        "Healthy.",
    ):
        assert text in run.stdout


def test_doctor_as_a_module():
    run = subprocess.run(
        [sys.executable, "-m", "mlx_recurrent", "doctor"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and "Healthy." in run.stdout


def test_doctor_names_a_forced_instruction_set():
    run = command("doctor", MLX_RECURRENT_ISA="baseline")
    assert run.returncode == 0
    if "available: baseline)" not in run.stdout:
        assert "unset the environment variable MLX_RECURRENT_ISA" in run.stdout


@pytest.mark.parametrize(
    ("kinds", "quota", "usable", "threads", "listed", "said"),
    [
        ((8, 0), None, 8, 8, "", ""),
        ((8, 0), None, 8, 9, "", "9 threads share 8 cores"),
        ((4, 2), None, 4, 4, " (4 fast, 2 slow)", ""),
        ((4, 2), None, 4, 6, " (4 fast, 2 slow)", "more than the 4 fast cores"),
        ((4, 2), 1.5, 2, 3, " (4 fast, 2 slow), 1.5 by", "3 threads share 2 cores"),
    ],
)
def test_doctor_lists_both_kinds_of_cores(
    capsys, kinds, quota, usable, threads, listed, said
):
    native = SimpleNamespace(
        cores_by_kind=lambda: kinds,
        cpu_quota=lambda: quota,
        usable_cores=lambda: usable,
        get_num_threads=lambda: threads,
    )
    found = doctor.Findings()
    doctor.cores(found, native)
    printed = capsys.readouterr().out
    assert listed in printed and ("slow" in printed) == bool(kinds[1])
    assert f"{threads} (usable cores: {usable})" in printed
    sentences = [text for text in found.slow if f"{threads} threads" in text]
    assert len(sentences) == bool(said)
    for text in sentences:
        assert said in text and f"set_num_threads({usable})" in text


@pytest.mark.parametrize(
    ("before", "environment", "said"),
    [
        ("", {"MLX_RECURRENT_ISA": "sse9"}, "MLX_RECURRENT_ISA names"),
        ("import sys; sys.modules['mlx.core'] = None", {}, "pip install"),
        ("import mlx.core as mx; mx.__version__ = '0.99.1'", {}, "0.99.1"),
        (
            "import sys; sys.modules['mlx_recurrent._native'] = None",
            {},
            "--force-reinstall",
        ),
    ],
)
def test_doctor_where_the_package_cannot_be_imported(before, environment, said):
    run = command("doctor", before=before, **environment)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "cannot be loaded" in run.stdout and "Broken:" in run.stdout
    assert said in run.stdout and "Healthy" not in run.stdout
    assert not run.stderr


def test_bench_where_the_package_cannot_be_imported():
    run = command("bench", MLX_RECURRENT_ISA="sse9")
    assert run.returncode == 1
    assert "MLX_RECURRENT_ISA" in run.stderr and "doctor says more" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--case", "1,2,3"], "--case: must be four integers N,L,D,H from 1 on"),
        (["--case", "1,2,3,0"], "not '1,2,3,0'"),
        (["--case", "speach"], '"speech"'),
        (["--sections", "forward,backward"], "no section is named 'backward'"),
        (["--cells", "RNN,Elman"], "no cell is named 'Elman'"),
        (["--cells", "GRU", "--sections", "matmul"], "matmul is of RNN alone"),
        (["--peers", "numpy"], "no peer is named 'numpy'"),
        (["--rounds", "0"], "--rounds: must be an integer from 1 on, not '0'"),
        (["--budget", "soon"], "--budget: must be a number of seconds"),
        (["--pause", "nan"], "--pause: must be a number of seconds"),
        (["--threads", "100000"], "--threads: must be at most"),
        (["--csv", "no/such/folder/file.csv"], "--csv: must be a file in a folder"),
        (["--picture", "a.png", "--sections", "matmul"], "--picture: shows"),
    ],
)
def test_options_that_are_refused(arguments, said):
    run = command("bench", *arguments)
    assert run.returncode == 2
    assert said in run.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("cells", "cases"),
    [(["RNN"], ["2,5,3,8", "1,7,4,512", "2,5,3,8"]), (["GRU", "LSTM"], ["2,5,3,8"])],
)
def test_a_small_run(cells, cases, tmp_path):
    table, page = tmp_path / "result.csv", tmp_path / "performance.md"
    run = command(
        *("bench", "--quick", "--rounds", "1", "--peers", "none"),
        *("--sections", ",".join(s for s in SECTIONS if s not in ("matmul", "length"))),
        *("--cells", ",".join(cells)),
        *(word for case in cases for word in ("--case", case)),
        *("--csv", str(table), "--report", str(page)),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    with table.open() as file:
        rows = list(csv.DictReader(file))
    sections = {row["section"] for row in rows}
    measured = {(row["section"], row["cell"]) for row in rows}
    for section in sections - {"machine"}:
        found = {cell for of, cell in measured if of == section}
        assert found == set(cells_of(section, cells)), section
    of_cells = {section for section in SECTIONS if cells_of(section, cells)}
    assert of_cells - {"matmul", "length", "threads"} <= sections
    for row in rows:
        assert float(row["median"]) > 0, row
        assert not row["note"]
    text = page.read_text()
    for title in ("## Forward pass", "## Training", "## Memory", "## The machine"):
        assert title in text
    assert "PyTorch | not " in text and "mlx-recurrent bench --quick" in text
    assert "Forward pass" in run.stdout and "2, 5, 3, 8" in run.stdout
