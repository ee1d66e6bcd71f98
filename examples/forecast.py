"""Forecasts with intervals: a recurrent layer that reads a series once.

    .venv/bin/python examples/forecast.py                     # sea temperature
    .venv/bin/python examples/forecast.py --series sunspots --layer lstm
    .venv/bin/python examples/forecast.py data.csv --column sales --season 12

After each value the model gives quantiles of the next K, so one pass over the series
forecasts from every row (Wen et al., "A Multi-Horizon Quantile Recurrent nn.Module",
2017), and a training step learns from every row:

    h_t = (h_{t-1} + tanh(Wxh x_t + Whh h_{t-1} + b)) / 2
    quantiles(y_{t+1} .. y_{t+K}) = sort(W h_t + c)

With `--layer gru` or `lstm` the states h_t are that layer's.

The first 60 % of the rows train, the next 20 % tell how long to, and then the model is
trained again on both. The last 20 % only give the score, beside exponential smoothing
and naive forecasts, which were fitted on the first 80 % too.

No missing value is guessed from what came later: the input is the value before, moved
by the season and marked, and neither training nor score counts it.

The folder `--out` receives `forecast.png`, and `forecast.csv` with the forecast beyond
the last row. Exit status: 0, 2 for an error (one line on stderr), 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

try:
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure
    from statsmodels import datasets
    from statsmodels.tools.sm_exceptions import ConvergenceWarning
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    from mlx_recurrent import GRU, LSTM, RNN, Linear, Stack
except ImportError as missing:
    print(
        f"forecast: error: {missing} (pip install 'mlx-recurrent[cpu,examples]')",
        file=sys.stderr,
    )
    raise SystemExit(2) from None
except KeyboardInterrupt:
    print("forecast: interrupted", file=sys.stderr)
    raise SystemExit(130) from None

# The ends of the 95 % interval, of the 80 % interval, and the median.
LEVELS = np.array([0.025, 0.1, 0.5, 0.9, 0.975])
HIDDEN, LEAK, DROPOUT, LEARNING_RATE = 64, 0.5, 0.5, 1e-3
LAYERS = {"rnn": partial(RNN, leak=LEAK), "gru": GRU, "lstm": LSTM}
# Steps between two validations; at most so many of those, and so many without a gain.
EVERY, MOST, PATIENCE = 10, 200, 15
LARGEST = 1e12  # of what the model takes in float32, whose squares must be finite
ROWS, ORIGINS = 5000, 200  # at most so many rows, and so many forecasts for the score


class Failure(Exception):
    """What the user can mend: shown as one line, exit status 2."""


def sample(name: str) -> tuple[str, pd.Series, int]:
    """A series of `statsmodels`: what it is, its values by date, and its season."""
    data = getattr(datasets, name).load_pandas().data
    if name == "co2":
        return "CO2 in air (ppm)", data.co2.resample("MS").mean(), 12
    if name == "sunspots":
        years = pd.date_range("1700", periods=len(data), freq="YS")
        return "sunspot number", pd.Series(data.SUNACTIVITY.to_numpy(), years), 11
    values = data.drop(columns="YEAR").to_numpy().ravel()
    months = pd.date_range("1950", periods=len(values), freq="MS")
    return "sea temperature (°C)", pd.Series(values, months), 12


def read_csv(path: Path, column: str, date: str | None) -> pd.Series:
    """A column by date, or by row. `Failure` names the column and the row."""
    try:
        cells = pd.read_csv(
            path, header=None, dtype=str, encoding="utf-8-sig", skip_blank_lines=False
        )
    except ValueError as error:  # empty, not UTF-8, or rows of different lengths
        raise Failure(f"{path} is not a comma-separated table: {error}") from None
    cells = cells.map(lambda cell: cell.strip() or None, na_action="ignore")
    filled = np.flatnonzero(cells.notna().any(axis=1))
    cells = cells[: filled.max(initial=0) + 1]  # no empty lines at the end
    header = cells.iloc[0].fillna("").tolist()

    def find(name: str) -> pd.Series:
        if header.count(name) == 1:
            return cells.iloc[1:, header.index(name)]
        problem = "there more than once" if name in header else "missing"
        hint = "" if len(header) > 1 else " (cells must be separated by commas)"
        found = ", ".join(map(repr, header))
        raise Failure(f"column {name!r} of {path} is {problem}: it has {found}{hint}")

    def refuse(name: str, wrong: np.ndarray, rule: str) -> None:
        for row in np.flatnonzero(wrong)[:1] + 1:
            cell = cells.iloc[row, header.index(name)]
            text = "empty" if pd.isna(cell) else repr(cell)
            place = f"column {name!r} of {path}, row {row + 1}"  # row 1: the header
            raise Failure(f"{place}, is {text}: {rule}")

    texts = find(column)
    values = pd.to_numeric(texts, errors="coerce").astype(float)
    refuse(column, texts.notna() & values.isna(), "must be a number")
    refuse(column, values.abs() > 1e100, "must be finite and within 1e100")
    if date is None:
        return values.set_axis(np.arange(2, len(cells) + 1))
    times = pd.to_datetime(find(date), errors="coerce", format="ISO8601", utc=True)
    refuse(date, times.isna(), "must be a date such as 2024-03-31")
    steps = times.diff().dt.total_seconds()
    rule = "must be one step after the row before (give missing rows with no value)"
    usual = steps.median()  # months and years vary a little
    refuse(date, (steps <= 0) | (steps > 1.5 * usual), rule)
    return values.set_axis(times.dt.tz_localize(None))


class Task:
    """A series in the model's terms; T rows, each with the K values ahead of it.

    The features of a row are the value, less its season and a slow mean; its change;
    the place in the season; and whether it is known. The targets are the moves from the
    row, less the season. Scales and season follow from the rows before the test part.

    Args:
        name (str): What the series is.
        series (Series): The values by time, NaN where missing.
        season (int): Rows of a season; 1 is none.
        horizon (int): Rows to forecast, ``K``.
    """

    def __init__(self, name: str, series: pd.Series, season: int, horizon: int):
        series = series.loc[series.first_valid_index() : series.last_valid_index()]
        series = series[-ROWS:]
        self.name, self.season, self.horizon = name, season, horizon
        self.values, self.times = series.to_numpy(float), series.index.to_numpy()
        known, count = np.isfinite(self.values), len(series)
        needed = max(50, 5 * season, 5 * horizon)
        if known.sum() < max(needed, count / 2):
            raise Failure(
                f"{name} has {known.sum()} values in {count} rows: at least {needed} "
                f"and half of the rows are needed (season {season}, horizon {horizon})"
            )
        self.trained, self.validated = count * 3 // 5, count * 4 // 5
        past = slice(self.validated)
        if np.nanstd(self.values[: self.trained]) == 0:
            raise Failure(f"{name} is constant in its first {self.trained} rows")
        last = count - horizon
        self.origins = np.linspace(
            self.validated - 1, last - 1, min(ORIGINS, last - self.validated + 1)
        ).astype(int)

        place = np.arange(count + horizon) % season
        trend = series[past].rolling(season, center=True, min_periods=1).mean()
        course = (series[past] - trend).groupby(place[past]).mean()
        seasonal = course.reindex(range(season)).fillna(0).to_numpy()[place]
        level = pd.Series(self.values - seasonal[:count]).ffill()
        self.filled = (level + seasonal[:count]).to_numpy()
        least = 1e-6 * self.filled[past].std()  # for what never changes
        slow = level.ewm(span=4 * max(season, 6)).mean()
        features = [level - slow, level.diff().fillna(0)]
        features = [f / max(f[past].std(), least) for f in features]
        angle = 2 * np.pi * place[:count] / season
        features += [np.sin(angle), np.cos(angle), known]
        inputs = np.stack(features, axis=-1)

        self.ahead = np.arange(count)[:, None] + np.arange(1, horizon + 1)
        self.base = level.to_numpy()[:, None] + seasonal[self.ahead]
        self.targets = np.append(self.values, np.full(horizon, np.nan))[self.ahead]
        moves = self.targets - self.base
        within = slice(self.validated - horizon)
        self._judge_parts()
        self.scale = np.maximum(np.nanstd(moves[within], axis=0), least)
        self.moves = moves / self.scale
        largest = max(np.abs(inputs).max(), np.nanmax(np.abs(self.moves[past])))
        if largest > LARGEST:
            raise Failure(
                f"{name} moves {largest:.0e} times as far as it usually does: values "
                f"must be within {LARGEST:.0e} times (give wrong values as missing)"
            )
        self.features = mx.array(inputs.astype(np.float32))

    def _judge_parts(self) -> None:
        """Every part must have known values, at every number of rows ahead."""
        known, ahead = np.isfinite(self.targets), self.ahead
        first, second = self.trained, self.validated
        validation = known[first - 1 : second] & (ahead[first - 1 : second] < second)
        parts = {
            "first three fifths": (known[:first] & (ahead[:first] < first)).any(),
            "first four fifths": known[: second - self.horizon].any(axis=0).all(),
            "fourth fifth": validation.any(),
            "last fifth": known[self.origins].any(axis=0).all(),
        }
        for part, enough in parts.items():
            if not enough:
                raise Failure(
                    f"{self.name} has too few values in the {part} of its rows: one is "
                    f"needed at each of {self.horizon} rows ahead"
                )
        past = self.values[:second]
        if np.isnan(past[self.season :] - past[: -self.season]).all():
            raise Failure(
                f"{self.name} has no two values {self.season} rows apart in the first "
                "four fifths of its rows"
            )

    def fit(self, layer: str, seed: int, end: int) -> Iterator[np.ndarray]:
        """Train on the rows before `end`; every few steps, quantiles for all rows."""
        mx.random.seed(seed)
        # In a stack the output of every layer is its hidden state.
        rnn = Stack([LAYERS[layer](self.features.shape[-1], HIDDEN)])
        head = Linear(HIDDEN, self.horizon * len(LEVELS))
        model = nn.Sequential(rnn, nn.Dropout(DROPOUT), head)
        optimizer = optim.AdamW(LEARNING_RATE)
        optimizer.init(model.trainable_parameters())
        known = np.isfinite(self.moves[:end]) & (self.ahead[:end] < end)
        x, weights = self.features[:end], mx.array(known.astype(np.float32))
        targets = mx.array(np.where(known, self.moves[:end], 0).astype(np.float32))

        def quantiles(x: mx.array) -> mx.array:
            y = model(x).reshape(len(x), self.horizon, len(LEVELS))
            return mx.sort(y, axis=-1)

        def loss(model: nn.Module) -> mx.array:
            return (pinball(targets, quantiles(x)) * weights).sum() / weights.sum()

        gradient = nn.value_and_grad(model, loss)
        state = [model.state, optimizer.state, mx.random.state]

        @partial(mx.compile, inputs=state, outputs=state)
        def step() -> None:
            _, gradients = gradient(model)
            optimizer.update(model, optim.clip_grad_norm(gradients, 1.0)[0])

        while True:
            model.train()
            for _ in range(EVERY):
                step()
                mx.eval(state)
            model.eval()
            yield np.array(quantiles(self.features))

    def validation(self, quantiles: np.ndarray) -> float:
        """Mean pinball loss of quantiles ``(T, K, 5)`` over the validation part."""
        rows = slice(self.trained - 1, self.validated)
        inside = self.ahead[rows] < self.validated
        targets = mx.array(np.where(inside, self.moves[rows], np.nan))
        return float(np.nanmean(pinball(targets, mx.array(quantiles[rows]))))


def pinball(targets: mx.array, quantiles: mx.array) -> mx.array:
    """The loss that quantiles minimise (Koenker and Bassett, 1978), ``(T, K)``."""
    levels, error = mx.array(LEVELS, quantiles.dtype), targets[..., None] - quantiles
    return mx.maximum(levels * error, (levels - 1) * error).mean(axis=-1)


def recurrent(task: Task, members: int, layer: str = "rnn") -> np.ndarray:
    """Quantiles ``(T, K, 5)``: the mean of several models, each from its own seed."""

    def fit(end: int) -> Iterator[np.ndarray]:
        fits = [task.fit(layer, seed, end) for seed in range(members)]
        return (np.mean(each, axis=0) for each in zip(*fits, strict=True))

    best, chosen = math.inf, 0
    for count, quantiles in enumerate(itertools.islice(fit(task.trained), MOST), 1):
        loss = task.validation(quantiles)
        if loss < best:
            best, chosen = loss, count
        if count >= chosen + PATIENCE:
            break
    *_, quantiles = itertools.islice(fit(task.validated), chosen)
    return task.base[..., None] + task.scale[:, None] * quantiles


def naive(task: Task, season: int) -> np.ndarray:
    """Quantiles ``(T, K, 5)``: the value a season before, with its errors so far."""
    rows = np.arange(len(task.values))[:, None] + 1
    point = task.filled[np.maximum(rows + np.arange(task.horizon) % season - season, 0)]
    errors = (task.targets - point)[season : task.validated - task.horizon]
    quantiles = point[..., None] + np.nanquantile(errors, LEVELS, axis=0).T
    quantiles[..., 2] = point
    return quantiles


def smoothing(task: Task) -> np.ndarray:
    """Quantiles ``(T, K, 5)`` of exponential smoothing, at the origins alone.

    Of the additive forms it takes the one with the least AICc. As for the model, the
    parameters are fitted once; then it reads on.
    """
    values = pd.Series(task.filled)
    quantiles = np.full((*task.targets.shape, len(LEVELS)), np.nan)
    fits = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for trend, damped in ((None, False), ("add", False), ("add", True)):
            for season in (None, task.season)[: 1 + (task.season > 1)]:
                form = {"trend": trend, "damped_trend": damped}
                if season:
                    form |= {"seasonal": "add", "seasonal_periods": season}
                fit = ETSModel(values[: task.validated], **form).fit(disp=False)
                fits.append((fit.aicc, len(fits), form, fit.params))
    *_, form, parameters = min(fits)
    for row in task.origins:
        known = ETSModel(values[: row + 1], **form).smooth(parameters)
        ahead = known.get_prediction(row + 1, row + task.horizon)
        quantiles[row, :, 2] = ahead.predicted_mean
        for low in (0, 1):
            quantiles[row][:, [low, -1 - low]] = ahead.pred_int(2 * LEVELS[low])
    return quantiles


def score(task: Task, quantiles: np.ndarray) -> dict[str, float]:
    """Errors over all origins and values ahead; how many lie in the intervals, in %."""
    known = np.isfinite(task.targets[task.origins])
    y, q = task.targets[task.origins][known], quantiles[task.origins][known].T
    error, past = y - q[2], task.values[: task.validated]
    # Values in their own units may be beyond float32.
    exact = [mx.array(a, mx.float64) for a in (y, q.T)]
    # What MASE divides by: Hyndman and Koehler, 2006.
    unit = np.nanmean(np.abs(past[task.season :] - past[: -task.season]))
    return {
        "MAE": np.abs(error).mean(),
        "RMSE": math.sqrt(np.square(error).mean()),
        "MASE": np.abs(error).mean() / unit,
        "pinball": pinball(*exact).mean().item(),
        "in 80 %": 100 * ((q[1] <= y) & (y <= q[3])).mean(),
        "in 95 %": 100 * ((q[0] <= y) & (y <= q[4])).mean(),
    }


def draw(task: Task, methods: dict[str, np.ndarray]) -> bytes:
    """Forecasts beside what came, and errors by how far ahead, as a PNG."""
    figure = Figure(figsize=(8, 6.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=(3, 2))
    count, horizon, quantiles = len(task.values), task.horizon, methods["recurrent"]
    step = task.times[-1] - task.times[-2]
    times = np.append(task.times, task.times[-1] + step * np.arange(1, horizon + 1))
    # One after another, back from the forecast of what is not known yet.
    starts = range(count - 1, task.validated - 2, -horizon)[:6]
    for row in starts:
        at, q = times[row + 1 : row + 1 + horizon], quantiles[row].T
        names = "95 %", "80 %", "forecast (median)"
        labels = names if row == starts[0] else (None, None, None)
        for low, label in zip((0, 1), labels, strict=False):
            shade = {"color": "C0", "alpha": 0.2 + 0.1 * low, "lw": 0, "label": label}
            top.fill_between(at, q[low], q[-1 - low], **shade)
        top.plot(at, q[2], color="C0", lw=2, label=labels[2])
        top.axvline(times[row], color="0.5", lw=0.8, ls=":")
    shown = slice(max(0, starts[-1] - 2 * horizon), count)
    top.plot(times[shown], task.values[shown], "k.-", lw=0.8, ms=3, label="series")
    top.set(ylabel=task.name, title="Forecasts, each from its dotted line on")
    top.legend(ncols=4, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    marks = (("C0", "o"), ("C1", "s"), ("0.2", "D"), ("C7", "^"))
    for (name, q), (color, mark) in zip(methods.items(), marks, strict=False):
        error = np.abs(task.targets - q[..., 2])[task.origins]
        style = {"color": color, "marker": mark, "ms": 4, "label": name}
        bottom.plot(range(1, horizon + 1), np.nanmean(error, axis=0), **style)
    bottom.set(xlabel="rows ahead", ylabel="mean absolute error", ylim=(0, None))
    bottom.legend(frameon=False)
    for axes in (top, bottom):
        axes.grid(alpha=0.25)
    figure.savefig(buffer := io.BytesIO(), format="png", dpi=120)
    return buffer.getvalue()


def write(path: Path, data: bytes) -> None:
    """Replaces a file in one go: at any moment it is the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def run(arguments: argparse.Namespace) -> None:
    """Forecasts a series, and says how well."""
    if arguments.csv:
        name, season = f"column {arguments.column!r}", 1
        series = read_csv(arguments.csv, arguments.column, arguments.date)
    else:
        name, series, season = sample(arguments.series)
    season = arguments.season or season
    horizon = arguments.horizon or (season if season > 1 else 8)
    task = Task(name, series, season, horizon)
    arguments.out.mkdir(parents=True, exist_ok=True)
    count, tested = len(task.values), len(task.values) - task.validated
    print(
        f"{name}: {count} rows, {np.isnan(task.values).sum()} missing. Trained on "
        f"{task.validated}, tested on {tested}: {horizon} rows ahead from "
        f"{len(task.origins)} of them.\n",
        flush=True,
    )
    methods = {"recurrent": recurrent(task, arguments.members, arguments.layer)}
    methods["exponential"] = smoothing(task)
    if season > 1:
        methods["seasonal naive"] = naive(task, season)
    methods["naive"] = naive(task, 1)
    scores = pd.DataFrame({name: score(task, q) for name, q in methods.items()}).T
    print(scores.to_string(float_format="{:.4g}".format))
    print(f"\nLeast pinball loss: {scores.pinball.idxmin()}")

    ahead = pd.DataFrame(methods["recurrent"][-1], columns=LEVELS)
    ahead.index = pd.RangeIndex(1, horizon + 1, name="rows ahead")
    write(arguments.out / "forecast.csv", ahead.to_csv().encode())
    write(arguments.out / "forecast.png", draw(task, methods))
    print(f"Files: {arguments.out / 'forecast.csv'}, {arguments.out / 'forecast.png'}")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise Failure(message)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser("forecast.py", description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("csv", nargs="?", type=Path, help="a comma-separated file with a header")
    add("--column", metavar="NAME", help="the column to forecast")
    add("--date", metavar="NAME", help="the column of dates (default: count rows)")
    names = "elnino", "sunspots", "co2"
    add("--series", choices=names, help="without a file (default: elnino)")
    add("--season", type=int, metavar="S", help="rows of a season (1: none)")
    add("--horizon", type=int, metavar="K", help="rows ahead (default: a season, or 8)")
    text = "the recurrent layer (default: rnn, leaky)"
    add("--layer", choices=LAYERS, default="rnn", help=text)
    add("--members", type=int, metavar="M", default=5, help="models (default: 5)")
    home = Path("runs/forecast")
    add("--out", type=Path, metavar="DIR", default=home, help=f"(default: {home})")
    arguments = parser.parse_args(argv)
    for name in ("season", "horizon", "members"):
        if getattr(arguments, name) not in (None, *range(1, 367)):
            parser.error(f"--{name} must be from 1 to 366")
    if (arguments.csv is None) != (arguments.column is None):
        parser.error("a file and --column NAME go together")
    if arguments.series if arguments.csv else arguments.date:
        parser.error("--date is for a file, --series for none")
    arguments.series = arguments.series or "elnino"
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    # The native core is the CPU's for now.
    mx.set_default_device(mx.cpu)
    try:
        run(parse(argv))
        return 0
    except KeyboardInterrupt:
        status, message = 130, "interrupted"
    except Failure as failure:
        status, message = 2, f"error: {failure}"
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        status, message = 2, f"error: {error.strerror or error}{place}"
    print("forecast:", " ".join(message.split()), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
