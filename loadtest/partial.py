"""Runs that end early: what is complete by then is still a result."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")


async def each(items: Iterable[Item], step: Callable[[Item], Awaitable[Found]]) -> tuple[list[Found], str | None]:
    """Take a step for each item; if Ctrl-C or a failure ends it, return what is complete, and why it ended.

    Raises: ValueError, asyncio.CancelledError: nothing is complete.
    """
    found: list[Found] = []
    try:
        for item in items:
            found.append(await step(item))  # noqa: PERF401 an error must keep what came before it
    except (ValueError, asyncio.CancelledError) as error:
        if not found:
            raise
        return found, str(error) or "interrupted"
    return found, None
