"""Writing safely: OUT is whole and right, or not there; what was interrupted goes on."""

# ruff: noqa: PT012 - what fails is a block: the writer's own

import json
import os
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from toy_writer import (
    DTYPES,
    PARTIAL,
    PLAN,
    SPECS,
    Spec,
    fill,
    interrupted,
    layout,
    manifest,
    names,
    opened,
    produce,
    tree,
    values,
)

from deltasmith.errors import (
    DamagedInputError,
    DeltasmithError,
    InterruptedRunError,
    RefusedError,
    ResourceError,
)
from deltasmith.formats import output as module
from deltasmith.formats.journal import replay
from deltasmith.formats.output import Output
from deltasmith.formats.verify import examine


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    produce(out)
    return tree(out)


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def _raw(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    del header["__metadata__"]
    return {
        n: data[8 + length + e["data_offsets"][0] : 8 + length + e["data_offsets"][1]]
        for n, e in header.items()
    }


def test_a_finished_output_is_right_and_alone(out, tmp_path):
    assert produce(out) == len(SPECS)
    assert names(tmp_path) == ["out"]
    shards = [s.name for s in layout().shards]
    assert len(shards) > 3
    assert names(out) == sorted(
        [
            *shards,
            "model.safetensors.index.json",
            "manifest.json",
            "config.json",
            "README.md",
            "additional_chat_templates",
        ]
    )
    assert (out / "additional_chat_templates/x.jinja").read_bytes() == b"{{ x }}"
    found = {name: array for shard in shards for name, array in _raw(out / shard).items()}
    assert found == {s.name: values(s) for s in SPECS}
    assert examine(out).problems == ()


def test_the_safetensors_package_reads_the_output(out):
    specs = [s for s in SPECS if s.dtype.name != "bfloat16"]
    produce(out, specs=specs)
    arrays = {n: a for shard in sorted(out.glob("*.safetensors")) for n, a in load_file(shard).items()}
    assert {n: a.tobytes() for n, a in arrays.items()} == {s.name: values(s) for s in specs}


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_fault_64_threads_do_not_change_a_byte(out, threads, undisturbed):
    produce(out, threads=threads)
    assert tree(out) == undisturbed


def test_fault_64_shard_size_does_not_change_a_tensor(out):
    produce(out, shard_bytes=10 << 20)
    assert names(out).count("model.safetensors") == 1
    assert "model.safetensors.index.json" not in names(out)
    assert _raw(out / "model.safetensors") == {s.name: values(s) for s in SPECS}


def test_fault_49_a_large_sparse_tensor_is_written_where_it_belongs(out, tmp_path):
    if os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize < 12 << 30:
        pytest.skip("needs 9 GB of (sparse) room")
    spec = Spec("huge", (2**31 + 3,), DTYPES["int32"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "allocate", os.ftruncate)
        output = Output.open(out, layout([spec]), PLAN)
    with pytest.raises(KeyboardInterrupt), output:
        output.write("huge", 4 * (2**31 + 2), b"last")
        shard = output.partial / "model.safetensors"
        with shard.open("rb") as file:
            file.seek(-4, os.SEEK_END)
            assert file.read() == b"last"
        raise KeyboardInterrupt


def test_fault_51_an_interrupted_run_goes_on_where_it_was(out, tmp_path, undisturbed):
    with pytest.raises(InterruptedRunError), opened(out) as output:
        fill(output, SPECS[:5])
        output.write("layers.7.w", 0, b"half")
        raise InterruptedRunError("stopped")
    assert names(tmp_path) == [PARTIAL]
    assert produce(out) == len(SPECS) - 5
    assert tree(out) == undisturbed
    assert names(tmp_path) == ["out"]


def test_a_changed_plan_or_layout_takes_nothing_over(out, tmp_path):
    interrupted(out)
    with pytest.raises(KeyboardInterrupt), Output.open(out, layout(), PLAN[:8] + "f" * 24) as output:
        assert output.finished == {}  # the same folder, another plan
        fill(output, SPECS[:3])
        raise KeyboardInterrupt
    with Output.open(out, layout(shard_bytes=1 << 20), PLAN[:8] + "f" * 24) as output:
        assert output.finished == {}
        assert names(output.partial) == ["journal.jsonl", "model.safetensors"]
    produce(out)
    assert names(tmp_path) == ["out"]


def test_after_a_reboot_only_bytes_that_hash_right_are_believed(out, monkeypatch, undisturbed):
    partial = interrupted(out)
    slot = layout().slots["layers.3.w"]
    shard = partial / layout().shards[slot.shard].name
    with shard.open("r+b") as file:  # as a crash of the machine leaves a page that never reached the disk
        file.seek(slot.offset + 4096)
        file.write(bytes(4096))
    with opened(out) as output:
        assert len(output.finished) == len(SPECS)  # same boot: the pages are the kernel's, and not read again
    monkeypatch.setattr(module, "boot_id", lambda: "another boot")
    with opened(out) as output:
        assert set(output.finished) == {s.name for s in SPECS} - {"layers.3.w"}
    assert set(replay(partial / "journal.jsonl").finished) == set(output.finished)
    assert produce(out) == 1
    assert tree(out) == undisturbed


@pytest.mark.parametrize(("boot", "recheck"), [("", False), ("same", True)])
def test_tensors_are_hashed_again_where_boots_cannot_be_told_apart_or_on_request(
    out, monkeypatch, boot, recheck
):
    monkeypatch.setattr(module, "boot_id", lambda: boot)
    partial = interrupted(out)
    (shard, *_) = sorted(partial.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    with opened(out, recheck=recheck) as output:
        assert len(output.finished) == len(SPECS) - 1


@pytest.mark.parametrize("damage", ["missing", "short", "header", "link"])
def test_a_shard_that_is_not_what_it_was_is_written_again(out, tmp_path, damage, undisturbed):
    partial = interrupted(out)
    shard = partial / layout().shards[1].name
    if damage == "missing":
        shard.unlink()
    elif damage == "short":
        os.truncate(shard, 100)
    elif damage == "header":
        shard.write_bytes(b"\0" + shard.read_bytes()[1:])
    else:
        shard.rename(tmp_path / "elsewhere")
        shard.symlink_to(tmp_path / "elsewhere")
        before = (tmp_path / "elsewhere").read_bytes()
        with pytest.raises(ResourceError):
            opened(out)
        assert (tmp_path / "elsewhere").read_bytes() == before
        return
    assert set(names(partial)) >= {"journal.jsonl"}
    with (
        pytest.raises(KeyboardInterrupt),
        opened(out),
    ):  # and dies at once: the journal must not vouch for zeros
        raise KeyboardInterrupt
    assert produce(out) == len(layout().shards[1].tensors)
    assert tree(out) == undisturbed


def test_leftovers_of_an_earlier_attempt_do_not_travel_along(out, undisturbed):
    partial = interrupted(out)
    (partial / "model-00009-of-00009.safetensors").write_bytes(b"stale")
    (partial / "README.md.tmp").write_bytes(b"stale")
    (partial / "folder").mkdir()
    (partial / "folder" / "x").write_bytes(b"stale")
    produce(out)
    assert tree(out) == undisturbed


def test_what_cannot_be_resumed_is_removed_and_what_can_is_kept(out, tmp_path):
    for error in (RefusedError("NaN"), DamagedInputError("gone")):
        with pytest.raises(DeltasmithError), opened(out) as output:
            fill(output, SPECS[:3])
            raise error
        assert names(tmp_path) == []
    for error in (
        ResourceError("memory"),
        InterruptedRunError("stop"),
        KeyboardInterrupt(),
        ZeroDivisionError(),
    ):
        with pytest.raises(type(error)), opened(out) as output:
            fill(output, SPECS[:3])
            raise error
        assert names(tmp_path) == [PARTIAL]
    with opened(out) as output:
        output.discard()
    assert names(tmp_path) == []


def test_publishing_an_unfinished_model_is_a_bug_that_publishes_nothing(out, tmp_path):
    with pytest.raises(DeltasmithError) as caught, opened(out) as output:
        fill(output, SPECS[:-1])
        output.publish({}, b"{}")
    assert caught.value.exit_code == 70
    assert str(caught.value) == "1 tensors were never finished in steps"
    assert names(tmp_path) == [PARTIAL]


@pytest.mark.parametrize(
    "name",
    [
        "model-x.json",
        "models/x",
        "x.safetensors",
        "../x",
        "/x",
        "a/b/c",
        "",
        "a//b",
        "a\\b",
        "a\n",
        "manifest.json",
        ".",
    ],
)
def test_side_files_have_plain_names_that_nobody_takes_for_weights(out, name):
    with pytest.raises(ValueError, match="cannot be the name of a side file"), opened(out) as output:
        fill(output)
        output.publish({name: b""}, b"{}")


def test_side_files_may_be_copied_from_regular_files_only(out, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with opened(out) as output:
        fill(output)
        with pytest.raises(DamagedInputError, match="named pipe"):
            output.publish({"tokenizer.json": fifo}, manifest(output))
        source = tmp_path / "source"
        source.write_bytes(b"x" * 3_000_000)
        output.publish({"tokenizer.json": source}, manifest(output))
    assert (out / "tokenizer.json").read_bytes() == source.read_bytes()


def test_bytes_outside_a_tensor_are_never_written(out):
    with opened(out) as output:
        for offset, data in ((-1, b"x"), (40, b"x"), (33, b"xxxxxxxx")):
            with pytest.raises(ValueError, match="do not fit into 40"):
                output.write("steps", offset, data)
        with pytest.raises(KeyError):
            output.write("nobody", 0, b"x")
        with pytest.raises(KeyError):
            output.finish("nobody", "")
