"""`deltasmith unpack`: what it says, and what its options do."""

from __future__ import annotations

import re
import shutil

import pytest

from containers import packed, words
from models import check_refusal, family, run


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = family(tmp_path_factory.mktemp("cli-unpack") / "models", experts=1)
    packed(made.root, codec="lossless", where="*")
    return made


def test_in_words_as_json_and_quiet(models, tmp_path):
    result = run("unpack", models.root / "packed", tmp_path / "a")
    assert re.fullmatch(r".*a: 21 tensors, [\d.]+ KiB written in [\d.]+ s\n", result.out)
    result = run("unpack", models.root / "packed", tmp_path / "b", "--json")
    assert result.document["tensors"] == 21
    assert result.err == ""
    result = run("unpack", models.root / "packed", tmp_path / "c", "--quiet")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert (
        words(tmp_path / "a") == words(tmp_path / "b") == words(tmp_path / "c") == words(models.root / "m0")
    )


def test_the_base_may_be_given(models, tmp_path):
    shutil.copytree(models.root / "packed", tmp_path / "far" / "away" / "packed")
    place = tmp_path / "far" / "away" / "packed"
    check_refusal(run("unpack", place, tmp_path / "out", "--quiet"), 1, "give it with --base")
    assert run("unpack", place, tmp_path / "out", "--base", models.root / "base", "--quiet").code == 0
    assert words(tmp_path / "out") == words(models.root / "m0")


def test_shards_threads_memory_overwrite(models, tmp_path):
    options = ("--shard-size", "4K", "--threads", "1", "--memory", "300M", "--quiet")
    assert run("unpack", models.root / "packed", tmp_path / "out", *options).code == 0
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    check_refusal(run("unpack", models.root / "packed", tmp_path / "out", "--quiet"), 1, "--overwrite")
    assert run("unpack", models.root / "packed", tmp_path / "out", "--quiet", "--overwrite").code == 0
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()


def test_phases_are_called_unpacking(models, tmp_path):
    assert run("unpack", models.root / "packed", tmp_path / "out").err.splitlines() == ["unpacking …"]


def test_verify_takes_a_label(models):
    place = models.root / "packed"
    assert run("verify", f"{place}#m0").out == run("verify", place).out
    check_refusal(run("verify", f"{place}#x"), 1, "no delta 'x'")


def test_without_a_base_the_advice_holds_everywhere(models, tmp_path):
    shutil.copytree(models.root / "packed", tmp_path / "far" / "away" / "packed")
    result = run("convert", tmp_path / "far" / "away" / "packed", tmp_path / "out")
    check_refusal(result, 1, "put the base beside it, or name base and delta in a recipe")
    assert "--base" not in result.err


def test_usage(models, tmp_path):
    assert run("unpack", models.root / "packed", tmp_path / "out", "--memory", "nothing", "--quiet").code == 2


def test_what_is_none(models, tmp_path):
    check_refusal(run("unpack", models.root / "m0", tmp_path / "out", "--quiet"), 1, "not a packed delta")
    check_refusal(run("unpack", tmp_path / "nothing", tmp_path / "out", "--quiet"), 3, "nothing lies at")
    check_refusal(
        run("unpack", f"{models.root / 'packed'}#x", tmp_path / "out", "--quiet"), 1, "no delta 'x'"
    )
    assert list(tmp_path.iterdir()) == []
