"""Evaluations from request to result file: resuming, killed runs, what is never overwritten, partial results."""

from __future__ import annotations

import json
import math
import multiprocessing
import multiprocessing.forkserver
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import evaluate_victim
import pytest
from toys import COUNT, Opened, opens, specs, toy_model, write_files

from deltasmith.cli.display import item_progress
from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError, RefusedError, ResourceError
from deltasmith.evaluate.hub import benchmarks, write_hub_results
from deltasmith.evaluate.local.catalogue import load_task
from deltasmith.evaluate.request import split_specs
from deltasmith.evaluate.results import load_evaluation
from deltasmith.evaluate.run import evaluate_model, evaluate_tasks

SEED = 20240607


@pytest.fixture
def folder(tmp_path) -> Path:
    write_files(tmp_path)
    return tmp_path


@pytest.fixture
def models(monkeypatch) -> list:
    """Open a new toy model each time, and list those that were opened."""
    opened = []

    def open_model() -> Opened:
        opened.append(Opened(toy_model()))
        return opened[-1]

    opens(monkeypatch, open_model)
    return opened


class Heard:
    """A progress listener that remembers."""

    def __init__(self, stop: Stop | None = None, after: int = 0) -> None:
        self.phases, self.stop, self.after = {}, stop, after

    def phase(self, name, total):
        self.phases[name] = [total, 0]

    def advance(self, count):
        next(reversed(self.phases.values()))[1] += count
        if self.stop is not None and sum(done for _, done in self.phases.values()) >= self.after:
            self.stop.ask()


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith(("r.json", ".")))


def test_a_result_file_holds_every_score(folder, models):
    result = evaluate_model("toy", specs(folder), out=str(folder / "r.json"))
    assert result.failures == ()
    assert left(folder) == ["r.json"]
    read = load_evaluation(folder / "r.json")
    assert read.as_json() == json.loads(json.dumps(result.evaluation.as_json()))
    assert list(read.tasks) == ["items", "gsm8k", "perplexity", "alpaca"]
    assert read.complete
    assert (read.model, read.fingerprint, read.runtime) == ("toy", "f0", "fake")
    low, high = read.tasks["gsm8k"].interval
    assert 0 <= low < read.tasks["gsm8k"].score < high <= 1
    assert math.isnan(read.tasks["alpaca"].score)
    assert "no judge was named" in read.tasks["alpaca"].notes[0]


def test_progress_counts_questions(folder, models):
    heard = Heard()
    evaluate_model("toy", specs(folder), out=str(folder / "r.json"), progress=heard)
    assert heard.phases["items"] == [COUNT, COUNT]
    assert heard.phases["alpaca"] == [2 * COUNT, 2 * COUNT]  # generated and judged
    assert all(total == done for total, done in heard.phases.values())


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["evaluate_victim"])


@pytest.fixture(scope="module")
def fork_server():
    """Start the fork server where it finds the modules that it imports before it forks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
        multiprocessing.forkserver.ensure_running()


def victim(folder: Path, out: Path, number: int = 0, share: float = 0.0, report: str = "") -> int:
    process = FORKS.Process(
        target=evaluate_victim.evaluate, args=(str(folder), str(out), number, share, report), daemon=True
    )
    process.start()
    process.join()
    return process.exitcode


def test_killed_at_random_moments_gives_the_same_result(folder, models, fork_server):
    undisturbed = folder / "undisturbed"
    assert victim(folder, undisturbed / "r.json", report=str(folder / "count")) == 0
    expected = (undisturbed / "r.json").read_bytes()
    outputs = (undisturbed / "model_outputs.json").read_bytes()
    writes = int((folder / "count").read_text())
    assert writes > 30
    total = sum(task.asked for task in load_evaluation(undisturbed / "r.json").tasks.values())
    rng = random.Random(SEED)
    for number in rng.sample(range(1, writes + 1), 10):
        place = folder / f"killed-{number}"
        assert victim(folder, place / "r.json", number, rng.random()) == -signal.SIGKILL
        assert not (place / "r.json").exists()
        before = (place / "r.json.journal").read_bytes().count(b"\n")
        models.clear()
        evaluate_model("toy", specs(folder), out=str(place / "r.json"), batch=1)
        assert (place / "r.json").read_bytes() == expected, number
        assert (place / "model_outputs.json").read_bytes() == outputs
        assert models[0].model.questions <= total - min(before, total) + 4  # a chunk may be done again
        assert sorted(p.name for p in place.iterdir()) == ["model_outputs.json", "r.json"]
        shutil.rmtree(place)


def test_killed_again_and_again_still_arrives(folder, models, fork_server):
    out = folder / "again" / "r.json"
    codes = [victim(folder, out, 3, 0.5) for _ in range(6)]
    assert codes == [-signal.SIGKILL] * 6
    evaluate_model("toy", specs(folder), out=str(out), batch=1)
    plain = folder / "plain" / "r.json"
    evaluate_model("toy", specs(folder), out=str(plain), batch=1)
    assert out.read_bytes() == plain.read_bytes()


@pytest.mark.parametrize("after", [1, 9, 30, 60])
def test_a_stop_is_heeded_soon_and_the_same_call_goes_on(folder, models, after):
    stop = Stop()
    out = folder / "r.json"
    with pytest.raises(InterruptedRunError, match="run the same command again"):
        evaluate_model("toy", specs(folder), out=str(out), progress=Heard(stop, after), stop=stop, batch=1)
    assert left(folder) == ["r.json.journal"]
    asked = models[0].model.questions
    result = evaluate_model("toy", specs(folder), out=str(out), batch=1)
    assert asked + models[1].model.questions < 1.5 * sum(t.asked for t in result.evaluation.tasks.values())
    assert left(folder) == ["r.json"]
    assert result.evaluation.complete


def test_a_finished_evaluation_is_not_done_again(folder, models):
    evaluate_model("toy", specs(folder), out=str(folder / "r.json"))
    before = (folder / "r.json").read_bytes()
    evaluate_model("toy", specs(folder), out=str(folder / "r.json"))
    assert models[1].model.questions == 0
    assert (folder / "r.json").read_bytes() == before
    evaluate_model("toy", specs(folder), out=str(folder / "r.json"), overwrite=True)
    assert models[2].model.questions > 0


def test_a_chunk_is_answered_with_the_same_neighbours_again(folder, models):
    """A model's last bits may depend on the batch, so a resumed run must form the same ones."""
    task = load_task(f"items={folder / 'items.jsonl'}")
    batches: list[tuple[str, ...]] = []
    monkey = type(task).answer

    def answer(self, model, ids):
        batches.append(tuple(ids))
        return monkey(self, model, ids)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(task), "answer", answer)
        evaluate_model(
            "toy", specs(folder, "items"), out=str(folder / "r.json"), journal=str(folder / "j"), batch=2
        )
        whole = list(batches)
        assert [len(b) for b in whole] == [8, 8, 4]
        lines = (folder / "j").read_bytes().splitlines(keepends=True)
        (folder / "j").write_bytes(b"".join(lines[:11]))
        (folder / "r.json").unlink()
        batches.clear()
        evaluate_model(
            "toy", specs(folder, "items"), out=str(folder / "r.json"), journal=str(folder / "j"), batch=2
        )
    assert batches == whole[1:]
    ids = [json.loads(line)["entry"]["id"] for line in (folder / "j").read_text().splitlines()]
    assert len(ids) == len(set(ids)) == COUNT


def test_without_out_the_journal_lies_in_the_cache_until_the_end(folder, models, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    stop = Stop()
    with pytest.raises(InterruptedRunError):
        evaluate_model("toy", specs(folder, "items"), progress=Heard(stop, 5), stop=stop, batch=1)
    assert len(list((folder / "cache").rglob("*.journal"))) == 1
    asked = models[0].model.questions
    evaluate_model("toy", specs(folder, "items"), batch=1)
    assert asked + models[1].model.questions == COUNT
    assert list((folder / "cache").rglob("*.journal*")) == []


def test_a_journal_that_is_named_stays(folder, models):
    journal = folder / "kept.jsonl"
    evaluate_model("toy", specs(folder, "items"), journal=str(journal))
    assert len(journal.read_text().splitlines()) == COUNT
    evaluate_model("toy", specs(folder, "items"), journal=str(journal))
    assert models[1].model.questions == 0


@pytest.mark.parametrize("change", ["fingerprint", "runtime", "task"])
def test_a_journal_of_another_model_or_task_is_not_mixed_in(folder, monkeypatch, change):
    first, second = Opened(toy_model()), Opened(toy_model())
    if change == "fingerprint":
        second = Opened(toy_model(), fingerprint="f1")
    if change == "runtime":
        second = Opened(toy_model(runtime="other"))
    queue = [first, second]
    opens(monkeypatch, lambda: queue.pop(0))
    evaluate_model("toy", specs(folder, "items"), journal=str(folder / "j"))
    if change == "task":
        text = (folder / "items.jsonl").read_text()
        (folder / "items.jsonl").write_text(text.replace('"answer": "3"', '"answer": "three"'))
    evaluate_model("toy", specs(folder, "items"), journal=str(folder / "j"))
    assert second.model.questions == COUNT


@pytest.mark.parametrize("content", ["my thesis", '{"a": 1}', "[]"])
def test_another_file_is_never_overwritten(folder, models, content):
    (folder / "r.json").write_text(content)
    with pytest.raises(RefusedError, match=r"r\.json; choose another --out"):
        evaluate_model("toy", specs(folder, "items"), out=str(folder / "r.json"))
    assert models == []  # found out before the model was loaded
    assert (folder / "r.json").read_text() == content
    evaluate_model("toy", specs(folder, "items"), out=str(folder / "r.json"), overwrite=True)
    assert load_evaluation(folder / "r.json").complete


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tasks": "gsm8k"}, "other questions"),
        ({"limit": 3}, "other questions"),
        ({"opened": Opened(toy_model(), fingerprint="f1", name="new")}, "another model"),
        ({"opened": Opened(toy_model(runtime="torch"))}, "that fake computed"),
    ],
)
def test_the_result_of_another_evaluation_is_never_overwritten(folder, monkeypatch, change, words):
    opens(monkeypatch, lambda: Opened(toy_model()))
    evaluate_model("toy", specs(folder, "items"), out=str(folder / "r.json"))
    before = (folder / "r.json").read_bytes()
    opens(monkeypatch, lambda: change.get("opened", Opened(toy_model())))
    with pytest.raises(RefusedError, match=words):
        evaluate_model(
            "toy",
            specs(folder, change.get("tasks", "items")),
            out=str(folder / "r.json"),
            limit=change.get("limit"),
        )
    assert (folder / "r.json").read_bytes() == before


def test_limit_asks_the_first(folder, models):
    result = evaluate_model("toy", specs(folder), out=str(folder / "r.json"), limit=3).evaluation
    assert {name: task.asked for name, task in result.tasks.items()} == dict.fromkeys(result.tasks, 3)
    assert len(json.loads((folder / "model_outputs.json").read_text())) == 3


def test_tasks_of_one_name_are_told_apart(folder, models):
    (folder / "more.jsonl").write_text((folder / "items.jsonl").read_text())
    result = evaluate_model("toy", [*specs(folder, "items"), f"items={folder / 'more.jsonl'}"]).evaluation
    assert list(result.tasks) == ["items:items", "items:more"]


def test_specs_are_split_at_commas_but_not_within_a_file_name(tmp_path):
    odd = tmp_path / "a,b.jsonl"
    odd.write_text("")
    assert split_specs([f"items={odd}", "family, gsm8k=x"]) == [f"items={odd}", "family", "gsm8k=x"]


def test_tasks_can_be_evaluated_in_memory(folder):
    task = load_task(f"items={folder / 'items.jsonl'}")
    evaluation = evaluate_tasks(Opened(toy_model()), [task], limit=5)
    assert evaluation.tasks["items"].asked == 5
    broken = Opened(toy_model(crash_after=3, crash=lambda: ResourceError("the memory is used up")))
    with pytest.raises(ResourceError):
        evaluate_tasks(broken, [task])


def test_hub_files_hold_what_the_hub_reads(folder, models, tmp_path):
    import datetime

    import yaml

    tasks = ["items", "gsm8k", "perplexity"]
    result = evaluate_model("toy", specs(folder, *tasks)).evaluation
    known = benchmarks(["gsm8k=openai/gsm8k#gsm8k", "perplexity=some/text#default"])
    hub = tmp_path / ".eval_results"
    written, out = write_hub_results(
        result, hub, known, source="https://e.org/x", date=datetime.date(2026, 1, 2)
    )
    assert ([p.name for p in written], out) == (["gsm8k.yaml", "perplexity.yaml"], ["items"])
    (entry,) = yaml.safe_load((hub / "gsm8k.yaml").read_text())
    assert list(entry) == ["dataset", "value", "date", "source", "notes"]
    assert entry["dataset"] == {"id": "openai/gsm8k", "task_id": "gsm8k"}
    assert entry["value"] == pytest.approx(100 * result.tasks["gsm8k"].score)
    assert (entry["date"], entry["source"]["url"]) == ("2026-01-02", "https://e.org/x")
    assert "exact_match, per cent, 20 questions" in entry["notes"]
    (entry,) = yaml.safe_load((hub / "perplexity.yaml").read_text())
    assert entry["value"] == result.tasks["perplexity"].score


def test_the_whole_is_no_file_name_if_a_comma_stands_before_it(folder):
    file = folder / "items.jsonl"
    assert split_specs([f"family:math,items={file}"]) == ["family:math", f"items={file}"]
    assert split_specs(["items=", "family"]) == ["items=", "family"]


def test_a_complete_evaluation_leaves_the_unfinished_work_of_another_model(folder, monkeypatch):
    first, second, again = (Opened(toy_model(), fingerprint=name) for name in ("f0", "f1", "f0"))
    queue, stop, out = [first, second, again], Stop(), folder / "r.json"
    opens(monkeypatch, lambda: queue.pop(0))
    with pytest.raises(InterruptedRunError):
        evaluate_model("toy", specs(folder), out=str(out), progress=Heard(stop, 70), stop=stop, batch=1)
    before = (folder / "r.json.journal").read_bytes()
    assert load_evaluation_of(folder, out) == "f1"
    assert (folder / "r.json.journal").read_bytes() == before
    out.unlink()
    assert load_evaluation_of(folder, out) == "f0"
    assert left(folder) == ["r.json"]
    assert first.model.questions + again.model.questions < 1.5 * second.model.questions


def load_evaluation_of(folder: Path, out: Path) -> str:
    evaluate_model("toy", specs(folder), out=str(out), batch=1)
    return load_evaluation(out).fingerprint


@pytest.mark.parametrize(
    ("options", "notes"),
    [
        ({}, ()),
        ({"shots": 0}, ()),
        ({"max_tokens": 9}, ("--max-tokens: not heeded by items, perplexity, family:math",)),
        (
            {"chat": True, "train": "x"},
            (
                "--train: not heeded by items, family:math",
                "--train, --chat: not heeded by perplexity, alpaca",
                "--chat: the model has no chat template, questions are asked as they are",
            ),
        ),
    ],
)
def test_options_that_are_not_heeded_are_noted(folder, models, options, notes):
    tasks = [*specs(folder, "items", "perplexity", "alpaca"), "family:math"]
    result = evaluate_model("toy", tasks, out=str(folder / "r.json"), limit=2, **options)
    assert result.evaluation.notes == notes


def test_a_chat_template_is_no_matter_for_a_note(folder, monkeypatch):
    opens(monkeypatch, lambda: Opened(toy_model(template="<user>{}</user>")))
    assert evaluate_model("toy", specs(folder, "gsm8k"), chat=True).evaluation.notes == ()


def test_progress_tells_what_was_known(folder, models, capsys):
    stop, out = Stop(), str(folder / "r.json")
    with pytest.raises(InterruptedRunError):
        evaluate_model("toy", specs(folder, "items"), out=out, progress=Heard(stop, 9), stop=stop, batch=1)
    known = (folder / "r.json.journal").read_bytes().count(b"\n")
    assert said(folder, out, capsys)[:2] == [
        "loading the model …",
        f"items: {COUNT} to do, {known} of them known",
    ]
    assert said(folder, out, capsys) == [
        "loading the model …",
        f"reading back {out} …",
        f"items: {COUNT} to do, {COUNT} of them known",
        f"items: {COUNT} / {COUNT}",
    ]


def said(folder: Path, out: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    with item_progress(silent=False) as lines:
        evaluate_model("toy", specs(folder, "items"), out=out, progress=lines, batch=1)
    return capsys.readouterr().err.splitlines()


def test_answers_that_wait_for_their_judge_are_known(folder, models, capsys):
    """The first report counts what the journal remembers of single requests too."""
    stop, out = Stop(), str(folder / "r.json")
    with pytest.raises(InterruptedRunError):
        evaluate_model("toy", specs(folder, "alpaca"), out=out, progress=Heard(stop, 9), stop=stop, batch=1)
    known = (folder / "r.json.journal").read_bytes().count(b"\n")
    with item_progress(silent=False) as lines:
        evaluate_model("toy", specs(folder, "alpaca"), out=out, progress=lines, batch=1)
    assert f"alpaca: {2 * COUNT} to do, {known} of them known" in capsys.readouterr().err
