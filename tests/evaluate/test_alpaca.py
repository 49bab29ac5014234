"""AlpacaEval: the outputs' schema, judges that answer, fail and talk nonsense, stored annotations."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from fakes import FakeModel

from deltasmith.errors import DamagedInputError, InterruptedRunError, RecipeError, RefusedError
from deltasmith.evaluate.alpaca import AlpacaEval, StoredAnnotations, load_examples
from deltasmith.evaluate.judge import CommandJudge, ModelJudge, Pair
from deltasmith.evaluate.language import Continuation, Decoding, Likelihood
from deltasmith.evaluate.results import weighted_average

COUNT = 12
PAIRS = [Pair(f"{n:04d}", f"Ask {n}", "poor", "good") for n in range(COUNT)]


def examples_file(folder: Path) -> Path:
    path = folder / "reference.json"
    entries = [
        {
            "dataset": "toys",
            "instruction": f"Name {n} toys.",
            "output": f"reference {n}",
            "generator": "rival",
        }
        for n in range(COUNT)
    ]
    path.write_text(json.dumps(entries))
    return path


def script(folder: Path, body: str) -> str:
    """Write a judge: `body` sees each parsed line as `pair` and may use `say(id, preference)`."""
    path = folder / "judge.py"
    head = """
        import json, sys
        def say(id, preference):
            print(json.dumps({"id": id, "preference": preference}), flush=True)
        for number, line in enumerate(sys.stdin):
            pair = json.loads(line)
    """
    path.write_text(textwrap.dedent(head) + textwrap.indent(textwrap.dedent(body).strip(), "    ") + "\n")
    return f"{sys.executable} {path}"


def task(folder: Path, judge=None, **changes) -> AlpacaEval:
    examples = tuple(load_examples(examples_file(folder)))
    return AlpacaEval(
        examples=examples,
        references=examples if judge else (),
        outputs=folder / "model_outputs.json",
        **{"overwrite": "refuse", "decoding": Decoding(20), "judge": judge, "batch": 5} | changes,
    )


def shout(prompt: str) -> str:
    return prompt.upper()


def win_rate(outcomes) -> float:
    return weighted_average([o.score for o in outcomes], [o.weight for o in outcomes], "mean")


def test_outputs_have_the_schema_of_the_project(tmp_path):
    model = FakeModel(write=shout, template="<user>{}<bot>")
    chosen = task(tmp_path)
    outcomes = chosen.answer(model, chosen.ids)
    entries = json.loads((tmp_path / "model_outputs.json").read_text())
    assert [list(entry) for entry in entries] == [["dataset", "instruction", "output", "generator"]] * COUNT
    assert entries[3] == {
        "dataset": "toys",
        "instruction": "Name 3 toys.",
        "output": "<USER>NAME 3 TOYS.<BOT>",
        "generator": "model",
    }
    assert [o.id for o in outcomes] == list(chosen.ids)


def test_without_a_judge_nothing_is_a_win_rate(tmp_path):
    chosen = task(tmp_path)
    outcomes = chosen.answer(FakeModel(write=shout), chosen.ids)
    assert win_rate(outcomes) != win_rate(outcomes)  # not a number
    assert chosen.metric == "none"
    assert "there is no win rate" in " ".join(chosen.notes(outcomes))


def test_a_judge_decides_the_win_rate(tmp_path):
    command = script(
        tmp_path,
        """
        first, second = (pair[k].isupper() for k in ("output_1", "output_2"))
        say(pair["id"], {0: 1 + second, 1: 1.5, 2: None}[int(pair["id"]) % 3])
        """,
    )
    chosen = task(tmp_path, CommandJudge(command))
    outcomes = chosen.answer(FakeModel(write=shout), chosen.ids)
    assert [o.score for o in outcomes[:3]] == [1.0, 0.5, 0.0]
    assert [o.weight for o in outcomes[:3]] == [1.0, 1.0, 0.0]
    assert win_rate(outcomes) == 0.75
    notes = " | ".join(chosen.notes(outcomes))
    assert "against rival" in notes
    assert "length-controlled win rate is not computed" in notes
    assert "no verdict on 4 of 12" in notes


def test_a_liking_for_a_position_favours_nobody(tmp_path):
    many = [Pair(f"{n:04d}", "x", "poor", "good") for n in range(400)]
    verdicts = list(CommandJudge(script(tmp_path, 'say(pair["id"], 2)')).compare(many))
    wins = sum(v.preference == 2 for v in verdicts)
    assert 160 < wins < 240
    assert {v.preference for v in verdicts} == {1.0, 2.0}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "sys.exit('out of credit') if number == 4 else say(pair['id'], 1)",
            ["exit code 1", "out of credit"],
        ),
        ("print('I prefer the first') if number == 4 else say(pair['id'], 1)", ["I prefer the first"]),
        ("say(pair['id'], 3 if number == 4 else 1)", ["not between 1 and 2"]),
        ("say(pair['id'], float('nan') if number == 4 else 1)", ["not between 1 and 2"]),
        ("say(pair['id'], True if number == 4 else 1)", ["not between 1 and 2"]),
        ("say('other' if number == 4 else pair['id'], 1)", ["'other'", "not asked"]),
        ("say('0000' if number == 4 else pair['id'], 1)", ["'0000'", "twice"]),
        ("say(pair['id'], 1) if number < 4 else None", [f"4 of {COUNT} pairs"]),
        ("print('[]') if number == 4 else say(pair['id'], 1)", ["no verdict"]),
    ],
)
def test_a_judge_that_fails_is_named_and_its_earlier_verdicts_are_good(tmp_path, body, words):
    judge = CommandJudge(script(tmp_path, body))
    found = []
    with pytest.raises(DamagedInputError) as error:
        found.extend(judge.compare(PAIRS))
    assert [v.id for v in found] == ["0000", "0001", "0002", "0003"]
    for word in [*words, "judge.py", "run the same command again"]:
        assert word in str(error.value)


def test_a_judge_that_is_silent_ends_when_a_stop_is_asked(tmp_path):
    judge = CommandJudge(script(tmp_path, "import time; time.sleep(600)"), lambda: True)
    with pytest.raises(InterruptedRunError):
        list(judge.compare(PAIRS))


def test_a_signal_that_another_thread_receives_is_heeded_too(tmp_path):
    """The kernel may hand a signal to any thread; Python's handler runs in the main one, which must wake up."""
    asked = []
    judge = CommandJudge(script(tmp_path, "import time; time.sleep(600)"), lambda: bool(asked))
    before = signal.signal(signal.SIGUSR1, lambda number, frame: asked.append(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    received = threading.Event()

    def receive():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        os.kill(os.getpid(), signal.SIGUSR1)
        received.wait(60)

    thread = threading.Timer(0.5, receive)
    try:
        thread.start()
        with pytest.raises(InterruptedRunError):
            list(judge.compare(PAIRS))
    finally:
        received.set()
        thread.join()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        signal.signal(signal.SIGUSR1, before)


def test_a_judge_that_reads_nothing_and_one_that_writes_before_it_reads(tmp_path):
    big = [Pair(f"{n:04d}", "x" * 5000, "poor", "good") for n in range(100)]  # more than a pipe holds
    path = tmp_path / "blind.py"
    path.write_text('for n in range(100): print(\'{"id": "%04d", "preference": 1.5}\' % n)')
    verdicts = list(CommandJudge(f"{sys.executable} {path}").compare(big))
    assert [v.preference for v in verdicts] == [1.5] * 100


@pytest.mark.parametrize("command", ["no-such-program --x", "", "python 'open"])
def test_a_command_that_cannot_start_is_refused_at_once(command):
    with pytest.raises(RecipeError, match="judge-command"):
        CommandJudge(command).check()


def test_a_repaired_script_is_another_judge(tmp_path):
    command = script(tmp_path, "say(pair['id'], 1)")
    before = task(tmp_path, CommandJudge(command))
    assert before.digest == task(tmp_path, CommandJudge(command)).digest
    script(tmp_path, "say(pair['id'], 2)")
    after = task(tmp_path, CommandJudge(command))
    assert before.digest != after.digest
    assert before.memory_digest() == after.memory_digest()  # the answers to be judged are the same
    assert (
        task(tmp_path, CommandJudge(command), decoding=Decoding(21)).memory_digest() != after.memory_digest()
    )


def verdict_model(weigh, **options) -> FakeModel:
    return FakeModel(weigh=lambda c: Likelihood(weigh(c), 1, False), **options)


def says(better: str):
    """Find the reply that holds `better` three nats likelier to be called the better one."""

    def weigh(asked: Continuation) -> float:
        first = asked.context.split("# Reply 1\n")[1].split("\n# Reply 2")[0]
        return -1.0 if (better in first) == (asked.text.strip() == "1") else -4.0

    return weigh


@pytest.mark.parametrize(("better", "wins"), [("good", True), ("poor", False)])
def test_a_judge_model_prefers_what_it_finds_likelier(tmp_path, better, wins):
    judge = ModelJudge(str(tmp_path), lambda: verdict_model(says(better)))
    verdicts = list(judge.compare(PAIRS))
    assert [v.id for v in verdicts] == [pair.id for pair in PAIRS]
    share = 1 / (1 + 2.718281828459045**-3)
    assert verdicts[0].preference == pytest.approx(1 + (share if wins else 1 - share))


@pytest.mark.parametrize("number", ["1", "2"])
def test_a_judge_model_that_always_says_one_number_finds_a_tie(tmp_path, number):
    model = verdict_model(lambda c: -0.01 if c.text.strip() == number else -7.0)
    verdicts = list(ModelJudge(str(tmp_path), lambda: model).compare(PAIRS))
    assert [v.preference for v in verdicts] == [pytest.approx(1.5)] * COUNT


@pytest.mark.parametrize("template", ["{}", "[USER] {} [BOT]"])
def test_a_judge_model_is_asked_through_its_template(tmp_path, template):
    model = verdict_model(says("good"), template=template)
    list(ModelJudge(str(tmp_path), lambda: model).compare(PAIRS[:1]))
    asked = model.asked[0]
    assert "Ask 0" in asked.context
    if template == "{}":
        assert asked.context.endswith("better reply:")
        assert asked.text == " 1"
    else:
        assert asked.context.endswith("[BOT]")
        assert asked.text == "1"


def test_a_judge_model_is_identified_by_its_files(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    judge = ModelJudge(str(tmp_path), FakeModel)
    before = judge.digest
    (tmp_path / "model.safetensors").write_bytes(b"two!")
    assert judge.digest != before


def test_outputs_of_another_model_are_not_replaced(tmp_path):
    chosen = task(tmp_path)
    other = [{"dataset": "", "instruction": "x", "output": "y", "generator": "another"}]
    (tmp_path / "model_outputs.json").write_text(json.dumps(other))
    with pytest.raises(RefusedError, match="another"):
        chosen.check_outputs("model")
    with pytest.raises(RefusedError):
        chosen.answer(FakeModel(), chosen.ids)
    assert json.loads((tmp_path / "model_outputs.json").read_text()) == other
    replacing = task(tmp_path, overwrite="replace")
    replacing.answer(FakeModel(write=shout), replacing.ids)
    assert json.loads((tmp_path / "model_outputs.json").read_text())[0]["generator"] == "model"


@pytest.mark.parametrize(
    "content", ["", "{", "{}", "[]", "[1]", '[{"output": "x"}]', '[{"instruction": "x", "output": 3}]']
)
def test_a_file_that_is_no_alpaca_file_is_named(tmp_path, content):
    path = tmp_path / "odd.json"
    path.write_text(content)
    with pytest.raises(DamagedInputError, match=r"odd\.json"):
        load_examples(path)


def annotated(folder: Path, preferences, **changes) -> Path:
    path = folder / "annotations.json"
    entry = {"generator_1": "rival", "generator_2": "ours", "annotator": "someone"} | changes
    path.write_text(json.dumps([entry | {"preference": p} for p in preferences]))
    return path


def test_stored_annotations_give_the_win_rate_with_ties_as_halves(tmp_path):
    stored = StoredAnnotations.load(annotated(tmp_path, [2, 1, 0, 1.5, None, 1.25]))
    outcomes = stored.answer(None, stored.ids)
    assert win_rate(outcomes) == pytest.approx((1 + 0 + 0.5 + 0.5 + 0.25) / 5)
    assert "against rival, judged by someone" in stored.notes(outcomes)[0]


@pytest.mark.parametrize("preference", [3, -1, 0.5, "2", True, [1]])
def test_an_impossible_preference_is_damage(tmp_path, preference):
    with pytest.raises(DamagedInputError, match="entry 1"):
        StoredAnnotations.load(annotated(tmp_path, [1, preference]))


def test_annotations_of_several_models_are_refused(tmp_path):
    path = annotated(tmp_path, [1, 2])
    entries = json.loads(path.read_text())
    entries[1]["generator_2"] = "theirs"
    path.write_text(json.dumps(entries))
    with pytest.raises(DamagedInputError, match="ours, theirs"):
        StoredAnnotations.load(path)
