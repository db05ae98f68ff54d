"""``llmservice judge replay``: the judge of canaries on recorded traffic, without a cluster."""

import argparse
import csv
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TextIO, cast

from pydantic import ValidationError

from llmservice.api import names
from llmservice.api.admission import shape_violations
from llmservice.api.guardrails import MAX_GUARDRAILS, Guardrail
from llmservice.cli.documents import DocumentError, load_documents
from llmservice.cli.offline import EXIT_INVALID
from llmservice.core.judge.checks import compile_guardrails
from llmservice.core.judge.judge import Decision, Hold, Verdict, judge, weigh
from llmservice.core.judge.state import JudgeState
from llmservice.core.judge.trace import FINE, VLLM, Request, Track, cut_windows

COLUMNS = ("seconds", "track", "ttft_seconds", "latency_seconds", "error")
_ITL = "itl_seconds"
"""May be there as well: the mean time between the tokens of a request."""
BUCKETS = "edges that times are counted in: of an engine that was given fine ones, or as it comes"
_FAILED = {"0": False, "1": True, "false": False, "true": True}
_SHOWN = 40


class InputError(Exception):
    """The trace or the guardrails cannot be used; the message names line or field."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """A decision and when it fell."""

    seconds: float
    decision: Decision
    note: str = ""
    """Why the decision is not that of the evidence."""


def seconds(text: str) -> float:
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


def positive_seconds(text: str) -> float:
    """A number of seconds from the command line that is not nothing.

    Raises:
        argparse.ArgumentTypeError: it is none, or not above zero.
    """
    if not (number := seconds(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return number


def replay(arguments: argparse.Namespace) -> int:
    """Judge a trace and print the verdict; exit code 0 whichever it is, 1 for unusable input."""
    try:
        guardrails = read_guardrails(arguments.guardrails)
        with _opened(arguments.trace) as file:
            outcome = None
            for outcome in _outcomes(guardrails, file, arguments):
                if arguments.all:
                    _print(outcome, arguments.output)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INVALID
    if outcome is not None and not arguments.all:
        _print(outcome, arguments.output)
    return 0


def _outcomes(
    guardrails: Sequence[Guardrail], file: TextIO, arguments: argparse.Namespace
) -> Iterator[_Outcome]:
    """One per window; the last is the verdict, and nothing after it is read."""
    checks, state = compile_guardrails(guardrails), JudgeState()
    began, end = None, 0.0
    buckets = FINE if arguments.buckets == "fine" else VLLM
    has_itl = any(guardrail.metric == "itl" for guardrail in guardrails)
    requests = read_requests(file, arguments.trace, with_itl=has_itl)
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
        InputError: there are none, or one is wrong.
    """
    try:
        documents = list(load_documents(path))
    except DocumentError as error:
        raise InputError(f"{path}: {error}") from error
    found = [(root, raw) for document in documents for root, raw in _listed(document)]
    if len(found) != 1:
        number = "no" if not found else "more than one"
        where = f"guardrails, or spec.rollout.guardrails of one {names.KIND}"
        raise InputError(f"{path}: {number} list of guardrails in it: give {where}")
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
        raise InputError(f"{path}: {root}: must be a list of 1 to {MAX_GUARDRAILS} guardrails")
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
            raise InputError(f"{path}: {violations[0]}") from error
        key = guardrail.metric, guardrail.quantile
        if key in seen:
            raise InputError(f"{place}: {guardrail.metric} is guarded twice: put the limits in one")
        seen.add(key)
        parsed.append(guardrail)
    return tuple(parsed)


# --- trace ----------------------------------------------------------------------------------------


@contextmanager
def _opened(path: str) -> Iterator[TextIO]:
    if path == "-":
        yield sys.stdin
        return
    try:
        # What is no UTF-8 is judged where it stands, by the line it is in.
        file = open(  # noqa: PTH123, SIM115 - closed below
            path, newline="", encoding="utf-8-sig", errors="backslashreplace"
        )
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    with file:
        yield file


def read_requests(file: TextIO, path: str, *, with_itl: bool = False) -> Iterator[Request]:
    """The requests of a trace, one line at a time.

    Args:
        file: the trace.
        path: its name, for messages.
        with_itl: the times between tokens are needed, too.

    Raises:
        InputError: a column is missing, or a line is wrong.
    """
    rows = csv.reader(file)
    try:
        header = [column.strip() for column in next(rows, [])]
        places = _places(header, path, with_itl=with_itl)
        last = -math.inf
        for row in rows:
            if not row:
                continue
            place = f"{path}: line {rows.line_num}"
            if len(row) != len(header):
                raise InputError(f"{place}: {len(row)} fields where the header has {len(header)}")
            request = _request({name: row[at].strip() for name, at in places.items()}, place)
            if request.seconds < last:
                words = f"{request.seconds:g} comes after {last:g}: sort the trace by time"
                raise InputError(f"{place}: seconds: {words}")
            last = request.seconds
            yield request
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: line {max(1, rows.line_num)}: {error}") from error
    if last == -math.inf:
        raise InputError(f"{path}: line {rows.line_num + 1}: no request in it")


def _places(header: list[str], path: str, *, with_itl: bool) -> dict[str, int]:
    columns = (*COLUMNS, _ITL) if with_itl else COLUMNS
    for name in columns:
        if header.count(name) != 1:
            number = "no" if name not in header else "more than one"
            words = f"the first line must name {','.join(COLUMNS)}"
            if name == _ITL:
                words = "a guardrail of itl needs the mean seconds between the tokens of a request"
            raise InputError(f"{path}: line 1: {number} column {name}: {words}")
    return {name: header.index(name) for name in columns}


def _request(row: dict[str, str], place: str) -> Request:
    if row["track"] not in ("stable", "canary"):
        raise InputError(f"{place}: track: {_shown(row['track'])} is not stable or canary")
    failed = _FAILED.get(row["error"].lower())
    if failed is None:
        raise InputError(f"{place}: error: {_shown(row['error'])} is not 0, 1, true or false")
    seconds = _number(row, "seconds", place)
    return Request(
        seconds=seconds,
        track=cast("Track", row["track"]),
        ttft=_time(row, "ttft_seconds", place, failed=failed),
        latency=_time(row, "latency_seconds", place, failed=failed),
        failed=failed,
        # Where there are not two tokens, nothing lies between them.
        itl=_time(row, _ITL, place, failed=failed) if row.get(_ITL) else None,
    )


def _time(row: dict[str, str], name: str, place: str, *, failed: bool) -> float | None:
    """A request that failed may have no time; one that did not must."""
    if failed and not row[name]:
        return None
    time = _number(row, name, place)
    if time < 0:
        raise InputError(f"{place}: {name}: {_shown(row[name])} is less than nothing")
    return time


def _number(row: dict[str, str], name: str, place: str) -> float:
    try:
        number = math.nan if "_" in row[name] else float(row[name])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{place}: {name}: {_shown(row[name])} is not a number")
    return number


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
