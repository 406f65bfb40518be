"""`vilt-bench claims`: build the designs, time them in turns, draw and report."""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from loadtest.arguments import at_least
from loadtest.claims import charts, picture, plan, report, runner
from loadtest.claims.plan import NAMES, VILT, Design
from loadtest.claims.runner import PROVIDERS, Sessions, Stages, Timed
from loadtest.claims.summary import RANKED, VILT_INT8, Measured, as_json, summarise
from loadtest.stamp import stamp
from server.engine import count_threads

SHALLOW = "shallow interaction"
DETECTED_CLASSES = (1, 3, 10, 30, 100, 300, 1000, 1600)
BOXES_PER_CLASS = (20, 200)


def add_to(commands: Any) -> None:
    """Declare `vilt-bench claims`."""
    parser = commands.add_parser(
        "claims",
        help="ViLT beside every design it is compared with",
        description="Time ViLT and the structures that the paper compares it with (random weights, one engine, the same"
        " threads, in turns), stage by stage. The first run builds the graphs, which needs torch and about 5 GB; all of"
        " it takes some 10 minutes on two cores, and 12 GB of memory. Interrupted, it reports what is complete.",
    )
    parser.add_argument("--models", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument(
        "--repeat", type=at_least(1), default=5, metavar="N", help="rounds, after one to warm up (%(default)s)"
    )
    parser.add_argument(
        "--threads", type=at_least(0), default=0, metavar="N", help="of every design (default: all CPUs)"
    )
    parser.add_argument("--provider", choices=PROVIDERS, default="cpu", help="of onnxruntime (default %(default)s)")
    parser.add_argument("--graphs", type=Path, metavar="DIR", help="where graphs are kept (default: the user's cache)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write claims.json, claims.md and the figures there")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    described = stamp()  # as it is now: a run takes a while
    folder = options.graphs or plan.default_folder()
    threads = count_threads(options.threads)
    try:
        designs = plan.prepare(folder, options.models)
        sessions = Sessions(options.provider, threads)
        timed = timed_designs(designs, sessions)
    except subprocess.CalledProcessError:
        sys.exit("vilt-bench claims: the graphs could not be built (see above); it takes pip install '.[export]'")
    samples, complete = measure(timed, options.repeat)
    pairs_s: dict[str, list[float]] = {}
    curves: dict[int, dict[int, float]] = {}
    if complete:
        try:
            pairs_s = time_ranks(designs, sessions, options.repeat)
            curves = nms_curves(designs, sessions, options.repeat)
        except KeyboardInterrupt:
            complete = False
    found = summaries(designs, samples, pairs_s)
    text = report.markdown(found)
    print(text)
    if options.output:
        result = {
            "benchmark": "vilt-bench claims",
            **described,
            "graphs": plan.tools(folder),
            "provider": options.provider,
            "threads": threads,
            "complete": complete,
            "designs": as_json(found),
            "nms_ms_by_boxes_and_detected_classes": curves,
        }
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "claims.json").write_text(json.dumps(result, indent=1) + "\n")
        (options.output / "claims.md").write_text(text)
        charts.draw_all(found, curves, nms_levels(found), options.output)


def timed_designs(designs: Sequence[Design], sessions: Sessions) -> dict[str, Timed]:
    """Make every design ready to run; on a CPU ViLT in both precisions, through the server's engine."""
    jpeg = picture.jpeg()
    timed: dict[str, Timed] = {}
    for design in designs:
        if design.name == VILT:
            timed[VILT] = runner.timed_vilt(design, "fp32", jpeg, sessions)
            if sessions.provider == "cpu":  # int8 is a CPU's
                timed[VILT_INT8] = runner.timed_vilt(design, "int8", jpeg, sessions)
        else:
            timed[design.name] = runner.timed_design(design, sessions, jpeg)
    return timed


def measure(timed: Mapping[str, Timed], repeat: int) -> tuple[dict[str, list[Stages]], bool]:
    """Run all designs once to warm up and then in turns, so that drift falls on all alike.

    Interrupted, return what there is, and false.
    """
    samples: dict[str, list[Stages]] = {name: [] for name in timed}
    with tqdm(total=(1 + repeat) * len(timed), unit="run", disable=None) as bar:
        try:
            for round_number in range(1 + repeat):
                for name, run_once in timed.items():
                    bar.set_description(f"{'warm-up' if round_number == 0 else f'round {round_number}'}: {name}")
                    found = run_once()
                    if round_number > 0:
                        samples[name].append(found)
                    bar.update()
        except KeyboardInterrupt:
            return samples, False
    return samples, True


def summaries(
    designs: Sequence[Design], samples: Mapping[str, Sequence[Stages]], pairs_s: Mapping[str, Sequence[float]]
) -> list[Measured]:
    """Summarise every design that has a complete round."""
    named = [(design.name, design.title, design) for design in designs]
    named += [(VILT_INT8, f"{design.title}, int8", design) for design in designs if design.name == VILT]
    return [
        summarise(design, samples[name], name=name, title=title, pairs_s=pairs_s.get(name, ()))
        for name, title, design in named
        if samples.get(name)
    ]


def time_ranks(designs: Sequence[Design], sessions: Sessions, repeat: int) -> dict[str, list[float]]:
    """Time one text against 1,000 kept vectors where that is one run."""
    return {
        design.name: runner.time_pairs(design, sessions, RANKED, repeat)
        for design in designs
        if design.family == SHALLOW
    }


def nms_curves(designs: Sequence[Design], sessions: Sessions, repeat: int) -> dict[int, dict[int, float]]:
    """Time per-class suppression over detected classes, for few and many boxes in each, in ms."""
    design = next((design for design in designs if "class_scores" in design.sources), None)
    if design is None:
        return {}
    classes = design.sources["class_scores"].shape[1]

    def median_ms(detected: int, per_class: int) -> float:
        found_s = runner.time_nms(design, sessions, detected=detected, per_class=per_class, repeat=3 * repeat)
        return round(1000 * statistics.median(found_s), 3)

    return {
        per_class: {detected: median_ms(detected, per_class) for detected in DETECTED_CLASSES if detected <= classes}
        for per_class in BOXES_PER_CLASS
    }


def nms_levels(found: Sequence[Measured]) -> dict[str, float]:
    """Name the other ways to suppress: every box in every class, and all classes at once."""
    by_name = {one.name: one.stages_ms["nms"] for one in found if "nms" in one.stages_ms}
    labels = {
        "uniter": "every box in every class, as the designs do",
        "vinvl": "all classes at once, as VinVL does",
    }
    return {label: by_name[name] for name, label in labels.items() if name in by_name}
