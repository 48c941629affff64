"""Runs an asynchronous test: on a loop of its own, within a time, and failing on errors that nobody awaited."""

from __future__ import annotations

import asyncio
import functools
import gc
from collections.abc import Callable, Coroutine
from typing import Any

TEST_S = 30.0


def on_loop(scenario: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """The coroutine function as an ordinary test; its fixtures stay its arguments."""

    @functools.wraps(scenario)
    def test(*arguments: Any, **fixtures: Any) -> None:
        unheard: list[dict[str, Any]] = []

        def note(context: dict[str, Any]) -> None:
            # grpc has one queue for all loops of a process: it tells this one what an earlier test's calls still said.
            if not (
                "PollerCompletionQueue" in context["message"] and "loop is closed" in str(context.get("exception"))
            ):
                unheard.append(context)

        async def bounded() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: note(context))
            async with asyncio.timeout(TEST_S):
                await scenario(*arguments, **fixtures)
            # The young ones only: a whole collection takes longer than most tests.
            gc.collect(1)

        asyncio.run(bounded())
        assert not unheard, unheard

    return test


async def until(condition: Callable[[], Any], *, every_s: float = 0.0) -> None:
    """Give everything else turns until ``condition`` holds; the test's own time bounds it.

    ``every_s``: where other processes have to bring it about, leave them the processor between two looks.
    """
    while not condition():
        await asyncio.sleep(every_s)


async def settled(turns: int = 20) -> None:
    """Let everything run that can run without anything new from outside."""
    for _ in range(turns):
        await asyncio.sleep(0)
