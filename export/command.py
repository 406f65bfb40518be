"""What vilt-export does: checkpoint in, verified artifact folder out."""

import argparse
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from export import checkpoint
from export.artifact import write_artifact
from export.gate import FP16, INT8, RECORDS, GateError
from export.output_folder import OutputError
from export.parity import ParityError
from models.manifest import TASKS, Manifest, Precision

EPILOG = f"""--eval-data is JSON lines of these kinds, pictures beside the file; "answer" and "match" may be left out:
{RECORDS}
  The first kind asks the head for questions, the second that for matching, the others that for ranking. Each head that
  is kept has to be asked, and to answer as fp32 does:
  int8  {INT8.least_asked} times or more, {INT8.agreement:.1%} of its answers
  fp16  {FP16.least_asked} times or more, {FP16.agreement:.1%} of its answers, each score within {FP16.score_difference}
  Where right answers are given, {INT8.loss:.1%} of them may be lost, or one.

examples:
  vilt-export dandelin/vilt-b32-finetuned-vqa --output models/vqa     a public checkpoint, downloaded from the hub
  vilt-export ./my-checkpoint --output models/mine --task vqa         a folder written by save_pretrained
  vilt-export vilt_vqa.ckpt --output models/vqa --tokenizer vocab.txt --labels vqa_dict.json
  vilt-serve --model models/vqa                                       then serve it
"""
STEPS = {"fp32": 6, "int8": 8, "fp16": 8}  # load, three graphs, parity, manifest; writing and comparing the lower one


def export() -> None:
    parser = _parser()
    options = parser.parse_args()
    if options.eval_data and options.precision == "fp32" and not options.tensorrt:
        parser.error("--eval-data judges a lower precision: add --precision int8 or fp16, or leave it out")
    sources = [one.resolve() for one in (Path(options.checkpoint), options.tokenizer, options.labels) if one]
    if options.output.resolve() in {one if one.is_dir() else one.parent for one in sources}:
        parser.error("--output is the checkpoint's own folder, whose files it would replace: give another one")
    if options.tensorrt and options.precision == "int8":
        parser.error("--tensorrt runs fp16: leave --precision int8 out")
    if options.tensorrt:
        options.precision = "fp16"
    signal.signal(signal.SIGTERM, _end)
    with tqdm(
        total=STEPS[options.precision],
        unit="step",
        bar_format="{l_bar}{bar:24}| {n_fmt}/{total_fmt} {elapsed}{postfix}",
    ) as bar:

        def report(step: str) -> None:
            bar.update()
            bar.set_postfix_str(step)

        bar.set_postfix_str(f"loading {options.checkpoint}")
        try:
            loaded = checkpoint.load(
                options.checkpoint, tokenizer=options.tokenizer, labels=options.labels, revision=options.revision
            )
            manifest = write_artifact(
                loaded,
                options.output,
                name=options.name or options.output.resolve().name,
                description=options.description,
                tasks=options.task,
                report=report,
                precision=options.precision,
                eval_data=options.eval_data,
            )
        except (checkpoint.CheckpointError, ParityError, GateError, OutputError) as error:
            bar.close()
            sys.exit(f"vilt-export: {error}")
        bar.update()
    for line in summary(options.output, manifest):
        print(line)
    if options.tensorrt:
        _build_engines(options.output)


def _end(number: int, _: object) -> None:
    """End as the signal would, but by the way that removes what is half written; another one changes nothing."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def _build_engines(output: Path) -> None:
    """Have the server build its engines, which are this machine's, in its cache; it needs the GPU, not torch."""
    command = [sys.executable, "-m", "server.gpu", str(output), "--provider", "tensorrt"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 our own
    if done.stdout:
        print(done.stdout, end="")
    if done.returncode:
        sys.exit("vilt-export: the artifact is complete, but TensorRT's engines are not: the line above says why")


def summary(output: Path, manifest: Manifest) -> Iterator[str]:
    """Say what was written, how large it is and how exact."""
    for name, precision in manifest.precisions.items():
        size_mb = sum(entry.size_bytes for entry in precision.graphs.values()) / 1e6
        yield f"{output}: {', '.join(manifest.tasks)}; {name}, {size_mb:.1f} MB; {_exactness(name, precision)}"


def _exactness(name: str, precision: Precision) -> str:
    found, gate = precision.parity, precision.gate
    if not gate:
        return (
            f"max |logit difference| to transformers {found['max_logit_difference_to_transformers']:.1e}"
            f" over {found['batches']} batches ({found['tolerance']:.0e} allowed)"
        )
    if gate["status"] == "not gated":
        return f"not gated ({gate['why']}), so only vilt-serve --precision {name} serves it"
    known = gate["accuracy"] is not None
    accuracy = f", accuracy {gate['accuracy']:.2%} ({gate['accuracy_fp32']:.2%} in fp32)" if known else ""
    why = f" ({gate['why']})" if "why" in gate else ""
    return f"{gate['status']} its gate{why}: {gate['agreement']:.2%} of answers as in fp32{accuracy}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vilt-export",
        description="Turn a trained ViLT checkpoint into an artifact that vilt-serve serves, and prove that its answers"
        " are the checkpoint's.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint",
        help="a Hugging Face folder, a hub id such as dandelin/vilt-b32-finetuned-vqa, or an original .ckpt file",
    )
    parser.add_argument(
        "--revision", help="commit, tag or branch of a hub id (default: main); the manifest has the commit"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the artifact folder to write")
    parser.add_argument(
        "--task",
        action="append",
        default=[],
        choices=list(TASKS),
        help="keep only the head that answers this task (repeatable); what ranks also matches",
    )
    parser.add_argument(
        "--precision",
        choices=list(STEPS),
        default="fp32",
        help="int8: fp32 and int8, 2 to 3 times as fast on x86 CPUs with VNNI;"
        " fp16: fp32 and fp16, for NVIDIA GPUs (default %(default)s)",
    )
    parser.add_argument(
        "--tensorrt",
        action="store_true",
        help="export fp16, build TensorRT's engines for this machine's GPU into VILT_CACHE_DIR, compare their answers",
    )
    parser.add_argument(
        "--eval-data",
        type=Path,
        metavar="FILE",
        help="what int8 or fp16 is asked, and has to answer as fp32 does before it is served unasked: see below",
    )
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json or vocab.txt, if not beside it")
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="JSON list of answers, or object of index to answer as vqa_dict.json is, if config.json names none",
    )
    parser.add_argument("--name", help="what requests call the model (default: the output folder's name)")
    parser.add_argument("--description", default="", help="a sentence for people, shown by GET /v1/models")
    return parser
