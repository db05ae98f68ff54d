"""What the verbs of a rollout say, and when they refuse; the cluster's half is a contract test."""

import subprocess
import sys
from typing import Any

import pytest

from llmservice.api import names
from llmservice.cli import main
from llmservice.cli.rollout import ALLOWED, Entry, Refused, _table, history, promise
from llmservice.core.canary.machine import TRANSITIONS
from llmservice.core.canary.state import AT_REST, Phase

REJECTED = {
    "hash": "bbb",
    "reason": "GuardrailBroken",
    "message": "p95 ttft is 60% worse",
    "time": "2026-01-31T08:00:00Z",
}


def _service(phase: str | None, *, action: str = "", **rollout: Any) -> dict[str, Any]:
    annotations = {names.ROLLOUT_ACTION_ANNOTATION: action} if action else None
    status: dict[str, Any] = {"stableRevision": "aaa", "updatedRevision": "bbb"}
    if phase is not None:
        status["rollout"] = {
            "phase": phase,
            "canaryRevision": "bbb",
            "step": 2,
            "steps": 3,
            "weight": 25,
            "message": "because",
            **rollout,
        }
    return {
        "metadata": {"name": "qwen", "namespace": "team", "annotations": annotations},
        "spec": {"rollout": {"strategy": "Canary"}},
        "status": status,
    }


@pytest.mark.parametrize(
    ("word", "phase", "sentence"),
    [
        (
            "pause",
            "Judging",
            "pauses at step 2 of 3 (25% of the requests); `llmservice resume qwen` goes on",
        ),
        ("resume", "Paused", "goes on from step 2 of 3 (25% of the requests)"),
        (
            "promote",
            "Judging",
            "step 2 of 3 (25% of the requests) counts as passed, whatever the evidence",
        ),
        ("promote", "Baking", "bbb becomes the stable revision now, and the pods of aaa go"),
        ("promote", "Gating", "bbb goes on, whatever its gates say"),
        (
            "promote-full",
            "Provisioning",
            "all requests go to bbb without further steps or judgement",
        ),
        (
            "abort",
            "Settling",
            (
                "all requests go back to aaa, then the pods of bbb stop; it is not tried again"
                " before `llmservice retry qwen` or a change of the spec"
            ),
        ),
    ],
)
def test_a_verb_says_what_will_happen(word: str, phase: str, sentence: str) -> None:
    """One sentence with the place, the revisions, and the way back."""
    assert sentence == promise(_service(phase), word)


def test_retry_is_for_the_newest_revision_when_it_was_turned_down() -> None:
    """Another one that was turned down earlier is no reason to try this one again."""
    turned_down = _service("Aborted", rejected=[REJECTED])
    assert "bbb is tried again from the first step" == promise(turned_down, "retry")

    other = _service("Aborted", rejected=[{**REJECTED, "hash": "ccc"}])
    with pytest.raises(Refused, match="newest revision was not turned down"):
        promise(other, "retry")


@pytest.mark.parametrize(
    ("word", "phase", "words"),
    [
        ("abort", None, "no rollout is under way"),
        ("abort", "Stable", "no rollout is under way"),
        ("retry", "Stable", "no rollout is under way"),
        ("pause", "Paused", "it is paused already: Paused (because)"),
        ("resume", "Judging", "it is not paused: Judging (because)"),
        ("promote", "Warming", "no step is being judged; --full needs none: Warming (because)"),
        (
            "promote-full",
            "Baking",
            "the canary has all requests already; `llmservice promote qwen`",
        ),
        ("retry", "Judging", "nothing was turned down: Judging (because)"),
        ("pause", "Aborting", "the rollout is ending and takes no orders: Aborting (because)"),
        ("promote", "Draining", "the rollout is ending and takes no orders"),
        ("resume", "Aborted", "was aborted (because); `llmservice retry qwen` tries again"),
        ("abort", "Meditating", "the rollout is ending and takes no orders: Meditating"),
    ],
)
def test_a_verb_that_would_change_nothing_is_refused(
    word: str, phase: str | None, words: str
) -> None:
    """The sentence says why, and what helps; also for a phase that only a newer operator knows."""
    with pytest.raises(Refused) as refused:
        promise(_service(phase), word)

    assert words in str(refused.value)


def test_a_service_without_canaries_says_so() -> None:
    """Nobody should wait for a rollout that its strategy does not have."""
    service = _service(None)
    service["spec"] = {}

    with pytest.raises(Refused, match=r"spec\.rollout\.strategy is RollingUpdate"):
        promise(service, "abort")


def test_every_refusal_has_its_words() -> None:
    """In no phase does a verb end without a sentence."""
    for word, allowed in ALLOWED.items():
        for phase in set(Phase) - allowed:
            with pytest.raises(Refused, match=r"\w+ "):
                promise(_service(phase), word)


def test_the_machine_listens_where_the_verbs_say_so() -> None:
    """The phases are those of its table; a word that it would not hear is refused here."""
    heard: dict[str, set[Phase]] = {}
    for row in TRANSITIONS:
        asked = row.when.__name__.partition("_asked_to_")[2].replace("_", "-")
        if asked:
            heard.setdefault(asked, set()).update(row.sources)
    # It would bake anew; `promote` is what ends the wait.
    heard["promote-full"].discard(Phase.Baking)

    assert {word: set(phases) for word, phases in ALLOWED.items()} == heard
    assert all(phases.isdisjoint(AT_REST - {Phase.Aborted}) for phases in ALLOWED.values())


def test_a_word_that_nobody_heard_yet_is_named() -> None:
    """There is room for one; whoever asked before should know that it is gone."""
    waiting = _service("Judging", action="pause/1", handledAction="abort/0")
    assert promise(waiting, "abort").endswith("(instead of pause, which was not carried out yet)")

    heard = _service("Judging", action="pause/1", handledAction="pause/1")
    assert "instead of" not in promise(heard, "abort")


def _revision(number: int, hash_: str, image: str) -> dict[str, Any]:
    containers = [{"name": "proxy", "image": "x"}, {"name": names.ENGINE_CONTAINER, "image": image}]
    return {
        "metadata": {
            "labels": {names.REVISION_LABEL: hash_},
            "creationTimestamp": f"2026-01-0{number}T08:00:00Z",
        },
        "revision": number,
        "data": {"template": {"spec": {"containers": containers}}},
    }


def test_history_tells_what_became_of_each_revision() -> None:
    """Newest first; one whose template is gone is still known by its rejection."""
    gone = {**REJECTED, "hash": "zzz", "reason": "CanaryFailed", "message": "it crashed"}
    service = _service("Judging", rejected=[{**REJECTED, "hash": "ccc"}, gone])
    kept = [
        _revision(1, "ddd", "vllm:1"),
        _revision(3, "ccc", "vllm:3"),
        _revision(4, "bbb", "vllm:4"),
        _revision(2, "aaa", "vllm:2"),
    ]

    assert [
        "NUMBER  REVISION  MADE                  IMAGE   STATE",
        "4       bbb       2026-01-04T08:00:00Z  vllm:4  canary",
        (
            "3       ccc       2026-01-03T08:00:00Z  vllm:3"
            "  rejected: GuardrailBroken: p95 ttft is 60% worse"
        ),
        "2       aaa       2026-01-02T08:00:00Z  vllm:2  stable",
        "1       ddd       2026-01-01T08:00:00Z  vllm:1",
        "        zzz                                     rejected: CanaryFailed: it crashed",
    ] == list(_table(history(service, kept)))


def test_history_without_a_rollout() -> None:
    """A service of another strategy has revisions too; its newest one may not serve yet."""
    assert [
        Entry(2, "bbb", "vllm:2", "2026-01-02T08:00:00Z", "newest"),
        Entry(1, "aaa", "vllm:1", "2026-01-01T08:00:00Z", "stable"),
    ] == history(_service(None), [_revision(1, "aaa", "vllm:1"), _revision(2, "bbb", "vllm:2")])


def test_what_is_no_verb_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """``--full`` belongs to promote alone, and a name is needed."""
    for words in (["abort", "qwen", "--full"], ["pause"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
    capsys.readouterr()


def test_the_kubernetes_client_is_loaded_only_when_it_is_needed() -> None:
    """It takes half a second, and ``validate`` in an editor should not wait for it."""
    script = "import sys, llmservice.cli; sys.exit('kubernetes.client' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
