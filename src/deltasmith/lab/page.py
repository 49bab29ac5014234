"""The page `docs/lab.md`: every table and plot of the lab's results, beside the papers' own numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from deltasmith.errors import DamagedInputError
from deltasmith.lab.claims import Claim, judged
from deltasmith.lab.page_tables import curves_section, emr_section, merges_section
from deltasmith.lab.page_text import HEAD, Lines, controls_section, family_section, table
from deltasmith.lab.rows import Results, load_results
from deltasmith.lab.vision.page import vision_section

__all__ = ["SECTIONS", "load_all", "write_page"]

Draw = Callable[[Results, Path], list[str]]
SECTIONS: Mapping[str, Callable[[Results, Path], Lines]] = {
    "family": family_section,
    "curves": curves_section,
    "merges": merges_section,
    "emr": emr_section,
    "controls": controls_section,
    "vision": vision_section,
}
_MARKS = {"reproduced": "✓", "contradicted": "✗", "undecided": "·"}


def load_all(folder: Path) -> dict[str, Results]:
    """Read every result file of the lab in `folder`; DamagedInputError where there is none."""
    found = {name: folder / f"{name}.json" for name in SECTIONS if (folder / f"{name}.json").is_file()}
    if not found:
        raise DamagedInputError("it holds no results", where=str(folder), fix="run `deltasmith lab run`")
    return {name: load_results(path) for name, path in found.items()}


def write_page(results: Mapping[str, Results], page: Path) -> list[Path]:
    """Write `page` and its plots into a folder of its name beside it; return all files. Same results, same bytes."""
    plots = page.with_suffix("")
    plots.mkdir(parents=True, exist_ok=True)
    made = dict.fromkeys(str(result.settings["made"]) for result in results.values())
    lines: Lines = [
        *HEAD,
        "",
        f"Made {'; '.join(made)}.",
        "",
        "## What reproduced and what did not",
        "",
        *_claims(judged(results)),
    ]
    for name, section in SECTIONS.items():
        if name in results:
            lines += ["", *section(results[name], plots)]
    page.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return [page, *sorted(plots.glob("*.svg"))]


def _claims(claims: list[Claim]) -> Iterator[str]:
    yield (
        f"{len(claims)} questions to the data, each whether a difference is above zero. Figures are that difference in"
        " points with a 95 % interval, and p after Holm's correction over the questions to one table (one regime and"
        " setting). A claim reproduced (✓) or came out the other way (✗) if its interval lies on one side of zero and"
        " p < 0.05; all others are undecided (·), which three training seeds leave many."
    )
    for verdict, said in (("reproduced", "Reproduced"), ("contradicted", "The other way")):
        yield ""
        yield f"**{said}:**"
        yield ""
        yield from _listed([claim for claim in claims if claim.verdict == verdict])
    regimes = tuple(dict.fromkeys(claim.regime for claim in claims))
    by_text: dict[tuple[str, str], dict[str, str]] = {}
    for claim in claims:
        by_text.setdefault((claim.source, claim.text), {})[claim.regime] = _measured(claim)
    rows = [(*key, *(cells.get(regime, "") for regime in regimes)) for key, cells in by_text.items()]
    yield ""
    yield from table(("source", "claim", *map(_regime, regimes)), rows, left=2)


def _listed(claims: list[Claim]) -> Iterator[str]:
    """List claims of one verdict, each with the regimes it was reached in."""
    regimes: dict[str, list[str]] = {}
    for claim in claims:
        regimes.setdefault(claim.text, []).append(f"{_regime(claim.regime)} {_interval(claim)}")
    for text, found in regimes.items():
        yield f"- {text}: {'; '.join(found)}."
    if not regimes:
        yield "- nothing."


def _regime(regime: str) -> str:
    return regime if regime == "vision" else f"{regime} deltas"


def _measured(claim: Claim) -> str:
    return f"{_MARKS[claim.verdict]} {_interval(claim)} p {min(claim.p_value, 1.0):.2g}"


def _interval(claim: Claim) -> str:
    figure = claim.measured
    return f"{figure.value:+.1f} [{figure.low:+.1f}, {figure.high:+.1f}]"
