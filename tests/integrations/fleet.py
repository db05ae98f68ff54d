"""Engines for the pods of a cluster in which nothing runs: small servers that count as vLLM does.

There is no kubelet, so a faked node says that pods are ready, and their addresses lead nowhere.
This stands in for their network: each ready pod gets a server of its own on this machine, and an
EndpointSlice in which a gateway finds it. Questions of the operator are sent there, too; they go
over HTTP and are read by the operator's own code.
"""

import threading
from bisect import bisect_left
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from socketserver import TCPServer
from typing import Any, Self

from e2e.cluster.control_plane import ControlPlane
from llmservice.adapters.pod_questions import PodQuestions
from llmservice.api import names
from llmservice.core.decision import MetricsRequest
from llmservice.core.judge.counts import VLLM_LATENCY_EDGES, VLLM_TTFT_EDGES
from llmservice.core.questions import PodQuestion
from tests.integrations.conftest import own_address

_POLL_SECONDS = 0.1
_TTFTS = (0.03, 0.03, 0.05, 0.05, 0.07, 0.07, 0.07, 0.2, 0.3, 0.6)
"""Seconds that an engine says its requests took, one after the other; it answers at once."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def server_bind(self) -> None:
        """Without asking for the name of the address, for which some machines wait long."""
        TCPServer.server_bind(self)


class _Engine:
    """A pod's vLLM, as far as the operator and its clients see it."""

    def __init__(self, revision: str, slow: set[str]) -> None:
        self._revision, self._slow = revision, slow
        self._lock = threading.Lock()
        self._ttfts: Counter[float] = Counter()
        engine = self

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # head and body in one packet

            def do_GET(self) -> None:
                self._send(engine.metrics() if self.path == "/metrics" else engine.serve())

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self._send(engine.serve())

            def _send(self, text: str) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self._server = _Server((own_address(), 0), Answer)
        self.address, self.port = self._server.server_address[:2]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def serve(self) -> str:
        """Answer a request, and count it."""
        with self._lock:
            seconds = _TTFTS[self._ttfts.total() % len(_TTFTS)]
            self._ttfts[seconds * (10 if self._revision in self._slow else 1)] += 1
        return f'{{"revision": "{self._revision}"}}'

    def metrics(self) -> str:
        """The metrics that the operator reads, under the names that vLLM gives them."""
        with self._lock:
            ttfts = Counter(self._ttfts)
        lines = [
            "vllm:num_requests_running 0.0",
            "vllm:num_requests_waiting 0.0",
            f'vllm:request_success_total{{finished_reason="stop"}} {ttfts.total()}',
            *_buckets("vllm:time_to_first_token_seconds", VLLM_TTFT_EDGES, ttfts),
            *_buckets("vllm:e2e_request_latency_seconds", VLLM_LATENCY_EDGES, ttfts),
        ]
        return "\n".join(lines) + "\n"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _buckets(name: str, edges: tuple[float, ...], times: Counter[float]) -> list[str]:
    counts = [0] * (len(edges) + 1)
    for seconds, count in times.items():
        counts[bisect_left(edges, seconds)] += count
    ends = (*map(str, edges), "+Inf")
    below = accumulate(counts)
    return [f'{name}_bucket{{le="{end}"}} {total}' for end, total in zip(ends, below, strict=True)]


class Fleet(threading.Thread):
    """The engines of a namespace's ready pods, while the block lasts.

    ``slow`` holds revisions whose first tokens come late from now on.
    """

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        super().__init__(daemon=True)
        self.slow: set[str] = set()
        self._api = plane.api
        self._pods = f"/api/v1/namespaces/{namespace}/pods"
        self._slices = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        self._engines: dict[str, tuple[str, _Engine]] = {}
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()
        for _, engine in self._engines.values():
            engine.stop()

    def run(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            ready = {pod["metadata"]["uid"]: pod for pod in self._ready_pods()}
            for uid in ready.keys() - self._engines.keys():
                self._add(uid, ready[uid]["metadata"])
            for uid in self._engines.keys() - ready.keys():
                self._remove(uid)

    def _ready_pods(self) -> list[Any]:
        return [
            pod
            for pod in self._api.get(self._pods)["items"]
            if "deletionTimestamp" not in pod["metadata"]
            if {"Ready": "True"}.items()
            <= {c["type"]: c["status"] for c in pod["status"].get("conditions", ())}.items()
        ]

    def _add(self, uid: str, metadata: Any) -> None:
        revision = metadata["labels"][names.REVISION_LABEL]
        engine = _Engine(revision, self.slow)
        self._engines[uid] = (metadata["name"], engine)
        service = names.revision_name(metadata["labels"][names.SERVICE_LABEL], revision)
        labels = {"kubernetes.io/service-name": service}
        endpoint = {"addresses": [engine.address], "conditions": {"ready": True}}
        body = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": metadata["name"], "labels": labels},
            "addressType": "IPv4",
            "ports": [{"name": names.ENGINE_PORT_NAME, "port": engine.port}],
            "endpoints": [endpoint],
        }
        self._api.create(self._slices, body)

    def _remove(self, uid: str) -> None:
        name, engine = self._engines.pop(uid)
        self._api.call("DELETE", f"{self._slices}/{name}")
        engine.stop()

    # --- the operator's questions -------------------------------------------------------------

    async def answer(self, question: PodQuestion | MetricsRequest) -> Any:
        """What the pod's engine says."""
        found = self._engines.get(question.pod_uid)
        if found is None:
            return None
        pods = PodQuestions(engine_port=found[1].port)
        try:
            return await pods.answer(replace(question, address=found[1].address))
        finally:
            await pods.close()

    async def close(self) -> None:
        """Nothing is kept open."""
