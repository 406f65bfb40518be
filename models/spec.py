"""The numbers of one ViLT: image and text limits, the possible grids of patches, and where their positions are."""

import math
from dataclasses import dataclass
from functools import lru_cache

Grid = tuple[int, int]  # rows, columns of patches

PADDING_ROW = 0  # of the position table


@dataclass(frozen=True, slots=True, kw_only=True)
class ViltSpec:
    """What preprocessing needs to know about a model.

    Units: pixels of the resized image; tokens count [CLS] and [SEP].
    Source: transformers ViltConfig and ViltImageProcessor.
    """

    shortest_edge_px: int = 384
    patch_px: int = 32
    max_text_tokens: int = 40

    @property
    def longest_edge_px(self) -> int:
        """Longest edge of a resized image: 639 for 384.

        Source: transformers image_processing_pil_vilt.py, MAX_LONGER_EDGE / MAX_SHORTER_EDGE.
        """
        return int(1333 / 800 * self.shortest_edge_px)

    @property
    def max_aspect_ratio(self) -> float:
        """Longest side an image may have, as a multiple of the other: beyond it the resized image has no patches.

        20 for 384 / 32, where the reference fails at 20.3; less for smaller models.
        """
        return min(20.0, math.floor(10 * self.longest_edge_px / (self.patch_px - 0.5)) / 10)

    @property
    def patch_values(self) -> int:
        """Bytes of one flattened RGB patch: 3,072 for 32 x 32."""
        return 3 * self.patch_px**2

    def resized(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Compute the size an image is resized to; an edge of a very long image can become 0.

        Shapes: (width, height) px -> (width, height) px, multiples of patch_px.
        Source: transformers image_processing_pil_vilt.py get_resize_output_image_size, step for step.
        """
        scale = self.shortest_edge_px / min(height_px, width_px)
        if height_px < width_px:
            height, width = float(self.shortest_edge_px), scale * width_px
        else:
            height, width = scale * height_px, float(self.shortest_edge_px)
        if max(height, width) > self.longest_edge_px:
            scale = self.longest_edge_px / max(height, width)
            height, width = scale * height, scale * width
        return (
            int(width + 0.5) // self.patch_px * self.patch_px,
            int(height + 0.5) // self.patch_px * self.patch_px,
        )

    @property
    def grids(self) -> tuple[Grid, ...]:
        """List every grid that `resized` can give, in the order of the position table."""
        return tuple(_first_rows(self))

    @property
    def position_rows(self) -> int:
        """Count the rows of the position table, the padding row included: 5,341 for 384 / 32."""
        return 1 + sum(rows * columns for rows, columns in self.grids)

    def first_position_row(self, grid: Grid) -> int:
        """Find where a grid's positions begin in the position table.

        Raises: KeyError: no image has this grid.
        """
        return _first_rows(self)[grid]


@lru_cache(maxsize=16)
def _first_rows(spec: ViltSpec) -> dict[Grid, int]:
    short, long = spec.shortest_edge_px // spec.patch_px, spec.longest_edge_px // spec.patch_px
    uncapped = [(short, columns) for columns in range(short, long + 1)]
    capped = [(rows, long) for rows in range(1, short)]
    wide = capped + uncapped
    first_rows, row = {}, PADDING_ROW + 1
    for grid in sorted({*wide, *((columns, rows) for rows, columns in wide)}):
        first_rows[grid] = row
        row += grid[0] * grid[1]
    return first_rows
