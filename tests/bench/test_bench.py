"""The benchmark itself: it reads the audit log and /proc right, and its counts hold at any size.

No times are asserted here; they belong to docs/performance.md and a quiet machine.
"""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import procfs
from tests.bench.audit import AuditLog, Category, count
from tests.bench.measure import Plan, measure_size
from tests.bench.operator import table

_CHILDREN = 6
_BENCHMARK = """
import pathlib, sys, time, types
from e2e.cluster.processes import ProcessGroup
from tests.bench.subject import Operator
work = pathlib.Path(sys.argv[1])
with ProcessGroup(work) as group:
    group.start("etcd", ["sleep", "1000"])
    operator = Operator(types.SimpleNamespace(
        layout=types.SimpleNamespace(work=work),
        kubeconfig_for=lambda *_: "none",
        pid_of=group.pid_of,
    ))
    operator._command = ["sleep", "1000"]
    with operator:
        print(operator.pid, flush=True)
        time.sleep(1000)
"""


def _line(user: str, verb: str, resource: str, subresource: str = "", second: int = 0) -> str:
    return json.dumps(
        {
            "verb": verb,
            "user": {"username": user},
            "objectRef": {"resource": resource, "subresource": subresource, "name": "x"},
            "responseStatus": {"code": 201},
            "requestReceivedTimestamp": f"2026-01-01T00:00:{second:02}.000000Z",
            "stageTimestamp": f"2026-01-01T00:00:{second:02}.250000Z",
        },
        separators=(",", ":"),
    )


def test_requests_of_one_user_since_a_moment_are_counted(tmp_path: Path) -> None:
    """Neither earlier requests, nor other users', nor a line half written are counted."""
    file = tmp_path / "audit.jsonl"
    file.write_text(_line("me", "patch", "services") + "\n")
    follower = AuditLog(file).follow("me")
    with file.open("a") as log:
        log.write(_line("me", "patch", "services") + "\n")
        log.write(_line("you", "patch", "services") + "\n")
        log.write(_line("me", "patch", "llmservices", "status") + "\n")
        log.write(_line("me", "update", "leases") + "\n")
        log.write(_line("me", "create", "events")[:40])

    requests = follower.poll()

    assert {Category.Child: 1, Category.Status: 1, Category.Lease: 1} == count(requests)
    assert 0.25 == pytest.approx(requests[0].completed - requests[0].received)


def test_a_line_is_counted_once_it_is_whole(tmp_path: Path) -> None:
    """The API server may be caught in the middle of writing one."""
    file = tmp_path / "audit.jsonl"
    line = _line("me", "list", "pods") + "\n"
    file.write_text("")
    follower = AuditLog(file).follow("me")
    file.write_text(line[:60])
    assert [] == follower.poll()
    file.write_text(line)
    assert [Category.List] == [request.category for request in follower.poll()]


def test_a_process_has_used_cpu_and_memory() -> None:
    """What /proc says of ourselves agrees with what the interpreter says."""
    spent = os.times()
    assert spent.user + spent.system == pytest.approx(procfs.cpu_seconds(os.getpid()), abs=0.05)
    assert procfs.peak_rss_mib(os.getpid()) > 5


def test_the_operator_ends_when_the_benchmark_is_killed(tmp_path: Path) -> None:
    """Else it would go on, and disturb what is measured next."""
    command = [sys.executable, "-c", _BENCHMARK, str(tmp_path / "work")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as benchmark:
        assert benchmark.stdout is not None
        operator = os.pidfd_open(int(benchmark.stdout.readline()))
        benchmark.send_signal(signal.SIGKILL)

    try:
        readable, _, _ = select.select([operator], [], [], 20)
        assert readable  # a pidfd is readable once its process has ended
    finally:
        os.close(operator)


@pytest.mark.contract
@pytest.mark.timeout(400)
def test_three_services_cost_their_children_and_status() -> None:
    """Children and status only: no reads, nothing refused, nothing when idle or restarted."""
    figures = measure_size(Plan(services=3, rounds=1, idle_seconds=5, disturb=False))

    (bring_up,) = figures.bring_ups
    assert 3 * _CHILDREN == bring_up.writing.children == bring_up.until_ready[Category.Child]
    assert 0 == bring_up.until_ready[Category.Read] == bring_up.failed
    assert 3 <= bring_up.until_ready[Category.Status] <= 3 * 3
    assert not +figures.idle
    assert not +figures.restart_writes
    assert "| services | 3 |" in table([figures])
