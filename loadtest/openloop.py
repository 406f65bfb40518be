"""An open loop: every request is sent at its scheduled time, however slowly earlier ones are answered.

A client that waits for an answer before it sends again asks less of a server that stalls, and so leaves out the very
requests that would have been slow (coordinated omission). Here latency counts from the scheduled time to the last byte,
on the client's clock. Requests that the generator itself sends late are recorded, and too many spoil a run.

    samples = workload.learn(url, workload.read(workload.SAMPLES, "mix")).samples
    schedule = openloop.poisson(rate_per_s=50, seconds=10)
    rows = await openloop.run(url, workload.stream(samples, "mix"), schedule, deadline_ms=100)
    summary = summarise(rows, seconds=10)

It uses aiohttp because the client's own time counts: at 800 requests per second to a server that answers after 20 ms,
aiohttp took 0.2 ms per request and the median was 20 ms; httpx took 5 ms per request and the median was 9 s.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

import aiohttp
from tqdm import tqdm

from loadtest import credentials
from loadtest.rows import ABANDONED, CONNECTION_FAILED, LEAD_S, NOT_SENT, TIMED_OUT, Reply, Row, row_of
from loadtest.summary import Percentiles
from loadtest.workload import Request

MAX_IN_FLIGHT = 1_000
TIMEOUT_S = 30.0
ALONE = 60  # requests, to time what one takes alone
DEADLINE_FACTOR = 4  # times what one takes alone
PAUSE_S = 1.0  # between runs, at least: what one leaves behind must not disturb the next
LATE_S = 1.5  # a server keeps room for so long after the time that it named, as Retry-After has whole seconds
LONGEST_S = 60.0  # our server never names a later time

Deadline = float | Mapping[str, float] | None  # for all requests, or by kind


def constant(rate_per_s: float, seconds: float) -> list[float]:
    """Schedule requests at even intervals, at least one.

    Units: seconds from the start.
    """
    return [index / rate_per_s for index in range(_count(rate_per_s, seconds))]


def poisson(rate_per_s: float, seconds: float, seed: int = 0) -> list[float]:
    """Draw the send times of a Poisson process, given their count: so many independent uniform times, sorted.

    The count is what the rate leads one to expect, so that even a short run offers exactly the rate it is named after.

    Units: seconds from the start.
    """
    rng = random.Random(seed)  # noqa: S311 arrivals, not secrets
    return sorted(seconds * rng.random() for _ in range(_count(rate_per_s, seconds)))


def _count(rate_per_s: float, seconds: float) -> int:
    return max(1, round(rate_per_s * seconds))


class Client:
    """Sends requests and makes a row of each. Its clock starts when it is entered."""

    def __init__(
        self, url: str, *, name: str = "the server", deadline_ms: Deadline = None, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._url, self._name = url, name
        self._deadline_ms = deadline_ms
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # no limit
            headers=credentials.headers(),
        )
        self._start_s = time.perf_counter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    def now_s(self) -> float:
        return time.perf_counter() - self._start_s

    async def sleep_until(self, at_s: float) -> None:
        while (left_s := at_s - self.now_s()) > 0:  # noqa: ASYNC110 uvloop sleeps whole milliseconds, up to half too few
            await asyncio.sleep(left_s)

    async def send(self, request: Request, scheduled_s: float | None = None) -> Row:
        """Send a request now and wait for its end; without a scheduled time, it was scheduled for now."""
        deadline_ms = self._deadline_of(request)
        timeout_s = self._timeout_s if request.abandon_after_s is None else request.abandon_after_s
        headers = {"Content-Type": request.content_type}
        if deadline_ms is not None:
            headers["X-Deadline-Ms"] = f"{deadline_ms:g}"
        sent_s = self.now_s()
        try:
            async with self._session.post(
                self._url + request.path,
                data=request.body,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
            ) as response:
                body = await response.read()
                reply = Reply(status=response.status, headers=response.headers, body=body)
        except TimeoutError:
            reply = Reply(code=TIMED_OUT if request.abandon_after_s is None else ABANDONED)
        except (aiohttp.ClientError, OSError):
            reply = Reply(code=CONNECTION_FAILED)
        return row_of(
            request,
            reply,
            scheduled_s=sent_s if scheduled_s is None else scheduled_s,
            sent_s=sent_s,
            done_s=self.now_s(),
            deadline_ms=deadline_ms,
        )

    async def answered(self, request: Request) -> Row:
        """Send a request that has to be answered.

        Raises: ValueError: the server refused it, or failed.
        """
        row = await self.send(request)
        if row.status != 200:
            raise ValueError(f"{self._name} did not answer: {row.outcome}".rstrip())
        return row

    def leave_out(self, request: Request, scheduled_s: float) -> Row:
        """Make the row of a request that is not sent."""
        now_s, deadline_ms, reply = self.now_s(), self._deadline_of(request), Reply(code=NOT_SENT)
        return row_of(request, reply, scheduled_s=scheduled_s, sent_s=now_s, done_s=now_s, deadline_ms=deadline_ms)

    def _deadline_of(self, request: Request) -> float | None:
        return self._deadline_ms.get(request.kind) if isinstance(self._deadline_ms, Mapping) else self._deadline_ms


async def run(
    url: str,
    requests: Iterable[Request],
    schedule: Sequence[float],
    *,
    deadline_ms: Deadline = None,
    timeout_s: float = TIMEOUT_S,
    max_in_flight: int = MAX_IN_FLIGHT,
    label: str | None = None,
) -> list[Row]:
    """Send a request at each scheduled time, and wait until each has been answered or has timed out.

    The deadline is sent as X-Deadline-Ms. Requests beyond `max_in_flight` are not sent, and their rows say so.
    A label shows a progress bar of that name.
    """
    sent: list[asyncio.Task[Row]] = []
    left_out: list[Row] = []
    in_flight = 0
    bar = tqdm(total=len(schedule), desc=label, unit="request", disable=None if label else True, leave=False)

    def ended(_: "asyncio.Task[Row]") -> None:
        nonlocal in_flight
        in_flight -= 1
        bar.update()

    async with Client(url, deadline_ms=deadline_ms, timeout_s=timeout_s) as client:
        for at_s, request in zip(schedule, requests, strict=False):  # requests may be endless
            scheduled_s = LEAD_S + at_s
            await client.sleep_until(scheduled_s)
            if in_flight >= max_in_flight:
                left_out.append(client.leave_out(request, scheduled_s))
                await asyncio.sleep(0)  # let answers in, even if many requests in a row are left out
                continue
            in_flight += 1
            sent.append(asyncio.create_task(client.send(request, scheduled_s)))
            sent[-1].add_done_callback(ended)
        rows = [*await asyncio.gather(*sent), *left_out]
    bar.close()
    return sorted(rows, key=lambda row: row.scheduled_s)


async def alone(url: str, requests: Iterable[Request]) -> Percentiles:
    """Time requests that are sent one after the other: the latency, in milliseconds, without load.

    Raises: ValueError: one was not answered.
    """
    return Percentiles.of(await one_by_one(url, requests))


async def one_by_one(url: str, requests: Iterable[Request]) -> list[float]:
    """Time requests that are sent one after the other, each: all latencies behind `alone`.

    Raises: ValueError: one was not answered.
    """
    async with Client(url) as client:
        return [(await client.answered(one)).latency_ms for one in itertools.islice(requests, ALONE)]


async def until_quiet(rows: Sequence[Row]) -> None:
    """Wait until every client that was told to retry would have done so: the server keeps room for them until then."""
    await asyncio.sleep(quiet_after_s(rows))


def quiet_after_s(rows: Sequence[Row]) -> float:
    """Compute how long after a run's end the last client that was told to retry may still do so."""
    ended_s = max((row.done_s for row in rows), default=0.0)
    told_s = [row.done_s + row.retry_after_ms / 1000 for row in rows if row.retry_after_ms is not None]
    left_s = min(LONGEST_S, max(told_s) - ended_s) + LATE_S if told_s else 0.0
    return max(PAUSE_S, left_s)
