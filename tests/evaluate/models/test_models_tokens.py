"""Characters numbered as the tokenizers package numbers them, and everything else refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.errors import DamagedInputError, RefusedError
from deltasmith.evaluate.models.tokens import CharacterTokenizer
from deltasmith.lab import family_folder

MODEL = family_folder() / "small" / "math"


def load(folder=MODEL):
    return CharacterTokenizer.load(folder, 1, 2)


def test_a_prompt_starts_with_the_start_token_once():
    tokens = load()
    assert tokens.encode("ab")[0] == 1
    assert tokens.encode("<bos>ab") == tokens.encode("ab")
    assert tokens.encode_bare("ab") == tokens.encode("ab")[1:]
    assert tokens.encode("") == [1]


def test_special_tokens_are_read_but_not_spelled():
    tokens = load()
    ids = tokens.encode_bare("a<eos>b")
    assert ids[1] == tokens.special("<eos>") == tokens.end == 2
    assert tokens.decode(ids) == "ab"
    assert tokens.special("a") is None
    assert tokens.decode([tokens.unknown, 10_000]) == ""


@given(st.text(st.sampled_from("ab\n <eos>{}é漢"), max_size=40))
def test_it_agrees_with_the_tokenizers_package(text):
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    assert load().encode_bare(text) == theirs.encode(text, add_special_tokens=False).ids
    ids = theirs.encode(text).ids
    assert load().encode_bare(text) == ids[1:]
    assert load().decode(ids) == theirs.decode(ids)


def changed(folder: Path, **changes):
    document = json.loads((MODEL / "tokenizer.json").read_text())
    for path, value in changes.items():
        place = document
        *parents, last = path.split("__")
        for name in parents:
            place = place[name]
        place[last] = value
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__type": "WordLevel"}, "it is a WordLevel tokenizer"),
        ({"model__merges": ["a b"]}, "1 merges"),
        ({"normalizer": {"type": "NFC"}}, "it sets normalizer"),
        ({"model__byte_fallback": True}, "it sets byte_fallback"),
        ({"decoder": {"type": "ByteLevel"}}, "it sets decoder"),
        ({"model__unk_token": None}, "no unknown token"),
        ({"post_processor": {"type": "ByteLevel"}}, "more than one token before"),
    ],
)
def test_any_other_tokenizer_is_refused(tmp_path, changes, words):
    with pytest.raises(RefusedError, match=r"deltasmith\[eval\]") as caught:
        load(changed(tmp_path, **changes))
    assert words in str(caught.value)


def test_without_a_template_nothing_is_added(tmp_path):
    assert load(changed(tmp_path, post_processor=None)).encode("a") == load().encode_bare("a")


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(RefusedError, match=r"no tokenizer\.json"):
        load(tmp_path)
    with pytest.raises(DamagedInputError, match="vocabulary cannot be read"):
        load(changed(tmp_path, model__vocab=["a"]))
