"""Serves the metrics APIs of Kubernetes over HTTP; who may ask is decided elsewhere.

The API server passes on what the HPA controller, kubectl and others ask. What is answered is
:mod:`llmservice.core.metrics_api`'s business. TLS and the address to listen on are the caller's.
"""

import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Handler

from llmservice.core.metrics_api import (
    CUSTOM_GROUP,
    EXTERNAL_GROUP,
    Document,
    ExternalQuestion,
    PodsQuestion,
    QuestionError,
    View,
    external_answer,
    group_document,
    groups_document,
    pods_answer,
    resources_document,
    status_document,
)

Authorize = Callable[[web.Request], Awaitable[web.Response | None]]
"""Whether a request may be answered: None, or else the refusal."""

_ENCODE = json.JSONEncoder(separators=(",", ":")).encode
_POD = "/namespaces/{namespace}/pods/{pod}/{metric}"
_EXTERNAL = "/namespaces/{namespace}/{metric}"


class MetricsSource(Protocol):
    """What is known of pods; :class:`llmservice.adapters.gauges.Gauges`."""

    def view(self, namespace: str) -> View:
        """All that is known of one namespace, now."""
        ...


def build_application(
    source: MetricsSource, authorize: Authorize, wall_clock: Callable[[], datetime]
) -> web.Application:
    """The application that answers below ``/apis``.

    Args:
        source: what is known of pods.
        authorize: asked before any answer, also to a path that there is not.
        wall_clock: the current time, with its zone.
    """
    answers = _Answers(source, wall_clock)
    application = web.Application(middlewares=[_guard(authorize)])
    for path, handler in {
        "/apis": answers.groups,
        "/apis/{group}": answers.group,
        "/apis/{group}/{version}": answers.resources,
        f"/apis/{CUSTOM_GROUP}/{{version}}{_POD}": answers.pods,
        f"/apis/{EXTERNAL_GROUP}/{{version}}{_EXTERNAL}": answers.external,
    }.items():
        application.router.add_get(path, handler, allow_head=False)
    return application


def status_response(code: int, message: str) -> web.Response:
    """A failure as Kubernetes' clients read it."""
    return _response(status_document(code, message), code)


def _guard(authorize: Authorize) -> Callable[..., Awaitable[web.StreamResponse]]:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        refusal = await authorize(request)
        if refusal is not None:
            return refusal
        try:
            return await handler(request)
        except QuestionError as error:
            return status_response(error.code, str(error))
        except web.HTTPException as error:  # of the router: no such path, or another method
            return status_response(error.status, f"{request.method} {request.path}: {error.reason}")

    return guard


class _Answers:
    def __init__(self, source: MetricsSource, wall_clock: Callable[[], datetime]) -> None:
        self._source = source
        self._wall_clock = wall_clock

    async def groups(self, _: web.Request) -> web.Response:
        return _response(groups_document())

    async def group(self, request: web.Request) -> web.Response:
        return _response(group_document(request.match_info["group"]))

    async def resources(self, request: web.Request) -> web.Response:
        named = request.match_info
        return _response(resources_document(named["group"], named["version"]))

    async def pods(self, request: web.Request) -> web.Response:
        named, query = request.match_info, request.query
        question = PodsQuestion(
            **named,
            label_selector=query.get("labelSelector", ""),
            metric_selector=query.get("metricLabelSelector", ""),
        )
        view = self._source.view(question.namespace)
        return _response(pods_answer(view, question, self._wall_clock()))

    async def external(self, request: web.Request) -> web.Response:
        named = request.match_info
        question = ExternalQuestion(
            named["version"], named["metric"], request.query.get("labelSelector", "")
        )
        view = self._source.view(named["namespace"])
        return _response(external_answer(view, question, self._wall_clock()))


def _response(document: Document, status: int = 200) -> web.Response:
    return web.Response(text=_ENCODE(document), status=status, content_type="application/json")
