"""Threads of the kernels and of the program: right results, and nothing hangs.

Each test is a process of its own, which may spoil its affinity and its threads and is
killed if it does not end. No time decides a test otherwise.
"""

import os
import subprocess
import sys
import threading

import pytest

SECONDS = 300  # generous: reached only by what hangs

# `check` runs a layer that the kernels share out, forward and backward, and compares
# with what one thread alone makes of the same inputs. Sums over the batch depend on
# its slices, in their last places.
PRELUDE = """
import os, signal, threading
import mlx.core as mx
import mlx_recurrent
from mlx_recurrent import RNN, get_num_threads, rnn, set_num_threads

mx.set_default_device(mx.cpu)
# By units of each step, and by rows of the batch.
CASES = [
    [0.1 * mx.random.normal(s, key=mx.random.key(i)) for i, s in enumerate(shapes)]
    for shapes in (
        [(1, 40, 64), (512, 64), (512, 512)],
        [(8, 20, 64), (256, 64), (256, 256)],
    )
]

def results(case, stream=None):
    def loss(*arrays):
        return (rnn(*arrays, stream=stream) ** 2).sum(stream=stream)
    with mx.stream(stream or mx.default_stream(mx.cpu)):
        states = rnn(*case, stream=stream)
        gradients = mx.grad(loss, [0, 1, 2])(*case)
        mx.eval(states, gradients)
    return states, gradients

def right(case, expected, stream=None):
    states, gradients = results(case, stream)
    with mx.stream(stream or mx.default_stream(mx.cpu)):
        assert mx.array_equal(states, expected[0]).item()
        for ours, theirs in zip(gradients, expected[1], strict=True):
            difference = mx.abs(ours - theirs).max() / mx.abs(theirs).max()
            assert difference.item() < 1e-5, difference.item()

threads = get_num_threads()
set_num_threads(1)
mx.eval(CASES)
EXPECTED = [results(case) for case in CASES]
set_num_threads(threads)

def check(stream=None):
    for case, expected in zip(CASES, EXPECTED, strict=True):
        right(case, expected, stream)
"""


def run(code, prelude=PRELUDE):
    done = subprocess.run(
        [sys.executable, "-c", prelude + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0 and done.stdout == "done\n", done.stdout


@pytest.mark.parametrize("threads", [1, 2, 3, 5, 64, 1000])
def test_any_number_of_threads(threads):
    run(f"""
set_num_threads({threads})
for _ in range(3):
    check()
print("done")
""")


IN_THREADS = """
failures = []

def work():
    try:
        stream = mx.new_stream(mx.cpu)
        for _ in range(10):
            check(stream)
    except BaseException as error:
        failures.append(error)

workers = [threading.Thread(target=work) for _ in range(8)]
for worker in workers:
    worker.start()
"""


def test_layers_in_many_threads():
    run(f"""
set_num_threads(3)
{IN_THREADS}
for worker in workers:
    worker.join()
assert not failures, failures
print("done")
""")


def test_number_of_threads_changed_during_work():
    run(f"""
{IN_THREADS}
n = 0
while any(worker.is_alive() for worker in workers):
    n += 1
    set_num_threads(1 + n % 7)
    assert 1 <= get_num_threads() <= 7
for worker in workers:
    worker.join()
assert not failures, failures
print("done")
""")


needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="Linux sets affinities"
)


@needs_affinity
@pytest.mark.parametrize("when", ["before", "after"])
def test_one_core(when):
    """Set before the package is loaded it is counted; later threads stay."""
    one = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
    if when == "before":
        run(
            "assert threads == 1\nset_num_threads(3)\ncheck()\nprint('done')",
            one + PRELUDE,
        )
    else:
        run(
            f"set_num_threads(3)\ncheck()\n{one}{IN_THREADS}"
            + """
for worker in workers:
    worker.join()
assert not failures, failures
print("done")
"""
        )


@needs_affinity
def test_cores_busy_with_other_work():
    """Each core has a process that never rests, and more threads than cores wait."""
    cores = sorted(os.sched_getaffinity(0))[:4]
    spin = (
        "import os, sys; os.sched_setaffinity(0, [int(sys.argv[1])])\nwhile True: pass"
    )
    busy = [subprocess.Popen([sys.executable, "-c", spin, str(c)]) for c in cores]
    try:
        run("""
for n in (2, 4):
    set_num_threads(n)
    for _ in range(3):
        check()
print("done")
""")
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_processes_at_once():
    errors = []

    def one():
        try:
            run("set_num_threads(4)\nfor _ in range(10): check()\nprint('done')")
        except BaseException as error:
            errors.append(error)

    runs = [threading.Thread(target=one) for _ in range(4)]
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join()
    assert not errors, errors[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_fork_before_first_use():
    """MLX's streams are threads, so a child works if nothing was evaluated before."""
    prelude = PRELUDE.replace(
        "\nmx.set_default_device",
        """
child = os.fork()
signal.alarm(200)  # ends a child that hangs, which holds the pipe of the output
if child:
    _, status = os.waitpid(child, 0)
    assert status == 0, status
mx.set_default_device""",
    )
    run(
        """
set_num_threads(3)
check()
if child == 0:
    os._exit(0)
print("done")
""",
        prelude,
    )
