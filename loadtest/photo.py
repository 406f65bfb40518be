"""What benchmarks ask that compare servers, or look at one request: one 640x480 JPEG, questions of 6 to 14 words."""

import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from loadtest.workload import Request, Sample, nonces

QUESTIONS = (  # one of each length, of words that are one token each, in BERT's vocabulary and in random_checkpoint's
    "what color is the big bus?",
    "is there a dog on the table?",
    "how many people are sitting on the couch?",
    "what is the man in the red hat holding?",
    "is the car behind the big bus red or blue?",
    "is the cat on the left of the big brown chair?",
    "what kind of food is on the plate next to the fork?",
    "is there a bird in the sky above the blue house and tree?",
    "what is the woman in the white dress doing in front of the window?",
)


def draw() -> bytes:
    """Draw a JPEG that compresses as a photo does: smooth colours and a little grain, 80 kB."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = coarse.resize((640, 480), Image.Resampling.BICUBIC)
    grainy = (np.asarray(smooth) + rng.normal(0, 6, (480, 640, 3))).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grainy).save(file, "JPEG", quality=90)
    return file.getvalue()


def read(path: Path | None) -> bytes:
    """Read a JPEG, or draw one where none is given.

    Raises: OSError: there is no such file; ValueError: it is not a JPEG.
    """
    if path is None:
        return draw()
    data = path.read_bytes()
    if not data.startswith(b"\xff\xd8"):
        raise ValueError(f"{path} is not a JPEG")
    return data


def size_of(data: bytes) -> str:
    """Tell width and height."""
    with Image.open(io.BytesIO(data)) as image:
        return "{}x{}".format(*image.size)


def requests(data: bytes, *, multipart: bool = False) -> Iterator[Request]:
    """Ask the questions in turn, without end; no two pictures are the same bytes, so that no cache helps."""
    samples = [
        Sample(kind="vqa", fields=(("question", text),), images=(("image", "image/jpeg", data),), multipart=multipart)
        for text in QUESTIONS
    ]
    for sample, nonce in zip(itertools.cycle(samples), nonces(), strict=False):
        yield sample.request(nonce)
