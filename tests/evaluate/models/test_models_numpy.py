"""The numpy model: rows of tokens worked out by hand, and its answers against the whole forward pass."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest

from deltasmith.errors import DamagedInputError, RefusedError
from deltasmith.evaluate.items import load_suite
from deltasmith.evaluate.language import Continuation, Decoding
from deltasmith.evaluate.llama import Memory, load_folder
from deltasmith.evaluate.models.causal import CausalModel, Row, Scored, Watch
from deltasmith.evaluate.models.numpy_model import NumpyModel
from deltasmith.evaluate.models.tokens import CharacterTokenizer
from deltasmith.lab import family_folder

FAMILY = family_folder()
MATH = FAMILY / "small" / "math"
TOKENS = CharacterTokenizer.load(MATH, 1, 2)
ITEMS = load_suite(FAMILY / "items", ["math"])[:12]


@pytest.fixture(scope="module")
def model():
    return NumpyModel.load(MATH, batch=5)


class Recorder(CausalModel):
    """Notes the rows it is asked for; each token costs one nat, and `x` is never the likeliest."""

    def __init__(self, context=8, batch=3):
        super().__init__(TOKENS, frozenset(), context, batch)
        self.rows, self.prompts = [], []

    runtime = "recorder"

    def chat(self, instruction):
        return instruction

    def _score(self, rows):
        assert len(rows) <= self._batch
        self.rows += rows
        x = TOKENS.vocabulary["x"]
        return [[Scored(-float(len(t)), len(t), sum(i != x for i in t)) for t in row.targets] for row in rows]

    def _extend(self, prompts, watches):
        self.prompts += prompts
        written = []
        for watch in watches:
            ids = []
            while not watch.over(ids):
                ids.append(TOKENS.encode_bare("one two\nthree<eos>")[len(ids)])
            written.append(ids)
        return written


def ids(text):
    return tuple(TOKENS.encode_bare(text))


def test_a_continuation_is_scored_after_its_context():
    recorder = Recorder()
    found = recorder.likelihoods([Continuation("ab", "cd", ends=True), Continuation("ab", "cx")])
    assert [(f.logprob, f.tokens, f.greedy) for f in found] == [(-3.0, 3, True), (-2.0, 2, False)]
    assert recorder.rows[0] == Row((1, *ids("abcd")), ((*ids("cd"), 2),))
    assert recorder.rows[1] == Row((1, *ids("abc")), (ids("cx"),))


def test_a_text_is_cut_where_context_and_continuation_meet():
    recorder = Recorder()
    recorder.likelihoods([Continuation("ab \n", "c")])
    assert recorder.rows == [Row((1, *ids("ab \n")), (ids("c"),))]


def test_without_a_context_the_start_token_stands_in():
    recorder = Recorder()
    recorder.likelihoods([Continuation("", "ab"), Continuation("", "<bos>ab")])
    assert recorder.rows == [Row((1, *ids("a")), (ids("ab"), ids("ab")))]


def test_nothing_costs_nothing():
    (found,) = Recorder().likelihoods([Continuation("ab", "")])
    assert (found.logprob, found.tokens, found.greedy) == (0.0, 0, True)
    assert Recorder().windows("") == []
    assert Recorder().likelihoods([]) == []
    assert Recorder().generate([], Decoding(5)) == []


def test_a_long_context_loses_its_front_and_a_long_continuation_nothing():
    recorder = Recorder(context=4)
    recorder.likelihoods([Continuation("abcdef", "gh")])
    assert recorder.rows == [Row(ids("defg"), (ids("gh"),))]
    recorder = Recorder(context=4)
    (found,) = recorder.likelihoods([Continuation("ab", "cdefgh")])
    assert found.tokens == 6
    assert sorted(row.targets[0] for row in recorder.rows) == [ids("cdef"), ids("gh")]
    assert {row.inputs for row in recorder.rows} == {ids("bcde"), ids("defg")}


def test_what_reads_the_same_is_computed_once():
    recorder = Recorder()
    found = recorder.likelihoods([Continuation("ab", "c"), Continuation("ab", "x"), Continuation("a", "bc")])
    assert recorder.rows[0].targets == (ids("c"), ids("x"), ids("bc"))
    assert len(recorder.rows) == 1
    assert [(f.tokens, f.greedy) for f in found] == [(1, True), (1, False), (2, True)]


def test_windows_score_every_token_once():
    recorder = Recorder(context=4)
    found = recorder.windows("abcdefghij")
    assert [w.tokens for w in found] == [4, 4, 2]
    assert [w.loss for w in found] == [4.0, 4.0, 2.0]
    rows = {row.targets[0]: row.inputs for row in recorder.rows}
    assert rows[ids("abcd")] == (1, *ids("abc"))
    assert rows[ids("efgh")] == ids("defg")
    assert rows[ids("ij")] == ids("fghi")


def test_generation_is_cut_exactly_before_the_stop_sequence():
    asked = [
        ("two", "one "),
        ("\n", "one two"),
        ("wo\nth", "one t"),
        ("zzz", "one two\nthree"),
        ("", "one two\nthree"),
    ]
    for stop, text in asked:
        assert Recorder(context=64).generate(["q"], Decoding(30, (stop,))) == [text]
    assert Recorder(context=64).generate(["q"], Decoding(30, ("three", "two"))) == ["one "]
    assert Recorder(context=64).generate(["q"], Decoding(5)) == ["one t"]
    assert Recorder(context=64).generate(["q"], Decoding(0)) == [""]


def test_the_first_of_several_stop_sequences_cuts():
    assert Watch(TOKENS, 30, frozenset(), ("b", "a")).text(ids("xaby")) == "x"
    assert Watch(TOKENS, 30, frozenset(), ("a", "b")).text(ids("xbay")) == "x"


def test_a_special_token_can_be_a_stop_sequence():
    watch = Watch(TOKENS, 30, frozenset({3}), ())
    assert watch.over([10, 3])
    assert watch.text([10, 11, 3]) == TOKENS.decode([10, 11])


def test_a_prompt_leaves_room_for_the_answer():
    recorder = Recorder(context=8)
    assert recorder.generate(["abcdefghij"], Decoding(3)) == ["one"]
    assert recorder.prompts == [list(ids("fghij"))]
    recorder = Recorder(context=8)
    assert recorder.generate(["abcdefghij", "a"], Decoding(300)) == ["one ", "one tw"]


def test_order_is_kept_across_batches(model):
    prompts = [item.prompt for item in ITEMS]
    together = model.generate(prompts, Decoding(24))
    assert together == [model.generate([prompt], Decoding(24))[0] for prompt in prompts]
    right = sum(text == item.answer for text, item in zip(together, ITEMS, strict=True))
    assert right >= 9


def test_likelihoods_are_those_of_the_whole_forward_pass(model):
    llama = load_folder(MATH)
    for item in ITEMS[:3]:
        tokens = np.array([[*TOKENS.encode(item.prompt + item.answer), 2]])
        logits = llama.logits(tokens[:, :-1])[0].astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        count = len(item.answer) + 1  # and the end
        wanted = logprobs[np.arange(-count, 0), tokens[0, -count:]].sum()
        (found,) = model.likelihoods([Continuation(item.prompt, item.answer, ends=True)])
        assert found.logprob == pytest.approx(wanted, abs=1e-3)
        assert found.tokens == count


def test_windows_add_up_to_the_likelihood(model):
    text = ITEMS[0].prompt
    (whole,) = model.likelihoods([Continuation("", text)])
    assert math.fsum(w.loss for w in model.windows(text)) == pytest.approx(-whole.logprob, abs=1e-4)


def test_memory_computes_what_reading_everything_again_does():
    llama = load_folder(MATH)
    long, short = np.array(TOKENS.encode("Ada has 25")), np.array(TOKENS.encode("Ben"))
    padding = np.array([0, len(long) - len(short)])
    memory = Memory(llama, padding, 40)
    tokens = np.stack([long, np.concatenate([np.zeros(padding[1], int), short])])
    for _ in range(3):
        found = llama.read(tokens, memory)
        for row, one in enumerate((long, short)):
            np.testing.assert_allclose(found[row], llama.logits(one[None])[0, -1], atol=2e-5)
        tokens = found.argmax(1)[:, None]
        long, short = np.append(long, tokens[0]), np.append(short, tokens[1])
    memory.keep(np.array([False, True]))
    np.testing.assert_allclose(llama.read(tokens[1:], memory)[0], llama.logits(short[None])[0, -1], atol=2e-5)


def copied(folder, **config):
    shutil.copytree(MATH, folder)
    document = json.loads((MATH / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(document | config))
    return folder


def test_context_is_the_models_own_or_less(model):
    assert model.context == 96
    assert NumpyModel.load(MATH, context=10).context == 10
    assert NumpyModel.load(MATH, context=1000).context == 96


def test_what_numpy_cannot_compute_is_refused(tmp_path):
    with pytest.raises(DamagedInputError, match="model_type='qwen2'"):
        NumpyModel.load(copied(tmp_path / "a", model_type="qwen2"))
    with pytest.raises(DamagedInputError, match=r"eos_token_id is \[2, 3\]"):
        NumpyModel.load(copied(tmp_path / "b", eos_token_id=[2, 3]))


def test_a_chat_template_needs_transformers(tmp_path, model):
    assert model.chat("hi") == "hi"
    (copied(tmp_path / "a") / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(RefusedError, match=r"deltasmith\[eval\]"):
        NumpyModel.load(tmp_path / "a").chat("hi")


def test_a_space_that_the_tokenizer_joins_with_the_next_word_is_the_continuations():
    class Joining(Recorder):
        def __init__(self):
            super().__init__()
            self._tokenizer = JoiningTokens()

    recorder = Joining()
    recorder.likelihoods([Continuation("one ", "two"), Continuation("one\n", "two")])
    assert recorder.rows == [Row((0, 1, 3), ((4,),)), Row((0, 1), ((2,),))]


class JoiningTokens:
    """Numbers words with the space before them, as byte-pair tokenizers do."""

    prefix, end = 0, 9

    def encode_bare(self, text):
        known = {"one": 1, " two": 2, "\n": 3, "two": 4, " ": 5}
        found = []
        while text:
            word = next(word for word in sorted(known, key=len, reverse=True) if text.startswith(word))
            found.append(known[word])
            text = text[len(word) :]
        return found

    def encode(self, text):
        return [0, *self.encode_bare(text)]
