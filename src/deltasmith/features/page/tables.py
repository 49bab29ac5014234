"""The tables of the page: dictionaries, text scores, floors, rates, merges, checks. Numbers come from the records."""

from __future__ import annotations

from collections.abc import Sequence

from deltasmith.features.outcome import EdgeOutcome, Floor, MemberOutcome, MergeOutcome, Origin, Outcome, Rate
from deltasmith.features.page.escaping import breakable, text
from deltasmith.features.page.markup import NONE, Cell, amount, interval, number, percent, share, table
from deltasmith.features.recovery import recovered_share
from deltasmith.features.study import Member, Study

__all__ = ["beside", "checks", "dictionaries", "edge_name", "floors", "merges", "rates", "scores", "verdict"]

_ROLES = {"model": "followed", "again": "floor: the same model, trained again as its children are"}
_HOW = {"again": "trained on", "seed": "afresh with another seed"}
_STATUSES = ("persisted", "drifted", "split", "fused", "disappeared")
_ORIGINS = {
    Origin.RECOVERED: "of the base, disappeared in a parent, back in the merge",
    Origin.CONSENSUS: "persists from every parent",
    Origin.INHERITED: "persists from some parents only",
    Origin.BASE: "persists from the base, and from no parent",
    Origin.DRIFTED: "has a partner above the weak threshold, but persists from none",
    Origin.NOVEL: "no partner in any parent or the base",
}


def dictionaries(study: Study, outcome: Outcome) -> str:
    """Tell how well each dictionary stands for its model."""
    counted = {member.label: member for member in outcome.members}
    rows = [_dictionary(member, counted) for member in study.members.values()]
    return table(
        "Is each dictionary usable?",
        (
            "Model",
            "",
            "Unexplained variance",
            "Fire per token",
            "Dead",
            "Testable",
            "Loss",
            "… spliced in",
            "Recovered",
        ),
        rows,
        note="On the same held-out tokens. Recovered: how much of the loss that zeros in the activations' place cost "
        "is regained with the reconstruction there. Testable: fires often enough to be followed.",
    )


def _dictionary(member: Member, counted: dict[str, MemberOutcome]) -> list[Cell]:
    quality = member.quality
    found = counted.get(member.name)
    role = _ROLES.get(member.role, "floor: the same model, afresh from another seed")
    return [
        breakable(member.label)
        if not member.is_floor
        else f'<span class="floor-name">{breakable(member.name)}</span>',
        f"<em>{role}</em>",
        number(quality.fvu),
        number(quality.l0, 1),
        percent(quality.dead),
        amount(found.testable) if found is not None else NONE,
        number(quality.loss),
        number(quality.loss_spliced),
        percent(quality.loss_recovered),
    ]


def scores(study: Study) -> str:
    """Tell how well each model does on each domain, and how much of its parents' gain a merge keeps."""
    domains = list(dict.fromkeys(domain for scored in study.scores.values() for domain in scored))
    if not domains:
        return ""
    merged = bool(study.graph.merges)
    headers = ["Model"]
    for domain in domains:
        headers += [f"{domain}: loss", "accuracy"] + (["gain kept"] if merged else [])
    rows = []
    for node in study.graph.nodes:
        base = study.graph.common_base(node.label) if node.is_merge else None
        kept = recovered_share(study.scores, node.label, node.parents, base) if node.is_merge else {}
        row = [breakable(node.label)]
        for domain in domains:
            score, share = study.scores.get(node.label, {}).get(domain), kept.get(domain)
            row += [number(score.loss) if score else NONE, percent(score.accuracy) if score else NONE]
            row += [NONE if share is None else percent(share, 0)] if merged else []
        rows.append(row)
    note = "Loss in nats per token; accuracy of the next token."
    if merged:
        note += (
            " Gain kept: what the merge has of what its best parent gained over the base in loss, where that parent is"
            " more accurate than the base by two standard errors."
        )
    return table("Is each model usable?", headers, rows, note=note)


def floors(outcome: Outcome) -> str:
    """Tell what comes back in a second dictionary of the same model, and by chance."""
    known = {floor.member: floor for edge in outcome.edges for floor in edge.floors}
    deciding = {edge.floors[0].member for edge in outcome.edges if edge.floors}
    rows = [
        [
            breakable(floor.member),
            f"<em>{_floor_words(floor)}{'' if floor.member in deciding else '; for comparison only'}</em>",
            share(floor.persisted),
        ]
        for floor in known.values()
    ]
    null = max((edge.null for edge in outcome.edges), default=0.0)
    quantile = max((edge.null_quantile for edge in outcome.edges), default=0.0)
    rows.append(
        [
            "permuted tokens",
            f"<em>chance, on any edge: 99.9 % of features find no partner above r = {number(quantile)}</em>",
            percent(null),
        ]
    )
    return table(
        "Floors: what comes back where nothing changed",
        ("Dictionary", "", "Persists"),
        rows,
        note="A share of features that persists means little without the share that persists in the same model, whose "
        "dictionary was made as the child’s was: that floor decides. "
        "Intervals: 95 %, over resampled passages.",
    )


def _floor_words(floor: Floor) -> str:
    if floor.member == floor.model:
        return f"{text(floor.model)} by the same dictionary: all of them, by construction"
    if floor.role == "again":
        return f"{text(floor.model)} once more, trained as its children are"
    return f"{text(floor.model)} once more, afresh from another seed"


def rates(edges: Sequence[EdgeOutcome]) -> str:
    """Tell for every edge what became of the parent's features, beside the floors."""
    headers = ("Edge", "Testable", *map(str.capitalize, _STATUSES), "Emerged", "Deciding floor", "Verdict")
    rows = []
    for edge in edges:
        cells = [_beside(edge, status, edge.rates.get(status)) for status in _STATUSES]
        cells[0] = f"<strong>{cells[0]}</strong>"
        rows.append(
            [
                edge_name(edge),
                amount(edge.testable),
                *cells,
                _beside(edge, "emerged", edge.rates.get("emerged")),
                _floors(edge),
                verdict(edge),
            ]
        )
    note = (
        "Shares of the parent's testable features, with 95 % intervals; emerged: of the child's. Floor: what persists "
        "in a second dictionary of the same model; that on the first line decides the verdict. Adjusted: the "
        "persisted share over it. The sign test asks whether more of the parent's features persist in the floor only "
        "than on the edge only."
    )
    return table("What became of the features on every edge", headers, rows, kind="rates", note=note)


def edge_name(edge: EdgeOutcome) -> Cell:
    """Write an edge as parent → child."""
    kind = "<small>from the merge’s base</small>" if edge.kind == "base" else ""
    return f"{breakable(edge.parent)} → {breakable(edge.child)}{kind}"


def verdict(edge: EdgeOutcome) -> Cell:
    """Write the verdict on an edge in its own words."""
    kinds = {"fewer than the floor": "fewer", "no evidence that features changed": "same"}
    return f'<span class="verdict v-{kinds.get(edge.verdict, "none")}">{text(edge.verdict)}</span>'


def beside(rate: Rate | None, floor: Rate | None) -> Cell:
    """Write a share, and under it the one that the floor has in its place."""
    return share(rate) + (f'<small class="beside">floor {percent(floor.value)}</small>' if floor else "")


def _beside(edge: EdgeOutcome, name: str, rate: Rate | None) -> Cell:
    return beside(rate, edge.floors[0].rates.get(name) if edge.floors else None)


def _floors(edge: EdgeOutcome) -> Cell:
    """Write the floor that decides in full, and of the others their share alone."""
    if not edge.floors:
        return NONE
    deciding, *others = edge.floors
    compared = "".join(
        f"<small>{_HOW[floor.role]}: {percent(floor.persisted.value)}</small>" for floor in others
    )
    return _deciding(deciding) + (
        f'<small class="compared">for comparison:</small>{compared}' if compared else ""
    )


def _deciding(floor: Floor) -> Cell:
    within = interval(floor.persisted)
    test = ""
    if floor.p_value is not None:
        p = "p &lt; 0.0001" if floor.p_value < 1e-4 else f"p = {floor.p_value:.2g}"
        test = f"<small>{amount(floor.fewer)} only there, {amount(floor.more)} only here, {p}</small>"
    ratio = number(floor.adjusted.value, 2 if floor.adjusted.value < 10 else 0)
    around = interval(floor.adjusted, 1)
    adjusted = f"adjusted {ratio}" + (f" [{around}]" if around else "")
    return (
        f"<b>{percent(floor.persisted.value)}</b><small>{within}</small>"
        f"<small>{text(floor.member)}, {adjusted}</small>{test}"
    )


def merges(outcome: Outcome) -> str:
    """Tell where each merge's features come from, and what it lost."""
    return "".join(_merge(merge) for merge in outcome.merges)


def _merge(merge: MergeOutcome) -> str:
    rows: list[list[Cell]] = []
    for origin, about in _ORIGINS.items():
        rows.append(_origin(merge, origin, f'<i class="key o-{origin}"></i>{origin}', about))
        if origin is Origin.INHERITED:
            for at, parent in enumerate(merge.parents):
                name = f'<i class="key o-inherited-{min(at, 3)}"></i>… from {text(parent)}'
                rows.append(_origin(merge, f"inherited:{parent}", name, ""))
    for parent in merge.parents:
        about = f"<em>of {text(parent)}’s testable features, no partner in the merge</em>"
        rows.append(
            [
                f"lost from {text(parent)}",
                about,
                amount(merge.lost[parent]),
                share(merge.lost_rates.get(parent)),
            ]
        )
    if merge.base is not None:
        about = f"<em>of {text(merge.base)}’s features, disappeared in a parent and in the merge</em>"
        rows.append(["lost everywhere", about, amount(merge.lost_everywhere), NONE])
    caption = f"Where the features of {merge.label} come from"
    return _stacked(merge) + table(caption, ("Origin", "", "Features", "Share"), rows)


def _origin(merge: MergeOutcome, name: str, shown: Cell, about: str) -> list[Cell]:
    return [shown, f"<em>{about}</em>", amount(merge.counts.get(name, 0)), share(merge.rates.get(name))]


def _stacked(merge: MergeOutcome) -> str:
    """Draw origins as one bar, parents apart."""
    parts: list[tuple[str, str, int]] = []
    for origin in _ORIGINS:
        if origin is Origin.INHERITED:
            for at, parent in enumerate(merge.parents):
                parts.append(
                    (f"inherited-{min(at, 3)}", f"from {parent}", merge.counts.get(f"inherited:{parent}", 0))
                )
        else:
            parts.append((str(origin), str(origin), merge.counts.get(origin, 0)))
    total, x, drawn = max(sum(count for _, _, count in parts), 1), 0.0, []
    for kind, name, count in parts:
        width = 1000 * count / total
        title = text(f"{name}: {amount(count)} ({percent(count / total)})")
        drawn.append(
            f'<rect class="o-{kind}" x="{x:.1f}" y="0" width="{width:.1f}" height="30"><title>{title}</title></rect>'
        )
        x += width
    return (
        f'<svg class="stack" viewBox="0 0 1000 30" preserveAspectRatio="none" role="img" aria-label="Origins of the '
        f'features of {text(merge.label)}; the table has the numbers">{"".join(drawn)}</svg>'
    )


def checks(edges: Sequence[EdgeOutcome]) -> str:
    """Tell what other ways of counting say, and what the weights say."""
    headers = (
        "Edge", "Any partner ≥ strong", "Weighted by firing", "Optimal assignment", "Mean best r", "Same index",
        "Cosine, persisted", "Cosine ≥ 0.7", "Weights changed",
    )  # fmt: skip
    rows = [
        [
            edge_name(edge),
            _beside(edge, "any_match", edge.any_match),
            _beside(edge, "firing_weighted", edge.firing_weighted),
            percent(edge.hungarian),
            number(edge.pw_mcc),
            percent(edge.same_index),
            number(edge.cosines.persisted_median),
            percent(edge.cosines.share_above_07),
            percent(edge.weight_change),
        ]
        for edge in edges
    ]
    return table(
        "Other ways to count, and the weights",
        headers,
        rows,
        note="Any partner: mutual or not. Optimal assignment: the one-to-one matching with the greatest sum of r. Same "
        "index: of the persisted features, those with the same number in both dictionaries, which a warm start alone "
        "brings about. Cosine: of the decoder directions (median). Cosine ≥ 0.7: the share that weights alone would "
        "call kept, whether it fires alike or not. Weights changed: |child − parent| / |parent|.",
    )
