"""What is said about scenes: captions that hold, and captions that one word makes false."""

from collections import Counter
from dataclasses import dataclass, replace

from export.shapes.claims import (
    RELATIONS,
    SIDES,
    Claim,
    Exactly,
    Noun,
    Placed,
    Related,
    Rng,
    Some,
    all_of,
    counted,
    one_of,
    other_noun,
    related,
    size_of,
    unique_names,
)
from export.shapes.scenes import MAX_THINGS, Scene

OPPOSITES = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


@dataclass(frozen=True, slots=True)
class Caption:
    """Claims that are said in one breath."""

    claims: tuple[Claim, ...]
    opening: str = ""

    def holds(self, scene: Scene) -> bool | None:
        return all_of(claim.holds(scene) for claim in self.claims)

    def __str__(self) -> str:
        *first, last = map(str, self.claims)
        return self.opening + (f"{', '.join(first)} and {last}" if first else last)


def true_caption(scene: Scene, rng: Rng) -> Caption:
    """Say something that holds: one object or several, all of them, a count, a relation, a side, a size."""
    while True:
        claims = _SAY[int(rng.integers(len(_SAY)))](scene, rng)
        if claims:
            return Caption(claims, one_of(rng, ("", "", "there is ", "a picture of ")))


def false_caption(scene: Scene, rng: Rng) -> Caption:
    """Say something that fails by one word of what holds: an attribute, a count or a direction."""
    while True:
        caption = true_caption(scene, rng)
        for _ in range(4):
            claims = list(caption.claims)
            index = int(rng.integers(len(claims)))
            claims[index] = _falsified(claims[index], rng)
            changed = replace(caption, claims=tuple(claims))
            if changed.holds(scene) is False:
                return changed


def _falsified(claim: Claim, rng: Rng) -> Claim:
    """Change one word of a claim; what results may happen to hold."""
    match claim:
        case Some(noun):
            changed: list[Claim] = [replace(claim, noun=other_noun(noun, rng))]
        case Exactly(number, noun):
            changed = [replace(claim, number=one_of(rng, [n for n in range(1, MAX_THINGS + 1) if n != number]))]
            if noun != Noun():
                changed.append(replace(claim, noun=other_noun(noun, rng)))
        case Related(first, relation, second):
            changed = [
                replace(claim, first=second, second=first),
                replace(claim, relation=one_of(rng, sorted({*RELATIONS} - {relation}))),
                replace(claim, first=other_noun(first, rng)),
                replace(claim, second=other_noun(second, rng)),
            ]
        case Placed(noun, side):
            changed = [replace(claim, side=OPPOSITES[side]), replace(claim, noun=other_noun(noun, rng))]
    return one_of(rng, changed)


def _say_some(scene: Scene, rng: Rng) -> tuple[Claim, ...]:
    """Name one object, or two, or three."""
    names = sorted({thing.name for thing in scene.things})
    number = min(len(names), int(rng.integers(1, 4)))
    return tuple(Some(Noun(*str(name).split())) for name in rng.choice(names, size=number, replace=False))


def _say_all(scene: Scene, rng: Rng) -> tuple[Claim, ...]:
    """Name every object, in any order."""
    counts = Counter((thing.color, thing.shape) for thing in scene.things)
    claims: list[Claim] = [
        Some(Noun(*name)) if number == 1 else Exactly(number, Noun(*name)) for name, number in counts.items()
    ]
    return tuple(claims[index] for index in rng.permutation(len(claims)))


def _say_relation(scene: Scene, rng: Rng) -> tuple[Claim, ...]:
    claim = related(scene, rng)
    return () if claim is None else (claim,)


def _say_count(scene: Scene, rng: Rng) -> tuple[Claim, ...]:
    claim = counted(scene, rng)
    return (claim,) if claim.number else ()


def _say_side(scene: Scene, rng: Rng) -> tuple[Claim, ...]:
    claims = [Placed(noun, side) for noun in unique_names(scene) for side in SIDES]
    true = [claim for claim in claims if claim.holds(scene)]
    return (one_of(rng, true),) if true else ()


def _say_size(scene: Scene, rng: Rng) -> tuple[Claim, ...]:
    thing = one_of(rng, scene.things)
    size = size_of(thing)
    return (Some(Noun(thing.color, thing.shape, size)),) if size else ()


_SAY = (_say_some, _say_all, _say_all, _say_relation, _say_count, _say_side, _say_size)
