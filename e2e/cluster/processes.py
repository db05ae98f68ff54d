"""Processes that end when we do, and waiting for what they promise.

`ProcessGroup` is used by everything here that starts daemons outside the node's namespaces. It
knows nothing about Kubernetes.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from .progress import ClusterError

POLL_SECONDS = 0.05
"""Pause between two looks at a condition that nothing announces."""

_LOG_TAIL_BYTES = 3000


_KEEPER = """
cat >/dev/null
exec setsid /bin/sh -c 'kill -KILL "-$1"; rm -rf -- "$2"' sh "$$" "$1"
"""


class ProcessGroup:
    """Daemons that are killed together: on exit, on an exception, and when we are killed.

    The group's first member is a shell that reads a pipe which only this process holds open. When
    this process ends without leaving the `with` block, by SIGKILL for example, the pipe closes and
    the shell kills the group and removes `folder`. A parent-death signal would not do: it fires
    when the *thread* that started the child ends, and tests restart servers from such threads.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._keeper: subprocess.Popen[bytes] | None = None
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", _KEEPER, "keeper", self._folder],
            stdin=subprocess.PIPE,
            process_group=0,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._keeper is None:
            return
        os.killpg(self._keeper.pid, signal.SIGKILL)
        for process in (self._keeper, *self._running.values()):
            process.wait()
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._running.clear()
        self._keeper = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(
        self, name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None
    ) -> None:
        """Start a daemon; its output is appended to `<folder>/<name>.log`."""
        if self._keeper is None:
            raise RuntimeError("the process group is not entered")
        with self.log_of(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                process_group=self._keeper.pid,
            )

    def stop(self, name: str, with_signal: signal.Signals = signal.SIGTERM) -> None:
        """End one daemon and wait until it is gone; SIGKILL after ten seconds."""
        process = self._running.pop(name)
        process.send_signal(with_signal)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def pid_of(self, name: str) -> int:
        """Process id of a running daemon, for reading its CPU time and memory from /proc."""
        return self._running[name].pid

    def log_of(self, name: str) -> Path:
        """The file that holds a daemon's output."""
        return self._folder / f"{name}.log"

    def fail_on_exit(self) -> None:
        """Raise `ClusterError` with the end of its log when a daemon has ended by itself."""
        for name, process in self._running.items():
            if (code := process.poll()) is not None:
                raise ClusterError(f"{name} ended with {code}:\n{tail(self.log_of(name))}")


def wait_until(
    condition: Callable[[], bool],
    *,
    what: str,
    seconds: float,
    still_alive: Callable[[], None] = lambda: None,
) -> None:
    """Return as soon as `condition()` holds; raise `ClusterError` naming `what` after `seconds`.

    `still_alive` is called between looks and may raise to end a wait that has become hopeless.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        still_alive()
        if time.monotonic() > deadline:
            raise ClusterError(f"gave up after {seconds:.0f} s waiting for {what}")
        time.sleep(POLL_SECONDS)


def tail(file: Path) -> str:
    """The last lines of a log, for an error message."""
    if not file.exists():
        return "(no output)"
    return file.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")


def run_logged(command: Sequence[str | Path], log: Path) -> None:
    """Run a long command with its output in `log`; `ClusterError` with the end of it on failure."""
    words = [str(word) for word in command]
    with log.open("wb") as output:
        code = subprocess.run(
            words, stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode
    if code:
        raise ClusterError(
            f"`{words[0]} {words[1]}` ended with {code}; the end of {log}:\n{tail(log)}"
        )


def run(command: Sequence[str | Path], *, text: str | None = None) -> str:
    """Run a command to its end and return its standard output; `ClusterError` when it fails."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError as missing:
        raise ClusterError(f"the command {words[0]} is missing; install it") from missing
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-_LOG_TAIL_BYTES:]
        raise ClusterError(f"`{' '.join(words)[:300]}` ended with {done.returncode}: {said}")
    return done.stdout
