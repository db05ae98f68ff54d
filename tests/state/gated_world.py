"""A world whose canaries have gates: a webhook that says what a test wants, and Jobs of benches."""

from dataclasses import dataclass, field, replace
from typing import Any

from llmservice.core.failures import ContainerState
from llmservice.core.observed import ApplyError, ChildRef, JobFacts, Observed, PodFacts
from llmservice.core.questions import CallGate, GateAnswer, Question
from tests.state.canary_world import CanaryWorld

APPROVAL = {"name": "approval", "webhook": {"url": "https://approvals.example.com/canary"}}
RELEASE = {"name": "release", "when": "BeforePromotion", "webhook": {"url": "http://release/"}}
SPEED = {
    "name": "speed",
    "bench": {"numPrompts": 50, "minOutputThroughput": 100, "maxP99TtftMilliseconds": 500},
}
FIGURES = {"completed": 50, "output_throughput": 250.0, "p99_ttft_ms": 320.25}


@dataclass
class GatedWorld(CanaryWorld):
    """A service whose canaries have gates."""

    says: Any = 200
    """HTTP status of the webhook; None when it is not to be reached."""
    words: str = "fine with us"
    calls: list[CallGate] = field(default_factory=list)
    benches: dict[str, PodFacts] = field(default_factory=dict)
    """Pods of bench Jobs by the Job's name."""
    jobs: list[str] = field(default_factory=list)
    """Jobs that were ever made."""
    refusals: tuple[ApplyError, ...] = ()

    def observe(self) -> Observed:
        base, pods = super().observe(), tuple(self.benches.values())
        return replace(base, bench_pods=pods, apply_errors=(*base.apply_errors, *self.refusals))

    @property
    def job(self) -> ChildRef | None:
        """The Job that there is."""
        return next((ref for ref in self.children if ref.kind == "Job"), None)

    def end_bench(self, message: str, exit_code: int = 0, **pod: Any) -> None:
        """The bench's container ends like this."""
        name = self.job.name
        ended = ContainerState("bench", False, 0, None, None, "Error", exit_code, message)
        self.benches[name] = replace(self.benches[name], container=ended, running=False, **pod)

    def end_job(self, job: JobFacts) -> None:
        """What the Job's controller says."""
        self.children[self.job] = replace(self.children[self.job], job=job)

    def lose_job(self) -> None:
        """Somebody deletes it."""
        if (ref := self.job) is not None:
            del self.children[ref], self.manifests[ref]
            self.benches.pop(ref.name, None)

    def _run_controllers(self) -> None:
        super()._run_controllers()
        for ref, child in list(self.children.items()):
            if ref.kind == "Job" and child.job is None:
                self.jobs.append(ref.name)
                self.children[ref] = replace(child, job=JobFacts())
                pod = PodFacts(ref.name, ref.name, "", ready=False, created=self.now, running=True)
                self.benches[ref.name] = replace(pod, job=ref.name)

    def _delete(self, ref: ChildRef) -> None:
        self.benches.pop(ref.name, None)
        super()._delete(ref)

    def _say(self, question: Question) -> Any:
        if not isinstance(question, CallGate):
            return super()._say(question)
        self.calls.append(question)
        return GateAnswer(question.trial, self.says, self.words)
