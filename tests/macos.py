"""``make macos``: the extension compiled and linked for macOS on Linux, and checked.

zig brings the compiler, the linker and macOS' C library; MLX is that of its wheels for
macOS. Warnings are errors. Nothing can be run: the symbols that the library leaves open
must be MLX's, and exported there, or Python's, or the system's.
"""

import os
import platform
import re
import shutil
import sys
import sysconfig
from pathlib import Path

import lief

from commands import ROOT, Failure, run

SOABI = f"cpython-{sys.version_info.major}{sys.version_info.minor}-darwin"
BUILDS = ROOT / "build" / "macos"
PLACE = BUILDS / SOABI
TOOLS = Path(sys.executable).parent
MLX = Path("mlx", "lib", "libmlx.dylib")


def named(pattern: str) -> str:
    """What pyproject.toml says, where the build takes it from."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    return re.search(pattern, text, re.MULTILINE)[1]


def packages(mlx: str, macos: str) -> Path:
    """The folder with MLX for macOS and nanobind, made anew where it has others."""
    folder = PLACE / "packages"
    wanted = [f"mlx=={mlx}", f"mlx-metal=={mlx}", named(r'^  "(nanobind\b.*)",$')]
    made = folder / "made"
    if made.exists() and made.read_text().split("\n") == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    system = f"--platform=macosx_{macos.replace('.', '_')}_arm64"
    only = ("--only-binary=:all:", "--no-deps", system)
    run(sys.executable, "-m", "pip", "install", *only, "--target", folder, *wanted)
    made.write_text("\n".join(wanted))
    return folder


def headers() -> Path:
    """The folder of this Python's headers, which fit macOS too."""
    folder, own = PLACE / "python", Path(sysconfig.get_path("include"))
    shutil.copytree(own, folder, dirs_exist_ok=True)
    # Debian's pyconfig.h there only leads to those of Linux systems.
    system = own.parent / (sysconfig.get_config_var("MULTIARCH") or "") / own.name
    if (system / "pyconfig.h").exists():
        shutil.copy2(system / "pyconfig.h", folder)
    return folder


def build(site: Path, macos: str) -> Path:
    """The library, built anew where a source changed."""
    folder = PLACE / "build"
    environment = {
        "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": site,
        "MACOSX_DEPLOYMENT_TARGET": macos,
        "ZIG_GLOBAL_CACHE_DIR": BUILDS / "zig",
    }
    options = {
        "CMAKE_TOOLCHAIN_FILE": ROOT / "cmake" / "zig_macos.cmake",
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_COMPILE_WARNING_AS_ERROR": "ON",
        "MLX_ROOT": site / "mlx",
        "Python_EXECUTABLE": sys.executable,
        "Python_INCLUDE_DIR": headers(),
        "SKBUILD_SOABI": SOABI,
    }
    words = [f"-D{name}={value}" for name, value in options.items()]
    cmake = TOOLS / "cmake"
    run(cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", *words, **environment)
    run(cmake, "--build", folder, **environment)
    return folder / f"_native.{SOABI}.so"


def macho(path: Path) -> lief.MachO.Binary:
    """A library as macOS reads it."""
    return lief.MachO.parse(str(path)).at(0)


def check(library: Path, site: Path) -> tuple[dict[str, int], list[str]]:
    """How many symbols the library needs of whom, and those that are missing.

    Args:
        library (Path): The extension.
        site (Path): Where MLX is, and nanobind with its list of Python's symbols.
    """
    names = site / "nanobind" / "cmake" / "darwin-ld-cpython.sym"
    python = set(re.findall(r"^-U (\S+)$", names.read_text("utf-8"), re.MULTILINE))
    # Both are kept: what they list does not outlive them.
    libmlx, module = macho(site / MLX), macho(library)
    exported = {symbol.name for symbol in libmlx.exported_symbols}
    sources = {b.symbol.name: b.library.name for b in module.bindings if b.has_library}
    needed, missing = {"MLX": 0, "Python": 0, "the system": 0}, []
    for symbol in module.imported_symbols:
        source = sources.get(symbol.name, "")
        if source.startswith("/usr/lib/"):  # the linker saw it there
            needed["the system"] += 1
        elif source == "@rpath/libmlx.dylib":
            needed["MLX"] += 1
            if symbol.name not in exported:
                missing.append(f"MLX's library does not export {symbol.name}")
        elif symbol.name in python:
            needed["Python"] += 1
        else:
            missing.append(f"neither MLX nor Python has {symbol.name}")
    return needed, missing


def main() -> int:
    """Build and check; 1 where a symbol is missing."""
    if platform.system() != "Linux":
        sys.exit("make macos is for Linux: on a Mac, make test builds for macOS")
    mlx = named(r'^  "mlx\[cpu\]==([\d.]+)",$')
    macos = named(r'MACOSX_DEPLOYMENT_TARGET = "([\d.]+)"')
    lief.logging.disable()
    try:
        site = packages(mlx, macos)
        library = build(site, macos)
    except Failure as failure:
        print(failure)
        return 1
    needed, missing = check(library, site)
    for line in sorted(missing):
        print(line)
    symbols = ", ".join(f"{count} of {whose}" for whose, count in needed.items())
    print(f"{library.name}: macOS {macos}, MLX {mlx}; symbols {symbols}; ", end="")
    print(f"{len(missing)} missing")
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
