"""Which pods are asked, what they may answer, and how long it is believed."""

import asyncio
import gzip
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from llmservice.adapters.gauges import POD_SELECTOR, Gauges, Limits
from llmservice.adapters.projection import identity
from llmservice.adapters.reflector import Reflector
from llmservice.adapters.resources import POD
from llmservice.core.autoscaling.policy import Sample
from llmservice.core.router.report import RouterReport, format_report
from tests.unit.adapters.fake_cluster import FakeCluster
from tests.unit.handlers.fake_time import in_fake_time, now

METRICS = (
    'vllm:num_requests_running{engine="0"} 2.0\n'
    'vllm:num_requests_waiting{engine="0"} 1.0\n'
    'vllm:kv_cache_usage_perc{engine="0"} 0.25\n'
)
SAMPLE = Sample(1, 2, 0.25)
HOST = "127.0.0.1"
LIMITS = Limits(interval=0.02, max_age=30.0, read=0.5)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def a_pod(name, *, component="engine", address=HOST, phase="Running", ready="True", **metadata):
    labels = {
        "app.kubernetes.io/managed-by": "llmservice",
        "app.kubernetes.io/component": component,
        "llmservice.dev/service": "chat",
        "llmservice.dev/revision": "abc",
    }
    return {
        "kind": "Pod",
        "metadata": {
            "namespace": "team",
            "name": name,
            "uid": f"u-{name}",
            "labels": labels,
            **metadata,
        },
        "status": {
            "phase": phase,
            "podIP": address,
            "conditions": [{"type": "Ready", "status": ready}],
        },
    }


class Clock:
    """Stands still unless it is moved."""

    def __init__(self):
        self.now = 5000.0

    def __call__(self):
        return self.now


async def tells(request: web.Request) -> web.StreamResponse:
    return web.Response(
        text=format_report(RouterReport("v1", waiting=4)) if "status" in request.path else METRICS
    )


@asynccontextmanager
async def asking(
    answer: Handler = tells, limits: Limits = LIMITS, clock: Clock | None = None
) -> AsyncIterator[Gauges]:
    """Gauges whose pods, if they are at 127.0.0.1, all answer like this; not running yet."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0).start()
    port = runner.addresses[0][1]
    clock = clock or Clock()
    gauges = Gauges(
        CollectorRegistry(), clock=clock, limits=limits, engine_port=port, agent_port=port
    )
    try:
        yield gauges
    finally:
        await gauges.close()
        await runner.cleanup()


async def run_until(gauges: Gauges, condition: Callable[[], bool]) -> None:
    """Ask pods until something is so."""
    running = asyncio.create_task(gauges.run())
    try:
        async with asyncio.timeout(20):
            while not condition():
                assert not running.done()
                await asyncio.sleep(0.005)
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def ask_once(gauges: Gauges) -> None:
    """Ask every pod once, to the end."""
    async with asyncio.TaskGroup() as questions:
        await gauges._ask_all(questions)


def put(gauges, *pods):
    for pod in pods:
        gauges.put("Pod", pod)


def list_all(gauges, *pods):
    """What a reflector does with its first list."""
    put(gauges, *pods)
    gauges.retain("Pod", None, [identity(pod) for pod in pods], "7")


def samples(gauges, namespace="team"):
    view = gauges.view(namespace)
    return {name: view.sample(engine) for name, engine in view.engines.items()}


# --- which pods -----------------------------------------------------------------------------------


async def test_pods_that_run_are_known():
    """Ready or not; a bench, a stranger, and what has no address or does not run are not."""
    async with asking() as gauges:
        put(
            gauges,
            *(
                a_pod("ready"),
                a_pod("starting", ready="False"),
                a_pod("router", component="router"),
            ),
            *(a_pod("pending", phase="Pending"), a_pod("done", phase="Succeeded")),
            *(a_pod("nowhere", address=""), a_pod("bench", component="bench")),
            *(
                a_pod("stranger", labels={}),
                a_pod("ending", deletionTimestamp="2026-01-31T08:00:00Z"),
            ),
            a_pod("elsewhere", namespace="other"),
        )
        view = gauges.view("team")

        assert {"ready", "starting", "ending"} == view.engines.keys()
        assert ["ready"] == [name for name, each in view.engines.items() if each.serving]
        engine = view.engines["ready"]
        assert ("chat", "abc") == (engine.service, engine.revision)
        assert "engine" == engine.labels["app.kubernetes.io/component"]
        assert ["chat"] == [each.service for each in view.routers]
        assert {"elsewhere"} == gauges.view("other").engines.keys()
        assert not gauges.view("empty").engines


async def test_pods_that_are_gone_are_forgotten():
    """Deleted, ended, or missing from a list of their namespace."""
    async with asking() as gauges:
        elsewhere = a_pod("a", namespace="other")
        put(gauges, a_pod("a"), a_pod("b"), a_pod("c"), a_pod("d"), elsewhere)
        gauges.remove("Pod", a_pod("a"))
        gauges.remove("Pod", a_pod("never"))
        put(gauges, a_pod("b", phase="Failed"))
        gauges.retain("Pod", "team", [identity(a_pod("d"))], "7")
        assert {"d"} == gauges.view("team").engines.keys()
        assert {"a"} == gauges.view("other").engines.keys()

        gauges.retain("Pod", None, [], "8")
        assert not gauges.view("team").engines
        assert not gauges.view("other").engines


async def test_a_reflector_fills_it():
    """By the label that all pods of ours have."""
    cluster = FakeCluster()
    cluster.put(a_pod("a"))
    async with asking() as gauges:
        reflector = Reflector(
            cluster, POD, None, sink=gauges, touched=lambda _: None, label_selector=POD_SELECTOR
        )
        await reflector.relist()
        assert {"a"} == gauges.view("team").engines.keys()


async def test_what_a_pod_told_outlives_its_changes_but_not_the_pod():
    """Labels and readiness change; another uid or address is another engine."""
    async with asking() as gauges:
        put(gauges, a_pod("a"), a_pod("b"), a_pod("c"), a_pod("d"))
        await ask_once(gauges)
        put(
            gauges,
            *(a_pod("a", ready="False"), a_pod("b", uid="new"), a_pod("c", address="127.0.0.9")),
            a_pod("d", component="router"),
        )
        assert {"a": SAMPLE, "b": None, "c": None} == samples(gauges)
        assert not gauges.view("team").engines["a"].ready
        assert [None] == [each.waiting for each in gauges.view("team").routers]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def odd_pods(draw):
    """A pod, some parts of which are anything."""
    pod = a_pod("a", component=draw(st.sampled_from(["engine", "router"])))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from([pod, pod["metadata"], pod["status"]]))
        at = at if isinstance(at, dict) else pod
        at[draw(st.sampled_from([*at, "labels", "podIP", "deletionTimestamp"]))] = draw(JSON)
        pod["metadata"] = pod.get("metadata") if isinstance(pod.get("metadata"), dict) else {}
        pod["status"] = pod.get("status") if isinstance(pod.get("status"), dict) else {}
    if draw(st.booleans()):
        pod[draw(st.sampled_from(["metadata", "status"]))] = draw(JSON)
    return pod


@given(st.lists(odd_pods(), max_size=4))
def test_odd_pods_never_raise(pods):
    """Neither on arrival nor when they are looked at."""

    async def take_in() -> None:
        gauges = Gauges(CollectorRegistry())
        for pod in pods:
            put(gauges, pod)
        for namespace in ("team", ""):
            view = gauges.view(namespace)
            assert all(view.sample(engine) is None for engine in view.engines.values())
        gauges.counts()
        for pod in pods:
            gauges.remove("Pod", pod)
        gauges.retain("Pod", None, [identity(pod) for pod in pods], "")
        await gauges.close()

    asyncio.run(take_in())


# --- what they answer -----------------------------------------------------------------------------


async def test_engines_and_routers_are_asked():
    """Each its own page."""
    paths = []

    async def remembers(request: web.Request) -> web.StreamResponse:
        paths.append(request.path)
        return await tells(request)

    async with asking(remembers) as gauges:
        put(gauges, a_pod("a"), a_pod("r", component="router"))
        await ask_once(gauges)

        assert {"/metrics", "/status"} == {*paths}
        assert {"a": SAMPLE} == samples(gauges)
        assert [4] == [each.waiting for each in gauges.view("team").routers]


async def fails(_: web.Request) -> web.StreamResponse:
    return web.Response(status=500, text=METRICS)


async def leads_away(request: web.Request) -> web.StreamResponse:
    if request.path == "/elsewhere":
        return await tells(request)
    raise web.HTTPTemporaryRedirect("/elsewhere")


async def hangs(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


async def hangs_up(request: web.Request) -> web.StreamResponse:
    request.transport.close()
    return web.Response()


async def is_no_text(_: web.Request) -> web.StreamResponse:
    return web.Response(body=b"\xff\xfe" + METRICS.encode())


async def is_garbage(_: web.Request) -> web.StreamResponse:
    return web.Response(text="vllm:num_requests_running{{{")


async def is_packed(_: web.Request) -> web.StreamResponse:
    packed = gzip.compress(METRICS.encode())
    return web.Response(body=packed, headers={"Content-Encoding": "gzip"})


async def has_no_metrics(_: web.Request) -> web.StreamResponse:
    return web.Response(text='http_requests_total{handler="/v1/completions"} 3.0\n')


async def is_not_a_number(_: web.Request) -> web.StreamResponse:
    return web.Response(text=METRICS.replace("1.0", "NaN"))


async def is_large(_: web.Request) -> web.StreamResponse:
    return web.Response(text=METRICS + "# a comment\n" * (10 << 20 >> 3))


@pytest.mark.parametrize("component", ["engine", "router"])
@pytest.mark.parametrize(
    "answer",
    [
        *(fails, leads_away, hangs, hangs_up, is_no_text, is_garbage, is_packed, has_no_metrics),
        *(is_not_a_number, is_large),
    ],
)
async def test_another_answer_tells_nothing(answer, component):
    """It raises nothing and ends in time."""
    async with asking(answer) as gauges:
        put(gauges, a_pod("a", component=component))
        await ask_once(gauges)
        view = gauges.view("team")

        assert {None} == {
            *(each.sample for each in view.engines.values()),
            *(each.waiting for each in view.routers),
        }
        assert ({component: 1}, {component: 1}) == gauges.counts()


async def test_an_endless_answer_is_cut():
    """The reader hangs up at its limit."""
    sent = 0

    async def is_endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while sent < 256 << 20:
            await response.write(b"# a comment\n" * 4096)
            sent += 12 * 4096
        return response

    async with asking(is_endless, Limits(interval=0.02, read=30.0)) as gauges:
        put(gauges, a_pod("a"))
        await ask_once(gauges)
        assert {"a": None} == samples(gauges)
    assert sent < 64 << 20


@pytest.mark.parametrize("address", ["localhost", "127.0.0.300", "-", "[::1]"])
async def test_no_name_is_looked_up(address):
    """The address of a pod is an IP address, or nothing."""
    async with asking() as gauges:
        put(gauges, a_pod("a", address=address))
        await ask_once(gauges)
        assert {"a": None} == samples(gauges)


# --- how long it is believed ----------------------------------------------------------------------


async def test_an_answer_is_believed_for_a_while():
    """Then it is absent until the next one; other machines' clocks do not matter."""
    clock, silent = Clock(), False

    async def may_fail(request: web.Request) -> web.StreamResponse:
        return await (fails if silent else tells)(request)

    async with asking(may_fail, clock=clock) as gauges:
        put(gauges, a_pod("a"))
        await ask_once(gauges)
        silent = True
        clock.now += 30.0
        await ask_once(gauges)
        assert {"a": SAMPLE} == samples(gauges)
        assert ({"engine": 1}, {"engine": 0}) == gauges.counts()

        clock.now += 0.1
        assert {"a": None} == samples(gauges)
        assert ({"engine": 1}, {"engine": 1}) == gauges.counts()

        silent = False
        await ask_once(gauges)
        assert {"a": SAMPLE} == samples(gauges)


async def test_an_answer_is_as_old_as_its_question():
    """What a slow engine says was true when it was asked, at the latest."""
    clock = Clock()

    async def is_slow(request: web.Request) -> web.StreamResponse:
        clock.now += 1.5
        return await tells(request)

    async with asking(is_slow, clock=clock) as gauges:
        put(gauges, a_pod("a"))
        await ask_once(gauges)
        view = gauges.view("team")
        assert 1.5 == view.now - view.engines["a"].taken


async def test_a_pod_that_changes_while_it_is_asked():
    """Neither the change nor the answer is lost, unless it is another pod by then."""
    changed = False

    async def changes(request: web.Request) -> web.StreamResponse:
        nonlocal changed
        if not changed:
            put(gauges, a_pod("a", ready="False"), a_pod("b", uid="new"))
            changed = True
        return await tells(request)

    async with asking(changes) as gauges:
        put(gauges, a_pod("a"), a_pod("b"))
        asked = [*gauges._all()]
        for target in asked:
            await gauges._ask(target)
        assert {"a": SAMPLE, "b": None} == samples(gauges)
        assert not gauges.view("team").engines["a"].ready


# --- all together ---------------------------------------------------------------------------------


async def test_half_of_the_pods_hang():
    """The others are asked in time, however few may be asked at once."""

    async def says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    limits = Limits(interval=0.05, read=60.0, at_once=4, silent_at_once=1)
    async with asking(limits=limits) as gauges:
        server = await asyncio.start_server(says_nothing, "127.0.0.2", gauges._engine_port)
        try:
            bad = (a_pod(f"bad-{n}", address="127.0.0.2") for n in range(8))
            list_all(gauges, *bad, *(a_pod(f"good-{n}") for n in range(8)))
            for target in gauges._all():
                target.silent = target.address != HOST
            await run_until(
                gauges,
                lambda: all(
                    sample is not None
                    for name, sample in samples(gauges).items()
                    if name.startswith("good")
                ),
            )
            assert ({"engine": 16}, {"engine": 8}) == gauges.counts()
        finally:
            server.close()
            await server.wait_closed()


async def test_few_pods_are_asked_at_once():
    """However long each takes."""
    asked, at_once, most = 0, 0, 0

    async def counts(request: web.Request) -> web.StreamResponse:
        nonlocal asked, at_once, most
        asked += 1
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.1)
        at_once -= 1
        return await tells(request)

    async with asking(counts, Limits(interval=0.02, read=5.0, at_once=3)) as gauges:
        put(gauges, *(a_pod(f"p{n}") for n in range(30)))
        await ask_once(gauges)
        assert 30 == len(samples(gauges)) == asked
    assert 3 == most


async def test_a_pod_is_not_asked_twice_at_once():
    """One that takes longer than the interval is left in peace."""
    asked = 0

    async def takes_long(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.3)
        return await tells(request)

    async with asking(takes_long) as gauges:
        list_all(gauges, a_pod("a"))
        await run_until(gauges, lambda: None not in samples(gauges).values())
        assert asked <= 2


async def test_ready_when_all_pods_have_been_asked():
    """Before that another replica knows more; each namespace counts from its first list."""
    async with asking() as gauges:
        assert gauges.problems()
        assert ("the pods are not known yet",) == gauges.problems()

        await ask_once(gauges)
        assert gauges.problems()

        list_all(gauges, a_pod("a"))
        assert ("not all pods have been asked yet",) == gauges.problems()

        await ask_once(gauges)
        assert {"a": SAMPLE} == samples(gauges)
        assert () == gauges.problems()

        list_all(gauges, a_pod("a"), a_pod("b"))
        assert not gauges.problems()

        gauges.retain("Pod", "other", [], "8")
        assert gauges.problems()
        await ask_once(gauges)
        assert not gauges.problems()


@in_fake_time
async def test_questions_are_spread_over_the_interval():
    """Each pod in a slot of its own; the first round begins with the first list."""
    gauges, asked = Gauges(CollectorRegistry()), defaultdict(list)

    async def ask(target):
        asked[target.who.name].append(now() - listed)
        target.asking = False

    gauges._ask = ask
    running = asyncio.create_task(gauges.run())
    await asyncio.sleep(7)
    listed = now()
    list_all(gauges, *(a_pod(f"p{n}") for n in range(10)))
    await asyncio.sleep(10)
    assert [2] * 10 == [len(moments) for moments in asked.values()]
    for number, moments in enumerate(asked.values()):
        assert [0, 10] == [int((moment - number / 2) * 2) for moment in moments]
    running.cancel()
    await asyncio.wait([running])
    await gauges.close()


async def test_what_it_says_of_itself():
    """How many pods, how many unknown, how long they took."""
    registry = CollectorRegistry()
    gauges = Gauges(registry, clock=Clock(), limits=LIMITS, engine_port=1)
    put(gauges, a_pod("a"))
    await ask_once(gauges)
    await gauges.close()

    def value(name, **labels):
        return registry.get_sample_value(f"llmservice_metrics_{name}", labels)

    assert 1 == value("pods", component="engine")
    assert 1 == value("pods_without_sample", component="engine")
    assert 0 == value("pods", component="router")
    assert 1 == value("scrape_seconds_count", component="engine", result="failed")
    assert generate_latest(registry)


async def test_silence_is_logged_once(caplog):
    """When it begins, and when it ends."""
    caplog.set_level(logging.INFO)
    silent = True

    async def may_fail(request: web.Request) -> web.StreamResponse:
        return await (fails if silent else tells)(request)

    async with asking(may_fail) as gauges:
        put(gauges, a_pod("a"))
        await ask_once(gauges)
        await ask_once(gauges)
        silent = False
        await ask_once(gauges)
        await ask_once(gauges)
    ours = [each.message for each in caplog.records if each.name == "llmservice.adapters.gauges"]
    assert ["engine team/a does not tell: HTTP 500", "engine team/a tells"] == ours
