"""What the metrics server answers on ``custom.metrics.k8s.io`` and ``external.metrics.k8s.io``.

The HPA asks for a metric of the pods that a label selector chooses, and gets one value for each pod
whose engine was scraped lately. A pod without a fresh sample is left out: the HPA then assumes what
harms least, while a zero would be believed. Two metrics exist, :data:`WAITING_METRIC` and
:data:`LOAD_METRIC` of :mod:`llmservice.core.autoscaling.policy`; the second needs to be told, by a
metric selector ``concurrency=N``, how many requests one replica should carry, so that nothing but
pods has to be read here.

Ages are measured by one monotonic clock, the scraper's own; no other machine's clock is looked at.
:mod:`llmservice.handlers.metrics_api` serves it.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import ceil
from typing import Any

from llmservice.core.autoscaling.policy import (
    CONCURRENCY_LABEL,
    LOAD_METRIC,
    WAITING_METRIC,
    Sample,
    load,
)

CUSTOM_GROUP = "custom.metrics.k8s.io"
EXTERNAL_GROUP = "external.metrics.k8s.io"
VERSIONS = {CUSTOM_GROUP: ("v1beta2", "v1beta1"), EXTERNAL_GROUP: ("v1beta1",)}
"""The versions of each group, the preferred one first."""
METRICS = (WAITING_METRIC, LOAD_METRIC)
ALL_PODS = "*"
"""In place of a pod's name."""
SERVICE, REVISION = "service", "revision"
"""Labels of external metrics."""

Document = dict[str, Any]
"""What is sent, as JSON."""

_BAD_REQUEST, _NOT_FOUND = 400, 404
_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    500: "InternalError",
    503: "ServiceUnavailable",
}
_POSITIVE = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)


class QuestionError(ValueError):
    """A question that has no answer; ``code`` is the HTTP status that says so."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


# --- what is known --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Engine:
    """A running engine pod, and its gauges when they were scraped last."""

    service: str
    revision: str
    labels: Mapping[str, str]
    ready: bool = False
    deleting: bool = False
    sample: Sample | None = None
    """None before the first scrape that brought any."""
    taken: float = 0.0
    """When ``sample`` was asked for, by the scraper's clock; seconds."""

    @property
    def serving(self) -> bool:
        """Whether routers send it requests."""
        return self.ready and not self.deleting


@dataclass(frozen=True, slots=True)
class Router:
    """A running router pod, and how many requests waited in it when it was asked last."""

    service: str
    waiting: int | None = None
    """None before its first answer."""
    taken: float = 0.0
    """When it was asked, by the scraper's clock; seconds."""


@dataclass(frozen=True, slots=True)
class View:
    """All that is known of one namespace."""

    engines: Mapping[str, Engine]
    """By the pod's name."""
    routers: Collection[Router]
    now: float
    """By the scraper's clock; seconds."""
    max_age: float
    """Seconds after which a sample tells nothing any more."""

    def sample(self, engine: Engine) -> Sample | None:
        """The engine's gauges if they are young enough to be believed."""
        return engine.sample if self.now - engine.taken <= self.max_age else None

    def held(self) -> dict[str, tuple[int, float]]:
        """Requests that wait in the routers of each service, and the age of the oldest report.

        A router that does not answer adds nothing: what is known to wait has to count, and that
        nothing is removed meanwhile is what the load is for.
        """
        waiting: Counter[str] = Counter()
        ages: defaultdict[str, float] = defaultdict(float)
        for router in self.routers:
            age = self.now - router.taken
            if router.waiting is not None and age <= self.max_age:
                waiting[router.service] += router.waiting
                ages[router.service] = max(ages[router.service], age)
        return {service: (waiting[service], age) for service, age in ages.items()}

    def serving(self) -> Counter[str]:
        """How many engines of each service get requests."""
        return Counter(engine.service for engine in self.engines.values() if engine.serving)


# --- selectors ------------------------------------------------------------------------------------

_WORD = r"[^\s=!<>(),]"
_REQUIREMENT = re.compile(
    rf"""\s* (?:
        ! \s* (?P<absent> {_WORD}+ )
      | (?P<key> {_WORD}+ ) (?:
            \s* (?P<sign> ==? | != ) \s* (?P<value> {_WORD}* )
          | \s+ (?P<word> in | notin ) \s* \( (?P<values> [^()]* ) \)
        )?
    ) \s* (?P<end> , | $ )""",
    re.VERBOSE,
)
_NAME = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_DNS = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_KEY = re.compile(rf"(?:(?=[^/]{{1,253}}/){_DNS}(?:\.{_DNS})*/)?{_NAME}")
_VALUE = re.compile(rf"(?:{_NAME})?")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One term of a label selector."""

    key: str
    values: frozenset[str] | None
    """What the label may be; None for anything."""
    negated: bool = False

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels meet it."""
        if self.values is None:
            return (self.key in labels) != self.negated
        return (labels.get(self.key) in self.values) != self.negated

    @property
    def only_value(self) -> str | None:
        """The value of an equality."""
        if self.values is None or self.negated or len(self.values) != 1:
            return None
        return next(iter(self.values))


Selector = tuple[Requirement, ...]


def parse_selector(text: str) -> Selector:
    """Read a label selector as Kubernetes writes it in a query; nothing selects everything.

    >>> parse_selector("tier in (a, b), !old")[1]
    Requirement(key='old', values=None, negated=True)

    Raises:
        QuestionError: it is none.
    """
    found: list[Requirement] = []
    at, more = 0, bool(text.strip())
    while more:
        match = _REQUIREMENT.match(text, at)
        if match is None:
            raise _bad_selector(text)
        found.append(_requirement(match, text))
        at, more = match.end(), match["end"] == ","
    return tuple(found)


def _requirement(match: re.Match[str], text: str) -> Requirement:
    key = match["absent"] or match["key"]
    if match["sign"]:
        found = Requirement(key, frozenset({match["value"]}), match["sign"] == "!=")
    elif match["word"]:
        values = frozenset(each.strip() for each in match["values"].split(","))
        found = Requirement(key, values, match["word"] == "notin")
    else:
        found = Requirement(key, None, match["absent"] is not None)
    if not _KEY.fullmatch(key) or not all(map(_VALUE.fullmatch, found.values or ())):
        raise _bad_selector(text)
    return found


def _bad_selector(text: str) -> QuestionError:
    return QuestionError(_BAD_REQUEST, f"{text!r} is no label selector; write it like a=b,c in (d)")


def _matches(selector: Selector, labels: Mapping[str, str]) -> bool:
    return all(each.matches(labels) for each in selector)


# --- metrics --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Metric:
    name: str
    concurrency: str = ""
    """As asked for; empty for a metric that needs none."""


def _metric(name: str, selector: Selector) -> tuple[_Metric, Selector]:
    """The metric, and what its selector asks for beyond the metric's own parameter."""
    if name == WAITING_METRIC:
        return _Metric(name), selector
    if name != LOAD_METRIC:
        raise QuestionError(_NOT_FOUND, f"there is no metric {name!r}, only {', '.join(METRICS)}")
    asked = [each.only_value or "" for each in selector if each.key == CONCURRENCY_LABEL]
    if len(asked) != 1 or not _POSITIVE.fullmatch(asked[0]) or not float(asked[0]) > 0:
        raise QuestionError(
            _BAD_REQUEST,
            f"{name} needs one positive number of requests that a replica should carry, as the"
            f" selector {CONCURRENCY_LABEL}=N of the metric",
        )
    return _Metric(name, asked[0]), tuple(
        each for each in selector if each.key != CONCURRENCY_LABEL
    )


def _reader(view: View, metric: _Metric) -> Callable[[Engine, Sample], float]:
    """What makes the metric of an engine's gauges."""
    if metric.concurrency:
        concurrency = float(metric.concurrency)
        return lambda _, sample: load(sample, concurrency)
    serving = view.serving()
    shares = {service: held / (serving[service] or 1) for service, (held, _) in view.held().items()}
    return lambda engine, sample: (
        sample.waiting + (shares.get(engine.service, 0.0) if engine.serving else 0.0)
    )


def _quantity(value: float) -> str:
    """A Kubernetes quantity, exact to a thousandth."""
    whole, rest = divmod(milli := round(value * 1000), 1000)
    return f"{milli}m" if rest else str(whole)


@lru_cache(maxsize=64)  # a thousand samples have a few dozen ages
def _time(moment: datetime, age: int) -> str:
    return (moment - timedelta(seconds=age)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- custom metrics -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PodsQuestion:
    """``GET .../namespaces/NAMESPACE/pods/POD/METRIC``; the selectors as in the query."""

    version: str
    namespace: str
    pod: str
    """A name, or :data:`ALL_PODS`."""
    metric: str
    label_selector: str = ""
    """Of the pods; no matter if one is named."""
    metric_selector: str = ""


def pods_answer(view: View, question: PodsQuestion, moment: datetime) -> Document:
    """A MetricValueList: an item for each chosen pod whose engine was scraped lately.

    Args:
        view: the namespace.
        question: what is asked.
        moment: the wall time of ``view.now``.

    Raises:
        QuestionError: an unknown version, metric or pod, or a selector that is none.
    """
    if question.version not in VERSIONS[CUSTOM_GROUP]:
        raise QuestionError(_NOT_FOUND, f"there is no version {question.version!r}")
    metric, rest = _metric(question.metric, parse_selector(question.metric_selector))
    if rest:
        raise QuestionError(_BAD_REQUEST, f"{metric.name} has no label {rest[0].key!r}")
    engines, read = _chosen(view, question), _reader(view, metric)
    describe = _describe(question.version, metric)
    items = [
        {
            "describedObject": {
                "kind": "Pod",
                "namespace": question.namespace,
                "name": name,
                "apiVersion": "v1",
            },
            **describe,
            "timestamp": _time(moment, ceil(view.now - engine.taken)),
            "value": _quantity(read(engine, sample)),
        }
        for name, engine in engines.items()
        if (sample := view.sample(engine)) is not None
    ]
    return _list("MetricValueList", CUSTOM_GROUP, question.version, items)


def _chosen(view: View, question: PodsQuestion) -> Mapping[str, Engine]:
    if question.pod != ALL_PODS:
        engine = view.engines.get(question.pod)
        if engine is None:
            raise QuestionError(_NOT_FOUND, f"pods {question.pod!r} not found")
        return {question.pod: engine}
    selector = parse_selector(question.label_selector)
    return {
        name: engine for name, engine in view.engines.items() if _matches(selector, engine.labels)
    }


def _describe(version: str, metric: _Metric) -> Document:
    """What an item says of its metric; the versions differ in nothing else.

    The window is that of a rate; a gauge has none.
    """
    selector = (
        {"matchLabels": {CONCURRENCY_LABEL: metric.concurrency}} if metric.concurrency else None
    )
    if version == "v1beta1":
        return {"metricName": metric.name, "window": 0, "selector": selector}
    return {"metric": {"name": metric.name, "selector": selector}, "windowSeconds": 0}


# --- external metrics -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ExternalQuestion:
    """``GET .../namespaces/NAMESPACE/METRIC``; the selector as in the query.

    It selects by :data:`SERVICE` and :data:`REVISION`, and carries :data:`CONCURRENCY_LABEL`.
    """

    version: str
    metric: str
    label_selector: str = ""


def external_answer(view: View, question: ExternalQuestion, moment: datetime) -> Document:
    """An ExternalMetricValueList: one item with the sum, or none.

    A sum that lacks a part would look like less load. There is none while an engine that gets
    requests has no fresh sample, and nobody scales by it then. What waits in the routers of a
    service without such an engine belongs to the service alone, to none of its revisions.

    Args:
        view: the namespace.
        question: what is asked.
        moment: the wall time of ``view.now``.

    Raises:
        QuestionError: an unknown version or metric, or a selector that is none.
    """
    if question.version not in VERSIONS[EXTERNAL_GROUP]:
        raise QuestionError(_NOT_FOUND, f"there is no version {question.version!r}")
    selector = parse_selector(question.label_selector)
    metric, chosen = _metric(question.metric, selector)
    parts = _parts(view, metric, chosen)
    item = {
        "metricName": metric.name,
        "metricLabels": {each.key: each.only_value for each in selector if each.only_value},
        "timestamp": _time(moment, ceil(max((age for _, age in parts), default=0.0))),
        "window": 0,
        "value": _quantity(sum(value for value, _ in parts)),
    }
    items = [item] if parts else []
    return _list("ExternalMetricValueList", EXTERNAL_GROUP, question.version, items)


def _parts(view: View, metric: _Metric, selector: Selector) -> list[tuple[float, float]]:
    """The values of which the answer is the sum, with their ages; none if one is unknown."""
    read, parts = _reader(view, metric), []
    for engine in view.engines.values():
        labels = {SERVICE: engine.service, REVISION: engine.revision}
        if engine.deleting or not _matches(selector, labels):
            continue
        sample = view.sample(engine)
        if sample is not None:
            parts.append((read(engine, sample), view.now - engine.taken))
        elif engine.serving:
            return []
    if metric.concurrency:
        return parts
    serving = view.serving()
    return parts + [
        (waiting, age)
        for service, (waiting, age) in view.held().items()
        if not serving[service] and _matches(selector, {SERVICE: service})
    ]


# --- documents ------------------------------------------------------------------------------------


def _list(kind: str, group: str, version: str, items: list[Document]) -> Document:
    return {"kind": kind, "apiVersion": f"{group}/{version}", "metadata": {}, "items": items}


def groups_document() -> Document:
    """``/apis``."""
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [*map(_group, VERSIONS)]}


def group_document(group: str) -> Document:
    """``/apis/GROUP``.

    Raises:
        QuestionError: an unknown group.
    """
    if group not in VERSIONS:
        raise QuestionError(_NOT_FOUND, f"there is no group {group!r}")
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(group)}


def resources_document(group: str, version: str) -> Document:
    """``/apis/GROUP/VERSION``.

    Raises:
        QuestionError: an unknown group or version.
    """
    if version not in VERSIONS.get(group, ()):
        raise QuestionError(_NOT_FOUND, f"there is no group version {group}/{version}")
    prefix, kind = (
        ("pods/", "MetricValueList") if group == CUSTOM_GROUP else ("", "ExternalMetricValueList")
    )
    resources = [
        {
            "name": f"{prefix}{metric}",
            "singularName": "",
            "namespaced": True,
            "kind": kind,
            "verbs": ["get"],
        }
        for metric in METRICS
    ]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/{version}",
        "resources": resources,
    }


def _group(group: str) -> Document:
    versions = [
        {"groupVersion": f"{group}/{version}", "version": version} for version in VERSIONS[group]
    ]
    return {"name": group, "versions": versions, "preferredVersion": versions[0]}


def status_document(code: int, message: str) -> Document:
    """The metav1.Status of a failure."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": _REASONS.get(code, ""),
        "code": code,
    }
