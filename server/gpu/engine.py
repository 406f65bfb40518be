"""The graph in half precision on an NVIDIA GPU: batches are padded into buckets, each of which is a CUDA graph.

While one batch runs, the next two are written into pinned memory and copied to the GPU, and the logits of the last are
copied back. All runs are on one thread of the engine, because a captured graph belongs to the thread that captured it.
"""

import contextlib
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.batch import Features, Feeds, collate, extent
from models.spec import ViltSpec
from server.gpu.buckets import Bucket, Profile, blank, choose, padded
from server.types import EngineOutput, Logits

SLOTS = 3  # batches in progress: one runs while the next are written and copied

Allocate = Callable[[tuple[int, ...]], NDArray[np.uint8]]


class Program(Protocol):
    """The graph on a device, with tensors at fixed addresses for each bucket and slot."""

    def copy_in(self, bucket: Bucket, slot: int, tensors: Feeds) -> None:
        """Copy a bucket's tensors to the device."""
        ...

    def run(self, bucket: Bucket, slot: int) -> None:
        """Run the copied batch and wait for its end."""
        ...

    def copy_out(self, bucket: Bucket, slot: int, logits: Logits) -> None:
        """Fill arrays with every head's logits from that run."""
        ...


@dataclass(frozen=True, slots=True)
class Slot:
    """The pinned memory of one batch in progress."""

    number: int
    patches: NDArray[np.uint8]  # of the largest bucket, flat
    logits: NDArray[np.float32]  # of the largest batch, flat


class GpuEngine:
    """An artifact's fp16 graph; it runs only the shapes of its buckets."""

    overlapping = SLOTS

    def __init__(
        self,
        programs: Sequence[tuple[Profile, Program]],
        buckets: Sequence[Bucket],
        spec: ViltSpec,
        heads: Mapping[str, int],
        *,
        provider: str,
        version: str,
        device: str,
        allocate: Allocate,
        thread: ThreadPoolExecutor,
    ) -> None:
        """Take a program for each range of shapes, opened on the thread that will run them."""
        self.provider, self.version, self.device = provider, version, device
        self._spec, self._heads = spec, dict(heads)
        self._buckets = list(buckets)
        self._programs = {
            bucket: next(program for profile, program in programs if profile.holds(bucket)) for bucket in buckets
        }
        self._thread = thread
        self._slots: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        largest = max(bucket.batch * bucket.patches for bucket in buckets) * spec.patch_values
        answers = max(bucket.batch for bucket in buckets) * sum(heads.values()) * np.dtype(np.float32).itemsize
        for number in range(SLOTS):
            self._slots.put(Slot(number, allocate((largest,)), allocate((answers,)).view(np.float32)))

    def warm_up(self) -> None:
        """Capture every bucket in every slot, so that no request has to; other runs of this engine wait.

        Nothing else in this process may use the GPU meanwhile, not even another engine: onnxruntime captures in CUDA's
        global mode, in which a call from any thread can spoil a capture.
        """
        with contextlib.ExitStack() as stack:
            slots = [stack.enter_context(self._slot()) for _ in range(SLOTS)]
            for bucket in self._buckets:
                for slot in slots:
                    self._run(bucket, slot, blank(bucket, self._spec.patch_values))

    def padded(self, batch: int, tokens: float) -> tuple[int, int]:
        """Return the rows, and the tokens of a row, that a batch is padded to."""
        return padded(self._buckets, batch, tokens)

    def run(self, batch: Sequence[Features]) -> EngineOutput:
        """Compute every head's logits, a row for each pair; with several threads calling, copies overlap runs.

        Raises: OutsideBuckets: no bucket holds it.
        """
        bucket = choose(self._buckets, Bucket(*extent(batch)))
        with self._slot() as slot:
            return EngineOutput(self._run(bucket, slot, batch), {})

    def run_again(self, batch: Sequence[Features]) -> None:
        """Run a batch's bucket on what was last copied for it, to time the graph without copies."""
        bucket = choose(self._buckets, Bucket(*extent(batch)))
        with self._slot() as slot:
            self._thread.submit(self._programs[bucket].run, bucket, slot.number).result()

    def _run(self, bucket: Bucket, slot: Slot, batch: Sequence[Features]) -> Logits:
        program = self._programs[bucket]
        tensors = collate(batch, _tensors(bucket, slot, self._spec.patch_values))
        logits = _logits(bucket, slot, self._heads)
        program.copy_in(bucket, slot.number, tensors)
        self._thread.submit(program.run, bucket, slot.number).result()
        program.copy_out(bucket, slot.number, logits)
        # The next batch overwrites the slot's.
        return {head: values[: len(batch)].copy() for head, values in logits.items()}

    @contextlib.contextmanager
    def _slot(self) -> Iterator[Slot]:
        slot = self._slots.get()
        try:
            yield slot
        finally:
            self._slots.put(slot)


def _tensors(bucket: Bucket, slot: Slot, patch_values: int) -> Feeds:
    """Return a bucket's tensors to write to: patches in the slot's memory, the small ones newly made."""
    shapes = bucket.shapes(patch_values)
    size = bucket.batch * bucket.patches * patch_values
    return Feeds(
        np.empty(shapes["input_ids"], np.int64),
        slot.patches[:size].reshape(shapes["patches"]),
        np.empty(shapes["position_ids"], np.int64),
        np.empty(shapes["mask"], np.bool_),
    )


def _logits(bucket: Bucket, slot: Slot, heads: Mapping[str, int]) -> Logits:
    """Return an array in the slot's memory for each head, one after the other."""
    found, used = {}, 0
    for head, width in heads.items():
        found[head] = slot.logits[used : used + bucket.batch * width].reshape(bucket.batch, width)
        used += bucket.batch * width
    return found
