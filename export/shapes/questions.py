"""Questions about scenes: eight kinds, each in several wordings, with the one correct answer."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from export.shapes.scenes import COLORS, MAX_THINGS, SHAPES, Scene, Thing
from export.shapes.statements import (
    SIDES,
    SIZES,
    Noun,
    Placed,
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

LABELS = (*COLORS, *SHAPES, *map(str, range(MAX_THINGS + 1)), "yes", "no", *SIZES, *SIDES)
KINDS = ("color", "shape", "count", "exists", "both", "relation", "side", "size")


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a scene, its kind, its one correct answer, and the objects that it names, in order."""

    kind: str
    text: str
    answer: str
    about: tuple[Noun, ...] = ()


def question(scene: Scene, kind: str, rng: Rng) -> Question | None:
    """Ask a question of a kind, or return None where the scene allows none (two of everything, say)."""
    return _ASK[kind](scene, rng)


def _color(scene: Scene, rng: Rng) -> Question | None:
    thing, noun = _only_one(scene, rng, "shape")
    if thing is None:
        return None
    template = one_of(
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
    template = one_of(
        rng,
        (
            "what shape is the {}?", "what is the {}?", "what is the shape of the {}?", "which shape is the {}?",
            "what shape does the {} have?", "the {} is what shape?",
        ),
    )  # fmt: skip
    words = str(noun).replace("object", one_of(rng, ("object", "object", "thing", "one")))
    return Question("shape", template.format(words), thing.shape, (noun,))


def _count(scene: Scene, rng: Rng) -> Question | None:
    statement = counted(scene, rng)
    template = one_of(
        rng,
        (
            "how many {} are there?", "how many {} do you see?", "how many {} are in the picture?", "how many {}?",
            "what is the number of {}?", "count the {}",
        ),
    )  # fmt: skip
    return Question("count", template.format(statement.noun.plural), str(statement.number))


def _exists(scene: Scene, rng: Rng) -> Question | None:
    noun, answer = _named(scene, rng), bool(rng.random() < 0.5)
    while not answer and Some(noun).holds(scene) is not False:
        noun = other_noun(noun, rng) if rng.random() < 0.75 else Noun(one_of(rng, list(COLORS)), one_of(rng, SHAPES))
    template = one_of(
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
    while not answer and all_of((Some(first).holds(scene), Some(second).holds(scene))) is not False:
        first, second = (other_noun(first, rng), second) if rng.random() < 0.5 else (first, other_noun(second, rng))
    template = one_of(
        rng,
        ("is there {} and {}?", "do you see {} and {}?", "are there {} and {}?", "are both {} and {} in the picture?"),
    )
    text = template.format(Some(first), Some(second))
    return Question("both", text, "yes" if answer else "no", (first, second) if answer else ())


def _relation(scene: Scene, rng: Rng) -> Question | None:
    statement = related(scene, rng)
    if statement is None:
        return None
    first, second = statement.first, statement.second
    answer = bool(rng.random() < 0.5)
    if not answer:
        first, second = second, first
    relation = statement.relation
    if relation.endswith("of"):
        relation = one_of(rng, (relation, f"to the {relation}", f"on the {relation}"))
    else:
        relation = one_of(rng, (relation, relation, {"above": "over", "below": "under"}[relation]))
    template = one_of(rng, ("is the {} {} the {}?", "is the {} {} the {}?", "does the {} lie {} the {}?"))
    return Question("relation", template.format(first, relation, second), "yes" if answer else "no", (first, second))


def _side(scene: Scene, rng: Rng) -> Question | None:
    found = [(noun, side) for noun in unique_names(scene) for side in SIDES if Placed(noun, side).holds(scene)]
    if not found:
        return None
    noun, side = one_of(rng, found)
    first, second = ("left", "right") if side in ("left", "right") else ("top", "bottom")
    if rng.random() < 0.5:
        first, second = second, first
    on = "on" if side in ("left", "right") else "at"
    template = one_of(
        rng,
        (
            "is the {0} {3} the {1} or the {2}?", "is the {0} {3} the {1} or {3} the {2}?",
            "which side is the {0} on, {1} or {2}?", "{1} or {2}: where is the {0}?", "where is the {0}, {1} or {2}?",
        ),
    )  # fmt: skip
    return Question("side", template.format(noun, first, second, on), side, (noun,))


def _size(scene: Scene, rng: Rng) -> Question | None:
    found = [(noun, size) for noun in unique_names(scene) if (size := size_of(_only(scene, noun)))]
    if not found:
        return None
    noun, size = one_of(rng, found)
    template = one_of(
        rng,
        (
            "is the {} small or large?", "is the {} large or small?", "what size is the {}?", "how large is the {}?",
            "how big is the {}?", "what is the size of the {}?",
        ),
    )  # fmt: skip
    return Question("size", template.format(noun), size, (noun,))


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
    return one_of(rng, described) if described else (None, Noun())


def _is_only(scene: Scene, noun: Noun) -> bool:
    """Tell whether a noun clearly describes one object and clearly no other."""
    described = [noun.describes(thing) for thing in scene.things]
    return described.count(True) == 1 and None not in described


def _only(scene: Scene, noun: Noun) -> Thing:
    return next(thing for thing in scene.things if noun.describes(thing))


def _named(scene: Scene, rng: Rng) -> Noun:
    thing = one_of(rng, scene.things)
    return Noun(thing.color, thing.shape)


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
