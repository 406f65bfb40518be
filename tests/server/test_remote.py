"""Two fronts and an engine process in one loop, with real connections and memory between them."""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import uvloop
from fakes import FakeClock, Hall, HeldEngine, features, served

from models.batch import Features
from models.errors import ArtifactError
from models.image import ImagePatches
from models.manifest import describe_file, read_manifest
from server import channel, remote
from server.admission import Admission
from server.backend import LocalBackend
from server.channel import SIZES, Channel, Message, read_error, write_error
from server.desk import describe
from server.errors import DeadlineExceeded, EngineFault, Overloaded, ServerError, Unavailable
from server.front import known_here
from server.metrics import Metrics
from server.remote import RemoteBackend
from server.settings import SHAPES, Settings
from server.slots import KEPT, Slots
from server.slowest import RequestRecord
from server.types import EngineOutput, EntryResult, Urgency

PATIENCE_S = 20.0
MODEL_STARTS_IN_S = 1.5  # as Hall says


class SeeingEngine(HeldEngine):
    """Gives each row the first value of its first patch, so that a mixed-up slot shows."""

    def run(self, batch: Sequence[Features]) -> EngineOutput:
        output = super().run(batch)
        first = np.array([pair.image.patches[0, :1] for pair in batch], np.float32)
        return EngineOutput({"rank_logits": first}, output.parts_s)


class Split:
    """Two fronts of one engine process."""

    def __init__(
        self,
        engine: HeldEngine | None = None,
        *,
        fronts: int = 2,
        slots: int = 1024,
        places: int = 0,
        kept_logits: int = 0,
    ) -> None:
        self.engine = engine or HeldEngine()
        self.models = [served(self.engine)]
        self.metrics = Metrics()
        admission = Admission(16, self.metrics, time.perf_counter)
        settings = Settings(max_client_requests=places, logits_cache_entries=kept_logits)
        self.local = LocalBackend(settings, self.models, admission, self.metrics, time.perf_counter)
        self.hall = Hall(self.local, self.models, slots)
        self.fronts = [
            RemoteBackend(lambda _: True, limits_clients=places > 0, clock=FakeClock()) for _ in range(fronts)
        ]
        self.connections: list[socket.socket] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Split"]:
        async with self.local.running():
            async with contextlib.AsyncExitStack() as fronts:
                for front in self.fronts:
                    await fronts.enter_async_context(front.running())
                    self.connections.append(await self.hall.connect(front))
                yield self
                self.engine.may_run.set()
            await self.hall.emptied()

    async def ask(self, number: int, front: int = 0, *, patch: int = 0, within_s: float = 30.0) -> EntryResult:
        """Run a pair identified by a number, with an image of a single value."""
        deadline_s = time.perf_counter() + within_s
        text = features(number).text
        image = ImagePatches(np.full((2, 3072), patch, np.uint8), np.ones(2, np.int64), (1, 2))
        backend = self.fronts[front]
        about = {"deadline_s": deadline_s, "client": "", "key": ("client", number)}
        async with backend.admit("shapes", Urgency.INTERACTIVE, 1, **about) as permit:
            return await permit.run(Features(image, text), ("shapes", number))

    async def occupy(self, front: int = 0) -> asyncio.Task[EntryResult]:
        """Keep the engine busy, so that what comes next waits in the queue."""
        self.engine.may_run.clear()
        asked = asyncio.create_task(self.ask(1, front, patch=1))
        await until(self.engine.has_begun.is_set)
        return asked

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))


async def until(has_happened: Callable[[], bool]) -> None:
    while not has_happened():  # noqa: ASYNC110 what happens elsewhere gives no event to wait for
        await asyncio.sleep(0)


def test_entries_of_two_fronts_run_in_one_batch_and_each_gets_its_own() -> None:
    """Logits, instants and batch sizes arrive as the engine returned them; nothing is held afterwards."""

    async def scenario() -> None:
        async with Split().running() as split:
            busy = await split.occupy()
            asked = [asyncio.create_task(split.ask(number, number % 2)) for number in range(2, 6)]
            await until(lambda: split.value("vilt_queue_entries") == 4)
            split.engine.may_run.set()
            results = await asyncio.gather(busy, *asked)

            assert [int(result.logits["rank_logits"][0]) for result in results] == [1, 2, 3, 4, 5]
            assert [result.logits["vqa_logits"].shape for result in results] == [(split.engine.labels,)] * 5
            assert [result.batch_size for result in results] == [1, 4, 4, 4, 4]
            assert all(result.started_s < result.ended_s < time.perf_counter() for result in results)
            await until(lambda: split.hall.slots_in_use == 0)
            assert split.value("vilt_in_flight_entries") == 0

    play(scenario)


def test_same_work_asked_through_two_fronts_runs_once() -> None:
    """An entry in flight is joined whichever front it came through."""

    async def scenario() -> None:
        async with Split().running() as split:
            busy = await split.occupy()
            asked = [asyncio.create_task(split.ask(7, front)) for front in (0, 1)]
            await until(lambda: split.value("vilt_cache_hits_total", cache="in_flight") == 1)
            split.engine.may_run.set()

            assert [int((await one).logits["rank_logits"][0]) for one in (busy, *asked)] == [1, 7, 7]
            assert split.engine.batches == [[1], [7]]

    play(scenario)


def test_slot_of_one_who_left_is_not_given_out_while_another_follows() -> None:
    """The follower's answer comes from the image that the leader had put there."""

    async def scenario() -> None:
        async with Split(SeeingEngine()).running() as split:
            busy = await split.occupy()
            leader = asyncio.create_task(split.ask(7, 0, patch=7))
            await until(lambda: split.value("vilt_queue_entries") == 1)
            follower = asyncio.create_task(split.ask(7, 1, patch=7))
            await until(lambda: split.value("vilt_cache_hits_total", cache="in_flight") == 1)

            leader.cancel()
            await until(lambda: split.value("vilt_in_flight_entries") == 2)
            newcomers = [asyncio.create_task(split.ask(8 + number, 0, patch=8 + number)) for number in range(4)]
            await until(lambda: split.value("vilt_queue_entries") == 5)
            split.engine.may_run.set()

            results = await asyncio.gather(busy, follower, *newcomers)
            assert [int(result.logits["rank_logits"][0]) for result in results] == [1, 7, 8, 9, 10, 11]
            await until(lambda: split.hall.slots_in_use == 0)

    play(scenario)


def test_front_that_dies_leaves_nothing_behind() -> None:
    """Its queued entries are dropped and its slots are free; the other front's requests go on."""

    async def scenario() -> None:
        async with Split(fronts=3).running() as split:
            living = await split.occupy()
            lost = [asyncio.create_task(split.ask(2 + number, 2)) for number in range(3)]
            await until(lambda: split.value("vilt_queue_entries") == 3)

            split.connections[2].shutdown(socket.SHUT_RDWR)
            await until(lambda: split.value("vilt_in_flight_entries") == 1)
            split.engine.may_run.set()

            assert int((await living).logits["rank_logits"][0]) == 1
            await until(lambda: split.value("vilt_dropped_entries_total", reason="cancelled") == 3)
            await until(lambda: split.hall.slots_in_use == 0)
            assert split.engine.batches == [[1]]
            assert {type(error) for error in await asyncio.gather(*lost, return_exceptions=True)} == {Unavailable}

    play(scenario)


def test_engine_process_that_dies_is_answered_for_and_its_successor_used() -> None:
    """Waiting and new requests are told when to come back; records that were not sent are counted later."""

    async def scenario() -> None:
        async with Split().running() as split:
            front = split.fronts[1]
            waiting = await split.occupy(front=1)

            split.connections[1].shutdown(socket.SHUT_RDWR)

            with pytest.raises(Unavailable) as told_waiting:
                await waiting
            with pytest.raises(Unavailable) as told_asking:
                await split.ask(2, 1)
            for told in (told_waiting, told_asking):
                assert told.value.code == "engine_restarting"
                assert told.value.retry_after_s == pytest.approx(MODEL_STARTS_IN_S)
            assert await front.status() == "starting"
            with pytest.raises(Unavailable):
                await front.report("metrics")
            front.record(refused())
            split.engine.may_run.set()

            await split.hall.connect(front)

            assert int((await split.ask(3, 1)).logits["rank_logits"][0]) == 3
            labels = {"task": "vqa", "model": "", "status": "503", "code": "engine_restarting"}
            assert split.value("vilt_requests_total", **labels) == 1

    play(scenario)


def test_successor_of_an_engine_process_knows_of_the_bodies_in_flight() -> None:
    """Even if nothing more of them arrives, and its predecessor's count is lost."""

    async def scenario() -> None:
        async with Split().running() as split:
            front = split.fronts[1]
            front.count_body_bytes(5_000_000)
            await until(lambda: split.value("vilt_body_bytes") == 5_000_000)
            split.connections[1].shutdown(socket.SHUT_RDWR)
            await until(lambda: split.value("vilt_body_bytes") == 0)

            await split.hall.connect(front)

            await until(lambda: split.value("vilt_body_bytes") == 5_000_000)
            front.count_body_bytes(-5_000_000)
            await until(lambda: split.value("vilt_body_bytes") == 0)

    play(scenario)


def refused() -> RequestRecord:
    return RequestRecord(
        request_id="a",
        task="vqa",
        model="",
        status=503,
        code="engine_restarting",
        when=datetime.now(UTC),
        total_ms=1.0,
        timing_ms={"receive": 1.0},
    )


def test_request_beyond_the_slots_is_refused_and_one_after_it_is_not() -> None:
    """Memory is bounded whatever admission decides; a slot that becomes free is used."""

    async def scenario() -> None:
        async with Split(slots=0).running() as split:
            split.engine.may_run.clear()
            many = split.hall.slots.count
            held = [asyncio.create_task(split.ask(number)) for number in range(many)]
            await until(lambda: split.hall.slots_in_use == many)

            with pytest.raises(Overloaded, match="memory") as told:
                await split.ask(99)
            assert told.value.retry_after_s
            split.engine.may_run.set()
            await asyncio.gather(*held)
            await until(lambda: split.hall.slots_in_use == 0)
            assert int((await split.ask(100)).logits["rank_logits"][0]) == 100

    play(scenario)


def test_client_s_places_are_the_same_through_any_front() -> None:
    """The limit on a client is not one for each front."""

    async def scenario() -> None:
        async with Split(places=2).running() as split:
            first, second = split.fronts
            async with first.place("a", "vqa"), second.place("a", "vqa"):
                with pytest.raises(Overloaded) as told:
                    async with first.place("a", "vqa"):
                        pass
                async with first.place("b", "vqa"):
                    pass
            assert told.value.code == "client_over_limit"
            async with second.place("a", "vqa"):
                pass

    play(scenario)


def test_engine_process_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """For places, admission, reports; it is not said to have ended, and what it grants too late is returned."""
    monkeypatch.setattr(remote, "ANSWER_WITHIN_S", 0.05)

    async def scenario() -> None:
        async with Split(fronts=1, places=1).running() as split:
            (front,), (desk,) = split.fronts, split.hall.desks
            unread: list[tuple[Message, bytes]] = []
            monkeypatch.setattr(desk._channel, "_received", lambda *message: unread.append(message))
            admitted = front.admit("x", Urgency.INTERACTIVE, 1, deadline_s=1e9, client="a", key=0)
            for waits in (front.place("a", "vqa").__aenter__(), admitted.__aenter__(), front.report("metrics")):
                with pytest.raises(Unavailable, match="has not answered") as told:
                    await waits
                assert told.value.code == "engine_unresponsive"
                assert told.value.retry_after_s
            assert await front.status() == "unresponsive"
            await until(lambda: [message[0] for message, _ in unread].count("drop") == 4)
            monkeypatch.setattr(desk._channel, "_received", desk._received)
            monkeypatch.setattr(remote, "ANSWER_WITHIN_S", PATIENCE_S)
            for message in unread:
                desk._received(*message)
            async with front.place("a", "vqa"):
                assert await front.status() == "ready"

    play(scenario)


def test_front_of_an_engine_process_that_reads_nothing_writes_only_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are refused at once; records are sent when it reads again."""
    unread_bytes, count = 10_000, 200
    monkeypatch.setattr(channel, "UNREAD_BYTES", unread_bytes)

    async def scenario() -> None:
        async with Split(fronts=1, places=1).running() as split:
            (front,), (desk,) = split.fronts, split.hall.desks
            assert front._engine
            writer = front._engine._channel._transport
            desk._channel._transport.pause_reading()
            recorded = 0
            while writer.get_write_buffer_size() <= unread_bytes:
                front.record(refused())
                recorded += 1
            full_bytes = writer.get_write_buffer_size()

            for _ in range(count):
                front.record(refused())
                front.count_body_bytes(1_000_000)
                with pytest.raises(Unavailable) as told:
                    async with front.place("a", "vqa"):
                        pass
                assert told.value.code == "engine_unresponsive"
            assert writer.get_write_buffer_size() == full_bytes
            assert await front.status() == "unresponsive"

            desk._channel._transport.resume_reading()
            labels = {"task": "vqa", "model": "", "status": "503", "code": "engine_restarting"}
            await until(lambda: split.value("vilt_requests_total", **labels) == recorded + count)
            await until(lambda: split.value("vilt_body_bytes") == count * 1_000_000)
            assert await front.status() == "ready"

    play(scenario)


def test_deadline_that_has_passed_is_refused_by_the_engine_process() -> None:
    """An instant means the same in all processes: perf_counter is the machine's monotonic clock."""
    assert time.get_clock_info("perf_counter").implementation == "clock_gettime(CLOCK_MONOTONIC)"

    async def scenario() -> None:
        async with Split().running() as split:
            with pytest.raises(DeadlineExceeded):
                await split.ask(1, within_s=-0.001)
            assert split.engine.batches == []

    play(scenario)


def test_engine_s_fault_arrives_as_it_is() -> None:
    """With its kind, code and sentence; the next request is answered."""

    async def scenario() -> None:
        async with Split(HeldEngine(failures=1)).running() as split:
            with pytest.raises(EngineFault) as told:
                await split.ask(1)
            assert told.value.code == "engine_fault"
            assert int((await split.ask(2)).logits["rank_logits"][0]) == 2

    play(scenario)


@pytest.mark.parametrize("broken", ["admit", "run"])
def test_what_nobody_foresaw_in_the_engine_process_is_answered_at_once(
    broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise the front would wait until the deadline for an answer that never comes."""

    async def scenario() -> None:
        async with Split().running() as split:
            if broken == "admit":
                monkeypatch.setattr(split.local.admission, "admit", fail)
            else:
                monkeypatch.setattr(split.local.batcher, "submit", fail)
            with pytest.raises(ServerError) as raised:
                await split.ask(1)
            assert (raised.value.status, raised.value.code) == (500, "internal_error")

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    play(scenario)

    assert "ZeroDivisionError" in caplog.text


def test_front_of_another_artifact_than_the_engine_has_does_not_start(tmp_path: Path) -> None:
    """Labels that were replaced in the meantime would name the old model's logits."""
    fields = describe(served(HeldEngine())) | {"provider": "cpu"}
    assert known_here(SHAPES, fields).slice_size == fields["slice_size"]
    folder = shutil.copytree(SHAPES, tmp_path / "other")
    labels = folder / "labels.json"
    labels.write_text(labels.read_text().replace("purple", "violet"))
    manifest = read_manifest(folder)
    files = {**manifest.files, "labels.json": describe_file(folder, "labels.json")}
    replace(manifest, files=files).write(folder)

    with pytest.raises(ArtifactError, match=r"has been replaced .* restart the server"):
        known_here(folder, fields)


def test_front_reads_no_graph(tmp_path: Path) -> None:
    """The engine process has verified them, and runs them alone."""
    folder = shutil.copytree(SHAPES, tmp_path / "shapes", ignore=shutil.ignore_patterns("*.onnx"))

    assert known_here(folder, describe(served(HeldEngine())) | {"provider": "cpu"}).name == "shapes"


def test_error_is_the_same_after_the_way() -> None:
    """Kind, status, code, sentence, time to come back, details."""
    details = {"queued_ms": 1.5, "estimate_ms": 2.0, "deadline_ms": 1.0}
    for error in (Unavailable("deadline_unreachable", "No.", retry_after_s=0.25, details=details), DeadlineExceeded()):
        read = read_error(json.loads(json.dumps(write_error(error))))

        assert type(read) is type(error)
        for name in ("status", "code", "message", "retry_after_s", "details"):
            assert getattr(read, name) == getattr(error, name)
        assert isinstance(read, ServerError)


def test_messages_in_pieces_arrive_whole_and_one_that_fails_ends_no_other() -> None:
    """A stream has no message boundaries of its own."""
    received: list[tuple[Message, bytes]] = []

    def receive(message: Message, payload: bytes) -> None:
        if message == ["bad"]:
            raise ValueError
        received.append((message, payload))

    sent = [(["a", 1], b"x" * 1000), (["bad"], b""), (["b", {"c": 0.1}], b"")]
    stream = b""
    for message, payload in sent:
        head = json.dumps(message).encode()
        stream += SIZES.pack(len(head), len(payload)) + head + payload
    for size in (1, 7, 900, len(stream)):
        received.clear()
        channel = Channel(receive, lambda: None)
        for start in range(0, len(stream), size):
            channel.data_received(stream[start : start + size])

        assert received == [sent[0], sent[2]]


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_message_to_an_end_that_has_gone_is_lost(make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """A run may be resolved in the very turn of the loop in which its front is found to be gone, and answered next."""

    async def scenario() -> list[Message]:
        received: list[Message] = []
        sent = asyncio.Event()

        def send_in_vain() -> None:
            channel.send(["in vain"])
            sent.set()

        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        channel = Channel(lambda *_: None, lambda: loop.call_soon(send_in_vain))
        other = Channel(lambda message, _: received.append(message), lambda: None)
        for end, one in ((ours, channel), (theirs, other)):
            await loop.create_unix_connection(lambda one=one: one, sock=end)

        channel.send(["heard"])
        await until(lambda: bool(received))
        other.close()
        await asyncio.wait_for(sent.wait(), 5)
        return received

    with asyncio.Runner(loop_factory=make_loop) as runner:
        assert runner.run(scenario()) == [["heard"]]


def test_slots_beyond_those_kept_give_their_memory_back() -> None:
    """A burst does not occupy memory for good."""
    descriptor = os.memfd_create("test")
    slots = Slots(descriptor, KEPT + 8, 10_000)
    taken = slots.take(KEPT + 8)
    for slot in taken:
        slots.memory.view(slot, 1, 10_000)[:] = 1
    full_bytes = os.fstat(descriptor).st_blocks * 512

    for slot in taken:
        slots.let_go(slot)

    assert full_bytes >= (KEPT + 8) * 10_000
    assert os.fstat(descriptor).st_blocks * 512 == KEPT * slots.slot_bytes
    assert slots.take(1) == [0]
    os.close(descriptor)


def test_room_of_a_rank_is_given_back_with_each_candidate_that_has_been_run() -> None:
    """Other requests need not wait for the whole rank."""

    async def scenario() -> None:
        async with Split(fronts=1).running() as split:
            for backend in (split.local, split.fronts[0]):
                about = {"deadline_s": time.perf_counter() + 30, "client": "", "key": ("client", id(backend))}
                async with backend.admit("shapes", Urgency.RANK, 3, **about) as permit:
                    for number, left in ((2, 2), (3, 1), (4, 0)):
                        await permit.run(features(number, columns=2), ("shapes", number))
                        assert split.value("vilt_in_flight_entries") == left

    play(scenario)


def test_slot_of_a_pair_whose_logits_are_kept_is_given_back() -> None:
    """A slot lost at each hit would soon leave none."""

    async def scenario() -> None:
        async with Split(fronts=1, kept_logits=9).running() as split:
            for _ in range(3):
                assert int((await split.ask(7)).logits["rank_logits"][0]) == 7
            assert split.value("vilt_cache_hits_total", cache="logits") == 2
            assert split.engine.batches == [[7]]
            await until(lambda: split.hall.slots_in_use == 0)

    play(scenario)
