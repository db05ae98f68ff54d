"""Clients that wait in a router, and engines that answer in turns."""

import asyncio
from collections.abc import Sequence

from tests.router.conftest import Router
from tests.router.engine import Engine, until


class Queue:
    """Clients of one router, named by numbers in the order in which they come."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self.asked: list[asyncio.Task[int]] = []

    async def come(self, number: int, **headers: str) -> None:
        """Let so many come, one after the other."""
        for _ in range(number):
            known = await self._known()
            who = len(self.asked)
            self.asked.append(asyncio.create_task(self._ask(f"/turn/{who}", headers)))
            await until(self._knows(known + 1), "a request that arrives")

    async def statuses(self) -> list[int]:
        return await asyncio.gather(*self.asked)

    async def waiting(self) -> int:
        gates = await self._router.admin.gates()
        return sum(gate.waiting for gate in gates.values())

    def _knows(self, number: int):
        async def knows() -> bool:
            return await self._known() >= number

        return knows

    async def _known(self) -> int:
        return await self._router.counter("http.ingress.downstream_rq_total")

    async def _ask(self, path: str, headers: dict[str, str]) -> int:
        async with self._router.client.get(self._router.url + path, headers=headers) as answer:
            await answer.read()
            return answer.status


async def are_inside(number: int, *engines: Engine) -> None:
    """Wait until the engines have so many requests together."""

    async def inside() -> bool:
        return sum(len(engine.inside) for engine in engines) == number

    await until(inside, f"{number} requests at the engines")


def names(numbers: Sequence[int]) -> list[str]:
    return [str(number) for number in numbers]
