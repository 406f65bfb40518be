"""Read a tokenizer as transformers does with the same files, or refuse it.

Source: transformers' BertTokenizer.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer


def read_tokenizer(path: Path, settings: dict[str, Any], added: dict[str, int], words: int) -> Tokenizer:
    """Read tokenizer.json, or build BERT's tokenizer from vocab.txt and added words; the model embeds `words` tokens.

    Raises: ValueError: it is no tokenizer, contradicts its settings, or has tokens that the model does not embed.
    """
    try:
        is_whole = path.suffix == ".json"
        found = Tokenizer.from_file(str(path)) if is_whole else _of_vocabulary(path, settings)
        more = {} if is_whole else _added_words(added, settings)
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"{path} is not a tokenizer: {error}.") from error
    _add_words(found, more)
    _refuse_another_reading(found, settings, path)
    if max(found.get_vocab().values(), default=0) >= words:
        raise ValueError(
            f"{path} has more tokens than the {words} of the model: give --tokenizer the one it was trained with."
        )
    return found


def _of_vocabulary(path: Path, settings: dict[str, Any]) -> Tokenizer:
    """Build BERT's tokenizer from vocab.txt, as transformers does with the same settings."""
    names = [f"{kind}_token" for kind in ("unk", "sep", "cls", "pad", "mask")]
    special = {name: _content(settings[name]) for name in names if name in settings}
    built = BertWordPieceTokenizer(
        str(path),
        **special,
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    if built.token_to_id(special.get("unk_token", "[UNK]")) is None:  # it says so of the others itself
        raise TypeError("unk_token not found in the vocabulary")
    return Tokenizer.from_str(built.to_str())


def _added_words(added: dict[str, int], settings: dict[str, Any]) -> dict[int, AddedToken]:
    """Read the words that were added to a vocabulary: newer settings describe them, added_tokens.json numbers them."""
    described = settings.get("added_tokens_decoder", {})
    words = {int(index): AddedToken(**word) for index, word in described.items()}
    return words or {index: AddedToken(word) for word, index in added.items()}


def _add_words(tokenizer: Tokenizer, words: dict[int, AddedToken]) -> None:
    for index, word in sorted(words.items()):
        if tokenizer.token_to_id(word.content) is None:
            tokenizer.add_tokens([word])
        if tokenizer.token_to_id(word.content) != index:
            raise ValueError(
                f"The added word {word.content!r} is number {index} of a vocabulary that does not reach it: give"
                " --tokenizer the tokenizer.json that the model was trained with."
            )


def _refuse_another_reading(tokenizer: Tokenizer, settings: dict[str, Any], found: Path) -> None:
    """Refuse a tokenizer that its own settings contradict, and one that keeps the end of a text that is too long."""
    reads = json.loads(tokenizer.to_str())
    lowercase = (reads["normalizer"] or {}).get("lowercase")  # BERT's has it
    wanted = settings.get("do_lower_case", lowercase)
    if lowercase is not None and wanted != lowercase:
        raise ValueError(
            f"{found} has lowercase {lowercase}, tokenizer_config.json do_lower_case {wanted}: set both to what the"
            " model was trained with."
        )
    sides = (settings.get("truncation_side", "right"), (reads["truncation"] or {}).get("direction", "right"))
    if "left" in {str(side).lower() for side in sides}:
        raise ValueError(
            "The tokenizer's truncation_side is left; the server cuts a long text at its right: set it to right if that"
            " is what the model was trained with."
        )


def _content(token: str | dict[str, Any]) -> str:
    return token["content"] if isinstance(token, dict) else token
