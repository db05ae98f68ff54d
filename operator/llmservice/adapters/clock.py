"""The only reader of the wall clock; everything else is handed ``now``."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The current time, with its zone."""
    return datetime.now(UTC)  # noqa: TID251 - this is the one place


def micro_time(moment: datetime) -> str:
    """``moment`` as a Kubernetes MicroTime, for instance ``2026-01-31T08:00:00.000000Z``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
