"""Weights from and to a file where MLX has nobody to read or to compute them.

Fault: MLX reads files in threads that a forked child does not have, and waits for them.
MLX: 0.32.0 to 0.32.4.
Shown by: test_forked_child_cannot_read_files, test_pool_worker_that_loads_weights
"""

from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten

from mlx_recurrent import _native


def expect_file_readers() -> None:
    """Raise ``RuntimeError`` in a forked child where MLX cannot read files."""
    _native.expect_file_readers()


class Loading(Module):
    """A module whose weights' files do not leave a forked child waiting."""

    def load_weights(
        self, file_or_weights: str | list[tuple[str, mx.array]], strict: bool = True
    ) -> Module:
        """Update the weights from a file, or from a list of names and arrays.

        It is the method of MLX's module.

        Args:
            file_or_weights (str or list): The path of a ``.npz`` or ``.safetensors``
                file, or pairs of name and array.
            strict (bool, optional): Whether names and shapes must be those of the
                parameters. Default: ``True``.

        Returns:
            Module: The module itself.

        Raises:
            ValueError: If the weights do not fit.
            RuntimeError: In a forked process, where MLX would wait for them for ever.
        """
        weights: Any = file_or_weights
        if isinstance(weights, str):
            loaded: Any = mx.load(weights)
            weights = list(loaded.items())
        given = dict(tree_flatten(weights)).values()
        _native.expect_after_fork([a for a in given if isinstance(a, mx.array)])
        return super().load_weights(weights, strict)

    def save_weights(self, file: str) -> None:
        """Save the weights to a file.

        It is the method of MLX's module.

        Args:
            file (str): The path of a ``.npz`` or ``.safetensors`` file.

        Raises:
            ValueError: If the path ends otherwise.
            RuntimeError: If MLX would have to compute something that another thread
                made or, in a forked process, would wait for ever.
        """
        weights: Any = tree_flatten(self.parameters())  # type: ignore[no-untyped-call]
        _native.expect_operands([a for _, a in weights], None)
        super().save_weights(file)
