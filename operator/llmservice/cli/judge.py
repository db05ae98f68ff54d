"""``llmservice judge replay``: the judge of canaries on recorded traffic, without a cluster."""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from pydantic import ValidationError

from llmservice.api import names
from llmservice.api.admission import shape_violations
from llmservice.api.guardrails import MAX_GUARDRAILS, Guardrail
from llmservice.cli.documents import DocumentError, load_documents
from llmservice.cli.options import EXIT_INVALID
from llmservice.cli.trace import Row, TraceError, read_rows
from llmservice.core.judge.checks import compile_guardrails
from llmservice.core.judge.judge import Decision, Hold, Verdict, judge, weigh
from llmservice.core.judge.state import JudgeState
from llmservice.core.judge.trace import FINE, VLLM, Request, Track, cut_windows

_COLUMNS = ("seconds", "track", "ttft_seconds", "latency_seconds", "error")
_ITL = "itl_seconds"
"""May be there as well: the mean time between the tokens of a request."""
_WHY_ITL = "a guardrail of itl needs the mean seconds between the tokens of a request"
_BUCKETS = "edges that times are counted in: of an engine that was given fine ones, or as it comes"
_FAILED = {"0": False, "1": True, "false": False, "true": True}


class GuardrailsError(Exception):
    """The guardrails cannot be used; the message names file and field."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """A decision and when it fell."""

    seconds: float
    decision: Decision
    note: str = ""
    """Why the decision is not that of the evidence."""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``judge`` and its ``replay`` to the command line."""
    group = commands.add_parser("judge", help="try guardrails on recorded traffic")
    command = group.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "replay", help="judge a trace as a rollout would judge its canary"
    )
    columns = ",".join(_COLUMNS)
    command.add_argument("trace", metavar="TRACE", help=f"CSV with {columns}; - for stdin")
    command.add_argument(
        "--guardrails", required=True, metavar="FILE", help="a guardrails list, or an LLMService"
    )
    command.add_argument(
        "--window", type=_positive_seconds, default=30.0, metavar="SECONDS", help="per look"
    )
    command.add_argument(
        "--bake", type=_seconds, default=0.0, metavar="SECONDS", help="promote no earlier"
    )
    command.add_argument("--buckets", choices=("fine", "vllm"), default="fine", help=_BUCKETS)
    command.add_argument("--all", action="store_true", help="a line per window, not only the last")
    command.add_argument("-o", "--output", choices=("text", "json"), default="text")
    command.set_defaults(run=_replay)


def _seconds(text: str) -> float:
    """A number of seconds from the command line.

    Raises:
        argparse.ArgumentTypeError: it is none, or below zero.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return number


def _positive_seconds(text: str) -> float:
    """A number of seconds from the command line that is not nothing.

    Raises:
        argparse.ArgumentTypeError: it is none, or not above zero.
    """
    if not (number := _seconds(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return number


def _replay(arguments: argparse.Namespace) -> int:
    """Judge a trace and print the verdict; exit code 0 whichever it is, 1 for unusable input."""
    try:
        guardrails = read_guardrails(arguments.guardrails)
        outcome = None
        for outcome in _outcomes(guardrails, arguments):
            if arguments.all:
                _print(outcome, arguments.output)
    except (GuardrailsError, TraceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INVALID
    if outcome is not None and not arguments.all:
        _print(outcome, arguments.output)
    return 0


def _outcomes(guardrails: Sequence[Guardrail], arguments: argparse.Namespace) -> Iterator[_Outcome]:
    """One per window; the last is the verdict, and nothing after it is read."""
    checks, state = compile_guardrails(guardrails), JudgeState()
    began, end = None, 0.0
    buckets = FINE if arguments.buckets == "fine" else VLLM
    has_itl = any(guardrail.metric == "itl" for guardrail in guardrails)
    requests = _requests(arguments.trace, with_itl=has_itl)
    for end, window in cut_windows(requests, arguments.window, buckets):
        state, decision = judge(checks, state, window)
        if began is None and state.canary_requests:
            began = end - arguments.window
        if decision.verdict is Verdict.Promote and end - (began or 0.0) < arguments.bake:
            decision = replace(decision, verdict=Verdict.Inconclusive)
            yield _Outcome(end, decision, f"baking for {arguments.bake:g} s")
            continue
        note = decision.reason if decision.hold in (Hold.NoData, Hold.NoTraffic) else ""
        yield _Outcome(end, decision, note)
        if decision.verdict is not Verdict.Inconclusive:
            return
    last = replace(weigh(checks, state), verdict=Verdict.Inconclusive)
    ended = "the trace ends before a decision"
    yield _Outcome(end, last, ended if state.canary_requests else "the trace has no canary request")


# --- output ---------------------------------------------------------------------------------------


def _print(outcome: _Outcome, output: str) -> None:
    print(json.dumps(_json(outcome)) if output == "json" else _text(outcome))


def _json(outcome: _Outcome) -> dict[str, Any]:
    decision = outcome.decision
    return {
        "verdict": decision.verdict,
        "seconds": round(outcome.seconds, 3),
        "canary_requests": int(decision.canary_requests),
        "reason": "; ".join(dict.fromkeys(filter(None, (outcome.note, decision.reason)))),
        "findings": [
            {
                "check": finding.check,
                "verdict": finding.verdict,
                "seconds": finding.seconds,
                "stable_seconds": finding.tally.threshold,
                "canary_requests": finding.tally.canary_requests,
                "canary_bad": finding.tally.canary_bad,
                "stable_requests": finding.tally.stable_requests,
                "stable_bad": finding.tally.stable_bad,
                "evidence": finding.evidence,
                "abort_at": finding.abort_at,
                "promote_at": finding.promote_at,
            }
            for finding in decision.findings
        ],
    }


def _text(outcome: _Outcome) -> str:
    decision = outcome.decision
    requests = f"{decision.canary_requests:.0f} canary requests"
    note = f": {outcome.note}" if outcome.note else ""
    return "\n".join(
        (
            f"{decision.verdict} at {outcome.seconds:.1f} s after {requests}{note}",
            *(f"  {finding.verdict}: {finding.sentence}" for finding in decision.findings),
        )
    )


# --- guardrails -----------------------------------------------------------------------------------


def read_guardrails(path: str) -> tuple[Guardrail, ...]:
    """The guardrails of a file: its ``guardrails``, or those of an LLMService's rollout.

    Raises:
        GuardrailsError: there are none, or one is wrong.
    """
    try:
        documents = list(load_documents(path))
    except DocumentError as error:
        raise GuardrailsError(f"{path}: {error}") from error
    found = [(root, raw) for document in documents for root, raw in _listed(document)]
    if len(found) != 1:
        number = "no" if not found else "more than one"
        where = f"guardrails, or spec.rollout.guardrails of one {names.KIND}"
        raise GuardrailsError(f"{path}: {number} list of guardrails in it: give {where}")
    return _parse(path, *found[0])


def _listed(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    if document.get("kind") == names.KIND:
        spec = document.get("spec")
        rollout = spec.get("rollout") if isinstance(spec, dict) else None
        if isinstance(rollout, dict) and "guardrails" in rollout:
            yield "spec.rollout.guardrails", rollout["guardrails"]
    elif "guardrails" in document:
        yield "guardrails", document["guardrails"]


def _parse(path: str, root: str, raw: object) -> tuple[Guardrail, ...]:
    if not isinstance(raw, list) or not 0 < len(raw) <= MAX_GUARDRAILS:
        raise GuardrailsError(f"{path}: {root}: must be a list of 1 to {MAX_GUARDRAILS} guardrails")
    parsed: list[Guardrail] = []
    seen: set[tuple[str, str | None]] = set()
    for index, item in enumerate(raw):
        place = f"{path}: {root}[{index}]"
        try:
            guardrail = Guardrail.model_validate_json(
                json.dumps(item), strict=True, extra="forbid", by_alias=True, by_name=False
            )
        except ValidationError as error:
            violations = shape_violations(error, f"{root}[{index}]")
            raise GuardrailsError(f"{path}: {violations[0]}") from error
        key = guardrail.metric, guardrail.quantile
        if key in seen:
            raise GuardrailsError(
                f"{place}: {guardrail.metric} is guarded twice: put the limits in one"
            )
        seen.add(key)
        parsed.append(guardrail)
    return tuple(parsed)


# --- trace ----------------------------------------------------------------------------------------


def _requests(path: str, *, with_itl: bool) -> Iterator[Request]:
    for row in read_rows(path, _COLUMNS, {_ITL: _WHY_ITL} if with_itl else None):
        if row.texts["track"] not in ("stable", "canary"):
            raise row.wrong("track", "is not stable or canary")
        failed = _FAILED.get(row.texts["error"].lower())
        if failed is None:
            raise row.wrong("error", "is not 0, 1, true or false")
        yield Request(
            seconds=row.number("seconds"),
            track=cast("Track", row.texts["track"]),
            ttft=_time(row, "ttft_seconds", failed=failed),
            latency=_time(row, "latency_seconds", failed=failed),
            failed=failed,
            # Where there are not two tokens, nothing lies between them.
            itl=_time(row, _ITL, failed=failed) if with_itl and row.texts[_ITL] else None,
        )


def _time(row: Row, column: str, *, failed: bool) -> float | None:
    """A request that failed may have no time; one that did not must."""
    if failed and not row.texts[column]:
        return None
    time = row.number(column)
    if time < 0:
        raise row.wrong(column, "is less than nothing")
    return time
