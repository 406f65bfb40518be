"""What holds of the queue and of bodies whatever happens, in whatever order: hypothesis looks for the exception."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal

from fakes import FakeClock, FakeEngine, features, latency, served
from hypothesis import given, settings
from hypothesis import strategies as st

from models.batch import Features
from server import bodies, forms
from server.batcher import BETWEEN_S, Batcher
from server.errors import BadRequest, DeadlineExceeded, EngineFault, TooLarge, Unavailable
from server.metrics import Metrics
from server.queue import LOOK_AHEAD, RANK_TURN
from server.schemas import VqaBody
from server.types import EngineOutput, Entry, EntryResult, Urgency

MOST = 4  # entries of a batch
EXAMPLES = settings(max_examples=150, deadline=None)


@dataclass(frozen=True)
class Submit:
    """Somebody asks."""

    number: int
    rank: bool
    client: str
    columns: int
    has_key: bool
    allows_s: float


@dataclass(frozen=True)
class Event:
    """Something happens: a run begins and ends, someone leaves, time passes, the engine breaks."""

    kind: Literal["run", "fault", "leave", "pass"]
    which: int


SUBMITS = st.builds(
    Submit,
    number=st.integers(1, 5),
    rank=st.booleans(),
    client=st.sampled_from("ab"),
    columns=st.integers(1, 2),
    has_key=st.booleans(),
    allows_s=st.sampled_from((0.0, 0.03, 1.0, 1e9)),
)
EVENTS = st.builds(Event, kind=st.sampled_from(("run", "fault", "leave", "pass")), which=st.integers(0, 30))
STORIES = st.lists(st.one_of(SUBMITS, SUBMITS, EVENTS), max_size=40)


class SteppedEngine(FakeEngine):
    """Runs when told to, and lets time pass while it does."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def run(self, batch: Sequence[Features]) -> EngineOutput:
        self._clock.now_s += 0.01
        return super().run(batch)


class Story:
    """Plays a story on a batcher, step by step on one thread, and remembers what was asked."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.engine = SteppedEngine(self.clock)
        self.model = served(self.engine, max_batch_size=MOST, runs=latency())
        self.metrics = Metrics()
        self.batcher = Batcher(self.clock, self.metrics)
        self.entries: list[Entry] = []
        self.asked: list[asyncio.Future[EntryResult]] = []
        self.batches: list[list[Entry]] = []
        self.formed_s: list[float] = []

    async def play(self, steps: list[Submit | Event]) -> None:
        for step in steps:
            match step:
                case Submit():
                    self._submit(step)
                case Event(kind="leave") if self.asked:
                    self.asked[step.which % len(self.asked)].cancel()
                case Event(kind="pass"):
                    self.clock.now_s += step.which / 100
                case Event(kind="run" | "fault"):
                    self.engine.failures = int(step.kind == "fault")
                    await self._step()
            await settle()

    async def shut_down(self) -> None:
        loop = asyncio.create_task(self.batcher.run())
        await settle()
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)

    async def empty(self) -> None:
        self.engine.failures = 0
        while len(self.batcher.queue):
            await self._step()
        await settle()

    def _submit(self, asked: Submit) -> None:
        entry = Entry(
            model=self.model,
            features=features(asked.number, columns=asked.columns),
            urgency=Urgency.RANK if asked.rank else Urgency.INTERACTIVE,
            deadline_s=self.clock.now_s + asked.allows_s,
            client=asked.client,
            key=(asked.number, asked.columns) if asked.has_key else object(),
        )
        self.entries.append(entry)
        self.asked.append(self.batcher.submit(entry))

    async def _step(self) -> None:
        batch = self.batcher.queue.form(BETWEEN_S)
        if batch:
            self.batches.append(batch)
            self.formed_s.append(self.clock.now_s)
            await self.batcher._resolve(batch, asyncio.get_running_loop())


async def settle() -> None:
    """Let what can go on go on."""
    for _ in range(3):
        await asyncio.sleep(0)


@EXAMPLES
@given(STORIES, st.booleans())
def test_entry_of_any_story_is_resolved_once_and_rightly(steps: list[Submit | Event], is_emptied: bool) -> None:
    """Its own logits, or a named error; nobody is lost, answered twice, or answered with another's."""

    async def scenario() -> None:
        story = Story()
        await story.play(steps)
        if is_emptied:
            await story.empty()
        await story.shut_down()
        results = await asyncio.wait_for(asyncio.gather(*story.asked, return_exceptions=True), 10)

        assert len(story.batcher.queue) == 0
        assert not story.batcher._leaders
        assert story.metrics.registry.get_sample_value("vilt_queue_entries") == 0 or not is_emptied
        for entry, result in zip(story.entries, results, strict=True):
            if isinstance(result, EntryResult):
                assert result.logits["rank_logits"][0] == entry.features.text.input_ids[0]
                assert result.started_s < entry.deadline_s
            else:
                allowed = (DeadlineExceeded, EngineFault, asyncio.CancelledError)
                assert isinstance(result, allowed if is_emptied else (*allowed, Unavailable)), result

    asyncio.run(scenario())


@EXAMPLES
@given(STORIES)
def test_batches_of_any_story_keep_their_bounds_and_their_order(steps: list[Submit | Event]) -> None:
    """No entry is in two, none is larger than may be, and questions of one kind are taken in their order."""

    async def scenario() -> None:
        story = Story()
        await story.play(steps)
        await story.empty()
        await story.shut_down()
        await asyncio.gather(*story.asked, return_exceptions=True)

        taken = Counter(id(entry) for batch in story.batches for entry in batch)
        assert all(count == 1 for count in taken.values())
        order = {id(entry): place for place, entry in enumerate(story.entries)}
        for batch, formed_s in zip(story.batches, story.formed_s, strict=True):
            assert 1 <= len(batch) <= MOST
            assert len({(entry.urgency, entry.client if entry.urgency else "") for entry in batch}) == 1
            assert all(any(one.deadline_s > formed_s for one in leader.all()) for leader in batch)
        for urgency in Urgency:
            for client in ("a", "b") if urgency else ("",):
                firsts = [
                    order[id(batch[0])]
                    for batch in story.batches
                    if batch[0].urgency is urgency and (not urgency or batch[0].client == client)
                ]
                assert firsts == sorted(firsts)

    asyncio.run(scenario())


@EXAMPLES
@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), min_size=1, max_size=2 * LOOK_AHEAD))
def test_waiting_ranks_are_starved_by_nobody(asked: list[tuple[bool, str]]) -> None:
    """While a rank waits, no more than RANK_TURN runs in a row are of questions; clients of ranks take turns."""

    async def scenario() -> None:
        story = Story()
        waiting: Counter[str] = Counter()
        for number, (is_rank, client) in enumerate(asked, start=1):
            story._submit(Submit(number, is_rank, client, 1, has_key=False, allows_s=1e9))
            waiting[client] += is_rank
        await settle()
        in_a_row, missed = 0, Counter[str]()
        while len(story.batcher.queue):
            batch = story.batcher.queue.form(BETWEEN_S)
            client = batch[0].client
            if batch[0].urgency is Urgency.INTERACTIVE:
                in_a_row += waiting.total() > 0
                assert in_a_row <= RANK_TURN
            else:
                in_a_row = 0
                missed[client] = 0
                waiting[client] -= len(batch)
                for other in "abc":
                    missed[other] += other != client and waiting[other] > 0
                    assert missed[other] <= 2
            await story.batcher._resolve(batch, asyncio.get_running_loop())
        await asyncio.gather(*story.asked)

    asyncio.run(scenario())


PARTS = st.dictionaries(
    st.sampled_from(("image", "question", "top_k", "model", "other")), st.binary(max_size=200), max_size=5
)


@EXAMPLES
@given(PARTS, st.integers(1, 64), st.integers(-1, 1), st.data())
def test_multipart_of_any_fields_in_any_chunks_is_read_or_refused(
    fields: dict[str, bytes], chunk: int, excess: int, data: st.DataObject
) -> None:
    """Whatever is in a part comes out as it went in, down to single bytes a chunk; the limit is exact."""
    boundary = data.draw(st.text("abcxyz-", min_size=1, max_size=20).filter(lambda text: not text.endswith("-")))
    written = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"
        for name, value in fields.items()
    )
    written += f"--{boundary}--\r\n".encode()
    is_readable = all(f"\r\n--{boundary}".encode() not in b"\r\n" + value + b"\r\n" for value in fields.values())

    async def stream() -> AsyncIterator[bytes]:
        for start in range(0, len(written), chunk):
            yield written[start : start + chunk]

    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    reading = bodies.read(stream(), headers, max_body_bytes=len(written) - excess, accepts_image=True)
    try:
        found = forms.multipart_fields(asyncio.run(reading), [*fields], max_parts=8)
    except TooLarge:
        assert excess > 0
    except BadRequest:
        is_text = all(_is_utf8(value) for name, value in fields.items() if name != "image")
        assert not (fields and is_text and is_readable)
    else:
        assert excess <= 0
        if is_readable:
            expected = {name: [value if name == "image" else value.decode()] for name, value in fields.items()}
            assert found == expected


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


@EXAMPLES
@given(
    st.dictionaries(st.sampled_from(("image", "question", "top_k", "model", "x")), ANY_JSON) | ANY_JSON | st.binary()
)
def test_json_of_any_kind_is_a_body_or_a_bad_request(content: object) -> None:
    """Nothing else is raised, and what is said fits a response."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    try:
        said = forms.parse(bodies.RawBody("json", data), b"", VqaBody, max_parts=8, max_candidates=5).question
    except BadRequest as error:
        said = error.message

    assert json.loads(json.dumps(said)) == said
    assert len(said) < 1_000
