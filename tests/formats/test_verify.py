"""verify: what is wrong is found and named, all of it; what is right passes."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
import toy_writer
from safetensors.numpy import save_file
from toy_writer import SPECS, layout, produce

from deltasmith.errors import DamagedInputError, VerificationError
from deltasmith.formats.verify import UnverifiedError, examine, verify


@pytest.fixture
def model(tmp_path):
    produce(tmp_path / "out")
    return tmp_path / "out"


def shard_of(model, name):
    slot = layout().slots[name]
    return model / layout().shards[slot.shard].name, slot.offset


def overwrite(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def append(path, data):
    with path.open("ab") as file:
        file.write(data)


def edit_json(path, change):
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("threads", [1, 4])
def test_a_good_model_passes(model, threads):
    report = verify(model, threads=threads)
    assert report.ok
    assert report.hashed
    assert (report.tensors, report.shards, report.nbytes) == (
        len(SPECS),
        len(layout().shards),
        layout().nbytes,
    )
    assert report.notes == ()


def test_fault_32_one_flipped_bit_is_found_and_its_tensor_named(model):
    path, offset = shard_of(model, "layers.7.w")
    byte = path.read_bytes()[offset + 1000]
    overwrite(path, offset + 1000, bytes([byte ^ 1]))
    with pytest.raises(VerificationError) as caught:
        verify(model)
    assert isinstance(caught.value, UnverifiedError)
    assert caught.value.exit_code == 6
    assert caught.value.report.problems == (
        "the bytes of layers.7.w are not those that were written (hash differs)",
    )
    assert str(caught.value) == (
        "1 problem: the bytes of layers.7.w are not those that were written (hash differs) in out; "
        "merge again, or fetch the model again"
    )


def test_values_that_are_not_finite_are_counted(model):
    path, offset = shard_of(model, "layers.2.w")
    overwrite(path, offset + 8, np.array([np.nan, np.inf, -np.inf], np.float32).tobytes())
    problems = examine(model, threads=2).problems
    assert "layers.2.w has 3 values that are not finite" in problems
    assert len(problems) == 2


def test_values_that_the_recipe_kept_are_noted(model):
    path, offset = shard_of(model, "layers.2.w")
    overwrite(path, offset, np.array([np.nan], np.float32).tobytes())
    edit_json(model / "manifest.json", lambda m: m["recipe"].update(nonfinite="keep"))
    report = examine(model)
    assert report.notes == ("layers.2.w has 1 values that are not finite",)
    assert len(report.problems) == 1  # the hash


def test_only_the_first_problems_are_in_the_message_and_all_in_the_report(model):
    for i in range(9):
        path, offset = shard_of(model, f"layers.{i}.w")
        overwrite(path, offset, b"\x01\x02\x03\x04")
    with pytest.raises(UnverifiedError, match=r"^9 problems: .*; and 4 more in out") as caught:
        verify(model, threads=3)
    assert len(caught.value.report.problems) == 9
    assert [p.split()[3] for p in caught.value.report.problems] == sorted(f"layers.{i}.w" for i in range(9))


def shard_name(number):
    return layout().shards[number].name


def change_index(change):
    return lambda model: edit_json(model / "model.safetensors.index.json", change)


def change_manifest(change):
    return lambda model: edit_json(model / "manifest.json", change)


DAMAGE = {
    "shard missing": (lambda m: (m / shard_name(1)).unlink(), f"lists {shard_name(1)}, which is not there"),
    "shard short": (lambda m: os.truncate(m / shard_name(1), 5000), "truncated"),
    "shard long": (lambda m: append(m / shard_name(1), b"x"), "follow the last tensor"),
    "shard no file": (lambda m: ((m / shard_name(1)).unlink(), os.mkfifo(m / shard_name(1))), "named pipe"),
    "extra shard": (
        lambda m: save_file({"x": np.zeros(3, np.float32)}, m / "old.safetensors"),
        "old.safetensors is not listed in",
    ),
    "tensor twice": (
        lambda m: save_file({"steps": np.zeros(5, np.int64)}, m / "old.safetensors"),
        "the tensor steps is in",
    ),
    "journal": (
        lambda m: (m / "journal.jsonl").write_bytes(b""),
        "journal.jsonl is left from an unfinished run",
    ),
    "tmp": (lambda m: (m / "config.json.tmp").write_bytes(b""), "left from an unfinished run"),
    "index gone": (lambda m: (m / "model.safetensors.index.json").unlink(), "shards and no model"),
    "index torn": (lambda m: (m / "model.safetensors.index.json").write_bytes(b"{"), "not strict JSON"),
    "index list": (
        lambda m: (m / "model.safetensors.index.json").write_bytes(b'{"weight_map": [1]}'),
        "no weight_map",
    ),
    "index wrong": (change_index(lambda i: i["weight_map"].update(steps=shard_name(0))), "puts steps in"),
    "index path": (
        change_index(lambda i: i["weight_map"].update(steps="../x")),
        "lists ../x, which is not there",
    ),
    "index short": (change_index(lambda i: i["weight_map"].pop("steps")), "does not list the tensor steps"),
    "manifest foreign": (lambda m: (m / "manifest.json").write_bytes(b"{}"), "is not one of deltasmith"),
    "manifest shape": (
        change_manifest(lambda d: d["tensors"]["steps"].update(shape=[6])),
        "has shape [5] instead of [6]",
    ),
    "manifest dtype": (
        change_manifest(lambda d: d["tensors"]["steps"].update(dtype="x")),
        "has dtype int64 instead of x",
    ),
    "manifest shard": (change_manifest(lambda d: d["tensors"]["steps"].update(shard="x")), "instead of x"),
    "manifest entry": (change_manifest(lambda d: d["tensors"].update(steps=3)), "instead of None"),
    "manifest extra": (
        change_manifest(lambda d: d["tensors"].update(gone={})),
        "the tensor gone of manifest.json is missing",
    ),
    "manifest lacks": (
        change_manifest(lambda d: d["tensors"].pop("steps")),
        "does not know the tensor steps",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_kind_of_damage_is_named(model, damage):
    act, words = DAMAGE[damage]
    act(model)
    report = examine(model)
    assert any(words in problem for problem in report.problems), report.problems
    with pytest.raises(VerificationError):
        verify(model)


def test_a_model_of_someone_else_is_checked_as_far_as_possible(tmp_path):
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([1, np.inf], ml_dtypes.bfloat16),
        "c": np.array(3, np.int64),
    }
    save_file(arrays, tmp_path / "model.safetensors")
    report = examine(tmp_path)
    assert not report.hashed
    assert report.problems == ("b has 1 values that are not finite",)
    assert report.notes == (
        "there is no manifest.json: structure and finite values were checked, hashes not",
    )
    (tmp_path / "model-card.txt").write_bytes(b"")
    assert "model-card.txt is named like weights, which confuses some readers" in examine(tmp_path).notes


def test_folders_that_are_no_models(tmp_path):
    with pytest.raises(DamagedInputError, match="there is no such folder"):
        verify(tmp_path / "nowhere")
    assert examine(tmp_path).problems == ("there is no *.safetensors file",)


def test_names_from_files_cannot_reach_the_terminal(model):
    edit_json(model / "manifest.json", lambda m: m["tensors"].update({"evil\x1b[2J\n": {}}))
    (model / "x\x1b.tmp").write_bytes(b"")
    with pytest.raises(VerificationError) as caught:
        verify(model)
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fault_49_empty_scalar_and_large_tensors_are_checked(tmp_path):
    specs = [
        toy_writer.Spec("big", (700_000,), toy_writer.DTYPES["float64"]),
        toy_writer.Spec("empty", (3, 0), toy_writer.DTYPES["bfloat16"]),
        toy_writer.Spec("scalar", (), toy_writer.DTYPES["float16"]),
    ]
    produce(tmp_path / "out", specs=specs)
    assert verify(tmp_path / "out").tensors == 3
