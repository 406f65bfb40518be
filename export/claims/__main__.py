"""Write what `vilt-bench claims` times: `python -m export.claims --output DIR`."""

import argparse
import sys
from pathlib import Path

import transformers
from tqdm import tqdm

from export.claims import vilt
from export.claims.designs import designs
from export.claims.sizes import FULL, REDUCED
from export.claims.write import write


def main() -> None:
    names = [*(design.name for design in designs(FULL)), vilt.NAME]
    parser = argparse.ArgumentParser(
        prog="python -m export.claims",
        description="Write the structures that ViLT is compared with as ONNX graphs with random weights: at full size"
        " about 5 GB. Graphs that are in the folder already are kept.",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder for the graphs and their plan"
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=names,
        default=names,
        metavar="NAME",
        help=f"designs to write (default: all): {', '.join(names)}",
    )
    parser.add_argument(
        "--reduced", action="store_true", help="write narrow and shallow models, for tests; token counts stay"
    )
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    with tqdm(desc="building", unit="graph", disable=None) as bar:

        def report(step: str) -> None:
            bar.set_postfix_str(step)
            bar.update()

        try:
            write(options.output, REDUCED if options.reduced else FULL, options.models, report)
        except ValueError as error:
            sys.exit(f"export.claims: {error}")


if __name__ == "__main__":
    main()
