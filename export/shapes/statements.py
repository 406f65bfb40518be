"""Statements about a scene, which hold, do not hold, or are not clear (None).

A statement is not clear where an object is of medium size, too near the middle to be on a side, or hardly further left
than another. Only what is clear is asked or said, so every answer is right, and every false caption false, by
construction.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from export.shapes.scenes import COLORS, LARGE_RADIUS, SHAPES, SMALL_RADIUS, Scene, Thing

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
SIZES = ("small", "large")
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
SIDES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}

CLEARLY_APART = 24.0  # units between two centres from which a relation is said; half a medium object
CLEARLY_ASIDE = 0.1  # of the scene, from its middle, from which a side is said

Rng = np.random.Generator
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Noun:
    """A description of objects; None leaves an attribute open."""

    color: str | None = None
    shape: str | None = None
    size: str | None = None

    def describes(self, thing: Thing) -> bool | None:
        if self.color not in (None, thing.color) or self.shape not in (None, thing.shape):
            return False
        if self.size is None or size_of(thing) is None:
            return None if self.size else True
        return self.size == size_of(thing)

    def __str__(self) -> str:
        return " ".join(word for word in (self.size, self.color, self.shape or "object") if word)

    @property
    def plural(self) -> str:
        return f"{self}es" if str(self).endswith("s") else f"{self}s"


@dataclass(frozen=True, slots=True)
class Some:
    """There is at least one."""

    noun: Noun

    def holds(self, scene: Scene) -> bool | None:
        return any_of(self.noun.describes(thing) for thing in scene.things)

    def __str__(self) -> str:
        return _a(str(self.noun))


@dataclass(frozen=True, slots=True)
class Exactly:
    """There are exactly so many; for nouns without a size."""

    number: int
    noun: Noun

    def holds(self, scene: Scene) -> bool:
        return sum(self.noun.describes(thing) is True for thing in scene.things) == self.number

    def __str__(self) -> str:
        return f"{NUMBERS[self.number]} {self.noun if self.number == 1 else self.noun.plural}"


@dataclass(frozen=True, slots=True)
class Related:
    """Some first thing stands to one side of some second thing."""

    first: Noun
    relation: str
    second: Noun

    def holds(self, scene: Scene) -> bool | None:
        dx, dy = RELATIONS[self.relation]
        return any_of(
            _clear((a.x - b.x) * dx + (a.y - b.y) * dy, CLEARLY_APART)
            for a in scene.things
            for b in scene.things
            if a is not b and self.first.describes(a) and self.second.describes(b)
        )

    def __str__(self) -> str:
        return f"{_a(str(self.first))} {self.relation} {_a(str(self.second))}"


@dataclass(frozen=True, slots=True)
class Placed:
    """Some thing lies on one side of the scene."""

    noun: Noun
    side: str

    def holds(self, scene: Scene) -> bool | None:
        dx, dy = SIDES[self.side]
        return any_of(
            _clear((thing.x / scene.width - 0.5) * dx + (thing.y / scene.height - 0.5) * dy, CLEARLY_ASIDE)
            for thing in scene.things
            if self.noun.describes(thing)
        )

    def __str__(self) -> str:
        return f"{_a(str(self.noun))} {'on' if self.side in ('left', 'right') else 'at'} the {self.side}"


Statement = Some | Exactly | Related | Placed


def size_of(thing: Thing) -> str | None:
    """Say whether an object is small or large, or neither."""
    if thing.radius <= SMALL_RADIUS:
        return "small"
    return "large" if thing.radius >= LARGE_RADIUS else None


def unique_names(scene: Scene) -> list[Noun]:
    """List the full names that only one object has."""
    counts = Counter((thing.color, thing.shape) for thing in scene.things)
    return [Noun(*name) for name, count in sorted(counts.items()) if count == 1]


def related(scene: Scene, rng: Rng) -> Related | None:
    """Find two objects with unique names, one clearly to one side of the other."""
    unique = unique_names(scene)
    found = [
        statement
        for first in unique
        for second in unique
        for relation in RELATIONS
        if first != second and (statement := Related(first, relation, second)).holds(scene)
    ]
    return one_of(rng, found) if found else None


def counted(scene: Scene, rng: Rng) -> Exactly:
    """Count something that is present three times in four."""
    which = rng.random()
    if which < 0.2:
        return Exactly(len(scene.things), Noun())
    attribute, values = ("color", list(COLORS)) if which < 0.6 else ("shape", list(SHAPES))
    present = sorted({getattr(thing, attribute) for thing in scene.things})
    noun = Noun(**{attribute: one_of(rng, present) if rng.random() < 0.75 else one_of(rng, values)})
    return Exactly(sum(noun.describes(thing) is True for thing in scene.things), noun)


def other_noun(noun: Noun, rng: Rng) -> Noun:
    """Change one attribute that a noun has."""
    attribute = one_of(rng, [name for name in ("color", "shape", "size") if getattr(noun, name)])
    values: Sequence[str] = {"color": list(COLORS), "shape": SHAPES, "size": SIZES}[attribute]
    value = one_of(rng, [value for value in values if value != getattr(noun, attribute)])
    return replace(noun, **{attribute: value})


def one_of(rng: Rng, values: Sequence[T]) -> T:
    """Pick one value, each with the same probability."""
    return values[int(rng.integers(len(values)))]


def _clear(difference: float, margin: float) -> bool | None:
    """Tell a difference above zero from one below, None where it is within the margin."""
    return None if abs(difference) < margin else difference > 0


def any_of(values: Iterable[bool | None]) -> bool | None:
    """True if any is; else None if any is; else False."""
    found = list(values)
    return True if True in found else None if None in found else False


def all_of(values: Iterable[bool | None]) -> bool | None:
    """False if any is; else None if any is; else True."""
    found = list(values)
    return False if False in found else None if None in found else True


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
