"""From a JPEG to a design's input: what users wait for before a model runs."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.image import decode

SIZE_PX = (640, 480)  # width, height: COCO's most common
QUALITY = 90
MAX_PIXELS = 50_000_000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


def jpeg() -> bytes:
    """Draw a picture with coarse and fine detail, which takes about as long to decode as a photo."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(SIZE_PX, Image.Resampling.BICUBIC), np.float32)
    grained = np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grained).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def read(data: bytes) -> Image.Image:
    """Decode a picture as the server does."""
    return decode(data, max_pixels=MAX_PIXELS, max_aspect_ratio=20.0)


def to_pixel_values(image: Image.Image, size_px: tuple[int, int]) -> NDArray[np.float32]:
    """Resize and normalise a picture for a convolution.

    Shapes: (w, h) px, size (rows, columns) -> (1, 3, rows, columns).
    """
    rows, columns = size_px
    resized = np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR), np.float32)
    normalised = (resized / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1)[None])
