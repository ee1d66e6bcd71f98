"""What is measured: shapes as data, named by the use they stand for.

Letters: ``N`` rows of the batch, ``L`` steps, ``D`` input and ``H`` hidden features.
"""

from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
    """One layer, tanh with a bias, in float32."""

    name: str
    N: int
    L: int
    D: int
    H: int

    def arrays(self) -> dict[str, np.ndarray]:
        """Input, parameters and a cotangent of the output: equal in every process."""
        rng = np.random.default_rng(0)
        bound = self.H**-0.5
        draw = {
            "x": rng.standard_normal((self.N, self.L, self.D)),
            "Wxh": rng.uniform(-bound, bound, (self.H, self.D)),
            "Whh": rng.uniform(-bound, bound, (self.H, self.H)),
            "bias": rng.uniform(-bound, bound, self.H),
            "cotangent": rng.standard_normal((self.N, self.L, self.H)),
        }
        return {name: a.astype(np.float32) for name, a in draw.items()}


CASES = [
    Case("control, short", 1, 128, 64, 64),
    Case("sensor stream", 1, 512, 256, 256),
    Case("small batch", 8, 256, 128, 128),
    Case("character model", 32, 128, 128, 256),
    Case("speech", 64, 256, 256, 512),
    Case("long, narrow", 16, 1024, 64, 64),
    Case("wide", 128, 64, 512, 1024),
    Case("wide, alone", 1, 2048, 512, 1024),
]

# One training step over these lengths shows whether its time is linear in L.
LENGTHS = [3_000, 30_000]
LENGTH_CASE = Case("long", 1, LENGTHS[0], 32, 64)
LONGEST = 1_000_000
