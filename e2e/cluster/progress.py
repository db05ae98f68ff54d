"""One voice for everything slow: what is being done and for how long it has been.

Lines go to standard error, so that a command's answer on standard output stays clean.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_STARTED = time.monotonic()


class ClusterError(RuntimeError):
    """Something outside this program stands in the way; the message says what to do about it."""


def say(message: str) -> None:
    """Print `message` behind the seconds since the program started."""
    print(f"[{time.monotonic() - _STARTED:6.1f}s] {message}", file=sys.stderr, flush=True)


@contextmanager
def step(message: str) -> Iterator[None]:
    """Announce a piece of work and, when it took over a second, how long it took."""
    say(f"{message} ...")
    started = time.monotonic()
    yield
    took = time.monotonic() - started
    if took > 1:
        say(f"{message}: done in {took:.1f} s")
