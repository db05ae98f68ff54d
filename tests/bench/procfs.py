"""CPU time and memory of processes, from /proc: exact on a busy machine, where wall time is not."""

import os
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.bench import audit

_TICKS = os.sysconf("SC_CLK_TCK")
_SAMPLE_SECONDS = 0.1


def cpu_seconds(pid: int) -> float:
    """User and system time a process has spent, all threads; 10 ms exact."""
    # The command's name is in parentheses and may itself hold spaces or parentheses.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    utime, stime = fields[11:13]
    return (int(utime) + int(stime)) / _TICKS


def peak_rss_mib(pid: int) -> float:
    """The most memory a process ever had resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise LookupError(f"process {pid} has no VmHWM; did it end?")


def machine_busy_seconds() -> float:
    """CPU time all processes of the machine have spent, all cores."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _idle, _iowait, interrupts, soft_interrupts = fields[:7]
    return (user + nice + system + interrupts + soft_interrupts) / _TICKS


class CpuTrace:
    """Records a process's CPU time over time, so that it can be asked about any past moment."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._moments: list[float] = []
        self._seconds: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def at(self, moment: float) -> float:
        """CPU seconds spent by ``moment`` (seconds since the epoch), 100 ms exact."""
        index = min(bisect_left(self._moments, moment), len(self._moments) - 1)
        return self._seconds[index]

    def _run(self) -> None:
        while True:
            try:
                seconds = cpu_seconds(self._pid)
            except (FileNotFoundError, ProcessLookupError):
                return
            self._moments.append(audit.now())
            self._seconds.append(seconds)
            if self._stop.wait(_SAMPLE_SECONDS):
                return


@dataclass(frozen=True, slots=True)
class Used:
    """What a :class:`Meter` has measured."""

    cpu_seconds: float
    """By the processes that were named."""
    other_cores: float
    """By everybody else, in the mean: how far a wall time can be trusted."""


class Meter:
    """Measures what some processes use from now on, and what the rest of the machine does."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = list(pids)
        self._since = time.monotonic()
        self._before = self._look()

    def read(self) -> Used:
        """Since the start."""
        ours, everybody = (now - then for now, then in zip(self._look(), self._before, strict=True))
        return Used(ours, (everybody - ours) / (time.monotonic() - self._since))

    def _look(self) -> tuple[float, float]:
        return sum(map(cpu_seconds, self._pids)), machine_busy_seconds()
