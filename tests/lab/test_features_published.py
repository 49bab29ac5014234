"""The presets on the paper's own models, with local folders in the hub's place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from deltasmith.errors import DamagedInputError, MissingExtraError
from deltasmith.lab.features.plan import studies_of
from deltasmith.lab.features.published import DATA, MODELS, PRESETS, fetched, from_hub, subjects_of

PRESET = replace(PRESETS["paper-cpu"], characters=90)


def hub(root: Path):
    """Return what stands in for the hub: a folder for every id that was asked for."""
    asked: list[tuple[str, str]] = []

    def fetch(name: str, kind: str) -> Path:
        asked.append((name, kind))
        folder = root / kind / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    return fetch, asked


def put(root: Path, name: str, files: dict[str, str]) -> None:
    folder = root / "dataset" / name
    for file, text in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text, encoding="utf-8")


def lines(key: str, *texts: str) -> str:
    return "".join(json.dumps({key: text}) + "\n" for text in texts)


def test_models_and_texts_are_asked_for_by_id(tmp_path: Path) -> None:
    put(
        tmp_path,
        DATA["baby-python"],
        {"data/train.jsonl": lines("text", "no"), "data/validation.jsonl": lines("text", "yes " * 9)},
    )
    put(tmp_path, DATA["lua"], {"valid-00.jsonl": lines("content", "local x = 1\n" * 20)})
    put(tmp_path, DATA["stories"], {"Stories-valid.txt": "One.\n<|endoftext|>\nTwo.\n<|endoftext|>\n"})
    fetch, asked = hub(tmp_path)
    (tmp_path / "work" / "random").mkdir(parents=True)
    subjects = subjects_of(PRESET, tmp_path / "work", fetch)
    assert {name for name, kind in asked if kind == "model"} == set(MODELS.values())
    assert {name for name, kind in asked if kind == "dataset"} == set(DATA.values())
    assert subjects.parents == ("lua=base", "stories=base", "merged=lua,stories@base")
    found = {
        d: [json.loads(x)["text"] for x in p.read_text(encoding="utf-8").splitlines()]
        for d, p in subjects.corpora.items()
    }
    assert found["baby-python"] == ["yes " * 9]  # held-back text before training text
    assert found["lua"] == [("local x = 1\n" * 20)[:90]]  # no more characters than the preset says
    assert [text.strip() for text in found["stories"]] == ["One.", "Two."]
    names = [job.name for job in studies_of(subjects)]
    assert names[:3] == ["warm", "independent", "shared"]
    assert {"same-lua", "same-stories", "same-merged", "control", "control-warm"} <= set(names)


def test_texts_that_are_there_are_not_fetched_again(tmp_path: Path) -> None:
    put(tmp_path, "a/b", {"test.jsonl": lines("text", "x")})
    fetch, asked = hub(tmp_path)
    first = fetched(tmp_path / "texts", "d", "a/b", PRESET, fetch)
    assert fetched(tmp_path / "texts", "d", "a/b", PRESET, fetch) == first
    assert len(asked) == 1


def test_tables_are_read_by_column(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    put(tmp_path, "a/b", {})
    folder = tmp_path / "dataset" / "a/b"
    folder.mkdir(parents=True)
    parquet.write_table(pyarrow.table({"id": [1, 2], "content": ["one", "two"]}), folder / "test.parquet")
    fetch, _ = hub(tmp_path)
    path = fetched(tmp_path / "texts", "d", "a/b", PRESET, fetch)
    assert path.read_text(encoding="utf-8") == lines("text", "one", "two")
    parquet.write_table(pyarrow.table({"words": ["one"]}), folder / "test.parquet")
    with pytest.raises(DamagedInputError, match="none is text or content"):
        fetched(tmp_path / "other", "d", "a/b", PRESET, fetch)


def test_a_data_set_without_text_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "a/b", {"README.md": "x"})
    with pytest.raises(DamagedInputError, match="no files of text"):
        fetched(tmp_path / "texts", "d", "a/b", PRESET, hub(tmp_path)[0])


@pytest.mark.parametrize(("name", "kind"), [("nobody/nothing", "model"), ("nobody/nothing", "dataset")])
def test_offline_is_one_line(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DamagedInputError) as caught:
        from_hub(name, kind)
    assert "the hub cannot be asked" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_the_hubs_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match="huggingface_hub"):
        from_hub("a/b", "model")


def test_the_untrained_model_has_the_bases_shape(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from deltasmith.lab.features.published import _untrained

    config = transformers.MistralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    base = tmp_path / "base"
    transformers.MistralForCausalLM(config).save_pretrained(base)
    (base / "tokenizer.json").write_text("{}", encoding="utf-8")
    state = torch.random.get_rng_state()
    _untrained(base, tmp_path / "random")
    assert torch.equal(state, torch.random.get_rng_state())
    drawn = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "random")
    assert drawn.config.intermediate_size == 24
    assert (tmp_path / "random" / "tokenizer.json").is_file()
