"""Captions of scenes: those that hold, and those that one word makes false."""

from collections import Counter
from dataclasses import dataclass, replace

from export.shapes.scenes import MAX_THINGS, Scene
from export.shapes.statements import (
    RELATIONS,
    SIDES,
    Exactly,
    Noun,
    Placed,
    Related,
    Rng,
    Some,
    Statement,
    all_of,
    counted,
    one_of,
    other_noun,
    related,
    size_of,
    unique_names,
)

OPPOSITES = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


@dataclass(frozen=True, slots=True)
class Caption:
    """One or more statements, joined to one text."""

    statements: tuple[Statement, ...]
    opening: str = ""

    def holds(self, scene: Scene) -> bool | None:
        return all_of(statement.holds(scene) for statement in self.statements)

    def __str__(self) -> str:
        *first, last = map(str, self.statements)
        return self.opening + (f"{', '.join(first)} and {last}" if first else last)


def true_caption(scene: Scene, rng: Rng) -> Caption:
    """Say something that holds: one object or several, all of them, a count, a relation, a side, a size."""
    while True:
        statements = _SAY[int(rng.integers(len(_SAY)))](scene, rng)
        if statements:
            return Caption(statements, one_of(rng, ("", "", "there is ", "a picture of ")))


def false_caption(scene: Scene, rng: Rng) -> Caption:
    """Say something that fails by one word of what holds: an attribute, a count or a direction."""
    while True:
        caption = true_caption(scene, rng)
        for _ in range(4):
            statements = list(caption.statements)
            index = int(rng.integers(len(statements)))
            statements[index] = _falsified(statements[index], rng)
            changed = replace(caption, statements=tuple(statements))
            if changed.holds(scene) is False:
                return changed


def _falsified(statement: Statement, rng: Rng) -> Statement:
    """Change one word of a statement; what results may happen to hold."""
    match statement:
        case Some(noun):
            changed: list[Statement] = [replace(statement, noun=other_noun(noun, rng))]
        case Exactly(number, noun):
            changed = [replace(statement, number=one_of(rng, [n for n in range(1, MAX_THINGS + 1) if n != number]))]
            if noun != Noun():
                changed.append(replace(statement, noun=other_noun(noun, rng)))
        case Related(first, relation, second):
            changed = [
                replace(statement, first=second, second=first),
                replace(statement, relation=one_of(rng, sorted({*RELATIONS} - {relation}))),
                replace(statement, first=other_noun(first, rng)),
                replace(statement, second=other_noun(second, rng)),
            ]
        case Placed(noun, side):
            changed = [replace(statement, side=OPPOSITES[side]), replace(statement, noun=other_noun(noun, rng))]
    return one_of(rng, changed)


def _say_some(scene: Scene, rng: Rng) -> tuple[Statement, ...]:
    """Name one object, or two, or three."""
    names = sorted({thing.name for thing in scene.things})
    number = min(len(names), int(rng.integers(1, 4)))
    return tuple(Some(Noun(*str(name).split())) for name in rng.choice(names, size=number, replace=False))


def _say_all(scene: Scene, rng: Rng) -> tuple[Statement, ...]:
    """Name every object, in any order."""
    counts = Counter((thing.color, thing.shape) for thing in scene.things)
    statements: list[Statement] = [
        Some(Noun(*name)) if number == 1 else Exactly(number, Noun(*name)) for name, number in counts.items()
    ]
    return tuple(statements[index] for index in rng.permutation(len(statements)))


def _say_relation(scene: Scene, rng: Rng) -> tuple[Statement, ...]:
    statement = related(scene, rng)
    return () if statement is None else (statement,)


def _say_count(scene: Scene, rng: Rng) -> tuple[Statement, ...]:
    statement = counted(scene, rng)
    return (statement,) if statement.number else ()


def _say_side(scene: Scene, rng: Rng) -> tuple[Statement, ...]:
    statements = [Placed(noun, side) for noun in unique_names(scene) for side in SIDES]
    true = [statement for statement in statements if statement.holds(scene)]
    return (one_of(rng, true),) if true else ()


def _say_size(scene: Scene, rng: Rng) -> tuple[Statement, ...]:
    thing = one_of(rng, scene.things)
    size = size_of(thing)
    return (Some(Noun(thing.color, thing.shape, size)),) if size else ()


_SAY = (_say_some, _say_all, _say_all, _say_relation, _say_count, _say_side, _say_size)
