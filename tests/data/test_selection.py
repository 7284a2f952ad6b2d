"""What buckets still need says which documents are worth tokenizing."""

import pytest

from megatron_longrope2.data.selection import Selection
from megatron_longrope2.data.settings import Bucket

# Documents of at most 100 tokens, and of 1001 to 2000; three to five characters a token.
BUCKETS = (Bucket("short", 0, 100), Bucket("long", 1000, 2000))


def selection(short: int, long: int) -> Selection:
    return Selection(BUCKETS, [short, long], (3.0, 5.0))


@pytest.mark.parametrize(
    ("characters", "wanted"),
    [(1, True), (500, True), (501, False), (2994, False), (2995, True), (10_000, True), (10_001, False)],
)
def test_a_document_is_wanted_if_it_may_have_a_buckets_length(characters: int, wanted: bool) -> None:
    assert selection(50, 50).wanted(characters, characters) == wanted


def test_bounds_that_reach_into_a_bucket_are_enough() -> None:
    assert selection(50, 50).wanted(0, 2000)  # it may have one character
    assert selection(0, 50).wanted(0, 3000)
    assert not selection(0, 50).wanted(0, 2000)


def test_full_buckets_take_no_more() -> None:
    left = selection(50, 50).without([50, 49])
    assert not left.full
    assert not left.wanted(100, 100)
    assert left.wanted(4000, 4000)
    assert left.without([0, 1]).full
