"""``mlx-recurrent doctor``: what is installed, what is slow and how to mend it.

The module needs the standard library alone until it has found that the rest can be
loaded.
"""

import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# What is worth a sentence: MLX's product at less than this part of ours, an evaluation
# of so many seconds.
SLOW_PRODUCT = 0.5
SLOW_EVALUATION = 100e-6
SIDE = 512
# Whose results are compared with those of MLX's of the same name.
LAYERS = ("RNN", "GRU", "LSTM")


def main() -> int:
    """Print what was found and return 0, or 1 where something is broken."""
    found = Findings()
    versions(found)
    native = loaded(found)
    if native is not None:
        instruction_set(found, native)
    cores(found, native)
    if native is not None and blas(found, native):
        product(found)
        evaluation(found)
        result(found)
    forking(found)
    return found.conclude()


class Findings:
    """What was found, printed as it is."""

    def __init__(self) -> None:
        self.broken: list[str] = []
        self.slow: list[str] = []

    def say(self, name: str, value: object) -> None:
        """Print a line."""
        print(f"{name:<20}{value}", flush=True)

    def conclude(self) -> int:
        """Print how to mend what is broken or slow, and return the exit code."""
        for title, sentences in (("Broken", self.broken), ("To know", self.slow)):
            if sentences:
                print(f"\n{title}:")
                for sentence in sentences:
                    print(f"- {sentence}")
        if not self.broken:
            print("\nHealthy.")
        return int(bool(self.broken))


def versions(found: Findings) -> None:
    """The versions, of what can be loaded or not."""
    found.say("Python", f"{platform.python_version()} ({sys.executable})")
    found.say(
        "system", f"{platform.system()} {platform.release()} {platform.machine()}"
    )
    for name in ("mlx-recurrent", "mlx", "mlx-cpu", "numpy"):
        installed = _version(name)
        if installed or name != "mlx-cpu":
            found.say(name, installed or "not installed")
    mlx, backend = _version("mlx"), _version("mlx-cpu")
    if backend and backend != mlx:
        found.broken.append(
            f"mlx is {mlx or 'not installed'} but its back end mlx-cpu is {backend}: "
            f'run `pip install "mlx[cpu]=={mlx or backend}"`.'
        )


def loaded(found: Findings) -> Any:
    """The native module, or ``None`` where the package cannot be imported."""
    build = _try(lambda: import_module("mlx_recurrent._build"))
    if isinstance(build, str):
        found.say("ABI", "unknown: the native module was not built")
    else:
        there = _version("mlx") or "none"
        agree = "the same" if there == build.MLX_VERSION else "NOT the same"
        found.say("ABI", f"built for MLX {build.MLX_VERSION}, found {there}: {agree}")
    # The command's stand-in for a package that cannot be imported would hide why.
    if not hasattr(sys.modules["mlx_recurrent"], "__file__"):
        del sys.modules["mlx_recurrent"]
    native = _try(lambda: (import_module("mlx_recurrent"), _native())[1])
    if isinstance(native, str):
        found.say("native module", "cannot be loaded")
        found.broken.append(
            f"The package cannot be imported: {native} If that does not mend it, build "
            "it again for this Python and this MLX: `pip install --force-reinstall .` "
            "in the folder of its source."
        )
        return None
    found.say("native module", native.__file__)
    return native


def instruction_set(found: Findings, native: Any) -> None:
    """What the kernels use, and what they could."""
    used, available = native.isa(), native.available_isas()
    found.say("instruction set", f"{used} (available: {available})")
    best = available.partition(",")[0]
    if used != best:
        found.slow.append(
            f"The kernels use {used} though this processor has {best}: unset the "
            "environment variable MLX_RECURRENT_ISA."
        )


def cores(found: Findings, native: Any) -> None:
    """How many threads there are, and how many cores of which kind for them."""
    there = os.cpu_count() or 1
    text = f"{there} in the machine"
    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
        text += f", {usable} by this process's affinity"
        if usable < there:
            found.slow.append(
                f"The affinity mask allows {usable} of {there} cores: `taskset` or the "
                "job's scheduler sets it."
            )
    fast, slow = (0, 0) if native is None else native.cores_by_kind()
    if slow:
        text += f" ({fast} fast, {slow} slow)"
    quota = None if native is None else native.cpu_quota()
    if quota is not None:
        text += f", {quota:g} by the control group's quota"
        if quota < there:
            found.slow.append(
                f"The control group allows {quota:g} of {there} cores: a container's "
                "CPU limit or systemd's CPUQuota sets it."
            )
    found.say("cores", text)
    if native is None:
        return
    threads, usable = native.get_num_threads(), native.usable_cores()
    found.say("threads", f"{threads} (usable cores: {usable})")
    if threads > usable:
        text = f"{threads} threads share {usable} cores"
        if slow and usable == fast:
            text = (
                f"{threads} threads are more than the {fast} fast cores, so that at "
                "each step they wait for one on a slow core"
            )
        found.slow.append(f"{text}: mlx_recurrent.set_num_threads({usable}).")


def blas(found: Findings, native: Any) -> bool:
    """What large products go through, and whether it can be used."""
    name = _try(native.blas)
    if name.startswith("The environment variable"):
        found.say("large products", "cannot be made")
        found.broken.append(name)
        return False
    found.say("large products", f"through {name}" if name else "this package's own")
    return True


def product(found: Findings) -> None:
    """What MLX's product costs beside this package's."""
    import mlx.core as mx

    import mlx_recurrent

    a = mx.random.normal((SIDE, SIDE), key=mx.random.key(0))
    with mx.stream(mx.cpu):
        ours = _rate(lambda: mlx_recurrent.matmul(a, a))
        theirs = _rate(lambda: mx.matmul(a, a.T))
    found.say("MLX's BLAS", _blas() or "unknown")
    found.say(
        "matrix product",
        f"{ours:.0f} GFLOP/s, MLX's own {theirs:.0f} (float32, {SIDE} on a side)",
    )
    if theirs < SLOW_PRODUCT * ours and sys.platform.startswith("linux"):
        found.slow.append(
            f"MLX's matrix product is {ours / theirs:.0f} times slower than this "
            "package's. Use mlx_recurrent.Linear and mlx_recurrent.matmul, or "
            "accelerate(model) for a whole model; or give MLX another BLAS: install "
            "OpenBLAS (Debian and Ubuntu: apt install libopenblas0-pthread) and start "
            "Python with LD_PRELOAD=libopenblas.so.0."
        )


def evaluation(found: Findings) -> None:
    """What an evaluation costs, whatever is in it."""
    import mlx.core as mx

    a = mx.ones((64,))
    mx.eval(a)
    seconds = _seconds(lambda: mx.add(a, a, stream=mx.cpu), 1000)
    found.say("mx.eval", f"{seconds * 1e6:.0f} us for an addition")
    if seconds > SLOW_EVALUATION:
        found.slow.append(
            f"An mx.eval costs {seconds * 1e6:.0f} us here, the time to wake up MLX's "
            "thread: evaluate less often, many steps at once, and leave that thread a "
            "core of its own."
        )


def result(found: Findings) -> None:
    """Whether small layers give what ``mlx.nn``'s give."""
    import mlx.core as mx
    from mlx.nn.layers import recurrent

    import mlx_recurrent

    for name in LAYERS:
        with mx.stream(mx.cpu):
            ours = getattr(mlx_recurrent, name)(8, 33)
            theirs = getattr(recurrent, name)(8, 33)
            ours.update(theirs.parameters())
            x = mx.random.normal((3, 40, 8), key=mx.random.key(1))
            # Also where the result is a pair, the states of both kinds.
            got, expected = (mx.stack([*layer(x)]) for layer in (ours, theirs))
            error = float(mx.abs(got - expected).max())
            path = ours.plan(x).path
        found.say(
            f"a small {name}", f"{error:.1g} from mlx.nn.{name}, on the {path} path"
        )
        if not error < 1e-5:
            found.broken.append(
                f"A small {name} differs from mlx.nn.{name} by {error:.1g}: "
                "MLX_RECURRENT_ISA=baseline may avoid it; please report it with this "
                "output."
            )


def forking(found: Findings) -> None:
    """How this Python starts processes."""
    method = multiprocessing.get_start_method(allow_none=True)
    if method is None:
        method = multiprocessing.get_all_start_methods()[0]
    found.say("processes start by", method)
    if method == "fork":
        found.slow.append(
            "This Python starts processes by fork. MLX's threads do not survive one: "
            "in a child of a process that has used MLX, mx.eval never ends (this "
            "package's layers raise first). Call "
            'multiprocessing.set_start_method("spawn"), or '
            "begin the child with mx.set_default_stream(mx.new_stream(mx.cpu))."
        )


def _native() -> Any:
    return import_module("mlx_recurrent._native")


def _try(action: Callable[[], Any]) -> Any:
    """What it returns, or the sentence of its error."""
    try:
        return action()
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        return text if text.endswith(".") else text + "."


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _seconds(graph: Callable[[], Any], calls: int) -> float:
    """The median time of an evaluation."""
    import mlx.core as mx

    mx.eval(graph())
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        mx.eval(graph())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _rate(graph: Callable[[], Any]) -> float:
    return 2e-9 * SIDE**3 / _seconds(graph, 9)


def _blas() -> str:
    """The libraries in this process that multiply matrices."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return "Accelerate" if sys.platform == "darwin" else ""
    files = {line.rpartition("/")[2] for line in maps.splitlines() if "/" in line}
    names = ("openblas", "libblas", "mkl_rt", "libblis", "armpl")
    # NumPy's own copy is none of MLX's business.
    chosen = {f for f in files if any(n in f for n in names) and "scipy" not in f}
    return ", ".join(sorted(chosen))
