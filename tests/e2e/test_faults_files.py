"""Faults of input files: exit 3 (damaged, unsafe) or 1 (a kind that is not merged), never a crash, inputs untouched."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import struct

import numpy as np
import pytest

from deltasmith import api
from deltasmith.errors import DamagedInputError
from formats import attacks
from models import (
    Family,
    assert_refused,
    check_refusal,
    config,
    family,
    hashes,
    read_model,
    run,
    spawn,
    tree,
    write_model,
)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


@pytest.fixture
def models(tmp_path) -> Family:
    return family(tmp_path / "models")


@pytest.fixture
def sharded(tmp_path) -> Family:
    return family(tmp_path / "models", shards=3)


def without_privilege() -> None:
    """Give up root's right to read what its mode forbids (a user other than root has no such right)."""
    drop_from_bounding_set = 24
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(drop_from_bounding_set, capability, 0, 0, 0)


def header_of(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


@pytest.mark.parametrize("kind", ["missing", "file", "empty name"])
def test_fault_17_no_folder(models, kind):
    if kind == "file":
        (models.root / "gone").write_text("x")
    source = "" if kind == "empty name" else "./gone"
    code = 2 if kind == "empty name" else 3
    assert_refused(code, models.recipe(base=source), "gone" if source else "base")


@pytest.mark.parametrize("target", ["m1", f"m1/{WEIGHTS}", "m1/config.json"])
def test_fault_17_unreadable(models, target):
    path = models.root / target
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        result = spawn(
            "merge", models.recipe(), models.root.parent / "out", "--quiet", prefix=without_privilege
        )
    finally:
        path.chmod(mode)
    check_refusal(result, 3, "m1", "ermission denied")
    assert sorted(p.name for p in models.root.parent.iterdir()) == ["models"]


def test_fault_18_no_weights(models):
    (models.root / "m1" / WEIGHTS).unlink()
    assert_refused(3, models.recipe(), "m1", "config.json", "tokenizer.json")


def test_fault_18_only_pickles(models):
    (models.root / "m1" / WEIGHTS).rename(models.root / "m1" / "pytorch_model.bin")
    assert_refused(3, models.recipe(), "deltasmith convert")


def test_fault_19_missing_shards_are_all_listed(sharded):
    for name in SHARDS[:2]:
        (sharded.root / "m1" / name).unlink()
    assert_refused(3, sharded.recipe(), "m1", *SHARDS[:2])


@pytest.mark.parametrize("lost", ["1", "8", "1000", "payload", "half the header", "all"])
def test_fault_20_truncated_shard(sharded, lost):
    path = sharded.root / "m1" / SHARDS[1]
    _, payload = header_of(path)
    size = path.stat().st_size
    header = size - len(payload)
    keep = {"payload": header, "half the header": header // 2, "all": 0}.get(lost)
    os.truncate(path, size - int(lost) if keep is None else keep)
    result = assert_refused(3, sharded.recipe(), SHARDS[1])
    if lost in ("1", "8", "1000"):
        assert str(len(payload)) in result.err
        assert str(len(payload) - int(lost)) in result.err


@pytest.mark.parametrize("tail", [b"\0", b"PK\x05\x06" + b"\0" * 18])
def test_fault_21_extended_shard(models, tail):
    path = models.root / "m1" / WEIGHTS
    path.write_bytes(path.read_bytes() + tail)
    assert_refused(3, models.recipe(), WEIGHTS, f"{len(tail)} bytes follow")


@pytest.mark.parametrize("lie", attacks.BAD_LENGTHS)
def test_fault_22_header_length_lies(models, lie):
    path = models.root / "m1" / WEIGHTS
    path.write_bytes(struct.pack("<Q", attacks.BAD_LENGTHS[lie]) + path.read_bytes()[8:])
    assert_refused(3, models.recipe(), "m1")


def test_fault_24_one_tensor_in_two_shards(sharded):
    values = read_model(sharded.root / "m1")
    name = "model.norm.weight"
    first = read_shard(sharded.root / "m1" / SHARDS[0]) | {name: values[name]}
    attacks.write_safetensors(sharded.root / "m1" / SHARDS[0], first)
    assert_refused(3, sharded.recipe(), name, SHARDS[0])


def read_shard(path):
    from safetensors.numpy import load_file

    return load_file(path)


@pytest.mark.parametrize("change", ["too much in the index", "too much in a shard", "another shard"])
def test_fault_25_index_and_shards_disagree(sharded, change):
    path = sharded.root / "m1" / INDEX
    index = json.loads(path.read_text())
    if change == "too much in the index":
        index["weight_map"]["model.extra.weight"] = SHARDS[0]
    elif change == "too much in a shard":
        del index["weight_map"]["model.norm.weight"]
    else:
        index["weight_map"]["model.norm.weight"] = SHARDS[0]
    path.write_text(json.dumps(index))
    assert_refused(3, sharded.recipe(), INDEX, "extra" if "in the index" in change else "model.norm.weight")


@pytest.mark.parametrize("name", attacks.OUTSIDE_NAMES)
def test_fault_26_index_leads_outside(sharded, name):
    path = sharded.root / "m1" / INDEX
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = name
    path.write_text(json.dumps(index))
    assert_refused(3, sharded.recipe(), INDEX)


def test_fault_26_links_that_lead_outside(models):
    elsewhere = models.root / "elsewhere.safetensors"
    path = models.root / "m1" / WEIGHTS
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert_refused(3, models.recipe(), WEIGHTS, "link")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "7",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": ["x.safetensors"]}}',
        '{"weight_map": ' + "[" * 100_000,
        '{"weight_map": {"a": "b.safetensors", "a": "c.safetensors"}}',
        "\udcff",
    ],
    ids=lambda text: text[:40],
)
def test_fault_27_index_is_nonsense(sharded, text):
    (sharded.root / "m1" / INDEX).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert_refused(3, sharded.recipe(), "m1")


def test_fault_27_index_with_a_million_entries(sharded):
    names = {f"model.layers.{i}.weight": SHARDS[i % 3] for i in range(1_000_000)}
    (sharded.root / "m1" / INDEX).write_text(json.dumps({"weight_map": names}))
    assert_refused(3, sharded.recipe(), "m1", plan=False)


def test_fault_28_stale_shard_is_not_read_and_named(sharded):
    shutil.copy(sharded.root / "m2" / SHARDS[0], sharded.root / "m1" / "model-00001-of-00002.safetensors")
    warnings = run("plan", sharded.recipe(), "--json").document["warnings"]
    assert any("model-00001-of-00002.safetensors" in w for w in warnings)


def test_fault_28_single_file_beside_an_index_is_not_read(sharded):
    attacks.small_file(sharded.root / "m1" / WEIGHTS)
    warnings = run("plan", sharded.recipe(), "--json").document["warnings"]
    assert any(WEIGHTS in w for w in warnings)


def test_fault_28_several_files_without_an_index(sharded):
    (sharded.root / "m1" / INDEX).unlink()
    assert_refused(3, sharded.recipe(), "m1", INDEX)


@pytest.mark.parametrize("kind", attacks.LOOKALIKES)
def test_fault_29_something_else_under_the_name(models, kind):
    data, fix = attacks.LOOKALIKES[kind]
    (models.root / "m1" / WEIGHTS).write_bytes(data)
    assert_refused(3, models.recipe(), "m1", fix)


# Fault 23, a name twice in one header, is among these.
@pytest.mark.parametrize("fault", attacks.BAD_HEADERS)
def test_fault_23_and_30_headers_that_lie(models, fault):
    header, payload, words = attacks.BAD_HEADERS[fault]
    (models.root / "m1" / WEIGHTS).write_bytes(attacks.assemble(header, payload))
    assert_refused(3, models.recipe(), "m1", words)


@pytest.mark.parametrize("fault", attacks.BAD_NAMES)
def test_fault_31_hostile_tensor_names(models, fault):
    header = {attacks.BAD_NAMES[fault]: attacks.entry("U8", [1], 0, 1)}
    (models.root / "m1" / WEIGHTS).write_bytes(attacks.assemble(header, b"\0"))
    assert_refused(3, models.recipe(), "m1")


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "[red]x[/red]", "=cmd|calc", "`x` **y** {{ z }}", "a b"]
)
def test_fault_31_odd_names_are_shown_as_they_are(tmp_path, name):
    base = {name: np.ones((4, 4), np.float32)}
    for label, factor in (("base", 1), ("m0", 2), ("m1", 3)):
        write_model(tmp_path / label, {name: base[name] * factor})
    models = Family(tmp_path, base, (base, base))
    shown = run("plan", models.recipe())
    assert shown.code == 0
    assert name.split()[0][:9] in shown.out
    assert name in {t["name"] for t in run("plan", models.recipe(), "--json").document["tensors"]}
    assert run("diff", tmp_path / "base", tmp_path / "m0").code == 0
    assert run("merge", models.recipe(), tmp_path / "out", "--quiet").code == 0
    assert run("verify", tmp_path / "out").code == 0


def test_fault_32_a_flipped_bit_in_the_output_is_found(models):
    out = models.root.parent / "out"
    assert run("merge", models.recipe(), out, "--quiet").code == 0
    data = bytearray((out / WEIGHTS).read_bytes())
    data[-7] ^= 4
    (out / WEIGHTS).write_bytes(data)
    check_refusal(run("verify", out), 6, "hash")


def test_fault_32_input_hashes_are_recorded_so_that_a_flipped_bit_shows(models):
    first, second = models.root.parent / "first", models.root.parent / "second"
    assert run("merge", models.recipe(), first, "--quiet").code == 0
    path = models.root / "m1" / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-7] ^= 4
    path.write_bytes(data)
    assert run("merge", models.recipe(), second, "--quiet").code == 0
    inputs = [json.loads((out / "manifest.json").read_text())["inputs"] for out in (first, second)]
    changed = [a["label"] for a, b in zip(*inputs, strict=True) if a != b]
    assert changed == ["m1"]
    assert inputs[1][2]["files"][WEIGHTS]["sha256"] == hashlib.sha256(data).hexdigest()


class Meddler:
    """A listener that changes an input when a phase begins."""

    def __init__(self, phase, act):
        self.wanted, self.act, self.done = phase, act, False

    def phase(self, name, total):
        if name == self.wanted and not self.done:
            self.done = True
            self.act()

    def advance(self, nbytes):
        pass


@pytest.mark.parametrize("phase", ["surveying", "merging", "checking the inputs"])
@pytest.mark.parametrize("change", ["truncate", "replace", "rewrite", "remove"])
def test_fault_33_an_input_changes_while_it_is_read(models, phase, change):
    path = models.root / "m1" / WEIGHTS

    def act():
        if change == "truncate":
            os.truncate(path, path.stat().st_size // 2)
        elif change == "remove":
            path.unlink()
        elif change == "replace":
            fresh = path.with_name("fresh")
            fresh.write_bytes(path.read_bytes())
            fresh.replace(path)
        else:
            with path.open("r+b") as file:
                file.seek(-2, os.SEEK_END)
                file.write(b"\1\1")
            os.utime(path, ns=(1, 1))

    place = models.root.parent / "place"
    place.mkdir()
    listener = Meddler(phase, act)
    with pytest.raises(DamagedInputError) as caught:
        api.merge(models.recipe(preset="ties"), place / "out", progress=listener, threads=2)
    assert listener.done
    assert WEIGHTS in str(caught.value)
    assert list(place.iterdir()) == []


def test_fault_35_no_config_is_said(models):
    for label in ("base", *models.labels):
        (models.root / label / "config.json").unlink()
    warnings = run("plan", models.recipe(), "--json").document["warnings"]
    assert any("config.json" in w for w in warnings)
    assert run("merge", models.recipe(), models.root.parent / "out", "--quiet").code == 0


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff", b'{"a": 1, "a": 2}', b"", b"<!DOCTYPE html>"])
def test_fault_35_config_is_no_json(models, data):
    (models.root / "m1" / "config.json").write_bytes(data)
    assert_refused(3, models.recipe(), "config.json")


def test_fault_35_config_is_huge(models):
    os.truncate(models.root / "m1" / "config.json", 64 << 20)
    assert_refused(3, models.recipe(), "config.json", str(64 << 20))


@pytest.mark.parametrize("label", ["base", "m1"])
def test_fault_35_code_is_listed_and_not_run(models, label):
    canary = models.root.parent / "canary"
    (models.root / label / "modeling_evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    auto = config(auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    (models.root / label / "config.json").write_text(json.dumps(auto))
    warnings = " | ".join(run("plan", models.recipe(), "--json").document["warnings"])
    assert "auto_map" in warnings
    assert "modeling_evil.py" in warnings
    out = models.root.parent / "out"
    assert run("merge", models.recipe(), out, "--quiet").code == 0
    assert not canary.exists()
    assert not list(out.glob("*.py"))


@pytest.mark.parametrize("kind", ["named pipe", "directory", "socket", "character device"])
@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_fault_37_no_regular_file(models, tmp_path, kind, name):
    special = attacks.special_files(tmp_path)[kind]
    path = models.root / "m1" / name
    path.unlink()
    if kind == "character device":
        path.symlink_to("/dev/zero")
    else:
        special.rename(path)
    if kind == "directory" and name == "config.json":
        return  # a folder of that name is no configuration, as if there were none
    assert_refused(3, models.recipe(), "m1", name)


ODD = [
    "with space",
    "naïve-模型",
    "new\nline",
    "-dash",
    "a'b\"c",
    "{braces}",
    "trailing.",
    "x" * 200,
    "per%20cent",
    "[b]",
]


@pytest.mark.parametrize("name", ODD)
def test_fault_38_odd_paths_work(tmp_path, name):
    models = family(tmp_path / name / "in")
    out = tmp_path / name / "out"
    result = run("merge", models.recipe(), out, "--quiet")
    assert result.code == 0, result
    result = run("verify", out)
    assert result.code == 0, result
    assert all(line.isprintable() for line in result.out.splitlines())


def test_fault_38_odd_names_of_models_work(models):
    (models.root / "m1").rename(models.root / "new\nline \x1b[2J")
    entries = [{"model": "./m0"}, {"model": "./new\nline \x1b[2J"}]
    assert_refused(2, models.recipe(models=entries), "unprintable")


def test_fault_38_a_path_that_is_too_long(models):
    assert_refused(3, models.recipe(base="./" + "x" * 5000))
    recipe = models.recipe()
    check_refusal(run("merge", recipe, models.root.parent / ("x" * 5000), "--quiet"), 4, "too long")


def test_fault_38_read_only_inputs(models):
    before = tree(models.root)
    recipe = models.recipe()
    folders = [models.root, *(p for p in models.root.iterdir() if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        result = spawn("merge", recipe, models.root.parent / "out", "--quiet", prefix=without_privilege)
        assert result.code == 0, result
        assert {k: v for k, v in tree(models.root).items() if k != "recipe.yaml"} == before
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert hashes(models.root.parent / "out")
