"""What is released: contents, versions and types of the package as it is installed."""

import importlib.metadata
import re
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import mlx.core as mx
import pytest

import mlx_recurrent
from mlx_recurrent._build import MLX_LACKS, MLX_VERSION

ROOT = Path(__file__).resolve().parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
VERSION = re.search(r'^version = "(.+)"$', PROJECT, re.MULTILINE)[1]
RELATIVE_LINK = re.compile(r"\]\((?!https?:|#)[^)]*\)")
LIBRARY = f"mlx_recurrent/_native{sysconfig.get_config_var('EXT_SUFFIX')}"
FROM_TESTS = {"callables.py", "tolerances.py"} | {
    f"reference/{path.name}" for path in (ROOT / "tests/reference").glob("*.py")
}


@pytest.fixture(scope="module")
def distribution():
    """What pip installed, where that is what was imported."""
    found = importlib.metadata.distribution("mlx-recurrent")
    package = Path(mlx_recurrent.__file__).parent
    if Path(found.locate_file("mlx_recurrent")).resolve() != package.resolve():
        pytest.skip("the package that is imported was not installed by pip")
    return found


def test_contents_of_the_wheel(distribution):
    info = f"mlx_recurrent-{VERSION}.dist-info"
    files = {
        path.as_posix()
        for path in distribution.files
        if path.parts[0] != info and path.suffix != ".pyc"
    }
    scripts = {path for path in files if path.startswith("../")}
    assert [Path(path).name for path in scripts] == ["mlx-recurrent"]
    files -= scripts
    assert {
        LIBRARY,
        "mlx_recurrent/_build.py",
        "mlx_recurrent/_native.pyi",
        "mlx_recurrent/py.typed",
        "mlx_recurrent_command/__init__.py",
        *(f"mlx_recurrent/benchmarks/{name}" for name in FROM_TESTS),
    } <= files
    for path in files - {LIBRARY, "mlx_recurrent/py.typed"}:
        assert re.fullmatch(r"mlx_recurrent(_command)?/[/\w]+\.pyi?", path), path
        assert not re.search(r"/(test_\w*|conftest|tests)\b", path), path


@pytest.mark.skipif(not (ROOT / "src").exists(), reason="needs the package's source")
def test_the_wheel_has_every_module(distribution):
    modules = {path.relative_to(ROOT / "src") for path in ROOT.glob("src/**/*.py")}
    modules |= {
        "mlx_recurrent" / path.relative_to(ROOT)
        for path in ROOT.glob("benchmarks/**/*.py")
    }
    modules.add(Path("mlx_recurrent/_build.py"))
    modules |= {Path("mlx_recurrent/benchmarks", name) for name in FROM_TESTS}
    assert modules == {Path(p) for p in distribution.files if p.suffix == ".py"}


def test_contents_of_the_sdist(tmp_path, monkeypatch):
    """All that is under version control but what serves this repository alone."""
    build = pytest.importorskip(
        "scikit_build_core.build", reason="scikit-build-core is not installed"
    )
    pytest.importorskip("hatch_fancy_pypi_readme", reason="it writes the description")
    if not (ROOT / ".git").exists():
        pytest.skip("needs a clone of the repository")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tracked = {
        path
        for path in listed.stdout.splitlines()
        if not path.startswith((".ci/", ".github/")) and (ROOT / path).exists()
    }
    monkeypatch.chdir(ROOT)
    name = build.build_sdist(str(tmp_path))
    assert name == f"mlx_recurrent-{VERSION}.tar.gz"
    with tarfile.open(tmp_path / name) as archive:
        files = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    assert files == tracked | {"PKG-INFO"}


def test_versions_come_from_one_place(distribution):
    assert VERSION == mlx_recurrent.__version__ == distribution.version
    named = PROJECT
    if (hooks := ROOT / ".pre-commit-config.yaml").exists():
        named += hooks.read_text("utf-8")
    pins = re.findall(r"mlx(?:-cpu|\[cpu\])?==([\d.]+)", named)
    assert len(pins) > 1 and len(set(pins)) == 1


def test_the_build_pins_its_mlx(distribution):
    """One version, whichever it is, and all of MLX's pieces where it is the default."""
    mlx = [text for text in distribution.requires if text.startswith("mlx")]
    assert mlx == [f"mlx=={MLX_VERSION}", 'mlx[cpu]; extra == "cpu"']
    assert MLX_LACKS == "" or f"mlx[cpu]=={MLX_VERSION}" not in PROJECT


def test_the_changelog_names_the_version():
    headings = re.findall(
        r"^## \[(.+?)\](.*)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )
    names = [name for name, _ in headings]
    assert names[0] == "Unreleased" or names[0] == VERSION
    released = [name for name in names if name != "Unreleased"]
    for name, date in headings:
        assert name == "Unreleased" or re.fullmatch(r" - \d{4}-\d\d-\d\d", date)
    numbers = [tuple(map(int, name.split("."))) for name in released]
    assert numbers == sorted(set(numbers), reverse=True)
    # Until it is released, the version is newer than what was.
    assert not numbers or numbers[0] <= tuple(map(int, VERSION.split(".")))


def test_description_and_licence(distribution):
    text = distribution.metadata.get_payload() or distribution.metadata["Description"]
    assert text.startswith("# mlx-recurrent")
    assert not RELATIVE_LINK.findall(text)
    (licence,) = (path for path in distribution.files if path.name == "LICENSE")
    assert licence.read_text().startswith("MIT License")


PROGRAM = """
import mlx.core as mx
import numpy as np
from mlx_recurrent import RNN, Bidirectional, Linear, Plan, Stack
from mlx_recurrent import accelerate, exporting, init, matmul, rnn, scan

layer: RNN = RNN(3, 5, nonlinearity=mx.sigmoid, leak=0.5)
x = mx.zeros((2, 4, 3))
outputs: mx.array = layer(x, lengths=[4, 1], reset=np.zeros((2, 4), bool))
pair: tuple[mx.array, mx.array] = layer(x, return_state=True)
state: mx.array = layer(x, return_state="only", checkpoint_every=2)
state = layer.step(x[:, 0], state)
plan: Plan = layer.plan(x)
path: str = plan.path
row: np.ndarray = layer.stream()(np.zeros(3))
outputs = rnn(x, layer.Wxh, layer.Whh, stream=mx.cpu)
outputs = scan(matmul(x, layer.Wxh), layer.Whh, truncate_every=2)
init.orthogonal_(layer)
model = accelerate(Stack([Stack.build(3, 5, 2), Bidirectional(RNN(5, 4))]))
logits: mx.array = Linear(8, 2)(model(x))
with exporting():
    layer(x)
"""
REFUSED = """
layer("x")  # type: ignore[call-overload]
layer(x, length=[4, 1])  # type: ignore[call-overload]
refused: mx.array = layer(x, return_state=True)  # type: ignore[assignment]
RNN(3, 5, leek=0.5)  # type: ignore[call-arg]
"""


def test_types_for_users(tmp_path):
    """A program that runs passes a strict check, which refuses what is wrong."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    if not list(Path(mx.__file__).parent.glob("core/__init__.pyi")):
        pytest.skip("MLX 0.32.0 says nothing of its types")
    (tmp_path / "runs.py").write_text(PROGRAM)
    (tmp_path / "refused.py").write_text(PROGRAM + REFUSED)
    mypy = ["-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}"]
    for arguments in (["runs.py"], [*mypy, "runs.py"], [*mypy, "refused.py"]):
        run = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stdout + run.stderr
