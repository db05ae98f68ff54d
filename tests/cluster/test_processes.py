"""Daemons of a test run: none may outlive it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.cluster.processes import ProcessGroup, run, wait_until
from e2e.cluster.progress import ClusterError

STARTER = """
import sys, pathlib, time
from e2e.cluster.processes import ProcessGroup
with ProcessGroup(pathlib.Path(sys.argv[1])) as group:
    group.start("sleeper", ["sleep", "1000"])
    print(group.pid_of("sleeper"), flush=True)
    time.sleep(1000)
"""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return " Z " not in Path(f"/proc/{pid}/stat").read_text()


def test_daemons_end_with_the_block(tmp_path):
    """Leaving the block kills every daemon and removes the folder."""
    with ProcessGroup(tmp_path / "work") as group:
        group.start("sleeper", ["sleep", "1000"])
        pid = group.pid_of("sleeper")
        assert is_alive(pid)

    assert not is_alive(pid)
    assert not (tmp_path / "work").exists()


def test_daemons_end_when_their_starter_is_killed(tmp_path):
    """A SIGKILL of the test run leaves neither daemons nor files."""
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, tmp_path / "work"], stdout=subprocess.PIPE, text=True
    )
    with starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        starter.send_signal(signal.SIGKILL)

    wait_until(lambda: not is_alive(pid), what="the daemon's end", seconds=5)
    wait_until(lambda: not (tmp_path / "work").exists(), what="an empty disk", seconds=5)


def test_a_daemon_can_be_replaced(tmp_path):
    """Stopping one daemon leaves the others, and its name can be started again."""
    with ProcessGroup(tmp_path / "work") as group:
        group.start("one", ["sleep", "1000"])
        group.start("two", ["sleep", "1000"])
        first, other = group.pid_of("one"), group.pid_of("two")
        group.stop("one")
        group.start("one", ["sleep", "1000"])

        assert not is_alive(first)
        assert is_alive(other)
        assert is_alive(group.pid_of("one"))


def test_a_daemon_that_ends_is_reported_with_its_last_words(tmp_path):
    """Waiting for a daemon that has died fails at once, and says what it said."""
    with ProcessGroup(tmp_path / "work") as group:
        group.start("broken", ["sh", "-c", "echo no such disk; exit 3"])

        with pytest.raises(ClusterError, match=r"broken ended with 3:\nno such disk"):
            wait_until(lambda: False, what="never", seconds=5, still_alive=group.fail_on_exit)


def test_a_failed_command_is_quoted():
    """The error of a command names it, its status and what it printed."""
    with pytest.raises(ClusterError, match=r"`sh -c .*` ended with 4: too late"):
        run(["sh", "-c", "echo too late >&2; exit 4"])


def test_a_missing_command_is_named():
    """A command that is not installed is an error to read, not a traceback."""
    with pytest.raises(ClusterError, match="no-such-command-here is missing"):
        run(["no-such-command-here"])
