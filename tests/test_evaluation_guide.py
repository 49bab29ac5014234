"""docs/evaluation.md: its commands run as they stand, its files are read, its names are the program's."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from deltasmith.cli.main import group
from deltasmith.evaluate.local.catalogue import KINDS
from deltasmith.evaluate.results import load_evaluation
from models import Result, run

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "evaluation.md").read_text()
ASKED = [
    {"instruction": text, "output": "HELLO", "generator": "me", "dataset": "mine"}
    for text in ("Say hello in capitals.", "Name a colour.")
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def shown(language: str) -> list[list[str]]:
    """Split the commands of a kind of block into words, without the program's name."""
    lines = [line.removeprefix("$ ") for block in blocks(language) for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("deltasmith ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder as the guide supposes it: `src`, a README, and the files that the guide writes out."""
    folder = tmp_path_factory.mktemp("guide")
    for name in ("src", "README.md"):
        (folder / name).symlink_to(ROOT / name)
    for language in ("yaml", "python"):
        for text in blocks(language):
            (folder / re.split(r"[ :\n]", text)[1]).write_text(text)
    (folder / "asked.json").write_text(json.dumps(ASKED))
    return folder


@pytest.fixture(scope="module")
def results(place: Path) -> list[tuple[list[str], Result]]:
    """Run every command of the console blocks, in order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        found = []
        for words in shown("console"):
            words = [word.replace("python3", sys.executable) for word in words]
            found.append((words, run(*words)))
    return found


def test_every_command_works(results: list[tuple[list[str], Result]]) -> None:
    assert len(results) == 9
    for words, result in results:
        assert result.code == 0, (words, result.err)


def test_the_results_are_what_the_guide_says(place: Path, results: list[tuple[list[str], Result]]) -> None:
    base, merged, scaled = (load_evaluation(place / f"{name}.json") for name in ("base", "two", "two-1"))
    assert set(base.tasks) == {"math", "code", "ins"}
    assert merged.complete
    assert merged.fingerprint != scaled.fingerprint
    assert merged.tasks["math"].digest == scaled.tasks["math"].digest == base.tasks["math"].digest
    (compared,) = [result for words, result in results if words[0] == "compare"]
    assert "better" in compared.out
    judged = load_evaluation(place / "ins" / "judged.json").tasks["alpaca"]
    assert judged.metric == "win_rate"
    assert load_evaluation(place / "ins" / "answers.json").tasks["alpaca"].as_json()["score"] is None
    assert [
        entry["instruction"] for entry in json.loads((place / "ins" / "model_outputs.json").read_text())
    ] == [one["instruction"] for one in ASKED]


def test_answers_are_generated_once(place: Path, results: list[tuple[list[str], Result]]) -> None:
    lines = (place / "ins" / "journal").read_text().splitlines()
    assert len([line for line in lines if '"answer"' in line]) == len(ASKED)


def test_commands_that_need_extras_have_these_options(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for words in shown("sh"):
        command = group.get_command(None, words[0])  # type: ignore[arg-type]
        assert command is not None
        command.make_context(words[0], words[1:])
    named = set(re.findall(r"`[^`\n]*?(--[a-z][a-z-]+)", GUIDE))
    known = {
        option
        for name in ("evaluate", "compare", "tune")
        for parameter in group.get_command(None, name).params  # type: ignore[arg-type,union-attr]
        for option in parameter.opts
    }
    assert named
    assert named <= known | {"--help"}


def test_the_table_holds_every_kind_of_task() -> None:
    (table,) = re.findall(r"\| task \| reads \| score \|\n(.*?)\n\n", GUIDE, re.DOTALL)
    named = {name for row in table.splitlines() for name in re.findall(r"`(\w+)=FILE`", row.split(" | ")[0])}
    assert named == set(KINDS) | {"alpaca", "annotations"}


def test_the_result_file_has_the_named_keys(place: Path, results: list[tuple[list[str], Result]]) -> None:
    section = GUIDE.partition("## The result file")[2]
    document = json.loads((place / "two.json").read_text())
    task = document["tasks"]["math"]
    quoted = set(re.findall(r'"(\w+)"', section))
    assert quoted == (set(document) | set(task)) - {"deltasmith"}
    scores = [score for score, _, _ in task["items"].values()]
    assert task["score"] == pytest.approx(sum(scores) / len(scores))


def test_the_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", GUIDE):
        assert (ROOT / "docs" / target).is_file(), target
