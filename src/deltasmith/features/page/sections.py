"""The parts of the page that stand without a script, from the head to the details."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deltasmith import __version__
from deltasmith.features.outcome import EdgeOutcome, Outcome
from deltasmith.features.page import tables
from deltasmith.features.page.curves import curve, floor_curve
from deltasmith.features.page.drawing import lineage_map
from deltasmith.features.page.escaping import breakable, text
from deltasmith.features.page.flow import STATUSES
from deltasmith.features.page.galleries import Gallery
from deltasmith.features.page.markup import amount, interval, number, percent, table
from deltasmith.features.study import Study

__all__ = ["details", "features", "head", "overview", "rates"]

_MODES = {
    "warm": "every child's dictionary begins as its parent's, with some fresh latents",
    "independent": "every model's dictionary begins afresh",
    "shared": "the root's dictionary is applied to every model",
}
_TOLD = ("format", "graph", "models", "members", "scores", "corpora", "notes", "weight_changes", "files")
_FEW = 2  # domains, whose scores leave room for another table beside them
_MEMBER = ("role", "start", "steps", "seed", "latents", "sha256")


def head(study: Study, outcome: Outcome) -> str:
    """Say what was compared, and what came of it."""
    labels = [node.label for node in study.graph.nodes]
    universal = outcome.universal
    inside = f" ({interval(universal.share)})" if universal.share.low is not None else ""
    facts = {
        "Site": f"<code>{text(study.site).replace('.', '.<wbr>')}</code>",
        "Mode": f"<strong>{text(study.mode)}</strong>: {text(_MODES.get(study.mode, ''))}",
        "Dictionary": text(_words(study.document.get("dictionary", {})), 400),
        "Held-out text": f"{amount(len(study.held_out.ids))} tokens of {text(', '.join(study.domains), 400)}",
        "Seed": text(study.document.get("seed", "–")),
    }
    listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return (
        '<p class="kicker">Features through fine-tuning and merging</p>'
        f"<h1>{_title(study)}</h1>"
        f'<p class="lede"><strong>{percent(universal.share.value)}</strong>{inside} of the testable features of '
        f"<b>{text(labels[0])}</b> are universal: they persist along every edge. "
        "Below, what persists on each edge, beside what persists where the model did not change at all.</p>"
        f'<div class="tiles">{"".join(_tile(edge) for edge in outcome.edges)}</div>'
        f'<dl class="facts">{listed}</dl>'
    )


def _title(study: Study) -> str:
    root, *rest = [node.label for node in study.graph.nodes]
    if len(rest) > 5:
        return f"{text(root, 60)} and {len(rest)} models that descend from it"
    names = [f"<b>{text(label, 60)}</b>" for label in rest]
    return f"From <b>{text(root, 60)}</b> to {_and(names)}"


def _and(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def _words(settings: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in settings.items() if not isinstance(value, (Mapping, list))}
    return ", ".join(f"{key.replace('_', ' ')} {_shown(value)}" for key, value in plain.items())


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _tile(edge: EdgeOutcome) -> str:
    rate = edge.rates["persisted"]
    floor = edge.floors[0] if edge.floors else None
    beside = (
        f"<span>floor {percent(floor.persisted.value)}</span> · "
        f"<span>adjusted {number(floor.adjusted.value, 2)}</span>"
        if floor
        else "no floor"
    )
    return (
        f'<div class="tile"><p class="edge">{breakable(edge.parent, 40)} → {breakable(edge.child, 40)}</p>'
        f'<p class="big">{percent(rate.value)}</p><p class="small">persist {interval(rate)}</p>'
        f'<p class="small">{beside}</p>{tables.verdict(edge)}</div>'
    )


def overview(study: Study, outcome: Outcome, links: Mapping[tuple[str, str, str], str]) -> str:
    """Show the tables to read first, and the lineage map."""
    members = {member.label: member for member in outcome.members}
    legend = "".join(
        f'<button type="button" class="chip" data-band="{status}" aria-pressed="false">'
        f'<i class="key s-{status}"></i>{status}</button>'
        for status in STATUSES
    )
    narrow = " two" if len(study.domains) <= _FEW else ""
    return (
        f'<div class="pair">{tables.dictionaries(study, outcome)}</div>'
        f'<div class="pair{narrow}"><div>{tables.scores(study)}</div><div>{tables.floors(outcome)}</div></div>'
        '<h2 id="map">Lineage</h2>'
        f'<div class="legend" role="group" aria-label="Show only these statuses">{legend}</div>'
        '<p class="sideways note">The diagram is wider than the screen: move it sideways.</p>'
        '<div class="scroll mapbox" tabindex="0" role="region" aria-label="Lineage map">'
        f"{lineage_map(study.graph, outcome.edges, members, links)}</div>"
        '<p class="note">Every edge compares all testable features of its parent; the large number is the share that '
        "persists, the small one, where there is room, its floor. Bands that fade out end, bands that fade in begin. "
        "The numbers are under "
        '<a href="#rates">Rates</a>.</p>'
        f"{_notes(study, outcome)}"
    )


def _notes(study: Study, outcome: Outcome) -> str:
    notes = dict.fromkeys([*study.document.get("notes", ()), *outcome.notes])
    items = "".join(f"<li>{text(note, 600)}</li>" for note in notes)
    return f'<aside class="notes"><h3>Notes</h3><ul>{items}</ul></aside>' if items else ""


def rates(outcome: Outcome) -> str:
    """Show rates, their curves over thresholds, merges and checks."""
    strong = float(outcome.settings.get("strong", 0.8))
    curves = "".join(
        f"<figure><figcaption>{breakable(edge.parent, 40)} → {breakable(edge.child, 40)}</figcaption>"
        f"{curve(edge, strong)}</figure>"
        for edge in outcome.edges
        if edge.curve
    )
    names = [f"≥ {name}" for name in outcome.edges[0].curve] if outcome.edges else []
    rows = []
    for edge in outcome.edges:
        floor = floor_curve(edge.floors[0].rates) if edge.floors else {}
        rows.append(
            [tables.edge_name(edge), *(tables.beside(rate, floor.get(at)) for at, rate in edge.curve.items())]
        )
    return (
        f"<h2>Rates</h2>{tables.rates(outcome.edges)}"
        "<h2>Not one threshold</h2>"
        '<p class="note">Per cent of features with a mutual best partner, against the correlation asked for. '
        "Vertical: the strong threshold. Dashed: the same model, trained twice; dotted: a floor for comparison.</p>"
        f'<div class="curves">{curves}</div>'
        f"<details class='plain'><summary>The same as a table</summary>"
        f"{table('Mutual best partner at r', ('Edge', *names), rows)}</details>"
        + (f"<h2>Merges</h2>{tables.merges(outcome)}" if outcome.merges else "")
        + f"<h2>Checks</h2>{tables.checks(outcome.edges)}"
    )


def features(shown: Sequence[Gallery], cards: int) -> str:
    """Show the search and the list of galleries; the script fills in the cards."""
    groups: dict[str, list[str]] = {}
    for number_, one in enumerate(shown):
        groups.setdefault(one.group, []).append(
            f'<li><a href="#g{number_}" data-gallery="{number_}" title="{text(one.about, 400)}">{text(one.title, 80)}'
            f'<span class="count">{amount(one.total)}</span></a></li>'
        )
    listed = "".join(
        f"<h3>{text(group, 80)}</h3><ul>{''.join(items)}</ul>" for group, items in groups.items()
    )
    filters = "".join(
        f'<button type="button" class="chip" data-filter="{status}" aria-pressed="false">'
        f'<i class="key s-{status}"></i>{status}</button>'
        for status in STATUSES
    )
    return (
        '<h2>Features</h2><div class="finder"><label>Search <input id="search" type="search" '
        'placeholder="token, model or number" autocomplete="off" spellcheck="false"></label>'
        f'<div class="legend" role="group" aria-label="Only cards with an edge of this status">{filters}</div></div>'
        f'<div class="browser"><nav class="galleries" aria-label="Galleries">{listed}</nav>'
        '<div class="list"><div id="about" aria-live="polite"></div><div id="cards">'
        f"<noscript><p>The {amount(cards)} feature cards need the page's own script; everything else is here without "
        "it.</p></noscript></div></div></div>"
    )


def details(study: Study, outcome: Outcome) -> str:
    """Show all settings, sources and hashes, and offer the data."""
    prints = {
        label: found.get("fingerprint", "–") for label, found in study.document.get("models", {}).items()
    }
    models = [
        [
            *(
                text(word)
                for word in (n.label, n.shown, ", ".join(n.parents) or "–", n.base or "–", n.method or "–")
            ),
            f"<code>{text(prints.get(n.label, '–'))}</code>",
        ]
        for n in study.graph.nodes
    ]
    members = [
        [
            breakable(m["name"]),
            *(f"<code>{text(m.get(key) if m.get(key) is not None else '–')}</code>" for key in _MEMBER),
        ]
        for m in study.document["members"]
    ]
    corpora = list(study.document["corpora"])
    keys = list(dict.fromkeys(key for corpus in corpora for key in corpus if key != "name"))
    sources = [[text(c["name"]), *(f"<code>{text(c.get(key, '–'))}</code>" for key in keys)] for c in corpora]
    rest = {key: value for key, value in study.document.items() if key not in _TOLD}
    matched = _rows({**outcome.settings, "study": outcome.study})
    return (
        f"<h2>Details</h2>{table('Models', ('Label', 'Model', 'Parents', 'Base', 'Method', 'Fingerprint'), models)}"
        f"{table('Dictionaries', ('Name', *_MEMBER), members)}"
        f"{table('Corpora', ('Name', *(key.replace('_', ' ') for key in keys)), sources)}"
        f"{_changes(study)}"
        f"{table('How the dictionaries were trained', ('Setting', 'Value'), _rows(rest), kind='settings')}"
        f"{table('How features were matched', ('Setting', 'Value'), matched, kind='settings')}"
        '<h3>The data of this page</h3><p><button type="button" id="export" class="chip">Save as JSON</button> '
        "Everything that the cards show, as it stands in this file.</p>"
        f'<p class="note">Written by deltasmith {text(__version__)}. This file loads nothing from anywhere.</p>'
    )


def _changes(study: Study) -> str:
    found = list(study.document.get("weight_changes", ()))
    groups = list(dict.fromkeys(name for change in found for name in change.get("groups", {})))
    rows = [
        [
            f"{breakable(c['parent'])} → {breakable(c['child'])}",
            percent(c.get("all")),
            *(percent(c.get("groups", {}).get(name)) for name in groups),
        ]
        for c in found
    ]
    return table("How far the weights moved", ("Edge", "all", *groups), rows) if rows else ""


def _rows(settings: Mapping[str, Any], prefix: str = "") -> Iterator[list[str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _rows(value, f"{prefix}{key}.")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            yield [text(f"{prefix}{key}"), f"<code>{text(shown, 400)}</code>"]
