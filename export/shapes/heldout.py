"""Write scenes that are never trained on, with questions, captions and ranks, for `vilt-bench accuracy`.

Every candidate that should lose a rank is checked not to hold, from the objects of the scene. Of the captions to choose
from for a picture, a few differ from a true one by one word, which makes them false; the others are true of other
scenes.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from export.shapes.captions import false_caption, true_caption
from export.shapes.questions import KINDS, question
from export.shapes.scenes import Scene, draw, random_scene

HELD_OUT = 1  # first number of a scene's seed; training uses 0 and 2
FIRST = 1_000_000  # beyond the scenes that the learning curve is measured on
CANDIDATES = 20
AMONG = 1000  # the first scenes: ranks are of these, and among these
NEAR_MISSES = 4  # of the captions to choose from

Record = dict[str, Any]


def held_out_scene(index: int) -> Scene:
    """Draw a scene that training never saw."""
    return random_scene((HELD_OUT, FIRST + index))


def name_of(index: int) -> str:
    """Name the file of a held-out scene's picture."""
    return f"{index:05}.png"


def questions(index: int, count: int) -> Iterator[Record]:
    """Ask up to `count` questions about a scene, each of another kind."""
    scene, rng = held_out_scene(index), np.random.default_rng((HELD_OUT, FIRST + index, 2))
    for kind in rng.permutation(KINDS):
        asked = question(scene, str(kind), rng) if count else None
        if asked is not None:
            yield {"image": name_of(index), "question": asked.text, "answer": asked.answer, "kind": asked.kind}
            count -= 1


def matches(index: int) -> Iterator[Record]:
    """Pair a scene with a true caption and with one that a single word makes false."""
    scene, rng = held_out_scene(index), np.random.default_rng((HELD_OUT, FIRST + index, 4))
    yield {"image": name_of(index), "text": str(true_caption(scene, rng)), "match": True}
    yield {"image": name_of(index), "text": str(false_caption(scene, rng)), "match": False}


def rank_of_images(index: int, scenes: Sequence[Scene]) -> Record:
    """Rank a scene's picture among others for which its caption does not hold."""
    rng = np.random.default_rng((HELD_OUT, FIRST + index, 5))
    while True:
        caption = true_caption(scenes[index], rng)
        wrong = [name_of(int(other)) for other in rng.permutation(len(scenes)) if caption.holds(scenes[other]) is False]
        if len(wrong) >= CANDIDATES - 1:
            return _record(rng, "images", name_of(index), wrong) | {"text": str(caption)}


def rank_of_texts(index: int, scenes: Sequence[Scene]) -> Record:
    """Rank a scene's caption among others that do not hold for it."""
    scene, rng = scenes[index], np.random.default_rng((HELD_OUT, FIRST + index, 6))
    right = str(true_caption(scene, rng))
    wrong = list({str(false_caption(scene, rng)): None for _ in range(NEAR_MISSES)})
    for other in rng.permutation(len(scenes)):
        caption = true_caption(scenes[other], rng)
        if caption.holds(scene) is False and str(caption) not in wrong:
            wrong.append(str(caption))
        if len(wrong) == CANDIDATES - 1:
            break
    return _record(rng, "texts", right, wrong) | {"image": name_of(index)}


def _record(rng: np.random.Generator, kind: str, right: str, wrong: list[str]) -> Record:
    """Put the right candidate anywhere among the first wrong ones."""
    match = int(rng.integers(CANDIDATES))
    candidates = wrong[: CANDIDATES - 1]
    candidates.insert(match, right)
    return {kind: candidates, "match": match}


def write(folder: Path, *, scenes: int, asked: int, ranked: int) -> None:
    """Draw scenes into a folder and write what to ask about them to data.jsonl beside them.

    Raises: ValueError: too few scenes to rank, or to rank among.
    """
    if ranked and scenes < 2 * CANDIDATES:
        raise ValueError(f"ranking needs at least {2 * CANDIDATES} scenes")
    if ranked > min(scenes, AMONG):
        raise ValueError(f"there can be at most {min(scenes, AMONG)} ranks: one for each of the first {AMONG} scenes")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [held_out_scene(index) for index in range(scenes)]
    records: list[Record] = []
    for index in tqdm(range(scenes), unit="scene", disable=None):
        draw(drawn[index]).save(folder / name_of(index))
        records += questions(index, asked * (index + 1) // scenes - asked * index // scenes)
        records += matches(index)
        if index < ranked:
            records += [rank_of_images(index, drawn[:AMONG]), rank_of_texts(index, drawn[:AMONG])]
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m export.shapes.heldout",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder for the pictures and data.jsonl"
    )
    parser.add_argument("--scenes", type=int, default=2000, help="number of scenes (default %(default)s)")
    parser.add_argument(
        "--questions", type=int, default=5200, help="questions about all scenes together (default %(default)s)"
    )
    parser.add_argument(
        "--ranks",
        type=int,
        default=500,
        help="ranks in each direction, of images and of texts, at most one for each of the first"
        f" {AMONG} scenes (default %(default)s)",
    )
    options = parser.parse_args()
    try:
        write(options.output, scenes=options.scenes, asked=options.questions, ranked=options.ranks)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
