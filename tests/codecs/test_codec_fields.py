"""What is said of a codec whose fields are wrong."""

from __future__ import annotations

import pytest

from deltasmith.codecs.catalogue import codec_from
from deltasmith.errors import RecipeError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bitdelta:zeros=minus", "codec bitdelta has no field 'zeros'; did you mean zero?"),
        ("zero:xyz=1", "codec zero has no field 'xyz'; it has no fields"),
        ("low_rank:rank=x", "rank of codec low_rank must be a whole number, at least 1, not 'x'"),
        ("low_rank:rank=0", "rank of codec low_rank must be a whole number, at least 1, not 0"),
        ("low_rank:error=2", "error of codec low_rank must be a number, above 0 and below 1, not 2"),
        ("bitdelta:zero=one", "zero of codec bitdelta must be minus, plus or zero, not 'one'"),
        ("claq:bits=9", "bits of codec claq must be a number, at least 1 and at most 8, not 9"),
        ("claq:high=1", "high of codec claq must be a whole number, at least 2 and at most 8, not 1"),
        ("low_rank", "give one of rank, error and energy in codec low_rank; its fields are: rank,"),
        ("{bitdelta", "'{bitdelta' is no YAML in codec; see `deltasmith explain CODEC`"),
        ("bitdelta:zero=[", "'[' is no YAML in codec; see"),
        ("bitdelta:zero", "'zero' is not field=value in codec bitdelta; write name:field=value"),
        ("{bitdelta: {}, zero: {}}", "a codec has one name in "),
        ("{bitdelta: [1]}", "the fields of a codec are a mapping in bitdelta; write "),
    ],
)
def test_the_message_is_in_our_words(text, message):
    with pytest.raises(RecipeError) as caught:
        codec_from(text)
    assert str(caught.value).startswith(message)
    assert "Input should" not in str(caught.value)
