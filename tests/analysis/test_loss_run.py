"""The whole analysis on the bundled family: what is measured, predicted, taken apart, and noted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

import deltasmith
from deltasmith.analysis.networks import load
from deltasmith.analysis.run import loss
from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError, RefusedError, ResourceError
from deltasmith.lab import family_folder
from models import write_recipe

FAMILY = family_folder()
DATA = FAMILY / "items" / "validation_math.jsonl"
FEW = {"data": DATA, "limit": 12, "batch": 2, "steps": 2}


def mapping(*edits, models=("small/math",), **fields):
    labels = [Path(model).name for model in models]
    entries = [
        {"model": str(FAMILY / model), "label": label, "edits": list(edits)}
        for model, label in zip(models, labels, strict=True)
    ]
    return {"base": str(FAMILY / "base"), "models": entries} | fields


@pytest.fixture(scope="module")
def dare():
    return loss(mapping({"drop": {"density": 0.07}}), **FEW, second_order="fisher", probes=2)


def mean_loss(folder: Path) -> float:
    """Take the loss of the family's items without any of the analysis: answers and the end, token by token."""
    loaded = load(folder)
    inner = loaded.tokenizer
    total = count = 0.0
    for line in DATA.read_text().splitlines()[:12]:
        item = json.loads(line)
        prompt = inner.encode(item["prompt"]).ids
        ids = torch.tensor([(*inner.encode(item["prompt"] + item["answer"]).ids, inner.end)])
        with torch.no_grad():
            scores = loaded.network(input_ids=ids).logits[0].double().log_softmax(-1)
        for at in range(len(prompt), ids.shape[1]):
            total -= float(scores[at - 1, ids[0, at]])
            count += 1
    return total / count


def test_losses_are_those_of_the_models(dare):
    assert dare.start_loss.value == pytest.approx(mean_loss(FAMILY / "small" / "math"), abs=1e-6)
    assert dare.base_loss == pytest.approx(mean_loss(FAMILY / "base"), abs=1e-6)
    assert dare.measured.value == pytest.approx(dare.end_loss.value - dare.start_loss.value, abs=1e-12)
    assert (dare.start, dare.end, dare.data.file) == ("math", "the recipe", "validation_math.jsonl")
    assert (dare.data.examples, dare.data.chunks, dare.data.unit) == (12, 6, "token")


def test_the_end_is_what_merge_writes(dare, tmp_path):
    deltasmith.merge(mapping({"drop": {"density": 0.07}}), tmp_path / "out")
    assert dare.end_loss.value == pytest.approx(mean_loss(tmp_path / "out"), abs=1e-6)


def test_predictions_come_near_and_are_taken_apart(dare):
    assert [p.grid.rule for p in dare.predictions] == ["left", "midpoint", "trapezoid"]
    left, middle, trapezoid = dare.predictions
    for p in dare.predictions:
        assert math.fsum(p.contributions.values()) == pytest.approx(p.change.value, abs=1e-12)
        assert p.error == pytest.approx(p.change.value - dare.measured.value, abs=1e-15)
        assert p.change.low <= p.change.value <= p.change.high
        assert len(p.contributions) == 39
    assert abs(middle.error) < 0.1 * abs(dare.measured.value) < 10 * abs(left.error)
    assert left.change.value < middle.change.value < trapezoid.change.value  # a convex path
    assert [t for t, _ in dare.along] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert dare.along[0][1] == dare.start_loss.value
    assert dare.along[-1][1] == dare.end_loss.value


def test_the_change_of_every_chunk_is_kept(dare):
    assert len(dare.changes) == len(dare.weights) == 6
    assert sum(dare.weights) == dare.data.tokens
    assert np.average(dare.changes, weights=dare.weights) == pytest.approx(dare.measured.value, abs=1e-12)


def test_the_class_and_its_margin(dare):
    assert dare.verdict == "decreased"
    assert dare.margin == pytest.approx(0.02 * (dare.base_loss - dare.start_loss.value))
    assert dare.margin_reason.startswith("2 % of the 0.")
    assert any("this is one draw (seed 0)" in note for note in dare.notes)
    assert any("comes from 6 chunks and is rough" in note for note in dare.notes)


def test_the_second_order_is_there_for_random_edits_alone(dare):
    assert dare.second_order.kind == "fisher"
    assert 0.2 < dare.second_order.total / dare.measured.value < 5
    assert set(dare.second_order.excess) == set(dare.predictions[0].contributions)
    trimmed = mapping({"keep_largest": {"density": 0.2}})
    found = loss(trimmed, **FEW, rules=("left",), second_order="hessian")
    assert found.second_order is None
    assert any(note.startswith("no mean over masks: no edit of the recipe is random") for note in found.notes)
    assert not any("one draw" in note for note in found.notes)


def test_the_start_alone_foretells_a_small_step_to_second_order():
    near = mapping({"amplify": {"factor": 0.9}}, dtype="float32")
    found = loss(near, **FEW | {"steps": 1}, rules=("left",), second_order="hessian", dtype="float64")
    slope = found.predictions[0].change.value
    assert math.isclose(sum(found.expansion.first.values()), slope, rel_tol=1e-6)
    curvature = sum(found.expansion.second.values())
    missing = found.measured.value - slope
    assert abs(missing) > 1e-6
    assert math.isclose(curvature, missing, rel_tol=0.2)  # what is left is of third order
    assert found.as_json()["expansion"]["total"] == found.expansion.total


def test_a_merge_starts_from_the_base_and_a_model_where_it_is_told(tmp_path):
    recipe = write_recipe(tmp_path / "three.yaml", mapping(models=("small/math", "small/code"), scale=0.5))
    merged = loss(recipe, **FEW, rules=("midpoint",))
    assert (merged.start, merged.end, merged.verdict) == ("base", "three", "improved")
    assert (merged.margin, merged.base_loss) == (0.01, None)
    tuned = loss(FAMILY / "small" / "math", start=str(FAMILY / "base"), **FEW, rules=("left",))
    assert (tuned.start, tuned.end, tuned.verdict) == ("base", "math", "improved")
    assert tuned.start_loss == merged.start_loss
    labelled = loss(recipe, start="math", **FEW, rules=("left",))
    assert labelled.start == "math"
    assert labelled.base_loss == pytest.approx(merged.start_loss.value, abs=1e-9)


def test_margins_seeds_and_changes_are_taken(dare):
    few = FEW | {"rules": ("left",), "steps": 1}
    found = loss(
        mapping({"drop": {"density": 0.07}}),
        **few,
        margin=9.0,
        seed=5,
        overrides=["models.math.edits=[]", "scale=0.9"],
    )
    assert (found.verdict, found.margin_reason, found.base_loss) == ("competitive", "as asked for", None)
    assert found.measured.value != dare.measured.value
    other = loss(mapping({"drop": {"density": 0.07}}), **few, margin=9.0, seed=5)
    assert other.measured.value != dare.measured.value
    assert any("(seed 5)" in note for note in other.notes)


def test_one_chunk_decides_nothing():
    found = loss(mapping({"drop": {"density": 0.07}}), **FEW | {"batch": 12, "steps": 1}, rules=("left",))
    assert found.verdict == found.predictions[0].verdict == "undecided"
    assert math.isnan(found.measured.low)
    assert any(note.startswith("the data are one chunk") and "--batch" in note for note in found.notes)
    json.dumps(found.as_json(), allow_nan=False)


@pytest.mark.parametrize(("dtype", "near"), [("float64", 1e-5), ("bfloat16", 0.1)])
def test_other_element_types(dare, dtype, near):
    found = loss(mapping({"drop": {"density": 0.07}}), **FEW, rules=("midpoint",), dtype=dtype)
    assert found.end_loss.value == pytest.approx(dare.end_loss.value, rel=near)
    assert found.end_loss.value != dare.end_loss.value
    assert found.prediction().change.value == pytest.approx(dare.prediction().change.value, rel=3 * near)


def test_rounding_is_bounded_and_told():
    """A tiny step is mostly rounding in bfloat16, and none of it in float32."""
    tiny = mapping(scale=1.002)
    options = FEW | {"rules": ("left",), "steps": 1}
    notes = loss(tiny, **options).notes
    assert any("rounded to bfloat16, which makes up to about" in note for note in notes)
    assert not any("rounded" in note for note in loss(tiny | {"dtype": "float32"}, **options).notes)


def test_a_request_to_stop():
    stop = Stop()
    stop.ask()
    with pytest.raises(InterruptedRunError, match="run the same command again"):
        loss(mapping(scale=2.0), **FEW, stop=stop)


def test_memory_that_does_not_suffice(monkeypatch):
    monkeypatch.setattr("deltasmith.analysis.networks.free_on_machine", lambda: 1 << 20)
    with pytest.raises(ResourceError, match="holding 2 networks in float32"):
        loss(mapping(scale=2.0), **FEW)


def test_memory_that_gives_out_on_the_way(monkeypatch):
    def burst(*arguments, **options):
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr("deltasmith.analysis.run.walk", burst)
    with pytest.raises(ResourceError, match="use --batch 1 or less"):
        loss(mapping(scale=2.0), **FEW)


def test_nothing_moves():
    with pytest.raises(RefusedError, match="nothing moves"):
        loss(mapping(), **FEW)


def test_it_is_a_call_of_the_package():
    assert deltasmith.loss is loss
    assert np.isfinite(loss(mapping(scale=1.5), **FEW | {"steps": 1}, rules=("left",)).measured.value)


def test_classifiers_are_analysed_per_example(tmp_path):
    """Arrays instead of texts; an edit of one classifier on top of it."""
    import transformers

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    image = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 3}
    for seed, name in enumerate(("base", "tuned")):
        torch.manual_seed(seed)
        network = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, **image))
        network.save_pretrained(tmp_path / name)
    rng = np.random.default_rng(0)
    pixels, labels = rng.normal(size=(9, 1, 8, 8)).astype(np.float32), np.arange(9) % 3
    np.savez(tmp_path / "data.npz", pixel_values=pixels, labels=labels)
    model = {"model": str(tmp_path / "tuned"), "edits": [{"keep_largest": {"density": 0.2}}]}
    found = loss(
        {"base": str(tmp_path / "base"), "models": [model]}, data=tmp_path / "data.npz", batch=1, steps=8
    )
    assert (found.start, found.data.unit, found.data.tokens, found.data.chunks) == ("tuned", "example", 9, 9)
    assert found.prediction().change.value == pytest.approx(found.measured.value, abs=2e-3)
    with torch.no_grad():
        start = transformers.ViTForImageClassification.from_pretrained(tmp_path / "tuned")
        scores = start(pixel_values=torch.from_numpy(pixels)).logits.log_softmax(-1)
    assert found.start_loss.value == pytest.approx(-float(scores[range(9), labels].mean()), abs=1e-5)
