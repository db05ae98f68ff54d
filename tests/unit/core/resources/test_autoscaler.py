"""What sizes a revision, by provider; and what is deleted when something else counts its pods."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from llmservice.api.v1alpha1 import AutoscalingSpec, parse_spec
from llmservice.core.autoscaling.policy import Bounds
from llmservice.core.autoscaling.scaling import Autoscaled
from llmservice.core.engine import EnginePlan, plan_engine
from llmservice.core.observed import AutoscalerFacts, Child, ChildRef, ServiceKey, ServiceObject
from llmservice.core.resources.autoscaler import (
    AUTOSCALER_KIND,
    SCALED_OBJECT_KIND,
    build_autoscaler,
    hpa_ref,
    load_query,
    unwanted_autoscalers,
)
from llmservice.core.resources.pod import build_pod_template
from llmservice.core.revisions import Revision

SERVICE = ServiceObject(ServiceKey("team-a", "mistral"), "u1", 1, {}, {})
PROMETHEUS = "http://prometheus.monitoring.svc:9090"
ADAPTER = Path(__file__).parents[4] / "examples" / "prometheus-adapter" / "values.yaml"


def a_wish(**changes):
    """What a user asks for."""
    return AutoscalingSpec.model_validate({"minReplicas": 2, "maxReplicas": 9, **changes})


def a_revision():
    """A revision whose engine runs 256 sequences at most."""
    wanted = {"engine": {"maxNumSeqs": 256}, "accelerator": {"resource": "nvidia.com/gpu"}}
    spec = parse_spec({"model": {"id": "a/b"}, **wanted})
    plan = plan_engine("mistral", spec)
    assert isinstance(plan, EnginePlan)
    return Revision("abc", 1, build_pod_template("mistral", "abc", spec, plan), plan.version)


def built(wish=None, share=1.0, cold_start=None, **changes):
    """What sizes the revision."""
    wish = wish or a_wish()
    sized = Autoscaled(Bounds(wish.min_replicas, wish.max_replicas), share)
    return build_autoscaler(SERVICE, wish, a_revision(), sized, cold_start, **changes)


def a_scaled_object(**changes):
    """That of provider KEDA."""
    return built(a_wish(provider="KEDA", prometheusUrl=PROMETHEUS, **changes))


def triggers(scaled_object):
    """Metadata of its triggers by name."""
    return {each["name"]: each["metadata"] for each in scaled_object["spec"]["triggers"]}


def rules():
    """Rules that we ship for Prometheus Adapter, by the metric that each serves."""
    found = yaml.safe_load(ADAPTER.read_text())["rules"]["custom"]
    return {rule["name"]["as"] or rule["seriesQuery"].partition("{")[0]: rule for rule in found}


def a_child(name, controller="u1", kind="LLMService", **changes):
    """A live HPA."""
    child = Child(
        ref=ChildRef(AUTOSCALER_KIND, name),
        uid=f"uid-{name}",
        resource_version="1",
        applied_hash="x",
        owned_fields="{}",
        controller_uid=controller,
        controller_kind=kind,
        autoscaler=AutoscalerFacts(),
    )
    return replace(child, **changes)


def deleted(*children, wanted=()):
    """What is deleted: kind, name and uid."""
    given = {child.ref: child for child in children}
    found = unwanted_autoscalers(SERVICE, wanted, given)
    return [(each.ref.kind, each.ref.name, each.uid) for each in found]


def test_hpa_reads_two_metrics_of_each_pod():
    """What a replica should carry travels in the load metric's selector."""
    spec = built()["spec"]

    assert [
        ("vllm:num_requests_waiting", None, "89600m"),
        ("llmservice:load", {"matchLabels": {"concurrency": "179.2"}}, "1"),
    ] == [
        (
            each["pods"]["metric"]["name"],
            each["pods"]["metric"].get("selector"),
            each["pods"]["target"]["averageValue"],
        )
        for each in spec["metrics"]
    ]
    assert (2, 9) == (spec["minReplicas"], spec["maxReplicas"])


def tolerances(manifest):
    """Of each direction; none where the server is to choose."""
    behavior = manifest["spec"]["behavior"]
    return {name: each["tolerance"] for name, each in behavior.items() if "tolerance" in each}


def test_tolerances_are_those_of_the_simulated_policy_where_the_cluster_has_them():
    """A cluster that was given another default does not change the policy."""
    assert {} == tolerances(built())
    found = tolerances(built(tolerances=True))
    assert {"scaleUp": "100m", "scaleDown": "100m"} == found


def test_keda_s_definition_may_not_know_tolerances():
    """What it knows is no matter of the cluster's version."""
    keda = a_wish(provider="KEDA", prometheusUrl=PROMETHEUS)
    assert built(keda) == built(keda, tolerances=True)


def test_adapter_gets_the_builtin_hpa():
    """Who serves the metrics makes no difference to who reads them."""
    assert built() == built(a_wish(provider="PrometheusAdapter"))


def test_shipped_rules_serve_every_metric_of_the_hpa():
    """Under the name that the HPA asks for, by namespace and pod."""
    wanted = {each["pods"]["metric"]["name"] for each in built()["spec"]["metrics"]}

    assert wanted == rules().keys()
    for rule in rules().values():
        assert rule["resources"]["overrides"] == {
            "namespace": {"resource": "namespace"},
            "pod": {"resource": "pod"},
        }


def test_shipped_rule_is_the_load_of_the_policy():
    """The formula in the file is the one that KEDA is asked with, to the letter."""
    query = rules()["llmservice:load"]["metricsQuery"]

    assert query.endswith(f"->> {load_query('<<$pods>>', '<<$concurrency>>')}")


def test_keda_has_the_same_policy():
    """Bounds and behavior are those of the HPA."""
    hpa, scaled_object = built(), a_scaled_object()

    spec = scaled_object["spec"]
    assert ("keda.sh/v1alpha1", "ScaledObject") == (
        scaled_object["apiVersion"],
        scaled_object["kind"],
    )
    assert hpa["metadata"] == scaled_object["metadata"]
    assert hpa["spec"]["scaleTargetRef"] == spec["scaleTargetRef"]
    assert (2, 9) == (spec["minReplicaCount"], spec["maxReplicaCount"])
    config = spec["advanced"]["horizontalPodAutoscalerConfig"]
    assert {"behavior": hpa["spec"]["behavior"]} == config


def test_keda_asks_for_the_pods_of_the_revision_only():
    """Sums over the pods whose name begins with that of its Deployment, in its namespace."""
    pods = 'namespace="team-a",pod=~"mistral-abc-.+"'

    assert {
        "waiting": f"sum(vllm:num_requests_waiting{{{pods}}})",
        "load": f"sum({load_query(pods, '179.2')})",
    } == {name: each["query"] for name, each in triggers(a_scaled_object()).items()}


def test_keda_targets_are_those_of_the_hpa():
    """So many waiting requests for each replica, and a load of 1."""
    assert {"waiting": "89.6", "load": "1"} == {
        name: each["threshold"] for name, each in triggers(a_scaled_object()).items()
    }
    chosen = triggers(a_scaled_object(waitingPerReplica=30, loadTarget=0.5))
    assert "30" == chosen["waiting"]["threshold"]
    assert "/ 128 >=" in chosen["load"]["query"]


def test_keda_takes_no_answer_for_no_load():
    """An empty answer is an error, and errors keep the pods that there are."""
    scaled_object = a_scaled_object()

    assert {"false"} == {each["ignoreNullValues"] for each in triggers(scaled_object).values()}
    fallback = scaled_object["spec"]["fallback"]
    assert "currentReplicasIfHigher" == fallback["behavior"]
    assert 2 == fallback["replicas"]


def test_address_of_prometheus_may_end_in_a_slash():
    """KEDA puts a path behind it that begins with one."""
    wish = a_wish(provider="KEDA", prometheusUrl=f"{PROMETHEUS}/")

    assert {PROMETHEUS} == {each["serverAddress"] for each in triggers(built(wish)).values()}


def test_kedas_hpa_is_found_by_its_name():
    """It is the one that says how scaling goes."""
    assert ChildRef(AUTOSCALER_KIND, "mistral-abc") == hpa_ref(a_wish(), "mistral", "abc")
    wish = a_wish(provider="KEDA", prometheusUrl=PROMETHEUS)
    assert ChildRef(AUTOSCALER_KIND, "keda-hpa-mistral-abc") == hpa_ref(wish, "mistral", "abc")


def test_wanted_autoscalers_stay():
    """Whether an HPA of ours, or KEDA's of a ScaledObject of ours."""
    ours, kedas = a_child("mistral-abc"), a_child("keda-hpa-mistral-def", "so1", "ScaledObject")
    wanted = {ours.ref, ChildRef(SCALED_OBJECT_KIND, "mistral-def")}

    assert [] == deleted(ours, kedas, wanted=wanted)


def test_unwanted_hpa_goes():
    """One that we made, once."""
    assert [(AUTOSCALER_KIND, "mistral-abc", "uid-mistral-abc")] == deleted(a_child("mistral-abc"))
    assert [] == deleted(a_child("mistral-abc", deleting=True))


def test_unwanted_scaled_object_is_known_by_its_hpa():
    """Nobody watches ScaledObjects, yet one of an earlier life of the operator is found."""
    kedas = a_child("keda-hpa-mistral-abc", "so1", "ScaledObject")

    assert [(SCALED_OBJECT_KIND, "mistral-abc", "so1")] == deleted(kedas)


def test_scaled_object_that_is_known_twice_is_deleted_once():
    """We wrote it, and its HPA is there."""
    ref = ChildRef(SCALED_OBJECT_KIND, "mistral-abc")
    written = a_child("mistral-abc", ref=ref, uid="so1", autoscaler=None)
    kedas = a_child("keda-hpa-mistral-abc", "so1", "ScaledObject")

    assert [(SCALED_OBJECT_KIND, "mistral-abc", "so1")] == deleted(written, kedas)


@pytest.mark.parametrize(
    "child",
    [
        a_child("mine", controller="u2"),
        a_child("mine", controller=None, kind=None),
        a_child("keda-hpa-mine", "so1", "ScaledObject", applied_hash=None),
        a_child("mistral-abc", ref=ChildRef("Deployment", "mistral-abc")),
    ],
    ids=["another service's", "nobody's", "of somebody's ScaledObject", "no autoscaler"],
)
def test_what_others_made_stays(child):
    """Even with our labels on it."""
    assert [] == deleted(child)
