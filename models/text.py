"""From text to token ids, with the artifact's tokenizer."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from models.errors import ArtifactError, InvalidInput

UNREADABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class TextTokens:
    """One text as the graph reads it, without padding."""

    input_ids: NDArray[np.int64]  # (L,), [CLS] first, [SEP] last
    truncated: bool  # the text was longer than the model can read


class TextEncoder:
    """The tokenizer of a `tokenizer.json`; cuts texts at the length that the model reads."""

    def __init__(self, path: Path, max_tokens: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise ArtifactError(f"{path} is not a tokenizer: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)

    def encode(self, text: str) -> TextTokens:
        """Encode a text.

        Raises: InvalidInput: the text is blank, or contains a NUL character or half of a surrogate pair.
        """
        check(text)
        encoding = self._tokenizer.encode(text)
        return TextTokens(np.array(encoding.ids, np.int64), truncated=bool(encoding.overflowing))


def check(text: str) -> None:
    """Refuse a text that cannot be tokenized, in much less time than tokenizing takes.

    Raises: InvalidInput: as TextEncoder.encode.
    """
    if not text.strip():
        raise InvalidInput("empty_text", "The text is empty or blank: send a question or a caption.")
    if UNREADABLE.search(text):
        raise InvalidInput("invalid_text", "The text contains a NUL or half of a surrogate pair: send plain text.")
