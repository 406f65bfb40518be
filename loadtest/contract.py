"""Asking a server what is not timed: which models it has, and a list of items with several requests in flight."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import httpx
from tqdm import tqdm

from loadtest import credentials

TIMEOUT_S = 300.0
Item = TypeVar("Item")
Found = TypeVar("Found")


def accepted(response: httpx.Response) -> httpx.Response:
    """Return a successful response as it is.

    Raises: ValueError: it is an error; the message is the server's own sentence.
    """
    if response.is_success:
        return response
    try:
        sentence = response.json()["error"]
    except (ValueError, KeyError, TypeError):  # from another server, or a proxy
        sentence = f"{response.status_code} {response.text[:200]}".strip()
    raise ValueError(f"the server refused {response.request.url.path}: {sentence}")


def models(url: str) -> list[dict[str, Any]]:
    """List the models as the server describes them.

    Raises: ValueError, httpx.HTTPError: the server refused, failed, or is not ours.
    """
    response = accepted(httpx.get(f"{url}/v1/models", headers=credentials.headers()))
    try:
        found: list[dict[str, Any]] = response.json()["models"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{url} is not a ViLT server: its /v1/models lists no models") from error
    return found


def model_for(url: str, task: str) -> dict[str, Any]:
    """Describe the model that answers requests which name none: the first that serves the task.

    Raises: ValueError: no model serves it, or the server refused; httpx.HTTPError: the server failed.
    """
    found = next((model for model in models(url) if task in model.get("tasks", ())), None)
    if found is None:
        raise ValueError(f"no model at {url} serves {task}")
    return found


async def each(
    url: str,
    items: Sequence[Item],
    ask: Callable[[httpx.AsyncClient, Item], Awaitable[Found]],
    *,
    concurrency: int,
    label: str | None = None,
) -> list[Found]:
    """Ask about every item, so many at a time; the results are in the order of the items.

    Raises: ValueError, httpx.HTTPError: the server refused a request, or failed.
    """
    found: dict[int, Found] = {}
    remaining = iter(enumerate(items))
    limits = httpx.Limits(max_connections=concurrency)
    with tqdm(total=len(items), unit="request", desc=label, disable=None) as bar:
        async with httpx.AsyncClient(
            base_url=url, timeout=TIMEOUT_S, limits=limits, headers=credentials.headers()
        ) as client:

            async def work() -> None:
                for index, item in remaining:
                    found[index] = await ask(client, item)
                    bar.update()

            await asyncio.gather(*(work() for _ in range(concurrency)))
    return [found[index] for index in range(len(items))]
