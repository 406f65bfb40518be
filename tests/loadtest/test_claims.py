"""`vilt-bench claims`: what is drawn, timed, summed up and reported."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loadtest.__main__ import main
from loadtest.claims import charts, command, feeds, plan, report, runner
from loadtest.claims.plan import NAMES, STAGES, VILT, Design, Source, Step
from loadtest.claims.runner import Sessions, Stages
from loadtest.claims.summary import RANKED, VILT_INT8, Measured, as_json, summarise

PAPER_TOKENS = {  # picture + text, Table 6
    "vilbert": (36, 36),
    "visualbert": (36, 128),
    "lxmert": (36, 20),
    "uniter": (36, 60),
    "oscar": (50, 35),
    "vinvl": (50, 35),
    "unicoder-vl": (100, 40),
    "imagebert": (100, 44),
    "pixel-bert-x152": (146, 40),
    "pixel-bert-r50": (260, 40),
    "vilt": (200, 40),
}
LOGITS = "itm_logits"


def step(stage: str, parameters: int = 1, macs: int = 1_000_000_000) -> Step:
    return Step(
        stage=stage,
        graph=Path(f"{stage}.onnx"),
        parameters=parameters,
        dictionary_parameters=7,
        convolution_macs=macs,
        product_macs=0,
    )


def design(name: str, *stages: str) -> Design:
    return Design(
        name=name,
        title=name.upper(),
        family="grid",
        image_px=(800, 1333),
        visual_tokens=10,
        text_tokens=20,
        steps=tuple(step(stage) for stage in stages),
        sources={},
        artifact=None,
    )


def measured(name: str, **stages_s: float) -> Measured:
    samples = [{"decode": 0.002, "preprocess": 0.003, **stages_s}] * 3
    return summarise(design(name, *stages_s), samples, name=name, title=name.upper(), pairs_s=())


def test_draws_are_the_same_every_time_and_boxes_are_boxes() -> None:
    """From one seed; the smallest box first, so that a pyramid's levels get the sizes they are for."""
    first, second = (feeds.boxes(np.random.default_rng(feeds.SEED), 200) for _ in range(2))

    assert np.array_equal(first, second)
    assert (first[:, 2:] > first[:, :2]).all()
    areas = (first[:, 2] - first[:, 0]) * (first[:, 3] - first[:, 1])
    assert (np.diff(areas) >= -1).all()


def test_draws_of_a_pyramid_deal_the_proposals_to_its_levels() -> None:
    """Every proposal goes to one level."""
    sources = {f"proposals_{level}": Source(shape=(5, 4), dtype="float32") for level in feeds.LEVEL_OF_PROPOSALS}
    sources["proposals"] = Source(shape=(20, 4), dtype="float32")

    found = feeds.draw(sources, (800, 1333))

    dealt = np.concatenate([found[f"proposals_{level}"] for level in feeds.LEVEL_OF_PROPOSALS])
    assert np.array_equal(dealt, found["proposals"])


def test_detections_are_above_the_threshold_in_the_detected_classes_only() -> None:
    """As many classes, each by as many boxes, as asked for."""
    scores = feeds.detections(np.random.default_rng(0), 100, 50, detected=7, per_class=20)["class_scores"]

    above = scores > runner.SCORE_THRESHOLD
    assert (above.any(axis=0)).sum() == 7
    assert set(above.sum(axis=0)) == {0, 20}


def test_grid_boxes_tile_the_picture() -> None:
    """64 cells cover it once."""
    found = feeds.grid_boxes(64, (800, 1333))

    areas = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
    assert found.shape == (64, 4)
    assert areas.sum() == pytest.approx(800 * 1333, rel=1e-5)


def test_summary_sums_stages_to_the_total_and_preparation_to_the_wait() -> None:
    """Milliseconds; medians of each stage."""
    found = measured("x", visual_backbone=0.1, text_embedding=0.01, interaction=0.02, head=0.001)

    assert found.total_ms == pytest.approx(131)
    assert found.wait_ms == pytest.approx(136)
    assert found.rank_ms == pytest.approx(RANKED * 126 + 10)
    assert found.rank_kept_ms == pytest.approx(10 + RANKED * 21)
    assert found.gflops == pytest.approx(8)


def test_total_is_the_median_of_totals_not_the_sum_of_medians() -> None:
    """Stages that are slow in turns would come to less than any round took."""
    rounds = [(0.3, 0.1, 0.1), (0.1, 0.3, 0.1), (0.1, 0.1, 0.3)]
    stages = ("visual_backbone", "interaction", "head")
    samples = [{"decode": 0.0, "preprocess": 0.5, **dict(zip(stages, times, strict=True))} for times in rounds]

    found = summarise(design("x", *stages), samples, name="x", title="X", pairs_s=[])

    assert sum(found.stages_ms.values()) == pytest.approx(300)
    assert found.total_ms == pytest.approx(500)
    assert found.total_quartiles_ms == pytest.approx((500, 500))
    assert found.wait_ms == pytest.approx(1000)


def test_rank_of_kept_vectors_takes_the_one_run_that_was_timed() -> None:
    """A dual encoder compares 1,000 vectors at once."""
    samples = [{"decode": 0.0, "preprocess": 0.0, "visual_backbone": 1.0, "text_embedding": 0.01, "interaction": 1e-4}]
    shallow = design("clip", "visual_backbone", "text_embedding", "interaction")

    found = summarise(shallow, samples, name="clip", title="CLIP", pairs_s=[0.002, 0.004, 0.003])

    assert found.rank_kept_ms == pytest.approx(13)


def test_ratios_are_to_vilt_in_fp32_and_the_papers_figures_lie_beside() -> None:
    """Each row says whose structure it is, and that its weights are random."""
    found = [measured("uniter", visual_backbone=0.6), measured(VILT, interaction=0.1), measured("clip", head=0.05)]

    rows = as_json(found)
    table = report.times(found)

    assert [row["ratio_to_vilt"] for row in rows] == [6.0, 1.0, 0.5]
    assert rows[0]["paper"] == {"parameters_m": 154.7, "gflops": 949.9, "time_ms": 900}
    assert rows[2]["paper"] is None
    assert "| structure of UNITER, random weights | 600 |" in table
    assert "| 6.00 | ~900 | 60.0 |" in table


def test_measuring_takes_turns_and_keeps_what_is_complete_when_interrupted() -> None:
    """A warm-up round is not counted, nor one that was interrupted: medians are of the same rounds."""
    order: list[str] = []

    def one(name: str) -> Stages:
        order.append(name)
        if len(order) == 6:
            raise KeyboardInterrupt
        return {"interaction": float(len(order))}

    samples, complete = command.measure({"a": lambda: one("a"), "b": lambda: one("b")}, repeat=5)

    assert order == ["a", "b"] * 3
    assert not complete
    assert {name: len(found) for name, found in samples.items()} == {"a": 1, "b": 1}


def interrupted(monkeypatch: pytest.MonkeyPatch, folder: Path, *, rounds: int) -> None:
    """Run the command with one dual encoder, and interrupt it after so many rounds."""
    shallow = replace(design("clip", "text_embedding", "interaction"), family=command.SHALLOW)
    runs = itertools.count()

    def run_once() -> Stages:
        if next(runs) > rounds:  # the first warms up
            raise KeyboardInterrupt
        return {"decode": 0.0, "preprocess": 0.0, "text_embedding": 0.01, "interaction": 0.001}

    monkeypatch.setattr(plan, "prepare", lambda *_: [shallow])
    monkeypatch.setattr(plan, "tools", lambda *_: {})
    monkeypatch.setattr(command, "Sessions", lambda *_: None)
    monkeypatch.setattr(command, "timed_designs", lambda *_: {"clip": run_once})
    monkeypatch.setattr(runner, "time_pairs", lambda *_: [0.003])
    monkeypatch.setattr("sys.argv", ["vilt-bench", "claims", "--models", "clip", "--output", str(folder)])
    main()


def test_interrupted_run_reports_what_is_complete_and_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The rank of kept vectors is the one run that was timed: 10 ms and 3, not a thousand pairs of 1 ms."""
    with pytest.raises(SystemExit, match=r"^vilt-bench claims: interrupted; 2 of 5 rounds are complete"):
        interrupted(monkeypatch, tmp_path, rounds=2)

    result = json.loads((tmp_path / "claims.json").read_text())
    assert not result["complete"]
    assert [(row["rounds"], row["rank_1000_kept_ms"]) for row in result["designs"]] == [(2, 13.0)]


def test_run_without_a_complete_round_leaves_the_earlier_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """There is nothing to write."""
    (tmp_path / "claims.json").write_text("earlier")

    with pytest.raises(SystemExit, match=r"^vilt-bench claims: interrupted; no round is complete"):
        interrupted(monkeypatch, tmp_path, rounds=0)

    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("claims.json", "earlier")]


def test_provider_that_is_not_there_is_refused_with_a_sentence() -> None:
    """Before anything is timed."""
    if "CUDAExecutionProvider" in runner.onnxruntime.get_available_providers():
        pytest.skip("it is there")

    with pytest.raises(ValueError, match="has no CUDAExecutionProvider"):
        Sessions("cuda", 1)


def test_charts_are_written_as_png_and_svg(tmp_path: Path) -> None:
    """Four figures, whichever designs were measured."""
    found = [measured("uniter", visual_backbone=0.6, nms=0.1), measured(VILT, visual_embedding=1e-3, interaction=0.1)]

    charts.draw_all(found, {20: {1: 0.1, 100: 2.0}}, {"all at once": 0.5}, tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"claims-{figure}.{kind}" for figure in ("nms", "rank", "stages", "wait") for kind in ("png", "svg")
    ]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every structure at reduced width and depth, written once."""
    folder = tmp_path_factory.mktemp("claims")
    subprocess.run(
        [sys.executable, "-m", "export.claims", "--output", folder, "--reduced"],
        check=True,
        cwd=Path(__file__).parents[2],
    )
    return folder


@pytest.mark.slow
def test_every_design_is_built_with_the_papers_tokens(graphs: Path) -> None:
    """Fourteen and ViLT, in the command's order; the last run's build is enough for the next."""
    found = plan.prepare(graphs, NAMES)

    assert tuple(one.name for one in found) == NAMES
    tokens = {one.name: (one.visual_tokens, one.text_tokens) for one in found}
    assert tokens | PAPER_TOKENS == tokens


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != VILT])
def test_design_runs_through_every_stage_to_its_output(graphs: Path, name: str) -> None:
    """Tokens reach the interaction in the numbers that the plan says; the output is finite, and one picture's."""
    (one,) = plan.prepare(graphs, [name])
    sessions = Sessions("cpu", 1, shared=False)
    values = feeds.draw(one.sources, one.image_px)

    for each in one.steps:
        sessions.run(each.graph, values)

    assert set(one.stages) <= set(STAGES)
    assert all(np.isfinite(value).all() for value in values.values())
    if "kept" in values:
        assert values["kept"].shape == (one.visual_tokens,)
        assert len(set(values["kept"].tolist())) == one.visual_tokens
    if LOGITS in values:
        assert values["text"].shape[1] == one.text_tokens
        assert values["image"].shape[1] == one.visual_tokens
        assert values[LOGITS].shape == (1, 2)
    else:
        assert values["scores"].shape == (1,)


@pytest.mark.slow
def test_vilt_on_a_gpu_runs_as_the_other_designs_do(graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its three graphs in fp32, through the same sessions; here the CPU's stand in for the GPU's."""
    monkeypatch.setitem(runner.PROVIDERS, "cuda", "CPUExecutionProvider")
    (design,) = plan.prepare(graphs, [VILT])
    sessions = Sessions("cuda", 1, shared=False)

    timed = command.timed_designs([design], sessions)

    assert list(timed) == [VILT]
    assert set(timed[VILT]()) == {"decode", "preprocess", "visual_embedding", "text_embedding", "interaction"}


@pytest.mark.slow
def test_command_times_everything_and_writes_the_result(graphs: Path, tmp_path: Path) -> None:
    """Stages sum to the total; region designs have all of a detector's stages; machine and versions are there."""
    arguments = ["claims", "--graphs", graphs, "--repeat", "2", "--threads", "1", "--output", tmp_path]
    subprocess.run([sys.executable, "-m", "loadtest", *arguments], check=True, cwd=Path(__file__).parents[2])

    result = json.loads((tmp_path / "claims.json").read_text())
    rows = {row["name"]: row for row in result["designs"]}
    assert set(rows) == {*NAMES, VILT_INT8}
    assert result["complete"]
    assert result["threads"] == 1
    assert {"machine", "versions", "commit", "date"} <= set(result)
    for row in rows.values():
        assert row["total_ms"] == pytest.approx(sum(row["stages_ms"].values()), abs=0.01)
        assert all(value > 0 for value in row["stages_ms"].values())
    assert set(rows["uniter"]["stages_ms"]) == set(STAGES)
    assert set(rows[VILT]["stages_ms"]) == {"visual_embedding", "text_embedding", "interaction"}
    assert (tmp_path / "claims-stages.svg").exists()


@pytest.mark.slow
def test_nms_takes_longer_the_more_classes_are_detected(graphs: Path) -> None:
    """Every box in every class takes longest."""
    (one,) = plan.prepare(graphs, ["uniter"])
    sessions = Sessions("cpu", 1, shared=False)

    few, many = (
        min(runner.time_nms(one, sessions, detected=detected, per_class=20, repeat=5)) for detected in (1, 100)
    )
    values = feeds.draw(one.sources, one.image_px)
    every = sessions.run(next(each.graph for each in one.steps if each.stage == "nms"), values)

    assert few < many < every
