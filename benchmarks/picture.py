"""The result at a glance."""

from pathlib import Path

from mlx_recurrent.benchmarks.result import Result


def draw(result: Result, path: Path) -> None:
    pass
