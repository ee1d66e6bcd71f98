"""Some thousand cases of the fuzzer, always the same, and all that ever failed."""

import os
import re
import signal
from itertools import islice

import pytest

from fuzz import calls, cases, misuse, workers
from fuzz.corpus import CORPUS

SEED, CASES = 0, 2700
# Beside those, of each framework.
OF_FRAMEWORK = 150
FRAMEWORKS = ["torch", "keras", "flax", "onnx"]


def report(findings):
    return "\n".join(f"# {f.what}\n{f.case!r},\n{f.where}" for f in findings)


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case["call"])
def test_what_once_failed(case):
    if (package := cases.LEFT_OUT.get(case["call"])) is not None:
        pytest.skip(f"{package} is not installed")
    cases.judge(case)


def test_random_cases():
    numbers = islice(cases.numbers_of(cases.OURS), CASES)
    findings = workers.run(((SEED, n) for n in numbers), os.cpu_count() or 1)
    assert not findings, report(findings)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_random_cases_of_frameworks(framework):
    """In one process, which imports the framework once."""
    of = [name for name in cases.OF_FRAMEWORKS if framework in name]
    of += ["convert"] if framework == "onnx" else []
    for name, package in cases.LEFT_OUT.items():
        if framework in name:
            pytest.skip(f"{package} is not installed")
    numbers = islice(cases.numbers_of(of), OF_FRAMEWORK)
    findings = workers.run(((SEED, n) for n in numbers), 1)
    assert not findings, report(findings)


def test_a_case_is_replayed_from_its_choices():
    """A case as it is drawn says all: what is judged depends on nothing else."""
    for number in range(200):
        case = cases.draw(SEED, number)
        assert case == cases.draw(SEED, number)
        assert eval(repr(case)) == case


def test_a_wrong_result_is_found(monkeypatch):
    """And is made simple: what does not matter for it is left out."""
    right = calls.RUNS["rnn"]
    monkeypatch.setitem(
        calls.RUNS,
        "rnn",
        lambda *a: tuple(1.001 * one for one in right(*a)),
    )
    given = {"call": "rnn", "seed": 1, "L": 3, "H": 4, "reverse": True, "bias": False}
    simple, what, _ = workers._outcome(given)
    assert re.match("AssertionError: result .: error", what)
    assert simple == {"call": "rnn", "seed": 1}


def test_an_error_in_the_name_of_nothing_is_found(monkeypatch):
    def fails(sizes, f, **arguments):
        raise ValueError("something is wrong")

    monkeypatch.setattr(misuse.FUNCTIONS["matmul"], "call", fails)
    case = {"call": "misuse", "seed": 0, "function": "matmul", "value 0": "object()"}
    with pytest.raises(AssertionError, match="names none"):
        cases.judge(case)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_crash_and_a_hang_are_findings(monkeypatch):
    """The run goes on after either, in a new process."""
    monkeypatch.setattr(workers, "_work", as_it_is_told)
    monkeypatch.setattr(workers, "SECONDS", 2.0)
    given = [{"call": c, "seed": 0} for c in ("right", "crash", "hang", "wrong")]
    found = {f.case["call"]: f.what for f in workers.run(given, 1)}
    assert found == {
        "crash": "the process died of SIGSEGV",
        "hang": "no end after 2 seconds",
        "wrong": "AssertionError: wrong",
    }


def as_it_is_told(pipe):
    """A worker that does what it is told."""
    while True:
        try:
            case = pipe.recv()
        except EOFError:
            return
        if case["call"] == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if case["call"] == "hang":
            signal.pause()
        wrong = case["call"] == "wrong"
        pipe.send((case, "AssertionError: wrong", "") if wrong else None)
