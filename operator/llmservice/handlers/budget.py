"""A ceiling on the writes for one service: what stops a fight over a field.

Another controller or a webhook may put back what we apply, at once and for ever; each round looks
like an honest hand edit. Ordinary work never gets near the ceiling; a fight is slowed to one write
every two seconds.
"""

from collections.abc import Callable

from llmservice.core.observed import ServiceKey


class WriteBudget:
    """A token bucket per service; only services that wrote lately take memory.

    Args:
        clock: monotonic seconds.
        burst: writes at once.
        per_second: refill.
    """

    def __init__(
        self, clock: Callable[[], float], burst: float = 60.0, per_second: float = 0.5
    ) -> None:
        self._clock = clock
        self._burst = burst
        self._per_second = per_second
        self._spent: dict[ServiceKey, tuple[float, float]] = {}

    def spend(self, key: ServiceKey, writes: int) -> None:
        """Note writes that are about to be sent."""
        self._spent[key] = (self._owed(key) + writes, self._clock())

    def seconds_to_wait(self, key: ServiceKey) -> float:
        """0 while ``key`` may write, else for how long it may not."""
        owed = self._owed(key)
        if owed <= 0:
            self._spent.pop(key, None)
        return max(0.0, (owed - self._burst) / self._per_second)

    def _owed(self, key: ServiceKey) -> float:
        owed, at = self._spent.get(key, (0.0, 0.0))
        return max(0.0, owed - (self._clock() - at) * self._per_second)
