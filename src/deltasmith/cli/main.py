"""The `deltasmith` command: finds the subcommand, turns errors into one line and an exit code."""

from __future__ import annotations

import errno
import gc
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence

import click

from deltasmith import __version__
from deltasmith.errors import DeltasmithError

__all__ = ["main"]

_COMMANDS = {
    "demo": "run the main job end to end, offline, on a bundled family of tiny models",
    "plan": "say what a recipe will do to every tensor, from headers alone",
    "merge": "carry out a recipe and write the model",
    "verify": "check a model's structure, hashes and values",
    "diff": "measure what fine-tuning changed, per layer and projection",
    "loss": "predict and explain what an edit or a merge does to the loss",
    "features": "follow features through fine-tuning and merging, with sparse autoencoders",
    "advise": "say which method and settings suit these models, and on what evidence",
    "pack": "keep what a fine-tune changed in a tenth of the space",
    "unpack": "write the model that a packed delta stands for",
    "inspect": "show what a packed delta takes, and how near it comes",
    "extract-lora": "make a LoRA adapter of what a fine-tune changed",
    "distill": "train the scales of a 1-bit delta towards the fine-tuned model's logits",
    "upscale": "make one sparse mixture of low-rank experts of a base and its fine-tunes",
    "evaluate": "score a model or a recipe on tasks",
    "compare": "compare evaluations: paired differences, intervals, ties, forgetting",
    "tune": "search the numbers of a recipe on a validation set",
    "lab": "train small model families and repeat the papers' comparisons on them",
    "methods": "list the methods",
    "explain": "explain a method: formula, fields, paper, dialects, expansion",
    "schema": "print the JSON Schema of recipes, for editors",
    "doctor": "look at this machine and installation",
    "convert": "rewrite a checkpoint (a pickle, an npz, an old layout) as safetensors",
}

_DEBUG = "--debug"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Lazy(click.Group):
    """A group whose commands live in modules of their own names, imported when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = cmd_name.replace("-", "_")
        command: click.Command = importlib.import_module(f"deltasmith.cli.{module}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "`deltasmith --help` lists the commands"
            raise click.UsageError(f"no such command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="deltasmith")
@click.option(_DEBUG, is_flag=True, help="Show the Python traceback of an error.")
def group(debug: bool) -> None:
    """Edit, merge and explain delta parameters: what fine-tuning changed in a model."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with one of the documented codes."""
    gc.set_threshold(50_000)  # importing makes many objects and no rubbish: a tenth of the time to start
    args = list(sys.argv[1:] if arguments is None else arguments)
    debug = _DEBUG in args
    args = [a for a in args if a != _DEBUG]  # wherever the user put it
    sys.exit(_run(args, debug))


def _run(args: list[str], debug: bool) -> int:
    try:
        group.main(args, prog_name="deltasmith", standalone_mode=False)
        sys.stdout.flush()
    except DeltasmithError as error:
        if debug:
            traceback.print_exc()
        return _fail(str(error), error.exit_code)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:  # a group without its subcommand
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted; run the same command again to resume", 5)
    except (BrokenPipeError, SystemExit):  # nobody reads; click and rich exit when they meet that
        _discard_output()
        return 0
    except OSError as error:
        if error.errno not in _FULL:
            return _bug(debug)
        _discard_output()
        return _fail(f"the output cannot be written ({error.strerror}); free some space", 4)
    except Exception:  # the boundary: whatever is left is our bug
        return _bug(debug)
    return 0


def _discard_output() -> None:
    """Send what is still in the buffer of standard output nowhere, so that its flush at exit cannot fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _bug(debug: bool) -> int:
    if debug:
        traceback.print_exc()
    return _fail(_bug_report(), 70)


def _fail(line: str, code: int) -> int:
    click.echo(f"error: {line}", err=True)
    return code


def _bug_report() -> str:
    kind, value, _ = sys.exc_info()
    with tempfile.NamedTemporaryFile("w", prefix="deltasmith-bug-", suffix=".txt", delete=False) as report:
        report.write(f"deltasmith {__version__}\n{traceback.format_exc()}")
    name = kind.__name__ if kind else "error"
    return f"a bug in deltasmith ({name}: {value}); the traceback is in {report.name}, please report it"
