"""Runs that end early: what is complete by then is a result, too."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")


async def each(items: Iterable[Item], step: Callable[[Item], Awaitable[Found]]) -> tuple[list[Found], str | None]:
    """Take a step for each item; where Ctrl-C or a failure ends it, return what is complete, and why it ended.

    Raises: ValueError, asyncio.CancelledError: nothing was complete.
    """
    found: list[Found] = []
    try:
        for item in items:
            found.append(await step(item))  # noqa: PERF401 one by one: an error leaves those before it
    except (ValueError, asyncio.CancelledError) as error:
        if not found:
            raise
        return found, str(error) or "interrupted"
    return found, None
