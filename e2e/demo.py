"""`python3 -m e2e.demo`: from nothing to a served completion and a rollout, then what to look at.

Whatever is slow is reused: a running cluster, images, an installed chart, a running service. So a
second run takes a minute. `python3 -m e2e.demo down` ends it all. Needs only Python.
"""

import argparse
import shlex
import sys
import time

from e2e import chart
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
_READY_SECONDS = 300
_DRAIN_SECONDS = 90


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
    kubectl = connect(cluster).within(NAMESPACE)
    with step("installing the chart"):
        chart.install(kubectl, operator)
    _serve(kubectl, engine)
    with reach(cluster, kubectl) as gate:
        url = gate.url(NAMESPACE, NAME)
        _ask(url)
        _edit(kubectl, url)
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


def _edit(kubectl: Kubectl, url: str) -> None:
    """Change a knob under load and follow the rollout until the last old pod is gone."""
    low, high = _KNOB_VALUES
    value = high if _knob(kubectl.get(f"llmservice/{NAME}")) == low else low
    change = {"spec": {"engine": {_KNOB: value}}}
    say(f"editing {_KNOB} to {value} while two clients go on asking")
    with Load(url, NAME) as load:
        kubectl.patch(f"llmservice/{NAME}", change)

        def remark() -> str:
            return f" | {len(load.answers)} requests answered, {len(load.failures)} failed"

        service = follow(kubectl, NAME, is_settled, seconds=_READY_SECONDS, remark=remark)
        say("  the last pod of the old revision finishes its requests and stops")
        _await_drain(kubectl, service["status"]["stableRevision"])
    say(f"rolled out{remark()}")
    for failure in load.failures[:5]:
        say(f"  failed: {failure.text}")
    arguments = service["status"]["engine"]["arguments"]
    say(f"the engine runs with: vllm serve {shlex.join(arguments)}")


def _await_drain(kubectl: Kubectl, revision: str) -> None:
    selector = f"llmservice.dev/service={NAME},llmservice.dev/revision!={revision}"
    wait = ("wait", "pods", "--for=delete", f"--timeout={_DRAIN_SECONDS}s")
    kubectl(*wait, f"--selector={selector}")


def _explain(kubectl: Kubectl) -> None:
    command = f"{kubectl.kubectl} --kubeconfig {kubectl.kubeconfig} -n {NAMESPACE}"
    print(
        f"\nLook around:\n"
        f"  alias k='{command}'\n"
        f"  k get llm                      # the service; `-o wide` says more\n"
        f"  k describe llm {NAME}            # conditions and events\n"
        f"  k get all,controllerrevisions  # what the operator made of it\n"
        f'  k patch llm {NAME} --type merge -p \'{{"spec":{{"replicas":2}}}}\'\n'
        f"  k explain llm.spec.engine      # every knob\n"
        f"Again: make demo. Stop: make demo-down."
    )


if __name__ == "__main__":
    sys.exit(main())
