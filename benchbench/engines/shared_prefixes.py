"""The prefixes that prompts share are sent to the server, untimed, before each round: so it has them in its cache."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine

from benchbench.counters.server_counters import ServerView
from benchbench.engines.open import Opened
from benchbench.openai.client import http_session
from benchbench.openai.target import GENERATION, Access, untimed_body
from benchbench.prompts.prefix_groups import prefixes
from benchbench.spec import Cell

AT_ONCE = 8  # prefixes, so that many groups take no minutes, and few requests no cache of the others'


def prepare_cache(opened: Opened, view: ServerView, cell: Cell) -> None:
    """Before a round: empty the server's prefix cache, where that is asked, then have each of the cell's prefixes
    answered with one token.

    Before every round, not once: what was evicted since is computed again, and what is in the cache becomes its
    youngest. A prefix that fails here shows as misses in the round. Raises InterruptedSweep.
    """
    if cell.rounds.reset_prefix_cache:
        view.reset_prefix_cache()
    if cell.prompts.shared is None or cell.prompts.shared.turns:
        return

    def question(url: str, access: Access) -> Coroutine[None, None, None]:
        bodies = [
            untimed_body(cell.engine, cell.model, row.tolist(), 1) for row in prefixes(cell, opened.vocab or (0, 1))
        ]
        return _sent(url, access, GENERATION[cell.engine.api], bodies, cell.timeouts.first_token_s)

    view.ask(question)


async def _sent(url: str, access: Access, route: str, bodies: list[dict[str, object]], answer_s: float) -> None:
    free = asyncio.Semaphore(AT_ONCE)
    async with http_session(url, access, answer_s=answer_s) as request:

        async def send(body: dict[str, object]) -> None:
            async with free:
                with contextlib.suppress(OSError):
                    await request(route, body)

        await asyncio.gather(*map(send, bodies))
