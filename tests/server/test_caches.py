"""Work done once: found again, joined while in progress, forgotten in order."""

import gc
import threading
import weakref
from concurrent.futures import Future

import pytest

from server.caches import Cache


def test_value_is_made_once_and_found_again() -> None:
    """The second time nothing is made."""
    cache: Cache[str] = Cache(10, len)

    assert cache.get_or_make("a", lambda: "one") == ("one", False)
    assert cache.get_or_make("a", lambda: "other") == ("one", True)


def test_least_recently_used_goes_first_when_the_bound_is_reached() -> None:
    """Sizes are summed; finding a value makes it recent."""
    cache: Cache[str] = Cache(10, len)
    for key in ("a", "b"):
        cache.keep(key, "12345")
    cache.find("a")
    cache.keep("c", "1")

    assert (cache.find("a"), cache.find("b"), cache.find("c")) == ("12345", None, "1")


def test_value_larger_than_the_bound_is_not_kept() -> None:
    """It would push out everything and not fit either."""
    cache: Cache[str] = Cache(3, len)
    cache.keep("a", "123")
    cache.keep("b", "1234")

    assert (cache.find("a"), cache.find("b")) == ("123", None)


def test_two_threads_that_want_the_same_make_it_once() -> None:
    """Whoever comes while it is being made waits for it."""
    cache: Cache[str] = Cache(10, len)
    began, may_end = threading.Event(), threading.Event()
    made, found = [], []

    def make() -> str:
        began.set()
        assert may_end.wait(10)
        made.append(1)
        return "value"

    threads = [threading.Thread(target=lambda: found.append(cache.get_or_make("a", make))) for _ in range(3)]
    threads[0].start()
    assert began.wait(10)
    for thread in threads[1:]:
        thread.start()
    may_end.set()
    for thread in threads:
        thread.join(10)

    assert made == [1]
    assert sorted(found) == [("value", False), ("value", True), ("value", True)]


def test_failure_is_raised_to_whoever_asked_and_not_remembered() -> None:
    """A damaged image is refused each time; a good one later is made."""
    cache: Cache[str] = Cache(10, len)

    def fail() -> str:
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        cache.get_or_make("a", fail)

    assert cache.get_or_make("a", lambda: "good") == ("good", False)


@pytest.mark.parametrize("waiting", [0, 2])
def test_failure_is_raised_to_all_who_wait_for_it_and_kept_by_none(
    waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged image that several ask about is decoded once; what there was of it goes with its failure."""
    waits, may_end = threading.Semaphore(0), threading.Event()
    made: list[weakref.ref[Exception]] = []
    said: list[str] = []

    class Awaited(Future[str]):
        def result(self, timeout: float | None = None) -> str:
            waits.release()
            try:
                return super().result(timeout)
            finally:
                del self  # as it does itself

    def fail() -> str:
        waits.release()
        assert may_end.wait(10)
        error = Damaged("damaged")
        made.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error  # or it would know this frame, and this frame it

    def ask() -> None:
        try:
            cache.get_or_make("a", fail)
        except Damaged as error:
            said.append(str(error))

    monkeypatch.setattr("server.caches.Future", Awaited)
    cache: Cache[str] = Cache(10, len)
    threads = [threading.Thread(target=ask) for _ in range(1 + waiting)]
    gc.disable()
    try:
        for thread in threads:
            thread.start()
            assert waits.acquire(timeout=10)
        may_end.set()
        for thread in threads:
            thread.join(10)

        assert said == ["damaged"] * (1 + waiting)
        assert [one() for one in made] == [None]
    finally:
        gc.enable()


class Damaged(Exception):
    """A failure."""
