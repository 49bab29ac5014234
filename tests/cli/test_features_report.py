"""`deltasmith features report`: one page, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from models import check_refusal, run


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from features.made_studies import made_study

    return made_study(tmp_path_factory.mktemp("made") / "study", tokens=2000).folder


def test_a_page_is_written_and_its_size_told(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    done = run("features", "report", study, "--out", out, "--features", "5")
    assert done.code == 0, done.err
    assert done.out.startswith(f"{out}: ")
    assert done.out.endswith("KiB, opens in any browser\n")
    page = out.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "•" not in page


def test_redacted_and_quiet(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    done = run("features", "report", study, "--out", out, "--features", "5", "--redact", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert '"redacted":true' in out.read_text(encoding="utf-8")


def test_an_earlier_page_is_replaced_only_when_asked(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert run("features", "report", study, "--out", out, "--features", "1").code == 0
    refused = run("features", "report", study, "--out", out)
    check_refusal(refused, 1, "the output exists")
    assert run("features", "report", study, "--out", out, "--features", "1", "--overwrite").code == 0


def test_what_is_no_study_is_said_to_be_none(tmp_path: Path) -> None:
    check_refusal(
        run("features", "report", tmp_path, "--out", tmp_path / "a.html"), 3, "there is no study.json"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_missing_match_sweep_or_pattern_file_is_named(study: Path, tmp_path: Path) -> None:
    for option in ("--match", "--sweep", "--patterns"):
        done = run("features", "report", study, "--out", tmp_path / "a.html", option, tmp_path / "absent")
        assert done.code == 3, option
        assert "absent" in done.err


def test_a_file_of_another_kind_is_told_how_to_be_made_again(study: Path, tmp_path: Path) -> None:
    (tmp_path / "match").mkdir()
    (tmp_path / "match" / "features.json").write_text("merge: slerp\n")
    (tmp_path / "slerp.yaml").write_text("merge: slerp\n")
    (tmp_path / "list.json").write_text("[]")
    for option, file, command in (
        ("--match", "match", "features match`"),
        ("--sweep", "slerp.yaml", "features sweep` wrote, or run it again"),
        ("--sweep", "list.json", "features sweep` wrote, or run it again"),
        ("--patterns", "slerp.yaml", "features match --find` again"),
    ):
        done = run("features", "report", study, "--out", tmp_path / "a.html", option, tmp_path / file)
        check_refusal(done, 3, command)
        assert "fetch" not in done.err


def test_quiet_is_silent_but_for_one_line_of_an_error(study: Path, tmp_path: Path) -> None:
    done = run("features", "report", study, "--out", tmp_path, "--quiet")
    check_refusal(done, 1, "the output is a folder")
    assert (done.out, len(done.err.splitlines())) == ("", 1)
