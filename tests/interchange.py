"""What a layer made of another framework's must agree with: that framework's own."""

from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from conftest import array, draw
from mlx_recurrent import LSTM, Bidirectional, Stack
from networks import network
from tolerances import agree, close, wide


def check(rng, layer, x, hidden, theirs, lengths=None, mask=None, **of_network):
    """Outputs, final states and gradients of a layer agree with a framework's.

    ``theirs`` takes the input, the flat list of states, and the factors of outputs and
    of final states in a sum, all NumPy's. It gives outputs, the flat list of final
    states, and by our names the gradients of that sum.
    """
    parameters = dict(tree_flatten(layer.parameters()))
    structure = [name for name, _ in tree_flatten(hidden)]
    inputs = {"x": x, **{f"hidden {name}": a for name, a in tree_flatten(hidden)}}
    given = {"lengths": lengths, "mask": mask}
    keywords = {name: value for name, value in given.items() if value is not None}

    def ours(*values):
        given = dict(zip([*inputs, *parameters], values, strict=True))
        states = [given[f"hidden {name}"] for name in structure]
        if structure != [""]:
            states = tree_unflatten(list(zip(structure, states, strict=True)))
        else:
            (states,) = states
        layer.update(tree_unflatten([(name, given[name]) for name in parameters]))
        apart = states if isinstance(layer, LSTM) else [states]
        outputs, last = layer(given["x"], *apart, return_state=True, **keywords)
        return [outputs, *(a for _, a in tree_flatten(last))]

    given = [*inputs.values(), *parameters.values()]
    shapes = [a.shape for a in ours(*given)]
    factors = [array(rng.standard_normal(shape), x.dtype) for shape in shapes]
    if lengths is not None:
        # What frameworks leave in the padding differs.
        ended = np.arange(x.shape[1]) >= np.array(lengths)[:, None]
        factors[0] = mx.where(mx.array(ended)[..., None], 0, factors[0])
    results, gradients = mx.vjp(ours, given, factors)
    layer.update(tree_unflatten(list(parameters.items())))
    mx.eval(results, gradients)

    outputs, last, their_gradients = theirs(
        np.array(x),
        [np.array(a) for _, a in tree_flatten(hidden)],
        *(lambda first, *others: (first, others))(*map(np.array, factors)),
    )
    outputs = np.array(outputs)
    if lengths is not None:
        outputs[ended] = 0
    truth, true_last = network(
        np,
        tree_unflatten([(name, wide(a)) for name, a in parameters.items()]),
        wide(x),
        tree_unflatten([(n, wide(a)) for n, a in tree_flatten(hidden)])
        if structure != [""]
        else wide(hidden),
        **keywords,
        **of_network,
    )
    if isinstance(truth, list):  # every layer's
        truth = truth[-1]
    close(results[0], array(outputs, x.dtype), truth, "outputs")
    true_last = [a for _, a in tree_flatten(true_last)]
    for mine, other, true in zip(results[1:], last, true_last, strict=True):
        close(mine, array(other, x.dtype), true, "state")
    named = dict(zip([*inputs, *parameters], gradients, strict=True))
    assert their_gradients.keys() <= named.keys()
    assert {"x", *parameters} <= their_gradients.keys()
    for name, gradient in their_gradients.items():
        agree(named[name], array(gradient, x.dtype), name)


def states_for(rng, layer, N, dtype=mx.float32):
    """States of a layer, in its structure."""
    if isinstance(layer, Stack):
        return [states_for(rng, inner, N, dtype) for inner in layer.layers]
    if isinstance(layer, Bidirectional):
        both = layer.forward, layer.backward
        return tuple(states_for(rng, one, N, dtype) for one in both)
    of_one = [
        draw(rng, (N, layer.hidden_size), dtype, 0.5)
        for _ in range(2 if isinstance(layer, LSTM) else 1)
    ]
    return tuple(of_one) if len(of_one) > 1 else of_one[0]


def computed(layer):
    """Any thread can use the layer: no weight waits for the one that made it."""
    weights = [a for _, a in tree_flatten(layer.parameters())]
    with ThreadPoolExecutor(1) as other:
        other.submit(lambda: mx.eval([a + 1 for a in weights])).result()


def equal_weights(a, b):
    """Two layers have the same weights to the bit, and the same structure.

    The first was made of another framework's.
    """
    computed(a)
    a, b = (dict(tree_flatten(layer.parameters())) for layer in (a, b))
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert mx.array_equal(a[name], b[name]), name
