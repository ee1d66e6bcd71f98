"""What the machine can do, measured in the same run, and the limit that follows."""

import os
from dataclasses import dataclass
from pathlib import Path

from mlx_recurrent.benchmarks.cases import CELLS, RNN, Case, Cell

# What a call costs in Python and in the graph, beside the evaluation.
CALL = 8e-6
# An output of this many bytes and more is fresh memory at each call, which costs so
# many seconds a byte to touch, in huge pages.
FRESH = 32 * 2**20
FRESH_SECONDS = 0.042e-3 / 1e6


@dataclass(frozen=True)
class Machine:
    """The figures of a machine.

    Args:
        threads (int): How many threads the rates of all are for.
        flops_one, flops (float): float32 multiply-adds, operations a second, of one
            thread and of all.
        caches (tuple): Sizes in bytes and the bytes a second that one core reads from
            them, from the smallest; the last is memory, read by all cores.
        exchange (float): Seconds for a cache line to another core and back.
        evaluation (float): Seconds of an ``mx.eval`` of an addition.
        tanh (float): Seconds of tanh for one element on one core.
    """

    threads: int
    flops_one: float
    flops: float
    caches: tuple[tuple[float, float], ...]
    exchange: float
    evaluation: float
    tanh: float

    def bandwidth(self, size: float) -> float:
        """Return what one core reads from the level that holds ``size`` bytes."""
        for held, rate in self.caches:
            if size <= held:
                return rate
        return self.caches[-1][1]

    def step(self, case: Case, cell: Cell = CELLS[RNN]) -> float:
        """Return the least seconds of a step of the recurrence."""
        by_batch, by_units = self._ways(case, cell)
        return min(by_batch, by_units)

    def divides_units(self, case: Case, cell: Cell = CELLS[RNN]) -> bool:
        """Return whether its least step exchanges a cache line."""
        by_batch, by_units = self._ways(case, cell)
        return by_units < by_batch

    def _ways(self, case: Case, cell: Cell) -> tuple[float, float]:
        rows = cell.gates * case.H
        flops = 2.0 * case.N * rows * case.H
        weights = 4.0 * rows * case.H
        parts = min(case.N, self.threads)
        rate = self.flops_one if parts == 1 else self.flops * parts / self.threads
        by_batch = max(flops / rate, weights / self.bandwidth(weights))
        if self.threads == 1:
            return by_batch, float("inf")
        own = weights / self.threads
        by_units = max(flops / self.flops, own / self.bandwidth(own)) + self.exchange
        return by_batch, by_units

    def limit(self, case: Case, pass_: str, cell: Cell = CELLS[RNN]) -> float:
        """Return the least seconds of a pass: the sum of what it must do.

        An evaluation and a call; the elementary functions, each as tanh; the
        projection; fresh memory for a large output; the steps. Training adds the steps
        again and the gradients of the weights.
        """
        _, N, L, D, H = case
        steps, rows = L * self.step(case, cell), cell.gates * H
        output = 4.0 * N * L * H
        seconds = (
            self.evaluation
            + CALL
            + cell.functions * N * L * H * self.tanh / self.threads
            + 2.0 * N * L * D * rows / self.flops
            + (output * FRESH_SECONDS if output >= FRESH else 0)
            + steps
        )
        if pass_ == "training":
            seconds += steps + 2.0 * N * L * rows * (D + H) / self.flops
        return seconds

    def better(self, other: "Machine") -> "Machine":
        """Return the better of each figure: other programs only ever take from it."""
        both = zip(self.caches, other.caches, strict=True)
        return Machine(
            threads=self.threads,
            flops_one=max(self.flops_one, other.flops_one),
            flops=max(self.flops, other.flops),
            caches=tuple((size, max(rate, again)) for (size, rate), (_, again) in both),
            exchange=min(self.exchange, other.exchange),
            evaluation=min(self.evaluation, other.evaluation),
            tanh=min(self.tanh, other.tanh),
        )

    def figures(self) -> list[tuple[str, float, str]]:
        """Return the figures as name, value and unit."""
        rows = [
            ("multiply-adds, one thread", self.flops_one / 1e9, "GFLOP/s"),
            (f"multiply-adds, {self.threads} threads", self.flops / 1e9, "GFLOP/s"),
        ]
        for size, rate in self.caches[:-1]:
            name = f"read of up to {size / 1024:,.0f} KB again and again, one thread"
            rows.append((name, rate / 1e9, "GB/s"))
        rows.append(("read from memory, all threads", self.caches[-1][1] / 1e9, "GB/s"))
        return [
            *rows,
            ("cache line to the other core and back", self.exchange * 1e6, "us"),
            ("mx.eval of an addition", self.evaluation * 1e6, "us"),
            ("tanh, an element, one thread", self.tanh * 1e9, "ns"),
        ]


def measure(threads: int, evaluation: float) -> Machine:
    """Measure the machine that this process runs on, for so many threads.

    Args:
        threads (int): The threads of a layer.
        evaluation (float): Seconds of an ``mx.eval`` of an addition, measured where the
            layers run: it depends on where the scheduler puts MLX's thread.
    """
    from mlx_recurrent import _native

    level1, level2, level3 = cache_sizes()
    # Half of the first; less of the last, which is shared with others. What the second
    # gives depends on how much of it is read.
    parts = {level1: level1 // 2}
    parts |= {s: s for s in (level2 >> k for k in (3, 2, 1, 0)) if s > level1}
    parts[level3] = min(level3 // 4, 8 << 20)
    caches = [
        (float(size), _native.measure_read(1, part)) for size, part in parts.items()
    ]
    # Each thread reads memory of its own: all of them an eighth of it at most.
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    beyond = min(max(64 << 20, 2 * level3), physical // 8 // threads)
    caches.append((float("inf"), _native.measure_read(threads, beyond)))
    return Machine(
        threads=threads,
        flops_one=_native.measure_multiply_add(1),
        flops=_native.measure_multiply_add(threads),
        caches=tuple(caches),
        exchange=_native.measure_exchange() if threads > 1 else 0.0,
        evaluation=evaluation,
        tanh=_native.measure_tanh(),
    )


def cache_sizes() -> list[int]:
    """Return the bytes of a core's data caches, or common sizes."""
    sizes: dict[int, int] = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            if (index / "type").read_text().strip() == "Instruction":
                continue
            level = int((index / "level").read_text())
            sizes[level] = int((index / "size").read_text().strip().rstrip("K")) << 10
        except (OSError, ValueError):
            continue
    for level, name in enumerate(("SC_LEVEL1_DCACHE_SIZE", "SC_LEVEL2_CACHE_SIZE"), 1):
        if level not in sizes and name in os.sysconf_names:
            sizes[level] = max(os.sysconf(name), 0)
    common = {1: 48 << 10, 2: 1 << 20, 3: 32 << 20}
    return [sizes.get(level) or common[level] for level in common]


def processor() -> str:
    """Return the processor's name, as the system gives it."""
    import platform

    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
