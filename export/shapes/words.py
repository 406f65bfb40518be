"""The vocabulary, and the longest text that the model reads."""

from export.shapes.scenes import COLORS, SHAPES
from export.shapes.statements import NUMBERS, SIDES, SIZES

MAX_TEXT_TOKENS = 32  # [CLS] and [SEP] included; "a picture of" six different objects takes 28
VOCABULARY = sorted(
    {
        *COLORS, *SHAPES, *(f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in SHAPES), *NUMBERS,
        *"0123456", *SIZES, *SIDES, "object", "objects", "thing", "one", "above", "below", "over", "under", "of", "to",
        "on", "at", "in", "what", "which", "where", "side", "color", "colour", "is", "are", "the", "shape", "size",
        "number", "count", "how", "many", "big", "there", "do", "does", "can", "you", "see", "show", "have", "lie",
        "tell", "me", "a", "an", "picture", "and", "both", "or", "?", ",", ":",
    }
)  # fmt: skip
