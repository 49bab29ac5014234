"""`features report`: read a study and what was found in it, choose what is shown, and write one file."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from deltasmith import __version__
from deltasmith.errors import RecipeError, RefusedError, printable
from deltasmith.evaluate.saving import write_whole
from deltasmith.features.outcome import Outcome
from deltasmith.features.outcome_files import FEATURES, read_outcome
from deltasmith.features.page import sections
from deltasmith.features.page.cards import Words, cards
from deltasmith.features.page.checking import check_detectors, check_files, check_links
from deltasmith.features.page.escaping import island, text
from deltasmith.features.page.evidence import GROUPS
from deltasmith.features.page.galleries import Gallery, chosen, galleries, of_patterns
from deltasmith.features.page.sweeps import sweeps
from deltasmith.features.page.tracing import Anchor
from deltasmith.features.pattern_records import FILE as PATTERNS
from deltasmith.features.pattern_records import Patterns, read_patterns
from deltasmith.features.study import Study
from deltasmith.features.sweep_records import Sweep, read_sweep

__all__ = ["report"]

FORMAT = 1
Files = str | Path | Sequence[str | Path] | None
_TITLES = {
    "overview": "Overview",
    "rates": "Rates",
    "features": "Features",
    "sweep": "Sweep",
    "details": "Details",
}


def report(
    study: str | Path | Study,
    out: str | Path = "report.html",
    *,
    match: str | Path | None = None,
    sweep: Files = None,
    patterns: Files = None,
    features: int = 200,
    redact: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write one HTML file that shows what became of the features.

    The file needs no network, no server and no library. `match` is the folder that `features match` wrote, by default
    the study's own; where there is none, features are matched now, and written there. `sweep` are files of
    `features sweep`, each shown in its turn; `patterns` files of features found by what they fire on, by default the
    one in the folder of the match. At most `features` (1 or more) have cards, dealt out to the galleries in turns.
    `redact` replaces the corpora's text by dots, one for each character up to twelve; the models' vocabularies stay.
    The same inputs give the same bytes.

    Raises:
        DamagedInputError: something is missing or damaged. RefusedError: `out` exists, or something belongs to another
        study. RecipeError: `features` makes no sense.
    """
    out = Path(out)
    _check_out(out, overwrite=overwrite)
    if features < 1:
        raise RecipeError(f"{features} features cannot be shown", fix="give 1 or more; 200 is the default")
    opened = study if isinstance(study, Study) else Study.open(study)
    place = opened.folder / "match" if match is None else Path(match)
    check_files(opened)
    outcome = _outcome(opened, place, given=match is not None)
    found = _patterns(opened, place, patterns)
    swept = [_sweep(opened, file) for file in _listed(sweep)]
    write_whole(out, _page(opened, outcome, found, swept, features, redact=redact).encode())
    return out


def _check_out(out: Path, *, overwrite: bool) -> None:
    """Refuse to write over anything that this does not write."""
    where = printable(str(out))
    if out.is_dir():
        raise RefusedError("the output is a folder", where=where, fix="name a file, report.html say")
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise RefusedError(
            "the output exists", where=where, fix="choose another, or replace it with --overwrite"
        )
    if out.suffix.lower() not in (".html", ".htm"):
        raise RefusedError("the output to be replaced is no page", where=where, fix="choose another output")


def _listed(given: Files) -> list[Path]:
    if given is None:
        return []
    return [Path(given)] if isinstance(given, (str, Path)) else [Path(one) for one in given]


def _outcome(study: Study, place: Path, *, given: bool) -> Outcome:
    """Read what was matched, or match now; whether it fits the study is looked at before anything is shown."""
    if given or (place / FEATURES).is_file():
        outcome = read_outcome(place)
        _check_study(outcome.study, study, place)
    else:
        from deltasmith.features.following import match

        outcome = match(study)
    check_links(study, outcome, place)
    return outcome


def _patterns(study: Study, place: Path, given: Files) -> list[Patterns]:
    """Read the patterns that were asked for, or those that lie beside the match and belong to the study."""
    own = place / PATTERNS
    named = _listed(given) if given is not None else [own] * own.is_file()
    found = [read_patterns(file) for file in named]
    sizes = {label: study.codes(label).width for label in study.graph.by_label} if found else {}
    for one, file in zip(found, named, strict=True):
        _check_study(one.study, study, file)
        check_detectors(one, sizes, file)
    return found


def _sweep(study: Study, file: Path) -> Sweep:
    found = read_sweep(file)
    _check_study(found.study, study, file)
    return found


def _check_study(digest: str, study: Study, place: Path) -> None:
    if digest != hashlib.sha256((study.folder / "study.json").read_bytes()).hexdigest():
        raise RefusedError(
            "this belongs to another study, or to an earlier state of this one",
            where=printable(str(place)),
            fix="run `deltasmith features match` or `features sweep` again on this study",
        )


def _page(
    study: Study,
    outcome: Outcome,
    patterns: Sequence[Patterns],
    swept: Sequence[Sweep],
    features: int,
    *,
    redact: bool,
) -> str:
    labels = [node.label for node in study.graph.nodes]
    fires = {label: study.codes(label).fires for label in labels}
    seed = study.document.get("seed", 0)
    found = (
        *galleries(outcome, fires, seed if isinstance(seed, int) else 0),
        *of_patterns(outcome, patterns),
    )
    shown = chosen(found, features)
    anchors = list(dict.fromkeys(anchor for one in shown for anchor in one.anchors))
    links = {one.edge: f"g{at}" for at, one in enumerate(shown) if one.edge is not None and one.anchors}
    bodies = {
        "overview": sections.overview(study, outcome, links),
        "rates": sections.rates(outcome),
        "features": sections.features(shown, len(anchors)),
        "sweep": sweeps(swept) if swept else "",
        "details": sections.details(study, outcome),
    }
    data = _data(study, outcome, shown, anchors, patterns, redact=redact)
    return _document(sections.head(study, outcome), bodies, data, " → ".join((labels[0], labels[-1])))


def _data(
    study: Study,
    outcome: Outcome,
    shown: Sequence[Gallery],
    anchors: Sequence[Anchor],
    patterns: Sequence[Patterns],
    *,
    redact: bool,
) -> dict[str, Any]:
    """Gather what the script shows: models, edges, galleries and cards, by their places in lists."""
    words = Words(study.texts, redact=redact)
    weak, strong = (
        float(outcome.settings.get(name, usual)) for name, usual in (("weak", 0.5), ("strong", 0.8))
    )
    places = {anchor: at for at, anchor in enumerate(anchors)}
    documents = cards(study, outcome, anchors, words, weak, patterns)
    return {
        "format": FORMAT,
        "site": study.site,
        "mode": study.mode,
        "redacted": redact,
        "tokens": len(study.held_out.ids),
        "thresholds": [weak, strong],
        "models": [node.label for node in study.graph.nodes],
        "domains": list(study.domains),
        "edges": [{"parent": e.parent, "child": e.child, "kind": e.kind} for e in outcome.edges],
        "groups": list(GROUPS),
        "galleries": [
            {
                "group": one.group,
                "title": one.title,
                "about": one.about,
                "total": one.total,
                "cards": [places[anchor] for anchor in one.anchors],
            }
            for one in shown
        ],
        "cards": documents,
        "words": words.listed(),
    }


def _document(head: str, bodies: dict[str, str], data: dict[str, Any], title: str) -> str:
    """Put the parts together; the policy allows this one script and this one style, and no connection at all."""
    style, script = (_asset(name) for name in ("style.css", "script.js"))
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'; "
        "form-action 'none'"
    )
    named = {key: body for key, body in bodies.items() if body}
    tabs = "".join(f'<a href="#{key}" id="tab-{key}">{_TITLES[key]}</a>' for key in named)
    panels = "".join(
        f'<section id="{key}" aria-label="{_TITLES[key]}">{body}</section>' for key, body in named.items()
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f'<meta name="generator" content="deltasmith {text(__version__)}">\n'
        f"<title>Features: {text(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<header>{head}</header>\n"
        f'<nav class="tabs" aria-label="Parts">{tabs}</nav>\n<main>{panels}</main>\n'
        f'<script type="application/json" id="data">{island(data)}</script>\n<script>{script}</script>\n'
        "</body>\n</html>\n"
    )


def _asset(name: str) -> str:
    return (files("deltasmith.features.page") / "assets" / name).read_text(encoding="utf-8")


def _hash(code: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
