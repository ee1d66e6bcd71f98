import mlx.core as mx
from mlx.nn.layers import linear

from mlx_recurrent import functional
from mlx_recurrent.functional.foreign import names_ways_out
from mlx_recurrent.functional.judging import judge_size
from mlx_recurrent.mlx_faults.drawing import draws
from mlx_recurrent.mlx_faults.loading import Loading


class Linear(Loading, linear.Linear):
    r"""An affine transformation: :class:`mlx.nn.Linear` on a fast product.

    .. math::

        y = x W^\top + b

    It uses this package's matrix product where MLX's own is slow (the CPU on Linux) and
    MLX's elsewhere. The parameters are those of :class:`mlx.nn.Linear`.

    Args:
        input_dims (int): The dimensionality of the input features.
        output_dims (int): The dimensionality of the output features.
        bias (bool, optional): Whether to use a bias. Default: ``True``.

    Example:
        >>> import mlx.core as mx
        >>> from mlx_recurrent import Linear
        >>> Linear(3, 8)(mx.zeros((2, 5, 3))).shape
        (2, 5, 8)
    """

    @names_ways_out
    def __init__(self, input_dims: int, output_dims: int, bias: bool = True) -> None:
        judge_size("input_dims", input_dims, 1)
        judge_size("output_dims", output_dims, 0)
        draws()
        super().__init__(input_dims, output_dims, bias)

    def __call__(self, x: mx.array) -> mx.array:
        """Return ``x W^T + b`` for ``x (..., input_dims)``.

        Raises:
            TypeError: If ``x`` is not an array.
            ValueError: If its shape or dtype does not fit.
        """
        weight, bias = self["weight"], self.get("bias")
        return functional.linear(x, weight, bias, super().__call__)
