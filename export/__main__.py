"""The command vilt-export: checkpoint in, verified artifact folder out."""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from export import checkpoint
from export.artifact import OutputError, write_artifact
from export.parity import ParityError
from models.manifest import TASKS

EXAMPLES = """examples:
  vilt-export dandelin/vilt-b32-finetuned-vqa --output models/vqa     a public checkpoint, downloaded from the hub
  vilt-export ./my-checkpoint --output models/mine --task vqa         a folder written by save_pretrained
  vilt-export vilt_vqa.ckpt --output models/vqa --tokenizer vocab.txt --labels vqa_dict.json
  vilt-serve --model models/vqa                                       then serve it
"""
STEPS = 6  # load, three graphs, parity, manifest


def main() -> None:
    options = _parser().parse_args()
    with tqdm(total=STEPS, unit="step", bar_format="{l_bar}{bar:24}| {n_fmt}/{total_fmt} {elapsed}{postfix}") as bar:

        def report(step: str) -> None:
            bar.update()
            bar.set_postfix_str(step)

        bar.set_postfix_str(f"loading {options.checkpoint}")
        try:
            loaded = checkpoint.load(options.checkpoint, tokenizer=options.tokenizer, labels=options.labels)
            manifest = write_artifact(
                loaded,
                options.output,
                name=options.name or options.output.resolve().name,
                description=options.description,
                tasks=options.task,
                report=report,
            )
        except (checkpoint.CheckpointError, ParityError, OutputError) as error:
            bar.close()
            sys.exit(f"vilt-export: {error}")
        bar.update()
    found = manifest.precisions["fp32"].parity
    size_mb = sum(entry.size_bytes for entry in manifest.precisions["fp32"].graphs.values()) / 1e6
    print(
        f"{options.output}: {', '.join(manifest.tasks)}; fp32, {size_mb:.1f} MB;"
        f" max |logit difference| to transformers {found['max_logit_difference_to_transformers']:.1e}"
        f" over {found['batches']} batches ({found['tolerance']:.0e} allowed)"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vilt-export",
        description="Turn a trained ViLT checkpoint into an artifact that vilt-serve serves, and prove that its answers"
        " are the checkpoint's.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint",
        help="a Hugging Face folder, a hub id such as dandelin/vilt-b32-finetuned-vqa, or an original .ckpt file",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the artifact folder to write")
    parser.add_argument(
        "--task", action="append", default=[], choices=list(TASKS), help="keep only this task's heads (repeatable)"
    )
    parser.add_argument("--precision", choices=["fp32"], default="fp32", help="of the graphs (default %(default)s)")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json or vocab.txt, if not beside it")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="JSON list of answers, if config.json has none")
    parser.add_argument("--name", help="what requests call the model (default: the output folder's name)")
    parser.add_argument("--description", default="", help="a sentence for people, shown by GET /v1/models")
    return parser


if __name__ == "__main__":
    main()
