"""The command ``mlx-recurrent``, also where ``mlx_recurrent`` cannot be imported."""

import importlib.util
import sys
from types import ModuleType


def main() -> int:
    """Run the command and return its exit code."""
    try:
        import mlx_recurrent  # noqa: F401
    except ImportError:
        _import_empty()
    from mlx_recurrent.command.cli import main as run

    return run()


def _import_empty() -> None:
    # The package as a mere folder of modules: `doctor` needs none of its contents,
    # and says what is wrong with them.
    spec = importlib.util.find_spec("mlx_recurrent")
    assert spec is not None and spec.submodule_search_locations is not None
    package = ModuleType("mlx_recurrent")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["mlx_recurrent"] = package
