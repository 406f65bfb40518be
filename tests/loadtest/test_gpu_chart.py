"""The chart of `vilt-bench gpu`: what is drawn, from which rows."""

from pathlib import Path
from typing import Any

from PIL import Image

from loadtest import gpu_chart

PATCHES = 192


def row(batch: int, tokens: int, graph_p50_ms: float, images_per_s: float, patches: int = PATCHES) -> dict[str, Any]:
    return {
        "batch": batch, "tokens": tokens, "patches": patches, "graph_p50_ms": graph_p50_ms,
        "images_per_s": images_per_s,
    }  # fmt: skip


ROWS = [row(1, 208, 0.7, 1400.0), row(1, 233, 0.8, 1300.0), row(32, 208, 3.9, 8100.0)]
HTTP = [
    {"workers": workers, "clients": clients, "answers_per_s": workers * 100.0 + clients}
    for workers in (1, 13)
    for clients in (1, 256)
]
TORCH = [
    {"name": "transformers, eager", "batch": 1, "p50_ms": 9.5},
    {"name": "transformers, eager", "batch": 32, "failed": "out of memory"},
]
FOUND = {
    "model": {"cuda": {"gpu": "NVIDIA Fake", "runs": [*ROWS, row(1, 160, 0.5, 9000.0, patches=144)]}},
    "http": {"cuda": HTTP},
    "torch": {"runs": TORCH},
}


def test_curves_are_of_the_shortest_text_and_of_what_ran() -> None:
    """A longer text is padded into another shape, which the other rows are not compared with."""
    assert gpu_chart.times_ms({"cuda": ROWS}, {"runs": TORCH}) == {
        "transformers, eager": {1: 9.5},
        "this server, cuda": {1: 0.7, 32: 3.9},
    }
    assert gpu_chart.answers_per_s({"cuda": HTTP}) == {
        "cuda, one process": {1: 101.0, 256: 356.0},
        "cuda, 13 workers": {1: 1301.0, 256: 1556.0},
    }
    assert gpu_chart.best_per_s({"cuda": ROWS, "tensorrt": []}) == {"cuda": 8100.0}


def test_chart_is_drawn_of_whatever_there_is(tmp_path: Path) -> None:
    """All of it, or the model alone; nothing at all leaves no file."""
    for name, found in (("all", FOUND), ("model", {**FOUND, "http": {}, "torch": None})):
        gpu_chart.draw(found, PATCHES, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as chart:
            assert chart.width > 1000

    gpu_chart.draw({"model": {}, "http": {}, "torch": None}, PATCHES, tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()
