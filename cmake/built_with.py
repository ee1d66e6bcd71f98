"""The dependencies of the package, which pin the MLX that it is built with."""

from importlib.metadata import version
from typing import Any


def dynamic_metadata(settings: dict[str, Any], project: Any) -> dict[str, Any]:
    """Return the dependencies that pyproject.toml names, with MLX's version."""
    mlx = version("mlx")
    return {"dependencies": [text.format(mlx=mlx) for text in settings["dependencies"]]}


def dynamic_wheel(settings: dict[str, Any]) -> dict[str, bool]:
    """Return what a wheel may have other than the sdist that it is built from."""
    return {"dependencies": True}
