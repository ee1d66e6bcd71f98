"""What must be right before it is timed.

The truth is the float64 reference of the tests. Ours is judged by the tests' rule
beside ``mlx.nn``, the others by a multiple of it.
"""

from functools import lru_cache
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np

from mlx_recurrent.benchmarks import callables, reference, tolerances
from mlx_recurrent.benchmarks.cases import NETWORKS, RNN, SEED, Work

# A peer may sum in another order, and round at each step: so much of upstream's
# error, and so many last places of the largest value.
PEER_OF_UPSTREAM = 16.0
PEER_ULPS = 64.0
# Below the least normal number a kernel may flush to zero, each term of a sum too.
LEAST = 2.0**-126


Arrays: TypeAlias = dict[str, np.ndarray]


@lru_cache(maxsize=2)
def truth(work: Work) -> Arrays:
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
    if work.kind in ("matmul", "linear"):
        bias = (arrays["bias"],) if work.kind == "linear" else ()
        return {"h": reference.matmul(arrays["x"][0], arrays["Wxh"], *bias)}
    cotangent = arrays.pop("cotangent")
    if work.kind in ("penalty", "hessian"):
        return _of_second_order(work, arrays, cotangent)
    if work.kind == "examples":
        rows = [
            _named(work, _gradients(work, {**arrays, "x": a[None]}, c[None]))
            for a, c in zip(arrays["x"], cotangent, strict=True)
        ]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    if work.kind in ("ensemble", "calls"):
        stacked = work.ensemble()
        members = (
            {"x": arrays["x"], **dict(zip(stacked, values, strict=True))}
            for values in zip(*stacked.values(), strict=True)
        )
        return {"h": np.stack([_outputs(work, member) for member in members])}
    if work.kind in ("training", "kept"):
        return _named(work, _gradients(work, arrays, cotangent))
    return {"h": _outputs(work, arrays)}


def _cell(work: Work) -> Any:
    """The reference's cell."""
    if work.cell != RNN:
        return reference.CELLS[work.cell.lower()]
    f = work.nonlinearity
    return reference.Elman(callables.TRACED[f].twin if f in callables.TRACED else f)


def _problem(work: Work, arrays: Arrays) -> tuple[Any, list[Any], Any]:
    """The cell, its arguments, and the options' terms."""
    cell, made = _cell(work), work.layer_arguments()
    given = arrays if "leak" not in made else arrays | {"leak": np.array(made["leak"])}
    return cell, [given.get(name) for name in cell.arguments], _terms(work)


def _outputs(work: Work, arrays: Arrays) -> np.ndarray:
    outputs: np.ndarray = reference.recurrence(*_problem(work, arrays))[0][0]
    return outputs


def _gradients(work: Work, arrays: Arrays, cotangent: np.ndarray) -> Arrays:
    """By the reference's names, of the outputs' or the last state's cotangent."""
    cell, *problem = _problem(work, arrays)
    used = "d_last" if cotangent.ndim == 2 else "d_outputs"
    cotangents = [cotangent, *[None] * (len(cell.states) - 1)]
    found = reference.recurrence_grad(cell, *problem, **{used: cotangents})
    return dict(zip(cell.arguments, found, strict=True))


def _named(work: Work, found: Arrays, layer: int = 0) -> Arrays:
    """The gradients of a layer's parameters."""
    return {f"{name}{layer or ''}": found[name] for name in work.layer.shapes(1, 1)}


def _of_second_order(work: Work, arrays: Arrays, cotangent: np.ndarray) -> Arrays:
    """The Hessian of the loss times a direction, by a complex step."""
    if work.kind == "hessian":
        along = work.directions()
    else:  # the gradient of |g|^2 is 2 H g, where g moves x alone
        along = {"x": 2 * _gradients(work, arrays, cotangent)["x"]}

    def of_parameters(*values: np.ndarray) -> tuple[np.ndarray, ...]:
        moved = dict(zip(arrays, values, strict=True))
        return tuple(_named(work, _gradients(work, moved, cotangent)).values())

    found = reference.complex_step(
        of_parameters, list(arrays.values()), [along.get(name) for name in arrays]
    )
    return dict(zip(work.parameters(), found, strict=True))


def _of_network(work: Work) -> Arrays:
    """Both directions, or one layer after another."""
    arrays, names = work.arrays(), list(work.layer.shapes(1, 1))
    x, cotangent = arrays["x"], arrays["cotangent"]
    layers = [dict(zip(names, of_layer, strict=True)) for of_layer in work.weights()]
    if work.option == "bidirectional":
        H = work.case.H
        ways = [(x, cotangent[..., :H]), (x[:, ::-1], cotangent[:, ::-1, H:])]
        if work.kind == "forward":
            forward, backward = (
                _outputs(work, {"x": a, **w})
                for (a, _), w in zip(ways, layers, strict=True)
            )
            return {"h": np.concatenate([forward, backward[:, ::-1]], axis=-1)}
        found: Arrays = {}
        for i, ((a, c), w) in enumerate(zip(ways, layers, strict=True)):
            found |= _named(work, _gradients(work, {"x": a, **w}, c), i)
        return found
    inputs = [x]
    for of_layer in layers:
        inputs.append(_outputs(work, {"x": inputs[-1], **of_layer}))
    if work.kind == "forward":
        return {"h": inputs[-1]}
    found = {}
    for i, of_layer in reversed(list(enumerate(layers))):
        gradients = _gradients(work, {"x": inputs[i], **of_layer}, cotangent)
        cotangent = gradients["x"]
        found |= _named(work, gradients, i)
    return found


def _terms(work: Work) -> Any:
    """What the options make of a step, the masks from the key of the first call."""
    made, called = work.layer_arguments(), work.call_arguments()
    _, N, L, D, H = work.case
    key = np.array(mx.random.split(mx.random.key(SEED))[1])

    def hits(mask: int, name: str, steps: int, units: int) -> np.ndarray:
        found: np.ndarray = reference.hits(key, mask, made[name], N, steps, units)
        return found

    names = ("lengths", "mask", "truncate_every")
    terms = {name: called[name] for name in names if name in called}
    if "zoneout" in made:
        masks = (reference.ZONEOUT, reference.ZONEOUT_CELL)[: work.layer.states]
        terms["kept"] = tuple(hits(mask, "zoneout", L, H) for mask in masks)
    for name, mask, factors, units in (
        ("input_dropout", reference.INPUT_DROPOUT, "m_x", D),
        ("recurrent_dropout", reference.RECURRENT_DROPOUT, "m_h", H),
    ):
        if name in made:
            hit = hits(mask, name, 1, units)[:, 0]
            terms[factors] = reference.factors(hit, made[name])
    return reference.Terms(**terms)


def ours_is_wrong(got: Arrays, upstream: Arrays, work: Work) -> str:
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
    got: Arrays,
    work: Work,
    upstream: Arrays | None = None,
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
