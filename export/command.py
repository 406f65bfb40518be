"""The vilt-export command: checkpoint in, verified artifact folder out."""

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

EPILOG = f"""--eval-data takes JSON lines of these kinds, pictures beside the file; "answer" and "match" are optional:
{RECORDS}
  The first kind is for the question answering head, the second for the matching head, the others for the ranking head.
  The lower precision passes if, for every head that is exported, there are enough examples and it agrees with fp32:
  int8  on {INT8.agreement:.1%} of at least {INT8.least_asked} answers
  fp16  on {FP16.agreement:.1%} of at least {FP16.least_asked} answers, with every score within {FP16.score_difference}
  Where the correct answers are given, at most {INT8.loss:.1%} of them, or one, may be lost.

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
    if options.eval_data and options.precision == "fp32" and not (options.tensorrt or options.kernels):
        parser.error("--eval-data is for a lower precision: add --precision int8 or fp16, or leave it out")
    sources = [one.resolve() for one in (Path(options.checkpoint), options.tokenizer, options.labels) if one]
    if options.output.resolve() in {one if one.is_dir() else one.parent for one in sources}:
        parser.error("--output is the checkpoint's own folder, whose files would be replaced: give another one")
    if options.tensorrt and options.precision == "int8":
        parser.error("--tensorrt runs fp16: leave --precision int8 out")
    if options.kernels and options.precision == "int8":
        parser.error("--kernels are for fp16: leave --precision int8 out")
    if options.tensorrt or options.kernels:
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
                own_kernels=options.kernels,
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
    """Exit as the signal would, but remove what is half written first; a second signal changes nothing."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def _build_engines(output: Path) -> None:
    """Let the server build this machine's engines in its cache; that needs the GPU, but not torch."""
    command = [sys.executable, "-m", "server.gpu", str(output), "--provider", "tensorrt"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 our own
    if done.stdout:
        print(done.stdout, end="")
    if done.returncode:
        sys.exit("vilt-export: the artifact is complete, but TensorRT's engines could not be built; see the line above")


def summary(output: Path, manifest: Manifest) -> Iterator[str]:
    """Say what was written, how large it is and how close to its reference."""
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
        description="Export a trained ViLT checkpoint to an artifact for vilt-serve, and check that it gives the"
        " checkpoint's answers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint",
        help="a Hugging Face folder, a hub id such as dandelin/vilt-b32-finetuned-vqa, or an original .ckpt file",
    )
    parser.add_argument(
        "--revision", help="commit, tag or branch of a hub id (default: main); the manifest records the commit"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the artifact folder to write")
    parser.add_argument(
        "--task",
        action="append",
        default=[],
        choices=list(TASKS),
        help="export only what this task needs; may be repeated (default: every head)."
        ' "rank" also keeps the matching head',
    )
    parser.add_argument(
        "--precision",
        choices=list(STEPS),
        default="fp32",
        help="int8 writes fp32 and int8 graphs (on x86 CPUs 2.3 to 2.4 times as fast with VNNI, 3.4 times with AMX);"
        " fp16 writes fp32 and fp16 graphs, for NVIDIA GPUs (default %(default)s)",
    )
    parser.add_argument(
        "--tensorrt",
        action="store_true",
        help="export fp16, build TensorRT engines for this machine's GPU in VILT_CACHE_DIR, and compare their answers",
    )
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="export fp16, and let --provider cuda run attention, norms and GELU in this project's own kernels, which"
        " have not run on a GPU yet",
    )
    parser.add_argument(
        "--eval-data",
        type=Path,
        metavar="FILE",
        help="examples on which int8 or fp16 must agree with fp32; without them, or if it does not, the server uses it"
        " only if told to with --precision. Format below",
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="tokenizer.json or vocab.txt, if not beside the checkpoint"
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="answers, if config.json does not name them: a JSON list, or an object of index to answer as in"
        " vqa_dict.json",
    )
    parser.add_argument("--name", help="name of the model in requests (default: the output folder's name)")
    parser.add_argument("--description", default="", help="a sentence for users, shown by GET /v1/models")
    return parser
