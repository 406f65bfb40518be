"""Scenes of coloured shapes: their contents, and how they are drawn.

A scene is a value: the same seed always draws the same picture. Nothing here knows of questions, tokens or tensors.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (250, 220, 40),
    "green": (40, 160, 60),
    "cyan": (40, 205, 220),
    "blue": (40, 80, 220),
    "purple": (140, 60, 190),
    "pink": (250, 130, 190),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
MAX_THINGS = 6

# Lengths are in units of a scene whose shorter side is 160: pixels of what the model sees, one patch being 32.
SHORT_SIDE = 160.0
MAX_ASPECT = 1.8  # 16:9 and all below
RADIUS = (10.0, 32.0)  # of the circle around an object
SMALL_RADIUS, LARGE_RADIUS = 16.0, 24.0  # small up to, large from; between them, neither is said
GAP = 2.0  # between the circles around two objects
MIN_CENTRES_APART = 32.0  # along one axis or the other
SCALES = (1.5, 2.0, 2.5, 3.0)  # pixels drawn for each unit: pictures of 240 to 864 pixels a side

Color = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: what it is and where its centre lies."""

    color: str
    shape: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True, slots=True)
class Background:
    """A small picture, stretched over the scene by a Pillow filter: plain, gradient, blotches, stripes or checks."""

    rows: tuple[tuple[Color, ...], ...]
    stretch: Image.Resampling


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects that do not touch each other, anywhere on a background that is nearly grey."""

    things: tuple[Thing, ...]
    background: Background
    width: float
    height: float
    scale: float
    seed: tuple[int, ...]


def random_scene(
    seed: tuple[int, ...],
    *,
    counts: tuple[int, int] = (1, MAX_THINGS),
    size: tuple[float, float] | None = None,
) -> Scene:
    """Draw a scene from a seed, of any size up to MAX_ASPECT unless one is given.

    In half of the scenes colours or shapes come from a small palette, so that counts above one are common.
    """
    rng = np.random.default_rng(seed)
    width, height = random_size(rng) if size is None else size
    colors, shapes = list(COLORS), list(SHAPES)
    if rng.random() < 0.5:
        colors = list(rng.choice(colors, size=int(rng.integers(1, 4)), replace=False))
    if rng.random() < 0.5:
        shapes = list(rng.choice(shapes, size=int(rng.integers(1, 4)), replace=False))
    things: list[Thing] = []
    for _ in range(int(rng.integers(counts[0], counts[1] + 1))):
        color, shape = str(rng.choice(colors)), str(rng.choice(shapes))
        room = _find_room(things, (width, height), rng)
        if room is not None:
            things.append(Thing(color, shape, *room))
    return Scene(tuple(things), _random_background(rng), width, height, float(rng.choice(SCALES)), seed)


def random_size(rng: np.random.Generator) -> tuple[float, float]:
    """Draw the width and height of a scene: square, wide or tall."""
    kind = int(rng.integers(3))
    longer = SHORT_SIDE * float(rng.uniform(1, MAX_ASPECT))
    return [(SHORT_SIDE, SHORT_SIDE), (longer, SHORT_SIDE), (SHORT_SIDE, longer)][kind]


def draw(scene: Scene) -> Image.Image:
    """Paint a scene in RGB at `scale` pixels per unit; each object's colour is a little off the named one."""
    rng = np.random.default_rng((*scene.seed, 1))
    size = (round(scene.width * scene.scale), round(scene.height * scene.scale))
    small = Image.fromarray(np.array(scene.background.rows, np.uint8))
    image = small.resize(size, scene.background.stretch)
    canvas = ImageDraw.Draw(image)
    for thing in scene.things:
        shade = np.clip(np.add(COLORS[thing.color], rng.integers(-14, 15, size=3)), 0, 255)
        fill = tuple(int(channel) for channel in shade)
        if thing.shape == "circle":
            x, y, radius = (scene.scale * value for value in (thing.x, thing.y, 0.92 * thing.radius))
            canvas.circle((x, y), radius, fill=fill)
        else:
            canvas.polygon([(scene.scale * x, scene.scale * y) for x, y in outline_of(thing)], fill=fill)
    return image


def outline_of(thing: Thing) -> list[tuple[float, float]]:
    """List the corners of an object's polygon."""
    return [(thing.x + thing.radius * dx, thing.y + thing.radius * dy) for dx, dy in _OUTLINES[thing.shape]]


def _find_room(
    things: list[Thing], size: tuple[float, float], rng: np.random.Generator
) -> tuple[float, float, float] | None:
    """Find x, y and radius for one more object, smaller with every attempt, or None if there is no room left."""
    largest = RADIUS[1]
    for _ in range(40):
        radius = float(rng.uniform(RADIUS[0], largest))
        x, y = (float(rng.uniform(radius + 1, side - radius - 1)) for side in size)
        if all(
            math.hypot(x - other.x, y - other.y) >= radius + other.radius + GAP
            and max(abs(x - other.x), abs(y - other.y)) >= MIN_CENTRES_APART
            for other in things
        ):
            return x, y, radius
        largest = max(RADIUS[0], 0.95 * largest)
    return None


def _random_background(rng: np.random.Generator) -> Background:
    """Draw tones near a dark or light grey that is far from every object's colour."""
    grids = ((1, 1), (2, 2), (4, 6), (1, int(rng.integers(3, 12))), (int(rng.integers(3, 12)), 1), (7, 9))
    filters = [Image.Resampling.NEAREST] * 6
    filters[1], filters[2] = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
    kind = int(rng.integers(len(grids)))
    grey = int(rng.integers(25, 80) if rng.random() < 0.5 else rng.integers(180, 236))
    tint = grey + rng.integers(-10, 11, size=3)
    spread = int(rng.integers(2, 20))
    tones = np.clip(tint + rng.integers(-spread, spread + 1, size=(*grids[kind], 1)), 0, 255)
    rows = tuple(tuple((int(red), int(green), int(blue)) for red, green, blue in row) for row in tones)
    return Background(rows, filters[kind])


def _regular(corners: int, start_degrees: float, inner: float | None = None) -> list[tuple[float, float]]:
    """List the corners of a regular polygon in the unit circle; with `inner`, of a star with that inner radius."""
    radii = [1.0] * corners if inner is None else [1.0, inner] * corners
    angles = [math.radians(start_degrees + 360 * step / len(radii)) for step in range(len(radii))]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in zip(radii, angles, strict=True)]


_ARM = 0.32  # half the width of a cross's arm
_OUTLINES = {
    "square": _regular(4, 45),
    "triangle": _regular(3, -90),
    "diamond": [(0, -1), (0.68, 0), (0, 1), (-0.68, 0)],
    "star": _regular(5, -90, inner=0.42),
    "cross": [
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ],
}  # fmt: skip
