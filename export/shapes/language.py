"""What can be asked and said about a scene: questions with their answers, captions true and false.

Everything is derived from the scene's objects, so every answer and every false caption is right by construction.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from export.shapes.scenes import COLORS, SHAPES, Scene, Thing

NUMBERS = ("zero", "one", "two", "three", "four", "five")
LABELS = (*COLORS, *SHAPES, "0", "1", "2", "3", "4", "5", "yes", "no")
KINDS = ("color", "shape", "count", "exists", "relation")
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}

MAX_TEXT_TOKENS = 16  # [CLS] and [SEP] included; the longest template takes 15
Rng = np.random.Generator
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a scene, its kind, its one right answer, and the objects that it names, in order."""

    kind: str
    text: str
    answer: str
    about: tuple[str, ...] = ()


def question(scene: Scene, kind: str, rng: Rng) -> Question | None:
    """Ask a question of a kind, or return None where the scene allows none (two of everything, say)."""
    return _ASK[kind](scene.things, rng)


def caption(scene: Scene, rng: Rng, *, true: bool) -> str:
    """Say something about a scene that holds, or that fails by one attribute, count or direction."""
    while True:
        statement = _SAY[int(rng.integers(len(_SAY)))](scene.things, rng, true)
        if statement is not None:
            return statement


def holds(things: tuple[Thing, ...], first: str, relation: str, second: str) -> bool:
    """Tell whether any object named `first` stands in a relation to any object named `second`."""
    dx, dy = RELATIONS[relation]
    return any(
        a.name == first and b.name == second and (a.column - b.column) * dx + (a.row - b.row) * dy > 0
        for a in things
        for b in things
    )


def _color(things: tuple[Thing, ...], rng: Rng) -> Question | None:
    templates = ("what color is the {}", "what is the color of the {}", "what colour is the {}")
    return _attribute(things, rng, "shape", "color", templates)


def _shape(things: tuple[Thing, ...], rng: Rng) -> Question | None:
    templates = ("what shape is the {} object", "what is the {} object", "what is the shape of the {} object")
    return _attribute(things, rng, "color", "shape", templates)


def _attribute(
    things: tuple[Thing, ...], rng: Rng, known: str, asked: str, templates: tuple[str, ...]
) -> Question | None:
    """Ask for the attribute of the only object with a known value of the other one."""
    counts = Counter(getattr(thing, known) for thing in things)
    unique = [thing for thing in things if counts[getattr(thing, known)] == 1]
    if not unique:
        return None
    thing = _one(rng, unique)
    text = _one(rng, templates).format(getattr(thing, known)) + "?"
    return Question(asked, text, getattr(thing, asked), about=(thing.name,))


def _count(things: tuple[Thing, ...], rng: Rng) -> Question | None:
    _, plural, number = _countable(things, rng)
    template = _one(rng, ("how many {} are there?", "how many {} do you see?", "how many {} are in the picture?"))
    return Question("count", template.format(plural), str(number))


def _exists(things: tuple[Thing, ...], rng: Rng) -> Question | None:
    names = {thing.name for thing in things}
    answer = bool(rng.random() < 0.5)
    name = _one(rng, sorted(names)) if answer else _absent(names, rng)
    template = _one(rng, ("is there {}?", "do you see {}?", "is there {} in the picture?"))
    text = template.format(_a(name))
    return Question("exists", text, "yes", about=(name,)) if answer else Question("exists", text, "no")


def _relation(things: tuple[Thing, ...], rng: Rng) -> Question | None:
    found = _related(things, rng)
    if found is None:
        return None
    first, relation, second = found
    answer = bool(rng.random() < 0.5)
    if not answer:
        first, second = second, first
    if relation.endswith("of") and rng.random() < 0.5:
        relation = f"to the {relation}"
    text = f"is the {first} {relation} the {second}?"
    return Question("relation", text, "yes" if answer else "no", about=(first, second))


def _related(things: tuple[Thing, ...], rng: Rng) -> tuple[str, str, str] | None:
    """Find two objects, each the only one of its name, one clearly to a side of the other."""
    counts = Counter(thing.name for thing in things)
    unique = [thing for thing in things if counts[thing.name] == 1]
    found = [
        (a.name, relation, b.name)
        for a in unique
        for b in unique
        for relation in RELATIONS
        if holds((a, b), a.name, relation, b.name)
    ]
    return _one(rng, found) if found else None


def _countable(things: tuple[Thing, ...], rng: Rng) -> tuple[str, str, int]:
    """Pick something countable, present three times in four: its singular, its plural, how many there are."""
    which = rng.random()
    if which < 0.2:
        return "object", "objects", len(things)
    attribute, values = ("color", list(COLORS)) if which < 0.6 else ("shape", list(SHAPES))
    counts = Counter(getattr(thing, attribute) for thing in things)
    value = _one(rng, sorted(counts)) if rng.random() < 0.75 else _one(rng, values)
    singular = f"{value} object" if attribute == "color" else value
    return singular, _plural(singular), counts[value]


def _absent(names: set[str], rng: Rng) -> str:
    """Name something that is not there: one attribute away from something that is, three times in four."""
    while True:
        color, shape = _one(rng, sorted(names)).split()
        if rng.random() < 0.5:
            color = _one(rng, list(COLORS))
        else:
            shape = _one(rng, SHAPES)
        if rng.random() < 0.25:
            color, shape = _one(rng, list(COLORS)), _one(rng, SHAPES)
        if f"{color} {shape}" not in names:
            return f"{color} {shape}"


def _say_one(things: tuple[Thing, ...], rng: Rng, true: bool) -> str | None:
    names = {thing.name for thing in things}
    name = _one(rng, sorted(names)) if true else _absent(names, rng)
    return _one(rng, ("there is {}", "{}", "a picture of {}")).format(_a(name))


def _say_two(things: tuple[Thing, ...], rng: Rng, true: bool) -> str | None:
    names = sorted({thing.name for thing in things})
    if len(names) < 2:
        return None
    said = [str(name) for name in rng.choice(names, size=2, replace=False)]
    if not true:
        said[int(rng.integers(2))] = _absent(set(names), rng)
    return f"{_a(said[0])} and {_a(said[1])}"


def _say_relation(things: tuple[Thing, ...], rng: Rng, true: bool) -> str | None:
    found = _related(things, rng)
    if found is None:
        return None
    first, relation, second = found
    if not true:
        names = {thing.name for thing in things}
        change = int(rng.integers(3))
        if change == 0:
            first, second = second, first
        elif change == 1:
            first = _absent(names, rng)
        else:
            second = _absent(names, rng)
    return f"{_a(first)} {relation} {_a(second)}"


def _say_count(things: tuple[Thing, ...], rng: Rng, true: bool) -> str | None:
    singular, plural, number = _countable(things, rng)
    if number == 0:
        return None
    if not true:
        number = _one(rng, [other for other in range(1, len(NUMBERS)) if other != number])
    return f"{NUMBERS[number]} {singular if number == 1 else plural}"


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _one(rng: Rng, values: Sequence[T]) -> T:
    return values[int(rng.integers(len(values)))]


_ASK: dict[str, Callable[[tuple[Thing, ...], Rng], Question | None]] = {
    "color": _color,
    "shape": _shape,
    "count": _count,
    "exists": _exists,
    "relation": _relation,
}
_SAY = (_say_one, _say_two, _say_relation, _say_count)
VOCABULARY = sorted(
    {
        *COLORS, *SHAPES, *map(_plural, SHAPES), *NUMBERS, *"012345", "object", "objects", "left", "right",
        "above", "below", "of", "to", "in", "what", "color", "colour", "is", "the", "shape", "how", "many", "are",
        "there", "do", "you", "see", "a", "an", "picture", "and", "?",
    }
)  # fmt: skip
