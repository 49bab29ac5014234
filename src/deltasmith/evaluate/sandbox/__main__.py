"""`python -m deltasmith.evaluate.sandbox FILE.jsonl`: check that a file's own solutions pass its own tests."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from deltasmith.errors import DamagedInputError, DeltasmithError
from deltasmith.evaluate.sandbox.run import run_many
from deltasmith.evaluate.sandbox.tiers import TIERS, choose_tier
from deltasmith.evaluate.sandbox.verdict import Limits, Program

__all__ = ["main", "read_programs"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every program of the file and print which failed, the count, the tier and the time; 6 if any failed."""
    parser = argparse.ArgumentParser(
        prog="python -m deltasmith.evaluate.sandbox",
        description="Run the reference solutions of a file in MBPP's format with their tests, in the sandbox.",
    )
    parser.add_argument("file", type=Path, help="JSON lines with task_id, code, test_list, test_setup_code")
    parser.add_argument("--tier", default="auto", choices=("auto", *TIERS[:-1]))
    parser.add_argument("--workers", type=int, default=None, help="programs at a time; default: processors")
    parser.add_argument(
        "--seconds", type=float, default=Limits().seconds, help="wall-clock limit of a program"
    )
    options = parser.parse_args(arguments)
    try:
        programs = read_programs(options.file)
        tier = choose_tier(options.tier)
        began, passed = time.perf_counter(), 0
        verdicts = run_many(programs.values(), tier, Limits(seconds=options.seconds), options.workers)
        for name, verdict in zip(programs, verdicts, strict=True):
            passed += verdict.passed
            if not verdict.passed:
                print(f"{name}: {verdict.reason}")
        spent = time.perf_counter() - began
    except DeltasmithError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return problem.exit_code
    print(f"{passed} of {len(programs)} passed; {tier.describe()}")
    print(f"{spent:.1f} s, {1000 * spent / max(1, len(programs)):.1f} ms each")
    return 0 if passed == len(programs) else 6


def read_programs(path: Path) -> dict[str, Program]:
    """Read programs from JSON lines in MBPP's format, by task id; challenge tests are run after the others.

    Raises DamagedInputError naming the line that is no such record.
    """
    programs = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as cause:
        raise DamagedInputError(
            f"it cannot be read ({cause})", where=str(path), fix="check the path"
        ) from cause
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            tests = [*row["test_list"], *row.get("challenge_test_list", ())]
            program = Program(row["code"], "\n".join(tests), row.get("test_setup_code", ""))
            programs[str(row["task_id"])] = program
        except (ValueError, KeyError, TypeError) as cause:
            raise DamagedInputError(
                f"line {number} is no record in MBPP's format ({type(cause).__name__}: {cause})",
                where=str(path),
                fix="give JSON lines with task_id, code and test_list",
            ) from cause
    return programs


if __name__ == "__main__":
    sys.exit(main())
