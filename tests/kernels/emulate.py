"""``make emulate``: the kernels on processors that are not there, under QEMU.

arm64 runs the cases of its own instruction set; x86-64 processors without AVX2 must
choose the baseline by themselves, and meet no instruction that they lack: the kernels
alone on one of 2008, and the package with MLX on one of 2011, since NumPy needs that.
"""

import argparse
import platform
import subprocess
import sys
from pathlib import Path

from programs import Table, build, require

ARM = (
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    "-DCMAKE_EXE_LINKER_FLAGS=-static",
)
LAYER = """
import mlx.core as mx, mlx.nn as nn, mlx_recurrent as m
mx.set_default_device(mx.cpu)
x = mx.random.normal((3, 20, 5))
layer, upstream = m.RNN(5, 33), nn.RNN(5, 33)
upstream.update(layer.parameters())
loss = lambda model: model(x).square().mean()
_, ours = nn.value_and_grad(layer, loss)(layer)
_, theirs = nn.value_and_grad(upstream, loss)(upstream)
assert mx.allclose(layer(x), upstream(x), atol=1e-5)
assert all(mx.allclose(ours[k], theirs[k], atol=1e-5) for k in ours)
print(layer.plan(x).isa)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    text = "random cases of each processor (default: %(default)s)"
    parser.add_argument("--cases", type=int, default=500, metavar="N", help=text)
    options = parser.parse_args()
    if options.cases < 1:
        parser.error("--cases must be at least 1")
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        parser.error("these processors are emulated on Linux on x86-64")
    arm = require("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")
    emulate = require("qemu-x86_64-static", "qemu-user-static")
    emulate_arm = require("qemu-aarch64-static", "qemu-user-static")

    table = Table()
    random = ["--random", options.cases, "--seed", 1]
    folder = build("kernel_tests_arm64", *ARM, cxx=arm)
    table.add("arm64, random", [emulate_arm, folder / "check_kernels", *random])
    table.add("arm64, team", [emulate_arm, folder / "check_team", "many_barriers"])
    folder = build("kernel_tests")
    old = [emulate, "-cpu", "Nehalem", folder / "check_kernels"]
    table.add("x86-64 of 2008, random", [*old, *random])
    old = [emulate, "-cpu", "SandyBridge", Path(sys.executable), "-c", LAYER]
    done = subprocess.run(old, capture_output=True, text=True)
    if done.returncode or done.stdout.split() != ["baseline"]:
        table.failed += 1
        print(f"x86-64 of 2011, the package: exit {done.returncode}", done.stdout)
        print(done.stderr)
    else:
        print("x86-64 of 2011: the package runs its baseline")
    return int(table.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
