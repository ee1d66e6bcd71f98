from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Plan:
    """What a call of a layer would run, and why.

    Printing it gives one paragraph.

    Args:
        path (str): ``"native"``, ``"traced"`` or ``"composed"``.
        reason (str): Why this path was chosen.
        isa (str, optional): The instruction set of the kernels. ``None`` on the
            composed path.
        threads (int, optional): How many threads take part. ``None`` on the composed
            path.
        partition (str, optional): What the threads divide: ``"batch"``, ``"hidden"``
            or, for one thread, ``"none"``. ``None`` on the composed path.

    Example:
        >>> import mlx.core as mx
        >>> from mlx_recurrent import RNN
        >>> plan = RNN(3, 8).plan(mx.zeros((2, 5, 3)))
        >>> plan.reason
        'tanh is built into the native kernel'
    """

    path: Literal["native", "traced", "composed"]
    reason: str
    isa: str | None = None
    threads: int | None = None
    partition: Literal["none", "batch", "hidden"] | None = None

    def __str__(self) -> str:
        if self.path == "composed":
            return (
                f"Composed path, because {self.reason}: at each step one matrix "
                "product and one call of the nonlinearity, as MLX operations; the "
                "cost is linear in the length of the sequence."
            )
        work = {
            "batch": f"{self.threads} threads that divide the batch",
            "hidden": f"{self.threads} threads that divide the hidden units",
        }.get(self.partition or "none", "one thread")
        return (
            f"{self.path.capitalize()} path, because {self.reason}: the whole sequence "
            f"in one CPU kernel, with {self.isa} instructions, on {work}."
        )
