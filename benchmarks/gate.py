"""What must be right before it is timed.

The truth is the float64 reference of the tests. Ours is judged by the tests' rule
beside ``mlx.nn.RNN``, the others by a multiple of it.
"""

from collections.abc import Sequence
from functools import lru_cache

import mlx.core as mx
import numpy as np

from mlx_recurrent.benchmarks import callables, reference, tolerances
from mlx_recurrent.benchmarks.cases import NETWORKS, SEED, Work

# A peer may sum in another order, and round at each step: so much of upstream's
# error, and so many last places of the largest value.
PEER_OF_UPSTREAM = 16.0
PEER_ULPS = 64.0
# Below the least normal number a kernel may flush to zero, each term of a sum too.
LEAST = 2.0**-126


@lru_cache(maxsize=2)
def truth(work: Work) -> dict[str, np.ndarray]:
    """Return the result of a piece of work, from the reference."""
    arrays = work.arrays()
    if work.dtype != "float32":
        dtype = getattr(mx, work.dtype)
        arrays = {
            name: np.array(mx.array(a).astype(dtype).astype(mx.float32))
            for name, a in arrays.items()
        }
    if work.option in NETWORKS:
        return _of_network(work)
    if work.option:
        return _of_terms(work)
    cotangent = arrays.pop("cotangent")
    f = work.nonlinearity
    if f in callables.TRACED:
        f = callables.TRACED[f].twin
    if work.kind in ("training", "kept"):
        return _of_weights(
            reference.rnn_grad(**arrays, hidden=None, activation=f, d_states=cotangent)
        )
    if work.kind in ("penalty", "hessian"):
        primals = [*arrays.values(), None]
        if work.kind == "penalty":
            # The gradient of |g|^2 is 2 H g, where g moves x alone.
            g = reference.rnn_grad(*primals, d_states=cotangent)[0]
            along = [2 * g, None, None, None, None]
        else:
            along = [None, *work.directions().values(), None]
        return _of_weights(
            reference.rnn_hessian_vector(primals, along, d_states=cotangent)
        )
    if work.kind == "examples":
        x, *weights = arrays.values()
        rows = [
            _of_weights(reference.rnn_grad(a, *weights, None, d_states=c))
            for a, c in zip(x, cotangent, strict=True)
        ]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    if work.kind in ("ensemble", "calls"):
        members = zip(*work.ensemble().values(), strict=True)
        return {"h": np.stack([reference.rnn(arrays["x"], *m) for m in members])}
    if work.kind == "matmul":
        return {"h": reference.matmul(arrays["x"][0], arrays["Wxh"])}
    if work.kind == "linear":
        return {"h": reference.matmul(arrays["x"][0], arrays["Wxh"], arrays["bias"])}
    return {"h": reference.rnn(**arrays, activation=f)}


def _of_weights(
    gradients: Sequence[np.ndarray], layer: int = 0
) -> dict[str, np.ndarray]:
    names = (f"{name}{layer or ''}" for name in ("Wxh", "Whh", "bias"))
    return dict(zip(names, gradients[1:4], strict=True))


def _of_network(work: Work) -> dict[str, np.ndarray]:
    """Both directions, or one layer after another."""
    arrays, weights = work.arrays(), work.weights()
    x, cotangent = arrays["x"], arrays["cotangent"]
    if work.option == "bidirectional":
        ways = [(x, cotangent[..., : work.case.H])]
        ways.append((x[:, ::-1], cotangent[:, ::-1, work.case.H :]))
        if work.kind == "forward":
            forward, backward = (
                reference.rnn(a, *w) for (a, _), w in zip(ways, weights, strict=True)
            )
            return {"h": np.concatenate([forward, backward[:, ::-1]], axis=-1)}
        found = {}
        for i, ((a, c), w) in enumerate(zip(ways, weights, strict=True)):
            found |= _of_weights(reference.rnn_grad(a, *w, None, d_states=c), i)
        return found
    inputs = [x]
    for of_layer in weights:
        inputs.append(reference.rnn(inputs[-1], *of_layer))
    if work.kind == "forward":
        return {"h": inputs[-1]}
    found = {}
    for i, of_layer in reversed(list(enumerate(weights))):
        gradients = reference.rnn_grad(inputs[i], *of_layer, None, d_states=cotangent)
        cotangent = gradients[0]
        found |= _of_weights(gradients, i)
    return found


def _of_terms(work: Work) -> dict[str, np.ndarray]:
    """One layer with an option, its masks drawn from the key of the first call."""
    arrays, (_, N, L, D, H) = work.arrays(), work.case
    cotangent = arrays.pop("cotangent")
    made, called = work.layer_arguments(), work.call_arguments()
    key = np.array(mx.random.split(mx.random.key(SEED))[1])

    def hits(mask: int, name: str, steps: int, units: int) -> np.ndarray:
        return reference.hits(key, mask, made[name], N, steps, units)

    terms = {
        name: called[name] for name in ("lengths", "truncate_every") if name in called
    }
    if "zoneout" in made:
        terms["kept"] = (hits(reference.ZONEOUT, "zoneout", L, H),)
    for name, mask, factors, units in (
        ("input_dropout", reference.INPUT_DROPOUT, "m_x", D),
        ("recurrent_dropout", reference.RECURRENT_DROPOUT, "m_h", H),
    ):
        if name in made:
            hit = hits(mask, name, 1, units)[:, 0]
            terms[factors] = reference.factors(hit, made[name])
    leak = np.array(made["leak"]) if "leak" in made else None
    primals = [*arrays.values(), None, None, leak]
    problem = reference.Elman("tanh"), primals, reference.Terms(**terms)
    if work.kind == "forward":
        return {"h": reference.recurrence(*problem)[0][0]}
    used = "d_last" if cotangent.ndim == 2 else "d_outputs"
    return _of_weights(reference.recurrence_grad(*problem, **{used: [cotangent]}))


def ours_is_wrong(
    got: dict[str, np.ndarray], upstream: dict[str, np.ndarray], work: Work
) -> str:
    """Return what is wrong with our result by the tests' rule, or nothing."""
    try:
        tolerances.all_close(
            {name: mx.array(a) for name, a in got.items()},
            {name: mx.array(a) for name, a in upstream.items()},
            truth(work),
        )
    except AssertionError as error:
        return str(error)
    return ""


def peer_is_wrong(
    got: dict[str, np.ndarray],
    work: Work,
    upstream: dict[str, np.ndarray] | None = None,
) -> str:
    """Return what is wrong with a result by a multiple of the rule, or nothing."""
    eps = tolerances.EPS[getattr(mx, work.dtype)]
    terms = work.case.N * work.case.L
    for name, expected in truth(work).items():
        if got[name].shape != expected.shape:
            return f"{name} has shape {got[name].shape}, not {expected.shape}"
        error = np.max(np.abs(got[name] - expected))
        base = 0.0 if upstream is None else np.max(np.abs(upstream[name] - expected))
        bound = PEER_OF_UPSTREAM * base + PEER_ULPS * eps * np.max(np.abs(expected))
        if not error <= bound + terms * LEAST:
            return f"{name} has error {error:.3g} > {bound:.3g}"
    return ""
