"""A study in the making: what is finished stays, what is damaged or strange is forgotten, checkpoints are whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltasmith.errors import InterruptedRunError, RefusedError
from deltasmith.features.checkpoints import Workplace, digest

# ruff: noqa: PT012 - the folder's fate is decided where the block is left


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def interrupted(out: Path, key: str = "k", parts: tuple[str, ...] = ("a", "b")) -> Path:
    """Finish some parts and be interrupted; return the partial folder."""
    with pytest.raises(InterruptedRunError), Workplace.open(out, key) as place:
        for name in parts:
            place.finish(
                name, f"key of {name}", {f"saes/{name}/cfg.json": name.encode()}, {"name": name, "x": 0.1}
            )
        raise InterruptedRunError("enough")
    return place.staging.partial


def test_finished_parts_are_found_again_and_only_under_their_keys(tmp_path: Path) -> None:
    partial = interrupted(tmp_path / "study")
    with Workplace.open(tmp_path / "study", "k") as place:
        assert place.staging.partial == partial
        assert place.known("a", "key of a") == {"name": "a", "x": 0.1}
        assert place.known("a", "another key") is None
        assert place.known("c", "key of c") is None
    assert not partial.exists()  # left without an error, and without publishing


def test_another_key_begins_afresh_and_leaves_the_other_alone(tmp_path: Path) -> None:
    partial = interrupted(tmp_path / "study", "one")
    with Workplace.open(tmp_path / "study", "two") as place:
        assert place.finished == {}
        assert place.staging.partial != partial
    assert partial.is_dir()


def test_a_part_whose_file_changed_is_forgotten(tmp_path: Path) -> None:
    partial = interrupted(tmp_path / "study")
    (partial / "saes/a/cfg.json").write_bytes(b"A")
    with Workplace.open(tmp_path / "study", "k") as place:
        assert sorted(place.finished) == ["b"]


def test_a_torn_journal_is_believed_up_to_the_tear(tmp_path: Path) -> None:
    partial = interrupted(tmp_path / "study")
    journal = partial / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-3])
    with Workplace.open(tmp_path / "study", "k") as place:
        assert sorted(place.finished) == ["a"]


def test_a_refusal_keeps_what_can_be_used_again_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(RefusedError), Workplace.open(tmp_path / "study", "k") as place:
        raise RefusedError("no")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RefusedError), Workplace.open(tmp_path / "study", "k") as place:
        place.finish("a", "key", {"x.json": b"{}"}, {})
        raise RefusedError("no")
    with Workplace.open(tmp_path / "study", "k") as place:
        assert place.known("a", "key") == {}


def test_publishing_drops_what_does_not_belong(tmp_path: Path) -> None:
    interrupted(tmp_path / "study", parts=("a", "b"))
    (tmp_path / "study.partial-k/checkpoint.safetensors").write_bytes(b"old")
    with Workplace.open(tmp_path / "study", "k") as place:
        assert place.publish(["b"], {"study.json": b"{}"}) == ()
    found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert found == ["study/saes/b/cfg.json", "study/study.json"]
    assert not (tmp_path / "study/saes/a").exists()


def test_two_runs_cannot_write_one_study(tmp_path: Path) -> None:
    with (
        Workplace.open(tmp_path / "study", "k"),
        pytest.raises(RefusedError, match="is writing this output"),
        Workplace.open(tmp_path / "study", "k"),
    ):
        pass


def test_a_link_in_the_place_of_the_partial_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "study.partial-k").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedError, match="is a link"), Workplace.open(tmp_path / "study", "k"):
        pass
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_checkpoint_belongs_to_one_key_and_is_whole_or_nothing(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(InterruptedRunError), Workplace.open(tmp_path / "study", "k") as place:
        state = {"w": torch.arange(6.0).reshape(2, 3).T, "n": torch.tensor(3)}
        place.save("me", 7, state)
        raise InterruptedRunError("enough")
    with Workplace.open(tmp_path / "study", "k") as place:
        assert place.saved("you") is None
        step, found = place.saved("me")
        assert step == 7
        assert torch.equal(found["w"], state["w"])
        assert int(found["n"]) == 3
        path = place.read("checkpoint.safetensors")
        path.write_bytes(path.read_bytes()[:40])
        assert place.saved("me") is None
        place.save("me", 8, state)
        place.finish("me", "me", {}, {})
        assert place.saved("me") is None  # what is finished needs none


def test_digests_tell_values_apart_and_not_their_order(tmp_path: Path) -> None:
    assert digest({"a": 1, "b": 2.5}) == digest({"b": 2.5, "a": 1})
    assert len({digest(1), digest("1"), digest(1.5), digest([1]), digest(1, None), digest(None, 1)}) == 6
