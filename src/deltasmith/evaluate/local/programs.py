"""Judging generated Python programs in the sandbox: what MBPP and HumanEval share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from deltasmith.errors import RefusedError
from deltasmith.evaluate.local.common import Options
from deltasmith.evaluate.task import Outcome

if TYPE_CHECKING:
    from deltasmith.evaluate.sandbox import Limits, Program, Tier

__all__ = ["Judge", "fenced", "reasons"]

_KEPT = 2000
_FENCE = re.compile(r"(?ms)```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)")


@dataclass(frozen=True, slots=True)
class Judge:
    """Run programs behind a tier of the sandbox, within its limits."""

    tier: Tier
    limits: Limits

    @classmethod
    def of(cls, options: Options) -> Judge:
        """Take tier and limits out of the options. Raises RefusedError without a tier: nothing runs unasked."""
        if options.tier is None:
            raise RefusedError("running generated code is off", fix="allow it with --run-code")
        from deltasmith.evaluate.sandbox import Limits

        return cls(options.tier, options.limits or Limits())

    def outcomes(
        self, ids: Sequence[str], texts: Sequence[str], programs: Sequence[Program]
    ) -> list[Outcome]:
        """Run each program against its tests; a score is 1 where all of them passed."""
        from deltasmith.evaluate.sandbox import run_many

        verdicts = run_many(programs, self.tier, self.limits)
        return [
            Outcome(
                name,
                float(verdict.passed),
                detail={"text": text, "reason": verdict.reason, "output": verdict.output[:_KEPT]},
            )
            for name, text, verdict in zip(ids, texts, verdicts, strict=True)
        ]

    def facts(self) -> Mapping[str, Any]:
        """Return the limits as plain data, for a task's digest; the tier does not decide an outcome."""
        return asdict(self.limits)


def fenced(text: str) -> str:
    r"""Return the first fenced code block of a chat's answer, or all of it where there is none.

    >>> fenced("Sure:\n```python\nx = 1\n```\nDone.")
    'x = 1\n'
    """
    found = _FENCE.search(text)
    return found[1] if found else text


def reasons(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Count why programs failed, the commonest reason first; what follows a colon is left out."""
    counts = Counter(str(one.detail["reason"]).partition(":")[0] for one in outcomes if not one.score)
    if not counts:
        return ()
    return ("not passed: " + ", ".join(f"{count} {reason}" for reason, count in counts.most_common()),)
