"""The report of a load run: a self-contained HTML file, and a few lines for the terminal."""

import html

from loadtest import plots
from loadtest.capacity import Capacity
from loadtest.result import PERCENTILES, Result
from loadtest.summary import LATE_MS, LATE_SHARE, Percentiles, Summary


def text_of(result: Result) -> str:
    """Format the table for a terminal."""
    heads = {"offered/s": 9, "goodput/s": 9, "in time": 8, "p50 ms": 8, "p99 ms": 8, "max ms": 8}
    heads |= dict.fromkeys(("refused", "failed", "wrong"), 8)
    lines = [" ".join(f"{head:>{width}}" for head, width in heads.items())]
    for load in result.loads:
        found = load.summary
        latency = "".join(f" {_ms(found.latency_ms, name):>8}" for name in ("p50", "p99", "max"))
        share = f"{_share(found.in_time, found.requests):>8}"
        counts = "".join(f" {count:8,}" for count in (found.refused, found.failed, found.wrong))
        lines.append(f"{load.rate_per_s:9g} {found.goodput_per_s:9.1f} {share}{latency}{counts}")
        lines += [f"          flawed: {flaw}" for flaw in found.flaws]
    if result.capacity:
        lines.append(f"capacity: {result.capacity.rate_per_s:.1f}/s; {_confirmed(result.capacity)}")
        lines += [f"          {_limit(result.capacity)}"] if result.capacity.flaws else []
    return "\n".join(lines)


def page_of(result: Result) -> str:
    """Make the HTML page."""
    wide = len(result.alone_ms) > 1  # one panel per kind
    models = ", ".join(f"{model['name']} ({model['precision']}, {model['provider']})" for model in result.models)
    flaws = [f"{load.rate_per_s:g}/s: {flaw}" for load in result.loads for flaw in load.summary.flaws]
    sections = [
        f"<h1>Load on {_text(models)}</h1>",
        f'<p class="lead">{_lead(result)}</p>',
        *(f'<p class="flaw">Do not trust the figures at {_text(flaw)}.</p>' for flaw in flaws),
        '<div class="plots">',
        _figure("Latency", "answers with 200, from their scheduled time", plots.latency(result), wide=wide),
        _figure("Goodput", "answers in time, per second", plots.goodput(result)),
        _figure("Outcomes", "share of each code", plots.outcomes(result)),
        _figure("Where the time went", "means of answers with 200", plots.stages(result), wide=wide),
        "</div>",
        "<h2>Figures</h2>",
        _table(result),
        "<h2>How this was measured</h2>",
        *(f"<p>{paragraph}</p>" for paragraph in _method(result)),
        "<h2>Setup</h2>",
        _facts(result),
    ]
    title = _text(f"Load on {models}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body>'
        + "\n".join(sections)
        + "</body></html>\n"
    )


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #fff; max-width: 1120px; margin: 2rem auto;
       padding: 0 1.25rem }
h1 { font-size: 1.5rem; margin: 0 0 .5rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
.lead { font-size: 1.05rem; margin: 0 0 1.25rem; max-width: 62rem }
.flaw { background: #fdecea; border-left: 4px solid #c0392b; padding: .5rem .75rem; margin: .5rem 0 }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 1.25rem }
figure { margin: 0; border: 1px solid #e3e7ec; border-radius: 6px; padding: .75rem }
figcaption { font-weight: 600 } figcaption span { font-weight: 400; color: #5b6675 }
img { width: 100%; height: auto; display: block }
figure.wide { grid-column: 1 / -1 }
.scroll { overflow-x: auto } table { border-collapse: collapse; white-space: nowrap; font-size: 14px; width: 100% }
th, td { text-align: right; padding: .3rem .45rem; border-bottom: 1px solid #e3e7ec;
         font-variant-numeric: tabular-nums }
th { font-weight: 600; color: #5b6675 } th:first-child, td:first-child { text-align: left }
tr.kind td { color: #5b6675; border-bottom-color: #f1f3f6 } tr.kind td:first-child { padding-left: 1.75rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; margin: 0 } dt { color: #5b6675 }
dd { margin: 0; overflow-wrap: anywhere } p { max-width: 62rem }
"""


def _lead(result: Result) -> str:
    alone = ", ".join(f"{kind} {value:.1f} ms" for kind, value in result.alone_ms.items())
    sentences = [f"Without load: {alone} (median)."]
    if result.capacity:
        sentences.append(
            f"<b>Capacity: {result.capacity.rate_per_s:.1f} requests per second</b>, the highest rate at which"
            f" {100 * result.capacity.share:g} % of requests were answered in time: {_confirmed(result.capacity)}."
        )
        sentences += [f"It may be higher: {_text(_limit(result.capacity))}."] if result.capacity.flaws else []
    sentences.append(
        f"Of {result.checked:,} answers under load, "
        + (f"<b>{result.wrong:,} differ</b>" if result.wrong else "none differs")
        + " from the answer given without load."
    )  # fmt: skip
    return " ".join(sentences)


def _confirmed(found: Capacity) -> str:
    return f"of {found.confirmed_requests:,} requests at this rate {100 * found.confirmed_share:.1f} % were in time"


def _limit(found: Capacity) -> str:
    return f"the generator, not the server, was the limit: {'; '.join(found.flaws)}"


def _method(result: Result) -> list[str]:
    """Describe in plain words how the figures were obtained."""
    arrivals = "at random times, as independent clients do (Poisson)" if result.arrivals == "poisson" else "evenly"
    deadlines = ", ".join(f"{kind} {value:.1f} ms" for kind, value in result.deadline_ms.items())
    if deadlines:
        in_time = f"In time: 200 within the deadline that each request carries in X-Deadline-Ms ({deadlines})."
    else:
        in_time = "No deadline was sent, so the server's own applied: any 200 counts as in time."
    pictures = "No two requests have the same picture, so the server's caches do not help."
    return [
        "An open loop: each request is sent at its scheduled time, however slowly earlier ones are answered. They come"
        f" {arrivals}. <b>Latency counts from the scheduled time</b> to the last byte of the response, on the"
        " generator's clock: when a server stalls, the requests that pile up meanwhile count as slow, as they are for"
        " whoever sent them.",
        f"{in_time} Goodput: answers in time that arrive before the schedule ends, per second of it; so it never"
        " exceeds what the server can sustain. Percentiles are of answers with 200 only. Each is"
        " a value that was measured (nearest rank), and is left out where there are too few: p99 needs a hundred."
        " Refused: 429 and 503. Failed: everything else.",
        f"Lag: how late the generator sent a request; it is part of the latency. Where over {100 * LATE_SHARE:g} % of"
        f" requests were sent more than {LATE_MS:g} ms or a tenth of the shortest deadline late, the run is marked: its"
        " figures say more about the generator than about the server."
        + (" Here both shared the processors of one machine." if result.same_machine else ""),
        f"{result.samples:,} samples were first asked alone, and each must get the same answer under load. (Of"
        f" {result.known:,} whose right answer is known, {result.right:,} were answered rightly.) "
        + ("Samples were sent as they are, so the server's caches help." if result.identical else pictures),
        "Outside the server: latency minus the total of Server-Timing. It is the network, the server's HTTP layer"
        " before it has read a request's head and after it has written the answer, and the lag.",
    ]


def _table(result: Result) -> str:
    head = ["offered/s", "requests", "goodput/s", "in time", *(f"{name} ms" for name in PERCENTILES.values())]
    head += ["refused", "failed", "wrong", "lag p99 ms"]
    body = []
    for load in result.loads:
        body.append(_line(f"{load.rate_per_s:g}", load.summary))
        if len(load.by_kind) > 1:
            body += [_line(kind, load.by_kind[kind], "kind") for kind in result.alone_ms if kind in load.by_kind]
    cells = "".join(f"<th>{_text(name)}</th>" for name in head)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _line(name: str, found: Summary, css: str = "load") -> str:
    cells = [
        name,
        f"{found.requests:,}",
        f"{found.goodput_per_s:.1f}",
        _share(found.in_time, found.requests),
        *(_ms(found.latency_ms, percentile) for percentile in PERCENTILES),
        f"{found.refused:,}",
        f"{found.failed:,}",
        f"{found.wrong:,}",
        _ms(found.lag_ms, "p99"),
    ]
    return f'<tr class="{css}">' + "".join(f"<td>{_text(cell)}</td>" for cell in cells) + "</tr>"


def _facts(result: Result) -> str:
    facts = {
        "date": result.date,
        "commit": result.commit or "not a clone",
        "command": result.command,
        "generator": ", ".join(f"{name} {value}" for name, value in result.machine.items()),
        "server": "started for this run, on the same machine" if result.same_machine else "already running",
        "models": "; ".join(", ".join(f"{name} {value}" for name, value in model.items()) for model in result.models),
        "versions": ", ".join(f"{name} {value}" for name, value in result.versions.items()),
        "scenario": f"{result.scenario}, {result.arrivals} arrivals, seed {result.seed}",
    }
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{_text(value)}</dd>" for name, value in facts.items()) + "</dl>"


def _figure(title: str, subtitle: str, image: str, *, wide: bool = False) -> str:
    caption = f"<figcaption>{title} <span>{subtitle}</span></figcaption>"
    alt = f"{title}, {subtitle}; the figures are in the table"
    css = ' class="wide"' if wide else ""
    return f'<figure{css}>{caption}<img src="{image}" alt="{alt}"></figure>'


def _ms(found: Percentiles | None, name: str) -> str:
    value = getattr(found, name, None)
    return "" if value is None else f"{value:,.1f}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _text(value: object) -> str:
    return html.escape(str(value))
