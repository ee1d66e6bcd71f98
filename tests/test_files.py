"""Files under abuse: damaged ones that are read, and writers that are stopped.

The hostile files and what must become of them are in hostile.py, which
``python -m hostile`` runs at length.
"""

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import pytest

from hostile import OLD, SURFACES
from mlx_recurrent import RNN, atomic
from mlx_recurrent.command.cli import main
from mlx_recurrent.interop import weights

HERE = Path(__file__).parent
NEW = bytes(range(256)) * 1000


@pytest.mark.parametrize("surface", SURFACES)
def test_hostile_files(surface, seed):
    if surface != "load_weights":
        pytest.importorskip("onnx", reason="onnx is not installed")
    run = subprocess.run(
        [sys.executable, "-m", "hostile", surface, "--count=250", f"--seed={seed}"],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=300,
    )
    last = run.stdout.splitlines()[-1:]
    assert run.returncode == 0 and last[0].endswith(" cases"), (last, run.stderr)


# Writers that are stopped -------------------------------------------------------------


# Writes in a new process for every moment n, and kills it as it comes to the n-th line
# of the writer; then writes once more. The process that forks never evaluates an array.
KILL = """
import json, os, signal, sys
import hostile
from mlx_recurrent import atomic
task, step, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
os.chdir(folder)
old = open("target" + task, "rb").read()
def write():
    if task == ".bin":
        atomic.write("target.bin", lambda file: [
            file.write(bytes(10000)),
            file.write(bytes(10000)),
        ])
    else:
        source = "source" + {".onnx": ".safetensors", ".safetensors": ".onnx"}[task]
        status, said = hostile.convert(source, "target" + task)
        assert status == 0, said
def run(moment):
    lines = 0
    def trace(frame, event, argument):
        nonlocal lines
        code = frame.f_code
        if code.co_filename != atomic.__file__ and code.co_name != "<lambda>":
            return trace if event == "call" else None
        if event == "line":
            lines += 1
            if lines == moment:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.settrace(trace)
    try:
        write()
    except BaseException as error:
        print(error, file=sys.stderr)
        os._exit(1)
    os._exit(0)
assert run(0) == 0
new = open("target" + task, "rb").read()
seen, moment = [], 1
while True:
    open("target" + task, "wb").write(old)
    status = run(moment)
    found = open("target" + task, "rb").read()
    assert found in (old, new), f"torn at {moment}"
    seen.append(found == new)
    others = {name for name in os.listdir() if name.endswith(".tmp")}
    assert len(others) <= 1, others
    if status == 0:
        break
    assert status == -signal.SIGKILL, status
    moment += step
assert run(0) == 0
print(json.dumps([seen, sorted(os.listdir())]))
"""


@pytest.mark.parametrize(
    "task, step", [(".bin", 1), (".onnx", 17), (".safetensors", 17)]
)
def test_a_kill_at_any_moment_leaves_a_whole_file(task, step, tmp_path):
    there = [f"target{task}"]
    if task != ".bin":
        pytest.importorskip("onnx", reason="onnx is not installed")
        from mlx_recurrent.interop import to_onnx

        layer = RNN(3, 4)
        weights.write(layer, tmp_path / "source.safetensors")
        to_onnx(layer, tmp_path / "source.onnx")
        there = sorted([*there, "source.safetensors", "source.onnx"])
    (tmp_path / f"target{task}").write_bytes(OLD)
    run = subprocess.run(
        [sys.executable, "-c", KILL, task, str(step), tmp_path],
        env={**os.environ, "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    seen, left = json.loads(run.stdout)
    assert len(seen) > 30 // step and seen == sorted(seen) and not seen[0] and seen[-1]
    assert left == there  # the next writer removed what the killed ones left


def written(path):
    atomic.write(path, lambda file: file.write(NEW))


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "target"
    path.write_bytes(OLD)
    return path


@contextmanager
def no_room():
    """Files cannot grow beyond a few bytes, as on a full disk.

    Nor can the one that pytest may print to: no longer than the writer runs.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def full_disk_writers():
    def table(path):
        from mlx_recurrent.benchmarks import report
        from test_benchmarks import synthetic

        report.write_csv(synthetic(), path)

    def page(path):
        from mlx_recurrent.benchmarks import report
        from test_benchmarks import synthetic

        report.write_markdown(synthetic(), path, None)

    def picture(path):
        pytest.importorskip("matplotlib", reason="matplotlib is not installed")
        from mlx_recurrent.benchmarks import picture
        from test_benchmarks import synthetic

        picture.draw(synthetic(), path)

    def model(path):
        pytest.importorskip("onnx", reason="onnx is not installed")
        from mlx_recurrent.interop import to_onnx

        to_onnx(RNN(3, 4), path)

    return {
        "content": written,
        "layer.safetensors": lambda path: weights.write(RNN(3, 4), path),
        "layer.onnx": model,
        "table.csv": table,
        "page.md": page,
        "picture.png": picture,
    }


@pytest.mark.parametrize("name", full_disk_writers())
def test_full_disk(name, tmp_path):
    path, writer = tmp_path / name, full_disk_writers()[name]
    writer(path)
    path.write_bytes(OLD)
    with no_room(), pytest.raises(OSError) as raised:
        writer(path)
    assert raised.value.errno == errno.EFBIG and raised.value.filename == str(path)
    assert path.read_bytes() == OLD and list(tmp_path.iterdir()) == [path]


def test_a_writer_that_fails_leaves_the_old_file(target):
    def fails(file):
        file.write(NEW)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic.write(target, fails)
    assert target.read_bytes() == OLD and list(target.parent.iterdir()) == [target]


def test_writers_at_once(target):
    """Each file is one writer's, whole, and none removes another's."""
    contents = [bytes([i]) * 100_000 for i in range(8)]
    wrong = []

    def write(content):
        try:
            for _ in range(20):
                atomic.write(target, lambda file: [file.write(content)])
                if target.read_bytes() not in contents:
                    wrong.append("torn")
        except OSError as error:
            wrong.append(error)

    threads = [threading.Thread(target=write, args=[c]) for c in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and list(target.parent.iterdir()) == [target]


def test_files_of_others_stay(target):
    others = [".target.tmp", ".target.0123.tmp", f"target.{'0' * 16}.tmp", ".target."]
    for name in others:
        target.with_name(name).write_bytes(OLD)
    written(target)
    assert {p.name for p in target.parent.iterdir()} == {"target", *others}


def test_a_link_stays(target, tmp_path):
    link, dangling = tmp_path / "link", tmp_path / "dangling"
    link.symlink_to("target")
    dangling.symlink_to("new")
    written(link)
    written(dangling)
    assert link.is_symlink() and target.read_bytes() == NEW
    assert dangling.is_symlink() and (tmp_path / "new").read_bytes() == NEW


def test_permissions(target):
    def mode(path):
        return stat.S_IMODE(path.stat().st_mode)

    target.chmod(0o640)
    before = os.umask(0o027)
    try:
        written(target)
        written(target.with_name("new"))
    finally:
        os.umask(before)
    assert (mode(target), mode(target.with_name("new"))) == (0o640, 0o640)
    target.chmod(0o600)
    written(target)
    assert mode(target) == 0o600


def test_without_permission(target, nobody):
    folder = target.parent
    assert refused(target) == errno.EACCES  # root's file, or one that is read-only
    assert refused(folder / "new") == errno.EACCES
    assert target.read_bytes() == OLD and list(folder.iterdir()) == [target]


@pytest.fixture
def nobody(target):
    """A user whom permissions bind: root may write everywhere."""
    target.chmod(0o444)
    target.parent.chmod(0o555)
    for parent in list(target.parents)[1:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)
    target.parent.chmod(0o755)


def refused(path):
    with pytest.raises(OSError) as raised:
        written(path)
    assert raised.value.filename == str(path)
    return raised.value.errno


def test_what_is_no_file(tmp_path):
    assert refused(tmp_path) == errno.EISDIR
    assert refused(tmp_path / "none" / "file") == errno.ENOENT
    assert list(tmp_path.iterdir()) == []
    written(os.devnull)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    atomic.write(tmp_path / "pipe", lambda file: file.write(b"through"))
    assert os.read(reader, 100) == b"through"
    os.close(reader)


def test_the_longest_names(tmp_path):
    for name in ("a" * 255, "\u20ac" * 85, "[a-z]*?.bin", " ", "-"):
        written(tmp_path / name)
        assert (tmp_path / name).read_bytes() == NEW
    assert len(list(tmp_path.iterdir())) == 5


def test_bench_judges_its_files_first(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    with pytest.raises(SystemExit):
        main(["bench", "--picture", str(tmp_path / "picture.txt")])
    assert "argument --picture: must end in one of ." in capsys.readouterr().err


def test_safetensors_that_mlx_writes(tmp_path):
    """Every dtype, no array, no number, no name, and metadata or none."""
    from mlx_recurrent.mlx_faults import safetensors_header

    dtypes = [mx.bool_, mx.uint8, mx.int16, mx.uint32, mx.int64, mx.complex64]
    arrays = {str(d): mx.zeros((2, 3), d) for d in [*dtypes, mx.bfloat16, mx.float32]}
    arrays |= {"": mx.zeros(()), "none": mx.zeros((0, 3)), '\u20ac\\"': mx.ones(1)}
    path = tmp_path / "weights.safetensors"
    for metadata in ({}, {"format": "mlx"}):
        for held in (arrays, {}):
            mx.save_safetensors(str(path), held, metadata)
            with open(path, "rb") as file:
                safetensors_header.judge(file)
                assert file.tell() == 0
