"""The tree: a rung asks only the next one down, and no file or function is too long."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "mlx_recurrent"
CSRC = ROOT / "csrc"
pytestmark = pytest.mark.skipif(
    not CSRC.exists(), reason="the sources are not beside the tests"
)

# What a folder of Python may import of the package, beside itself. Of the functional
# rung the layers have no part in how a call is run.
BELOW = {
    "layers": {"functional", "mlx_faults"},
    "functional": {"_native", "mlx_faults"},
    "mlx_faults": {"_native"},
    "interop": {"atomic", "functional", "layers", "mlx_faults"},
    "command": {"_build", "_native", "atomic", "benchmarks", "functional", "interop"},
}
RUNNING = {"composed", "running", "tracing", "transition"}
# What a folder of C++ may include, beside itself.
INCLUDED = {
    "kernels": set(),
    "mlx_faults": {"mlx"},
    "primitives": {"kernels", "mlx", "mlx_faults"},
}
LONGEST_FILE, LONGEST_FUNCTION = 800, 70


def imported(path):
    """The modules of the package that a file imports: ``functional.options``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("mlx_recurrent."):
                yield name.removeprefix("mlx_recurrent.")


@pytest.mark.parametrize("rung", BELOW)
def test_python_asks_the_next_rung_down(rung):
    for path in (PACKAGE / rung).rglob("*.py"):
        for name in imported(path):
            folder = name.partition(".")[0]
            assert folder in {rung, *BELOW[rung]}, f"{path} imports {name}"


def test_layers_do_not_run_calls():
    for path in (PACKAGE / "layers").rglob("*.py"):
        for name in imported(path):
            folder, _, rest = name.partition(".")
            module = rest.partition(".")[0]
            skipped = folder == "functional" and module in RUNNING
            assert not skipped, f"{path} imports {name}"


@pytest.mark.parametrize("rung", INCLUDED)
def test_cpp_asks_the_next_rung_down(rung):
    for path in (CSRC / rung).rglob("*.[ch]*"):
        if path.suffix not in (".h", ".cpp"):
            continue
        for name in re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE):
            folder = name.partition("/")[0] if "/" in name else rung
            assert folder in {rung, *INCLUDED[rung]}, f"{path} includes {name}"


@pytest.mark.parametrize(
    "path",
    [
        *(CSRC / "mlx_faults").glob("*.h"),
        *(PACKAGE / "mlx_faults").glob("[!_]*.py"),
    ],
    ids=lambda path: path.name,
)
def test_a_fault_of_mlx_is_named(path):
    """What it is, in which MLX, and which tests fail without what is done about it."""
    words = " ".join(re.sub("^//", "", path.read_text(), flags=re.MULTILINE).split())
    found = re.search(
        r"Fault: .+ MLX: 0\.32\.\d to 0\.32\.\d\. Shown by: (test_\w+(?:, test_\w+)*)",
        words,
    )
    assert found, path
    tests = "".join(p.read_text() for p in Path(__file__).parent.glob("test_*.py"))
    for name in found[1].split(", "):
        assert f"def {name}(" in tests, name


def test_what_mlx_keeps_private_is_touched_in_one_folder():
    """Its members end in an underscore; ``detail`` and its threads are its own."""
    private = re.compile(
        r"\bdetail::|\bscheduler\(\)|&\w+::\w+_\b|&\w+::array::|compile_cache|Reader\b.*io::"
    )
    for path in [*CSRC.rglob("*.h"), *CSRC.rglob("*.cpp")]:
        if "mlx_faults" not in path.parts:
            assert not private.search(path.read_text()), path


def sources():
    for folder in ("src", "csrc", "benchmarks"):
        yield from (
            path
            for path in (ROOT / folder).rglob("*")
            if path.suffix in (".py", ".h", ".cpp")
        )


def test_no_file_is_too_long():
    for path in sources():
        lines = len(path.read_text().splitlines())
        assert lines <= LONGEST_FILE, f"{path} has {lines} lines"


def test_no_function_is_too_long():
    for path in sources():
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            first = node.body[0]
            documented = ast.get_docstring(node) is not None
            docstring = first.end_lineno - first.lineno + 1 if documented else 0
            lines = node.end_lineno - node.lineno + 1 - docstring
            assert lines <= LONGEST_FUNCTION, f"{path}: {node.name} has {lines} lines"
