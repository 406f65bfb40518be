"""A 640x480 JPEG and questions of 6 to 14 words, for benchmarks that compare servers or look at single requests."""

import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from loadtest.workload import Request, Sample, nonces

QUESTIONS = (  # one of each length; every word is one token, in BERT's vocabulary and random_checkpoint's
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
    """Draw a JPEG that compresses like a photo: smooth colours and a little grain, 80 kB."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = coarse.resize((640, 480), Image.Resampling.BICUBIC)
    grainy = (np.asarray(smooth) + rng.normal(0, 6, (480, 640, 3))).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grainy).save(file, "JPEG", quality=90)
    return file.getvalue()


def read(path: Path | None) -> bytes:
    """Read a JPEG, or draw one if no path is given.

    Raises: OSError: there is no such file; ValueError: it is not a JPEG.
    """
    if path is None:
        return draw()
    data = path.read_bytes()
    if not data.startswith(b"\xff\xd8"):
        raise ValueError(f"{path} is not a JPEG")
    return data


def size_of(data: bytes) -> str:
    """Format a picture's width and height."""
    with Image.open(io.BytesIO(data)) as image:
        return "{}x{}".format(*image.size)


def requests(data: bytes, *, multipart: bool = False) -> Iterator[Request]:
    """Make requests without end: the questions in turn, each picture with different bytes so that no cache helps."""
    samples = [
        Sample(kind="vqa", fields=(("question", text),), images=(("image", "image/jpeg", data),), multipart=multipart)
        for text in QUESTIONS
    ]
    for sample, nonce in zip(itertools.cycle(samples), nonces(), strict=False):
        yield sample.request(nonce)
