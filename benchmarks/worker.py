"""One library in one process, timed on request.

The parent writes one JSON request a line; each is answered with one JSON line:

* ``{"case": [...], "pass": "forward" | "training", "save": path | null}`` prepares,
  runs once to warm up, and saves what it computed;
* ``{"run": true}`` runs once more and answers with the seconds it took;
* ``{"loaded": name}`` answers whether a library of this name is in the process;
* ``{"peak": true}`` answers with the peak of resident memory so far, in bytes.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cases import Case

Run = Callable[[], dict[str, object]]


def mlx_layer(package: str, case: Case, pass_: str) -> Run:
    """A pass of ``package.RNN``: its states, or its vector-Jacobian product."""
    import mlx.core as mx

    if package == "mlx_recurrent":
        from mlx_recurrent import RNN
    else:
        from mlx.nn import RNN

    arrays = {name: mx.array(a) for name, a in case.arrays().items()}
    x, cotangent = arrays.pop("x"), arrays.pop("cotangent")
    layer = RNN(case.D, case.H)
    names = list(arrays)

    def states(*parameters: mx.array) -> list[mx.array]:
        layer.update(dict(zip(names, parameters, strict=True)))
        return [layer(x)]

    def forward() -> dict[str, object]:
        (h,) = states(*arrays.values())
        mx.eval(h)
        return {"h": h}

    def training() -> dict[str, object]:
        _, grads = mx.vjp(states, list(arrays.values()), [cotangent])
        mx.eval(grads)
        return dict(zip(names, grads, strict=True))

    return forward if pass_ == "forward" else training


def main(package: str) -> None:
    """Serve requests for one library."""
    run: Run | None = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, object] = {}
        if "case" in request:
            run = mlx_layer(package, Case(*request["case"]), request["pass"])
            result = run()
            if request["save"]:
                np.savez(request["save"], **{k: np.array(a) for k, a in result.items()})
        elif "run" in request:
            assert run is not None
            start = time.perf_counter()
            run()
            answer["seconds"] = time.perf_counter() - start
        elif "loaded" in request:
            maps = Path("/proc/self/maps").read_text()
            answer["loaded"] = request["loaded"].partition(".so")[0] in maps
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            answer["bytes"] = peak * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
