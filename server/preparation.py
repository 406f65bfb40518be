"""From one image and one text to features: base64, decoding, resizing, tokenizing; on the threads of a pool.

A refusal has the message of models/, and the part of the request that it is about.
"""

import base64
import binascii
import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from models.batch import Features
from models.errors import InputTooLarge, InvalidInput
from models.image import ImagePatches, identify, load, to_patches
from models.text import check
from server.caches import Cache
from server.errors import TooLarge, Unusable
from server.schemas import NOT_BASE64, RankBody
from server.types import ServedModel, Timings

BLANKS = b" \t\n\v\f\r"  # that may be anywhere in base64


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How large an image and a text may be, and how much memory the decoded images that are kept may take."""

    max_image_pixels: int
    max_request_pixels: int
    max_text_chars: int
    decoded_cache_bytes: int


@dataclass(frozen=True, slots=True)
class Pair:
    """One image and one text, prepared; the digest identifies the image's bytes."""

    features: Features
    digest: bytes


class _Overspent(InputTooLarge):
    """A request's images have more pixels than its budget had left."""

    def __init__(self, budget: "PixelBudget", max_pixels: int) -> None:
        super().__init__(
            "too_many_pixels",
            f"With this image the request exceeds its limit of {max_pixels:,} pixels in all images together.",
        )
        self.budget = budget


class PixelBudget:
    """The number of pixels that may still be decoded for a request; shared by pool threads."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = self._left = max_pixels
        self._lock = threading.Lock()

    def spend(self, pixels: int) -> None:
        """Subtract an image's pixels before they are decoded, each time that they are.

        Raises: InputTooLarge: not enough are left.
        """
        with self._lock:
            self._left -= pixels
            left = self._left
        if left < 0:
            raise _Overspent(self, self._max_pixels)


class Preparation:
    """Prepares pairs; a recently decoded image is not decoded again."""

    def __init__(self, limits: Limits, count_hit: Callable[[], None], *, scales_jpegs: bool = False) -> None:
        self._limits = limits
        self._scales_jpegs = scales_jpegs
        self._count_hit = count_hit
        self._decoded: Cache[ImagePatches] = Cache(limits.decoded_cache_bytes, lambda image: image.patches.nbytes)

    def budget(self) -> PixelBudget:
        """Return a new request's pixel budget."""
        return PixelBudget(self._limits.max_request_pixels)

    def pair(self, model: ServedModel, image: str | bytes, text: str, timings: Timings) -> Pair:
        """Turn one pair into features; on a pool thread."""
        with _refusing():
            self._check(text)  # first, so that no image is decoded in vain
            patches, digest = self._patches(model, image, timings, self.budget())
            tokens = model.artifact.text_encoder.encode(text)
        timings.mark("tokenize")
        return Pair(Features(patches, tokens), digest)

    def first_of(self, model: ServedModel, body: RankBody, timings: Timings, pixels: PixelBudget) -> Pair:
        """Prepare a rank's query together with its first candidate."""
        query, candidate = body.query, body.candidates[0]
        for part, item in (("query", query), *((f"candidates[{n}]", one) for n, one in enumerate(body.candidates))):
            if item.text is not None:
                with _refusing(part):
                    self._check(item.text)  # before any run, which would be in vain
        asks_text = query.text is not None
        image, text = (candidate.image, query.text) if asks_text else (query.image, candidate.text)
        with _refusing("candidates[0]" if asks_text else "query"):
            patches, digest = self._patches(model, image or b"", timings, pixels)
        tokens = model.artifact.text_encoder.encode(text or "")
        timings.mark("tokenize")
        return Pair(Features(patches, tokens), digest)

    def candidate(self, model: ServedModel, body: RankBody, index: int, first: Pair, pixels: PixelBudget) -> Pair:
        """Prepare another candidate of a rank; the query is in the first pair."""
        candidate = body.candidates[index]
        with _refusing(f"candidates[{index}]"):
            if candidate.image is not None:
                image, digest = self._patches(model, candidate.image, Timings(), pixels)
                return Pair(Features(image, first.features.text), digest)
            return Pair(
                Features(first.features.image, model.artifact.text_encoder.encode(candidate.text or "")), first.digest
            )

    def _patches(
        self, model: ServedModel, image: str | bytes, timings: Timings, pixels: PixelBudget
    ) -> tuple[ImagePatches, bytes]:
        """Return an image's patches, which may be in the cache or in the making, and its digest."""
        spec = model.artifact.manifest.spec
        data = _image_bytes(image)
        digest = hashlib.sha256(data).digest()  # modern processors have instructions for it

        def make() -> ImagePatches:
            found = identify(data, max_pixels=self._limits.max_image_pixels, max_aspect_ratio=spec.max_aspect_ratio)
            pixels.spend(found.width * found.height)  # here: who joins another's decoding pays nothing
            rgb = load(found, spec if self._scales_jpegs else None)
            timings.mark("decode")
            return to_patches(rgb, spec)

        while True:
            try:
                patches, was_there = self._decoded.get_or_make((digest, spec), make)
                break
            except _Overspent as error:
                if error.budget is pixels:  # another request's budget is no reason to refuse this one
                    raise
        if was_there:
            self._count_hit()
            timings.mark("decode")
        timings.mark("preprocess")
        return patches, digest

    def _check(self, text: str) -> None:
        if len(text) > self._limits.max_text_chars:
            raise InputTooLarge(
                "text_too_long",
                f"The text has {len(text):,} characters; at most {self._limits.max_text_chars:,} are allowed.",
            )
        check(text)


@contextlib.contextmanager
def _refusing(part: str = "") -> Iterator[None]:
    """Turn an error of models/ into the client's, with the part of the request that it is about."""
    about = f"{part.capitalize()}: " if part else ""
    try:
        yield
    except InputTooLarge as error:
        raise TooLarge(error.code, f"{about}{error}") from error
    except InvalidInput as error:
        raise Unusable(error.code, f"{about}{error}") from error


def _image_bytes(image: str | bytes) -> bytes:
    """Decode an image from base64 or a data: URI; bytes are returned unchanged."""
    if isinstance(image, bytes):
        return image
    if image[:5].lower() == "data:":
        head, _, image = image.partition(",")
        if not head.lower().endswith(";base64"):
            raise InvalidInput("invalid_base64", "The data: URI is not base64: it must read data:image/...;base64,...")
    try:
        return base64.b64decode(image.encode("ascii").translate(None, BLANKS), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput("invalid_base64", NOT_BASE64) from error
