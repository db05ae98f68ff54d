"""What a person says to a canary rollout, and the history of a service's revisions.

``pause``, ``resume``, ``promote``, ``abort`` and ``retry`` write one annotation, with the rights of
whoever runs them; the operator carries each value out once. Said and not done would be worse than
refused, so a word that the rollout would not listen to now is refused with the reason.

Exit codes: 0 it was asked for; 1 refused, or there is no such service; 3 the cluster cannot be
reached or refuses us.
"""

import argparse
import asyncio
import json
import secrets
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmservice.adapters.ports import Cluster, NotFound
from llmservice.adapters.resources import CONTROLLER_REVISION, LLM_SERVICE
from llmservice.api import names
from llmservice.cli.options import add_service_options
from llmservice.cli.report import Service, place
from llmservice.core.canary.state import UNDER_WAY, Phase

FIELD_MANAGER = "llmservice-cli"
_Act = Callable[[Cluster, Service], Awaitable[None]]

EXIT_DONE = 0
EXIT_REFUSED = 1

_HELP = {
    "pause": "hold a canary rollout where it is",
    "resume": "go on with a paused rollout",
    "promote": "let the step pass, whatever the evidence",
    "abort": "take all requests back from the canary",
    "retry": "try the revision again that was turned down",
}
ALLOWED: Mapping[str, frozenset[Phase]] = {
    "pause": UNDER_WAY - {Phase.Paused},
    "resume": frozenset({Phase.Paused}),
    "promote": frozenset({Phase.Gating, Phase.Judging, Phase.Paused, Phase.Baking}),
    # While it bakes it has all requests, and would only start to bake anew.
    "promote-full": UNDER_WAY - {Phase.Baking},
    "abort": UNDER_WAY,
    "retry": frozenset({Phase.Aborted}),
}
"""In which phases a rollout listens to a word."""


class Refused(Exception):  # noqa: N818 - the outcome, not an error
    """There is nothing to do; the message says why."""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands."""
    for word, help_ in _HELP.items():
        command = _add(commands, word, help_)
        if word == "promote":
            command.add_argument(
                "--full", action="store_true", help="all requests at once, without further steps"
            )
        command.set_defaults(run=_say, word=word)
    command = _add(commands, "history", "list the revisions of a service")
    command.add_argument("-o", "--output", choices=("text", "json"), default="text")
    command.set_defaults(run=_history)


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", word: str, help_: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(word, help=help_)
    command.add_argument("name", help="LLMService")
    add_service_options(command)
    return command


def _say(arguments: argparse.Namespace) -> int:
    word = "promote-full" if getattr(arguments, "full", False) else arguments.word
    return asyncio.run(_with_service(arguments, lambda cluster, it: _annotate(cluster, it, word)))


def _history(arguments: argparse.Namespace) -> int:
    return asyncio.run(
        _with_service(arguments, lambda cluster, it: _print_history(cluster, it, arguments.output))
    )


async def _with_service(arguments: argparse.Namespace, act: _Act) -> int:
    # Imported late: it loads the Kubernetes client, which takes half a second.
    from llmservice.cli.status import connected  # noqa: PLC0415

    async with connected(arguments) as (cluster, namespace):
        try:
            await act(cluster, await cluster.get(LLM_SERVICE, namespace, arguments.name))
        except NotFound:
            print(f"no {names.KIND} {arguments.name} in namespace {namespace}", file=sys.stderr)
            return EXIT_REFUSED
        except Refused as refused:
            print(f"{arguments.name}: {refused}", file=sys.stderr)
            return EXIT_REFUSED
    return EXIT_DONE


# --- verbs ----------------------------------------------------------------------------------------


async def _annotate(cluster: Cluster, service: Service, word: str) -> None:
    metadata = service["metadata"]
    sentence = promise(service, word)
    action = {names.ROLLOUT_ACTION_ANNOTATION: f"{word}/{secrets.token_hex(4)}"}
    patch = {"metadata": {"name": metadata["name"], "annotations": action}}
    await cluster.merge(LLM_SERVICE, metadata["namespace"], patch, field_manager=FIELD_MANAGER)
    print(f"{metadata['name']}: {sentence}")


def promise(service: Service, word: str) -> str:
    """What the operator will do when told ``word`` (a key of :data:`ALLOWED`).

    Raises:
        Refused: nothing, and why.
    """
    rollout = service.get("status", {}).get("rollout") or {}
    if rollout.get("phase") not in ALLOWED[word]:
        raise Refused(_why_not(service, rollout, word))
    if word == "retry" and _rejection(service, _newest(service)) is None:
        raise Refused("the newest revision was not turned down, so there is nothing to retry")
    return _sentence(service, rollout, word) + _instead_of(service, rollout)


def _sentence(service: Service, rollout: Mapping[str, Any], word: str) -> str:
    name, canary = service["metadata"]["name"], rollout.get("canaryRevision")
    stable = service["status"].get("stableRevision")
    if word == "promote" and rollout["phase"] == Phase.Baking:
        return f"{canary} becomes the stable revision now, and the pods of {stable} go"
    if word == "promote" and rollout["phase"] == Phase.Gating:
        return f"{canary} goes on, whatever its gates say"
    return {
        "pause": f"pauses at {place(rollout)}; `llmservice resume {name}` goes on",
        "resume": f"goes on from {place(rollout)}",
        "promote": f"{place(rollout)} counts as passed, whatever the evidence",
        "promote-full": f"all requests go to {canary} without further steps or judgement",
        "abort": f"all requests go back to {stable}, then the pods of {canary} stop; it is not"
        f" tried again before `llmservice retry {name}` or a change of the spec",
        "retry": f"{_newest(service)} is tried again from the first step",
    }[word]


def _why_not(service: Service, rollout: Mapping[str, Any], word: str) -> str:
    name, phase, message = service["metadata"]["name"], rollout.get("phase"), rollout.get("message")
    if phase == Phase.Aborted:
        return f"the rollout was aborted ({message}); `llmservice retry {name}` tries again"
    if phase == Phase.Baking and word == "promote-full":
        return f"the canary has all requests already; `llmservice promote {name}` ends the wait"
    if phase in UNDER_WAY:
        return f"{_WHY_NOT_NOW[word]}: {phase} ({message})"
    if phase not in (None, Phase.Stable):
        return f"the rollout is ending and takes no orders: {phase} ({message})"
    strategy = service["spec"].get("rollout", {}).get("strategy", "RollingUpdate")
    canary = strategy == "Canary"
    return "no rollout is under way" + ("" if canary else f": spec.rollout.strategy is {strategy}")


_WHY_NOT_NOW = {
    "pause": "it is paused already",
    "resume": "it is not paused",
    "promote": "no step is being judged; --full needs none",
    "retry": "nothing was turned down",
}


def _instead_of(service: Service, rollout: Mapping[str, Any]) -> str:
    """An annotation holds one word: a newer one takes the place of one that nobody heard yet."""
    annotations = service["metadata"].get("annotations") or {}
    waiting = annotations.get(names.ROLLOUT_ACTION_ANNOTATION)
    if waiting is None or waiting == rollout.get("handledAction"):
        return ""
    return f" (instead of {waiting.partition('/')[0]}, which was not carried out yet)"


# --- history --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """One revision of a service."""

    number: int | None
    """None when only its rejection is remembered."""
    hash: str
    image: str
    created: str
    """RFC 3339."""
    state: str
    """stable, canary, newest, rejected, or empty for one of the past."""
    reason: str = ""
    """Why it was rejected: a CamelCase word."""
    message: str = ""


def history(service: Service, revisions: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """The revisions of a service from its ControllerRevisions and its status, newest first."""
    kept = {each["metadata"]["labels"].get(names.REVISION_LABEL, ""): each for each in revisions}
    rejected = [each["hash"] for each in _rejections(service)]
    entries = [
        _entry(service, hash_, kept.get(hash_)) for hash_ in dict.fromkeys([*kept, *rejected])
    ]
    return sorted(entries, key=lambda entry: (entry.number or 0, entry.created), reverse=True)


def _entry(service: Service, hash_: str, kept: Mapping[str, Any] | None) -> Entry:
    status, rejection = service.get("status", {}), _rejection(service, hash_) or {}
    canary = (status.get("rollout") or {}).get("canaryRevision")
    known = {status.get("stableRevision"): "stable", canary: "canary"}
    state = known.get(hash_) or ("rejected" if rejection else "")
    if not state and hash_ == _newest(service):
        state = "newest"
    return Entry(
        number=kept["revision"] if kept else None,
        hash=hash_,
        image=_image(kept["data"]) if kept else "",
        created=kept["metadata"]["creationTimestamp"] if kept else "",
        state=state,
        reason=rejection.get("reason", ""),
        message=rejection.get("message", ""),
    )


def _image(data: Mapping[str, Any]) -> str:
    containers = data.get("template", {}).get("spec", {}).get("containers", ())
    return next((c["image"] for c in containers if c["name"] == names.ENGINE_CONTAINER), "")


async def _print_history(cluster: Cluster, service: Service, output: str) -> None:
    metadata = service["metadata"]
    selector = f"{names.SERVICE_LABEL}={metadata['name']}"
    page = await cluster.list_page(
        CONTROLLER_REVISION, metadata["namespace"], label_selector=selector
    )
    entries = history(service, page.items)
    if output == "json":
        print(json.dumps([_json(entry) for entry in entries], indent=2))
    else:
        print("\n".join(_table(entries)))


def _json(entry: Entry) -> dict[str, Any]:
    fields = ("number", "hash", "image", "created", "state", "reason", "message")
    return {field: getattr(entry, field) for field in fields}


def _table(entries: list[Entry]) -> Iterator[str]:
    rows = [("NUMBER", "REVISION", "MADE", "IMAGE", "STATE")]
    for entry in entries:
        why = ": ".join(part for part in (entry.state, entry.reason, entry.message) if part)
        number = "" if entry.number is None else str(entry.number)
        rows.append((number, entry.hash, entry.created, entry.image, why))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False))
        yield "  ".join((*cells, row[-1])).rstrip()


# --- the status -----------------------------------------------------------------------------------


def _newest(service: Service) -> str:
    return str(service.get("status", {}).get("updatedRevision", ""))


def _rejections(service: Service) -> list[Mapping[str, Any]]:
    return list((service.get("status", {}).get("rollout") or {}).get("rejected", ()))


def _rejection(service: Service, hash_: str) -> Mapping[str, Any] | None:
    return next((each for each in _rejections(service) if each["hash"] == hash_), None)
