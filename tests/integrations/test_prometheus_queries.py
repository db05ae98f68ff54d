"""What we have Prometheus asked, by KEDA or by Prometheus Adapter, answered by a real Prometheus.

The adapter's Go module cannot be had, so its part is played here: its rules are rendered by Go's
own text/template with the arguments that the adapter gives (`pkg/naming/metrics_query.go`).
"""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from e2e.cluster.paths import REPOSITORY
from e2e.cluster.prometheus import Prometheus
from llmservice.core.autoscaling.policy import Sample, load
from llmservice.core.resources.autoscaler import load_query
from tests.integrations.conftest import eventually
from tests.integrations.gauges import serving_gauges

CONCURRENCY = 70.0
PODS = {
    "mistral-abc-1": [Sample(0, 0, 0)],
    "mistral-abc-2": [Sample(0, 14, 0.1)],
    "mistral-abc-3": [Sample(0, 60, 0.1)],
    "mistral-abc-4": [Sample(3, 70, 0.2)],
    "mistral-abc-5": [Sample(9, 91, 0.1)],
    "mistral-abc-6": [Sample(2, 7, 0.45)],
    "mistral-abc-7": [Sample(5, 7, 0.9)],
    "mistral-abc-8": [Sample(1, 20, 0.1), Sample(4, 30, 0.6)],
}
"""By pod, what each of its ranks says."""
STRANGERS = {
    "mistral-def-1": [Sample(99, 999, 1)],
    "mistral": [Sample(99, 999, 1)],
}
RULES = REPOSITORY / "examples" / "prometheus-adapter" / "values.yaml"
_RENDER = """
package main

import (
    "encoding/json"
    "os"
    "text/template"
)

func main() {
    var given struct {
        Query string
        Values struct {
            Series, LabelMatchers, GroupBy string
            LabelValuesByName map[string]string
        }
    }
    if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil {
        panic(err)
    }
    query := template.Must(template.New("").Delims("<<", ">>").Parse(given.Query))
    if err := query.Execute(os.Stdout, given.Values); err != nil {
        panic(err)
    }
}
"""


@pytest.fixture(scope="module")
def prometheus() -> Iterator[Prometheus]:
    """It has seen every pod."""
    with serving_gauges() as gauges:
        gauges.pods.update({**PODS, **STRANGERS})
        targets = gauges.targets("team-a", [*PODS, *STRANGERS])
        with Prometheus(targets) as found:
            everybody = len(PODS) + len(STRANGERS)
            query = "count(sum by (pod) (vllm:kv_cache_usage_perc))"
            eventually(lambda: [({}, everybody)] == found.ask(query), "every pod to be scraped")
            yield found


def by_pod(answer: list[tuple[dict[str, str], float]]) -> dict[str, float]:
    """Value by pod; no other label is left."""
    assert all({"pod"} == labels.keys() for labels, _ in answer)
    return {labels["pod"]: value for labels, value in answer}


def expected_loads() -> dict[str, float]:
    """What the metrics server would say."""
    return {pod: load(_summed(ranks), CONCURRENCY) for pod, ranks in PODS.items()}


def _summed(ranks: list[Sample]) -> Sample:
    return Sample(
        sum(rank.waiting for rank in ranks),
        sum(rank.running for rank in ranks),
        max(rank.kv_usage for rank in ranks),
    )


def adapted(metric: str, selector: dict[str, str], folder: Path) -> str:
    """The query that Prometheus Adapter makes of a rule for an HPA's question."""
    rules = yaml.safe_load(RULES.read_text())["rules"]["custom"]
    (rule,) = (each for each in rules if _serves(each, metric))
    values = {**selector, "namespace": "team-a", "pod": "|".join(PODS)}
    equal = [f'{name}="{value}"' for name, value in values.items() if name != "pod"]
    given = {
        "Query": rule["metricsQuery"],
        "Values": {
            "Series": rule["seriesQuery"].partition("{")[0],
            "LabelMatchers": ",".join([*equal, f'pod=~"{values["pod"]}"']),
            "GroupBy": "pod",
            "LabelValuesByName": values,
        },
    }
    (folder / "main.go").write_text(_RENDER)
    done = subprocess.run(
        ["go", "run", folder / "main.go"],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def _serves(rule: dict[str, dict[str, str]], metric: str) -> bool:
    """Whether the adapter gives the series of a rule this name."""
    series = str(rule["seriesQuery"]).partition("{")[0]
    name = rule["name"]
    return re.search(name["matches"], series) is not None and metric == (name["as"] or series)


def test_load_is_that_of_the_policy(prometheus: Prometheus) -> None:
    """For each pod, whichever of batch and cache is fuller, over all ranks; of no other pod."""
    query = load_query('namespace="team-a",pod=~"mistral-abc-.+"', f"{CONCURRENCY:g}")

    assert pytest.approx(expected_loads()) == by_pod(prometheus.ask(query))


def test_shipped_rule_serves_the_load(prometheus: Prometheus, tmp_path: Path) -> None:
    """With what a replica should carry from the HPA's selector, which no series has as a label."""
    query = adapted("llmservice:load", {"concurrency": f"{CONCURRENCY:g}"}, tmp_path)

    assert pytest.approx(expected_loads()) == by_pod(prometheus.ask(query))


def test_shipped_rule_serves_the_queue(prometheus: Prometheus, tmp_path: Path) -> None:
    """The sum over a pod's ranks."""
    query = adapted("vllm:num_requests_waiting", {}, tmp_path)

    queues = {pod: _summed(ranks).waiting for pod, ranks in PODS.items()}
    assert queues == by_pod(prometheus.ask(query))


def test_shipped_rules_find_their_series(prometheus: Prometheus) -> None:
    """The adapter serves a metric only once its series query found something."""
    for rule in yaml.safe_load(RULES.read_text())["rules"]["custom"]:
        assert prometheus.ask(rule["seriesQuery"])
