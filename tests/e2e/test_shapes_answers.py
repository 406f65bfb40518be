"""The shipped artifact, through the server: it is right about scenes it has not seen, and about the README's."""

import asyncio
import json
import re
from pathlib import Path

import pytest

from export.shapes import heldout
from loadtest.accuracy import MATCHING, ask_all, table

from .conftest import Running

ROOT = Path(__file__).parents[2]
SCENES = 60
LEAST_ACCURACY = 0.85  # of 1,000 scenes the model card tells more; this is what no change may break


@pytest.mark.slow
def test_answers_about_held_out_scenes_are_right(server: Running, tmp_path: Path) -> None:
    """Questions and hard negatives of scenes that training never saw, through HTTP."""
    records = [record for index in range(SCENES) for record in heldout.records(index, tmp_path)]

    rights = asyncio.run(ask_all(server.url, tmp_path, records, concurrency=4))

    rows = {row.kind: row.accuracy for row in table(records, rights)}
    assert rows["all questions"] >= LEAST_ACCURACY
    assert rows[MATCHING] >= LEAST_ACCURACY


def test_first_command_of_the_readme_gives_the_answer_it_shows(server: Running) -> None:
    """The README's curl, its picture and its output belong together."""
    text = (ROOT / "README.md").read_text()
    command = re.search(r"curl -F image=@(\S+) -F question='([^']+)' -F top_k=(\d+)", text)
    assert command
    shown = json.loads(re.findall(r"```json\n(.*?)```", text, re.DOTALL)[0])
    image, question, top_k = command.groups()

    answered = server.client.post(
        "/v1/vqa",
        files={"image": (ROOT / image).read_bytes()},
        data={"question": question, "top_k": top_k},
    ).json()

    assert set(answered) == set(shown)
    assert [answer["answer"] for answer in answered["answers"]] == [answer["answer"] for answer in shown["answers"]]
    scores = [answer["score"] for answer in shown["answers"]]
    assert [answer["score"] for answer in answered["answers"]] == pytest.approx(scores, abs=1e-3)
