"""Engines of which nothing is there but the gauges that Prometheus scrapes."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from llmservice.core.autoscaling.policy import Sample


class Gauges:
    """Answers `/POD` as the engine in this pod would answer `/metrics`."""

    def __init__(self) -> None:
        self.pods: dict[str, Sequence[Sample]] = {}
        """What each data-parallel rank of a pod says; a pod that is not here does not answer."""
        pods = self.pods

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                ranks = pods.get(self.path.removeprefix("/"))
                self.send_response(404 if ranks is None else 200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(_exposition(ranks or ()).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()

    def targets(self, namespace: str, pods: Sequence[str]) -> dict[str, dict[str, str]]:
        """Where Prometheus finds pods, with the labels that a PodMonitor would attach."""
        place = f"127.0.0.1:{self._server.server_address[1]}"
        return {f"{place}/{pod}": {"namespace": namespace, "pod": pod} for pod in pods}

    def stop(self) -> None:
        """Nobody answers from now on."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def serving_gauges() -> Iterator[Gauges]:
    """Engines of the test's own."""
    gauges = Gauges()
    try:
        yield gauges
    finally:
        gauges.stop()


def _exposition(ranks: Sequence[Sample]) -> str:
    lines = []
    for rank, sample in enumerate(ranks):
        labels = f'{{engine="{rank}",model_name="m",pod="a-label-of-its-own"}}'
        lines += [
            f"vllm:num_requests_waiting{labels} {sample.waiting}",
            f"vllm:num_requests_running{labels} {sample.running}",
            f"vllm:kv_cache_usage_perc{labels} {sample.kv_usage}",
        ]
    return "".join(f"{line}\n" for line in lines)
