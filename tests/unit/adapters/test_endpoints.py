"""EndpointSlices as Kubernetes writes them, and as nobody should."""

import pytest

from llmservice.adapters.endpoints import RouteSources
from llmservice.adapters.projection import Identity
from llmservice.core.router.desired import Endpoint, RefusedTraffic


def a_slice(*endpoints: dict, revision: str = "abc", name: str = "one", **fields) -> dict:
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": f"mistral-{revision}"}},
        "addressType": "IPv4",
        "ports": [{"name": "metrics", "port": 9000}, {"name": "http", "port": 8000}],
        "endpoints": list(endpoints),
        **fields,
    }


def at(address: str, **conditions: object) -> dict:
    return {"addresses": [address], "conditions": conditions}


@pytest.fixture
def sources():
    changes = []
    sources = RouteSources("mistral", lambda: changes.append(1))
    sources.changes = changes
    return sources


def ready(*addresses: str) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(address, ready=True) for address in addresses)


def test_ready_engines_are_found_by_track(sources):
    """On the port named http; the order of slices and engines is no matter."""
    sources.put("EndpointSlice", a_slice(at("10.0.0.2", ready=True), at("10.0.0.1", ready=True)))
    sources.put("EndpointSlice", a_slice(at("10.0.0.3", ready=True), revision="def", name="two"))

    assert {
        "abc": ready("10.0.0.1:8000", "10.0.0.2:8000"),
        "def": ready("10.0.0.3:8000"),
    } == sources.endpoints


def test_unready_and_ending_engines_are_left_out(sources):
    """Unknown counts as ready, by the API's own word; a pod that ends may still serve."""
    sources.put(
        "EndpointSlice",
        a_slice(
            at("10.0.0.1"),
            {"addresses": ["10.0.0.2"]},
            at("10.0.0.3", ready=False),
            at("10.0.0.4", ready=False, serving=True, terminating=True),
        ),
    )
    assert {"abc": ready("10.0.0.1:8000", "10.0.0.2:8000")} == sources.endpoints


def test_an_address_in_two_slices_is_one_engine(sources):
    for name in ("one", "two"):
        sources.put("EndpointSlice", a_slice(at("10.0.0.1"), name=name))
    assert {"abc": ready("10.0.0.1:8000")} == sources.endpoints


def test_ipv6_is_written_as_envoy_reads_it(sources):
    sources.put("EndpointSlice", a_slice(at("FD00:0::1"), addressType="IPv6"))
    assert {"abc": ready("[fd00::1]:8000")} == sources.endpoints


@pytest.mark.parametrize(
    "damaged",
    [
        a_slice(at("engine.example.com")),
        a_slice({"addresses": []}, {}, {"addresses": None}),
        a_slice(at("10.0.0.1"), ports=[{"name": "http"}]),
        a_slice(at("10.0.0.1"), ports=[{"name": "http", "port": 1 << 16}]),
        a_slice(at("10.0.0.1"), ports=None),
        a_slice(endpoints=None),
        a_slice(at("10.0.0.1"), metadata={"name": "one"}),
    ],
)
def test_what_cannot_be_read_is_left_out(sources, damaged):
    sources.put("EndpointSlice", damaged)
    assert not any(sources.endpoints.values())


def test_slices_of_other_services_are_left_out(sources):
    """The router's own Service carries the label of the LLMService too."""
    other = a_slice(at("10.0.0.1"))
    other["metadata"]["labels"]["kubernetes.io/service-name"] = "mistral"
    sources.put("EndpointSlice", other)
    assert {} == sources.endpoints


def test_what_is_gone_is_gone(sources):
    """By an event, or because a list no longer has it; each is told."""
    for name in ("one", "two", "three"):
        sources.put("EndpointSlice", a_slice(at("10.0.0.1"), name=name, revision=name))
    sources.remove("EndpointSlice", a_slice(name="one"))
    sources.retain("EndpointSlice", "models", [Identity("models", "two", "", "")], "7")
    assert {"two"} == sources.endpoints.keys()
    assert 5 == len(sources.changes)


def test_orders_are_read_and_judged(sources):
    assert sources.ordered is None
    live = {"metadata": {"name": "mistral-router"}, "data": {"traffic.json": "{"}}
    sources.put("ConfigMap", live)
    assert isinstance(sources.ordered, RefusedTraffic)
    for empty in ({"metadata": live["metadata"]}, {**live, "data": None}):
        sources.put("ConfigMap", empty)
        assert isinstance(sources.ordered, RefusedTraffic)
    sources.remove("ConfigMap", live)
    assert sources.ordered is None
