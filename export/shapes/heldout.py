"""Write held-out scenes as pictures with questions and captions, for `vilt-bench accuracy`: never trained on."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from export.shapes.language import KINDS, caption, question
from export.shapes.scenes import draw, random_scene

HELD_OUT = 1  # first number of a scene's seed; training uses 0 and 2
FIRST = 1_000_000  # beyond the scenes that the learning curve is measured on


def records(index: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Draw one scene and yield one question of each kind that it allows, a true caption and a false one."""
    seed = (HELD_OUT, FIRST + index)
    scene, rng = random_scene(seed), np.random.default_rng((*seed, 2))
    image = f"{index:05}.png"
    draw(scene).save(folder / image)
    for kind in KINDS:
        asked = question(scene, kind, rng)
        if asked is not None:
            yield {"image": image, "question": asked.text, "answer": asked.answer, "kind": kind}
    for match in (True, False):
        yield {"image": image, "text": caption(scene, rng, true=match), "match": match}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m export.shapes.heldout", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where pictures and data.jsonl go")
    parser.add_argument("--scenes", type=int, default=1000, help="how many (default %(default)s)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with (options.output / "data.jsonl").open("w") as file:
        for index in tqdm(range(options.scenes), unit="scene", disable=None):
            file.writelines(json.dumps(record) + "\n" for record in records(index, options.output))


if __name__ == "__main__":
    main()
