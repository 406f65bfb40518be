"""Figures from samples: medians of stages, totals, ratios, and the time of a rank of many pictures."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.claims import paper
from loadtest.claims.plan import DETECTOR, STAGES, VILT, Design
from loadtest.claims.runner import PAIR_STAGES, PREPARATION, Stages
from loadtest.summary import quartiles

RANKED = 1000  # pictures
VILT_INT8 = "vilt-int8"
MLM_MACS_PER_TOKEN = 768 * 768 + 768 * 30_522  # a masked language model's head


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One design's figures.

    Units: milliseconds, medians over the rounds; those of totals need not be the sums of the stages'.
    """

    name: str
    title: str
    family: str
    image_px: tuple[int, int]
    visual_tokens: int
    text_tokens: int
    rounds: int
    stages_ms: dict[str, float]
    preparation_ms: dict[str, float]
    total_ms: float  # from the resized picture to the pooled output
    total_quartiles_ms: tuple[float, float]
    wait_ms: float  # from the JPEG to the pooled output
    parameters: dict[str, int]  # by stage
    dictionary_parameters: int
    gmacs: dict[str, float]  # by stage
    pairs_ms: float | None = None  # one text with the kept vectors of RANKED pictures, if that is one run

    @property
    def rank_ms(self) -> float:
        """The time of one text against RANKED new pictures."""
        return RANKED * (self.wait_ms - self._text_ms) + self._text_ms

    @property
    def rank_kept_ms(self) -> float:
        """The time of one text against RANKED pictures whose side was computed before and kept."""
        pairs_ms = sum(self.stages_ms.get(stage, 0.0) for stage in PAIR_STAGES)
        return self._text_ms + (RANKED * pairs_ms if self.pairs_ms is None else self.pairs_ms)

    @property
    def _text_ms(self) -> float:
        return self.stages_ms.get("text_embedding", 0.0)

    @property
    def gflops(self) -> float:
        """Operations: two per multiply-accumulate."""
        return 2 * sum(self.gmacs.values())

    @property
    def paper_gflops(self) -> float:
        """Count one operation per MAC in detectors and backbones, two elsewhere, and a word prediction for each token.

        Source: our reading of Table 6; docs/claims.md shows how well it fits.
        """
        visual = sum(self.gmacs.get(stage, 0.0) for stage in DETECTOR)
        rest = sum(self.gmacs.values()) - visual
        words = (self.visual_tokens + self.text_tokens) * MLM_MACS_PER_TOKEN / 1e9
        return visual + 2 * (rest + words)


def summarise(
    design: Design, samples: Sequence[Stages], *, name: str, title: str, pairs_s: Sequence[float]
) -> Measured:
    """Take medians over the rounds.

    Raises: statistics.StatisticsError: there are no samples.
    """

    def median_ms(stage: str) -> float:
        return 1000 * statistics.median(sample[stage] for sample in samples)

    totals = [1000 * sum(sample[stage] for stage in design.stages) for sample in samples]
    p25_ms, median_of_totals_ms, p75_ms = quartiles(totals)
    all_stages = (*PREPARATION, *design.stages)
    parameters = dict.fromkeys(design.stages, 0)
    gmacs = dict.fromkeys(design.stages, 0.0)
    for step in design.steps:
        parameters[step.stage] += step.parameters
        gmacs[step.stage] += step.macs / 1e9
    return Measured(
        name=name,
        title=title,
        family=design.family,
        image_px=design.image_px,
        visual_tokens=design.visual_tokens,
        text_tokens=design.text_tokens,
        rounds=len(samples),
        stages_ms={stage: median_ms(stage) for stage in design.stages},
        preparation_ms={stage: median_ms(stage) for stage in PREPARATION},
        total_ms=median_of_totals_ms,
        total_quartiles_ms=(p25_ms, p75_ms),
        wait_ms=1000 * statistics.median(sum(sample[stage] for stage in all_stages) for sample in samples),
        parameters=parameters,
        dictionary_parameters=sum(step.dictionary_parameters for step in design.steps),
        gmacs=gmacs,
        pairs_ms=1000 * statistics.median(pairs_s) if pairs_s else None,
    )


def as_json(found: Sequence[Measured]) -> list[dict[str, Any]]:
    """List every figure, measured and the paper's, by design."""
    baseline = vilt_of(found)
    rows = []
    for one in found:
        row = paper.TABLE6.get(one.name)
        rows.append(
            {
                "name": one.name,
                "structure": f"structure of {one.title}, random weights",
                "family": one.family,
                "image_px": one.image_px,
                "visual_tokens": one.visual_tokens,
                "text_tokens": one.text_tokens,
                "rounds": one.rounds,
                "stages_ms": rounded(one.stages_ms),
                "total_ms": round(one.total_ms, 3),
                "total_quartiles_ms": [round(value, 3) for value in one.total_quartiles_ms],
                "ratio_to_vilt": round(one.total_ms / baseline.total_ms, 2) if baseline else None,
                "preparation_ms": rounded(one.preparation_ms),
                "wait_ms": round(one.wait_ms, 3),
                "rank_1000_ms": round(one.rank_ms, 1),
                "rank_1000_kept_ms": round(one.rank_kept_ms, 1),
                "parameters": one.parameters,
                "dictionary_parameters": one.dictionary_parameters,
                "gmacs": rounded(one.gmacs),
                "gflops": round(one.gflops, 1),
                "gflops_as_the_paper_counts": round(one.paper_gflops, 1),
                "paper": {"parameters_m": row.parameters_m, "gflops": row.gflops, "time_ms": row.time_ms}
                if row
                else None,
            }
        )
    return rows


def vilt_of(found: Sequence[Measured]) -> Measured | None:
    """Return ViLT in fp32, which the ratios are to."""
    return next((one for one in found if one.name == VILT), None)


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """Round to a tenth of a microsecond, in the order of the stages."""
    order = [*PREPARATION, *STAGES]
    return {name: round(values[name], 4) for name in sorted(values, key=order.index)}
