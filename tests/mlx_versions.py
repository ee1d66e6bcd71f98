"""``make mlx-versions``: the package built with each MLX, and the quick tests on it.

Every version has an environment of its own in ``build``, with the nanobind of its ABI.
"""

import argparse
import re
import sys
import time
from pathlib import Path

from commands import ROOT, Failure, run

PLACE = ROOT / "build" / "mlx-versions"
# Each nanobind of an ABI once.
NANOBIND = {
    "0.32.0": "2.13.0",
    "0.32.1": "2.14.0",
    "0.32.2": "2.15.0",
    "0.32.3": "3.0.1",
    "0.32.4": "3.1.0",
}
TOOLS = ("scikit-build-core>=1", "hatch-fancy-pypi-readme", "cmake", "ninja")
# What the metadata say, and what was left out.
BUILT = """
import importlib.metadata as m, mlx_recurrent._build as b
assert f"mlx=={b.MLX_VERSION}" in m.requires("mlx-recurrent"), m.requires(...)
print(b.MLX_VERSION, b.MLX_LACKS or "-")
"""


def build(mlx: str) -> tuple[Path, str]:
    """Build and install the package; its Python, and what the build left out."""
    python = PLACE / mlx / "bin" / "python"
    install = (python, "-m", "pip", "install", "--quiet")
    if not python.exists():
        run(sys.executable, "-m", "venv", PLACE / mlx)
    run(*install, f"mlx[cpu]=={mlx}", f"nanobind=={NANOBIND[mlx]}", *TOOLS)
    # Anew, also where the version of this package is the same.
    folder = f"-Cbuild-dir={PLACE}/{mlx}/build"
    run(*install, ".[cpu,test]", "--no-build-isolation", folder)
    version, lacks = run(python, "-c", BUILT).split()
    if version != mlx:
        raise Failure(f"built with MLX {version} instead of {mlx}")
    return python, lacks


def main() -> int:
    """Build and test each version that was asked for; 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    text = f"of {', '.join(NANOBIND)} (default: all)"
    parser.add_argument("mlx", nargs="*", metavar="VERSION", help=text)
    versions = parser.parse_args().mlx or list(NANOBIND)
    for mlx in versions:
        if mlx not in NANOBIND:
            parser.error(f"VERSION must be one of {', '.join(NANOBIND)}, not {mlx}")
    row = "{:8} {:9} {:6} {:20} {:12} {:>7}"
    print(row.format("MLX", "nanobind", "built", "without", "quick tests", "seconds"))
    failures = []
    for mlx in versions:
        built, lacks, tests = "no", "", ""
        begun = time.monotonic()
        try:
            python, lacks = build(mlx)
            built, tests = "yes", "failed"
            printed = run(python, "-m", "pytest", "-q", "@tests/quick.txt")
            tests = re.findall(r"(\d+ passed)", printed)[-1]
        except Failure as failure:
            failures.append(f"\nMLX {mlx}: {failure}")
        seconds = f"{time.monotonic() - begun:.0f}"
        line = row.format(mlx, NANOBIND[mlx], built, lacks, tests, seconds)
        print(line, flush=True)
    print("\n".join(failures), end="")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
