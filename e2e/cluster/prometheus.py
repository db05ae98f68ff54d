"""A real Prometheus on loopback, from Debian's package; its targets carry labels of your choice.

with Prometheus({"127.0.0.1:8001": {"namespace": "a", "pod": "b"}}) as prometheus:
    prometheus.ask("up")
"""

import json
import socket
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import prerequisites
from .processes import ProcessGroup, wait_until

_START_SECONDS = 60
_ANSWER_SECONDS = 10


class Prometheus:
    """Scrapes every second; a context manager.

    Args:
        targets: labels by `host:port` or `host:port/path`.
    """

    def __init__(self, targets: Mapping[str, Mapping[str, str]]) -> None:
        self._targets = targets
        self._port = _free_port()
        self._stack = ExitStack()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        prerequisites.install({"prometheus": "prometheus"})
        self._folder = Path(tempfile.mkdtemp(prefix="llmservice-prometheus-"))
        with ExitStack() as stack:
            self._group = stack.enter_context(ProcessGroup(self._folder))
            (self._folder / "prometheus.yml").write_text(json.dumps(self._config()))
            self.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def start(self) -> None:
        """Start it, and again after `stop`; with a moment's patience until it answers."""
        command = [
            "prometheus",
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
        ]
        self._group.start("prometheus", command)
        wait_until(
            self._is_ready,
            what="Prometheus to answer",
            seconds=_START_SECONDS,
            still_alive=self._group.fail_on_exit,
        )

    def stop(self) -> None:
        """From now on it answers nothing."""
        self._group.stop("prometheus")

    def ask(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each element that an instant query finds."""
        words = urllib.parse.urlencode({"query": query})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{words}", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return [(each["metric"], float(each["value"][1])) for each in found["data"]["result"]]

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=_ANSWER_SECONDS):
                return True
        except OSError:
            return False

    def _config(self) -> dict[str, object]:
        groups = []
        for target, labels in self._targets.items():
            host, _, path = target.partition("/")
            place = {"__metrics_path__": f"/{path}"} if path else {}
            groups.append({"targets": [host], "labels": {**place, **labels}})
        return {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": [{"job_name": "engines", "static_configs": groups}],
        }


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
