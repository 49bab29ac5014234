"""The sections of the page on features, each from the results alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from deltasmith.lab.features.edge_sections import (
    edges_section,
    leak_section,
    order_section,
    thresholds_section,
)
from deltasmith.lab.features.figures import MODES, Results, Run, Share
from deltasmith.lab.features.findings import Finding, findings
from deltasmith.lab.features.merge_sections import cases_section, merge_section, sweep_section
from deltasmith.lab.features.pooling import mean, pooled
from deltasmith.lab.features.subjects_text import models_section
from deltasmith.lab.page_text import table

__all__ = ["sections"]

_MARKS = {"holds": "✓", "fails": "✗", "open": "·"}
_NONE = "–"


def sections(results: Results, plots: str) -> Iterator[str]:
    """Write the whole generated part; `plots` is the folder of the pictures, relative to the page."""
    runs = results.runs
    yield f"Made {results.settings['made']}. {_seeds(runs)}"
    yield ""
    yield from models_section(results)
    yield from _expectations(findings(runs))
    yield from _dictionaries(runs)
    yield from _floors(runs)
    yield from edges_section(runs, plots)
    yield from order_section(runs)
    yield from leak_section(runs)
    yield from merge_section(runs)
    yield from thresholds_section(runs)
    yield from sweep_section(runs, plots)
    yield from cases_section(runs)
    yield from _limits(results)


def _seeds(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return (
            "One training seed: intervals are 95 %, over resampled passages of the held-out text, and say nothing"
            " of another training."
        )
    seeds = ", ".join(str(run.seed) for run in runs)
    return (
        f"Training seeds {seeds}: figures are means over them, and brackets hold every seed's own 95 % interval (over"
        " resampled passages of the held-out text)."
    )


def _expectations(found: Sequence[Finding]) -> Iterator[str]:
    said = {
        "required": "what this part of the package had to show",
        "expected": "written down before the run",
        "pilot": "seen in a pilot on other texts and models",
        "paper": "what is known of the paper's findings",
    }
    yield "## What was expected, and what came out"
    yield ""
    yield (
        "✓ holds, ✗ fails, · open: the intervals do not tell, or seeds differ. Figures in per cent, one seed after"
        " the other; shares are of the parent's testable features, those that fire 20 times or more on the held-out"
        " text."
    )
    yield ""
    rows = [
        (_MARKS[one.answer], source, one.text, _beside(one.figures))
        for source, group in groupby(found, key=lambda one: one.source)
        for one in group
    ]
    yield "| | asked by | question | figures |"
    yield "|---|---|---|---|"
    yield from ("| " + " | ".join(row) + " |" for row in rows)
    yield ""
    yield "; ".join(f"*{source}*: {meaning}" for source, meaning in said.items()) + "."
    yield ""


def _beside(figures: Sequence[str]) -> str:
    """Write the seeds' figures one after the other, or once where all are the same."""
    return " \\| ".join(figures if len(set(figures)) > 1 else figures[:1])


def _dictionaries(runs: Sequence[Run]) -> Iterator[str]:
    yield "## The dictionaries"
    yield ""
    yield (
        "On the held-out text: FVU is the share of variance left unexplained, dead the share of latents that never"
        " fire, recovered what of the loss that zeros in place of the activations cost comes back with the"
        " reconstruction. Loss is over all domains, also those that a fine-tune has forgotten."
    )
    yield ""
    rows = []
    for mode in MODES:
        for member in runs[0].study(mode)["members"]:
            same = [
                next(m for m in run.study(mode)["members"] if m["name"] == member["name"]) for run in runs
            ]
            rows.append(
                (
                    mode,
                    f"`{member['name']}`",
                    f"`{member['start']}`" if member["start"] else "fresh",
                    f"{mean(m['fvu'] for m in same):.3f}",
                    f"{mean(m['l0'] for m in same):.1f}",
                    f"{100 * mean(m['dead'] for m in same):.1f} %",
                    f"{100 * mean(m['loss_recovered'] or 0.0 for m in same):.1f} %",
                )
            )
    yield from table(("mode", "dictionary", "begins as", "FVU", "L0", "dead", "recovered"), rows, left=3)
    yield ""


def _floors(runs: Sequence[Run]) -> Iterator[str]:
    yield "## Floors: the same model, another dictionary"
    yield ""
    yield (
        "Two dictionaries of one model differ too. `again` is the base once more, trained as the children are in"
        " mode warm; `seed1` the base afresh with another seed. The null permutes the child's tokens; `random` is a"
        " model of the base's shape that nothing has trained, as a child."
    )
    yield ""
    rows = [
        ("warm: base~again", _share([run.floor("warm", "again") for run in runs])),
        ("afresh: base~seed1", _share([run.floor("independent", "seed") for run in runs])),
        ("null, largest of all edges", f"{100 * max(run.null for run in runs):.2f}"),
    ]
    if "control" in runs[0].data["studies"]:
        warm = [run.kept("control-warm", run.labels[0], "random") for run in runs]
        rows.append(("afresh: base → random", _share([run.kept_in("control") for run in runs])))
        rows.append(("warm: base → random", _share(list(warm))))
    yield from table(("comparison", "kept, per cent"), rows)
    yield ""


def _share(found: Sequence[Share | None]) -> str:
    kept = [share for share in found if share is not None]
    return str(pooled(kept)) if kept else _NONE


def _limits(results: Results) -> Iterator[str]:
    yield "## Beside the paper, and what cannot be said"
    yield ""
    yield (
        "The paper (Horn and Elliott, arXiv 2410.12391) follows features of four one-layer Mistrals of 35 M"
        " parameters with L1 dictionaries of 16 times the width, one seed for all and no floor. Its text was not at"
        " hand when this was written: what is compared are its set-up, its case studies and its main statement, and"
        " none of its retention figures."
    )
    yield ""
    known = {one.text: one.answer for one in findings(results.runs) if one.source == "paper"}
    words = {"holds": "agrees", "fails": "does not agree", "open": "stays open"}
    for text, answer in known.items():
        yield f"- {words[answer]}: {text}."
    yield (
        "- Without a floor a share that persists cannot be read: afresh, two dictionaries of the *same* base keep"
        f" {_share([run.floor('independent', 'seed') for run in results.runs])} per cent."
    )
    count = len(results.runs)
    others = (
        "another training of the models (there is one)" if count == 1 else f"more than {count} trainings show"
    )
    real = "" if results.settings["preset"] else ", or of real Lua and stories (ours are generated)"
    yield (
        f"- Cannot be said: anything of larger or deeper models, of another site{real}; {others}; whether a feature"
        " that persists does the same thing in the model, since nothing was ablated."
    )
    yield ""
