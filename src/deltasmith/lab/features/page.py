"""The page `docs/features.md`: tables and plots of features, written between two marks of a page by hand."""

from __future__ import annotations

from pathlib import Path

from deltasmith.errors import DamagedInputError
from deltasmith.lab.features.figures import RESULTS, Results, load_features
from deltasmith.lab.features.sections import sections

__all__ = ["write_features_page"]

_BEGIN, _END = "<!-- features -->", "<!-- /features -->"
_HEAD = "# Features through fine-tuning and merging\n\n"


def write_features_page(place: Path, page: Path) -> list[Path]:
    """Write the results in `place`, a file or its folder, into `page` between its marks, and the plots beside it.

    Text outside the marks stays; a page that does not exist begins with a title. Same results, same text. Raises
    DamagedInputError where there are no results, or the page has one mark without the other.
    """
    results = load_features(place / RESULTS if place.is_dir() else place)
    text = page.read_text(encoding="utf-8") if page.is_file() else f"{_HEAD}{_BEGIN}\n{_END}\n"
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise DamagedInputError(f"it has no {_BEGIN} … {_END}", where=str(page), fix="put the marks back")
    plots = page.with_suffix("")
    plots.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(sections(results, plots.name)).strip()
    page.write_text(f"{before}{begin}\n\n{lines}\n\n{end}{after}", encoding="utf-8")
    _draw(results, plots)
    return [page, *sorted(plots.glob("*.svg"))]


def _draw(results: Results, plots: Path) -> None:
    from deltasmith.lab.features.pictures import edges_picture, sweep_picture

    edges_picture(plots / "edges.svg", results.runs)
    sweep_picture(plots / "sweep.svg", results.runs)
