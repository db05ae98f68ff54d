"""Evidence in a sentence that whoever is on call can read."""

from llmservice.core.judge.checks import Check
from llmservice.core.judge.state import Tally
from llmservice.core.judge.trace import Track


def describe(check: Check, tally: Tally, low: float, high: float, evidence: float | None) -> str:
    """The check and the numbers behind what it says."""
    if not tally.canary_requests:
        return f"{check.label}: no evidence yet"
    limit = check.canary_limit(tally.threshold)
    canary = _share(check, tally.canary_bad, tally.canary_requests, "canary")
    if check.ratio is None or evidence is None:
        bounds = f"surely over {_percent(low)} and under {_percent(high)}"
        return f"{check.label}: {canary} {_fault(limit)}, {bounds}; allowed {_percent(check.share)}"
    stable = _share(check, tally.stable_bad, tally.stable_requests, "stable")
    bounds = f"aborts at {check.ratio.abort_at:.2f}, passes at {check.ratio.promote_at:.2f}"
    return (
        f"{check.label}: {canary} {_fault(limit)}, {stable} {_fault(tally.threshold)};"
        f" evidence {evidence:.2f} ({bounds})"
    )


def _fault(seconds: float | None) -> str:
    return "failed" if seconds is None else f"over {seconds:.3g} s"


def _share(check: Check, bad: float, requests: float, track: Track) -> str:
    share = _percent(bad / requests) if requests else ""
    if check.metric == "itl":  # how many requests that would be says nothing to anyone
        return f"{share or 'nothing'} of the tokens of {requests:.0f} {track} requests"
    whose = "canary requests" if track == "canary" else "of stable's"
    return f"{bad:.0f} of {requests:.0f}{share and f' ({share})'} {whose}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
