"""Models opened to be read: from a folder, a recipe or a packed delta; the text of a token; what tells them apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from small_readers import mistral  # noqa: E402

from deltasmith import api  # noqa: E402
from deltasmith.errors import DamagedInputError, MissingExtraError, RecipeError, ResourceError  # noqa: E402
from deltasmith.evaluate.models import transformers_loading  # noqa: E402
from deltasmith.features import models  # noqa: E402
from deltasmith.features.models import Opened, open_network  # noqa: E402
from deltasmith.lab import family_folder  # noqa: E402
from deltasmith.packing.single import pack  # noqa: E402

FAMILY = family_folder()
RECIPE = {
    "base": str(FAMILY / "base"),
    "models": [{"model": str(FAMILY / "small" / "math"), "edits": [{"drop": {"density": 0.5}}]}],
}


def opened(source: Any, **options: Any) -> Opened:
    with open_network(source, **options) as found:
        return found


def weights(found: Opened) -> Any:
    return torch.cat([p.flatten() for p in found.network.parameters()])


@pytest.fixture(scope="module")
def base() -> Opened:
    return opened(FAMILY / "base")


def test_a_folder(base: Opened) -> None:
    assert (base.name, base.context, base.notes) == ("base", 96, ())
    assert (base.tokenizer.vocabulary, base.tokenizer.start) == (100, 1)
    assert not base.network.training
    assert not any(p.requires_grad for p in base.network.parameters())
    assert {p.dtype for p in base.network.parameters()} == {torch.float32}
    assert base.network.config._attn_implementation != "eager"  # nothing is differentiated here
    assert {p.dtype for p in opened(FAMILY / "base", dtype="bfloat16").network.parameters()} == {
        torch.bfloat16
    }


def test_a_recipe_is_the_folder_that_merge_writes(tmp_path: Path, base: Opened) -> None:
    api.merge(RECIPE, tmp_path / "out")
    in_memory, written = opened(RECIPE), opened(tmp_path / "out")
    assert torch.equal(weights(in_memory), weights(written))
    assert in_memory.numbering == written.numbering == base.numbering
    assert not torch.equal(weights(in_memory), weights(opened(RECIPE, overrides=["seed=5"])))


def test_a_packed_delta(tmp_path: Path) -> None:
    shutil.copytree(FAMILY / "base", tmp_path / "base")
    pack(RECIPE["base"], FAMILY / "small" / "math", tmp_path / "packed", codec="lossless")
    assert torch.equal(weights(opened(tmp_path / "packed")), weights(opened(FAMILY / "small" / "math")))


def test_the_fingerprint_changes_with_weights_config_and_tokenizer(tmp_path: Path, base: Opened) -> None:
    assert opened(FAMILY / "base").fingerprint == base.fingerprint
    found = {base.fingerprint, opened(FAMILY / "small" / "math").fingerprint}
    for file, change in (
        ("config.json", {"rms_norm_eps": 1e-3}),
        ("tokenizer_config.json", {"model_max_length": 5}),
        ("README.md", None),
    ):
        folder = tmp_path / file
        shutil.copytree(FAMILY / "base", folder)
        path = folder / file
        path.write_text("words" if change is None else json.dumps(json.loads(path.read_text()) | change))
        found.add(opened(folder).fingerprint)
    assert len(found) == 4  # a README changes nothing


# The text of tokens.


def save(folder: Path, tokenizer: Any, **special: str) -> Path:
    mistral(vocab_size=tokenizer.get_vocab_size() + 2).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


TEXTS = ["a naïve “test” of  two  spaces\n\tand ✓ 数\n"] * 3 + ["one two three"]


def bytes_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<bos>"], initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator(TEXTS, trainer)
    return found


def words_tokenizer() -> Any:
    """As SentencePiece writes it: a leading space is ▁, and a text's first is dropped when it is decoded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    found = Tokenizer(models.BPE(unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "<bos>"], show_progress=False)
    found.train_from_iterator(["one two three aa", "a two x"], trainer)
    return found


def test_bytes_and_leading_spaces_are_spelt_as_in_a_text(tmp_path: Path) -> None:
    found = opened(save(tmp_path / "m", bytes_tokenizer(), bos_token="<bos>"))
    text = "one  two\n\tof 数 naive"
    ids = found.tokenizer.encode_bare(text).ids
    assert "".join(found.texts(ids)).replace("�", "") == text.replace("数", "")
    assert "�" in "".join(found.texts(ids))
    assert found.texts([0]) == ["<bos>"]
    rows = found.tokenizer.vocabulary
    assert found.texts([rows - 1, rows - 2, -1]) == [f"<{rows - 1}>", f"<{rows - 2}>", "<-1>"]


def test_a_leading_space_that_a_decoder_drops_is_told(tmp_path: Path) -> None:
    found = opened(save(tmp_path / "m", words_tokenizer(), bos_token="<bos>", unk_token="<unk>"))
    ids = found.tokenizer.encode_bare("one two three").ids
    assert "".join(found.texts(ids)) == " one two three"
    assert "".join(found.texts(ids[:1])).startswith(" ")


def test_numbering_tells_tokenizers_apart(tmp_path: Path, base: Opened) -> None:
    words, bytes_ = words_tokenizer(), bytes_tokenizer()
    found = {
        base.numbering,
        opened(save(tmp_path / "a", words, bos_token="<bos>", unk_token="<unk>")).numbering,
        opened(save(tmp_path / "b", bytes_, bos_token="<bos>")).numbering,
        opened(save(tmp_path / "c", bytes_)).numbering,  # nothing begins a text
    }
    assert len(found) == 4
    assert opened(save(tmp_path / "d", bytes_tokenizer(), bos_token="<bos>")).numbering in found


# Refusals.


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> None:
        raise ImportError(f"no module named {name}")

    monkeypatch.setattr(transformers_loading.importlib, "import_module", gone)
    with pytest.raises(
        MissingExtraError, match=r'training dictionaries needs torch .*"deltasmith\[features\]"'
    ):
        opened(FAMILY / "base")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "there is no element type 'float16'; use float32 or bfloat16"),
        ({"device": "tpu"}, "there is no device 'tpu'"),
        ({"overrides": ["seed=1"]}, "is no recipe, so no value of it can be set"),
    ],
)
def test_options_that_do_not_exist(options: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        opened(FAMILY / "base", **options)


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    shutil.copytree(FAMILY / "base", tmp_path / "m", ignore=shutil.ignore_patterns("*token*"))
    with pytest.raises(DamagedInputError, match="transformers cannot load it"):
        opened(tmp_path / "m")


@pytest.mark.parametrize(("source", "bytes_each"), [("folder", 4), ("recipe", 6), ("half", 2)])
def test_what_will_not_fit_is_refused_before_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch, source: str, bytes_each: int
) -> None:
    count = sum(spec.size for spec in api.open_model(str(FAMILY / "base")).checkpoint.specs.values())
    monkeypatch.setattr(models, "load_model", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr(models, "free_on_machine", lambda: bytes_each * count - 1)
    asked = RECIPE if source == "recipe" else FAMILY / "base"
    with pytest.raises(ResourceError, match=r"holding the network in .*, before any activation, needs"):
        opened(asked, dtype="bfloat16" if source == "half" else "float32")
