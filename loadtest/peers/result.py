"""What the turns come to: percentiles alone, throughput, and how many times as fast as the tutorial's servers."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loadtest.peers.agreement import Agreement
from loadtest.peers.servers import PADDED, TUTORIAL, Server
from loadtest.peers.turns import Timed
from loadtest.summary import percentile

BASES = (TUTORIAL, PADDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Answers per second over the turns with so many clients."""

    median: float
    lowest: float
    highest: float
    turns: list[float]  # in order: a round that something else disturbed shows in all servers


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How many times as fast as another server of the same run."""

    p50: float
    p99: float
    throughput: dict[int, float]  # by clients


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One server's figures."""

    name: str
    what: str
    agreement: Agreement  # with the first peer
    p50_ms: float  # one client
    p99_ms: float
    throughput_per_s: dict[int, Throughput]  # by clients
    faster_than: dict[str, Ratio]  # the tutorial's servers
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
            p50_ms=_latency(timed[server.name], 0.5),
            p99_ms=_latency(timed[server.name], 0.99),
            throughput_per_s={clients: _throughput(rates) for clients, rates in timed[server.name].rates_per_s.items()},
            faster_than={base: _ratio(timed[server.name], timed[base]) for base in bases if base != server.name},
            latencies_ms=[round(value, 3) for value in timed[server.name].latencies_ms[1]],
        )
        for server in servers
    ]


def text_of(measured: Sequence[Measured]) -> str:
    """Print the figures as a table."""
    clients = list(measured[0].throughput_per_s)
    bases = [base.name for base in BASES if any(base.name in one.faster_than for one in measured)]
    head = f"{'':16}{'p50':>8}{'p99':>8}{'answers per second with':>26}{'':{max(0, 7 * len(clients) - 26)}}"
    lines = [head, f"{'':16}{'ms':>8}{'ms':>8}" + "".join(f"{count:7}" for count in clients) + "  clients"]
    for one in measured:
        rates = "".join(f"{one.throughput_per_s[count].median:7.2f}" for count in clients)
        lines.append(f"{one.name:16}{one.p50_ms:8.1f}{one.p99_ms:8.1f}{rates}")
    for base in bases:
        lines.append(f"times as fast as {base}:")
        for one in measured:
            if ratio := one.faster_than.get(base):
                rates = "".join(f"{ratio.throughput[count]:7.2f}" for count in clients)
                lines.append(f"{one.name:16}{ratio.p50:8.2f}{ratio.p99:8.2f}{rates}")
    return "\n".join(lines)


def _throughput(rates: Sequence[float]) -> Throughput:
    return Throughput(
        median=statistics.median(rates),
        lowest=min(rates),
        highest=max(rates),
        turns=[round(rate, 3) for rate in rates],
    )


def _latency(timed: Timed, share: float) -> float:
    return percentile(timed.latencies_ms[1], share)


def _ratio(timed: Timed, base: Timed) -> Ratio:
    return Ratio(
        p50=_latency(base, 0.5) / _latency(timed, 0.5),
        p99=_latency(base, 0.99) / _latency(timed, 0.99),
        throughput={
            clients: statistics.median(rates) / statistics.median(base.rates_per_s[clients])
            for clients, rates in timed.rates_per_s.items()
        },
    )
