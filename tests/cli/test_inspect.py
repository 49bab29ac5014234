"""`deltasmith inspect`: tables and JSON."""

from __future__ import annotations

import shutil

import pytest

from containers import EVERY, changed, packed
from deltasmith.packing import inspect
from models import check_refusal, family, run


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = family(tmp_path_factory.mktemp("cli-inspect") / "models", experts=1)
    packed(made.root, rules=EVERY)
    return made


@pytest.mark.parametrize("group", ["tensor", "layer", "projection", "codec", "model"])
def test_tables(models, group):
    result = run("inspect", models.root / "packed", "--by", group)
    assert result.code == 0
    lines = inspect(models.root / "packed").by(group)
    for line in lines:
        row = next(text for text in result.out.splitlines() if text.split()[:1] == [line.name])
        assert f"{line.elements:,}" in row
        assert f"{line.relative_error:.4g}" in row
    assert sum(text.split()[:1] == ["all"] for text in result.out.splitlines()) == 1
    assert "arrays, % of 16 bit" in result.out
    (last,) = (text for text in result.out.splitlines() if text.startswith("m0 over base (fingerprint "))
    assert last.endswith(f", {100 * inspect(models.root / 'packed').ratio:.1f} % of 16 bit")


def test_by_projection_unless_told_otherwise(models):
    assert (
        run("inspect", models.root / "packed").out
        == run("inspect", models.root / "packed", "--by", "projection").out
    )
    assert run("inspect", models.root / "packed", "--by", "colour").code == 2


def test_as_json(models):
    result = run("inspect", models.root / "packed", "--json")
    assert result.document == inspect(models.root / "packed").as_json()


def test_what_a_file_says_does_not_reach_the_terminal(models, tmp_path):
    """No control characters, and no markup either."""
    shutil.copytree(models.root / "packed", tmp_path / "packed")

    def change(parts):
        parts.document["base"]["name"] = "\x1b[2Jbase"
        parts.document["notes"] = ["a\x1b[31mred\nnote"]
        tensors = parts.document["deltas"]["m0"]["tensors"]
        tensors["[bold]lm_head[/bold]"] = tensors.pop("lm_head.weight")

    result = run("inspect", changed(tmp_path / "packed", change), "--by", "tensor")
    assert result.code == 0
    assert all(line.isprintable() for line in result.out.splitlines())
    assert "[bold]lm_head[/bold]" in result.out


def test_notes(models, tmp_path):
    run(
        "pack",
        models.root / "base",
        models.root / "m0",
        tmp_path / "out",
        "--codec",
        "low_rank:rank=2",
        "--where",
        "*",
        "--quiet",
    )
    assert (
        "\nnote: model.layers.0.input_layernorm.weight and 4 more: lossless instead"
        in run("inspect", tmp_path / "out").out
    )


def test_a_trainers_delta_is_called_so(models, tmp_path):
    run("pack", models.root / "base", models.root / "m0", tmp_path / "out", "--trainer", "xor", "--quiet")
    check_refusal(run("inspect", tmp_path / "out"), 1, "a trainer's delta", "unpack it, with --base")
    check_refusal(run("unpack", tmp_path / "out", tmp_path / "x"), 1, "a trainer's delta", "--base")


def test_arrays_of_several_deltas_count_once_in_all(tmp_path):
    root = family(tmp_path, experts=2).root
    both = (root / "base", root / "m0", root / "m1")
    told = run("pack", *both, tmp_path / "emr", "--codec", "emr", "--json").document
    found = inspect(tmp_path / "emr")
    (whole,) = found.by("model")
    arrays = found.packed.file.specs
    assert whole.nbytes == sum(s.nbytes for n, s in arrays.items() if n != "deltasmith.document")
    assert whole.nbytes == sum(line.nbytes for line in found.lines) - found.shared < found.nbytes
    assert found.as_json()["model"][0]["nbytes"] == whole.nbytes
    assert found.ratio == told["ratio"]
    assert "arrays that several deltas share" in run("inspect", tmp_path / "emr").out
    one = inspect(f"{tmp_path / 'emr'}#m0")
    assert one.shared == 0
    assert one.ratio == found.ratio


def test_what_is_none(models, tmp_path):
    check_refusal(run("inspect", models.root / "m0"), 1, "not a packed delta")
    check_refusal(run("inspect", tmp_path / "nothing"), 3, "nothing lies at")
