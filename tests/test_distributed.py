"""`examples/char_lm.py` in several processes: MLX's ring on the loopback address."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from test_char_lm import SCRIPT, SMALL, arrays
from tolerances import DISTRIBUTED

LAUNCH = Path(sys.executable).with_name("mlx.launch")
STEPS = 12
# Bounds a wait for something that takes a second or two.
LIMIT = 240

pytestmark = pytest.mark.skipif(
    not mx.distributed.is_available("ring"), reason="MLX has no ring here"
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("to be or not to be, that is the question\n" * 20)
    return path


@pytest.fixture(scope="module")
def train(text, tmp_path_factory):
    """The command that trains `steps` steps in the folder `out`."""

    def command(out, *more, steps=STEPS):
        common = ["--text", text, "--out", out, "--steps", steps]
        return list(map(str, [SCRIPT, "train", *common, *SMALL, *more]))

    return command


@pytest.fixture(scope="module")
def alone(train, tmp_path_factory):
    """What one process makes of it."""
    out = tmp_path_factory.mktemp("alone") / "run"
    subprocess.run([sys.executable, *train(out, "--quiet")], check=True, timeout=LIMIT)
    return out


@pytest.fixture
def ports():
    """Two ports, one after the other, kept from others while the test runs.

    The ring may listen there, as it reuses ports; these sockets do not listen.
    """
    rng = np.random.default_rng()
    while True:
        first, sockets = int(rng.integers(20000, 32000)), []
        try:
            for port in (first, first + 1):
                sockets.append(socket.socket())
                sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                sockets[-1].bind(("127.0.0.1", port))
        except OSError:
            continue
        else:
            yield first, first + 1
            return
        finally:
            for taken in sockets:
                taken.close()


@pytest.fixture
def start(ports, tmp_path):
    """Starts ranks as `mlx.launch` does, so that each one's end can be seen."""
    every = []

    def start(*commands):
        hosts = tmp_path / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
        processes = []
        for rank, command in enumerate(commands):
            ring = {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)}
            processes.append(
                subprocess.Popen(
                    [sys.executable, *command],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env={**os.environ, **ring},
                )
            )
        every.extend(processes)
        return processes

    yield start
    for process in every:
        process.kill()
        process.communicate()


def ends(processes):
    """Exit status, stdout, and stderr without what MLX's ring says, of each rank."""
    found = []
    for process in processes:
        out, err = process.communicate(timeout=LIMIT)
        lines = [line for line in err.splitlines() if not line.startswith("[ring]")]
        found.append((process.returncode, out, lines))
    return found


def launch(ports, command, **environment):
    """stdout and stderr of `mlx.launch` with two ranks."""
    options = ["-n", "2", "--backend", "ring", "--starting-port", str(ports[0])]
    process = subprocess.run(
        [LAUNCH, *options, "--", sys.executable, *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=LIMIT,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout, process.stderr


def step_of(folder):
    return json.loads((folder / "checkpoint.json").read_text())["step"]


def assert_same_run(one, other):
    assert step_of(one) == step_of(other)
    a, b = arrays(one), arrays(other)
    assert a.keys() == b.keys()
    for name in a:
        x, y = np.array(a[name], np.float64), np.array(b[name], np.float64)
        assert np.abs(x - y).max() <= DISTRIBUTED * np.abs(x).max(), name


def test_mlx_launch(train, alone, ports, tmp_path):
    """Three rows for two ranks: one bar, one report, the result of one process."""
    out, err = launch(ports, train(tmp_path / "run"), COLUMNS="100")
    assert err.count("in 2 processes") == 1 and "100%" in err
    assert out.count("this model") == out.count("Files:") == 1
    assert "exited with code" not in err and "step " not in err.replace("steps", "")
    assert_same_run(alone, tmp_path / "run")
    assert len(list((tmp_path / "run").iterdir())) == 3


# Sends the process of a rank a signal when it begins the step after `step`.
AT = """
import os, runpy, sys
rank, step, number, script, *arguments = sys.argv[1:]
import mlx.core as mx
key, steps = mx.random.key, 0
def counted(*seed):
    global steps
    if steps == int(step) and os.environ.get("MLX_RANK", "0") == rank:
        os.kill(os.getpid(), int(number))
    steps += 1
    return key(*seed)
mx.random.key = counted
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""


def at(rank, step, number, command):
    return ["-c", AT, str(rank), str(step), str(int(number)), *command]


def test_one_process_then_two(train, alone, start, tmp_path):
    out = tmp_path / "run"
    interrupted = at(0, 5, signal.SIGINT, train(out, "--quiet"))
    first = subprocess.run([sys.executable, *interrupted], timeout=LIMIT)
    assert first.returncode == 130 and step_of(out) == 6
    rest = train(out, "--resume")
    (zero, report, lines), other = ends(start(rest, rest))
    assert zero == 0 and "this model" in report and len(lines) == 3
    assert other == (0, "", [])
    assert_same_run(alone, out)


def test_two_processes_then_one(train, alone, start, tmp_path):
    """Ctrl-C that only one rank saw stops both after the same step."""
    out = tmp_path / "run"
    interrupted = at(1, 5, signal.SIGINT, train(out, "--quiet"))
    (zero, _, lines), other = ends(start(interrupted, interrupted))
    assert zero == 130 and other == (130, "", [])
    assert len(lines) == 1 and "stopped after step 6 of 12" in lines[0]
    assert "mlx.launch -n 2 --backend ring -- " in lines[0]
    assert step_of(out) == 6
    rest = [sys.executable, *train(out, "--resume", "--quiet")]
    subprocess.run(rest, check=True, timeout=LIMIT)
    assert_same_run(alone, out)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies(victim, train, alone, ports, tmp_path):
    out = tmp_path / "run"
    killed = at(victim, 6, signal.SIGKILL, train(out, "--quiet"))
    report, err = launch(ports, killed)
    assert report == "" and "Traceback" not in err
    assert err.count("char_lm: error: ") == 1 and "--resume continues it" in err
    assert f"rank {victim} exited with code -9" in err
    assert f"rank {1 - victim} exited with code 2" in err
    assert step_of(out) == 4
    rest = [sys.executable, *train(out, "--resume", "--quiet")]
    subprocess.run(rest, check=True, timeout=LIMIT)
    assert_same_run(alone, out)


# Runs the example several times in the processes of one group.
SEVERAL = """
import contextlib, io, json, runpy, sys
script, runs = sys.argv[1:]
example = runpy.run_path(script, run_name="char_lm")
for arguments in json.loads(runs):
    with contextlib.redirect_stderr(io.StringIO()) as err:
        status = example["main"](arguments)
    print(json.dumps([status, err.getvalue()]), file=sys.__stdout__)
"""


def test_errors_are_one_line(train, text, alone, start, tmp_path):
    """Whoever is wrong: one rank says so, and all of them end with status 2."""
    (tmp_path / "file").write_text("")
    (tmp_path / "other.txt").write_text(text.read_text().upper())
    fine = train(tmp_path / "run")[1:]

    def of(*more):
        return [*fine, *map(str, more)]

    # What rank 0 runs, what rank 1 runs, who says what.
    cases = [
        (of("--steps", 0), of("--steps", 0), 0, "--steps"),
        (of("--batch", 1), of("--batch", 1), 0, "--batch is 1"),
        (of("--out", alone), of("--out", alone), 0, "--overwrite"),
        (fine, of("--text", tmp_path / "none"), 1, "No such file"),
        (fine, of("--text", tmp_path / "other.txt"), 0, "differ"),
        (fine, of("--seed", 1), 0, "differ"),
        (of("--out", tmp_path / "file"), fine, 0, str(tmp_path / "file")),
    ]
    runs = (json.dumps([case[rank] for case in cases]) for rank in (0, 1))
    processes = start(*(["-c", SEVERAL, SCRIPT, run] for run in runs))
    found = [
        [json.loads(line) for line in out.splitlines()] for _, out, _ in ends(processes)
    ]
    for i, (*_, speaker, words) in enumerate(cases):
        (_, *silence), (_, line) = found[1 - speaker][i], found[speaker][i]
        assert silence == [""], words
        assert line.startswith("char_lm: error: ") and line.count("\n") == 1
        assert words in line
    assert {status for rank in found for status, _ in rank} == {2}
    assert not (tmp_path / "run").exists()


def test_a_report_that_fails(train, start, tmp_path):
    """Rank 0 is alone then."""
    out = tmp_path / "run"
    (out / "curves.png").mkdir(parents=True)
    command = train(out, "--quiet")
    (zero, _, lines), other = ends(start(command, command))
    assert zero == 2 and other == (0, "", [])
    assert len(lines) == 1 and "curves.png" in lines[0]
    assert step_of(out) == STEPS


def test_no_group(train, tmp_path):
    """A rank that cannot find the others."""
    process = subprocess.run(
        [sys.executable, *train(tmp_path / "run")],
        env={**os.environ, "MLX_RANK": "0", "MLX_HOSTFILE": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert process.returncode == 2
    assert process.stderr.startswith("char_lm: error: cannot join")
    assert process.stderr.count("\n") == 1 and not (tmp_path / "run").exists()
