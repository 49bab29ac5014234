"""Side files: complete, from one named source, byte for byte, and nothing else."""

import json
import os

import pytest

from deltasmith.errors import DamagedInputError
from deltasmith.formats.publish import output_config, side_files

CONFIG = b'{"model_type": "llama",  "torch_dtype": "float32", "hidden_size": 8}\n'


def folder(path, **files):
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        target = path / name.replace("__", "/").replace("_json", ".json")
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content)
    return path


@pytest.fixture
def base(tmp_path):
    base = folder(
        tmp_path / "base", config_json=CONFIG, generation_config_json=b'{"x" :1}', tokenizer_json=b"base"
    )
    for name in (
        "model.safetensors",
        "model.safetensors.index.json",
        "modeling_x.py",
        "pytorch_model.bin",
        "README.md",
        "manifest.json",
        "chat_template.jinja",
        "training_args.bin",
        "extra.safetensors",
    ):
        (base / name).write_bytes(b"base " + name.encode())
    (base / "LICENSE").write_bytes(b"licence A")
    return base


def contents(side):
    return {n: c if isinstance(c, bytes) else c.read_bytes() for n, c in side.files.items()}


def test_what_goes_along_and_what_does_not(base, tmp_path):
    chat = folder(
        tmp_path / "chat",
        tokenizer_json=b"\xff raw bytes, not even JSON",
        tokenizer_config_json=b"{}",
        config_json=b"{}",
        additional_chat_templates__tool_use=b"",
    )
    (chat / "additional_chat_templates" / "tool_use.jinja").write_bytes(b"{{ tools }}")
    for name in (
        "tokenizer.model",
        "tokenizer.model.v3",
        "qwen.tiktoken",
        "merges.txt",
        "chat_template.jinja",
    ):
        (chat / name).write_bytes(name.encode())
    side = side_files(base, chat, licences={"base": base, "chat": chat})
    assert contents(side) == {
        "config.json": CONFIG,
        "generation_config.json": b'{"x" :1}',
        "LICENSE": b"licence A",
        "tokenizer.json": b"\xff raw bytes, not even JSON",
        "tokenizer_config.json": b"{}",
        "tokenizer.model": b"tokenizer.model",
        "tokenizer.model.v3": b"tokenizer.model.v3",
        "qwen.tiktoken": b"qwen.tiktoken",
        "merges.txt": b"merges.txt",
        "chat_template.jinja": b"chat_template.jinja",
        "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
    }
    assert list(side.files) == sorted(side.files)
    assert side.warnings == ("the base names code of its own (auto_map or *.py), which was not copied",)


def test_code_comes_along_only_when_asked(base):
    side = side_files(base, base, copy_code=True)
    assert contents(side)["modeling_x.py"] == b"base modeling_x.py"
    assert side.warnings == ()


def test_licences_keep_apart_and_come_once(base, tmp_path):
    math = folder(tmp_path / "math", LICENSE=b"licence B", NOTICE=b"notice")
    (math / "LICENSE.txt").write_bytes(b"licence A")
    code = folder(tmp_path / "code", NOTICE=b"notice")
    (code / "LICENSE.md").write_bytes(b"licence C")
    side = side_files(base, None, licences={"base": base, "math": math, "../c o": code})
    assert {n: c for n, c in contents(side).items() if n[0].isupper()} == {
        "LICENSE": b"licence A",
        "LICENSE-math": b"licence B",
        "NOTICE-math": b"notice",
        "LICENSE--c-o.md": b"licence C",
    }


def test_missing_parts_are_warned_of(tmp_path):
    empty = folder(tmp_path / "empty")
    expected = (
        "the base has no config.json, so the output has none",
        "no tokenizer files were found, so the output has none",
    )
    assert side_files(empty, empty).warnings == expected
    assert side_files(None, None).warnings == expected


def test_a_config_that_need_not_change_keeps_its_bytes(base):
    path = base / "config.json"
    assert output_config(path) == CONFIG
    assert output_config(path, dtype="float32") == CONFIG
    assert output_config(path, dequantised=True) == CONFIG


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_new_dtype_is_written_under_the_key_that_the_base_has(tmp_path, key):
    path = tmp_path / "config.json"
    before = {
        "z": 1,
        key: "float32",
        "text_config": {key: "float32", "n": 2},
        "quantization_config": {"dtype": "fp8"},
        "name": "ä",
    }
    path.write_text(json.dumps(before))
    changed = output_config(path, dtype="bfloat16")
    found = json.loads(changed)
    assert found == {**before, key: "bfloat16", "text_config": {key: "bfloat16", "n": 2}}
    assert list(found) == list(before)
    assert "ä".encode() in changed
    del before["quantization_config"]
    assert json.loads(output_config(path, dequantised=True)) == before


def test_a_config_without_a_dtype_stays_without(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": {"dtype": "float32"}, "dtype": null}')
    assert output_config(path, dtype="bfloat16") == path.read_bytes()


@pytest.mark.parametrize("text", [b"{", b"[1]", b'{"a": 1, "a": 2}', b"\xff"])
def test_fault_35_a_damaged_config_is_refused(tmp_path, text):
    path = folder(tmp_path / "m", config_json=text) / "config.json"
    with pytest.raises(DamagedInputError):
        output_config(path)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "LICENSE"])
def test_a_link_out_of_the_model_is_refused(tmp_path, name):
    (tmp_path / "secret").write_bytes(b"{}")
    model = folder(tmp_path / "m")
    (model / name).symlink_to(tmp_path / "secret")
    with pytest.raises(DamagedInputError, match="a link leads out of the model"):
        side_files(model, model)


def test_the_links_of_a_hub_cache_are_followed(tmp_path):
    blobs = folder(tmp_path / "models--o--m" / "blobs", abc=b"{}")
    model = folder(tmp_path / "models--o--m" / "snapshots" / "rev")
    for name in ("config.json", "tokenizer.json"):
        (model / name).symlink_to("../../blobs/abc")
    side = side_files(model, model)
    assert contents(side) == {"config.json": b"{}", "tokenizer.json": b"{}"}
    assert side.files["tokenizer.json"] == blobs / "abc"


def test_fault_37_what_is_no_regular_file_is_refused(tmp_path):
    model = folder(tmp_path / "m")
    os.mkfifo(model / "tokenizer.json")
    with pytest.raises(DamagedInputError, match="no regular file"):
        side_files(None, model)
