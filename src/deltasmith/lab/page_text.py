"""Parts of the lab's page that are mostly words, and the drawing of tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path

from deltasmith.lab import EXPERTS
from deltasmith.lab.rows import Results
from deltasmith.lab.summary import Figure, figure

__all__ = ["HEAD", "Lines", "brief", "controls_section", "family_section", "table"]

Lines = list[str]

HEAD = (
    "# The lab",
    "",
    "<!-- written by `deltasmith lab page`; do not edit -->",
    "",
    "What the methods are worth on models small enough to train from seeds in minutes. A base model is pre-trained"
    " on sums, sentences and three kinds of problems in several answer styles; each expert is fine-tuned to one kind"
    " and one style: `math` (one-step word problems), `code` (list functions), `ins` (instructions about text). They"
    " stand for the papers' Math, Code and LM. Three regimes differ only in learning rate and steps of fine-tuning,"
    " and so in the size of the deltas.",
    "",
    "An answer counts if it is right to the last character. Whatever is chosen (λ, densities, amplification) is"
    " chosen on validation items; where methods are tuned to be compared, each may try equally many recipes. Tables"
    " show test items, which no search sees. Intervals are 95 %: items and mask seeds by bootstrap, training seeds by"
    " Student's t, because resampling three of them would make intervals too narrow. `±` is half an interval's width;"
    " near 0 and 100 the interval is not symmetric. These are models of 0.5 M parameters: what holds here need not"
    " hold at 13 B, and the reverse.",
)


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, left: int = 1) -> Iterator[str]:
    """Draw a table; the first `left` columns are text, the others figures."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "|".join("---" if n < left else "---:" for n in range(len(head))) + "|"
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"


def brief(found: Figure) -> str:
    """Write a figure with half the width of its interval: `83.2 ±2.9`."""
    return f"{found.value:.1f} ±{(found.high - found.low) / 2:.1f}"


def family_section(results: Results, plots: Path) -> Lines:
    """Describe the models: what they can do and how far fine-tuning moved them."""
    seeds, regimes = results.settings["train_seeds"], results.settings["regimes"]
    deltas = results.settings["deltas"]
    rows = [("base", "", "", *_accuracies(results, f"{regimes[0]}/base"))]
    for regime in regimes:
        for task in EXPERTS:
            label = f"{regime}/{task}"
            sizes = [deltas[str(seed)][label]["mean_abs"] for seed in seeds]
            ratios = [deltas[str(seed)][label]["norm_ratio"] for seed in seeds]
            moved = (f"{sum(sizes) / len(sizes):.4f}", f"{sum(ratios) / len(ratios):.3f}")
            rows.append((label, *moved, *_accuracies(results, label)))
    head = ("model", "mean abs δ", "norm δ / norm base", *EXPERTS)
    size = f"{results.settings['parameters']:,}"
    return [
        "## The family",
        "",
        f"{size} parameters, training seeds {', '.join(map(str, seeds))}; accuracy in per cent on test items.",
        "",
        *table(head, rows),
    ]


def _accuracies(results: Results, label: str) -> Iterator[str]:
    for task in EXPERTS:
        kept = tuple(row for row in results.where(model=label).rows if row.task == task)
        yield brief(figure(kept))


def controls_section(results: Results, plots: Path) -> Lines:
    """Show what merging does to an expert and itself, and to experts without a common base."""
    names = {"itself": "expert with itself", "shared": "one base", "none": "no common base"}
    rows = []
    for regime, (base, name) in product(results.settings["regimes"], names.items()):
        kept = results.where(regime=regime, base=base)
        methods = dict.fromkeys(row.keys["method"] for row in kept.rows)
        rows += [(regime, name, one, brief(figure(kept.where(method=one).rows))) for one in methods]
    return [
        "## Controls",
        "",
        "Averaging an expert with itself gives the expert, bit for bit (the run refuses to go on otherwise). Experts"
        " of different training seeds share nothing but their shape: averaging them leaves nothing. Task arithmetic"
        " on such a pair, with its λ tuned, can find λ ≈ 1, where `base + δ_math + (code − base)` is the stranger"
        " plus a small delta: it then scores what the stranger alone scores, and has merged nothing.",
        "",
        *table(("deltas", "pair", "method", "math + code, mean"), rows, left=3),
    ]
