"""Which shapes run on a GPU, what is padded to what, and what is refused."""

import pytest

from models.spec import ViltSpec
from server.gpu.buckets import (
    ALIGNED,
    Bucket,
    OutsideBuckets,
    buckets_of,
    choose,
    padded,
    profiles_of,
)

SPEC = ViltSpec()
MOST = 32
BUCKETS = buckets_of(SPEC, MOST)


def test_every_grid_text_and_batch_fits_into_a_bucket() -> None:
    """So that a request which was accepted is never one that the GPU refuses."""
    for rows, columns in SPEC.grids:
        for length in (1, 15, 16, SPEC.max_text_tokens):
            for batch in (1, 3, MOST):
                wanted = Bucket(batch, length, rows * columns)
                assert choose(BUCKETS, wanted).holds(wanted)


def test_buckets_suit_the_kernels_and_the_common_pictures() -> None:
    """Tokens come in eights; square, 4:3 and 3:2 pictures with a short question have no token of padding."""
    assert all(bucket.tokens % ALIGNED == 0 for bucket in BUCKETS)
    assert all(bucket.length <= SPEC.max_text_tokens for bucket in BUCKETS)
    for patches in (144, 192, 216):
        assert Bucket(1, 15, patches) in BUCKETS
    assert len(set(BUCKETS)) == len(BUCKETS) <= 48


def test_batch_goes_into_the_bucket_with_the_fewest_tokens() -> None:
    """A longer text does not cost a larger picture, nor one row two."""
    assert choose(BUCKETS, Bucket(1, 9, 192)) == Bucket(1, 15, 192)
    assert choose(BUCKETS, Bucket(5, 16, 140)) == Bucket(8, 40, 151)
    assert padded(BUCKETS, 5, 202) == (8, 208)
    assert padded(BUCKETS, 1, 1) == (1, 160)


@pytest.mark.parametrize("wanted", [Bucket(33, 9, 192), Bucket(1, 41, 192), Bucket(1, 9, 232 + 1), Bucket(1, 40, 232)])
def test_batch_that_no_bucket_holds_is_refused_with_its_shape(wanted: Bucket) -> None:
    """Before onnxruntime or TensorRT sees it."""
    with pytest.raises(OutsideBuckets, match=f"batch of {wanted.batch} with {wanted.length} text tokens"):
        choose(BUCKETS, wanted)


def test_profiles_hold_every_bucket_and_are_tuned_for_one_of_theirs() -> None:
    """Few rows and many apart, one picture each: four pictures, eight engines."""
    profiles = profiles_of(SPEC, MOST)

    assert len(profiles) == 8
    for bucket in BUCKETS:
        assert any(profile.holds(bucket) for profile in profiles)
    assert {profile.tuned.batch for profile in profiles} == {1, MOST}
    for profile in profiles:
        assert profile.holds(profile.tuned)
        assert profile.tuned in BUCKETS
        assert not profile.holds(Bucket(MOST + 1, 15, 192))
    assert not any(profile.holds(Bucket(1, 15, 100)) for profile in profiles)


@pytest.mark.parametrize("most", [1, 3, 4, 6])
def test_any_limit_of_rows_is_a_bucket_of_its_own(most: int) -> None:
    """Whatever --max-batch-size says."""
    buckets = buckets_of(SPEC, most)

    assert max(bucket.batch for bucket in buckets) == most
    assert all(any(profile.holds(bucket) for profile in profiles_of(SPEC, most)) for bucket in buckets)
