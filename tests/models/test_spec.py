"""The sizes that the reference resizes to, and the grids that follow."""

import numpy as np
import pytest
from transformers.models.vilt.image_processing_pil_vilt import get_resize_output_image_size

from models.spec import PADDING_ROW, ViltSpec

SPECS = {"published": ViltSpec(), "shapes": ViltSpec(shortest_edge_px=160, max_text_tokens=32)}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_resized_of_any_size_is_the_reference_s_and_a_known_grid(spec: ViltSpec) -> None:
    """Every picture within the aspect limit lands, as the reference does, on a grid of the position table."""
    rng = np.random.default_rng(0)
    seen = set()

    for width in rng.integers(1, 4000, size=3000):
        height = int(np.clip(width * spec.max_aspect_ratio ** rng.uniform(-1, 1), 1, 8000))
        if max(width, height) > spec.max_aspect_ratio * min(width, height):
            continue
        resized = spec.resized(int(width), height)
        expected = get_resize_output_image_size(
            np.empty((3, height, width), np.bool_), spec.shortest_edge_px, spec.longest_edge_px, 32, "channels_first"
        )
        assert resized == expected[::-1]
        seen.add((resized[1] // 32, resized[0] // 32))

    assert seen <= set(spec.grids)
    assert len(seen) > 0.8 * len(spec.grids)


def test_grids_of_the_published_model_are_37_with_5340_positions() -> None:
    """The figures of the contract: 37 grids, 5,340 rows and the padding row."""
    assert len(ViltSpec().grids) == 37
    assert ViltSpec().position_rows == 1 + 5340
    assert ViltSpec().longest_edge_px == 639


def test_position_rows_of_all_grids_fill_the_table_without_overlap() -> None:
    """Each grid has rows of its own, and no grid has the padding row."""
    spec = ViltSpec()
    rows = [spec.first_position_row(grid) + offset for grid in spec.grids for offset in range(grid[0] * grid[1])]

    assert sorted([PADDING_ROW, *rows]) == list(range(spec.position_rows))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_aspect_limit_is_the_last_that_leaves_a_patch(spec: ViltSpec) -> None:
    """An image at the limit still has patches on both sides."""
    long = 2000
    short = int(np.ceil(long / spec.max_aspect_ratio))

    assert min(spec.resized(long, short)) >= spec.patch_px
    assert min(spec.resized(short, long)) >= spec.patch_px
