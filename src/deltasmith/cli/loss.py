"""`deltasmith loss RECIPE --data FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deltasmith.analysis.rules import RULES
from deltasmith.cli.loss_options import data_options, place_options, question_options
from deltasmith.cli.options import print_json

if TYPE_CHECKING:
    from deltasmith.analysis.ends import End
    from deltasmith.analysis.statistics_files import Kind

_STATISTICS: dict[Kind, str] = {
    "gradient": "the gradient",
    "fisher": "the Fisher diagonal",
    "gram": "the Gram matrices",
}
"""What can be saved of the model where a path starts."""


@click.command("loss")
@click.argument("recipe")
@data_options
@question_options
@place_options
def command(recipe: str, **options: Any) -> None:
    """Predict and explain what RECIPE, an edit or a merge, does to the loss on some data.

    RECIPE is a recipe, or with --from a model. The weights move in a straight line from where the path begins to the
    recipe's result; the slopes on the way, taken apart by layers and projections, add up to a prediction of the
    change of the loss, which is shown beside the measured one (A Unified View of Delta Parameter Editing, arXiv
    2410.13841). The class, competitive, decreased or improved, compares the measured change with a margin: a line
    of ours, the paper draws none. Needs the extra [analysis].
    """
    from deltasmith.analysis.requests import NothingMovesError
    from deltasmith.analysis.sweep import InterruptedSweepError
    from deltasmith.cli.display import interruptible, told

    written = {name: options.pop(name) for name in ("out", "overwrite", *_STATISTICS)}
    as_json, quiet = options.pop("as_json"), options.pop("quiet")
    saves = any(written[kind] is not None for kind in _STATISTICS)
    if quiet and not (as_json or saves or written["out"] is not None):
        raise click.UsageError("--quiet would show nothing; give --out, --json or --save-* with it")
    still = saves and _at_rest(recipe, options)
    _check(recipe, written, options)
    interrupted, notes = None, []
    with told(quiet or as_json) as say, interruptible("point") as stop:
        options |= {"say": say, "stop": stop}
        try:
            try:
                found = _ask(recipe, dict(options), still=still)
            except NothingMovesError:
                if not saves:
                    raise
                found = _ask(recipe, dict(options), still=True)
            notes = _save(recipe, written, options)
        except InterruptedSweepError as error:
            if error.sweep is None:
                raise
            found, interrupted = error.sweep, error
    notes = [note for note in notes if note.removeprefix("note: ") not in found.notes]
    if written["out"] is not None:
        notes += _publish(found, written["out"], written["overwrite"])
    if as_json:
        print_json(found.as_json() | ({"written": notes} if notes else {}))
    elif not quiet:
        from deltasmith.cli.loss_text import show

        show(found)
        for note in notes:
            click.echo(note)
    if interrupted is not None:
        raise interrupted


def _check(recipe: str, written: dict[str, Any], options: dict[str, Any]) -> None:
    """Refuse what cannot go together, and places that cannot be written, before anything is computed."""
    from deltasmith.analysis.publishing import check_report_folder

    if options["line"] is not None and options["sweep"] is not None:
        raise click.UsageError("--line-search and --sweep are two questions; ask them one after the other")
    if options["line"] is not None and options["second_order"] != "none":
        raise click.UsageError("--line-search has no use for --second-order")
    if written["out"] is not None:
        check_report_folder(written["out"], overwrite=written["overwrite"])
    statistics = [written[kind] for kind in _STATISTICS if written[kind] is not None]
    if len(set(statistics)) < len(statistics):
        raise click.UsageError("two statistics cannot be one file; give each its own")
    if statistics:
        from deltasmith.analysis.statistics_files import check_place

        model = _start(recipe, options)
        for file in statistics:
            check_place(file, model.source, overwrite=written["overwrite"])


def _start(recipe: str, options: dict[str, Any]) -> End:
    """Find the model where the path starts."""
    from deltasmith.analysis.ends import plain, read_recipe, resolve

    made = read_recipe(recipe, options["overrides"], options["seed"])
    if made is None and options["start"] is None:
        return plain(recipe)
    return resolve(recipe, made, options["start"]).start


def _at_rest(recipe: str, options: dict[str, Any]) -> bool:
    """Tell whether statistics alone can be wanted, because there is no path; refuse what asks for one."""
    from deltasmith.analysis.standing import at_rest

    if not at_rest(recipe, options["start"]):
        return False
    if options["line"] is not None or options["sweep"] is not None:
        raise click.UsageError("a model alone has no path to search or sweep; give --from, or leave them out")
    return True


def _ask(recipe: str, options: dict[str, Any], *, still: bool) -> Any:
    """Run the analysis that the options call for; where nothing moves, take the loss there."""
    line, axes, evaluations = (options.pop(name) for name in ("line", "sweep", "evaluations"))
    options["rules"] = options["rules"] or RULES
    if still or line is not None:
        for name in ("rules", "steps", "second_order", "probes", "margin"):
            del options[name]
    if still:
        from deltasmith.analysis.standing import stand

        return stand(recipe, **options)
    if line is not None:
        from deltasmith.analysis.lines import follow

        return follow(recipe, *line, evaluations=evaluations, **options)
    if axes is not None:
        from deltasmith.analysis.sweep import sweep

        return sweep(recipe, axes, **options)
    from deltasmith.analysis.run import loss

    return loss(recipe, **options)


def _save(recipe: str, written: dict[str, Any], options: dict[str, Any]) -> list[str]:
    """Write the statistics that were asked for, of the model where the path starts."""
    asked = {kind: what for kind, what in _STATISTICS.items() if written[kind] is not None}
    if not asked:
        return []
    from deltasmith.analysis.statistics_files import save

    model, say, notes = _start(recipe, options), options["say"], []
    kept = {key: options[key] for key in ("data", "device", "dtype", "batch", "length", "limit", "stop")}
    for kind, what in asked.items():
        saved = save(
            kind,
            model.source,
            out=written[kind],
            overwrite=written["overwrite"],
            seed=options["seed"] or 0,
            say=lambda done, of, what=what: say(what, done, of),  # type: ignore[misc]
            **kept,
        )
        counts = f"{saved.tensors} tensors of {model.name} over {saved.examples} examples"
        notes.append(f"{saved.file}: {what} of {counts}")
        notes += [f"note: {note}" for note in saved.notes]
    return notes


def _publish(found: Any, out: Path, overwrite: bool) -> list[str]:
    """Write the report, and pictures of it where matplotlib is there; return what to tell."""
    import json

    from deltasmith.analysis.publishing import report_folder
    from deltasmith.errors import MissingExtraError, printable

    notes: list[str] = []
    with report_folder(out, overwrite=overwrite) as folder:
        text = json.dumps(found.as_json(), indent=1, ensure_ascii=False, allow_nan=False)
        (folder / "report.json").write_text(text + "\n", encoding="utf-8")
        try:
            _draw(found, folder)
        except MissingExtraError as error:
            notes.append(f"note: no pictures: {error}")
        names = sorted(path.name for path in folder.iterdir())
    return [f"{printable(str(out))}: {', '.join(names)}", *notes]


def _draw(found: Any, folder: Path) -> None:
    from deltasmith.analysis import plots
    from deltasmith.analysis.lines import Followed
    from deltasmith.analysis.report import LossReport
    from deltasmith.analysis.standing import Standing

    if isinstance(found, Standing):
        return
    if isinstance(found, LossReport):
        plots.path_plot(found, folder / "path.png")
        plots.heatmap(found, None, folder / "heatmap.png")
    elif isinstance(found, Followed):
        plots.line_search_plot(found.search, folder / "line_search.png")
    elif len(found.axes) <= 2:
        plots.sweep_plot(found, folder / "sweep.png")
