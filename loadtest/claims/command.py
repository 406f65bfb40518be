"""Time ViLT and the designs that the paper compares it with, stage by stage.

The designs have random weights and run on one engine with the same number of threads, in turns. The first run builds
their graphs, which needs torch and about 5 GB of disk. A run takes some 10 minutes on two cores, and 12 GB of memory.
When interrupted, it reports the complete rounds.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from loadtest.arguments import add_command, at_least
from loadtest.claims import charts, picture, plan, report, runner
from loadtest.claims.plan import NAMES, VILT, Design
from loadtest.claims.runner import PROVIDERS, Sessions, Stages, Timed
from loadtest.claims.summary import RANKED, VILT_INT8, Measured, as_json, summarise
from loadtest.stamp import save, stamp
from server.engine import count_threads

SHALLOW = "shallow interaction"
DETECTED_CLASSES = (1, 3, 10, 30, 100, 300, 1000, 1600)
BOXES_PER_CLASS = (20, 200)


def add_to(commands: Any) -> None:
    """Declare `vilt-bench claims`."""
    parser = add_command(commands, "claims", "ViLT beside every design that the paper compares it with", __doc__, run)
    parser.add_argument("--models", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument(
        "--repeat", type=at_least(1), default=5, metavar="N", help="rounds, after one to warm up (default %(default)s)"
    )
    parser.add_argument(
        "--threads", type=at_least(0), default=0, metavar="N", help="threads for every design; 0: all CPUs (default)"
    )
    parser.add_argument(
        "--provider", choices=PROVIDERS, default="cpu", help="onnxruntime's execution provider (default %(default)s)"
    )
    parser.add_argument("--graphs", type=Path, metavar="DIR", help="folder for the graphs (default: the user's cache)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for claims.json, claims.md and the figures")


def run(options: argparse.Namespace) -> None:
    described = stamp()
    folder = options.graphs or plan.default_folder()
    threads = count_threads(options.threads)
    try:
        designs = plan.prepare(folder, options.models)
        sessions = Sessions(options.provider, threads)
        timed = timed_designs(designs, sessions)
    except subprocess.CalledProcessError:
        sys.exit(
            "vilt-bench claims: the graphs could not be built (see above); building them needs pip install '.[export]'"
        )
    pairs_s = time_ranks(designs, sessions, options.repeat)  # first: without them ranks would be told wrongly
    samples, complete = measure(timed, options.repeat)
    rounds = len(next(iter(samples.values())))
    if not rounds:
        sys.exit("vilt-bench claims: interrupted; no round is complete, and nothing is written")
    curves: dict[int, dict[int, float]] = {}
    if complete:
        try:
            curves = nms_curves(designs, sessions, options.repeat)
        except KeyboardInterrupt:
            complete = False
    found = summaries(designs, samples, pairs_s)
    text = report.markdown(found)
    print(text)
    if options.output:
        save(
            options.output / "claims.json",
            "claims",
            described,
            graphs=plan.tools(folder),
            provider=options.provider,
            threads=threads,
            complete=complete,
            designs=as_json(found),
            nms_ms_by_boxes_and_detected_classes=curves,
        )
        (options.output / "claims.md").write_text(text)
        charts.draw_all(found, curves, nms_levels(found), options.output)
    if not complete:
        sys.exit(f"vilt-bench claims: interrupted; {rounds} of {options.repeat} rounds are complete and reported above")


def timed_designs(designs: Sequence[Design], sessions: Sessions) -> dict[str, Timed]:
    """Prepare every design to be run; on a CPU, ViLT in both precisions and in the server's engine."""
    jpeg = picture.jpeg()
    timed: dict[str, Timed] = {}
    for design in designs:
        if design.name == VILT:
            timed[VILT] = runner.timed_vilt(design, "fp32", jpeg, sessions)
            if sessions.provider == "cpu":  # int8 runs on CPUs only
                timed[VILT_INT8] = runner.timed_vilt(design, "int8", jpeg, sessions)
        else:
            timed[design.name] = runner.timed_design(design, sessions, jpeg)
    return timed


def measure(timed: Mapping[str, Timed], repeat: int) -> tuple[dict[str, list[Stages]], bool]:
    """Run all designs once to warm up and then in turns, so that drift affects all alike.

    When interrupted, return the complete rounds, and false.
    """
    samples: dict[str, list[Stages]] = {name: [] for name in timed}
    with tqdm(total=(1 + repeat) * len(timed), unit="run", disable=None) as bar:
        try:
            for number in range(1 + repeat):
                one_round = {}
                for name, run_once in timed.items():
                    bar.set_description(f"{f'round {number}' if number else 'warm-up'}: {name}")
                    one_round[name] = run_once()
                    bar.update()
                for name, found in one_round.items() if number else ():
                    samples[name].append(found)
        except KeyboardInterrupt:
            return samples, False
    return samples, True


def summaries(
    designs: Sequence[Design], samples: Mapping[str, Sequence[Stages]], pairs_s: Mapping[str, Sequence[float]]
) -> list[Measured]:
    """Summarise every design, if there is a complete round."""
    named = [(design.name, design.title, design) for design in designs]
    named += [(VILT_INT8, f"{design.title}, int8", design) for design in designs if design.name == VILT]
    return [
        summarise(design, samples[name], name=name, title=title, pairs_s=pairs_s.get(name, ()))
        for name, title, design in named
        if samples.get(name)
    ]


def time_ranks(designs: Sequence[Design], sessions: Sessions, repeat: int) -> dict[str, list[float]]:
    """Time one text against 1,000 kept vectors, for the designs that do it in one run."""
    return {
        design.name: runner.time_pairs(design, sessions, RANKED, repeat)
        for design in designs
        if design.family == SHALLOW
    }


def nms_curves(designs: Sequence[Design], sessions: Sessions, repeat: int) -> dict[int, dict[int, float]]:
    """Time per-class suppression over the number of detected classes, for few and many boxes in each, in ms."""
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
    """Return the times of the other ways to suppress: every box in every class, and all classes at once."""
    by_name = {one.name: one.stages_ms["nms"] for one in found if "nms" in one.stages_ms}
    labels = {
        "uniter": "every box in every class, as the designs do",
        "vinvl": "all classes at once, as VinVL does",
    }
    return {label: by_name[name] for name, label in labels.items() if name in by_name}
