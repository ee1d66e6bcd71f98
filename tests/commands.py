"""Commands that a script of this folder runs, and what they print."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Failure(Exception):
    """A step that failed, with all that it printed."""


def run(*command: object, **environment: object) -> str:
    """What a command prints.

    Args:
        command: Its words.
        environment: Variables beside those of this process.

    Raises:
        Failure: If it fails.
    """
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise Failure(f"{' '.join(map(str, command))}\n{done.stdout}")
    return done.stdout
