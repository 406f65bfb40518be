"""The only shapes that a GPU runs: a CUDA graph is captured for one shape, and TensorRT is tuned for a range.

A batch is padded to the cheapest bucket that holds it. A batch that no bucket holds is refused here, before a library
sees it: onnxruntime would replay a graph on a shape that it was not captured for, and TensorRT would build for minutes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.batch import Features
from models.image import ImagePatches
from models.spec import ViltSpec
from models.text import TextTokens

ALIGNED = 8  # tokens: fused attention needs rows that are a multiple of 4 halves, tensor cores of 8
SHORT_TEXT = 15  # tokens: most questions; with the picture's cls token a multiple of ALIGNED
LATENCY_BATCH = 4  # a profile for up to this many rows is tuned for one row


class OutsideBuckets(ValueError):
    """No bucket holds the batch; the message has its shape."""


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """The shape of a run: rows, text tokens, patches."""

    batch: int
    length: int
    patches: int

    @property
    def tokens(self) -> int:
        """Return a row's tokens: text, the image's cls token, patches."""
        return self.length + 1 + self.patches

    def holds(self, other: "Bucket") -> bool:
        """Check whether a batch of this shape fits."""
        return other.batch <= self.batch and other.length <= self.length and other.patches <= self.patches

    def shapes(self, patch_values: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each of the graph's inputs."""
        return {
            "input_ids": (self.batch, self.length),
            "patches": (self.batch, self.patches, patch_values),
            "position_ids": (self.batch, self.patches),
            "mask": (self.batch, self.tokens),
        }


@dataclass(frozen=True, slots=True)
class Profile:
    """The range of shapes that one TensorRT engine runs, and the shape that it is tuned for."""

    smallest: Bucket
    tuned: Bucket
    largest: Bucket

    def holds(self, bucket: Bucket) -> bool:
        """Check whether the engine may be given this shape."""
        return self.largest.holds(bucket) and bucket.holds(self.smallest)


def buckets_of(spec: ViltSpec, most: int) -> list[Bucket]:
    """List the shapes for a model: two lengths of text, the common sizes of an image, and powers of two as batches.

    Any text and any grid fit into one of them, up to `most` rows.
    """
    return [bucket for patches in _pictures(spec) for bucket in _of_picture(spec, patches, most)]


def profiles_of(spec: ViltSpec, most: int) -> list[Profile]:
    """Group the same shapes for TensorRT, which tunes for one shape of a range: by image size, and by few or many rows.

    A narrow range is faster; each takes about a minute to build, once on a machine, and memory for its weights.
    """
    profiles = []
    for patches in _pictures(spec):
        buckets = _of_picture(spec, patches, most)
        few = [bucket for bucket in buckets if bucket.batch <= LATENCY_BATCH]
        many = [bucket for bucket in buckets if bucket.batch > LATENCY_BATCH]
        profiles.append(span(few, tuned=few[0]))
        if many:
            tuned = next(bucket for bucket in many if bucket.batch == most)
            profiles.append(span(many, tuned=tuned))
    return profiles


def span(buckets: Sequence[Bucket], tuned: Bucket) -> Profile:
    """Return the range from the smallest to the largest value on every axis."""
    axes = [[getattr(bucket, axis) for bucket in buckets] for axis in ("batch", "length", "patches")]
    return Profile(Bucket(*(min(axis) for axis in axes)), tuned, Bucket(*(max(axis) for axis in axes)))


def choose(buckets: Sequence[Bucket], wanted: Bucket) -> Bucket:
    """Return the bucket with the fewest tokens of those that hold a batch.

    Raises: OutsideBuckets: there is none.
    """
    holding = [bucket for bucket in buckets if bucket.holds(wanted)]
    if not holding:
        raise OutsideBuckets(
            f"A batch of {wanted.batch} with {wanted.length} text tokens and {wanted.patches} patches is larger than"
            f" any shape that this engine runs; the largest is {max(buckets)}."
        )
    return min(holding, key=lambda bucket: (bucket.batch * bucket.tokens, bucket))


def padded(buckets: Sequence[Bucket], batch: int, tokens: float) -> tuple[int, int]:
    """Estimate what a batch whose rows have so many tokens is padded to: rows, and tokens of a row."""
    holding = [bucket for bucket in buckets if bucket.batch >= batch and bucket.tokens >= tokens]
    best = min(holding or [max(buckets)], key=lambda bucket: (bucket.batch * bucket.tokens, bucket))
    return max(best.batch, batch), best.tokens


def blank(bucket: Bucket, patch_values: int) -> list[Features]:
    """Make a batch that fills a bucket, for warm-up."""
    patches = np.zeros((bucket.patches, patch_values), np.uint8)
    image = ImagePatches(patches, np.ones(bucket.patches, np.int64), (1, bucket.patches))
    return [Features(image, TextTokens(np.zeros(bucket.length, np.int64), truncated=False))] * bucket.batch


def _pictures(spec: ViltSpec) -> list[int]:
    """Return the numbers of patches of square, 4:3 and 3:2 images, and the largest possible."""
    side = spec.shortest_edge_px // spec.patch_px
    largest = max(map(math.prod, spec.grids))
    common = {side * side, side * round(4 / 3 * side), side * round(3 / 2 * side)}
    return sorted({count for count in common if count < largest} | {largest})


def _of_picture(spec: ViltSpec, patches: int, most: int) -> list[Bucket]:
    lengths = sorted({min(SHORT_TEXT, spec.max_text_tokens), spec.max_text_tokens})
    batches = [*(2**power for power in range(most.bit_length()) if 2**power < most), most]
    return [
        Bucket(batch, length, math.ceil((length + 1 + patches) / ALIGNED) * ALIGNED - length - 1)
        for length in lengths
        for batch in batches
    ]
