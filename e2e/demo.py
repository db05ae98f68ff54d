"""`python3 -m e2e.demo`: from nothing to a completion, a promoted canary and one turned down.

Whatever is slow is reused: a running cluster, images, an installed chart, a running service. So a
second run takes a minute. `python3 -m e2e.demo down` ends it all. Needs only Python.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable

from e2e import chart
from e2e.canaries import (
    PROMPT,
    WRONG_KNOB,
    is_aborted,
    is_promoted,
    is_routed,
    rollout_of,
    shortened,
)
from e2e.cluster.current import CurrentCluster
from e2e.cluster.paths import REPOSITORY
from e2e.cluster.progress import ClusterError, say, step
from e2e.cluster.provider import Cluster, choose
from e2e.follow import follow, is_settled
from e2e.kubectl import JSON, Kubectl, connect
from e2e.traffic import BrokenAnswerError, Load, complete, reach

NAMESPACE = "llmservice-demo"
NAME = "tiny"
_EXAMPLE = REPOSITORY / "examples" / "tiny-cpu.yaml"
_EXAMPLE_IMAGE = "localhost/llmservice/vllm-cpu:v0.32.0"
_KNOB = "maxNumSeqs"
_KNOB_VALUES = (16, 32)
_PROMPT = "Say something."
_STEPS = [{"weight": 20}, {"weight": 50}]
_ROLLOUT: JSON = shortened("canary-fast.yaml")["rollout"] | {"steps": _STEPS}
_READY_SECONDS = 300
_ROLLOUT_SECONDS = 400


def main() -> int:
    """Run the demo, or end it; 1 and a sentence when something stands in the way."""
    parser = argparse.ArgumentParser(prog="python3 -m e2e.demo", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("up", "down"), default="up")
    words = parser.parse_args()
    try:
        (up if words.command == "up" else down)(choose())
    except (ClusterError, BrokenAnswerError, OSError) as error:
        say(f"the demo stops here: {error}")
        return 1
    return 0


def up(cluster: Cluster) -> None:
    """Everything, in the order in which a newcomer would do it by hand."""
    cluster.up()
    operator, engine = cluster.load("operator"), cluster.load("vllm-cpu")
    router = cluster.load("router")
    kubectl = connect(cluster).within(NAMESPACE)
    with step("installing the chart"):
        chart.install(kubectl, operator, router)
    _serve(kubectl, engine)
    with reach(cluster, kubectl) as gate:
        url = gate.url(NAMESPACE, NAME)
        _ask(url)
        _canaries(kubectl, url)
        _ask(url)
    _explain(kubectl)


def down(cluster: Cluster) -> None:
    """End the cluster; on somebody's cluster, remove what the demo put there."""
    if isinstance(cluster, CurrentCluster):
        kubectl = connect(cluster)
        with step("removing the demo's objects"):
            kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=180s")
            chart.uninstall(kubectl)
    cluster.down()


def _serve(kubectl: Kubectl, engine: str) -> None:
    say(f"applying {_EXAMPLE.relative_to(REPOSITORY)}, and waiting until it serves")
    kubectl.apply(chart.restricted_namespace(NAMESPACE))
    kubectl.apply(_manifest(engine, _knob(kubectl.find(f"llmservice/{NAME}"))))
    follow(kubectl, NAME, is_settled, seconds=_READY_SECONDS)


def _manifest(engine: str, knob: int) -> str:
    """The example as YAML text, with the knob as an earlier run left it."""
    text = _EXAMPLE.read_text().replace(f"{_KNOB}: {_KNOB_VALUES[0]}", f"{_KNOB}: {knob}")
    if engine != _EXAMPLE_IMAGE:
        text = text.replace(_EXAMPLE_IMAGE, engine)
        text = text.replace("imagePullPolicy: Never", "imagePullPolicy: IfNotPresent")
    return text


def _knob(service: JSON | None) -> int:
    value = _KNOB_VALUES[0] if service is None else service["spec"]["engine"].get(_KNOB)
    return value if value in _KNOB_VALUES else _KNOB_VALUES[0]


def _ask(url: str) -> None:
    began = time.monotonic()
    answer = complete(url, NAME, _PROMPT)
    took = time.monotonic() - began
    say(f"POST {url}/v1/chat/completions, answered in {1000 * took:.0f} ms")
    print(f"\n  user:      {_PROMPT}\n  assistant: {answer!r}")
    print("  (a real answer of vLLM; the weights are random, so it means nothing)\n", flush=True)


def _canaries(kubectl: Kubectl, url: str) -> None:
    """A good knob is promoted and a wrong one is turned down, while clients go on asking."""
    say("switching to canary rollouts: two routers come up before the engines")
    kubectl.patch(f"llmservice/{NAME}", {"spec": {"rollout": _ROLLOUT}})
    service = follow(kubectl, NAME, is_routed, seconds=_READY_SECONDS, may_stall=True)
    stable = service["status"]["stableRevision"]
    low, high = _KNOB_VALUES
    value = high if _knob(service) == low else low
    say(f"editing {_KNOB} to {value} while five clients go on asking")
    service = _under_load(kubectl, url, {_KNOB: value}, is_promoted(stable))
    arguments = service["status"]["engine"]["arguments"]
    say(f"promoted; the engine runs with: vllm serve {shlex.join(arguments)}")
    say("now a wrong knob: the engine turns away what it could keep waiting")
    service = _under_load(kubectl, url, WRONG_KNOB, is_aborted)
    say(f"turned down: {rollout_of(service)['message']}")
    say("going back to the words of the stable revision")
    kubectl.patch(f"llmservice/{NAME}", {"spec": {"engine": dict.fromkeys(WRONG_KNOB)}})
    follow(kubectl, NAME, is_settled, seconds=_READY_SECONDS, may_stall=True)


def _under_load(kubectl: Kubectl, url: str, engine: JSON, done: Callable[[JSON], bool]) -> JSON:
    """Change knobs under load and follow the rollout to its end."""
    short = Load(url, NAME, clients=4, tokens=4, prompt=PROMPT, limit_seconds=_ROLLOUT_SECONDS)
    long = Load(url, NAME, clients=1, tokens=600, limit_seconds=_ROLLOUT_SECONDS)

    def remark() -> str:
        answered = len(short.answers) + len(long.answers)
        return f" | {answered} answered, {len(short.failures) + len(long.failures)} failed"

    with short, long:
        kubectl.patch(f"llmservice/{NAME}", {"spec": {"engine": engine}})
        service = follow(
            kubectl, NAME, done, seconds=_ROLLOUT_SECONDS, remark=remark, may_stall=True
        )
    say(f"requests over this rollout, long streams among them{remark()}")
    for failure in [*short.failures, *long.failures][:5]:
        say(f"  failed: {failure.text}")
    return service


def _explain(kubectl: Kubectl) -> None:
    command = f"{kubectl.kubectl} --kubeconfig {kubectl.kubeconfig} -n {NAMESPACE}"
    print(
        f"\nLook around:\n"
        f"  alias k='{command}'\n"
        f"  k get llm                      # the service; `-o wide` says more\n"
        f"  k describe llm {NAME}            # conditions, and what each rollout decided and why\n"
        f"  k get all,controllerrevisions  # what the operator made of it\n"
        f'  k patch llm {NAME} --type merge -p \'{{"spec":{{"replicas":2}}}}\'\n'
        f"  k explain llm.spec.engine      # every knob\n"
        f"Again: make demo. Stop: make demo-down."
    )


if __name__ == "__main__":
    sys.exit(main())
