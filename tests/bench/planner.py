"""``make bench-planner [DATA=file.csv]``: the planner against starts of real engines.

One JSON line per row of the file, then a summary line; ``--time`` prints what a plan costs instead.
The planner is told what the engine's user knew (model, device, version, knobs), never what the
engine logged (weights, KV cache, tokens). ``docs/tuning.md`` says what the figures mean and where
they are bad.
"""

import argparse
import csv
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from llmservice.core.planner.catalog import KnownModel, find_model
from llmservice.core.planner.devices import Device, find_device
from llmservice.core.planner.outcome import (
    Infeasible,
    Outcome,
    Plan,
    Request,
    Speculation,
    Unplanned,
    Verdict,
)
from llmservice.core.planner.plan import plan

_GIB = 1 << 30
DEFAULT_DATA = Path(__file__).with_name("kv-dataset.csv")
_UNDATED = (0, 10)
"""Taken for rows that do not name a version: most are of that time."""
_CLOSE = 0.1
_OLDEST = (0, 6)
_CHUNKED_SINCE = (0, 8)
_BOUNDED_ITEMS_SINCE = (0, 9)
"""Before, a multimodal model's dry run had the largest item that its greatest length allows."""
_UNCHUNKED_TOKENS = 32_768
_TIMED_PLANS = 20
"""Of each row, so that the first, which reads the catalog, does not decide."""
_HIGH_SHARE, _FEW_SEQUENCES = 0.97, 16
"""What an engine whose report is silent may have been given at best."""
_SPOKEN = {
    # What reports call models and devices, and what they are.
    "Granite 3.x 8B": "ibm-granite/granite-3.3-8b-instruct",
    "Qwen 27B hybrid": "Qwen/Qwen3.5-27B",
    "Qwen2.5-7B class": "Qwen/Qwen2.5-7B-Instruct",
    "RTX PRO 6000 Blackwell 96GB": "RTX-PRO-6000",
    "RTX A6000 48GB": "RTX-A6000",
}

Row = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Judged:
    """One row and what the planner says of it."""

    row: Row
    outcome: Outcome

    @property
    def verdict(self) -> str:
        """``fits``, ``infeasible`` or ``unknown``."""
        match self.outcome:
            case Plan(verdict=Verdict.Fits):
                return "fits"
            case Infeasible():
                return "infeasible"
        return "unknown"

    @property
    def kv_gib(self) -> float | None:
        """KV cache per device."""
        return self.outcome.memory.kv_cache.expected / _GIB if self._plan else None

    @property
    def kv_error(self) -> float | None:
        """Relative error of the KV cache where the row logs one; over 0 is too optimistic."""
        logged = _number(self.row, "kv_gib")
        if self.kv_gib is None or logged is None or logged <= 0:
            return None
        return self.kv_gib / logged - 1

    @property
    def _plan(self) -> Plan | None:
        return self.outcome if isinstance(self.outcome, Plan) else None

    def line(self) -> dict[str, Any]:
        """As it is printed."""
        memory = getattr(self.outcome, "memory", None)
        error = self.kv_error
        return {
            "id": self.row["id"],
            "outcome": self.verdict,
            "weights_gib": round(memory.weights / _GIB, 2) if memory else None,
            "kv_gib": None if self.kv_gib is None else round(self.kv_gib, 2),
            "kv_tokens": self._plan.capacity.tokens if self._plan else None,
            "reason": self.outcome.message,
            "actual": self.row.get("outcome"),
            "kv_error": None if error is None else round(error, 3),
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Judge every row and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--time", action="store_true", help="print the CPU time of a plan instead")
    options = parser.parse_args(arguments)
    with options.data.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if options.time:
        print(json.dumps(cost(rows)))
        return
    judged = judge(rows)
    for each in judged:
        print(json.dumps(each.line()))
    print(json.dumps(summary(judged)))


def judge(rows: Iterable[Row]) -> list[Judged]:
    """What the planner says of each row."""
    return [Judged(row, _plan(row)) for row in rows]


def cost(rows: Sequence[Row]) -> dict[str, int]:
    """CPU microseconds of one plan: over the rows that name a known model and device."""
    asked = [_request(row, _version(row) or _UNDATED) for row in rows]
    requests = [request for request in asked if isinstance(request, Request)]
    each = [_plan_microseconds(request) for request in requests] or [0.0]
    return {
        "plans": len(requests),
        "median_us": round(median(each)),
        "slowest_us": round(max(each)),
    }


def _plan_microseconds(request: Request) -> float:
    times = []
    for _ in range(_TIMED_PLANS):
        plan.cache_clear()
        start = time.process_time_ns()
        plan(request)
        times.append((time.process_time_ns() - start) / 1000)
    return median(times)


def summary(judged: Sequence[Judged]) -> dict[str, Any]:
    """The figures of docs/tuning.md."""
    ok = [each for each in judged if each.row.get("outcome") == "ok"]
    failed = [each for each in judged if each.row.get("outcome", "ok") != "ok"]
    errors = [each.kv_error for each in ok if each.kv_error is not None]
    stated = [each for each in ok if each.row.get("max_num_seqs") and _number(each.row, "kv_gib")]
    return {
        "rows": len(judged),
        "outcomes": Counter(each.verdict for each in judged),
        "failed_called_fits": [each.row["id"] for each in failed if each.verdict == "fits"],
        "failed_called_infeasible": sum(each.verdict == "infeasible" for each in failed),
        "ok_called_infeasible": [each.row["id"] for each in ok if each.verdict == "infeasible"],
        "kv_compared": len(errors),
        "kv_within_10_percent": sum(abs(error) <= _CLOSE for error in errors),
        "kv_median_error": round(median(map(abs, errors)), 3) if errors else None,
        "kv_stated_sequences": len(stated),
        "kv_stated_sequences_within_10_percent": sum(
            each.kv_error is not None and abs(each.kv_error) <= _CLOSE for each in stated
        ),
        "tokens_exact_given_kv": _tokens_given_kv(ok),
    }


def _tokens_given_kv(ok: Sequence[Judged]) -> dict[str, int]:
    """Of rows with one kind of attention: tokens from the logged bytes, against logged tokens.

    Logged bytes are rounded to a hundredth of a GiB, so tokens are exact when they lie between the
    ends of that rounding.
    """
    exact, compared = 0, 0
    for each in ok:
        kv, tokens = _number(each.row, "kv_gib"), _tokens(each.row)
        outcome, model = each.outcome, _model(each.row)
        if not isinstance(outcome, Plan) or model is None or model.shape.is_hybrid:
            continue
        if kv is None or tokens is None or "FLAG" in each.row["notes"]:
            continue
        low, high = (
            outcome.pool.capacity(int((kv + off) * _GIB)).tokens for off in (-0.0051, 0.0051)
        )
        compared += 1
        exact += low <= tokens <= high + 16
    return {"exact": exact, "compared": compared}


def _plan(row: Row) -> Outcome:
    """Of a row without a version only what holds for engines with and without chunks counts."""
    version = _version(row)
    if version is not None:
        return _plan_for(row, version)
    if row["gpu_blocks"] and not row["kv_tokens"]:  # only engines without chunks log blocks
        return _plan_for(row, _OLDEST)
    new, old = _plan_for(row, _UNDATED), _plan_for(row, _OLDEST)
    if isinstance(new, Plan) and not (isinstance(old, Plan) and old.verdict is Verdict.Fits):
        return replace(new, verdict=Verdict.Marginal)
    return new if isinstance(old, Infeasible) or isinstance(new, Plan) else old


def _plan_for(row: Row, version: tuple[int, int]) -> Outcome:
    request = _request(row, version)
    if isinstance(request, Unplanned):
        return request
    outcome = plan(request)
    share, few = request.gpu_memory_utilization, request.max_num_seqs
    most = replace(
        request, gpu_memory_utilization=share or _HIGH_SHARE, max_num_seqs=few or _FEW_SEQUENCES
    )
    if isinstance(outcome, Infeasible) and not isinstance(plan(most), Infeasible):
        return Unplanned("the share of memory or the sequences are not stated, and they decide")
    return outcome


def _request(row: Row, version: tuple[int, int]) -> Request | Unplanned:
    """What the engine's user asked for, or why it cannot be planned."""
    model, device, tokens = _model(row), _device(row), _whole(row, "max_num_batched_tokens")
    if model is None:
        return Unplanned(f"the catalog has no {row['model']}")
    if device is None:
        return Unplanned(f"the memory of {row['gpu']} is not known")
    if version < (_OLDEST if not model.shape.multimodal else _BOUNDED_ITEMS_SINCE):
        return Unplanned(f"vLLM {row['vllm_version']} measured its memory in another way")
    length, sequences = _whole(row, "max_model_len"), _whole(row, "max_num_seqs")
    if version < _CHUNKED_SINCE:  # a prompt is one batch
        longest = length or model.shape.max_length
        tokens = tokens or max(2048, min(longest, _UNCHUNKED_TOKENS))
        sequences = sequences or 256
    return Request(
        model=model,
        device=device,
        version=version,
        tensor=int(_number(row, "tp") or 1),
        pipeline=int(_number(row, "pp") or 1),
        max_model_len=length,
        max_num_seqs=sequences,
        max_num_batched_tokens=tokens,
        gpu_memory_utilization=_number(row, "gpu_memory_utilization"),
        kv_cache_dtype=row["kv_cache_dtype"] or "auto",
        quantization=_quantization(row),
        expert="EP" in row["notes"].split(";")[0].split(),
        enforce_eager=row["enforce_eager"].lower() == "true",
        speculation=_speculation(row["notes"]),
        cpu_offload=_offload(row["notes"]),
        context=_context(row["notes"]),
    )


def _context(notes: str) -> int:
    match = re.search(r"DCP ?(\d+)", notes)
    return int(match[1]) if match else 1


def _model(row: Row) -> KnownModel | None:
    name = row["model"].split(" (")[0].strip()
    return find_model(_SPOKEN.get(name, name))


def _quantization(row: Row) -> str | None:
    """The column, or what the report says in brackets behind the model's name."""
    said = re.search(r"\(.*?(gsq|\d-bit|int4|nvfp4)", row["model"].lower())
    return row["quantization"].split(" ")[0] or (said[1].replace("-", "") if said else None)


def _device(row: Row) -> Device | None:
    name = row["gpu"].split(" (")[0].strip()
    name = _SPOKEN.get(name, name)
    memory = _number(row, "gpu_mem_gib")
    if memory is None and (said := re.search(r"\(([\d.]+) GiB total\)", row["gpu"])):
        memory = float(said[1])
    if memory is None and (said := re.search(r"\(budget ([\d.]+) GiB at ([\d.]+)\)", row["gpu"])):
        memory = float(said[1]) / float(said[2])
    known = find_device(name)
    if memory is None:
        return known
    total = int(memory * _GIB)
    return replace(known, memory=total) if known else Device(name, total)


def _version(row: Row) -> tuple[int, int] | None:
    match = re.match(r"(\d+)\.(\d+)", row["vllm_version"])
    return (int(match[1]), int(match[2])) if match else None


def _speculation(notes: str) -> Speculation | None:
    """A multi-token-prediction head, which rows mention as ``MTP 3``."""
    if match := re.search(r"\bMTP\b(?: speculative)? ?(\d+)?", notes):
        return Speculation("mtp", int(match[1] or 1))
    return None


def _offload(notes: str) -> int:
    match = re.search(r"--cpu-offload-gb (\d+)|offloaded (\d+) GB", notes)
    return int(match[1] or match[2]) * _GIB if match else 0


def _number(row: Row, field: str) -> float | None:
    try:
        return float(row.get(field) or "")
    except ValueError:
        return None


def _whole(row: Row, field: str) -> int | None:
    number = _number(row, field)
    return None if number is None else int(number)


def _tokens(row: Row) -> int | None:
    """Logged tokens, or blocks times their size."""
    if tokens := _whole(row, "kv_tokens"):
        return tokens
    blocks, size = _whole(row, "gpu_blocks"), _whole(row, "block_size")
    return blocks * size if blocks and size else None


if __name__ == "__main__":
    sys.exit(main())
