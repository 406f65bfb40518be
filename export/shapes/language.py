"""What can be asked and said about a scene: questions with their answers, captions true and false.

Everything rests on claims: a claim has words, and it holds in a scene, or it does not, or not clearly (None): an object
too near the middle for a side, of medium size, hardly further left. Only what is clear is asked or said, so that every
answer and every false caption is right by construction.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from export.shapes.scenes import COLORS, LARGE_RADIUS, MAX_THINGS, SHAPES, SMALL_RADIUS, Scene, Thing

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
SIZES = ("small", "large")
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
SIDES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
OPPOSITES = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
LABELS = (*COLORS, *SHAPES, *map(str, range(MAX_THINGS + 1)), "yes", "no", *SIZES, *SIDES)
KINDS = ("color", "shape", "count", "exists", "both", "relation", "side", "size")

CLEARLY_APART = 24.0  # units between two centres from which a relation is said; half a medium object
CLEARLY_ASIDE = 0.1  # of the scene, from its middle, from which a side is said

MAX_TEXT_TOKENS = 32  # [CLS] and [SEP] included; "a picture of" six different objects takes 28
Rng = np.random.Generator
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Noun:
    """A description of objects; what it leaves open is None."""

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
        return _any(self.noun.describes(thing) for thing in scene.things)

    def __str__(self) -> str:
        return _a(str(self.noun))


@dataclass(frozen=True, slots=True)
class Exactly:
    """There are so many and no more; of nouns without a size."""

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
        return _any(
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
        return _any(
            _clear((thing.x / scene.width - 0.5) * dx + (thing.y / scene.height - 0.5) * dy, CLEARLY_ASIDE)
            for thing in scene.things
            if self.noun.describes(thing)
        )

    def __str__(self) -> str:
        return f"{_a(str(self.noun))} {'on' if self.side in ('left', 'right') else 'at'} the {self.side}"


Claim = Some | Exactly | Related | Placed


@dataclass(frozen=True, slots=True)
class Caption:
    """Claims that are said in one breath."""

    claims: tuple[Claim, ...]
    opening: str = ""

    def holds(self, scene: Scene) -> bool | None:
        return _all(claim.holds(scene) for claim in self.claims)

    def __str__(self) -> str:
        *first, last = map(str, self.claims)
        return self.opening + (f"{', '.join(first)} and {last}" if first else last)


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a scene, its kind, its one right answer, and the objects that it names, in order."""

    kind: str
    text: str
    answer: str
    about: tuple[Noun, ...] = ()


def size_of(thing: Thing) -> str | None:
    """Say whether an object is small or large, or neither."""
    if thing.radius <= SMALL_RADIUS:
        return "small"
    return "large" if thing.radius >= LARGE_RADIUS else None


def question(scene: Scene, kind: str, rng: Rng) -> Question | None:
    """Ask a question of a kind, or return None where the scene allows none (two of everything, say)."""
    return _ASK[kind](scene, rng)


def true_caption(scene: Scene, rng: Rng) -> Caption:
    """Say something that holds: one object or several, all of them, a count, a relation, a side, a size."""
    while True:
        claims = _SAY[int(rng.integers(len(_SAY)))](scene, rng)
        if claims:
            return Caption(claims, _one(rng, ("", "", "there is ", "a picture of ")))


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
            changed: list[Claim] = [replace(claim, noun=_other(noun, rng))]
        case Exactly(number, noun):
            changed = [replace(claim, number=_one(rng, [n for n in range(1, MAX_THINGS + 1) if n != number]))]
            if noun != Noun():
                changed.append(replace(claim, noun=_other(noun, rng)))
        case Related(first, relation, second):
            changed = [
                replace(claim, first=second, second=first),
                replace(claim, relation=_one(rng, sorted({*RELATIONS} - {relation}))),
                replace(claim, first=_other(first, rng)),
                replace(claim, second=_other(second, rng)),
            ]
        case Placed(noun, side):
            changed = [replace(claim, side=OPPOSITES[side]), replace(claim, noun=_other(noun, rng))]
    return _one(rng, changed)


def _other(noun: Noun, rng: Rng) -> Noun:
    """Change one attribute that a noun has."""
    attribute = _one(rng, [name for name in ("color", "shape", "size") if getattr(noun, name)])
    values: Sequence[str] = {"color": list(COLORS), "shape": SHAPES, "size": SIZES}[attribute]
    value = _one(rng, [value for value in values if value != getattr(noun, attribute)])
    return replace(noun, **{attribute: value})


def _color(scene: Scene, rng: Rng) -> Question | None:
    thing, noun = _only_one(scene, rng, "shape")
    if thing is None:
        return None
    template = _one(
        rng,
        (
            "what color is the {}?", "what colour is the {}?", "what is the color of the {}?", "which color is the {}?",
            "what is the colour of the {}?", "the {} is what color?", "tell me the color of the {}",
        ),
    )  # fmt: skip
    return Question("color", template.format(noun), thing.color, (noun,))


def _shape(scene: Scene, rng: Rng) -> Question | None:
    thing, noun = _only_one(scene, rng, "color")
    if thing is None:
        return None
    template = _one(
        rng,
        (
            "what shape is the {}?", "what is the {}?", "what is the shape of the {}?", "which shape is the {}?",
            "what shape does the {} have?", "the {} is what shape?",
        ),
    )  # fmt: skip
    words = str(noun).replace("object", _one(rng, ("object", "object", "thing", "one")))
    return Question("shape", template.format(words), thing.shape, (noun,))


def _count(scene: Scene, rng: Rng) -> Question | None:
    claim = _counted(scene, rng)
    template = _one(
        rng,
        (
            "how many {} are there?", "how many {} do you see?", "how many {} are in the picture?", "how many {}?",
            "what is the number of {}?", "count the {}",
        ),
    )  # fmt: skip
    return Question("count", template.format(claim.noun.plural), str(claim.number))


def _exists(scene: Scene, rng: Rng) -> Question | None:
    noun, answer = _named(scene, rng), bool(rng.random() < 0.5)
    while not answer and Some(noun).holds(scene) is not False:
        noun = _other(noun, rng) if rng.random() < 0.75 else Noun(_one(rng, list(COLORS)), _one(rng, SHAPES))
    template = _one(
        rng,
        (
            "is there {}?", "do you see {}?", "is there {} in the picture?", "can you see {}?",
            "does the picture show {}?", "is {} in the picture?",
        ),
    )  # fmt: skip
    text = template.format(Some(noun))
    return Question("exists", text, "yes", (noun,)) if answer else Question("exists", text, "no")


def _both(scene: Scene, rng: Rng) -> Question | None:
    nouns = sorted({Noun(thing.color, thing.shape) for thing in scene.things}, key=str)
    if len(nouns) < 2:
        return None
    first, second = (nouns[int(index)] for index in rng.choice(len(nouns), size=2, replace=False))
    answer = bool(rng.random() < 0.5)
    while not answer and _all((Some(first).holds(scene), Some(second).holds(scene))) is not False:
        first, second = (_other(first, rng), second) if rng.random() < 0.5 else (first, _other(second, rng))
    template = _one(
        rng,
        ("is there {} and {}?", "do you see {} and {}?", "are there {} and {}?", "are both {} and {} in the picture?"),
    )
    text = template.format(Some(first), Some(second))
    return Question("both", text, "yes" if answer else "no", (first, second) if answer else ())


def _relation(scene: Scene, rng: Rng) -> Question | None:
    claim = _related(scene, rng)
    if claim is None:
        return None
    first, second = claim.first, claim.second
    answer = bool(rng.random() < 0.5)
    if not answer:
        first, second = second, first
    relation = claim.relation
    if relation.endswith("of"):
        relation = _one(rng, (relation, f"to the {relation}", f"on the {relation}"))
    else:
        relation = _one(rng, (relation, relation, {"above": "over", "below": "under"}[relation]))
    template = _one(rng, ("is the {} {} the {}?", "is the {} {} the {}?", "does the {} lie {} the {}?"))
    return Question("relation", template.format(first, relation, second), "yes" if answer else "no", (first, second))


def _side(scene: Scene, rng: Rng) -> Question | None:
    found = [(noun, side) for noun in _unique_names(scene) for side in SIDES if Placed(noun, side).holds(scene)]
    if not found:
        return None
    noun, side = _one(rng, found)
    first, second = ("left", "right") if side in ("left", "right") else ("top", "bottom")
    if rng.random() < 0.5:
        first, second = second, first
    on = "on" if side in ("left", "right") else "at"
    template = _one(
        rng,
        (
            "is the {0} {3} the {1} or the {2}?", "is the {0} {3} the {1} or {3} the {2}?",
            "which side is the {0} on, {1} or {2}?", "{1} or {2}: where is the {0}?", "where is the {0}, {1} or {2}?",
        ),
    )  # fmt: skip
    return Question("side", template.format(noun, first, second, on), side, (noun,))


def _size(scene: Scene, rng: Rng) -> Question | None:
    sizes = {str(noun): size_of(_only(scene, noun)) for noun in _unique_names(scene)}
    found = [(noun, sizes[str(noun)]) for noun in _unique_names(scene) if sizes[str(noun)]]
    if not found:
        return None
    noun, size = _one(rng, found)
    template = _one(
        rng,
        (
            "is the {} small or large?", "is the {} large or small?", "what size is the {}?", "how large is the {}?",
            "how big is the {}?", "what is the size of the {}?",
        ),
    )  # fmt: skip
    return Question("size", template.format(noun), str(size), (noun,))


def _only_one(scene: Scene, rng: Rng, attribute: str) -> tuple[Thing | None, Noun]:
    """Find an object that is the only one of its colour or shape, or of its size and colour or shape."""
    described = []
    for thing in scene.things:
        plain = Noun(**{attribute: getattr(thing, attribute)})
        sized = replace(plain, size=size_of(thing))
        if _is_only(scene, plain):
            described.append((thing, plain))
        elif sized.size and _is_only(scene, sized):
            described.append((thing, sized))
    return _one(rng, described) if described else (None, Noun())


def _unique_names(scene: Scene) -> list[Noun]:
    """List the full names that only one object has."""
    counts = Counter((thing.color, thing.shape) for thing in scene.things)
    return [Noun(*name) for name, count in sorted(counts.items()) if count == 1]


def _is_only(scene: Scene, noun: Noun) -> bool:
    """Tell whether a noun clearly describes one object and clearly no other."""
    described = [noun.describes(thing) for thing in scene.things]
    return described.count(True) == 1 and None not in described


def _only(scene: Scene, noun: Noun) -> Thing:
    return next(thing for thing in scene.things if noun.describes(thing))


def _related(scene: Scene, rng: Rng) -> Related | None:
    """Find two objects, each the only one of its name, one clearly to a side of the other."""
    unique = _unique_names(scene)
    found = [
        claim
        for first in unique
        for second in unique
        for relation in RELATIONS
        if first != second and (claim := Related(first, relation, second)).holds(scene)
    ]
    return _one(rng, found) if found else None


def _counted(scene: Scene, rng: Rng) -> Exactly:
    """Count something, present three times in four."""
    which = rng.random()
    if which < 0.2:
        return Exactly(len(scene.things), Noun())
    attribute, values = ("color", list(COLORS)) if which < 0.6 else ("shape", list(SHAPES))
    present = sorted({getattr(thing, attribute) for thing in scene.things})
    noun = Noun(**{attribute: _one(rng, present) if rng.random() < 0.75 else _one(rng, values)})
    return Exactly(sum(noun.describes(thing) is True for thing in scene.things), noun)


def _named(scene: Scene, rng: Rng) -> Noun:
    thing = _one(rng, scene.things)
    return Noun(thing.color, thing.shape)


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
    claim = _related(scene, rng)
    return () if claim is None else (claim,)


def _say_count(scene: Scene, rng: Rng) -> tuple[Claim, ...]:
    claim = _counted(scene, rng)
    return (claim,) if claim.number else ()


def _say_side(scene: Scene, rng: Rng) -> tuple[Claim, ...]:
    claims = [Placed(noun, side) for noun in _unique_names(scene) for side in SIDES]
    true = [claim for claim in claims if claim.holds(scene)]
    return (_one(rng, true),) if true else ()


def _say_size(scene: Scene, rng: Rng) -> tuple[Claim, ...]:
    thing = _one(rng, scene.things)
    size = size_of(thing)
    return (Some(Noun(thing.color, thing.shape, size)),) if size else ()


def _clear(difference: float, margin: float) -> bool | None:
    """Tell a difference above zero from one below, None where it is within the margin."""
    return None if abs(difference) < margin else difference > 0


def _any(values: Iterable[bool | None]) -> bool | None:
    """True if any is; else None if any is; else False."""
    found = list(values)
    return True if True in found else None if None in found else False


def _all(values: Iterable[bool | None]) -> bool | None:
    """False if any is; else None if any is; else True."""
    found = list(values)
    return False if False in found else None if None in found else True


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _one(rng: Rng, values: Sequence[T]) -> T:
    return values[int(rng.integers(len(values)))]


_ASK: dict[str, Callable[[Scene, Rng], Question | None]] = {
    "color": _color,
    "shape": _shape,
    "count": _count,
    "exists": _exists,
    "both": _both,
    "relation": _relation,
    "side": _side,
    "size": _size,
}
_SAY = (_say_some, _say_all, _say_all, _say_relation, _say_count, _say_side, _say_size)
VOCABULARY = sorted(
    {
        *COLORS, *SHAPES, *(f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in SHAPES), *NUMBERS,
        *"0123456", *SIZES, *SIDES, "object", "objects", "thing", "one", "above", "below", "over", "under", "of", "to",
        "on", "at", "in", "what", "which", "where", "side", "color", "colour", "is", "are", "the", "shape", "size",
        "number", "count", "how", "many", "big", "there", "do", "does", "can", "you", "see", "show", "have", "lie",
        "tell", "me", "a", "an", "picture", "and", "both", "or", "?", ",", ":",
    }
)  # fmt: skip
