"""What may be asked of a training, and which members follow from it; no torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deltasmith.errors import DeltasmithError, RecipeError, RefusedError
from deltasmith.features.graph import Graph, Node
from deltasmith.features.members import of_label, plan_members, seed_of
from deltasmith.features.requests import Request, default_k, default_latents

GRAPH = Graph(
    (
        Node("base", None, "base"),
        Node("lua", None, "lua", ("base",)),
        Node("stories", None, "stories", ("base",)),
        Node("merged", None, "merged", ("lua", "stories"), "base", "slerp"),
    )
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("some text")
    return tmp_path


def asked(text: Path, **options: Any) -> Request:
    given: dict[str, Any] = {
        "models": ("base=./base", "lua=./lua"),
        "site": "model.layers.0.mlp.down_proj:in",
        "corpora": (f"english={text / 'text.txt'}",),
        "out": text / "study",
    }
    return Request(**given | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "cold"}, "there is no mode 'cold'; use warm, independent or shared"),
        ({"floors": "some"}, "there is no floors 'some'; use root, all or none"),
        ({"kind": "gated"}, "there is no kind of dictionary 'gated'; use topk, batch-topk or relu-l1"),
        ({"dtype": "float64"}, "there is no element type 'float64'; use float32 or bfloat16"),
        ({"steps": 0}, "steps is 0; give 1 or more"),
        ({"held_out_tokens": 0}, "held out tokens is 0; give 1 or more"),
        ({"seeds": 101}, "seeds is 101; give 100 or fewer"),
        ({"spare": 1.5}, "spare is 1.5; give a share of the latents, from 0 to 1"),
        ({"spare": float("nan")}, "spare is nan; give a share of the latents, from 0 to 1"),
        (
            {"latents": "8 times"},
            "'8 times' is no count of latents; give a number, or a multiple of the width, such",
        ),
        ({"latents": 0}, "0 latents make no dictionary; give --latents from 1 to 4,194,304, or such as 8x"),
        ({"latents": "4194305"}, "4,194,305 latents make no dictionary"),
        ({"latents": "9" * 5000}, f"'{'9' * 80}… (5000 characters)' is no count of latents"),
        ({"latents": "9" * 400 + "x"}, f"'{'9' * 80}… (401 characters)' is no count of latents"),
        ({"latents": "²"}, "'²' is no count of latents"),
        ({"latents": 16, "k": 17}, "k is 17 of 16 latents; let fewer fire"),
        ({"l1": 0.5}, "l1 is the penalty of relu-l1 alone; give --kind relu-l1 with it, or --k"),
        ({"kind": "relu-l1"}, "relu-l1 needs a coefficient; give --l1"),
        ({"kind": "relu-l1", "l1": -1.0}, "l1 is -1; give a coefficient above 0"),
        (
            {"kind": "relu-l1", "l1": 1.0, "k": 8},
            "k says nothing about relu-l1; give --l1, or another --kind",
        ),
        ({"floors": "none"}, "without a floor no rate could be read; use --floors root, or --mode shared"),
        (
            {"mode": "shared", "floors": "all"},
            "in the mode shared one dictionary serves all models; use --floors",
        ),
        (
            {"mode": "independent", "seeds": 0},
            "the mode independent has no floor but other seeds; give --seeds 1",
        ),
        ({"corpora": ()}, "no text was given; give --corpus NAME=PATH, one for each kind of text"),
        ({"corpora": ("english",)}, "'english' is no corpus; write NAME=PATH"),
        ({"corpora": ("../x=y",)}, "'../x=y' is no corpus; write NAME=PATH"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(text: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        asked(text, **options)
    assert str(error.value).startswith(message)
    assert error.value.exit_code == 2


def test_multiples_are_held_against_the_width(text: Path) -> None:
    for multiple, width, least in (("999999x", 320, 319_999_680), ("0.001x", 320, 0)):
        request = asked(text, latents=multiple)
        with pytest.raises(RecipeError, match=rf"{least:,} latents \({multiple} of a width of 320\) make no"):
            request.latents_of(width)
    assert asked(text, latents="8192x").latents_of(320) == 8192 * 320


def test_corpora_must_exist_and_differ_in_name(text: Path) -> None:
    with pytest.raises(RefusedError, match="the corpus 'lua' does not exist"):
        asked(text, corpora=(f"lua={text / 'nothing'}",))
    with pytest.raises(RecipeError, match="two corpora are called 'a'"):
        asked(text, corpora=(f"a={text / 'text.txt'}", f"a={text / 'text.txt'}"))


def test_a_given_root_dictionary_has_its_own_latents_and_must_be_there(text: Path) -> None:
    with pytest.raises(RecipeError, match="the root's dictionary that was given has its own latents"):
        asked(text, root_dictionary=text, latents=64)
    with pytest.raises(RefusedError, match="the root's dictionary is no folder"):
        asked(text, root_dictionary=text / "nothing")


def test_sizes_follow_the_width(text: Path) -> None:
    assert [default_k(width) for width in (64, 255, 256, 767, 768)] == [8, 8, 16, 16, 32]
    assert [default_latents(width) for width in (256, 511, 512, 1024)] == [1024, 2044, 4096, 8192]
    assert asked(text).latents_of(256) == 1024
    assert asked(text, latents="8x").latents_of(256) == 2048
    assert asked(text, latents="1.5x").latents_of(256) == 384
    assert asked(text, latents="100").latents_of(256) == asked(text, latents=100).latents_of(256) == 100
    assert asked(text, latents=4).k_of(256) == 4
    assert asked(text, k=3).k_of(256) == 3
    assert asked(text).steps_of_children == 2000
    assert asked(text, steps=3).steps_of_children == 1
    assert asked(text, child_steps=7).steps_of_children == 7


def test_the_output_is_refused_before_anything_is_read(text: Path) -> None:
    model = text / "model"
    model.mkdir()
    (model / "model.safetensors").touch()
    for out, message in ((model, "the output is the input"), (text / "text.txt", "the output is the input")):
        with pytest.raises(RefusedError, match=message):
            asked(text, out=out, overwrite=True).check_output([model])
    other = text / "other"
    other.mkdir()
    (other / "model.safetensors").touch()
    with pytest.raises(RefusedError, match="the output exists and is not empty"):
        asked(text, out=other).check_output([model])
    with pytest.raises(RefusedError, match="the output to be replaced is no study"):
        asked(text, out=other, overwrite=True).check_output([model])
    for name in ("study.json", "held_out.safetensors"):
        (other / name).touch()
    asked(text, out=other, overwrite=True).check_output([model])


def test_settings_tell_apart_what_decides_the_result_and_nothing_else(text: Path) -> None:
    plain = asked(text).settings()
    for same in ({"memory": 1 << 22}, {"threads": 3}, {"overwrite": True}, {"out": text / "b"}, {"seeds": 2}):
        assert asked(text, **same).settings() == plain
    for other in (
        {"k": 4},
        {"seed": 1},
        {"steps": 5},
        {"mode": "shared"},
        {"site": "x:in"},
        {"device": "cuda"},
    ):
        assert asked(text, **other).settings() != plain


def names(text: Path, **options: Any) -> list[str]:
    return [member.name for member in plan_members(GRAPH, asked(text, **options))]


def test_warm_members_begin_as_their_parents_and_a_merge_as_its_base(text: Path) -> None:
    members = plan_members(GRAPH, asked(text, steps=400, floors="root"))
    told = [(m.name, m.role, m.start, m.steps, m.spare) for m in members]
    assert told == [
        ("base", "model", None, 400, 0.0),
        ("base~again", "again", "base", 66, 0.125),
        ("base~seed1", "seed", None, 400, 0.0),
        ("lua", "model", "base", 66, 0.125),
        ("stories", "model", "base", 66, 0.125),
        ("merged", "model", "base", 66, 0.125),
    ]
    assert [m.name for m in of_label(members, "base")] == ["base", "base~again", "base~seed1"]


def test_floors_and_seeds_choose_members(text: Path) -> None:
    assert names(text, floors="all", seeds=0) == [
        *("base", "base~again", "lua", "lua~again", "stories", "stories~again", "merged", "merged~again"),
    ]
    assert names(text, seeds=2)[:4] == ["base", "base~again", "base~seed1", "base~seed2"]
    assert names(text, mode="independent") == ["base", "base~seed1", "lua", "stories", "merged"]
    assert all(m.start is None for m in plan_members(GRAPH, asked(text, mode="independent")))
    assert names(text, mode="shared", floors="none") == ["base", "lua", "stories", "merged"]


def test_in_the_mode_shared_only_the_root_and_its_floor_are_trained(text: Path) -> None:
    members = plan_members(GRAPH, asked(text, mode="shared"))
    assert [m.name for m in members] == ["base", "base~seed1", "lua", "stories", "merged"]
    assert [m.trained for m in members] == [True, True, False, False, False]
    assert [m.start for m in members] == [None, None, "base", "base", "base"]


def test_a_given_root_dictionary_is_not_trained(text: Path) -> None:
    members = plan_members(GRAPH, asked(text, root_dictionary=text))
    assert [m.trained for m in members] == [False, True, True, True, True, True]
    assert [m.given for m in members] == [True, False, False, False, False, False]


def test_a_member_has_a_seed_of_its_own_whatever_others_there_are(text: Path) -> None:
    members = plan_members(GRAPH, asked(text, floors="all", seeds=3))
    assert len({member.seed for member in members}) == len(members)
    fewer = plan_members(Graph(GRAPH.nodes[:2]), asked(text))
    assert {m.name: m.seed for m in fewer}.items() <= {m.name: m.seed for m in members}.items()
    assert 0 <= seed_of(0, "base") < 1 << 63
    assert seed_of(0, "base") != seed_of(1, "base")


def test_errors_are_of_the_tree() -> None:
    with pytest.raises(DeltasmithError):
        Request(models=(), site="x:in", corpora=(), out=Path("x"))
