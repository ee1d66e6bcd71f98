"""The accuracy page: its errors are those of the reference, and ours keep the rule."""

import importlib.util

import mlx.core as mx
import numpy as np
import pytest

import reference
from mlx_recurrent.benchmarks import accuracy
from tolerances import DIFFERENCE, EPS, mean_close

# Ten of each dtype and cell.
CASES = 10 * len(accuracy.DTYPES) * len(accuracy.EVERY_CELL)
OURS_AND_UPSTREAM = [o for o in accuracy.LIBRARIES if o.module.startswith("mlx")]


@pytest.fixture(scope="module")
def found():
    return accuracy.measure(CASES, 0, OURS_AND_UPSTREAM, lambda text: None)


def test_ours_are_no_larger_than_upstreams_on_average(found):
    for (dtype, cell), errors in found.items():
        for gradients in (False, True):
            ours, upstream = (errors[o.label, gradients] for o in OURS_AND_UPSTREAM)
            eps = EPS[getattr(mx, dtype)]
            mean_close(
                ours.root_mean_square * eps,
                upstream.root_mean_square * eps,
                getattr(mx, dtype),
                f"{dtype} {cell}, gradients: {gradients}",
            )


def test_errors_are_counted():
    errors = accuracy.Errors()
    truth = np.array([1.0, -4.0])
    errors.add(np.array([1.5, -4.25]), truth, 0.125)  # a last place is a half
    assert errors.largest == 1.0 and errors.count == 2
    assert errors.root_mean_square == np.sqrt((1.0 + 0.25) / 2)
    with pytest.raises(ValueError, match="finite"):
        errors.add(np.array([np.nan, 0.0]), truth, 0.125)


@pytest.mark.parametrize("cell", accuracy.EVERY_CELL)
def test_cases_are_drawn_anew_and_rounded(rng, cell):
    one, other = (accuracy.draw(rng, "bfloat16", cell)[0] for _ in range(2))
    found = reference.CELLS[cell]
    assert list(one) == ["x", *found.weights, *found.states]
    for name, a in one.items():
        assert not np.array_equal(a, other[name])
        rounded = mx.array(a).astype(mx.bfloat16).astype(mx.float32)
        np.testing.assert_array_equal(np.array(rounded), a)


def test_truths_are_what_the_dtype_holds():
    """Of the 417 cases of a group of the page's run, the first that is not."""
    largest = float(mx.finfo(mx.float16).max)
    index = accuracy.DTYPES.index("float16") * len(accuracy.EVERY_CELL)
    seed = [0, index + accuracy.EVERY_CELL.index("identity")]
    draws = {}
    for function in (accuracy.draw, accuracy.draw_with_truth):
        rng = np.random.default_rng(seed)
        draws[function] = [function(rng, "float16", "identity") for _ in range(262)]
    beyond = accuracy.truth_of(*draws[accuracy.draw][261], "float16", "identity")
    assert max(np.abs(a).max() for a in beyond.values()) > largest
    *_, truth = draws[accuracy.draw_with_truth][261]
    assert max(np.abs(a).max() for a in truth.values()) <= largest


def test_page(found):
    page = accuracy.report(found, OURS_AND_UPSTREAM, CASES, 0, "the command")
    assert "`the command`" in page and f"{CASES} cases, seed 0" in page
    for library in OURS_AND_UPSTREAM:
        assert f" {library.label} |" in page and library.distribution in page
    rows = [line for line in page.splitlines() if line.startswith("| float16")]
    assert len(rows) == 2 * len(accuracy.EVERY_CELL)
    assert all(row.count("(") == 2 for row in rows)


def test_peers_that_are_missing_are_left_out(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name in ("torch", "jax") else find(name),
    )
    assert accuracy.installed() == OURS_AND_UPSTREAM


@pytest.mark.parametrize("module", ["torch", "jax"])
def test_peers_are_right(rng, module):
    """Nobody is shown with errors that are ours of calling it."""
    pytest.importorskip(module, reason=f"{module} is not installed")
    (library,) = [o for o in accuracy.LIBRARIES if o.module == module]
    run = library.make()
    for cell in library.cells:
        arrays, cotangent = accuracy.draw(rng, "float64", cell)
        truth = accuracy.truth_of(arrays, cotangent, "float64", cell)
        got = run(arrays, cotangent, "float64", cell)
        errors = accuracy.Errors()
        for name, expected in truth.items():
            errors.add(got[name], expected, 1.0)
        assert errors.largest < DIFFERENCE, cell
