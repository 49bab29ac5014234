"""`deltasmith loss` from the command line: the text, the files, and one line for everything that is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from deltasmith.analysis.report import FORMAT
from deltasmith.lab import family_folder
from models import check_refusal, draw, run, shapes, tokenizer, write_model, write_recipe

FAMILY = family_folder()
DATA = FAMILY / "items" / "validation_math.jsonl"
FEW = ("--data", DATA, "--limit", 8, "--batch", 1, "--steps", 1)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    edits = [{"drop": {"density": 0.05}}]
    model = {"model": str(FAMILY / "small" / "math"), "label": "math", "edits": edits}
    folder = tmp_path_factory.mktemp("loss")
    return write_recipe(folder / "dare.yaml", {"base": str(FAMILY / "base"), "models": [model]})


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    """Two tiny models whose vocabulary is w0 to w39, one with a word more, one that overflows; and data."""
    root = tmp_path_factory.mktemp("words")
    spaced = tokenizer() | {"pre_tokenizer": {"type": "WhitespaceSplit"}}
    base = draw(0)
    write_model(root / "base", base, tokens=spaced)
    more = draw(1, vocab=41)
    longer = tokenizer(41) | {"pre_tokenizer": {"type": "WhitespaceSplit"}}
    settings = json.loads((root / "base" / "config.json").read_text()) | {"vocab_size": 41}
    write_model(root / "more", more, tokens=longer, settings=settings)
    huge = base | {
        "model.norm.weight": np.full_like(base["model.norm.weight"], 3e38),
        "lm_head.weight": 1000 * base["lm_head.weight"],
    }
    write_model(root / "huge", huge, tokens=spaced)
    write_model(root / "other", draw(2), tokens=spaced)
    (root / "data.txt").write_text("w1 w2 w3 w4\nw5 w6 w7 w8\n")
    assert set(shapes()) == set(base)
    return root


@pytest.fixture
def installed() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")


def test_it_is_listed_and_explains_itself():
    assert "predict and explain what an edit or a merge does to the loss" in run("--help").out
    said = run("loss", "--help")
    assert said.code == 0
    for word in (
        "--from",
        "--second-order",
        "--line-search",
        "--sweep",
        "--save-gradient",
        "--save-gram",
        "arXiv",
    ):
        assert word in said.out


@pytest.mark.usefixtures("installed")
def test_the_answer_comes_first(recipe):
    done = run("loss", recipe, *FEW)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith(
        ("decreased (the loss rises): +0.", "undecided (the interval crosses the margin): +0.")
    )
    assert "nats per token (margin 0.0" in lines[0]
    assert "2 % of the 0." in lines[0]
    assert lines[1].startswith("math 0.")
    assert "→ dare 0." in lines[1]
    assert "on validation_math.jsonl (8 examples" in lines[1]
    for rule in ("left, 1 step", "midpoint, 1 step", "trapezoid, 1 step", "measured"):
        assert any(line.startswith(rule) for line in lines)
    assert any(line.startswith("layer (by the midpoint rule)") for line in lines)
    assert any(line.startswith("model.layers.*.mlp.down_proj.weight") for line in lines)
    assert "note: the first 8 of 120 documents" in lines
    assert "points of the path: 3 / 3" in done.err


@pytest.mark.usefixtures("installed")
def test_json_is_one_document_and_the_folder_holds_the_same(recipe, tmp_path):
    more = ("--rule", "left", "--second-order", "fisher", "--probes", 2, "--margin", 9)
    done = run("loss", recipe, *FEW, *more, "--json", "--out", tmp_path / "out")
    assert (done.code, done.err) == (0, "")
    document = done.document
    written = document.pop("written")
    assert document["format"] == FORMAT
    assert document["verdict"] == "competitive"
    assert [p["rule"] for p in document["predictions"]] == ["left"]
    assert document["second_order"]["probes"] == 2
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == document
    assert written[0].startswith(f"{tmp_path / 'out'}: ")
    quiet = run("loss", recipe, *FEW, "--rule", "left", "--quiet", "--out", tmp_path / "quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    shown = run("loss", recipe, *FEW, *more).out
    assert "second order (fisher): the random edit costs +0." in shown
    assert "in all" not in shown
    half = run("loss", recipe, *FEW, *more, "--set", "scale=0.5").out
    assert "second order (fisher, around dare without its random edits, which changes the loss by " in half
    assert "over data, in all " in half


@pytest.mark.usefixtures("installed")
def test_pictures_are_drawn_where_matplotlib_is(recipe, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    fixed = ("loss", recipe, *FEW, "--rule", "left", "--quiet", "--out", out)
    assert run(*fixed).code == 0
    assert sorted(p.name for p in out.iterdir()) == ["heatmap.png", "path.png", "report.json"]
    check_refusal(run(*fixed), 1, "exists and is not empty", "--overwrite")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run("loss", recipe, *FEW, "--rule", "left", "--out", out, "--overwrite")
    assert done.code == 0
    assert [p.name for p in out.iterdir()] == ["report.json"]
    assert 'pip install "deltasmith[plot]"' in done.out


@pytest.mark.usefixtures("installed")
def test_a_line_search_prints_a_recipe(recipe, tmp_path):
    search = ("--line-search", "-1:1", "--evaluations", 4)
    done = run("loss", recipe, *FEW[:-2], *search, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    first, document = done.out.splitlines()[0], json.loads((tmp_path / "out" / "report.json").read_text())
    assert first.startswith(("extrapolate: α = +", "interpolate: α = -", "stay: α = "))
    search = document["search"]
    assert first.startswith(search["advises"])
    assert ("preset: expo" in done.out) == search["helps"]
    assert ("not shown to help" in first) == (search["alpha"] != 0 and not search["helps"])
    assert document["recipe"]["preset"] == "expo"
    assert len(search["evaluations"]) <= 4
    assert "points of the line search, at most 4" in done.err


def followed(alpha, interval, outcome="minimum", recipe=None):
    from deltasmith.analysis.line_search import Evaluation, LineSearch
    from deltasmith.analysis.lines import Followed
    from deltasmith.analysis.report import DataUsed

    visits = (Evaluation(0.0, -1.0, 2.0, 2.0),)
    search = LineSearch(-1, 1, visits, alpha, outcome, (0.0, alpha), "bracket", -0.1, -0.1, interval)
    return Followed("base", "mix", DataUsed("d", "0", 1, 1, 1, 1), search, recipe)


def test_a_line_search_says_what_to_do(capsys):
    from deltasmith.cli.loss_text import show

    cases = (
        ((0.5, (-0.2, -0.1)), "extrapolate: α = +0.500 (bracket [+0.000, +0.500]), where the loss is lowest"),
        ((-0.5, (-0.2, -0.1), "end"), "where the loss still falls at the end of the range"),
        (
            (-0.5, (0.1, 0.2)),
            "not shown to help: on the half held out the interval of the change is not below 0",
        ),
        ((0.5, (-0.2, 0.0)), "stay: α = +0.500"),
        ((0.5, None), "not shown to help: one chunk was held out, which has no interval"),
        (
            (0.0, (0.0, 0.0), "start"),
            "stay: α = +0.000 (bracket [+0.000, +0.000]), where no visited point has",
        ),
    )
    for case, said in cases:
        show(followed(*case))
        out = capsys.readouterr().out
        assert said in out.splitlines()[0]
        assert ("to use it" in out) == (not out.startswith("stay"))
    show(followed(0.5, (-0.2, -0.1)))
    said = capsys.readouterr().out
    assert "write mix with `deltasmith merge`, and extrapolate that from base with the preset `expo`" in said
    show(followed(0.5, (-0.2, -0.1), recipe={"base": "b", "preset": "expo"}))
    assert "to use it, as a recipe:\nbase: b\npreset: expo\n" in capsys.readouterr().out


@pytest.mark.usefixtures("installed")
def test_a_sweep_prints_a_table(recipe):
    done = run("loss", recipe, *FEW, "--rule", "left", "--sweep", "density=0.2|0.8")
    assert done.code == 0, done.err
    assert done.out.startswith("2 points: ")
    header, *rows = done.out.splitlines()[3:6]
    assert header.split() == ["density", "measured", "95", "%", "interval", "left", "class"]
    assert [row.split()[0] for row in rows] == ["0.2", "0.8"]


@pytest.mark.usefixtures("installed")
def test_statistics_are_saved_of_the_start(recipe, tmp_path):
    done = run("loss", recipe, *FEW, "--rule", "left", "--save-gradient", tmp_path / "g.safetensors")
    assert done.code == 0, done.err
    assert "the gradient of 39 tensors of math over 8 examples" in done.out
    from safetensors.numpy import load_file

    found = load_file(tmp_path / "g.safetensors")
    assert len(found) == 39
    assert found["model.norm.weight"].shape == (96,)


@pytest.mark.usefixtures("installed")
def test_gram_matrices_are_saved_for_the_merge_that_reads_them(recipe, tmp_path):
    saved = tmp_path / "gram.safetensors"
    done = run("loss", recipe, *FEW, "--rule", "left", "--save-gram", saved)
    assert done.code == 0, done.err
    assert "the Gram matrices of " in done.out
    model = {"model": str(FAMILY / "small" / "math"), "label": "math", "statistics": str(saved)}
    merge = {"regmean": {"damping": 1e-4}}  # eight examples have fewer tokens than a layer has inputs
    made = {"base": str(FAMILY / "base"), "models": [model, model | {"label": "again"}], "merge": merge}
    merged = run("merge", write_recipe(tmp_path / "regmean.yaml", made), tmp_path / "out", "--quiet")
    assert merged.code == 0, merged.err


@pytest.mark.usefixtures("installed")
def test_statistics_that_cannot_be_written_are_refused_before_anything_is_loaded(
    recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr("deltasmith.analysis.run.begin", None)
    same = ("--save-gradient", "a.safetensors", "--save-gram", "a.safetensors")
    check_refusal(run("loss", recipe, *FEW, *same), 2, "two statistics cannot be one file")
    taken = tmp_path / "taken.safetensors"
    taken.write_text("mine")
    check_refusal(
        run("loss", recipe, *FEW, "--save-gram", taken), 1, "there is a file already", "--overwrite"
    )
    within = FAMILY / "small" / "math" / "g.safetensors"
    check_refusal(run("loss", recipe, *FEW, "--save-fisher", within), 1, "among the model's own weights")


@pytest.mark.usefixtures("installed")
def test_an_interrupted_sweep_shows_what_is_finished(recipe, tmp_path, monkeypatch):
    from deltasmith.analysis import sweep as sweeping

    inner = sweeping.sweep

    def stopping_after(count):
        def stopped(*arguments, say, stop, **options):
            def heard(what, done, of):
                if what == "points of the sweep" and done == count:
                    stop.ask()

            return inner(*arguments, say=heard, stop=stop, **options)

        monkeypatch.setattr(sweeping, "sweep", stopped)
        out = tmp_path / f"out{count}"
        return run("loss", recipe, *FEW, "--rule", "left", "--sweep", "density=0.2|0.5|0.8", "--out", out)

    done = stopping_after(2)
    said = "the sweep was interrupted after 2 points"
    assert (done.code, len(done.err.splitlines())) == (5, 1)
    assert said in done.err
    assert done.out.startswith("2 points: ")
    assert "note: interrupted: 2 of 3 points are finished" in done.out.splitlines()
    document = json.loads((tmp_path / "out2" / "report.json").read_text())
    assert [point["values"]["density"] for point in document["points"]] == [0.2, 0.5]
    assert "interrupted: 2 of 3 points are finished" in document["notes"]
    nothing = stopping_after(0)
    assert (nothing.code, nothing.out) == (5, "")
    assert not (tmp_path / "out0").exists()


def test_usage(recipe):
    for more in (
        ("--rule", "simpson"),
        ("--steps", 0),
        ("--probes", 0),
        ("--steps", 1_000_000_000),
        ("--probes", 10_001),
        ("--line-search", "-1:1", "--evaluations", 1001),
        ("--batch", 0),
        ("--length", 1),
        ("--second-order", "x"),
        ("--dtype", "float16"),
        ("--line-search", "1"),
        ("--line-search", "0.5:1"),
        ("--line-search", "-1:nan"),
        ("--line-search", "-1:1", "--sweep", "k=0:1:1"),
        ("--line-search", "-1:1", "--second-order", "fisher"),
        ("--line-search", "-1:1", "--evaluations", 2),
    ):
        check_refusal(run("loss", recipe, *FEW[:4], "--json", *more), 2)
    assert run("loss", recipe).code == 2


def test_without_torch_it_names_the_extra(recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for more in ((), ("--line-search", "-1:1"), ("--sweep", "density=0.2|0.8")):
        check_refusal(run("loss", recipe, *FEW, "--json", *more), 2, 'pip install "deltasmith[analysis]"')


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("--margin", -1), 2, "margin is -1; give 0 or more, in nats per token"),
        (("--from", "mth"), 2, "no model 'mth' in the recipe to start from; use --from base or math"),
        (("--device", "tpu"), 2, "there is no device 'tpu'; use cpu, cuda or cuda:N"),
        (("--device", "cuda:99"), 2, "torch sees"),
        (("--memory", "64M"), 4, "a budget of 64 MiB is too small"),
        (("--sweep", "zz=1:2:1"), 2, 'has no "zz" to sweep'),
        (("--set", "scal=2"), 2, "scal"),
        (("--save-gradient", "g.bin"), 2, "name it .safetensors"),
    ],
)
def test_options_that_cannot_be(recipe, more, code, said):
    check_refusal(run("loss", recipe, *FEW, "--rule", "left", "--json", *more), code, said)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "content", "code", "said"),
    [
        ("snow.txt", "☃☃☃\n", 3, "it does not tokenise (all its 3 tokens are unknown)"),
        ("empty.txt", "\n\n", 3, "it holds no document"),
        ("broken.jsonl", '{"text": \n', 3, "broken.jsonl:1"),
        ("fields.jsonl", '{"question": "?"}\n', 3, "`text` is missing"),
        (None, "", 3, "No such file"),
    ],
)
def test_data_that_cannot_be_read(recipe, tmp_path, name, content, code, said):
    path = tmp_path / (name or "none.txt")
    if name:
        path.write_text(content, encoding="utf-8")
    check_refusal(run("loss", recipe, "--data", path, "--json"), code, said)


@pytest.mark.usefixtures("installed")
def test_a_plain_model_needs_a_start(words):
    data = ("--data", words / "data.txt", "--json")
    check_refusal(run("loss", words / "other", *data), 2, "give --from MODEL")
    check_refusal(run("loss", words / "none", "--from", words / "base", *data), 3, "nothing lies at")
    assert run("loss", words / "other", "--from", words / "base", *data).code == 0


@pytest.mark.usefixtures("installed")
def test_statistics_alone_need_no_path(words, tmp_path):
    data, base = ("--data", words / "data.txt", "--batch", 1), words / "base"
    recipe = {"base": str(base), "models": [{"model": str(words / "other")}], "dtype": "float32"}
    unedited = write_recipe(tmp_path / "unedited.yaml", recipe)
    for at, ends in enumerate(((base,), (base, "--from", base), (unedited,))):
        saved = tmp_path / f"{at}.safetensors"
        done = run("loss", *ends, *data, "--save-fisher", saved, "--out", tmp_path / str(at))
        assert done.code == 0, done.err
        assert done.out.startswith("nothing moves: the loss of ")
        assert " nats per token, on data.txt (2 examples, " in done.out
        assert f"{saved}: the Fisher diagonal of " in done.out
        document = json.loads((tmp_path / str(at) / "report.json").read_text())
        assert (document["format"], document["data"]["chunks"]) == ("deltasmith-standing-1", 2)
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()
    moved = run("loss", base, "--from", words / "other", *data, "--json").document
    direct = run("loss", base, *data, "--save-gram", tmp_path / "g.safetensors", "--json").document
    assert direct["loss"] == moved["end_loss"]
    check_refusal(run("loss", base, "--from", base, *data, "--json"), 1, "nothing moves")
    sweep = ("--sweep", "k=0:1:1", "--save-gram", tmp_path / "h.safetensors")
    check_refusal(run("loss", base, *data, *sweep), 2, "a model alone has no path to search or sweep")


def test_quiet_with_nothing_to_write_is_refused(recipe):
    check_refusal(run("loss", recipe, *FEW, "--quiet"), 2, "give --out, --json or --save-* with it")


def test_what_is_neither_a_recipe_nor_a_model(words, tmp_path):
    data = ("--data", words / "data.txt")
    page = tmp_path / "README.md"
    page.write_text("# Hello\n")
    for more in ((), ("--from", words / "base")):
        check_refusal(
            run("loss", page, *data, *more), 2, "neither a recipe (*.yaml) nor a model", "README.md"
        )
    done = run("loss", words / "other", "--from", "base", *data)
    check_refusal(done, 2, "has no recipe that names its base; give the base's folder: --from FOLDER")


@pytest.mark.usefixtures("installed")
def test_a_statistic_is_not_written_into_a_folder_that_is_not_there(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("deltasmith.analysis.run.begin", None)
    place = tmp_path / "none" / "g.safetensors"
    check_refusal(
        run("loss", recipe, *FEW, "--save-gradient", place), 1, "there is no such folder", "make it"
    )
    assert not place.parent.exists()


@pytest.mark.usefixtures("installed")
def test_another_vocabulary(words):
    data = ("--data", words / "data.txt", "--json")
    done = run("loss", words / "more", "--from", words / "base", *data)
    check_refusal(done, 1, "the vocabularies differ", "[40, 16]", "[41, 16]")
    mixed = {"base": str(words / "base"), "models": [{"model": str(words / "more")}]}
    done = run("loss", write_recipe(words / "mixed.yaml", mixed), *data)
    assert done.code == 1
    check_refusal(done, 1, "vocabular")


@pytest.mark.usefixtures("installed")
def test_a_loss_that_is_not_finite(words):
    done = run("loss", words / "huge", "--from", words / "base", "--data", words / "data.txt", "--json")
    check_refusal(done, 1, "is not finite at", "of the path")
    recipe = {
        "base": str(words / "huge"),
        "models": [{"model": str(words / "other"), "label": "o"}],
        "scale": 0.5,
    }
    path = write_recipe(words / "from_huge.yaml", recipe)
    done = run("loss", path, "--data", words / "data.txt", "--json")
    check_refusal(done, 1, "the loss of the base is not finite")


@pytest.mark.usefixtures("installed")
def test_memory_that_does_not_suffice(recipe, monkeypatch):
    monkeypatch.setattr("deltasmith.analysis.networks.free_on_machine", lambda: 1 << 20)
    check_refusal(run("loss", recipe, *FEW, "--json"), 4, "2 networks in float32")
