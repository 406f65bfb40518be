"""Patches in memory that processes share: an anonymous file, cut into slots of one size.

Nothing is left of it when the last process that has it open ends, however that ends.
"""

import heapq
import mmap
import os

import numpy as np
from numpy.typing import NDArray

# Slots whose memory is kept while unused: as many as the clients of a busy GPU use, some 180 MB. That of the others is
# returned to the system, which costs the engine process 0.1 ms and the next front 0.2 ms.
KEPT = 256


class Memory:
    """All slots, as one process sees them."""

    def __init__(self, descriptor: int, count: int, slot_bytes: int) -> None:
        self._slot_bytes = slot_bytes
        self._map = mmap.mmap(descriptor, count * slot_bytes)

    def view(self, slot: int, rows: int, columns: int) -> NDArray[np.uint8]:
        """Return a slot's bytes as patches."""
        flat = np.frombuffer(self._map, np.uint8, rows * columns, slot * self._slot_bytes)
        return flat.reshape(rows, columns)

    def give_back(self, slot: int) -> None:
        """Return a slot's memory to the system; it reads as zeros afterwards."""
        self._map.madvise(mmap.MADV_REMOVE, slot * self._slot_bytes, self._slot_bytes)


class Slots:
    """Counts the holders of each slot, which is free when its request and the queue have both released it."""

    def __init__(self, descriptor: int, count: int, least_bytes: int) -> None:
        """Divide the file into slots of at least `least_bytes`; memory is taken only as they are used."""
        self.count = count
        self.slot_bytes = -(-least_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        os.ftruncate(descriptor, count * self.slot_bytes)
        self.memory = Memory(descriptor, count, self.slot_bytes)
        self._free = list(range(count))  # a heap: the lowest first, so that few are ever touched
        self._holders = [0] * count

    def __len__(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Take free slots, each held once; there must be as many."""
        taken = [heapq.heappop(self._free) for _ in range(count)]
        for slot in taken:
            self.hold(slot)
        return taken

    def hold(self, slot: int) -> None:
        """Add a holder."""
        self._holders[slot] += 1

    def let_go(self, slot: int) -> None:
        """Remove a holder; without the last one the slot is free."""
        self._holders[slot] -= 1
        if not self._holders[slot]:
            heapq.heappush(self._free, slot)
            if slot >= KEPT:
                self.memory.give_back(slot)
