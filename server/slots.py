"""Patches in memory that processes share: an anonymous file, cut into slots of one size.

Nothing is left of it when the last process that has it open ends, however that ends.
"""

import heapq
import mmap
import os

import numpy as np
from numpy.typing import NDArray

KEPT = 64  # slots whose memory is kept when nobody uses them; beyond, it is given back


class Memory:
    """All slots, as a process sees them."""

    def __init__(self, descriptor: int, count: int, slot_bytes: int) -> None:
        self._slot_bytes = slot_bytes
        self._map = mmap.mmap(descriptor, count * slot_bytes)

    def view(self, slot: int, rows: int, columns: int) -> NDArray[np.uint8]:
        """Look at a slot's bytes as patches."""
        flat = np.frombuffer(self._map, np.uint8, rows * columns, slot * self._slot_bytes)
        return flat.reshape(rows, columns)

    def give_back(self, slot: int) -> None:
        """Let the system have a slot's memory; it will be zeros."""
        self._map.madvise(mmap.MADV_REMOVE, slot * self._slot_bytes, self._slot_bytes)


class Slots:
    """Who has which slot: it is free again when its request and the queue have both let go of it."""

    def __init__(self, descriptor: int, count: int, least_bytes: int) -> None:
        """Cut the file into so many slots of at least so many bytes; memory is taken as they are used."""
        self.count = count
        self.slot_bytes = -(-least_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        os.ftruncate(descriptor, count * self.slot_bytes)
        self.memory = Memory(descriptor, count, self.slot_bytes)
        self._free = list(range(count))  # a heap: the lowest first, so that few are ever touched
        self._holders = [0] * count

    def __len__(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Give out free slots, each held once; there have to be so many."""
        taken = [heapq.heappop(self._free) for _ in range(count)]
        for slot in taken:
            self.hold(slot)
        return taken

    def hold(self, slot: int) -> None:
        """Keep a slot from being given out, once more."""
        self._holders[slot] += 1

    def let_go(self, slot: int) -> None:
        """Undo one hold; the last makes it free."""
        self._holders[slot] -= 1
        if not self._holders[slot]:
            heapq.heappush(self._free, slot)
            if slot >= KEPT:
                self.memory.give_back(slot)
