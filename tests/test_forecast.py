"""The example that forecasts: `examples/forecast.py`, at a small size."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tolerances import DEMO, DEMO_COUNTED

pd = pytest.importorskip("pandas", reason="the example reads with pandas")
pytest.importorskip("statsmodels", reason="the example compares with statsmodels")
pytest.importorskip("matplotlib", reason="the example draws with matplotlib")
SCRIPT = Path(__file__).parents[1] / "examples" / "forecast.py"


@pytest.fixture(scope="module")
def forecast():
    spec = importlib.util.spec_from_file_location("forecast", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wave(rows=200, seed=0):
    """A slow wave of changing length: what no season and no trend can follow."""
    rng = np.random.default_rng(seed)
    angle = np.cumsum(rng.uniform(0.25, 0.4, rows))
    return 50 + 10 * np.sin(angle) + rng.normal(0, 0.3, rows)


@pytest.fixture
def csv(tmp_path):
    """Writes a file of a wave, or of what is given; returns its path."""

    def write(content=None, **keywords):
        path = tmp_path / "data.csv"
        if content is None:
            days = pd.date_range("2020-01-31", periods=200, freq="ME")
            columns = {"month": days, "sales": wave(), "other": 1}
            content = pd.DataFrame(columns).to_csv(index=False, **keywords)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture(scope="module")
def task(forecast):
    """A season of 4 with a trend, and gaps."""
    values = wave() + np.resize([0, 5, 0, -5], 200) + 0.1 * np.arange(200)
    values[[30, 31, 90, 150, 170]] = np.nan
    return forecast.Task("test", pd.Series(values), 4, 6)


def test_parts_and_targets(task):
    assert (task.trained, task.validated) == (120, 160)
    assert task.origins.tolist() == list(range(159, 194))
    for row in (0, 29, 93, 193, 197):
        expected = np.append(task.values, [np.nan] * 6)[row + 1 : row + 7]
        np.testing.assert_array_equal(task.targets[row], expected)
    rebuilt = task.base + task.scale * task.moves
    np.testing.assert_allclose(rebuilt, task.targets, rtol=DEMO_COUNTED)


def test_nothing_comes_from_what_is_later(forecast, task):
    """Other values of the test part leave all before them as it was."""
    changed = task.values.copy()
    changed[175:] = 1000.0
    other = forecast.Task("test", pd.Series(changed), 4, 6)
    np.testing.assert_array_equal(task.features[:175], other.features[:175])
    np.testing.assert_array_equal(task.base[:175], other.base[:175])
    np.testing.assert_array_equal(task.scale, other.scale)
    np.testing.assert_array_equal(task.filled[:175], other.filled[:175])
    # A gap is filled from before it, not from behind.
    gap = task.values.copy()
    gap[151] = 1000.0
    other = forecast.Task("test", pd.Series(gap), 4, 6)
    assert np.isnan(gap[150]) and abs(other.filled[150]) < 200


def test_naive_forecasts_by_hand(forecast, task):
    seasonal, last = forecast.naive(task, 4), forecast.naive(task, 1)
    filled = task.filled
    for row in (*task.origins[::7], 199):
        by_season = [filled[row - 3 + ahead % 4] for ahead in range(6)]
        np.testing.assert_array_equal(seasonal[row, :, 2], by_season)
        np.testing.assert_array_equal(last[row, :, 2], [filled[row]] * 6)
    errors = [task.values[row + 3] - filled[row] for row in range(1, 154)]
    ends = np.nanquantile(errors, [0.025, 0.9])
    np.testing.assert_allclose(
        last[180, 2, [0, 3]] - filled[180], ends, rtol=DEMO_COUNTED
    )


def test_scores_by_hand(forecast, task):
    quantiles = forecast.naive(task, 4)
    score = forecast.score(task, quantiles)
    errors, losses, inside = [], [], []
    for row in task.origins:
        for ahead in range(6):
            value = task.values[row + 1 + ahead]
            if np.isnan(value):
                continue
            q = quantiles[row, ahead]
            errors.append(value - q[2])
            inside.append(q[1] <= value <= q[3])
            for level, end in zip(forecast.LEVELS, q, strict=True):
                below = value < end
                losses.append((1 - level if below else level) * abs(value - end))
    units = np.abs(task.values[4:160] - task.values[:156])
    assert score["MAE"] == pytest.approx(np.mean(np.abs(errors)), rel=DEMO_COUNTED)
    assert score["RMSE"] == pytest.approx(np.std(errors + np.negative(errors).tolist()))
    assert score["MASE"] == pytest.approx(
        np.mean(np.abs(errors)) / np.nanmean(units), rel=DEMO_COUNTED
    )
    assert score["pinball"] == pytest.approx(np.mean(losses), rel=DEMO)
    assert score["in 80 %"] == pytest.approx(100 * np.mean(inside), rel=DEMO_COUNTED)


def test_a_constant_that_minimises_pinball_is_the_quantile(forecast):
    values = mx.array(np.random.default_rng(0).normal(size=(1001, 1)), mx.float32)
    quantiles = np.quantile(np.array(values), forecast.LEVELS)
    best = forecast.pinball(values, mx.array(quantiles, mx.float32)).mean()
    for i in range(5):
        for move in (-0.05, 0.05):
            other = quantiles + move * (np.arange(5) == i)
            other = mx.array(other, mx.float32)
            assert forecast.pinball(values, other).mean() > best


@pytest.mark.parametrize("layer", ["rnn", "gru", "lstm"])
def test_it_beats_naive_where_there_is_something_to_learn(layer, forecast, monkeypatch):
    monkeypatch.setattr(forecast, "MOST", 30)
    task = forecast.Task("wave", pd.Series(wave(400)), 1, 8)
    model = forecast.score(task, forecast.recurrent(task, 1, layer))
    naive = forecast.score(task, forecast.naive(task, 1))
    assert model["MAE"] < 0.5 * naive["MAE"]
    assert model["pinball"] < 0.5 * naive["pinball"]
    assert 40 < model["in 80 %"] < model["in 95 %"] <= 100


def test_layers_are_three(forecast, task, monkeypatch):
    monkeypatch.setattr(forecast, "EVERY", 1)
    first = [next(task.fit(layer, 0, task.trained)) for layer in forecast.LAYERS]
    for i, quantiles in enumerate(first):
        assert quantiles.shape == (200, 6, 5)
        assert all(np.abs(quantiles - other).max() > 1e-2 for other in first[:i])


def test_a_run_of_a_file(forecast, csv, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(forecast, "MOST", 3)
    out = tmp_path / "out"
    arguments = [str(csv()), "--column", "sales", "--date", "month", "--season", "4"]
    arguments += ["--members", "2", "--horizon", "5", "--out", str(out)]
    assert forecast.main(arguments) == 0
    shown, err = capsys.readouterr()
    assert err == "" and "200 rows, 0 missing" in shown
    for word in ("recurrent", "exponential", "seasonal naive", "MASE", "in 95 %"):
        assert word in shown
    table = pd.read_csv(out / "forecast.csv")
    assert table["rows ahead"].tolist() == [1, 2, 3, 4, 5]
    ends = table.iloc[:, 1:].to_numpy()
    assert np.isfinite(ends).all() and (np.diff(ends) >= 0).all()
    picture = (out / "forecast.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20], "big") == 960
    assert len(list(out.iterdir())) == 2
    assert forecast.main(arguments) == 0  # the same seed, the same forecast
    assert pd.read_csv(out / "forecast.csv").equals(table)


@pytest.mark.parametrize("unit", [1e-60, 1e38, 1e98])
def test_units_beyond_float32(unit, forecast, csv, tmp_path, capsys, monkeypatch):
    """Which no number that the model takes has."""
    monkeypatch.setattr(forecast, "MOST", 1)
    monkeypatch.setattr(forecast, "ORIGINS", 5)
    path = csv(cells(f"{v:.17e}" for v in unit * wave()))
    arguments = [str(path), "--column", "sales", "--members", "1", "--horizon", "2"]
    assert forecast.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    shown, err = capsys.readouterr()
    assert err == "" and "nan" not in shown.lower() and "inf" not in shown.lower()
    ends = pd.read_csv(tmp_path / "out" / "forecast.csv").iloc[:, 1:].to_numpy() / unit
    assert ((ends > 0) & (ends < 100)).all()


def cells(rows, name="sales"):
    return "\n".join([name, *map(str, rows)]) + "\n"


def changed(row, text):
    """A good file, but for one row."""
    return cells(text if at == row else f"{v:.3f}" for at, v in enumerate(wave(), 2))


def gaps(rows):
    """A good file, but with nothing in these rows of 200."""
    return cells(np.where(np.isin(np.arange(200), np.arange(200)[rows]), "", wave()))


DAYS = [f"{day:%Y-%m-%d},{day.day}" for day in pd.date_range("2024-01-01", periods=60)]


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "No columns to parse"),
        (b"sales\n\xff\n", "can't decode byte 0xff"),
        (cells(wave()).encode("utf-16"), "can't decode byte"),
        ("a,b\n1,2\n", "column 'sales' of FILE is missing: it has 'a', 'b'"),
        ("day;sales\n1;2\n", "separated by commas"),
        ("sales,sales\n1,2\n", "more than once"),
        ("sales,b\n1,2\n1,2,3\n", "Expected 2 fields in line 3, saw 3"),
        ("sales\n", "column 'sales' has 0 values in 0 rows"),
        (cells(range(20)), "has 20 values in 20 rows: at least 50"),
        (cells([""] * 99), "has 0 values"),
        (cells([*wave(60), *[""] * 70, 1]), "has 61 values in 131 rows"),
        (cells([5] * 100), "is constant in its first 60 rows"),
        (
            changed(7, "n/k"),
            "column 'sales' of FILE, row 7, is 'n/k': must be a number",
        ),
        (changed(9, '"1,5"'), "row 9, is '1,5': must be a number"),
        (changed(8, "inf"), "row 8, is 'inf': must be finite"),
        (changed(8, "1e200"), "row 8, is '1e200': must be finite"),
        (changed(190, "1e50"), "column 'sales' moves "),
        (gaps(slice(161, 199)), "column 'sales' has too few values in the last fifth"),
        (
            gaps(slice(1, None, 2)),
            "column 'sales' has no two values 1 rows apart in the first four fifths",
        ),
    ],
)
def test_files_that_cannot_be_used(content, words, forecast, csv, capsys):
    path = csv(content)
    assert forecast.main([str(path), "--column", "sales"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("forecast: error: ")
    assert words in line.replace(str(path), "FILE")


@pytest.mark.parametrize(
    "row, text, words",
    [
        (5, "soon,1", "column 'day' of FILE, row 5, is 'soon': must be a date"),
        (5, ",1", "column 'day' of FILE, row 5, is empty: must be a date"),
        (5, "2024-01-01,1", "row 5, is '2024-01-01': must be one step after"),
        (61, "2024-03-09,1", "row 61, is '2024-03-09': must be one step after"),
    ],
)
def test_dates_that_cannot_be_used(row, text, words, forecast, csv, capsys):
    lines = ["day,sales", *DAYS]
    lines[row - 1] = text
    path = csv("\n".join(lines))
    assert forecast.main([str(path), "--column", "sales", "--date", "day"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line.replace(str(path), "FILE")


def test_what_a_table_may_have(forecast, csv):
    """A byte order mark, spaces, empty lines at the end, gaps of several spellings."""
    lines = [" sales ", *map(str, range(50)), "NA", "", "nan", "7"]
    series = forecast.read_csv(
        csv("\ufeff" + "\n".join(lines) + "\n\n\n"), "sales", None
    )
    assert len(series) == 54 and series.isna().sum() == 3
    assert series.index[0] == 2 and series.iloc[-1] == 7


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["data.csv"], "--column NAME"),
        (["--column", "x"], "go together"),
        (["--date", "x"], "--date is for a file"),
        (["data.csv", "--column", "x", "--series", "co2"], "--series for none"),
        (["--horizon", "0"], "--horizon must be from 1 to 366"),
        (["--season", "many"], "invalid int value: 'many'"),
        (["--series", "rain"], "invalid choice: 'rain'"),
        (["--layer", "transformer"], "invalid choice: 'transformer'"),
        (["nowhere.csv", "--column", "x"], "No such file or directory: nowhere.csv"),
        (["--season", "200"], "732 rows: at least 1000"),
    ],
)
def test_wrong_arguments(arguments, words, forecast, capsys):
    assert forecast.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("forecast: error: ") and words in line


def test_a_folder_that_cannot_be(forecast, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert forecast.main(["--out", str(tmp_path / "file")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_control_c(forecast, monkeypatch, capsys, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(forecast, "recurrent", interrupted)
    assert forecast.main(["--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "forecast: interrupted\n"


def test_help_as_a_program():
    shown = subprocess.run(
        [sys.executable, SCRIPT, "--help"], capture_output=True, text=True
    )
    assert shown.returncode == 0 and "--season" in shown.stdout and not shown.stderr
