"""Requests to a service as its clients send them, and a small steady load that counts failures.

Everything is bounded: each request in time, a load in requests and in time. Every request opens
its own connection, so each of them meets the Service's endpoints as they are at that moment.
"""

import http.client
import json
import re
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from e2e.cluster.local import LocalCluster
from e2e.cluster.progress import ClusterError
from e2e.cluster.provider import Cluster
from e2e.kubectl import Kubectl

_REQUEST_SECONDS = 60
_ENGINE_PORT = 8000
_STREAM_ABOVE_TOKENS = 100
# Services live on this machine or behind `kubectl proxy`: never behind a web proxy.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class BrokenAnswerError(Exception):
    """An answer that is not what was asked for: cut off, empty, or of another model."""


@contextmanager
def reach(cluster: Cluster, kubectl: Kubectl) -> Iterator["Gate"]:
    """A way from this process to the cluster's Services.

    Service addresses of the local cluster are routed to this machine. Elsewhere requests go
    through the API server, which picks a ready endpoint for each, streams included (a port
    forward would stick to one pod and end with it).
    """
    if isinstance(cluster, LocalCluster):
        yield Gate(kubectl, None)
        return
    command = [*kubectl.words(), "proxy", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as proxy:
        try:
            assert proxy.stdout is not None
            found = re.search(r"127\.0\.0\.1:\d+", proxy.stdout.readline())
            if found is None:
                raise ClusterError("`kubectl proxy` does not start")
            yield Gate(kubectl, f"http://{found[0]}")
        finally:
            proxy.terminate()


class Gate:
    """Turns the name of a service into a base URL; see `reach`."""

    def __init__(self, kubectl: Kubectl, proxy: str | None) -> None:
        self._kubectl = kubectl
        self._proxy = proxy

    def url(self, namespace: str, service: str) -> str:
        """Base URL of a service's OpenAI API, without `/v1`."""
        if self._proxy:
            return f"{self._proxy}/api/v1/namespaces/{namespace}/services/{service}:http/proxy"
        spec = self._kubectl.within(namespace).get(f"service/{service}")["spec"]
        return f"http://{spec['clusterIP']}:{spec['ports'][0]['port']}"

    def pod_url(self, namespace: str, pod: str) -> str:
        """Base URL of one engine pod, whether or not it is ready."""
        if self._proxy:
            return f"{self._proxy}/api/v1/namespaces/{namespace}/pods/{pod}:{_ENGINE_PORT}/proxy"
        address = self._kubectl.within(namespace).get(f"pod/{pod}")["status"]["podIP"]
        return f"http://{address}:{_ENGINE_PORT}"


def complete(
    url: str, model: str, prompt: str, tokens: int = 16, *, seconds: float = _REQUEST_SECONDS
) -> str:
    """One chat completion of exactly `tokens` tokens within `seconds`; its text.

    Raises:
        OSError: not accepted: no connection, or an error status.
        BrokenAnswerError: accepted, but cut off or without the completion.
    """
    with _post(url, _question(model, prompt, tokens), seconds) as response:
        answer = json.loads(response.read())
    try:
        if answer["usage"]["completion_tokens"] != tokens or answer["model"] != model:
            raise BrokenAnswerError(str(answer)[:500])
        return str(answer["choices"][0]["message"]["content"])
    except (KeyError, IndexError, TypeError) as error:
        raise BrokenAnswerError(str(answer)[:500]) from error


def stream(url: str, model: str, prompt: str, tokens: int) -> Iterator[str]:
    """The same as a stream: one text per chunk as it arrives.

    Raises:
        OSError: not accepted: no connection, or an error status.
        BrokenAnswerError: the stream was cut off, without its end mark, or short of tokens.
    """
    question = _question(model, prompt, tokens)
    question |= {"stream": True, "stream_options": {"include_usage": True}}
    received, chunks = None, 0
    with _post(url, question, _REQUEST_SECONDS) as response:
        for line in response:
            data = line.decode().strip().removeprefix("data: ")
            if data == "[DONE]":
                break
            if not data:
                continue
            chunk = json.loads(data)
            if usage := chunk.get("usage"):
                received = usage["completion_tokens"]
            chunks += 1
            for choice in chunk.get("choices", ()):
                yield choice["delta"].get("content") or ""
        else:
            raise BrokenAnswerError(f"the stream ended after {chunks} chunks without its end mark")
    if received != tokens:
        raise BrokenAnswerError(f"{received} of {tokens} tokens in {chunks} chunks")


def _question(model: str, prompt: str, tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        # Random weights may say "the end" at any token.
        "ignore_eos": True,
    }


@contextmanager
def _post(url: str, body: dict[str, Any], seconds: float) -> Iterator[http.client.HTTPResponse]:
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with _OPENER.open(request, timeout=seconds) as response:
        try:
            yield response
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise BrokenAnswerError(f"cut off by {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Answer:
    """When a request began and ended, by `time.monotonic`."""

    began: float
    ended: float


@dataclass(frozen=True)
class Failure:
    """When a request began and failed, and how."""

    began: float
    ended: float
    text: str


class Load:
    """A few clients that ask one question after another while the `with` block runs.

    Args:
        url: base URL of the service.
        model: its served name.
        clients: how many ask at a time.
        tokens: length of each answer; over 100 it is streamed.
        pause_seconds: between an answer and the same client's next question.
        limit_seconds: the load ends by then, whatever the block does.
        until_failure: each client ends with its first failure.
        prompt: what is asked; each byte is a token of the tiny models.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        clients: int = 2,
        tokens: int = 8,
        pause_seconds: float = 0.1,
        limit_seconds: float = 300,
        until_failure: bool = False,
        prompt: str = "How are you?",
    ) -> None:
        self._url, self._model, self._tokens = url, model, tokens
        self._pause_seconds = pause_seconds
        self._limit_seconds = limit_seconds
        self._until_failure = until_failure
        self._prompt = prompt
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]
        self.answers: list[Answer] = []
        self.failures: list[Failure] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(timeout=_REQUEST_SECONDS)

    def _ask(self) -> None:
        ends_at = time.monotonic() + self._limit_seconds
        while time.monotonic() < ends_at:
            began = time.monotonic()
            try:
                self._ask_once()
                self.answers.append(Answer(began, time.monotonic()))
            except (OSError, http.client.HTTPException, BrokenAnswerError) as error:
                text = f"{type(error).__name__}: {error}"
                if isinstance(error, urllib.error.HTTPError):
                    text += f": {error.read(300)!r} {dict(error.headers)}"
                text = text[:600]
                self.failures.append(Failure(began, time.monotonic(), text))
                if self._until_failure:
                    return
            if self._end.wait(self._pause_seconds):
                return

    def _ask_once(self) -> None:
        if self._tokens > _STREAM_ABOVE_TOKENS:
            for _ in stream(self._url, self._model, self._prompt, self._tokens):
                pass
        else:
            complete(self._url, self._model, self._prompt, self._tokens)
