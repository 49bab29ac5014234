"""A distillation from container to container, on the bundled family."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from deltasmith.distillation.documents import prepare
from deltasmith.distillation.run import distill
from deltasmith.engine.workers import Stop
from deltasmith.errors import (
    DamagedInputError,
    InterruptedRunError,
    RecipeError,
    RefusedError,
)
from deltasmith.evaluate.llama import Llama, load_folder
from deltasmith.formats.opening import open_model
from deltasmith.formats.packed import open_packed
from deltasmith.formats.packed_model import PackedModel
from deltasmith.lab.tokens import CharTokenizer
from deltasmith.packing import pack

FAMILY = Path(__file__).parents[2] / "src/deltasmith/family"
FINE = FAMILY / "small/math"
DATA = FAMILY / "items/validation_math.jsonl"
BRIEF: Any = {"steps": 6, "batch": 2, "checks": 2, "lr": 3e-4}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack an expert beside its base, where the base is found."""
    folder = tmp_path_factory.mktemp("packed")
    shutil.copytree(FAMILY / "base", folder / "base")
    pack(folder / "base", FINE, folder / "math", threads=1)
    return folder / "math"


def arrays_of(path: Path) -> dict[str, bytes]:
    delta = open_packed(path).delta()
    return {
        f"{name}::{part}": bytes(delta.source(name).whole(part))
        for name in delta.names
        for part in delta.source(name).specs
    }


@pytest.fixture(scope="module")
def distilled(packed: Path) -> tuple[Path, Any]:
    out = packed.parent / "distilled"
    return out, distill(packed, out, model=FINE, data=DATA, settings=BRIEF)


def test_only_scales_change_and_the_loss_falls(packed: Path, distilled: tuple[Path, Any]) -> None:
    out, result = distilled
    before, after = arrays_of(packed), arrays_of(out)
    assert list(before) == list(after)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name in before if name.endswith("::scale")}
    assert (result.tensors, result.scales, result.steps) == (28, 28, 6)
    assert result.after < result.before
    assert result.as_json()["loss_after"] == result.after
    assert result.notes == ("pieces of 96 tokens, the model's longest input",)


def test_the_history_is_in_the_container(packed: Path, distilled: tuple[Path, Any]) -> None:
    out, result = distilled
    (entry,) = open_packed(out).document.sources["math"]["distilled"]
    assert entry["loss_before"] == pytest.approx(result.before, rel=1e-6)
    assert entry["loss_after"] == pytest.approx(result.after, rel=1e-6)
    assert (entry["steps"], entry["lr"], entry["length"], entry["documents"]) == (6, 3e-4, 96, 120)
    assert len(entry["data_sha256"]) == 64
    assert [step for step, _ in entry["validation"]] == [0, 3, 6]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["recipe"]["distilled"] == [entry]
    old = json.loads((packed / "manifest.json").read_text())
    assert manifest["inputs"] == old["inputs"]
    hashes = open_packed(out).document.hashes
    assert {n: t["xxh3_128"] for n, t in manifest["tensors"].items()}.items() >= hashes.items()
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in packed.iterdir())


def test_the_errors_told_are_those_of_the_new_scales(distilled: tuple[Path, Any]) -> None:
    opened = open_packed(distilled[0])
    delta = opened.delta()
    base, fine = (open_model(str(p)).checkpoint for p in (FAMILY / "base", FINE))
    assert base is not None
    assert fine is not None
    for name in delta.names[3:8]:
        record = delta.tensors[name]
        if record.squared_error is None:
            continue
        size = record.spec.size
        a, b, near = (np.empty(size, np.float32) for _ in range(3))
        base.read(name, 0, a)
        fine.read(name, 0, b)
        delta.decoder(name).read(0, near)
        assert record.squared_error == pytest.approx(float(((b - a - near).astype(float) ** 2).sum()))


def test_the_loss_is_that_of_the_packed_model_against_the_fine_tuned_one(distilled: tuple[Path, Any]) -> None:
    """Computed once more without torch, from what the container decodes to."""
    config = json.loads((FINE / "config.json").read_text())
    base = open_model(str(FAMILY / "base")).checkpoint
    assert base is not None
    model = PackedModel.over(open_packed(distilled[0]).delta(), base)
    near = {name: np.empty(spec.size, np.float32) for name, spec in model.specs.items()}
    for name, out in near.items():
        model.read(name, 0, out)
    shaped = {name: out.reshape(model.specs[name].shape) for name, out in near.items()}
    networks = Llama.from_tensors(config, shaped), load_folder(FINE)
    tokenizer = CharTokenizer.load(FINE)
    data = prepare(DATA, lambda text: [config["bos_token_id"], *tokenizer.encode(text)], 96, seed=0)
    total = count = 0.0
    for piece in data.validation:
        student, teacher = (network.logits(np.array([piece])) for network in networks)
        total += float(np.square(student - teacher).mean()) * len(piece)
        count += len(piece)
    assert distilled[1].after == pytest.approx(total / count, rel=1e-3)


def test_a_second_distillation_adds_to_the_history_and_never_loses(
    distilled: tuple[Path, Any], tmp_path: Path
) -> None:
    out, first = distilled
    wild = {"steps": 2, "batch": 2, "checks": 1, "lr": 1.0}
    second = distill(
        out, tmp_path / "again", base=FAMILY / "base", model=FINE, data=DATA, settings=wild, length=96
    )
    assert second.before == pytest.approx(first.after)
    assert (second.step, second.after) == (0, second.before)
    assert arrays_of(tmp_path / "again") == arrays_of(out)
    assert len(open_packed(tmp_path / "again").document.sources["math"]["distilled"]) == 2
    assert second.notes == ()


@pytest.mark.parametrize("codec", ["bitdelta:scale=row", "residual_bits:passes=2"])
def test_rows_and_passes(codec: str, tmp_path: Path) -> None:
    pack(FAMILY / "base", FINE, tmp_path / "packed", codec=codec, where="*.mlp.*", threads=1)
    result = distill(
        tmp_path / "packed", tmp_path / "out", base=FAMILY / "base", model=FINE, data=DATA, settings=BRIEF
    )
    assert result.after < result.before
    assert result.tensors == 12
    assert result.scales == (2 * 12 if "passes" in codec else 4 * (320 + 320 + 96))


def test_what_is_refused(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: Any = {"model": FINE, "data": DATA, "settings": BRIEF}
    out = tmp_path / "out"
    with pytest.raises(RefusedError, match="is not what was packed"):
        distill(packed, out, **options | {"model": FAMILY / "small/code"})
    with pytest.raises(DamagedInputError, match="not the base it was packed against"):
        distill(packed, out, base=FAMILY / "small/code", **options)
    for field, value in {"steps": 0, "batch": 0, "lr": 0.0, "schedule": "linear"}.items():
        with pytest.raises(RecipeError, match=field):
            distill(packed, out, **options | {"settings": {field: value}})
    with pytest.raises(RecipeError, match="length is 1"):
        distill(packed, out, length=1, **options)
    with pytest.raises(RecipeError, match="no device 'tpu'"):
        distill(packed, out, device="tpu", **options)
    pack(FAMILY / "base", FINE, tmp_path / "exact", codec="lossless", threads=1)
    with pytest.raises(RefusedError, match="no scales to learn"):
        distill(tmp_path / "exact", out, base=FAMILY / "base", **options)
    stop = Stop()
    stop.ask()
    with pytest.raises(InterruptedRunError):
        distill(packed, out, stop=stop, **options)
    assert not out.exists()
    out.mkdir()
    (out / "mine").write_text("kept")
    monkeypatch.setattr("deltasmith.distillation.training.train", None)  # refused before anything is computed
    with pytest.raises(RefusedError, match="not empty"):
        distill(packed, out, **options)
    assert [p.name for p in tmp_path.iterdir()].count("out") == 1
