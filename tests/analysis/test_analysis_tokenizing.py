"""Tokenizers of transformers behind plain functions: offsets, templates, and the bundled family's own."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from tokenizers import decoders, models, pre_tokenizers  # noqa: E402
from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: E402

from deltasmith.analysis.data import read_examples  # noqa: E402
from deltasmith.analysis.tokenizing import of_transformers  # noqa: E402
from deltasmith.errors import DamagedInputError  # noqa: E402
from deltasmith.lab import family_folder  # noqa: E402

PLAIN = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
MARKED = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}{{ eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TALK = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "four"},
]


@pytest.fixture
def family():
    return AutoTokenizer.from_pretrained(str(family_folder() / "base"))


def merging():
    """Make a byte-level tokenizer that knows a few longer tokens, with the space before a word inside of it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "4"), ("a", "b"), ("c", "d"), ("ab", "cd")]
    names = ["<s>", "</s>", *alphabet, *("".join(pair) for pair in merges)]
    inner = tokenizers.Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


def read(tmp_path, tokenizer, *objects, rows=1000):
    (path := tmp_path / "data.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in objects))
    return read_examples(path, of_transformers(tokenizer, rows), length=200).examples


def test_the_familys_tokenizer_begins_sequences_and_answers_end(tmp_path, family):
    (example,) = read(tmp_path, family, {"prompt": "2+2=", "answer": "4"})
    tokens = family.convert_ids_to_tokens(list(example.tokens))
    assert tokens == ["<bos>", "2", "+", "2", "=", "4", "<eos>"]
    assert tokens[example.first :] == ["4", "<eos>"]
    wrapped = of_transformers(family, 100)
    assert (wrapped.start, wrapped.end, wrapped.unknown, wrapped.padding) == (1, 2, 3, 0)
    assert wrapped.render is None
    assert wrapped.turns is None


@pytest.mark.parametrize(
    ("prompt", "answer", "counted"),
    [
        ("x=", " 4", ["Ġ4", "</s>"]),
        ("x= ", "4", ["</s>"]),  # the token that holds the answer begins with the prompt's space
        ("ab", "cd", None),
        ("ab ", "cd", ["cd", "</s>"]),
        ("x", "é", ["Ã", "©", "</s>"]),  # two tokens of one character
    ],
)
def test_the_boundary_lies_where_a_token_begins_in_the_answer(tmp_path, prompt, answer, counted):
    tokenizer = merging()
    if counted in (None, ["</s>"]):
        with pytest.raises(DamagedInputError, match="no token begins within the answer"):
            read(tmp_path, tokenizer, {"prompt": prompt, "answer": answer})
        return
    (example,) = read(tmp_path, tokenizer, {"prompt": prompt, "answer": answer})
    assert tokenizer.convert_ids_to_tokens(list(example.tokens[example.first :])) == counted


def test_turns_that_the_template_marks_count_each(tmp_path, family):
    family.chat_template = MARKED
    found = read(tmp_path, family, {"messages": TALK})
    assert ["".join(family.convert_ids_to_tokens(list(e.tokens[e.first :]))) for e in found] == [
        "two<eos>",
        "four<eos>",
    ]
    assert family.decode(list(found[1].tokens)) == family.apply_chat_template(TALK, tokenize=False)


def test_without_marks_the_last_turn_counts_and_nothing_is_added(tmp_path, family):
    family.chat_template = PLAIN
    (example,) = read(tmp_path, family, {"messages": TALK})
    assert "".join(family.convert_ids_to_tokens(list(example.tokens[example.first :]))) == "four<eos>"
    assert example.tokens.count(1) == 1  # the template's beginning, and not another


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('only one turn') }}", "{{ messages[0].content.__class__.__mro__ }}", "{% if %}"],
)
def test_templates_that_fail_or_break_out_are_refused_with_the_line(tmp_path, family, template):
    family.chat_template = template
    with pytest.raises(DamagedInputError, match=r"it does not tokenise .*data\.jsonl:1; "):
        read(tmp_path, family, {"messages": TALK})
