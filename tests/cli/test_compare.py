"""`deltasmith compare`: files in, a table, a document and a picture out."""

from __future__ import annotations

import json
import re

import pytest

from evaluations import answered, evaluation, right, written
from models import check_refusal, run


@pytest.fixture
def files(tmp_path):
    def tasks(a, b):
        return {
            "math": right(a),
            "code": right(b),
            "text": answered([2.0 - a / 100, 1.5], average="perplexity"),
        }

    return {
        name: written(tmp_path / f"{name}.json", evaluation(name, tasks(*counts)))
        for name, counts in {"base": (10, 30), "one": (50, 20), "two": (80, 21)}.items()
    }


def test_the_table(files):
    told = run(
        "compare", files["one"], files["two"], "--base", files["base"], "--expert", f"math={files['two']}"
    )
    assert told.code == 0
    assert re.search(r"one +50\.0 \[40\.\d, 59\.\d\] +reference", told.out)
    assert re.search(
        r"two +80\.0 \[71\.\d, 86\.\d\] +\+30\.0 \[\+2\d\.\d, \+3\d\.\d\] +<\.001 +better", told.out
    )
    assert re.search(r"two +21\.0 .* 1\.000 +tie", told.out)
    assert re.search(r"two +-20?\.\d .*|two +-9\.0 .*", told.out)
    assert "average (mean over tasks, n=200)" in told.out
    assert "code (base 30.0)" in told.out
    assert "text (base 5." in told.out
    assert re.search(r"two +50\.5 +100\.0 % +21\.0 +code", told.out)
    assert "no difference shown" in told.out
    assert "note: the normalised average leaves out code" in told.out


def test_the_document(files, tmp_path):
    out = tmp_path / "deep" / "c.json"
    told = run(
        "compare", files["one"], files["two"], "--reference", "two", "--json", "--out", out, "--level", ".9"
    )
    assert told.document == json.loads(out.read_text())
    assert told.document["reference"] == "two"
    assert told.document["level"] == 0.9
    assert told.document["tasks"]["math"]["models"]["one"]["difference"]["verdict"] == "worse"
    by_number = run("compare", files["one"], files["two"], "--reference", "2", "--json", "--level", ".9")
    assert by_number.document == told.document


def test_quiet_says_nothing_and_writes(files, tmp_path):
    told = run("compare", files["one"], "--quiet", "--out", tmp_path / "c.json")
    assert (told.code, told.out) == (0, "")
    assert (tmp_path / "c.json").exists()


def test_the_picture(files, tmp_path):
    pytest.importorskip("matplotlib")
    for suffix, magic in {".svg": b"<?xml", ".png": b"\x89PNG"}.items():
        path = tmp_path / f"plot{suffix}"
        assert run("compare", files["one"], files["two"], "--plot", path).code == 0
        assert path.read_bytes().startswith(magic)


def test_models_of_one_name_are_called_by_their_files(tmp_path):
    paths = [
        written(tmp_path / f"{name}.json", evaluation("model", {"t": right(n)}, fingerprint=name))
        for n, name in enumerate(("left", "right"), 5)
    ]
    assert run("compare", *paths, "--json").document["models"] == ["left", "right"]


def test_hostile_names_are_inert(tmp_path):
    name, task = "\x1b[31m[bold]evil[/bold]\n", "[/x] $a$ \x1b]0;t\x07"
    paths = [
        written(tmp_path / f"{n}.json", evaluation(f"{name}{n}", {task: right(n)}, fingerprint=str(n)))
        for n in (10, 60)
    ]
    told = run("compare", *paths)
    assert told.code == 0
    assert r"\x1b[31m[bold]evil[/bold]\n60" in told.out
    assert r"[/x] $a$ \x1b]0;t\x07 (exact_match, n=100)" in told.out
    assert not set("\x1b\x07") & set(told.out)
    lost = run("compare", paths[0], written(tmp_path / "x.json", evaluation(name, {"z": right(1)})))
    check_refusal(lost, 1, "no task is in all 2 results")
    assert "\x1b" not in lost.err


def test_refusals(files, tmp_path):
    other = written(tmp_path / "o.json", evaluation("o", {"math": right(5, digest="other")}))
    check_refusal(run("compare", files["one"], other), 1, "math", "digests differ")
    part = written(tmp_path / "p.json", evaluation("p", {"math": right(5, of=10, asked=100)}))
    check_refusal(run("compare", files["one"], part), 1, "incomplete", "--partial")
    assert "10 of 100 questions" in run("compare", files["one"], part, "--partial").out
    check_refusal(run("compare", tmp_path / "none.json"), 3, "none.json")
    (tmp_path / "bad.json").write_text('{"format": 1}')
    check_refusal(run("compare", tmp_path / "bad.json"), 3, "bad.json")
    check_refusal(run("compare", files["one"], "--reference", "nobody"), 2, "nobody", "one")
    check_refusal(run("compare", files["one"], "--reference", "2"), 2, "1 to 1")
    check_refusal(run("compare", files["one"], "--expert", "math"), 2, "TASK=FILE")
    check_refusal(run("compare", files["one"], "--expert", f"poems={files['two']}"), 1, "poems")
    check_refusal(run("compare", files["one"], "--plot", tmp_path / "x.gif"), 2, "x.gif")
    check_refusal(run("compare"), 2, "RESULT.json")


@pytest.mark.parametrize("option", ["--out", "--plot"])
def test_a_result_is_never_replaced(files, option):
    before = files["two"].read_bytes()
    told = run("compare", files["one"], files["two"], option, files["two"])
    check_refusal(told, 1, "would replace one of the results")
    assert files["two"].read_bytes() == before


def test_unlike_questions_say_what_to_do(files, tmp_path):
    other = written(tmp_path / "o.json", evaluation("o", {"math": right(5, digest="other")}))
    told = run("compare", files["one"], other)
    check_refusal(told, 1, "o and one", "evaluate them with the same file, --limit and --shots")
    part = written(tmp_path / "p.json", evaluation("p", {"math": right(5, of=10, asked=100)}))
    assert "--limit" not in run("compare", files["one"], part).err


def test_an_unfinished_evaluation_is_told_from_a_wrong_path(files, tmp_path):
    (tmp_path / "late.json.journal").write_text("")
    told = run("compare", files["one"], tmp_path / "late.json")
    check_refusal(told, 3, "not finished in", "late.json; repeat the evaluate command")
