"""Evidence in a sentence that whoever is on call can read."""

from llmservice.core.judge.checks import Check
from llmservice.core.judge.state import Tally


def describe(check: Check, tally: Tally, low: float, high: float, evidence: float | None) -> str:
    """The check and the numbers behind what it says."""
    if not tally.canary_requests:
        return f"{check.label}: no evidence yet"
    canary = _share(tally.canary_bad, tally.canary_requests)
    if check.ratio is None or evidence is None:
        bounds = f"surely over {_percent(low)} and under {_percent(high)}"
        words = f"{canary} canary requests {_fault(check.seconds)}, {bounds}"
        return f"{check.label}: {words}; allowed {_percent(check.share)}"
    stable = _share(tally.stable_bad, tally.stable_requests)
    bounds = f"aborts at {check.ratio.abort_at:.2f}, passes at {check.ratio.promote_at:.2f}"
    return (
        f"{check.label}: {canary} canary requests {_fault(check.canary_limit(tally.threshold))},"
        f" {stable} of stable's {_fault(tally.threshold)}; evidence {evidence:.2f} ({bounds})"
    )


def _fault(seconds: float | None) -> str:
    return "failed" if seconds is None else f"over {seconds:.3g} s"


def _share(bad: float, requests: float) -> str:
    share = f" ({_percent(bad / requests)})" if requests else ""
    return f"{bad:.0f} of {requests:.0f}{share}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
