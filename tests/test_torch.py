"""Agreement with torch.nn.RNN, which is written by others from the same equation."""

from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from cells import CELLS
from conftest import array, call, case, gradients, ours
from mlx_recurrent import Stack
from networks import in_dtype, network
from optional import grads, problem
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


def tensor(a):
    return torch.tensor(np.array(a), requires_grad=True)


def layer_of(p):
    """PyTorch's layer of a problem, and its gradients by the names of ours."""
    weights = [tensor(a) for a in p.cell.sides(p.arrays)]
    dtype = weights[0].dtype
    layer = getattr(torch.nn, p.cell.torch)(p.D, p.H, batch_first=True, dtype=dtype)
    of = "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"
    with torch.no_grad():
        for name, weight in zip(of, weights, strict=True):
            getattr(layer, name).copy_(weight)
    names = dict(zip(p.cell.weights, of, strict=False))

    def gradient(name):
        """What ``bhn`` is, is the last part of a bias."""
        whole = getattr(layer, names[name]).grad
        return whole[-p.H :] if name == "bhn" else whole

    return layer, gradient


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("lengths", [False, [7, 1, 4, 7, 2]], ids=["full", "packed"])
@pytest.mark.parametrize("name", [n for n, cell in CELLS.items() if cell.torch])
def test_each_cell(rng, name, lengths, dtype):
    """Outputs, states and gradients, of rows of different lengths too."""
    p = problem(rng, (5,), 7, 6, 9, of=name, dtype=dtype, lengths=lengths)
    c = p.cotangents()
    if lengths:
        c[0] = p.in_padding(c[0], 0)
    layer, gradient = layer_of(p)
    x = tensor(p.arrays["x"])
    states = [tensor(p.arrays[n]) for n in p.cell.states]
    given = states[0][None] if len(states) == 1 else tuple(s[None] for s in states)
    packed = x
    if lengths:
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
    outputs, last = layer(packed, given)
    if lengths:
        outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(
            outputs, batch_first=True, total_length=7
        )
    last = [last] if len(states) == 1 else list(last)
    results = [outputs, *(s[0] for s in last)]
    sum((a * tensor(b)).sum() for a, b in zip(results, c, strict=True)).backward()

    theirs = dict(zip(p.cell.states, (s.grad for s in states), strict=True))
    theirs |= {"x": x.grad, **{n: gradient(n) for n in p.cell.weights}}
    truths = p.gradients(*c)
    for path in p.cell.paths.values():
        for got, other, truth in zip(p(path), results, p.truth(), strict=True):
            close(got, to_mlx(other, dtype), truth)
        got = grads(partial(p, path), p.arrays.values(), c)
        for n, g, truth in zip(p.names, got, truths, strict=True):
            close(g, to_mlx(theirs[n], dtype), truth, n)


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
