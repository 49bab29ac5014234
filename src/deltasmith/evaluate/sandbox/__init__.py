"""Generated code, run where it can do no harm: `choose_tier` once, then `run_program` or `run_many`.

What each tier isolates, and what none of them does, is in docs/sandbox.md.
"""

from __future__ import annotations

from deltasmith.evaluate.sandbox.run import run_many, run_program
from deltasmith.evaluate.sandbox.tiers import Tier, choose_tier
from deltasmith.evaluate.sandbox.verdict import Limits, Program, Verdict

__all__ = ["Limits", "Program", "Tier", "Verdict", "choose_tier", "run_many", "run_program"]
