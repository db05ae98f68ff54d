"""Puts questions to pods by HTTP.

Engines run the user's image, and any answer may be anything: it is bounded in time and size, no
redirect is followed, and what makes no sense counts as no answer.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, assert_never

import aiohttp

from llmservice.adapters.engine_counts import parse_reading
from llmservice.adapters.engine_metrics import parse_size
from llmservice.adapters.strangers import (
    WORDS_LIMIT,
    fetch_metrics,
    fetch_report,
    one_line,
    open_session,
    pod_url,
    read_body,
    why_silent,
)
from llmservice.api import names
from llmservice.core.decision import MetricsRequest
from llmservice.core.observed import KVCacheSize
from llmservice.core.questions import (
    EngineReading,
    PodQuestion,
    ReadEngine,
    ReadRouter,
    WarmedUp,
    WarmUp,
)
from llmservice.core.router.report import RouterReport

_log = logging.getLogger(__name__)

_SUCCESSES = range(200, 300)
_REFUSALS = range(400, 500)
_COMPLETION_LIMIT = 64 << 10
_WARM_UP_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a pod may take, in seconds."""

    read: float = 2.0
    warm_up: float = 120.0
    """All requests together; the first one after a start may compile kernels."""


class PodQuestions:
    """Asks pods; make it within a running event loop.

    Args:
        engine_port: where engines listen.
        agent_port: where the agents of routers listen.
        limits: how long a pod may take.
    """

    def __init__(
        self,
        *,
        engine_port: int = names.ENGINE_PORT,
        agent_port: int = names.ROUTER_AGENT_PORT,
        limits: Limits | None = None,
    ) -> None:
        self._engine_port = engine_port
        self._agent_port = agent_port
        self._limits = limits or Limits()
        self._session = open_session()

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def answer(
        self, question: PodQuestion | MetricsRequest
    ) -> EngineReading | RouterReport | WarmedUp | KVCacheSize | None:
        """What the pod says; None when it does not, or when that makes no sense."""
        if isinstance(question, WarmUp):
            return await self._warm_up(question)
        try:
            async with asyncio.timeout(self._limits.read):
                content = await self._read(question)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            _log.info("no answer of the pod at %s: %s", question.address, why_silent(error))
            return None
        if content is None:
            _log.info("the pod at %s does not tell: %s", question.address, type(question).__name__)
        return content

    async def _read(
        self, question: ReadEngine | ReadRouter | MetricsRequest
    ) -> EngineReading | RouterReport | KVCacheSize | None:
        match question:
            case ReadEngine():
                return parse_reading(await self._metrics(question.address))
            case MetricsRequest():
                return parse_size(await self._metrics(question.address))
            case ReadRouter():
                return await fetch_report(self._session, question.address, self._agent_port)
            case _:
                assert_never(question)

    async def _metrics(self, address: str) -> str:
        return await fetch_metrics(self._session, address, self._engine_port)

    # --- warming up ---------------------------------------------------------------------------

    async def _warm_up(self, question: WarmUp) -> WarmedUp:
        seconds = self._limits.warm_up
        try:
            async with asyncio.timeout(seconds):
                for _ in range(question.requests):
                    answered = await self._complete(question)
                    if answered is not None:
                        return answered
        except TimeoutError:
            return WarmedUp(f"no answer within {seconds:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return WarmedUp(why_silent(error))
        return WarmedUp()

    async def _complete(self, question: WarmUp) -> WarmedUp | None:
        """One request; None when it went well, and the next one may follow."""
        url = pod_url(question.address, self._engine_port, "/v1/completions")
        body: dict[str, Any] = {
            "model": question.model,
            "prompt": question.prompt,
            "max_tokens": _WARM_UP_TOKENS,
        }
        async with self._session.post(url, json=body, allow_redirects=False) as answer:
            if answer.status in _SUCCESSES:
                await read_body(answer, _COMPLETION_LIMIT)
                return None
            said = one_line((await answer.content.read(WORDS_LIMIT)).decode(errors="replace"))
        if answer.status not in _REFUSALS:
            return WarmedUp(f"HTTP {answer.status}: {said}")
        # A model may only chat or embed, or ask for an API key: nothing of that is its fault.
        _log.info(
            "the engine at %s cannot be warmed up: HTTP %d: %s",
            question.address,
            answer.status,
            said,
        )
        return WarmedUp()
