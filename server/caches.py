"""Bounded memory of work already done, and of work being done: what two ask for at once is made once.

The least recently used goes first. Safe from any thread.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

V = TypeVar("V")


class Cache(Generic[V]):
    """Values by key, bounded by the sum of their sizes; bounded to 0 it keeps none, and joins those in progress."""

    def __init__(self, most: int, size_of: Callable[[V], int]) -> None:
        self._most = most
        self._size_of = size_of
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, V] = OrderedDict()
        self._in_progress: dict[Hashable, Future[V]] = {}
        self._size = 0

    def get_or_make(self, key: Hashable, make: Callable[[], V]) -> tuple[V, bool]:
        """Find a value or make it; tell whether it was there or in progress, in which case this thread waits for it.

        Raises: whatever `make` raises, to all who wait for it.
        """
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key], True
            theirs = self._in_progress.get(key)
            if theirs is None:
                self._in_progress[key] = Future()
        if theirs is not None:
            try:
                return theirs.result(), True  # whoever makes it is on a thread already: no deadlock
            finally:
                del theirs  # a failure knows this frame: they would keep each other, and what it was made of
        try:
            value = make()
        except BaseException as error:
            self._end(key).set_exception(error)
            raise
        self.keep(key, value)
        self._end(key).set_result(value)
        return value, False

    def _end(self, key: Hashable) -> Future[V]:
        with self._lock:
            return self._in_progress.pop(key)

    def find(self, key: Hashable) -> V | None:
        """Look for a value that is kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def keep(self, key: Hashable, value: V) -> None:
        """Keep a value, unless it is larger than all that may be kept."""
        size = self._size_of(value)
        with self._lock:
            if size > self._most or key in self._kept:
                return
            self._kept[key] = value
            self._size += size
            while self._size > self._most:
                _, oldest = self._kept.popitem(last=False)
                self._size -= self._size_of(oldest)
