"""``mlx-recurrent bench --routes``: the routes of a machine and the rules' choices."""

import re

import pytest

from mlx_recurrent.benchmarks import routes
from mlx_recurrent.benchmarks.cases import CASES, Case, Work
from mlx_recurrent.benchmarks.routes import BLAS, GPU, KERNELS, Found, wrong_choices
from test_cli import command

CROSSING = 180e-6


def names(gpu, blas):
    return [route.name for route in routes.routes(gpu, blas)]


def test_each_machine_has_its_routes():
    assert names(False, "") == [KERNELS, "CPU, mlx.nn"]
    assert names(False, "lib.so") == [KERNELS, BLAS, "CPU, mlx.nn"]
    assert names(True, "")[2:] == [GPU, "GPU, mlx.nn"]
    for route in routes.routes(True, "lib.so"):
        assert (route.device == "cpu") == route.name.startswith("CPU")


@pytest.mark.parametrize(
    "place, gpu, cpu, kind, said",
    [
        ("cpu", 2e-3, 1e-3, "forward", ""),
        ("gpu", 1e-3, 2e-3, "forward", ""),
        ("cpu", 1e-3, 2e-3, "forward", "runs on the CPU, which takes 2.18 times"),
        ("gpu", 2e-3, 1e-3, "forward", "runs on the GPU, which takes 1.69 times"),
        # The way there and back counts, of a derivative twice.
        ("gpu", 1.2e-3, 1e-3, "forward", ""),
        ("gpu", 1.4e-3, 1e-3, "forward", "GPU, which takes 1.19 times"),
        ("gpu", 1.4e-3, 1e-3, "training", ""),
        # Noise does not.
        ("cpu", 1e-3, 0.9e-3, "forward", ""),
        ("cpu", None, 1e-3, "forward", ""),
        ("cpu", 1e-3, None, "forward", ""),
    ],
)
def test_wrong_places(place, gpu, cpu, kind, said):
    seconds = {GPU: gpu, KERNELS: cpu}
    found = wrong_choices(Found("GRU", CASES[0], kind, seconds, place, False), CROSSING)
    assert len(found) == bool(said)
    for line in found:
        assert said in line and line.startswith("GRU, streaming control (1, 128, 64")


@pytest.mark.parametrize(
    "by_blas, blas, said",
    [(True, 3e-3, "3.00 times"), (True, 1e-3, ""), (False, 3e-3, "")],
)
def test_wrong_products(by_blas, blas, said):
    seconds = {KERNELS: 1e-3, BLAS: blas}
    row = Found("RNN", CASES[0], "forward", seconds, "cpu", by_blas)
    found = wrong_choices(row, 0.0)
    assert len(found) == bool(said) and all(said in line for line in found)


def test_the_place_is_the_rules():
    """Of small layers the CPU, of large ones the GPU."""
    for cell in ("RNN", "GRU", "LSTM"):
        small, large = CASES[0], Case("", 512, 64, 512, 512)
        assert routes._place(Work("forward", small, cell=cell)) == "cpu"
        assert routes._place(Work("forward", large, cell=cell)) == "gpu"
        step = Case("", 1, 1, 8, 8)
        assert routes._place(Work("forward", step, cell=cell)) == "gpu"


def test_a_small_run(tmp_path):
    page = tmp_path / "routes.md"
    run = command(
        *("bench", "--routes", "--rounds", "1", "--budget", "0"),
        *("--case", "2,5,3,8", "--report", str(page)),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    text = page.read_text()
    assert text in run.stdout
    assert "## Where the rules chose wrongly" in text and "| BLAS |" in text
    rows = re.findall(r"^\| (RNN|GRU|LSTM) \| (.+) \|$", text, re.MULTILINE)
    assert len(rows) == 6
    for _, cells in rows:
        figures = [cell for cell in cells.split(" | ") if re.fullmatch(r"[\d.]+", cell)]
        assert len(figures) >= 2 and all(float(figure) > 0 for figure in figures)


def test_what_it_does_not_write():
    run = command("bench", "--routes", "--csv", "a.csv")
    assert run.returncode == 2
    assert "--routes: writes --report alone" in run.stderr.splitlines()[-1]
