"""A report's folder appears whole or not at all, and takes the place of nothing but another report."""

from __future__ import annotations

import pytest

from deltasmith.analysis.publishing import check_report_folder, report_folder
from deltasmith.errors import RefusedError


def write(out, text="{}", **options):
    with report_folder(out, **options) as folder:
        (folder / "report.json").write_text(text)


def test_it_appears_at_the_end(tmp_path):
    out = tmp_path / "deep" / "out"
    with report_folder(out) as folder:
        assert not out.exists()
        (folder / "report.json").write_text("{}")
    assert [p.name for p in tmp_path.rglob("*")] == ["deep", "out", "report.json"]


def test_an_error_leaves_nothing(tmp_path):
    def fail() -> None:
        with report_folder(tmp_path / "out") as folder:
            (folder / "report.json").write_text("{}")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled_and_a_full_one_is_not(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    write(out)
    with pytest.raises(RefusedError, match="exists and is not empty"):
        write(out, "new")
    assert (out / "report.json").read_text() == "{}"
    (out / "old.png").touch()
    write(out, "new", overwrite=True)
    assert [(p.name, p.read_text()) for p in out.iterdir()] == [("report.json", "new")]
    assert list(tmp_path.iterdir()) == [out]


def test_overwriting_takes_no_folder_of_anything_else(tmp_path):
    out = tmp_path / "out"
    write(out)
    (out / "model.safetensors").touch()
    with pytest.raises(RefusedError, match=r"it holds model\.safetensors"):
        write(out, "new", overwrite=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").touch()
    with pytest.raises(RefusedError, match=r"it holds no report\.json"):
        check_report_folder(other, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(RefusedError, match="is a file"):
        check_report_folder(tmp_path / "file", overwrite=True)


def test_what_appears_meanwhile_is_not_lost(tmp_path):
    out = tmp_path / "out"

    def interfere() -> None:
        with report_folder(out):
            out.mkdir()
            (out / "precious").touch()

    with pytest.raises(RefusedError):
        interfere()
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "precious"]
