import os
import threading
from typing import ClassVar
from weakref import WeakSet


class Turns:
    """One thread after another. Who waits for a thread that a fork left behind raises.

    A lock alone stays locked in the child: it would wait for ever.
    """

    _all: ClassVar["WeakSet[Turns]"] = WeakSet()

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lost = False
        self._all.add(self)

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            if self._lost:
                raise RuntimeError(
                    "another thread was running this stream when the process was "
                    "forked, and is not there in the child: make a new stream there"
                )
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @classmethod
    def after_fork(cls) -> None:
        """Find out whose turn has been left behind."""
        for turns in cls._all:
            turns._lost = turns._lock.locked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Turns.after_fork)
