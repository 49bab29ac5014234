"""BLiMP: zip, folder and file; whole sentences compared; figures by paradigm."""

from __future__ import annotations

import zipfile

import pytest
from fakes import TASKS, FakeModel

from deltasmith.errors import DamagedInputError
from deltasmith.evaluate.language import Likelihood
from deltasmith.evaluate.local.blimp import accuracies
from deltasmith.evaluate.local.catalogue import load_task

FOLDER = TASKS / "blimp"
IDS = [
    "made_agreement/0",
    "made_reflexive/0",
    "made_agreement/1",
    "made_reflexive/1",
    "made_agreement/2",
]


def load(**options):
    return load_task(f"blimp={FOLDER}", **options)


def weighing(*bad: str) -> FakeModel:
    """Build a model that finds exactly these sentences unlikely."""
    return FakeModel(weigh=lambda asked: Likelihood(-9.0 if asked.text in bad else -3.0, 4, False))


def test_paradigms_take_turns():
    assert list(load().ids) == IDS
    assert list(load(limit=2).ids) == IDS[:2]
    assert list(load(per_paradigm=1).ids) == IDS[:2]
    assert list(load(per_paradigm=2, limit=3).ids) == IDS[:3]


def test_the_likelier_whole_sentence_wins_and_a_draw_does_not():
    task = load()
    model = weighing("The otter swim.", "The boys wash themselves.")
    outcomes = task.answer(model, task.ids)
    assert [o.score for o in outcomes] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert [(one.context, one.ends) for one in model.asked] == [("", False)] * 10
    assert [one.text for one in model.asked[:2]] == ["The otter swims.", "The otter swim."]
    assert outcomes[0].detail == {
        "paradigm": "made_agreement",
        "phenomenon": "agreement",
        "good": -3.0,
        "bad": -9.0,
    }


def test_figures_by_paradigm_and_phenomenon():
    task = load()
    outcomes = task.answer(
        weighing("The otter swim.", "Ida sees himself.", "The boys wash himself."), task.ids
    )
    assert accuracies(outcomes) == {"made_agreement": pytest.approx(1 / 3), "made_reflexive": 1.0}
    assert task.notes(outcomes) == (
        "by phenomenon: agreement 33.3 %, binding 100.0 %",
        "worst paradigms: made_agreement 33.3 %, made_reflexive 100.0 %",
    )


def test_zip_folder_and_file_are_the_same_questions(tmp_path):
    archive = tmp_path / "B.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for file in FOLDER.iterdir():
            out.write(file, f"data/{file.name}")
        out.writestr("__MACOSX/data/._made_agreement.jsonl", b"\0\1")
        out.writestr("data/.DS_Store", b"\0\1")
        out.writestr("data/README.md", b"text")
    task = load_task(f"blimp={archive}")
    assert task.questions == load().questions
    assert task.digest == load().digest
    one = load_task(f"blimp={FOLDER / 'made_reflexive.jsonl'}")
    assert list(one.ids) == ["made_reflexive/0", "made_reflexive/1"]


def test_damaged_places_are_named(tmp_path):
    bad = tmp_path / "bad.zip"
    bad.write_bytes(b"PK nonsense")
    with pytest.raises(DamagedInputError, match=f"it is no readable zip file in {bad}"):
        load_task(f"blimp={bad}")
    with zipfile.ZipFile(bad, "w") as out:
        out.writestr("data/x.jsonl", '{"sentence_good": "a", "sentence_bad": "b"}\n{"sentence_good": "a"}\n')
    with pytest.raises(DamagedInputError, match=f"'sentence_bad' is missing in {bad}:data/x.jsonl:2"):
        load_task(f"blimp={bad}")
    with pytest.raises(DamagedInputError, match="cannot be read"):
        load_task(f"blimp={tmp_path / 'none.zip'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DamagedInputError, match=r"it holds no \.jsonl file"):
        load_task(f"blimp={tmp_path / 'empty'}")


def test_a_zip_that_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    archive = tmp_path / "B.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("x.jsonl", b" " * 10_000)
    monkeypatch.setattr("deltasmith.evaluate.local.blimp._UNPACKED", 9_999)
    with pytest.raises(DamagedInputError, match="it unpacks to more than"):
        load_task(f"blimp={archive}")


def test_each_option_changes_the_digest():
    assert len({load(**given).digest for given in ({}, {"limit": 2}, {"per_paradigm": 1})}) == 3
