"""Scenes of coloured shapes: what is in them, and how they are drawn.

Knows nothing of questions, tokens or tensors. A scene is a value: the same seed draws the same picture.
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

GRID = 5  # cells a side; one cell is one 32-pixel patch of the resized picture
CELL_PX = 64  # drawn at twice the model's resolution, so that edges are smooth once resized
RADIUS_PX = (18, 28)  # of the circle around an object; it never leaves its cell


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: what it is and where its centre lies, in pixels of the drawn picture."""

    color: str
    shape: str
    column: int
    row: int
    x_px: float
    y_px: float
    radius_px: float

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects in distinct cells of a GRID x GRID board on a grey background."""

    things: tuple[Thing, ...]
    background: tuple[int, int, int]
    seed: tuple[int, ...]


def random_scene(seed: tuple[int, ...], max_things: int = 5, min_things: int = 1) -> Scene:
    """Draw a scene from a seed.

    In half of the scenes colours or shapes come from a small palette, so that counts above one are common.
    """
    rng = np.random.default_rng(seed)
    count = int(rng.integers(min_things, max_things + 1))
    colors, shapes = list(COLORS), list(SHAPES)
    if rng.random() < 0.5:
        colors = list(rng.choice(colors, size=int(rng.integers(1, 4)), replace=False))
    if rng.random() < 0.5:
        shapes = list(rng.choice(shapes, size=int(rng.integers(1, 4)), replace=False))
    things = []
    for cell in rng.choice(GRID * GRID, size=count, replace=False):
        row, column = divmod(int(cell), GRID)
        radius = float(rng.uniform(*RADIUS_PX))
        slack = CELL_PX / 2 - radius - 1
        things.append(
            Thing(
                color=str(rng.choice(colors)),
                shape=str(rng.choice(shapes)),
                column=column,
                row=row,
                x_px=(column + 0.5) * CELL_PX + float(rng.uniform(-slack, slack)),
                y_px=(row + 0.5) * CELL_PX + float(rng.uniform(-slack, slack)),
                radius_px=radius,
            )
        )
    grey = rng.choice([rng.integers(20, 90), rng.integers(170, 246)])
    background = np.clip(grey + rng.integers(-8, 9, size=3), 0, 255)
    return Scene(tuple(things), tuple(int(channel) for channel in background), seed)


def draw(scene: Scene) -> Image.Image:
    """Paint a scene: RGB, GRID * CELL_PX pixels a side, each object's colour a little off its name's."""
    rng = np.random.default_rng((*scene.seed, 1))
    side = GRID * CELL_PX
    image = Image.new("RGB", (side, side), scene.background)
    canvas = ImageDraw.Draw(image)
    for thing in scene.things:
        shade = np.clip(np.add(COLORS[thing.color], rng.integers(-14, 15, size=3)), 0, 255)
        fill = tuple(int(channel) for channel in shade)
        if thing.shape == "circle":
            canvas.circle((thing.x_px, thing.y_px), thing.radius_px * 0.92, fill=fill)
        else:
            canvas.polygon(outline_of(thing), fill=fill)
    return image


def outline_of(thing: Thing) -> list[tuple[float, float]]:
    """List the corners of an object's polygon, in pixels."""
    return [(thing.x_px + thing.radius_px * dx, thing.y_px + thing.radius_px * dy) for dx, dy in _OUTLINES[thing.shape]]


def _regular(corners: int, start_degrees: float, inner: float | None = None) -> list[tuple[float, float]]:
    """Corners of a regular polygon in the unit circle; with `inner`, of a star with that inner radius."""
    steps = corners if inner is None else 2 * corners
    return [
        (
            (1.0 if inner is None or step % 2 == 0 else inner)
            * math.cos(math.radians(start_degrees + 360 * step / steps)),
            (1.0 if inner is None or step % 2 == 0 else inner)
            * math.sin(math.radians(start_degrees + 360 * step / steps)),
        )
        for step in range(steps)
    ]


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
