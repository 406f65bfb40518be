"""Figures from the turns: percentiles of one client, throughput, and ratios to the tutorial's servers."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loadtest.peers.agreement import Agreement
from loadtest.peers.servers import PADDED, TUTORIAL, Server
from loadtest.peers.turns import Timed
from loadtest.summary import or_dash, percentile

BASES = (TUTORIAL, PADDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Answers per second, over the turns with one number of clients."""

    median: float
    lowest: float
    highest: float
    turns: list[float]  # in order: a round that was disturbed shows in all servers


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How many times as fast as another server in the same run."""

    p50: float
    p99: float | None
    throughput: dict[int, float]  # by clients


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One server's figures."""

    name: str
    what: str
    agreement: Agreement  # with the first peer
    answers: int  # to one client; the percentiles below are of these
    p50_ms: float
    p99_ms: float | None  # None: too few
    throughput_per_s: dict[int, Throughput]  # by clients
    faster_than: dict[str, Ratio]  # by the name of the tutorial's servers
    latencies_ms: list[float]  # of all turns with one client, in order


def summarise(
    servers: Sequence[Server], agreements: Mapping[str, Agreement], timed: Mapping[str, Timed]
) -> list[Measured]:
    """Compute every server's figures."""
    bases = [base.name for base in BASES if base.name in timed]
    return [
        Measured(
            name=server.name,
            what=server.what,
            agreement=agreements[server.name],
            answers=len(timed[server.name].latencies_ms[1]),
            p50_ms=_p50_ms(timed[server.name]),
            p99_ms=timed[server.name].p99_ms(1),
            throughput_per_s={clients: _throughput(rates) for clients, rates in timed[server.name].rates_per_s.items()},
            faster_than={base: _ratio(timed[server.name], timed[base]) for base in bases if base != server.name},
            latencies_ms=[round(value, 3) for value in timed[server.name].latencies_ms[1]],
        )
        for server in servers
    ]


def text_of(measured: Sequence[Measured]) -> str:
    """Format the figures as a table."""
    clients = list(measured[0].throughput_per_s)
    bases = [base.name for base in BASES if any(base.name in one.faster_than for one in measured)]
    head = f"{'':16}{'n':>6}{'p50':>8}{'p99':>8}{'answers per second with':>26}{'':{max(0, 7 * len(clients) - 26)}}"
    lines = [head, f"{'':22}{'ms':>8}{'ms':>8}" + "".join(f"{count:7}" for count in clients) + "  clients"]
    for one in measured:
        rates = "".join(f"{one.throughput_per_s[count].median:7.2f}" for count in clients)
        lines.append(f"{one.name:16}{one.answers:6}{one.p50_ms:8.1f}{or_dash(one.p99_ms, 8, 1)}{rates}")
    for base in bases:
        lines.append(f"times as fast as {base}:")
        for one in measured:
            if ratio := one.faster_than.get(base):
                rates = "".join(f"{ratio.throughput[count]:7.2f}" for count in clients)
                lines.append(f"{one.name:22}{ratio.p50:8.2f}{or_dash(ratio.p99, 8, 2)}{rates}")
    return "\n".join(lines)


def _throughput(rates: Sequence[float]) -> Throughput:
    return Throughput(
        median=statistics.median(rates),
        lowest=min(rates),
        highest=max(rates),
        turns=[round(rate, 3) for rate in rates],
    )


def _p50_ms(timed: Timed) -> float:
    return percentile(timed.latencies_ms[1], 0.5)


def _ratio(timed: Timed, base: Timed) -> Ratio:
    p99_ms, base_p99_ms = timed.p99_ms(1), base.p99_ms(1)
    return Ratio(
        p50=_p50_ms(base) / _p50_ms(timed),
        p99=base_p99_ms / p99_ms if p99_ms and base_p99_ms else None,
        throughput={
            clients: statistics.median(rates) / statistics.median(base.rates_per_s[clients])
            for clients, rates in timed.rates_per_s.items()
        },
    )
