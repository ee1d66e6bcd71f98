"""Judges cases in processes of their own: one that crashes or hangs is a finding."""

import faulthandler
import multiprocessing
import signal
import time
import traceback
import warnings
from multiprocessing.connection import wait
from typing import NamedTuple

from fuzz.cases import draw, judge, simpler

# A case takes milliseconds; the first of a process loads what it needs.
SECONDS = 120.0
_SPAWN = multiprocessing.get_context("spawn")


class Finding(NamedTuple):
    """A case that is not right.

    Args:
        case (dict): The case.
        what (str): What happened, in a line.
        where (str): The traceback, if there is one.
    """

    case: dict
    what: str
    where: str = ""


class _Worker:
    """One process; ``doing`` is the case that it was given last."""

    def __init__(self):
        self.pipe, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.doing = None

    def give(self, case):
        self.doing, self.since = case, time.monotonic()
        self.pipe.send(case)

    def end(self):
        if self.doing is not None:
            self.process.kill()
        self.pipe.close()
        self.process.join()


def _work(pipe):
    """Judge what comes until the pipe is closed."""
    warnings.simplefilter("error")
    while True:
        try:
            case = pipe.recv()
        except (EOFError, OSError):
            return
        # Says where it hangs, before the process is killed.
        faulthandler.dump_traceback_later(0.9 * SECONDS)
        pipe.send(_outcome(_drawn(case)))
        faulthandler.cancel_dump_traceback_later()


def _drawn(case):
    return draw(*case) if isinstance(case, tuple) else case


def _outcome(case):
    """What is wrong with a case, its simplest form and the traceback; or nothing."""
    found = _failure(case)
    if found is None:
        return None
    kind = found[0].partition(":")[0]

    def fails(other):
        again = _failure(other)
        return again is not None and again[0].partition(":")[0] == kind

    simple = simpler(case, fails)
    return (simple, *(_failure(simple) or found))


def _failure(case):
    try:
        judge(case)
    except Exception as error:
        return f"{type(error).__name__}: {error}", traceback.format_exc()
    return None


def run(cases, processes, on_case=lambda finding: None):
    """Judge cases; return the findings.

    Args:
        cases (iterable): The cases: dictionaries, or pairs of a seed and a number.
        processes (int): How many processes judge.
        on_case (callable): Is called after each case with what was found, or ``None``.
    """
    cases, findings = iter(cases), []
    workers = []

    def next_case(worker):
        case = next(cases, None)
        if case is None:
            return False
        worker.give(case)
        return True

    def found(finding):
        if finding is not None:
            findings.append(finding)
        on_case(finding)

    try:
        for _ in range(processes):
            worker = _Worker()
            workers.append(worker)
            if not next_case(worker):
                break
        while busy := [w for w in workers if w.doing is not None]:
            ready = wait([w.pipe for w in busy], timeout=1.0)
            for worker in busy:
                if worker.pipe in ready:
                    case, worker.doing = worker.doing, None
                    try:
                        outcome = worker.pipe.recv()
                    except (EOFError, OSError):
                        worker.process.join()
                        found(Finding(_drawn(case), _death(worker.process.exitcode)))
                        _replace(workers, worker)
                        worker = workers[-1]
                    else:
                        found(None if outcome is None else Finding(*outcome))
                    next_case(worker)
                elif time.monotonic() - worker.since > SECONDS:
                    what = f"no end after {SECONDS:.0f} seconds"
                    found(Finding(_drawn(worker.doing), what))
                    worker.end()
                    _replace(workers, worker)
                    next_case(workers[-1])
    finally:
        for worker in workers:
            worker.end()
    return findings


def _replace(workers, worker):
    workers.remove(worker)
    workers.append(_Worker())


def _death(code):
    if code is not None and code < 0:
        return f"the process died of {signal.Signals(-code).name}"
    return f"the process ended with code {code}"
