"""What the machine looks at: facts of one service, already boiled down."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from llmservice.api.v1alpha1 import RolloutSpec
from llmservice.core.rollout import NoRoom


@dataclass(frozen=True, slots=True)
class Verb:
    """What a person asks of the rollout."""

    word: str
    """pause, resume, promote, promote-full, abort or retry."""
    action: str
    """The whole annotation, which tells one asking from another."""


@dataclass(frozen=True, slots=True)
class View:
    """What is known of the service now."""

    now: datetime
    target: str
    """Revision of the newest spec."""
    policy: RolloutSpec
    wanted: int
    """``spec.replicas``."""
    drain_seconds: float
    """How long the pods of a revision get to end what they answer."""
    provision_seconds: float
    """How long a canary's pods get to be ready."""
    ready: Mapping[str, int] = field(default_factory=dict)
    """Ready pods by revision."""
    warm: Mapping[str, int] = field(default_factory=dict)
    """Those of them that have answered a request of ours."""
    warm_problem: str = ""
    routers: str = "the routers"
    """Who gives traffic to revisions, in the plural."""
    behind: str = ""
    """Why not all of them route as this rollout wants; empty when they do."""
    leaving_idle: bool = False
    """The leaving pods and the routers say, and have said for a while, that nothing is left."""
    failure: str = ""
    """What is wrong with the canary's pods that time will not mend."""
    trouble: str = ""
    """What is wrong with them, or was: reason enough where they serve."""
    no_room: NoRoom | None = None
    """The scheduler or a quota leaves a canary's pod without a place."""
    queue: str = ""
    """Whose rollout comes first; empty when it is this one's turn."""
    verb: Verb | None = None
    """Something a person asks that was not acted upon yet."""
    tried_action: str | None = None
    """The annotation as it is now."""

    def ready_of(self, revision: str | None) -> int:
        """Ready pods of a revision."""
        return self.ready.get(revision, 0) if revision else 0
