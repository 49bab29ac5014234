import json
import os
from pathlib import Path

import numpy as np
import pytest

from deltasmith.errors import DamagedInputError, RefusedError
from deltasmith.formats.hf_folder import INDEX, open_folder, open_single
from deltasmith.formats.opening import open_model
from formats import attacks
from formats.attacks import BFLOAT16, entry, small_file, write_index, write_model, write_safetensors

ARRAYS = {f"layers.{i}.weight": np.full((2, 3), i, np.float32) for i in range(5)}


def read(checkpoint, name):
    out = np.empty(checkpoint.specs[name].size, np.float32)
    checkpoint.read(name, 0, out)
    return out


def assert_refused(path, error=DamagedInputError, code=3):
    with pytest.raises(error) as caught:
        open_folder(path)
    assert caught.value.exit_code == code
    message = str(caught.value)
    assert str(path) in message
    assert message.isprintable()
    return message


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_one_checkpoint_over_all_shards(tmp_path, shards):
    folder = open_folder(write_model(tmp_path / "m", ARRAYS, shards=shards))
    assert folder.checkpoint.specs.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert np.array_equal(read(folder.checkpoint, name).reshape(2, 3), array)
        assert folder.checkpoint.raw(name, 1, 6) == array.tobytes()[4:]
    assert len(folder.checkpoint.sources) == shards
    assert all(Path(s.path).stat().st_size == s.nbytes for s in folder.checkpoint.sources)
    assert folder.config == {"model_type": "toy"}
    assert folder.warnings == ()
    folder.check_unchanged()


def test_other_files_are_listed_and_weights_are_not(tmp_path):
    write_model(tmp_path, ARRAYS, shards=2)
    for name in ("tokenizer.json", "chat_template.jinja", "LICENSE", "stale.safetensors"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "subfolder").mkdir()
    folder = open_folder(tmp_path)
    assert folder.others == ("LICENSE", "chat_template.jinja", "config.json", "tokenizer.json")


def test_fault_17_no_folder(tmp_path):
    assert "No such file or directory" in assert_refused(tmp_path / "none")
    (tmp_path / "file").write_text("")
    assert "Not a directory" in assert_refused(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_fault_17_unreadable_folder(tmp_path):
    (tmp_path / "m").mkdir(mode=0)
    assert "Permission denied" in assert_refused(tmp_path / "m")


def test_fault_18_no_weights(tmp_path):
    assert "no .safetensors file among nothing" in assert_refused(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    message = assert_refused(tmp_path)
    assert "no .safetensors file among config.json, pytorch_model.bin" in message
    assert "run deltasmith convert on pytorch_model.bin" in message


def test_fault_19_all_missing_shards_at_once(tmp_path):
    write_model(tmp_path, ARRAYS, shards=4)
    for i in (1, 3):
        (tmp_path / f"model-{i:05d}-of-00004.safetensors").unlink()
    message = assert_refused(tmp_path)
    assert "2 of 4 shards" in message
    assert "model-00001-of-00004.safetensors, model-00003-of-00004.safetensors" in message


@pytest.mark.parametrize("cut", [1, 8, 23])
def test_fault_20_truncated_shard_is_named(tmp_path, cut):
    write_model(tmp_path, ARRAYS, shards=2)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    os.truncate(shard, shard.stat().st_size - cut)
    message = assert_refused(tmp_path)
    assert f"48 bytes of tensors announced, {48 - cut} there" in message
    assert "model-00002-of-00002.safetensors" in message


def test_fault_24_a_tensor_in_two_shards(tmp_path):
    write_model(tmp_path, ARRAYS, shards=2)
    both = {n: ARRAYS[n] for n in ("layers.0.weight", "layers.1.weight", "layers.3.weight")}
    write_safetensors(tmp_path / "model-00002-of-00002.safetensors", both)
    message = assert_refused(tmp_path)
    assert '"layers.0.weight" lies in model-00001-of-00002.safetensors and in model-00002' in message


def test_fault_25_index_and_shard_disagree(tmp_path):
    write_model(tmp_path, ARRAYS, shards=2)
    index = json.loads((tmp_path / INDEX).read_text())
    write_index(tmp_path, index["weight_map"] | {"ghost": "model-00001-of-00002.safetensors"})
    assert "disagree on 1 tensors: model-00001-of-00002.safetensors lacks ghost" in assert_refused(tmp_path)
    del index["weight_map"]["layers.3.weight"]
    write_index(tmp_path, index["weight_map"])
    message = assert_refused(tmp_path)
    assert "model-00002-of-00002.safetensors holds layers.3.weight, which the index does not place" in message


@pytest.mark.parametrize("name", attacks.OUTSIDE_NAMES)
def test_fault_26_names_that_leave_the_folder(tmp_path, name):
    write_model(tmp_path / "m", ARRAYS, shards=2)
    small_file(tmp_path / "model-00001-of-00002.safetensors")
    write_index(tmp_path / "m", {"a": name})
    assert "is not a plain name in the folder" in assert_refused(tmp_path / "m")


@pytest.mark.parametrize("linked", ["model-00001-of-00002.safetensors", INDEX, "config.json"])
def test_fault_26_link_to_outside(tmp_path, linked):
    folder = write_model(tmp_path / "m", ARRAYS, shards=2)
    (folder / linked).rename(tmp_path / linked)
    (folder / linked).symlink_to(tmp_path / linked)
    message = assert_refused(folder)
    assert f'"{linked}" is a link to {tmp_path / linked}, outside the folder' in message


def test_fault_26_link_within_the_folder(tmp_path):
    folder = write_model(tmp_path / "m", ARRAYS)
    (folder / "real").mkdir()
    (folder / "model.safetensors").rename(folder / "real" / "x.safetensors")
    (folder / "model.safetensors").symlink_to("real/x.safetensors")
    assert len(open_folder(folder).checkpoint.specs) == 5
    (tmp_path / "alias").symlink_to(folder)
    assert len(open_folder(tmp_path / "alias").checkpoint.specs) == 5


def hub_cache(tmp_path, blob_folder):
    """Lay a model out as the hub's cache does: snapshots of links to blobs."""
    snapshot = tmp_path / "hub" / "models--o--n" / "snapshots" / ("a" * 40)
    write_model(snapshot, ARRAYS)
    blob = tmp_path / blob_folder
    blob.parent.mkdir(parents=True, exist_ok=True)
    (snapshot / "model.safetensors").rename(blob)
    (snapshot / "model.safetensors").symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


@pytest.mark.parametrize(
    "blob",
    [f"hub/models--o--n/blobs/{'b' * 64}", f"hub/blobs/bb/{'b' * 64}", f"hub/models--o--n/blobs/{'c' * 40}"],
)
def test_fault_26_links_of_the_hub_cache_are_followed(tmp_path, blob):
    assert len(open_folder(hub_cache(tmp_path, blob)).checkpoint.specs) == 5


@pytest.mark.parametrize(
    "blob",
    [
        f"hub/models--other--n/blobs/{'b' * 64}",
        f"hub/blobs/xx/{'b' * 64}",
        f"blobs/bb/{'b' * 64}",
        f"hub/models--o--n/refs/{'b' * 64}",
    ],
)
def test_fault_26_links_out_of_the_hub_cache_are_not(tmp_path, blob):
    assert "outside the folder" in assert_refused(hub_cache(tmp_path, blob))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("{", "not strict JSON"),
        ("[]", "a JSON list instead of an object"),
        ('{"weight_map": {"a": 1}}', "not a map from tensor names to file names"),
        ('{"weight_map": ["a"]}', "not a map from tensor names to file names"),
        ("{}", "not a map from tensor names to file names"),
        ('{"weight_map": {}}', "weight_map is empty"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', '"a" appears twice'),
        ("[" * 100_000, "nested too deeply"),
        ("version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
    ],
)
def test_fault_27_indices_that_are_none(tmp_path, content, word):
    write_model(tmp_path, ARRAYS)
    (tmp_path / INDEX).write_text(content)
    message = assert_refused(tmp_path)
    assert word in message
    assert INDEX in message


def test_fault_27_a_million_entries(tmp_path):
    write_model(tmp_path, ARRAYS)
    write_index(tmp_path, {f"t{i}": "model.safetensors" for i in range(1_000_000)})
    message = assert_refused(tmp_path)
    assert "disagree on 1000005 tensors" in message
    assert len(message) < 1000


def test_fault_27_a_huge_index_is_not_even_read(tmp_path):
    write_model(tmp_path, ARRAYS)
    with (tmp_path / INDEX).open("wb") as file:
        file.truncate(1 << 33)
    assert "8589934592 bytes, more than the" in assert_refused(tmp_path)


def test_fault_28_index_wins_over_strays(tmp_path):
    write_model(tmp_path, ARRAYS, shards=2)
    small_file(tmp_path / "model.safetensors")
    small_file(tmp_path / "model-00003-of-00003.safetensors")
    folder = open_folder(tmp_path)
    assert folder.checkpoint.specs.keys() == ARRAYS.keys()
    (warning,) = folder.warnings
    assert "does not mention model-00003-of-00003.safetensors, model.safetensors: not read" in warning


def test_fault_28_several_files_without_an_index(tmp_path):
    small_file(tmp_path / "model-00001-of-00002.safetensors")
    small_file(tmp_path / "model-00002-of-00002.safetensors")
    message = assert_refused(tmp_path)
    assert "2 weight files without an index (model-00001-of-00002.safetensors, model-00002" in message


def test_an_index_with_a_wrong_total_is_a_warning(tmp_path):
    write_model(tmp_path, ARRAYS, shards=2)
    index = json.loads((tmp_path / INDEX).read_text())
    write_index(tmp_path, index["weight_map"], 7)
    assert open_folder(tmp_path).warnings == (f"{INDEX} tells total_size 7, the shards hold 120 bytes",)


def test_fault_29_lfs_pointer_in_a_folder(tmp_path):
    write_model(tmp_path, ARRAYS)
    (tmp_path / "model.safetensors").write_bytes(attacks.LOOKALIKES["Git-LFS pointer"][0])
    assert "this is a Git-LFS pointer and not a safetensors file" in assert_refused(tmp_path)


def test_fault_35_configurations(tmp_path):
    write_model(tmp_path, ARRAYS)
    config = tmp_path / "config.json"
    for content, word in {
        "{": "not strict JSON",
        "[1]": "a JSON list",
        '{"a": 1, "a": 2}': "appears twice",
    }.items():
        config.write_text(content)
        message = assert_refused(tmp_path)
        assert word in message
        assert "config.json" in message
    with config.open("wb") as file:
        file.truncate(1 << 30)
    assert "1073741824 bytes, more than the 16777216" in assert_refused(tmp_path)
    config.unlink()
    folder = open_folder(tmp_path)
    assert (folder.config, folder.warnings) == (None, ("there is no config.json",))


def test_fault_35_code_is_listed_and_never_run(tmp_path):
    config = {"auto_map": {"AutoModel": "modeling_x.X"}, "time_step_limit": [0.0, float("inf")]}
    write_model(tmp_path / "m", ARRAYS, config=config)
    canary = tmp_path / "canary"
    (tmp_path / "m" / "modeling_x.py").write_text(f"open({str(canary)!r}, 'w')")
    folder = open_folder(tmp_path / "m")
    assert not canary.exists()
    assert len(folder.warnings) == 2
    assert "auto_map" in folder.warnings[0]
    assert "modeling_x.py" in folder.warnings[1]
    assert "modeling_x.py" in folder.others


def test_fault_37_a_directory_or_a_pipe_as_weights(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    assert "found a directory where a file was expected" in assert_refused(tmp_path)
    (tmp_path / "model.safetensors").rmdir()
    os.mkfifo(tmp_path / "model.safetensors")
    assert "found a named pipe where a file was expected" in assert_refused(tmp_path)
    small = small_file(tmp_path / "m" / "model.safetensors").parent
    os.mkfifo(small / "config.json")
    assert "named pipe" in assert_refused(small)


def test_other_files_that_lead_outside_are_left_out(tmp_path):
    folder = write_model(tmp_path / "m", ARRAYS)
    (tmp_path / "secret").write_text("x")
    (folder / "tokenizer.json").symlink_to(tmp_path / "secret")
    (folder / "dangling.json").symlink_to("nowhere")
    os.mkfifo(folder / "merges.txt")
    opened = open_folder(folder)
    assert opened.others == ("config.json",)
    assert len(opened.warnings) == 3


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq"},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "mxfp4"},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        {"load_in_8bit": True},
    ],
)
def test_fault_44_packed_by_configuration(tmp_path, quantization):
    write_model(tmp_path, ARRAYS, config={"quantization_config": quantization})
    message = assert_refused(tmp_path, RefusedError, 1)
    assert quantization.get("quant_method", "bitsandbytes") in message
    assert "use the unquantised model" in message


@pytest.mark.parametrize(
    "names",
    [
        {"q.qweight": np.int32, "q.qzeros": np.int32},
        {"q.weight": np.uint8, "q.weight.absmax": np.float32},
        {"q.weight": np.int8, "q.SCB": np.float32},
        {"q.weight_packed": np.int32},
        {"e_blocks": np.uint8, "e_scales": np.uint8},
        {"q.weight": np.int8, "q.weight_scale": np.float32},
    ],
)
def test_fault_44_packed_by_names(tmp_path, names):
    arrays = {n: np.zeros(2, t) for n, t in names.items()}
    write_model(tmp_path, arrays)
    assert next(iter(names)).split(".")[0] in assert_refused(tmp_path, RefusedError, 1)
    with pytest.raises(RefusedError, match="packed quantised weights"):
        open_single(tmp_path / "model.safetensors")


def test_fault_44_mixed_types_are_told_as_they_are(tmp_path):
    arrays = {
        "a": np.ones(2, np.float16),
        "b": np.ones(2, BFLOAT16),
        "c": np.ones(2, np.float64),
        "i": np.arange(2),
    }
    specs = open_folder(write_model(tmp_path, arrays)).checkpoint.specs
    assert [specs[n].dtype.name for n in "abci"] == ["float16", "bfloat16", "float64", "int64"]


def test_fault_33_folder_and_shards_are_watched(tmp_path):
    folder = open_folder(write_model(tmp_path, ARRAYS, shards=3))
    shard = tmp_path / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes() + b"\0")
    with pytest.raises(DamagedInputError, match=r"model-00002-of-00003\.safetensors"):
        folder.check_unchanged()


def test_fault_31_hostile_names_of_files_stay_printable(tmp_path):
    (tmp_path / "\x1b[2Jmodel-1.safetensors").write_bytes(b"")
    (tmp_path / "model-2.safetensors").write_bytes(b"")
    assert "\\x1b[2Jmodel-1" in assert_refused(tmp_path)


# One file.


def test_single_files(tmp_path):
    opened = open_single(small_file(tmp_path / "x.safetensors"))
    assert list(opened.checkpoint.specs) == ["a", "b"]
    np.savez(tmp_path / "x.npz", **{"conv/W": np.ones(3, np.float32)})
    assert list(open_single(tmp_path / "x.npz").checkpoint.specs) == ["conv/W"]


@pytest.mark.parametrize("suffix", ["bin", "pt", "ckpt", "pth", "pkl"])
def test_fault_34_pickles_are_not_opened(tmp_path, suffix):
    canary = tmp_path / "canary"
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(f"cos\nsystem\n(S'touch {canary}'\ntR.".encode())
    with pytest.raises(DamagedInputError) as caught:
        open_single(path)
    assert caught.value.exit_code == 3
    assert f"run deltasmith convert model.{suffix} first" in str(caught.value)
    assert not canary.exists()


def test_single_file_of_another_kind(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF....")
    with pytest.raises(DamagedInputError, match="this is a GGUF file"):
        open_single(tmp_path / "x.gguf")
    (tmp_path / "recipe.yaml").write_text("base: x")
    with pytest.raises(DamagedInputError, match="this kind of file is not read as a model"):
        open_single(tmp_path / "recipe.yaml")


# opening.py: one door for all of it.


def test_open_model_of_each_kind(tmp_path):
    write_model(tmp_path / "base", ARRAYS)
    small_file(tmp_path / "one.safetensors")
    attacks.write_adapter(
        tmp_path / "lora",
        {
            "q_proj.lora_A.weight": np.ones((2, 3), np.float32),
            "q_proj.lora_B.weight": np.ones((4, 2), np.float32),
        },
    )
    base = open_model("base", tmp_path)
    assert (base.name, base.revision, base.folder, base.adapter) == ("base", None, tmp_path / "base", None)
    assert base.config == {"model_type": "toy"}
    assert base.others == ("config.json",)
    assert [f.name for f in base.files] == ["model.safetensors"]
    one = open_model("./one.safetensors", tmp_path)
    assert (one.name, one.folder, one.config) == ("one.safetensors", None, None)
    lora = open_model(str(tmp_path / "lora"))
    assert (lora.name, lora.checkpoint, lora.config) == ("lora", None, None)
    assert [f.name for f in lora.files] == ["adapter_model.safetensors", "adapter_config.json"]
    for model in (base, one, lora):
        model.check_unchanged()
        (source,) = [f for f in model.files if f.name.endswith(".safetensors")]
        os.truncate(source.path, 9)
        with pytest.raises(DamagedInputError, match="its size went from"):
            model.check_unchanged()


def test_open_model_here(tmp_path, monkeypatch):
    write_model(tmp_path / "toy", ARRAYS)
    monkeypatch.chdir(tmp_path / "toy")
    assert open_model(".").name == "toy"


@pytest.mark.parametrize(
    "source", ["none", "./none", "/none/at/all", "a/b/c", "none.safetensors", "~nobody/x", "", "nul\0"]
)
def test_fault_17_nothing_there(tmp_path, source):
    with pytest.raises(DamagedInputError) as caught:
        open_model(source, tmp_path)
    assert caught.value.exit_code == 3
    assert "check the path" in str(caught.value)


def test_a_folder_with_model_and_adapter_is_refused(tmp_path):
    write_model(tmp_path, ARRAYS)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(RefusedError, match="holds a model and an adapter"):
        open_model(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["unet:0:down", "lora_unet_x.lora_down.weight", "x.lora_A.weight", "x.lora.up.weight"]
)
def test_fault_36_lora_files_of_other_tools(tmp_path, name):
    path = tmp_path / "x.safetensors"
    path.write_bytes(attacks.assemble({name: entry("U8", [1], 0, 1)}, b"\0"))
    with pytest.raises(RefusedError, match="are LoRA factors") as caught:
        open_model(str(path))
    assert name in str(caught.value)


def test_fault_36_lora_factors_in_a_folder_are_a_model_only_with_its_config(tmp_path):
    write_model(tmp_path, {"x.lora_A.speech.weight": np.ones(2, np.float32)})
    assert open_model(str(tmp_path)).checkpoint is not None
    (tmp_path / "config.json").unlink()
    with pytest.raises(RefusedError, match="are LoRA factors"):
        open_model(str(tmp_path))


@pytest.mark.parametrize("what", ["named pipe", "character device", "socket"])
def test_fault_37_special_files_as_models(tmp_path, what):
    path = attacks.special_files(tmp_path)[what]
    with pytest.raises(DamagedInputError, match=f"found a {what}"):
        open_model(str(path))
