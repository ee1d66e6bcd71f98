"""One library in one process, timed on request.

Run as a script, so that nothing but the library and this folder's ``cases``,
``peers`` and ``callables`` is loaded: ``python worker.py LIBRARY THREADS DEVICE``, the
last one ``cpu`` or empty, for MLX's default. The parent writes one JSON request a line;
each is answered with one JSON line, ``{"error": ...}`` where it failed:

* ``{"prepare": [...], "as": key, "save": path | null}`` prepares a piece of work, runs
  it once and saves the result;
* ``{"time": key, "seconds": s}`` runs it for about s seconds and answers with the
  seconds of a call, at the quantile that the work asks for, usually the median;
* ``{"memory": key}`` runs it and answers with the bytes that MLX held at the peak,
  beyond what it held before;
* ``{"loaded": name}`` answers whether a library of this name is in the process;
* ``{"forget": true}`` drops what was prepared.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cases import Case, Work
from peers import LIBRARIES, Prepared

# A turn begins with calls that are not timed: caches and threads come back. A call
# longer than LONG brings them back itself.
WARM_UP = 3e-3
LONG = 0.5
MOST_CALLS = 1000


def call_seconds(run: Callable[[], Any], seconds: float, quantile: float) -> float:
    """A quantile of the times of calls in a row, of at least one."""
    start = time.perf_counter()
    while True:
        run()
        now = time.perf_counter()
        if now - start >= LONG:
            return now - start
        if now - start >= WARM_UP:
            break
    times: list[float] = []
    end = now + seconds
    while not times or (now < end and len(times) < MOST_CALLS):
        before = time.perf_counter()
        run()
        now = time.perf_counter()
        times.append(now - before)
    return float(np.quantile(times, quantile))


def peak_bytes(run: Callable[[], Any]) -> int:
    """What MLX holds at the peak of a call, beyond what it held before.

    Scratch memory that is kept between calls counts as new.
    """
    import mlx.core as mx

    from mlx_recurrent import _native

    mx.synchronize()
    mx.clear_cache()
    _native.release_scratch()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    run()
    mx.synchronize()
    return mx.get_peak_memory() - before


class Worker:
    """Answers the requests for one library."""

    def __init__(self, library: str, threads: int) -> None:
        self.peer = LIBRARIES[library]
        self.threads = threads
        self.prepared: dict[str, Prepared] = {}
        self.quantiles: dict[str, float] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if "prepare" in request:
            kind, case, *rest = request["prepare"]
            work = Work(kind, Case(*case), *rest)
            prepared = self.peer.prepare(work, self.threads)
            prepared.begin()
            start = time.perf_counter()
            result = prepared.run()
            seconds = time.perf_counter() - start
            if request["save"]:
                np.savez(request["save"], **prepared.named(result))
            self.prepared[request["as"]] = prepared
            self.quantiles[request["as"]] = work.quantile
            return {"seconds": seconds}
        if "time" in request:
            prepared = self.prepared[request["time"]]
            prepared.begin()
            if prepared.measures:
                return {"seconds": prepared.run()}
            quantile = self.quantiles[request["time"]]
            return {"seconds": call_seconds(prepared.run, request["seconds"], quantile)}
        if "memory" in request:
            prepared = self.prepared[request["memory"]]
            prepared.begin()
            return {"bytes": peak_bytes(prepared.run)}
        if "loaded" in request:
            maps = Path("/proc/self/maps").read_text()
            return {"loaded": request["loaded"].partition(".so")[0] in maps}
        self.prepared.clear()
        gc.collect()
        return {}


def main(library: str, threads: int, device: str) -> None:
    """Serve requests until there are none."""
    if device:
        import mlx.core as mx

        mx.set_default_device(getattr(mx, device))
    if hasattr(os, "sched_setaffinity"):
        # Libraries that count cores count these.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    # What a library prints must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(library, threads)
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
