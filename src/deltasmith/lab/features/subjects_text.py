"""What was run: the models' sizes and losses, and the texts, as a section of the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deltasmith.lab.features.figures import Results, Run
from deltasmith.lab.features.pooling import mean
from deltasmith.lab.page_text import table

__all__ = ["models_section"]


def models_section(results: Results) -> Iterator[str]:
    """Describe models and texts."""
    runs = results.runs
    yield "## What was run"
    yield ""
    yield _models(results) + " " + _studies(runs[0])
    yield ""
    yield from _scores(runs)
    if results.settings["preset"] is None:
        yield from _texts(runs[0])


def _models(results: Results) -> str:
    facts = results.runs[0].data["facts"]
    if results.settings["preset"] is not None:
        return f"The models that the paper's authors published ({', '.join(facts['models'].values())})."
    shape, schedules = facts["shape"], facts["schedules"]
    tokens = {name: one["steps"] * one["batch"] * shape["context"] / 1e6 for name, one in schedules.items()}
    return (
        f"One-layer Mistral models (hidden {shape['hidden']}, MLP {shape['inner']}, {shape['heads']} heads over"
        f" {shape['kv_heads']} key heads, a vocabulary of {facts['vocab']:,}): the base learns {tokens['base']:.1f}"
        f" M tokens of English and Python, two fine-tunes {tokens['branch']:.1f} M of Lua and of stories, and the"
        f" merge is their SLERP at t = {facts['t']}."
    )


def _studies(run: Run) -> str:
    warm = run.study("warm")
    sizes = run.data["sizes"]
    latents = warm["dictionary"].get("latents", sizes["latents"])
    held_out = sum(corpus["held_out_tokens"] for corpus in warm["corpora"])
    return (
        f"Dictionaries: TopK, {latents} latents, k = {sizes['k']}, {sizes['steps']:,} steps of {sizes['batch']:,}"
        " activations of the MLP's hidden layer, a sixth of that for a warm start, with an eighth of spare"
        f" latents. All models read the same text; {held_out:,} tokens are held out, as many of each domain."
    )


def _scores(runs: Sequence[Run]) -> Iterator[str]:
    domains = list(next(iter(runs[0].study("warm")["scores"].values())))
    yield "Loss in nats a token, and next tokens named in per cent, on held-out text that no model learnt from:"
    yield ""
    rows = []
    for label in runs[0].labels:
        scores = [run.study("warm")["scores"][label] for run in runs]
        cells = [
            f"{mean(s[d]['loss'] for s in scores):.3f}, {100 * mean(s[d]['accuracy'] for s in scores):.1f}"
            for d in domains
        ]
        rows.append((label, *cells))
    yield from table(("model", *domains), rows)
    yield ""


def _texts(run: Run) -> Iterator[str]:
    facts = run.data["facts"]["texts"]
    said = ", ".join(
        f"{domain} {one['train']['characters'] / 1e6:.1f} + {one['features']['characters'] / 1e6:.1f}"
        for domain, one in facts.items()
    )
    yield (
        "Texts, in million characters that language models learn from and that only dictionaries and scores use:"
        f" {said}. English is public domain (`lab/corpora`) and the prose of Python's help, Python the standard"
        " library of the interpreter; Lua and stories are written by grammars of our own."
    )
    yield ""
