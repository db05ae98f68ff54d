"""What a decision asks of pods, of objects that are not watched and of gates, and what came of it.

A reconcile never waits: it asks, and is run again when the answers are there. An answer is kept
until its pod is gone or the same question is answered anew; how old it may be is for the reader to
judge.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from llmservice.core.judge.counts import Counts
from llmservice.core.router.report import RouterReport


@dataclass(frozen=True, slots=True)
class ReadEngine:
    """How busy is this engine, and what has it counted?"""

    pod_uid: str
    address: str
    """IP address of the pod."""


@dataclass(frozen=True, slots=True)
class ReadRouter:
    """Which traffic is in force in this router?"""

    pod_uid: str
    address: str


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Have this engine answer a few requests before it gets real ones."""

    pod_uid: str
    address: str
    model: str
    """Name under which the engine serves."""
    prompt: str
    requests: int


@dataclass(frozen=True, slots=True)
class ReadRoute:
    """What does this HTTPRoute say, and its gateways of it?"""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class ReadScaledObject:
    """What does this ScaledObject say, by which KEDA counts the pods of a revision?"""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class CallGate:
    """Does this program of the user's agree?"""

    name: str
    """Of the gate."""
    url: str
    timeout_seconds: float
    trial: str
    """What it is asked about: a revision, and which trial of it."""
    body: str
    """What it is told, as JSON."""


PodQuestion = ReadEngine | ReadRouter | WarmUp
NamedQuestion = ReadRoute | ReadScaledObject | CallGate
Question = PodQuestion | NamedQuestion
Topic = tuple[type[Question], str]
"""Type of a question, and the uid of the pod or the name of whatever else it is put to."""


def topic_of(question: Question) -> Topic:
    """What tells a question from others of the same service."""
    whom = question.name if isinstance(question, NamedQuestion) else question.pod_uid
    return type(question), whom


@dataclass(frozen=True, slots=True)
class EngineReading:
    """What an engine's metrics say."""

    counts: Counts
    """Since the engine started; ``failed`` holds what the engine itself calls an error."""
    running: int
    waiting: int

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return self.running + self.waiting


@dataclass(frozen=True, slots=True)
class WarmedUp:
    """The engine has answered; ``problem`` says why it did not."""

    problem: str = ""


@dataclass(frozen=True, slots=True)
class RouteReading:
    """The live HTTPRoute; None if there is none."""

    route: dict[str, Any] | None
    problem: str = ""
    """Why routes cannot be read or written as wanted; nothing is written while there is one."""


@dataclass(frozen=True, slots=True)
class ScaledObjectReading:
    """The live ScaledObject; None if there is none."""

    live: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class GateAnswer:
    """What a gate said of a revision."""

    trial: str
    """As it was asked: an answer may be slower than the end of a trial."""
    status: int | None
    """HTTP status; None when it was not reached."""
    said: str
    """The first words of its answer, or why it was not reached."""


Said = EngineReading | RouterReport | WarmedUp | RouteReading | ScaledObjectReading | GateAnswer
"""What is answered to any question."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered, and when; ``content`` is None when nothing was, or it made no sense."""

    at: datetime
    content: Said | None

    def age(self, now: datetime) -> float:
        """Seconds since then."""
        return (now - self.at) / timedelta(seconds=1)
