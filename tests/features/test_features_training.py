"""Whole trainings on the bundled family: what a study holds, in every mode and kind, and what is refused."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from small_studies import SITE, light_options, options

from deltasmith.errors import MissingExtraError, RecipeError, RefusedError, ResourceError
from deltasmith.features.dictionaries import storage
from deltasmith.features.dictionaries.settings import BatchTopK, ReluL1, TopK
from deltasmith.features.member_training import SAMPLE_TOKENS, parted
from deltasmith.features.models import open_network
from deltasmith.features.pieces import Pieces
from deltasmith.features.recorder import Recorder
from deltasmith.features.requests import Request
from deltasmith.features.site import Site
from deltasmith.features.study import Study
from deltasmith.features.training import train
from models import tree


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, dict[str, Any]]:
    given = options(tmp_path_factory.mktemp("warm"))
    return train(**given), given


def test_a_study_holds_every_model_and_its_floors(warm: tuple[Study, dict[str, Any]]) -> None:
    study = warm[0]
    assert list(study.members) == ["base", "base~again", "base~seed1", "math", "code", "merged"]
    assert [m.start for m in study.members.values()] == [None, "base", None, "base", "base", "base"]
    assert [(e.parent, e.child) for e in study.graph.edges] == [
        *(("base", "math"), ("base", "code"), ("base", "merged"), ("math", "merged"), ("code", "merged"))
    ]
    tokens = len(study.held_out.ids)
    assert tokens == 600
    for name, member in study.members.items():
        codes, effects = study.codes(name), study.effects(name)
        assert codes.tokens == tokens
        assert codes.width == study.decoder(name).shape[0] == (54 if member.start else 48)
        assert effects.raised.shape == (codes.width, 10)
        assert codes.fires.sum() / tokens == pytest.approx(member.quality.l0)
        assert member.quality.l0 <= 4
        assert member.quality.fvu < 1
        assert member.quality.loss < member.quality.loss_zeroed
    known = {i for name in study.members for i in study.effects(name).raised.ravel().tolist()}
    assert known | set(study.held_out.ids.tolist()) <= set(study.texts)


def test_codes_are_what_the_stored_dictionary_makes_of_the_model(warm: tuple[Study, dict[str, Any]]) -> None:
    study, given = warm
    dictionary = storage.load(study.dictionary("math"))
    held = study.held_out
    with open_network(given["models"][1].partition("=")[2]) as opened:
        rows = [held.ids[held.sequence == number] for number in np.unique(held.sequence)]
        context = 1 + max(map(len, rows))
        ids = np.zeros((len(rows), context), np.int32)
        ids[:, 0] = opened.tokenizer.start
        for row, found in enumerate(rows):
            ids[row, 1 : 1 + len(found)] = found
        zeros = np.zeros(len(rows), np.int32)
        pieces = Pieces(ids, np.array([len(r) + 1 for r in rows], np.int32), zeros, zeros, zeros, zeros)
        raw = Recorder(opened.network, Site.parse(SITE)).activations(pieces)
    np.testing.assert_allclose(dictionary.encode(raw).dense(), study.codes("math").dense(), atol=1e-4)


def test_the_document_says_what_decided_it_and_names_no_place(warm: tuple[Study, dict[str, Any]]) -> None:
    study = warm[0]
    document = study.document
    text = (study.folder / "study.json").read_text()
    assert str(study.folder.parent) not in text
    assert text == json.dumps(document, indent=1, sort_keys=True) + "\n"
    assert document["dictionary"] == {
        **{"kind": "topk", "k": 4, "latents": 48, "width": 320, "spare": 0.125},
        "scale": document["dictionary"]["scale"],
    }
    wanted = {"steps": 12, "child_steps": 6, "batch": 64, "seed": 0, "seeds": 1, "context": 96, "site": SITE}
    assert {key: document[key] for key in wanted} == wanted
    assert document["optimiser"]["rate"] == 1e-3
    assert [c["name"] for c in document["corpora"]] == ["math", "code"]
    assert set(document["scores"]) == set(document["models"]) == {"base", "math", "code", "merged"}
    assert [(c["parent"], c["child"]) for c in document["weight_changes"]] == [
        (e.parent, e.child) for e in study.graph.edges
    ]
    changes = {(c["parent"], c["child"]): c for c in document["weight_changes"]}
    assert 0 < changes["base", "merged"]["all"] < changes["base", "math"]["all"]
    assert changes["base", "math"]["groups"]["block"] > 0


def test_a_dictionary_tells_where_it_comes_from(warm: tuple[Study, dict[str, Any]]) -> None:
    study = warm[0]
    told = json.loads((study.dictionary("base~again") / "cfg.json").read_text())["metadata"]
    assert told["hook_name"] == "model.layers.1.mlp.down_proj"
    assert told["model_name"] == "base"
    ours = told["deltasmith"]
    assert {key: ours[key] for key in ("member", "role", "start", "site", "steps")} == {
        **{"member": "base~again", "role": "again", "start": "base", "site": SITE, "steps": 6}
    }
    assert ours["quality"] == vars(study.members["base~again"].quality)
    assert set(ours["corpora"]) == {"math", "code"}
    assert ours["model_fingerprint"] == study.document["models"]["base"]["fingerprint"]


def test_a_child_begins_as_its_parent_and_a_floor_by_seed_does_not(
    warm: tuple[Study, dict[str, Any]],
) -> None:
    study = warm[0]
    base = study.decoder("base")
    for name in ("base~again", "math", "merged"):
        near = np.sum(base * study.decoder(name)[:48], axis=1)
        assert near.min() > 0.9, name
    assert np.abs(np.sum(base * study.decoder("base~seed1"), axis=1)).max() < 0.5
    spare = study.decoder("math")[48:], study.decoder("base~again")[48:]
    assert np.abs(spare[0] @ spare[1].T).max() < 0.999  # no shared beginnings


def test_memory_changes_no_number(tmp_path: Path) -> None:
    heard: list[str] = []
    for name, memory in (("a", 1 << 30), ("b", 1 << 20)):
        given = light_options(tmp_path, out=str(tmp_path / name), memory=memory, mode="shared", floors="none")
        train(**given, say=lambda what, done, of, detail="": heard.append(what))
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert "the activations do not fit in 1 MiB and are computed anew" in heard


def test_in_the_mode_independent_all_begin_afresh_with_their_own_seeds(tmp_path: Path) -> None:
    study = train(**light_options(tmp_path, mode="independent"))
    assert list(study.members) == ["base", "base~seed1", "math"]
    assert all(m.start is None for m in study.members.values())
    assert {study.codes(name).width for name in study.members} == {48}
    assert len({m["seed"] for m in study.document["members"]}) == 3
    assert len({storage.load(study.dictionary(name)).scale for name in study.members}) == 1


def test_in_the_mode_shared_the_root_serves_all(tmp_path: Path) -> None:
    study = train(**light_options(tmp_path, mode="shared"))
    assert list(study.members) == ["base", "base~seed1", "math"]
    assert sorted(p.name for p in (study.folder / "saes").iterdir()) == ["base", "base~seed1"]
    assert np.array_equal(study.decoder("math"), study.decoder("base"))
    assert study.document["members"][2]["sha256"] == study.document["members"][0]["sha256"]
    assert study.codes("math").width == 48
    assert not np.array_equal(study.codes("math").values, study.codes("base").values)


def test_a_given_root_dictionary_is_kept_as_it_is_and_grown(tmp_path: Path) -> None:
    first = train(**light_options(tmp_path, mode="shared", floors="none"))
    given = light_options(tmp_path, out=str(tmp_path / "b"), root_dictionary=first.dictionary("base"))
    second = train(**{**given, "latents": None, "k": None})
    assert np.array_equal(second.decoder("base"), first.decoder("base"))
    assert second.document["members"][0]["given"]
    assert second.document["dictionary"] == first.document["dictionary"] | {"spare": 0.125}
    assert [second.codes(name).width for name in second.members] == [48, 54, 48, 54]
    assert isinstance(storage.load(second.dictionary("math")).kind, TopK)


def test_a_given_dictionary_that_cannot_be_trained_is_refused_unless_a_kind_is_named(tmp_path: Path) -> None:
    first = train(**light_options(tmp_path, mode="shared", floors="none"))
    foreign = tmp_path / "foreign"
    shutil.copytree(first.dictionary("base"), foreign)
    config = json.loads((foreign / "cfg.json").read_text())
    del config["metadata"]["deltasmith"]
    (foreign / "cfg.json").write_text(json.dumps(config | {"architecture": "standard"}))
    given = light_options(tmp_path, out=str(tmp_path / "b"), root_dictionary=foreign, latents=None, k=None)
    with pytest.raises(
        RecipeError, match="is of kind relu, which cannot be trained further; give --kind and --k"
    ):
        train(**given)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("b.")]
    study = train(**given | {"kind": "topk", "k": 3})
    assert study.document["dictionary"]["kind"] == "relu"
    assert study.document["dictionary"]["scale"] == pytest.approx(first.document["dictionary"]["scale"])
    assert study.members["math"].quality.l0 <= 3


def test_a_batch_topk_has_its_threshold_from_text_that_is_neither_trained_nor_measured_on(
    tmp_path: Path,
) -> None:
    study = train(**light_options(tmp_path, kind="batch-topk", mode="independent"))
    for name in study.members:
        dictionary = storage.load(study.dictionary(name))
        assert isinstance(dictionary.kind, BatchTopK)
        assert dictionary.threshold is not None
        assert study.members[name].quality.l0 == pytest.approx(4, rel=0.35)  # a sample of some 200 tokens


def test_relu_l1_pays_for_what_fires(tmp_path: Path) -> None:
    given = light_options(tmp_path, kind="relu-l1", l1=4.0, k=None, mode="shared", floors="none")
    study = train(**given)
    assert isinstance(storage.load(study.dictionary("base")).kind, ReluL1)
    assert study.document["dictionary"]["coefficient"] == 4.0


def test_the_text_is_parted_by_pieces_and_their_repetitions() -> None:
    count, numbers = 400, np.random.default_rng(0).permutation(np.repeat(np.arange(100), 4)).astype(np.int32)
    zeros = np.zeros(count, np.int32)
    whole = Pieces(np.zeros((count, 9), np.int32), zeros + 9, numbers % 2, zeros, zeros, numbers)
    train_on, sample = parted(whole)
    assert set(train_on.piece) | set(sample.piece) == set(range(100))
    assert not set(train_on.piece) & set(sample.piece)
    assert len(np.unique(sample.piece)) == len(sample.piece) == 6
    assert np.bincount(sample.domain).tolist() == [3, 3]
    many = Pieces(
        np.zeros((60_000, 9), np.int32),
        *(np.full(60_000, v, np.int32) for v in (9, 0, 0, 0)),
        np.arange(60_000),
    )
    assert SAMPLE_TOKENS * 0.9 < parted(many)[1].tokens <= SAMPLE_TOKENS
    one = whole.taken([0])
    assert [part.tokens for part in parted(one)] == [8, 8]


def test_models_of_another_numbering_are_refused(tmp_path: Path) -> None:
    given = light_options(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(given["models"][1].partition("=")[2], other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    a, b = [word for word in vocabulary if word.isdigit()][:2]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(
        RefusedError, match="it numbers texts otherwise than the root's model in math; follow"
    ):
        train(**given | {"models": [given["models"][0], f"math={other}"]})


def test_a_site_that_is_not_there_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    given = light_options(tmp_path)
    for site in ("model.layers.9.mlp:out", "lm_head"):
        with pytest.raises(RecipeError):
            train(**given | {"site": site})
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("study")]


def left_beside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("study"))


def test_a_dictionary_that_will_not_fit_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 4 * (10 * 54 * 320 + 64 * 54)  # 48 latents and an eighth more
    monkeypatch.setattr("deltasmith.features.prospects.free_on_device", lambda device: free)
    given, heard = light_options(tmp_path, steps=1), []
    with pytest.raises(
        ResourceError, match=r"training a dictionary of 55 latents .* are free; give fewer --latents"
    ):
        train(**given | {"latents": 49}, say=lambda what, done, of, detail="": heard.append(what))
    assert not heard
    assert left_beside(tmp_path) == []
    train(**given | {"mode": "warm"})
    with pytest.raises(
        RecipeError, match=r"319,999,680 latents \(999999x of a width of 320\) make no dictionary"
    ):
        train(**given | {"latents": "999999x", "out": str(tmp_path / "study2")})
    assert left_beside(tmp_path) == ["study"]


def test_pieces_longer_than_the_model_reads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"pieces of 5,000 tokens are longer than the 96 .*--context 96 or less"
    ):
        train(**light_options(tmp_path, context=5000))
    assert left_beside(tmp_path) == []


def test_text_that_is_seen_too_often_is_noted(warm: tuple[Study, dict[str, Any]], tmp_path: Path) -> None:
    assert not any("training sees each" in note for note in warm[0].document["notes"])
    study = train(**light_options(tmp_path, steps=100, train_tokens=300, mode="shared", floors="none"))
    (note,) = [note for note in study.document["notes"] if "training sees each" in note]
    assert re.search(r"of the [\d,]+ different tokens about (\d\d) times; more text, or fewer --steps", note)


def test_every_file_of_a_study_is_listed_with_its_hash(warm: tuple[Study, dict[str, Any]]) -> None:
    study = warm[0]
    files = [path for path in study.folder.rglob("*") if path.is_file() and path.name != "study.json"]
    assert study.document["files"] == {
        path.relative_to(study.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_what_a_given_dictionary_was_made_for_is_looked_at(tmp_path: Path) -> None:
    first = train(**light_options(tmp_path, mode="shared", floors="none"))
    rest = {"root_dictionary": first.dictionary("base"), "latents": None, "k": None, "mode": "shared"}
    given = light_options(tmp_path, out=str(tmp_path / "b"), floors="none") | rest
    elsewhere = SITE.replace("layers.1", "layers.0")
    with pytest.raises(
        RefusedError, match=rf"was trained at {SITE}, not at {elsewhere} in .*; give --site {SITE}"
    ):
        train(**given | {"site": elsewhere})
    same = train(**given)
    assert not any("dictionary was trained" in note for note in same.document["notes"])
    math, base = given["models"][1], given["models"][0]
    swapped = given | {"models": [math, base], "parents": ["base=math"], "out": str(tmp_path / "c")}
    notes = train(**swapped).document["notes"]
    assert "the root's dictionary was trained on base, and serves math as it is" in notes

    foreign = tmp_path / "foreign"
    shutil.copytree(first.dictionary("base"), foreign)
    config = json.loads((foreign / "cfg.json").read_text())
    del config["metadata"]["deltasmith"]
    said = {}
    for name in (elsewhere.partition(":")[0], "blocks.0.hook_mlp_out", SITE.partition(":")[0]):
        config["metadata"]["hook_name"] = name
        (foreign / "cfg.json").write_text(json.dumps(config))
        study = train(**given | {"root_dictionary": foreign, "overwrite": True})
        said[name] = [note for note in study.document["notes"] if "was trained at" in note]
    assert list(map(len, said.values())) == [1, 0, 0]
    assert (
        f"was trained at {elsewhere.partition(':')[0]}, and serves {SITE} as it is"
        in next(iter(said.values()))[0]
    )
    del config["metadata"]
    (foreign / "cfg.json").write_text(json.dumps(config))
    train(**given | {"root_dictionary": foreign, "overwrite": True})


def test_an_output_is_not_replaced_unless_asked_for(tmp_path: Path) -> None:
    given = light_options(tmp_path, mode="shared", floors="none")
    first = tree(train(**given).folder)
    with pytest.raises(RefusedError, match="the output exists and is not empty"):
        train(**given)
    assert tree(train(**given | {"seed": 1, "overwrite": True}).folder) != first
    assert tree(train(**given | {"overwrite": True}).folder) == first
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("study")) == ["study"]


def test_without_torch_the_extra_is_named_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r'pip install "deltasmith\[features\]"'):
        train(**light_options(tmp_path))


def test_train_takes_every_option_of_a_request() -> None:
    import inspect

    taken = set(inspect.signature(train).parameters)
    assert taken == set(Request.__dataclass_fields__) | {"say", "stop"}
