"""The page `docs/loss.md`: tables and plots of predicted and measured losses, between two marks of a page by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltasmith.errors import DamagedInputError
from deltasmith.lab.loss.example import EXAMPLE, draw_example
from deltasmith.lab.loss.figures import Regime
from deltasmith.lab.loss.sections import sections
from deltasmith.lab.rows import Results, load_results

__all__ = ["BUNDLED", "PICTURED", "write_loss_page"]

BUNDLED, PICTURED = "loss.json", "loss-vision.json"
"""Result files: of the bundled family, and of the vision models."""
_BEGIN, _END = "<!-- loss -->", "<!-- /loss -->"
_HEAD = "# What an edit does to the loss\n\n"


def write_loss_page(folder: Path, page: Path) -> list[Path]:
    """Write the results in `folder` into `page`, between its marks, and the plots into a folder of its name beside it.

    Text outside the marks stays; a page that does not exist begins with a title. Same results, same text. Raises
    DamagedInputError where `folder` holds no results, or the page one mark without the other.
    """
    found = [load_results(path) for name in (BUNDLED, PICTURED) if (path := folder / name).is_file()]
    if not found:
        raise DamagedInputError("it holds no results", where=str(folder), fix="run `deltasmith lab loss`")
    text = page.read_text(encoding="utf-8") if page.is_file() else f"{_HEAD}{_BEGIN}\n{_END}\n"
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise DamagedInputError(f"it has no {_BEGIN} … {_END}", where=str(page), fix="put the marks back")
    plots = page.with_suffix("")
    plots.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(sections(found, _regimes(found))).strip()
    page.write_text(f"{before}{begin}\n\n{lines}\n\n{end}{after}", encoding="utf-8")
    _draw(found, folder / EXAMPLE, plots)
    return [page, *sorted(plots.glob("*.png"))]


def _draw(found: Sequence[Results], example: Path, plots: Path) -> None:
    from deltasmith.lab.loss.pictures import scatter, surface

    regimes = _regimes(found)
    for regime in regimes:
        scatter(plots / f"predicted-{regime.name}.png", regime)
    surface(plots / "k-dare.png", regimes)
    if example.is_file():
        draw_example(example, plots)


def _regimes(found: Sequence[Results]) -> list[Regime]:
    return [Regime(results, name) for results in found for name in results.settings["regimes"]]
