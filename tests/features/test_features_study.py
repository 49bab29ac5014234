"""A study reads back what was written, and says which of its files is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_studies import BASE, made_study, sealed

from deltasmith.errors import DamagedInputError
from deltasmith.features.study import Quality, Study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made_study(folder := tmp_path_factory.mktemp("studies") / "study")
    return folder


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    made_study(tmp_path / "study", tokens=200)
    return tmp_path / "study"


def test_a_study_holds_members_and_floors(folder: Path) -> None:
    study = Study.open(folder)
    assert [member.name for member in study.floors("base")] == ["base~again", "base~seed1"]
    assert not study.members["lua"].is_floor
    assert study.codes("base").width == BASE
    assert len(study.held_out.ids) == study.codes("merged").tokens
    assert study.scores["lua"]["english"].tokens == 2000
    assert study.effects("base").raised.shape == (BASE, 10)
    assert set(np.unique(study.held_out.ids)) <= set(study.texts)


def test_loss_recovered() -> None:
    assert Quality(0.1, 16, 0, loss=3.0, loss_spliced=3.2, loss_zeroed=5.0).loss_recovered == pytest.approx(
        0.9
    )
    assert Quality(0.1, 16, 0, loss=3.0, loss_spliced=3.2, loss_zeroed=3.0).loss_recovered is None


def test_in_the_mode_shared_every_dictionary_is_the_roots(tmp_path: Path) -> None:
    study = made_study(tmp_path / "study", tokens=200, mode="shared")
    for path in (study.folder / "saes" / "lua").iterdir():
        path.unlink()
    (study.folder / "saes" / "lua").rmdir()
    assert study.dictionary("lua") == study.folder / "saes" / "base"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d.pop("graph"), "graph"),
        (lambda d: d.update(format=9), "format 9"),
        (lambda d: d["members"][0].pop("quality"), "quality"),
        (lambda d: d["graph"][1].update(parents=["nobody"]), "'nobody'"),
        (lambda d: d.update(members=3), "study"),
    ],
)
def test_a_damaged_document_is_named(copy: Path, damage, message: str) -> None:
    document = json.loads((copy / "study.json").read_text())
    damage(document)
    (copy / "study.json").write_text(json.dumps(document))
    with pytest.raises(DamagedInputError, match=message) as caught:
        Study.open(copy)
    assert "study.json" in str(caught.value)


def test_another_folder_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(DamagedInputError, match=r"no study\.json"):
        Study.open(tmp_path)
    with pytest.raises(DamagedInputError, match=r"no such folder .*nowhere; give a folder"):
        Study.open(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"no safetensors", None])
def test_damaged_arrays_are_named(copy: Path, content: bytes | None) -> None:
    path = copy / "codes" / "lua.safetensors"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DamagedInputError, match=r"lua\.safetensors"):
        Study.open(copy).codes("lua")


def test_arrays_of_another_file_are_refused(copy: Path) -> None:
    (copy / "codes" / "lua.safetensors").write_bytes((copy / "held_out.safetensors").read_bytes())
    with pytest.raises(DamagedInputError, match="starts"):
        sealed(copy).codes("lua")


READERS = {
    "codes/lua.safetensors": lambda study: study.codes("lua"),
    "effects/lua.safetensors": lambda study: study.effects("lua"),
    "saes/lua/sae_weights.safetensors": lambda study: study.decoder("lua"),
    "saes/lua/cfg.json": lambda study: study.dictionary("lua"),
    "held_out.safetensors": lambda study: study.held_out,
    "tokens.json": lambda study: study.texts,
}


@pytest.mark.parametrize("name", READERS)
def test_every_file_is_read_only_as_it_was_written(copy: Path, name: str) -> None:
    """Structure alone would let a byte within the arrays, or another word of a text, go unnoticed."""
    READERS[name](Study.open(copy))
    data = bytearray((copy / name).read_bytes())
    data[-1] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(
        DamagedInputError, match=r"it is not what study\.json says in .*; train the study again"
    ) as caught:
        READERS[name](Study.open(copy))
    assert name in str(caught.value)
    document = json.loads((copy / "study.json").read_text())
    for files in ({k: v for k, v in document["files"].items() if k != name}, 3, None):
        (copy / "study.json").write_text(json.dumps(document | {"files": files}))
        with pytest.raises(DamagedInputError, match=r"study\.json does not list this file in "):
            READERS[name](Study.open(copy))
