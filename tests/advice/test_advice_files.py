"""Scores, tokens, and the recipe as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltasmith.advice.scoring import read_scores
from deltasmith.advice.tokens import token_differences
from deltasmith.advice.writing import refuse_occupied, write_recipe
from deltasmith.errors import RecipeError, RefusedError, ResourceError
from deltasmith.formats.opening import open_model
from evaluations import answered, evaluation, right
from models import config, draw, tokenizer, write_model


def written(folder: Path, name: str, **tasks: Any) -> str:
    path = folder / name
    path.write_text(json.dumps(evaluation(name, tasks).as_json()), encoding="utf-8")
    return str(path)


def test_the_share_dare_keeps(tmp_path: Path) -> None:
    expert, pruned = written(tmp_path, "e.json", t=right(80)), written(tmp_path, "p.json", t=right(60))
    (score,) = read_scores([f"{expert},{pruned}"], ["math"])
    assert (score.label, score.tasks) == ("math", ("t",))
    assert score.kept == pytest.approx(0.75)
    assert score.low < 0.75 < score.high < 0.9
    (same,) = read_scores([f"code={expert},{expert}"], ["math", "code"])
    assert (same.label, same.kept) == ("code", 1.0)


def test_tasks_count_the_same_and_perplexities_do_not(tmp_path: Path) -> None:
    losses = answered([1.0, 2.0], average="perplexity")
    expert = written(tmp_path, "e.json", a=right(100), b=right(50), c=losses)
    pruned = written(tmp_path, "p.json", a=right(100), b=right(0), c=losses)
    (score,) = read_scores([f"{expert},{pruned}"], ["m"])
    assert score.kept == pytest.approx(1.0 / 1.5)
    assert score.tasks == ("a", "b")


def test_scores_that_cannot_be_paired(tmp_path: Path) -> None:
    expert, other = written(tmp_path, "e.json", t=right(80)), written(tmp_path, "o.json", u=right(60))
    digest, none = (
        written(tmp_path, "d.json", t=right(60, digest="x")),
        written(tmp_path, "n.json", t=right(0)),
    )
    with pytest.raises(RefusedError, match="no task in common"):
        read_scores([f"{expert},{other}"], ["m"])
    with pytest.raises(RefusedError, match="digests differ"):
        read_scores([f"{expert},{digest}"], ["m"])
    with pytest.raises(RefusedError, match="answers nothing right"):
        read_scores([f"{none},{expert}"], ["m"])
    for text, labels in (
        (expert, ["m"]),
        (f"{expert},{expert}", ["m", "n"]),
        (f"x={expert},{expert}", ["m"]),
    ):
        with pytest.raises(RecipeError, match=r"is not \[LABEL=\]EXPERT"):
            read_scores([text], labels)


def test_differences_of_tokens(tmp_path: Path) -> None:
    arrays = draw(0)
    base = open_model(str(write_model(tmp_path / "base", arrays, settings=config(eos_token_id=1))))
    words = tokenizer()
    words["added_tokens"] = [{"id": 40, "content": "<call>"}]
    other = write_model(tmp_path / "other", arrays, settings=config(eos_token_id=2), tokens=words)
    (tmp_path / "base" / "special_tokens_map.json").write_text('{"eos_token": "</s>"}')
    (other / "special_tokens_map.json").write_text(
        '{"eos_token": {"content": "<end>"}, "pad_token": "<pad>"}'
    )
    found = list(token_differences(base, open_model(str(other)), "m"))
    assert found == [
        "m has 1 token(s) that the base lacks: '<call>'",
        "eos_token is '</s>' in the base and '<end>' in m",
        "eos_token_id is 1 in the base and 2 in m",
    ]
    assert list(token_differences(base, base, "m")) == []


def test_a_recipe_reads_from_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("base", "math"):
        (tmp_path / name).mkdir()
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path)
    models = [{"model": "math", "label": "a"}, {"model": "someone/model", "label": "b"}]
    out = Path("recipes/r.yaml")
    write_recipe({"base": "base", "models": models, "merge": "sum", "scale": 0.5}, "why\nwhence", out)
    text = out.read_text(encoding="utf-8")
    assert text.startswith("# why\n# whence\nbase: ../base\n")
    assert "../math" in text
    assert "model: someone/model" in text
    assert [p.name for p in Path("recipes").iterdir()] == ["r.yaml"]


def test_places_that_are_taken(tmp_path: Path) -> None:
    taken = tmp_path / "r.yaml"
    taken.write_text("mine")
    refuse_occupied(taken, overwrite=True)
    refuse_occupied(tmp_path / "new.yaml", overwrite=False)
    with pytest.raises(RefusedError, match="give --overwrite"):
        refuse_occupied(taken, overwrite=False)
    with pytest.raises(RefusedError, match="it is a folder"):
        refuse_occupied(tmp_path, overwrite=True)
    with pytest.raises(ResourceError, match="does not exist"):
        refuse_occupied(tmp_path / "none" / "r.yaml", overwrite=False)
