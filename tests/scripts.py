"""Python programs of tests, each a process that is killed if it does not end."""

import subprocess
import sys

SECONDS = 300  # generous: reached only by what hangs


def run(*arguments):
    """Run Python with these arguments. The program must print "done", and no more."""
    done = subprocess.run(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0 and done.stdout == "done\n", done.stdout
