"""A library in a process of its own, and turns that several of them take."""

import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np

from mlx_recurrent.benchmarks.cases import Work
from mlx_recurrent.benchmarks.peers import LIBRARIES

WORKER = Path(__file__).with_name("worker.py")
# A short call is repeated for so long: its steady state is measured.
TURN = 0.06
# How long a turn waits for the threads of the last to stop spinning.
LONGEST_SPIN = 0.5


class LibraryError(Exception):
    """A library failed at what was asked of it."""


class Library:
    """A library in a process of its own, started when it is first asked."""

    def __init__(
        self,
        name: str,
        threads: int,
        preload: str | None = None,
        *,
        device: str = "",
        environment: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.device = device
        self.environment = environment or {}
        self.label = LIBRARIES[name].label
        if preload:
            self.label += " + OpenBLAS" if "openblas" in preload else f" + {preload}"
        self.passes = LIBRARIES[name].passes
        self.options = LIBRARIES[name].options
        self.threads = threads
        self.preload = preload
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[str] | None = None

    def missing(self) -> str:
        """Return the first module that it lacks, or nothing."""
        for module in LIBRARIES[self.name].needs:
            if importlib.util.find_spec(module) is None:
                return module
        return ""

    def version(self) -> str:
        """Return the version that is installed."""
        return version(LIBRARIES[self.name].distribution)

    def prepare(
        self, key: str, work: Work, save: bool = False
    ) -> tuple[float, dict[str, np.ndarray]]:
        """Run a piece of work once; return the seconds and, to ``save``, the result."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "result.npz")
            request = {"prepare": work, "as": key, "save": str(path) if save else None}
            seconds = self._ask(**request)["seconds"]
            if not save:
                return seconds, {}
            with np.load(path) as saved:
                return seconds, {name: saved[name] for name in saved.files}

    def seconds(self, key: str, turn: float = TURN) -> float:
        """Return the time of a call, the median or what it asked for, over a turn."""
        return self._ask(time=key, seconds=turn)["seconds"]

    def memory(self, key: str) -> int:
        """Return the bytes that MLX held at the peak of a call, beyond those before."""
        return self._ask(memory=key)["bytes"]

    def process_id(self) -> int:
        """Return the number of its process, or of this one where it has none."""
        return self._process.pid if self._process is not None else os.getpid()

    def forget(self) -> None:
        """Drop what was prepared."""
        if self._process is not None:
            self._ask(forget=True)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()
            self._process = None
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    def _ask(self, **request: Any) -> dict[str, Any]:
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise LibraryError(self._last_words(process))
        found: dict[str, Any] = json.loads(answer)
        if "error" in found:
            raise LibraryError(" ".join(found["error"].split()))
        return found

    def _last_words(self, process: "subprocess.Popen[str]") -> str:
        """Why the process ended, by what it printed last."""
        code = process.wait()
        assert self._errors is not None
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines()
        self.close()
        return f"its process ended with code {code}: {said[-1] if said else 'silently'}"

    def _start(self) -> "subprocess.Popen[str]":
        threads = str(self.threads)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            **self.environment,
        }
        if self.preload:
            environment["LD_PRELOAD"] = self.preload
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), self.name, threads, self.device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        if self.preload and not self._ask(loaded=Path(self.preload).name)["loaded"]:
            self.close()
            raise LibraryError(f"{self.preload} could not be preloaded")
        return self._process


def take_turns(
    turns: list[tuple[Library, str]],
    rounds: int,
    budget: float,
    pause: float,
    turn: float = TURN,
) -> list[list[float]]:
    """Return the medians of each turn, by library and round.

    Args:
        turns (list): Libraries and the keys of what they prepared.
        rounds (int): Turns of each, at most.
        budget (float): Seconds after which a library takes no further turn.
        pause (float): Seconds between turns, repeated until the threads of the last
            have parked.
        turn (float, optional): Seconds for which a short call is repeated.
    """
    medians: list[list[float]] = [[] for _ in turns]
    spent = [0.0] * len(turns)
    # Nobody always follows the same neighbour.
    order = random.Random(0)
    for process in {os.getpid(), *(library.process_id() for library, _ in turns)}:
        wait_until_idle(process, pause)
    for _ in range(rounds):
        for at in order.sample(range(len(turns)), len(turns)):
            if medians[at] and spent[at] >= budget:
                continue
            library, key = turns[at]
            start = time.perf_counter()
            medians[at].append(library.seconds(key, turn))
            spent[at] += time.perf_counter() - start
            wait_until_idle(library.process_id(), pause)
    return medians


def wait_until_idle(process: int, pause: float) -> None:
    """Wait until the threads of a process have parked.

    Some spin for a while after their work, OpenBLAS's for a tenth of a second, and the
    next library would have to share the cores with them.
    """
    give_up = time.perf_counter() + LONGEST_SPIN
    before = _busy_seconds(process)
    if before is None:  # the system does not say
        time.sleep(3 * pause)
        return
    while time.perf_counter() < give_up:
        time.sleep(pause)
        now = _busy_seconds(process)
        if now is None or now - before <= 0.05 * pause:
            return
        before = now


def _busy_seconds(process: int) -> float | None:
    """What the threads of a process have run for, where the system says."""
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        return sum(
            1e-9 * int((task / "schedstat").read_text().split()[0]) for task in tasks
        )
    except (OSError, ValueError):
        return None
