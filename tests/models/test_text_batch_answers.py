"""Text to ids, several to a batch, logits to answers."""

from pathlib import Path

import factories
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tokenizers.implementations import BertWordPieceTokenizer

from models.answers import matching_score, sigmoid, top_answers
from models.batch import Features, Feeds, collate
from models.errors import ArtifactError, InvalidInput
from models.image import to_patches
from models.spec import PADDING_ROW, ViltSpec
from models.text import TextEncoder, TextTokens

SPEC = ViltSpec()


@pytest.fixture
def encoder(tmp_path: Path) -> TextEncoder:
    vocabulary = {token: index for index, token in enumerate(factories.TOKENS)}
    BertWordPieceTokenizer(vocab=vocabulary, lowercase=True).save(str(tmp_path / "tokenizer.json"))
    return TextEncoder(tmp_path / "tokenizer.json", max_tokens=6)


def test_encode_of_a_short_text_frames_it_and_does_not_pad(encoder: TextEncoder) -> None:
    """[CLS], the words, [SEP]; letters of either case are the same word."""
    tokens = encoder.encode("What COLOR cats")

    assert [factories.TOKENS[index] for index in tokens.input_ids] == ["[CLS]", "what", "color", "cat", "##s", "[SEP]"]
    assert not tokens.truncated


def test_encode_of_a_long_text_cuts_it_and_says_so(encoder: TextEncoder) -> None:
    """What the model cannot read is cut before [SEP], and the caller is told."""
    tokens = encoder.encode("what color is the cat")

    assert len(tokens.input_ids) == 6
    assert factories.TOKENS[tokens.input_ids[-1]] == "[SEP]"
    assert tokens.truncated


@pytest.mark.parametrize("text", ["", "  \n", "a\0b", "\ud800"], ids=["empty", "blank", "NUL", "lone surrogate"])
def test_encode_of_no_text_raises_invalid_input(encoder: TextEncoder, text: str) -> None:
    """A text that is none is refused, not guessed at."""
    with pytest.raises(InvalidInput):
        encoder.encode(text)


def test_encoder_of_a_damaged_file_raises_artifact_error(tmp_path: Path) -> None:
    """A tokenizer that does not load is the artifact's fault."""
    (tmp_path / "tokenizer.json").write_text("{}")

    with pytest.raises(ArtifactError, match="not a tokenizer"):
        TextEncoder(tmp_path / "tokenizer.json", 6)


def features(width: int, height: int, length: int) -> Features:
    return Features(
        to_patches(factories.noise(width, height), SPEC), TextTokens(np.arange(1, length + 1), truncated=False)
    )


def test_collate_of_one_pads_and_copies_nothing() -> None:
    """A request alone runs at its exact shape, on the very patches that were prepared."""
    alone = features(640, 480, 7)

    feeds = collate([alone])

    assert (feeds.input_ids.shape, feeds.patches.shape, feeds.mask.shape) == ((1, 7), (1, 192, 3072), (1, 7 + 1 + 192))
    assert feeds.mask.all()
    assert np.shares_memory(feeds.patches, alone.image.patches)


def test_collate_of_two_masks_exactly_what_it_pads() -> None:
    """Text is padded after text, patches after patches, and every padded patch has the padding position."""
    short, long = features(384, 384, 3), features(640, 480, 5)

    feeds = collate([short, long])

    assert feeds.mask[0].tolist() == [True] * 3 + [False] * 2 + [True] * (1 + 144) + [False] * 48
    assert feeds.mask[1].all()
    assert not feeds.position_ids[0, 144:].any()
    assert np.array_equal(feeds.patches[0, :144], short.image.patches)


def test_collate_into_larger_tensors_masks_all_that_is_not_the_batch() -> None:
    """Whatever an earlier batch left in them; a row of padding keeps a token, or it would be no number."""
    pairs = [features(640, 480, 5), features(384, 384, 3), features(640, 480, 4)]
    own = collate(pairs)
    into = Feeds(
        np.full((4, 7), 10**9),
        np.full((4, 200, 3072), 255, np.uint8),
        np.full((4, 200), 10**9),
        np.ones((4, 208), bool),
    )

    assert collate(pairs, into) is into

    np.testing.assert_array_equal(into.mask[:3, :5], own.mask[:, :5])
    np.testing.assert_array_equal(into.mask[:3, 7:200], own.mask[:, 5:])
    assert into.mask.sum(axis=1).tolist() == [*own.mask.sum(axis=1), 1]
    for row, pair in enumerate(pairs):
        np.testing.assert_array_equal(into.patches[row, : len(pair.image.patches)], pair.image.patches)
    for tensor, held, padding in (
        (into.input_ids, own.input_ids, 0),
        (into.position_ids, own.position_ids, PADDING_ROW),
    ):
        np.testing.assert_array_equal(tensor[:3, : held.shape[1]], held)
        assert (tensor[3:] == padding).all()
        assert (tensor[:, held.shape[1] :] == padding).all()


def test_padding_of_a_batch_has_always_the_same_bytes() -> None:
    """int8 has one scale for a whole activation, of padding too."""
    pairs = [features(384, 384, 3), features(640, 480, 5)]

    assert not collate(pairs).patches[0, 144:].any()


def test_top_answers_are_sorted_and_scored_by_sigmoid() -> None:
    """Best first; equal logits keep their order; asking for more than there are gives all."""
    logits = np.array([0.0, 2.0, 0.0, -1000.0], np.float32)

    found = top_answers(logits, ["a", "b", "c", "d"], 9)

    assert [answer.answer for answer in found] == ["b", "a", "c", "d"]
    assert [answer.score for answer in found] == pytest.approx([0.880797, 0.5, 0.5, 0.0])


@given(
    hnp.arrays(np.float32, st.integers(1, 40), elements=st.sampled_from([*map(float, range(-3, 4)), np.nan, np.inf])),
    st.integers(0, 50),
)
def test_top_answers_are_those_of_a_stable_sort_of_all(logits: np.ndarray, top_k: int) -> None:
    """Whatever is equal, and however many are asked for; what is no number comes last."""
    labels = [str(index) for index in range(len(logits))]

    found = top_answers(logits, labels, top_k)

    assert [one.answer for one in found] == [labels[at] for at in np.argsort(-logits, kind="stable")[:top_k]]


def test_matching_score_is_the_true_pair_s_softmax() -> None:
    """The second row is the true pair, and huge logits do not overflow."""
    assert matching_score(np.array([1.0, 3.0], np.float32)) == pytest.approx(np.exp(3) / (np.exp(1) + np.exp(3)))
    assert matching_score(np.array([1000.0, -1000.0], np.float32)) == pytest.approx(0)
    assert sigmoid(1000.0) == 1.0
