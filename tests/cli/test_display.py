"""What stands on standard error while items are worked through: lines for logs, a bar on a terminal, or nothing."""

from __future__ import annotations

import sys

import pytest

from deltasmith.cli.display import item_progress


def work(silent: bool) -> None:
    with item_progress(silent) as listener:
        listener.phase("opening", 0)
        listener.phase("chunks", 3)
        listener.advance(1)  # known from an earlier run
        listener.advance(2)


def test_lines_for_logs(capsys: pytest.CaptureFixture[str]) -> None:
    work(silent=False)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == ["opening …", "chunks: 3 to do, 1 of them known", "chunks: 3 / 3"]


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    work(silent=True)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    work(silent=False)
    assert "to do" not in capsys.readouterr().err
