"""Classifiers of images and sequences over arrays from a file."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from deltasmith.analysis.classification import (  # noqa: E402
    ClassificationChunks,
    classification_loss,
    load_classifier,
    read_arrays,
    sampled_classification_loss,
)
from deltasmith.analysis.networks import direction  # noqa: E402
from deltasmith.analysis.path import walk  # noqa: E402
from deltasmith.analysis.rules import Grid  # noqa: E402
from deltasmith.analysis.torch_objective import TorchObjective  # noqa: E402
from deltasmith.errors import DamagedInputError, RecipeError, RefusedError  # noqa: E402
from deltasmith.lab import family_folder  # noqa: E402

GENERATOR = np.random.default_rng(0)
PIXELS = GENERATOR.standard_normal((5, 1, 8, 8)).astype(np.float32)
LABELS = np.array([0, 2, 1, 1, 0])


def vit(seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    image = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 3}
    config = transformers.ViTConfig(**{**sizes, **image, **options})
    return transformers.ViTForImageClassification(config)


@pytest.fixture
def folders(tmp_path):
    start, end = vit(), vit()
    with torch.no_grad():
        for p in end.parameters():
            p += 0.1 * torch.randn_like(p)
    for name, network in (("start", start), ("end", end)):
        network.save_pretrained(tmp_path / name)
    return tmp_path


def saved(tmp_path, **arrays):
    np.savez(path := tmp_path / "data.npz", **arrays)
    return path


def test_a_path_between_two_image_classifiers(folders):
    path = saved(folders, pixel_values=PIXELS, labels=LABELS)
    examples = read_arrays(path)
    assert (examples.name, examples.notes) == ("data.npz", ())
    assert examples.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    start, end = load_classifier(folders / "start"), load_classifier(folders / "end")
    assert (start.name, start.tokenizer, start.context) == ("start", None, None)
    laid = ClassificationChunks.of(examples, start.network, 2)
    assert laid.counts == (2.0, 2.0, 1.0)
    with torch.no_grad():
        logits = end.network(pixel_values=torch.from_numpy(PIXELS)).logits.log_softmax(-1)
    there = -float(logits[range(5), LABELS].mean())
    objective = TorchObjective(
        start.network, direction(start.network, end.network), laid.chunks, laid.counts, classification_loss
    )
    walked = walk(objective, [Grid("midpoint", 8)])
    assert walked.loss(1) == pytest.approx(there, abs=1e-5)
    assert walked.predicted(Grid("midpoint", 8)) == pytest.approx(walked.measured, abs=2e-3)
    assert abs(walked.measured) > 0.02


def test_a_sequence_classifier_reads_ids_and_mask(tmp_path):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=9,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=2,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    network = load_classifier(tmp_path / "model", dtype="float64").network
    ids, mask = (
        np.array([[1, 2, 3], [4, 5, 0]], np.int32),
        np.array([[True, True, True], [True, True, False]]),
    )
    examples = read_arrays(
        saved(tmp_path, input_ids=ids, attention_mask=mask, labels=np.array([0, 1], np.uint8))
    )
    (chunk,) = ClassificationChunks.of(examples, network, 8).chunks
    short = network(input_ids=torch.tensor([[4, 5]])).logits[0].log_softmax(-1)[1]
    long = network(input_ids=torch.tensor([[1, 2, 3]])).logits[0].log_softmax(-1)[0]
    found = classification_loss(network, chunk)
    assert found.dtype == torch.float64
    assert float(found.detach()) == pytest.approx(-float((short + long).detach()) / 2, abs=1e-6)


def test_floats_take_the_networks_type_and_the_limit_is_a_note(tmp_path):
    path = saved(tmp_path, pixel_values=PIXELS.astype(np.float16), labels=LABELS)
    examples = read_arrays(path, limit=3)
    assert examples.notes == ("the first 3 of 5 examples",)
    laid = ClassificationChunks.of(examples, vit().double(), 2)
    assert laid.chunks[0].inputs["pixel_values"].dtype == torch.float64
    assert laid.counts == (2.0, 1.0)


def test_sampled_labels_give_the_entropy_on_average(tmp_path):
    network = vit().eval()
    (chunk,) = ClassificationChunks.of(
        read_arrays(saved(tmp_path, pixel_values=PIXELS, labels=LABELS)), network, 5
    ).chunks
    with torch.no_grad():
        logits = network(**chunk.inputs).logits
        entropy = -float((logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean())
        losses = [float(sampled_classification_loss(network, chunk, key)) for key in range(200)]
    assert abs(np.mean(losses) - entropy) < 4 * np.std(losses) / 200**0.5
    assert len(set(losses)) > 10


# What is refused.

HOLE = PIXELS.copy()
HOLE[3, 0, 2, 2] = np.nan


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pixel_values": PIXELS}, "it has no array `labels`"),
        ({"labels": LABELS}, "it has labels alone"),
        ({"pixel_values": PIXELS, "labels": LABELS / 1.0}, "`labels` is float64 of shape [5]"),
        ({"pixel_values": PIXELS, "labels": LABELS[:, None]}, "`labels` is int64 of shape [5, 1]"),
        ({"pixel_values": PIXELS[:0], "labels": LABELS[:0]}, "`labels` is int64 of shape [0]"),
        ({"pixel_values": PIXELS[:4], "labels": LABELS}, "`pixel_values` has 4 examples, and `labels` has 5"),
        (
            {"pixel_values": np.float32(1), "labels": LABELS},
            "`pixel_values` has 0 examples, and `labels` has 5",
        ),
        ({"pixel_values": HOLE, "labels": LABELS}, "`pixel_values` is not finite in example 3"),
        ({"pixel_values": np.array(["a"] * 5), "labels": LABELS}, "`pixel_values` is <U1"),
        (
            {"pixel_values": np.array([{}] * 5), "labels": LABELS},
            "it is no .npz archive of plain arrays (Object",
        ),
    ],
)
def test_bad_arrays_are_refused_by_name(tmp_path, arrays, message):
    path = saved(tmp_path, **arrays)
    with pytest.raises(DamagedInputError) as caught:
        read_arrays(path)
    assert str(caught.value).startswith(message)
    assert f" in {path}; " in str(caught.value)


def test_bad_files_are_refused(tmp_path):
    (path := tmp_path / "data.npz").write_bytes(b"no archive")
    with pytest.raises(DamagedInputError, match=r"it is no \.npz archive"):
        read_arrays(path)
    np.save(tmp_path / "one.npy", PIXELS)
    with pytest.raises(DamagedInputError, match="one array, and no archive"):
        read_arrays(tmp_path / "one.npy")
    whole = saved(tmp_path, pixel_values=PIXELS, labels=LABELS).read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(DamagedInputError, match=r"it is no \.npz archive"):
        read_arrays(path)
    with pytest.raises(DamagedInputError, match="cannot be read"):
        read_arrays(tmp_path / "none.npz")
    with pytest.raises(RecipeError, match="limit is 0"):
        read_arrays(path, limit=0)


def test_what_the_network_does_not_know_is_refused(tmp_path):
    network = vit()

    def laid(**arrays):
        return ClassificationChunks.of(read_arrays(saved(tmp_path, **arrays)), network, 2)

    with pytest.raises(DamagedInputError, match="example 4 has the label 3, and the network knows 0 to 2"):
        laid(pixel_values=PIXELS, labels=np.array([0, 1, 2, 0, 3]))
    with pytest.raises(DamagedInputError, match="example 0 has the label -1"):
        laid(pixel_values=PIXELS, labels=LABELS - 1)
    with pytest.raises(DamagedInputError, match=r"the network takes no `images` .*`pixel_values`"):
        laid(images=PIXELS, labels=LABELS)
    with pytest.raises(RecipeError, match="batch is 0"):
        ClassificationChunks.of(read_arrays(saved(tmp_path, pixel_values=PIXELS, labels=LABELS)), network, 0)
    network.config.problem_type = "regression"
    with pytest.raises(RefusedError, match="are not the classes of one label"):
        laid(pixel_values=PIXELS, labels=LABELS)


def test_a_language_model_is_no_classifier():
    with pytest.raises(RefusedError, match=r"no classifier of images or sequences \(LlamaForCausalLM\)"):
        load_classifier(family_folder() / "base")
