"""Agreement with torch.nn.RNN, which is written by others from the same equation."""

import mlx.core as mx
import numpy as np
import pytest

from conftest import array, call, case, gradients, ours
from tolerances import all_close, close, wide

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

DTYPES = {"float32": mx.float32, "float64": mx.float64}


def torch_layer(problem):
    """torch.nn.RNN with the problem's weights, and its inputs."""
    H, D = problem.Wxh.shape

    def tensor(a):
        return torch.tensor(np.array(a), requires_grad=True)

    x = tensor(problem.x)
    layer = torch.nn.RNN(
        D, H, nonlinearity=problem.activation, batch_first=True, dtype=x.dtype
    )
    with torch.no_grad():
        layer.weight_ih_l0.copy_(tensor(problem.Wxh))
        layer.weight_hh_l0.copy_(tensor(problem.Whh))
        layer.bias_ih_l0.copy_(tensor(problem.bias))
        layer.bias_hh_l0.zero_()
    return layer, x, tensor(problem.hidden)


def to_mlx(tensor, dtype):
    return array(tensor.detach().numpy(), dtype)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("shape", [(5, 21, 16, 33), (17, 6, 31, 64), (1, 50, 8, 100)])
def test_outputs_state_and_gradients(rng, shape, activation, dtype):
    problem = case(rng, shape, dtype, activation, gain=0.8)
    N, L, _, H = shape
    c, last = (array(rng.standard_normal(s), dtype) for s in ((N, L, H), (N, H)))
    layer, x, hidden = torch_layer(problem)
    outputs, state = layer(x, hidden[None])
    loss = (outputs * torch.tensor(np.array(c))).sum()
    loss = loss + (state[0] * torch.tensor(np.array(last))).sum()
    loss.backward()

    truth = problem.states()
    mine, my_state = call(ours, problem, return_state=True)
    close(mine, to_mlx(outputs, dtype), truth, "outputs")
    close(my_state, to_mlx(state[0], dtype), truth[:, -1], "state")

    theirs = {
        "x": x.grad,
        "Wxh": layer.weight_ih_l0.grad,
        "Whh": layer.weight_hh_l0.grad,
        "bias": layer.bias_ih_l0.grad,
        "hidden": hidden.grad,
    }
    all_close(
        gradients(ours, problem, c, last=last),
        {name: to_mlx(g, dtype) for name, g in theirs.items()},
        problem.gradients(c, last),
    )


def test_saturated_sequences_agree(rng):
    problem = case(rng, (4, 30, 8, 24), std=10.0)
    layer, x, hidden = torch_layer(problem)
    outputs, _ = layer(x, hidden[None])
    truth = problem.states()
    assert np.mean(np.abs(truth) > 0.999) > 0.3
    close(call(ours, problem), to_mlx(outputs, mx.float32), truth)
    assert np.abs(wide(call(ours, problem))).max() <= 1
