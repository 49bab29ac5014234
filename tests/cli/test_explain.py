"""`methods`, `explain` and `schema`."""

from __future__ import annotations

import json

import pytest

from models import check_refusal, run


def test_methods_as_a_table_and_as_json():
    rows = run("methods", "--json").document
    assert {row["kind"] for row in rows} == {"preset", "edit", "merge", "codec"}
    names = [row["name"] for row in rows if row["kind"] == "preset"]
    assert {"ties", "dare", "della", "dppa", "emr", "slerp", "task_arithmetic"} <= set(names)
    assert names == sorted(names)
    text = run("methods")
    assert text.code == 0
    assert all(name in text.out for name in names)
    assert all(row["summary"] for row in rows)


def test_explain_shows_formula_ranges_paper_and_expansion():
    shown = run("explain", "ties").out
    for words in (
        "density",
        "default 0.2",
        "arXiv 2306.01708",
        "keep_largest",
        "elect",
        "When not to use it",
    ):
        assert words in shown


@pytest.mark.parametrize("dialect", ["paper", "authors", "mergekit"])
def test_explain_knows_dialects(dialect):
    told = run("explain", "della", "--dialect", dialect, "--json").document
    assert told["dialect"] == dialect
    assert ("epsilon" in {f["name"] for f in told["fields"]}) == (dialect == "mergekit")


def test_unknown_names_and_dialects():
    check_refusal(run("explain", "tis"), 2, "ties")
    check_refusal(run("explain", "xyzzy"), 2, "deltasmith methods")
    check_refusal(run("explain", "regmean", "--dialect", "mergekit"), 2, "paper")
    check_refusal(run("explain", "ties", "--dialect", "french"), 2, "french")


def test_the_schema_is_valid_and_refers_to_itself_only():
    schema = run("schema").document
    recipe = schema["definitions"]["recipe"]
    assert recipe["type"] == "object"
    assert {"base", "models", "merge", "preset", "scale"} <= set(recipe["properties"])
    text = json.dumps(schema)
    definitions = schema["definitions"]
    for reference in text.split('"$ref": "')[1:]:
        path = reference.split('"')[0]
        assert path.startswith("#/")
        assert path == "#" or path.rsplit("/", 1)[1] in definitions
    assert "draft-07" in schema["$schema"]


def test_the_schema_knows_every_preset():
    text = run("schema").out
    for row in run("methods", "--json").document:
        assert row["kind"] == "codec" or f'"{row["name"]}"' in text


@pytest.mark.parametrize("name", ["claq", "codec:low_rank", "codec:bitdelta", "codec:emr"])
def test_explain_tells_a_codec_from_a_method_of_its_name(name):
    text = run("explain", name).out
    assert text.startswith(f"{name.removeprefix('codec:')} (codec)")
    assert "--codec" in text
    assert run("explain", name, "--json").document["name"] == name.removeprefix("codec:")
    assert "(codec)" not in run("explain", "low_rank").out


def test_every_codec_is_listed_and_explained():
    from deltasmith.codecs.catalogue import CODECS, codec_class

    rows = {row["name"] for row in run("methods", "--json").document if row["kind"] == "codec"}
    assert rows == set(CODECS)
    for name in CODECS:
        told = run("explain", f"codec:{name}", "--json").document
        assert [field["name"] for field in told["fields"]] == list(codec_class(name).model_fields)
        assert all(field["meaning"] for field in told["fields"])


def test_an_unknown_codec_is_a_usage_error_with_a_suggestion():
    check_refusal(run("explain", "codec:bitdelt"), 2, "bitdelt", "did you mean bitdelta?")
    check_refusal(run("explain", "bitdelt"), 2, 'codec "bitdelt"', 'did you mean "bitdelta"?')


def test_a_method_points_to_the_codec_of_its_name():
    last = "There is also a codec of this name: deltasmith explain codec:low_rank"
    assert run("explain", "low_rank").out.splitlines()[-1] == last
    for name in ("ties", "codec:low_rank", "claq"):
        assert "There is also" not in run("explain", name).out


def test_codecs_have_no_dialects():
    rows = run("methods", "--json").document
    assert all((row["dialects"] == []) == (row["kind"] == "codec") for row in rows)
