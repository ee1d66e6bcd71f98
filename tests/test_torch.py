"""Agreement with torch.nn.RNN, which is written by others from the same equation."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from conftest import array, call, case, gradients, ours
from mlx_recurrent import Stack
from networks import in_dtype, network
from tolerances import agree, all_close, close, wide

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


def torch_stack(model, bidirectional):
    """torch.nn.RNN with the weights of a Stack; the parameters' names in both."""
    first = model.layers[0].forward if bidirectional else model.layers[0]
    H, D = first.Wxh.shape
    stack = torch.nn.RNN(
        D,
        H,
        num_layers=len(model.layers),
        batch_first=True,
        bidirectional=bidirectional,
        dtype=torch.tensor(np.array(first.Wxh)).dtype,
    )
    names = {}
    for name, value in tree_flatten(model.parameters()):
        _, i, *direction, parameter = name.split(".")
        kind = {"Wxh": "weight_ih", "Whh": "weight_hh", "bias": "bias_ih"}[parameter]
        suffix = "_reverse" if direction == ["backward"] else ""
        names[name] = f"{kind}_l{i}{suffix}"
        with torch.no_grad():
            getattr(stack, names[name]).copy_(torch.tensor(np.array(value)))
            if parameter == "bias":
                getattr(stack, f"bias_hh_l{i}{suffix}").zero_()
    return stack, names


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("packed", [False, True], ids=["full", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_stacks(rng, num_layers, bidirectional, packed, dtype):
    """Outputs, states and gradients, of rows of different lengths too."""
    N, L, D, H = 5, 7, 6, 9
    lengths = [7, 1, 4, 7, 2] if packed else None
    model = Stack.build(D, H, num_layers, bidirectional=bidirectional)
    model = in_dtype(model, dtype)
    theirs, names = torch_stack(model, bidirectional)

    def of(shape, std=1.0):
        return array(std * rng.standard_normal(shape), dtype)

    parts = 2 if bidirectional else 1
    x, c = of((N, L, D)), of((N, L, parts * H))
    hidden, last = of((num_layers, parts, N, H), 0.5), of((num_layers, parts, N, H))
    if packed:
        for row, length in enumerate(lengths):
            x[row, length:] = mx.nan
            c[row, length:] = 0

    def states(values):
        """As this package has them."""
        return [tuple(v) if bidirectional else v[0] for v in values]

    def run(x, hidden, parameters):
        model.update(parameters)
        kept = {} if lengths is None else {"lengths": lengths}
        outputs, state = model(x, states(hidden), return_state=True, **kept)
        flat = [s for entry in state for s in (entry if bidirectional else [entry])]
        return outputs, mx.stack(flat).reshape(num_layers, parts, N, H)

    def loss(*inputs):
        outputs, state = run(*inputs)
        return (outputs * c).sum() + (state * last).sum()

    inputs = [x, hidden, model.parameters()]
    mine, my_state = run(*inputs)
    gradients = mx.grad(loss, argnums=(0, 1, 2))(*inputs)
    model.update(inputs[2])
    mx.eval(mine, my_state, gradients)

    def tensor(a):
        return torch.tensor(np.array(a), requires_grad=True)

    their_x, their_hidden = tensor(x), tensor(hidden)
    given = their_x
    if packed:
        given = torch.nn.utils.rnn.pack_padded_sequence(
            their_x, lengths, batch_first=True, enforce_sorted=False
        )
    outputs, state = theirs(given, their_hidden.reshape(num_layers * parts, N, H))
    if packed:
        outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(
            outputs, batch_first=True, total_length=L
        )
    state = state.reshape(num_layers, parts, N, H)
    total = (outputs * torch.tensor(np.array(c))).sum()
    (total + (state * torch.tensor(np.array(last))).sum()).backward()

    weights = tree_map(wide, model.parameters())
    truths, true_states = network(
        np,
        weights,
        wide(x),
        states(wide(hidden)),
        lengths=lengths,
    )
    close(mine, to_mlx(outputs, dtype), truths[-1], "outputs")
    close(my_state, to_mlx(state, dtype), np.stack(true_states).reshape(state.shape))
    agree(gradients[0], to_mlx(their_x.grad, dtype), "x")
    agree(gradients[1], to_mlx(their_hidden.grad, dtype), "hidden")
    for name, gradient in tree_flatten(gradients[2]):
        agree(gradient, to_mlx(getattr(theirs, names[name]).grad, dtype), name)
