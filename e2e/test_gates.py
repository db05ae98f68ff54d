"""Gates of canaries: vLLM's own benchmark against their pods, and a program that is asked."""

import json
import textwrap
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from e2e.canaries import is_aborted, is_promoted, is_routed, rollout_of
from e2e.follow import condition, follow
from e2e.kubectl import JSON
from e2e.services import tiny_service, with_spec
from e2e.stage import RESTRICTED, Stage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

_NAME = "gated"
_WEBHOOK = "approvals"
_ROLLOUT: JSON = {
    "strategy": "Canary",
    "steps": [{"weight": 50}],
    "guardrails": [],
    "windowSeconds": 5,
    "settleSeconds": 1,
    "bakeSeconds": 1,
}
"""Only the gates decide, so no clients are needed."""
_BENCH: JSON = {"numPrompts": 12, "inputTokens": 16, "outputTokens": 8, "maxConcurrency": 2}
_PORT = 8000
_SERVER = textwrap.dedent(f"""
    import http.server

    class Handler(http.server.BaseHTTPRequestHandler):
        status, said = 503, "nobody has looked yet"

        def do_POST(self):
            print(self.rfile.read(int(self.headers["Content-Length"])).decode(), flush=True)
            self.send_response(Handler.status)
            self.end_headers()
            self.wfile.write(Handler.said.encode())

        def do_GET(self):
            _, status, said = self.path.split("/")
            Handler.status, Handler.said = int(status), said
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    http.server.HTTPServer(("", {_PORT}), Handler).serve_forever()
""")
"""Answers each POST with the status and the word of the last `GET /STATUS/WORD`."""


@pytest.fixture(scope="module")
def _gated(stage: Stage) -> Iterator[str]:
    stage.kubectl.apply(with_spec(tiny_service(_NAME, stage.engine), rollout=_ROLLOUT))
    yield _NAME
    stage.remove(_NAME)


@pytest.fixture
def gated(stage: Stage, _gated: str) -> str:
    """A service that rolls out by canaries, at rest."""
    follow(stage.kubectl, _gated, is_routed, seconds=240, may_stall=True)
    return _gated


@pytest.fixture(scope="module")
def webhook(stage: Stage) -> Iterator[str]:
    """The address of a program that is asked, inside the cluster."""
    container: JSON = {
        "name": "python",
        "image": stage.engine,
        "command": ["python3", "-c", _SERVER],
        "ports": [{"containerPort": _PORT}],
        "readinessProbe": {"tcpSocket": {"port": _PORT}, "periodSeconds": 1},
        "securityContext": RESTRICTED,
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": _WEBHOOK}}
    stage.kubectl.apply({**pod, "spec": {"containers": [container]}})
    stage.kubectl("wait", f"pod/{_WEBHOOK}", "--for=condition=Ready", "--timeout=60s")
    yield f"http://{stage.kubectl.get(f'pod/{_WEBHOOK}')['status']['podIP']}:{_PORT}/canary"
    stage.kubectl("delete", f"pod/{_WEBHOOK}", "--grace-period=0", "--force")


def test_gates_that_agree_let_a_canary_through(stage: Stage, gated: str, webhook: str) -> None:
    """The benchmark before a client is sent there, the program before the promotion."""
    old = stage.kubectl.get(f"llmservice/{gated}")["status"]["stableRevision"]
    _answer(stage, 503, "wait")
    speed = {"name": "speed", "bench": {**_BENCH, "minOutputThroughput": 0.1}}
    approval = {"name": "approval", "when": "BeforePromotion", "webhook": {"url": webhook}}
    _edit(stage, speed, approval, maxNumSeqs=24)
    service = follow(stage.kubectl, gated, _waits_for("approval"), seconds=300)
    assert rollout_of(service)["weight"] == 100
    agreed = [c for c in rollout_of(service)["checks"] if c["check"] == "gate speed"]
    assert [each["verdict"] for each in agreed] == ["promote"]
    assert "output_throughput is" in agreed[0]["message"]

    _answer(stage, 200, "yes")
    follow(stage.kubectl, gated, is_promoted(old), seconds=120)
    told = json.loads(stage.kubectl("logs", _WEBHOOK).splitlines()[-1])
    assert (gated, "BeforePromotion", 100) == (told["service"], told["phase"], told["weight"])
    assert (old, stage.kubectl.namespace) == (told["stableRevision"], told["namespace"])


def test_a_benchmark_that_misses_its_limit_ends_the_canary(stage: Stage, gated: str) -> None:
    """No engine answers within a microsecond."""
    limits = {"name": "speed", "bench": {**_BENCH, "maxP99TtftMilliseconds": 0.001}}
    _edit(stage, limits, maxNumSeqs=20)
    service = follow(stage.kubectl, gated, is_aborted, seconds=300, may_stall=True)
    assert "gate speed: p99_ttft_ms is" in rollout_of(service)["message"]
    assert rollout_of(service)["reason"] == "GateRefused"
    _revert(stage)


def test_a_program_that_refuses_ends_the_canary(stage: Stage, gated: str, webhook: str) -> None:
    """With its own words."""
    _answer(stage, 403, "not-today")
    _edit(stage, {"name": "approval", "webhook": {"url": webhook}}, maxNumSeqs=28)
    service = follow(stage.kubectl, gated, is_aborted, seconds=240, may_stall=True)
    assert rollout_of(service)["message"] == "gate approval: not-today"
    stalled = condition(service, "Stalled")
    assert stalled is not None
    assert stalled["reason"] == "RolloutAborted"
    _revert(stage)


def _edit(stage: Stage, *gates: JSON, maxNumSeqs: int) -> None:  # noqa: N803 - a field
    spec = {"rollout": {**_ROLLOUT, "gates": list(gates)}, "engine": {"maxNumSeqs": maxNumSeqs}}
    stage.kubectl.patch(f"llmservice/{_NAME}", {"spec": spec})


def _revert(stage: Stage) -> None:
    """Ask for what serves, so that the next test finds nothing under way."""
    service = stage.kubectl.get(f"llmservice/{_NAME}")
    stable = service["status"]["stableRevision"]
    kept = stage.kubectl.get(f"controllerrevision/{_NAME}-{stable}")["data"]["template"]
    words = kept["spec"]["containers"][0]["args"]
    number = int(words[words.index("--max-num-seqs") + 1])
    stage.kubectl.patch(f"llmservice/{_NAME}", {"spec": {"engine": {"maxNumSeqs": number}}})


def _answer(stage: Stage, status: int, word: str) -> None:
    """What the program says from now on."""
    url = f"{stage.gate.pod_url(stage.kubectl.namespace, _WEBHOOK)}/{status}/{word}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(url, timeout=10).close()


def _waits_for(gate: str) -> Callable[[JSON], bool]:
    def waits(service: JSON) -> bool:
        rollout = rollout_of(service)
        return rollout.get("reason") == "GateWait" and f"gate {gate}:" in rollout["message"]

    return waits
