"""Selectors, values and documents of the metrics APIs."""

import json
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmservice.core.autoscaling.policy import LOAD_METRIC, WAITING_METRIC, Sample
from llmservice.core.metrics_api import (
    CUSTOM_GROUP,
    EXTERNAL_GROUP,
    Engine,
    ExternalQuestion,
    PodsQuestion,
    QuestionError,
    Router,
    View,
    external_answer,
    group_document,
    groups_document,
    parse_selector,
    pods_answer,
    resources_document,
    status_document,
)

MOMENT = datetime(2026, 1, 31, 8, 0, 30, 900000, UTC)
NOW = 1000.0


def an_engine(waiting=0.0, running=0.0, kv_usage=0.0, *, age=0.0, **state):
    facts = {"service": "chat", "revision": "abc", "labels": {"app": "chat"}, "ready": True}
    sample = None if waiting is None else Sample(waiting, running, kv_usage)
    return Engine(**{**facts, **state}, sample=sample, taken=NOW - age)


def a_view(routers=(), max_age=30.0, **engines):
    return View(engines, routers, NOW, max_age)


def a_router(waiting, service="chat", age=0.0):
    return Router(service, waiting, NOW - age)


def ask(view, metric=WAITING_METRIC, **options):
    question = {"version": "v1beta2", "namespace": "team", "pod": "*", "metric": metric, **options}
    return pods_answer(view, PodsQuestion(**question), MOMENT)["items"]


def values(view, metric=WAITING_METRIC, **options):
    found = ask(view, metric, **options)
    return {item["describedObject"]["name"]: item["value"] for item in found}


def load_of(engine, concurrency="70"):
    selector = f"concurrency={concurrency}"
    return values(a_view(a=engine), LOAD_METRIC, metric_selector=selector)["a"]


def total(view, selector="", metric=WAITING_METRIC):
    question = ExternalQuestion("v1beta1", metric, selector)
    found = [item["value"] for item in external_answer(view, question, MOMENT)["items"]]
    assert len(found) <= 1
    return found[0] if found else None


# --- selectors ------------------------------------------------------------------------------------

LABELS = {"app": "chat", "tier": "gold", "llmservice.dev/service": "chat", "empty": ""}


@pytest.mark.parametrize(
    "selector",
    [
        *("", "  ", "app=chat", "app==chat", "app = chat", "app", "!gone", "! gone", "app!=x"),
        *("gone!=x", "app in (chat)", "app in(x, chat )", "app in (x,chat),tier", "gone notin (x)"),
        *("app notin (x,y)", "llmservice.dev/service=chat", "empty=", "empty=,app=chat", "empty"),
        *("empty in ()", "empty in (x,)", "app=chat,tier=gold,!gone", "tier!="),
    ],
)
def test_selectors_that_match(selector):
    """Each operator, white space, and empty values."""
    view = a_view(a=an_engine(labels=LABELS))
    assert {"a": "0"} == values(view, label_selector=selector)


@pytest.mark.parametrize(
    "selector",
    [
        *("app=x", "app==x", "gone", "!app", "app!=chat", "app in (x,y)", "app notin (chat)"),
        *("gone in (chat)", "app=chat,tier=silver", "app=", "gone=", "empty!=", "in in (in)"),
    ],
)
def test_selectors_that_do_not_match(selector):
    """What a pod lacks is equal to nothing, not even to an empty value."""
    view = a_view(a=an_engine(labels=LABELS))
    assert {} == values(view, label_selector=selector)


@pytest.mark.parametrize(
    "selector",
    [
        *(",", "app,", ",app", "app=chat,", "=chat", "!", "!app=chat", "app=a=b", "app==a==b"),
        *("app in chat", "app in (chat", "app in", "app in (a(b))", "app chat", "app notin"),
        *("a/b/c", "/a", "a/", "-a", "a-", "Upper.case/a", "app=-a", "app=ü", "a" * 64, "app>1"),
        *("app=" + "a" * 64, "a" * 254 + "/b", "app in (a b)", "app\x00=a", "a=b;c=d"),
    ],
)
@pytest.mark.parametrize("where", ["label_selector", "metric_selector"])
def test_bad_selectors_are_refused(selector, where):
    """With 400, wherever they stand."""
    with pytest.raises(QuestionError, match="is no label selector") as caught:
        ask(a_view(), **{where: selector})
    assert 400 == caught.value.code


WORDS = st.sampled_from([*"abc=!,() ", "==", "!=", " in ", " notin ", "x.y/z", "\t", "ü", "-"])


@given(st.lists(WORDS, max_size=12).map("".join) | st.text(max_size=40))
def test_any_text_is_a_selector_or_is_refused(text):
    """Nothing else is raised; what is read says the same when it is read again."""
    try:
        selector = parse_selector(text)
    except QuestionError:
        return
    again = ",".join(
        ("!" if each.negated else "") + each.key
        if each.values is None
        else f"{each.key} {'notin' if each.negated else 'in'} ({','.join(each.values)})"
        for each in selector
    )
    assert selector == parse_selector(again)


def test_huge_selector_costs_time_in_proportion():
    """The longest line that the server reads, in the form that makes a search go back."""
    started = time.process_time()
    for text in (
        "a" * 8000 + "!",
        "a" + " " * 8000 + "b",
        "a in (" + "," * 8000,
        "a." * 4000 + "/",
    ):
        with pytest.raises(QuestionError):
            parse_selector(text)
    assert time.process_time() - started < 1


# --- values ---------------------------------------------------------------------------------------


def test_waiting_of_each_pod():
    """Under the name of the pod, in the namespace that was asked for, when it was scraped."""
    view = a_view(a=an_engine(3), b=an_engine(0, age=10.9))

    assert [
        {
            "describedObject": {
                "kind": "Pod",
                "namespace": "team",
                "name": name,
                "apiVersion": "v1",
            },
            "metric": {"name": WAITING_METRIC, "selector": None},
            "windowSeconds": 0,
            "timestamp": time,
            "value": value,
        }
        for name, time, value in (
            ("a", "2026-01-31T08:00:30Z", "3"),
            ("b", "2026-01-31T08:00:19Z", "0"),
        )
    ] == ask(view)


def test_older_version_is_flat():
    """Other keys for the metric, its selector and its window."""
    (item,) = ask(
        a_view(a=an_engine(0, 35)),
        LOAD_METRIC,
        version="v1beta1",
        metric_selector="concurrency=70",
    )

    assert (LOAD_METRIC, 0) == (item["metricName"], item["window"])
    assert {"matchLabels": {"concurrency": "70"}} == item["selector"]
    assert not {"metric", "windowSeconds"} & item.keys()


def test_wall_clock_of_another_zone():
    """Times are in UTC."""
    moment = datetime.fromisoformat("2026-01-31T10:00:00+02:00")
    question = PodsQuestion("v1beta2", "team", "*", WAITING_METRIC)
    (item,) = pods_answer(a_view(a=an_engine()), question, moment)["items"]
    assert "2026-01-31T08:00:00Z" == item["timestamp"]


def test_what_is_old_or_unknown_is_absent():
    """Not zero; and the others are told."""
    view = a_view(
        fresh=an_engine(1, age=30.0),
        old=an_engine(9, age=30.1),
        starting=an_engine(None, ready=False),
    )
    assert {"fresh": "1"} == values(view)
    assert {"fresh"} == set(values(view, LOAD_METRIC, metric_selector="concurrency=1"))


def test_no_pods_no_values():
    """An empty list makes the HPA hold."""
    assert [] == ask(a_view())
    assert [] == ask(a_view(a=an_engine(None)), pod="a")


def test_one_pod_by_name():
    """Labels do not matter then."""
    view = a_view(a=an_engine(1), b=an_engine(2))
    assert {"b": "2"} == values(view, pod="b", label_selector="app=other")


def test_what_waits_in_routers_is_shared_among_engines_that_serve():
    """One that starts or ends has no part of it, but one that tells nothing has."""
    view = a_view(
        [a_router(6), a_router(1), a_router(50, "other"), a_router(90, age=31.0), a_router(None)],
        a=an_engine(2),
        silent=an_engine(None),
        starting=an_engine(1, ready=False),
        ending=an_engine(1, deleting=True),
    )
    assert {"a": "5500m", "starting": "1", "ending": "1"} == values(view)


def test_routers_have_no_part_in_the_load():
    """It is about what an engine does."""
    view = a_view([a_router(70)], a=an_engine(0, 35))
    assert {"a": "667m"} == values(view, LOAD_METRIC, metric_selector="concurrency=70")


@pytest.mark.parametrize(
    ("engine", "concurrency", "expected"),
    [
        (an_engine(0, 70), "70", "1"),
        (an_engine(0, 105), "70", "1500m"),
        (an_engine(0, 0, 0.75), "70", "1500m"),
        (an_engine(0, 56), "22.4", "2500m"),
        (an_engine(), "179", "0"),
    ],
)
def test_load_by_the_concurrency_asked_for(engine, concurrency, expected):
    """The policy's own load; the parameter may be a fraction."""
    assert expected == load_of(engine, concurrency)


@pytest.mark.parametrize(
    "selector",
    [
        *("", "concurrency", "!concurrency", "concurrency=", "concurrency=0", "concurrency=0.0"),
        *("concurrency=-1", "concurrency=many", "concurrency=nan", "concurrency=inf"),
        *("concurrency=1e3", "concurrency=1_0", "concurrency!=5", "concurrency in (1,2)"),
        *("concurrency=1,concurrency=2", "concurrency=5,other=x"),
    ],
)
def test_load_without_its_parameter_is_refused(selector):
    """Or with one that is no positive number, or with more."""
    with pytest.raises(QuestionError) as caught:
        ask(a_view(a=an_engine()), LOAD_METRIC, metric_selector=selector)
    assert 400 == caught.value.code


def test_waiting_takes_no_parameter():
    """Rather than an empty list that nobody can explain."""
    with pytest.raises(QuestionError, match="no label 'model'") as caught:
        ask(a_view(), metric_selector="model=x")
    assert 400 == caught.value.code


@pytest.mark.parametrize(
    "options",
    [{"metric": "vllm:num_requests_running"}, {"version": "v1"}, {"pod": "gone"}, {"metric": "*"}],
)
def test_what_is_not_there(options):
    """404."""
    with pytest.raises(QuestionError) as caught:
        ask(a_view(a=an_engine()), **{"metric": WAITING_METRIC, **options})
    assert 404 == caught.value.code


@given(st.floats(0, 1 << 60), st.integers(0, 1 << 60), st.integers(1, 9))
def test_values_are_quantities(waiting, held, engines):
    """Digits, with an m for thousandths; never an exponent, never more digits than 64 bits hold."""
    view = a_view([a_router(held)], **{f"e{n}": an_engine(waiting) for n in range(engines)})
    for value in values(view).values():
        number = int(value.removesuffix("m"))
        assert not value.endswith("m") or number % 1000
        milli = number if value.endswith("m") else 1000 * number
        assert milli == pytest.approx(1000 * (waiting + held / engines), abs=0.5)


# --- external metrics -----------------------------------------------------------------------------

FLEET = a_view(
    [a_router(4)],
    a=an_engine(1),
    b=an_engine(2, age=20.0),
    canary=an_engine(10, revision="new", ready=False),
    other=an_engine(100, service="other", revision="abc"),
    ending=an_engine(1000, deleting=True),
)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("service=chat", "17"),
        ("service=chat,revision=abc", "7"),
        ("service=chat,revision=new", "10"),
        ("service in (chat,other),revision!=new", "107"),
        ("", "117"),
        ("service=gone", None),
        ("model=x", None),
    ],
)
def test_sum_over_what_is_selected(selector, expected):
    """Engines that will stay, with what waits for them in routers; or no item."""
    assert expected == total(FLEET, selector)


def test_an_external_value():
    """Its labels are what was asked for, its time that of the oldest part."""
    question = ExternalQuestion("v1beta1", WAITING_METRIC, "service=chat,revision in (abc)")
    answer = external_answer(FLEET, question, MOMENT)

    assert "external.metrics.k8s.io/v1beta1" == answer["apiVersion"]
    assert "ExternalMetricValueList" == answer["kind"]
    assert [
        {
            "metricName": WAITING_METRIC,
            "metricLabels": {"service": "chat", "revision": "abc"},
            "timestamp": "2026-01-31T08:00:10Z",
            "window": 0,
            "value": "7",
        }
    ] == answer["items"]


def test_external_load():
    """Its parameter stands among the labels, and selects nothing."""
    view = a_view([a_router(9)], a=an_engine(0, 105), b=an_engine(0, 70))
    assert "2500m" == total(view, "service=chat,concurrency=70", LOAD_METRIC)
    with pytest.raises(QuestionError, match="concurrency=N"):
        total(view, "service=chat", LOAD_METRIC)


def test_a_sum_that_lacks_a_part_is_none():
    """While an engine serves unseen; one that starts or ends may be unseen."""
    seen = {"a": an_engine(5), "starting": an_engine(None, ready=False)}
    assert "5" == total(a_view(**seen, ending=an_engine(None, deleting=True)))
    assert None is total(a_view(**seen, silent=an_engine(9, age=31.0)))
    assert "5" == total(a_view(**seen, silent=an_engine(9, age=31.0, revision="x")), "revision=abc")


def test_requests_that_wait_at_zero():
    """They belong to the service; that none wait is known as well, if a router says so."""
    asleep = a_view([a_router(3), a_router(4, age=7.0)])
    assert "7" == total(asleep, "service=chat")
    assert None is total(asleep, "service=chat,revision=abc")
    assert "7" == total(a_view([a_router(7)], a=an_engine(None, ready=False)), "service=chat")
    assert "0" == total(a_view([a_router(0)]), "service=chat")
    assert None is total(a_view([a_router(0, age=31.0)]), "service=chat")


@pytest.mark.parametrize(("version", "metric"), [("v1beta2", WAITING_METRIC), ("v1beta1", "x")])
def test_external_metrics_that_are_not_there(version, metric):
    """404."""
    with pytest.raises(QuestionError) as caught:
        external_answer(FLEET, ExternalQuestion(version, metric), MOMENT)
    assert 404 == caught.value.code


# --- documents ------------------------------------------------------------------------------------


def test_groups_and_their_versions():
    """The newer one is preferred."""
    groups = {group["name"]: group for group in groups_document()["groups"]}

    custom = groups[CUSTOM_GROUP]
    assert {"v1beta1", "v1beta2"} == {each["version"] for each in custom["versions"]}
    assert f"{CUSTOM_GROUP}/v1beta2" == custom["preferredVersion"]["groupVersion"]
    assert ["v1beta1"] == [each["version"] for each in groups[EXTERNAL_GROUP]["versions"]]
    assert custom.items() <= group_document(CUSTOM_GROUP).items()


@pytest.mark.parametrize(
    ("group", "version", "prefix", "kind"),
    [
        (CUSTOM_GROUP, "v1beta2", "pods/", "MetricValueList"),
        (CUSTOM_GROUP, "v1beta1", "pods/", "MetricValueList"),
        (EXTERNAL_GROUP, "v1beta1", "", "ExternalMetricValueList"),
    ],
)
def test_resources(group, version, prefix, kind):
    """Both metrics, to be read only."""
    document = resources_document(group, version)

    assert ("APIResourceList", f"{group}/{version}") == (document["kind"], document["groupVersion"])
    assert [prefix + WAITING_METRIC, prefix + LOAD_METRIC] == [
        each["name"] for each in document["resources"]
    ]
    for each in document["resources"]:
        assert ({"get"}, True, kind) == ({*each["verbs"]}, each["namespaced"], each["kind"])


def test_unknown_groups_and_versions():
    """404."""
    for look in (
        lambda: group_document("apps"),
        lambda: resources_document("apps", "v1"),
        lambda: resources_document(EXTERNAL_GROUP, "v1beta2"),
    ):
        with pytest.raises(QuestionError) as caught:
            look()
        assert 404 == caught.value.code


def test_failures_are_statuses():
    """As Kubernetes' clients read them, whatever the code."""
    document = status_document(404, "no such metric")
    assert ("Status", "Failure", "NotFound", 404) == tuple(
        document[key] for key in ("kind", "status", "reason", "code")
    )
    assert "" == json.loads(json.dumps(status_document(418, "")))["reason"]
