"""What is printed of patterns: which feature of each model fires where an expression matches, and what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from deltasmith.errors import printable

if TYPE_CHECKING:
    from deltasmith.features.pattern_records import Along, Detector, Found, Patterns

__all__ = ["show_patterns"]


def show_patterns(patterns: Patterns) -> None:
    """Print for every pattern how often it matched, and each model's best features with what became of them."""
    for found in patterns.found:
        click.echo()
        for line in _lines(found):
            click.echo(line)


def _lines(found: Found) -> Iterator[str]:
    where = ", ".join(f"{printable(name, 60)} {count:,}" for name, count in found.by_domain.items() if count)
    yield (
        f"{printable(found.name, 60)} = {printable(found.expression, 120)}: {found.matches:,} matches mark "
        f"{found.tokens:,} tokens" + (f" ({where})" if where else "")
    )
    for member in found.members:
        label = printable(member.label, 60)
        if not member.detectors:
            yield f"  {label}: no feature follows it"
        for detector in member.detectors:
            yield f"  {label} {_detector(detector)}"
            yield from (f"    {_along(along)}" for along in detector.along if along.side == "parent")


def _detector(detector: Detector) -> str:
    marking = detector.marking
    return (
        f"#{detector.latent}: r {marking.r:.2f}; {marking.precision:.0%} of its {marking.fires:,} firings are marked, "
        f"which is {marking.recall:.0%} of what is marked"
    )


def _along(along: Along) -> str:
    child = printable(along.child, 60)
    if along.partner < 0:
        return f"→ {child}: {along.status}; nothing fires together with it"
    marked = "" if along.marking is None else f", whose r with the pattern is {along.marking.r:.2f}"
    return f"→ {child}: {along.status}; nearest #{along.partner} (r {along.r:.2f}){marked}"
