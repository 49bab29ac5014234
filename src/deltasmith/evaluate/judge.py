"""Judges of two answers to one instruction: a command the user names, or a language model.

A judge says how much better one answer is than another, from 1 (the first) over 1.5 (a tie) to 2 (the second), and
nothing (None) where it cannot tell.
"""

from __future__ import annotations

import json
import math
import os
import queue
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol

import xxhash

from deltasmith.errors import DamagedInputError, InterruptedRunError, RecipeError, printable
from deltasmith.evaluate.language import Continuation, LanguageModel
from deltasmith.formats.fingerprint import sha256_of

__all__ = ["CommandJudge", "Judge", "ModelJudge", "Pair", "Verdict"]


@dataclass(frozen=True, slots=True)
class Pair:
    """Hold an instruction, the answer of the reference and the answer that is compared with it."""

    id: str
    instruction: str
    reference: str
    candidate: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Hold how much better the candidate is: 1 (worse) to 2 (better), or None where the judge cannot tell."""

    id: str
    preference: float | None


class Judge(Protocol):
    """Whoever compares answers."""

    @property
    def name(self) -> str:
        """Name the judge in results."""

    @property
    def digest(self) -> str:
        """Hash what decides its verdicts, as far as that can be seen."""

    def compare(self, pairs: Sequence[Pair]) -> Iterator[Verdict]:
        """Yield a verdict for every pair, in any order, each as soon as it is known."""


def _never() -> bool:
    return False


@dataclass(frozen=True)
class CommandJudge:
    """Ask a program: pairs as JSON lines on its standard input, verdicts as JSON lines on its standard output.

    A line in is `{"id", "instruction", "output_1", "output_2"}`, a line out `{"id", "preference"}` with a number
    from 1 to 2 (2: output_2 is better, 1.5: a tie) or null. Every id is answered once, in any order; the program
    ends with exit code 0 after its input does. Which of the two is the candidate is settled by a hash of the id,
    about half of them each way, so that a liking for one position favours nobody. There is no shell and no time
    limit; `stopped` is asked while waiting.
    """

    command: str
    stopped: Callable[[], bool] = _never

    @property
    def name(self) -> str:
        """Return the command line."""
        return self.command

    @property
    def digest(self) -> str:
        """Hash the command line and every file it names: a corrected script is another judge."""
        words = shlex.split(self.command)
        files = {word: sha256_of(word) for word in words if Path(word).is_file()}
        return _digest("command", self.command, files)

    def check(self) -> None:
        """Refuse a command that cannot be started (RecipeError), without starting it."""
        try:
            words = shlex.split(self.command)
        except ValueError as cause:
            raise RecipeError(
                f"{self.command!r} is no command ({cause})", where="--judge-command", fix="close the quotes"
            ) from cause
        if not words or shutil.which(words[0]) is None:
            raise RecipeError(
                f"there is no program {words[0] if words else ''!r}",
                where="--judge-command",
                fix="check its path",
            )

    def compare(self, pairs: Sequence[Pair]) -> Iterator[Verdict]:
        """Start the program, yield its verdicts as they come, and check that none is missing.

        Raises DamagedInputError where it fails, prints anything else than verdicts, or leaves pairs out; verdicts
        yielded before that are good. Raises InterruptedRunError once `stopped` says so.
        """
        waiting = {pair.id for pair in pairs}
        with tempfile.TemporaryFile() as complaints, self._started(complaints, pairs) as (process, lines):
            for line in self._patiently(lines):
                if line.strip():
                    yield self._verdict(line, waiting)
            code = process.wait()
            if code:
                raise self._failed(f"it ended with exit code {code}{_last_words(complaints)}")
        if waiting:
            raise self._failed(f"it answered {len(pairs) - len(waiting)} of {len(pairs)} pairs")

    def _patiently(self, lines: queue.Queue[bytes | None]) -> Iterator[bytes]:
        """Yield lines until there are no more, and never wait long without asking whether to stop.

        Python handles signals in the main thread, which a signal that another thread receives does not wake from
        reading a pipe: so the reading is left to another, too.
        """
        while True:
            self._heed()
            try:
                line = lines.get(timeout=0.1)
            except queue.Empty:
                continue
            if line is None:
                return
            yield line

    @contextmanager
    def _started(
        self, complaints: IO[bytes], pairs: Sequence[Pair]
    ) -> Iterator[tuple[subprocess.Popen[bytes], queue.Queue[bytes | None]]]:
        """Run the program, feed it the pairs, and queue the lines it prints, None after the last."""
        try:
            # A session of its own: Ctrl-C is for us to handle, and ends the judge below.
            process = subprocess.Popen(
                shlex.split(self.command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                start_new_session=True,
            )
        except OSError as cause:
            raise self._failed(f"it cannot be started ({cause.strerror})") from cause
        lines: queue.Queue[bytes | None] = queue.Queue()
        threads = [
            threading.Thread(target=_feed, args=(process, pairs), daemon=True),
            threading.Thread(target=_listen, args=(process, lines), daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            yield process, lines
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it has started, which holds the pipes open
            process.wait()
            for thread in threads:
                thread.join()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]

    def _heed(self) -> None:
        if self.stopped():
            raise InterruptedRunError("interrupted", fix="run the same command again to resume")

    def _verdict(self, line: bytes, waiting: set[str]) -> Verdict:
        shown = printable(line.decode(errors="replace").strip(), 80)
        try:
            said = json.loads(line)
            name, preference = said["id"], said["preference"]
        except (ValueError, TypeError, KeyError, RecursionError) as cause:
            raise self._failed(f"it printed {shown!r}, which is no verdict") from cause
        if name not in waiting:
            raise self._failed(f"it judged {printable(str(name), 80)!r}, which it was not asked, or twice")
        number = isinstance(preference, int | float) and not isinstance(preference, bool)
        if preference is not None and not (number and 1 <= preference <= 2):
            raise self._failed(f"it printed {shown!r}, whose preference is not between 1 and 2")
        waiting.discard(name)
        if preference is None:
            return Verdict(name, None)
        return Verdict(name, 3.0 - preference if _candidate_first(name) else float(preference))

    def _failed(self, what: str) -> DamagedInputError:
        return DamagedInputError(
            what,
            where=f"the judge ({self.command})",
            fix="repair it and run the same command again: generated answers are kept",
        )


def _candidate_first(name: str) -> bool:
    return bool(zlib.crc32(name.encode()) & 1)


def _feed(process: subprocess.Popen[bytes], pairs: Sequence[Pair]) -> None:
    """Write the pairs; a program that ends early is found out by its exit code or by what is missing."""
    assert process.stdin is not None
    with suppress(OSError):
        for pair in pairs:
            first, second = pair.reference, pair.candidate
            if _candidate_first(pair.id):
                first, second = second, first
            line = {"id": pair.id, "instruction": pair.instruction, "output_1": first, "output_2": second}
            process.stdin.write(json.dumps(line).encode() + b"\n")
        process.stdin.close()


def _listen(process: subprocess.Popen[bytes], lines: queue.Queue[bytes | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def _last_words(complaints: IO[bytes]) -> str:
    size = complaints.seek(0, os.SEEK_END)
    complaints.seek(max(0, size - 4000))
    lines = complaints.read().decode(errors="replace").strip().splitlines()
    return f" ({printable(lines[-1].strip(), 160)})" if lines else ""


PROMPT = """\
Below are a request and two replies to it.

# Request
{instruction}

# Reply 1
{first}

# Reply 2
{second}

# Question
Which reply serves the person who made the request better: is it correct, does it do what was asked, is it clear? \
Neither its length nor its place counts. Say only the number of the better reply, 1 or 2."""
"""What a judge model is asked."""

_LEAD = "\n\n# Number of the better reply:"


@dataclass(frozen=True)
class ModelJudge:
    """Let a language model compare: how likely it is to say "2" rather than "1".

    With ℓ₁ and ℓ₂ the log-probabilities of the two verdicts after `PROMPT`, the candidate as reply 2 is better with
    p = 1 / (1 + exp(ℓ₁ − ℓ₂)); it is asked again as reply 1, and the preference is 1 plus the mean of the two, so a
    liking for a number or a position cancels. Nothing is sampled. The prompt goes through the model's chat template
    where it has one. A pair longer than the model's context loses its front.
    """

    folder: str
    load: Callable[[], LanguageModel]
    stopped: Callable[[], bool] = _never

    @cached_property
    def model(self) -> LanguageModel:
        """Load the model, once, when it is first asked."""
        return self.load()

    @property
    def name(self) -> str:
        """Return the folder's name."""
        return Path(self.folder).resolve().name

    @property
    def digest(self) -> str:
        """Hash the files of the folder that decide what the model says, and the prompt."""
        kept = (".safetensors", ".json", ".jinja", ".model", ".txt")
        files = sorted(p for p in Path(self.folder).iterdir() if p.is_file() and p.suffix in kept)
        return _digest("model", PROMPT + _LEAD, {p.name: sha256_of(p) for p in files})

    def compare(self, pairs: Sequence[Pair]) -> Iterator[Verdict]:
        """Load the model and yield a verdict for every pair, in order."""
        for pair in pairs:
            if self.stopped():
                raise InterruptedRunError("interrupted", fix="run the same command again to resume")
            # One pair at a time: sums depend in their last bits on what else is in a batch, and a resumed run
            # would have other batches.
            asked = [question for swap in (False, True) for question in self._questions(pair, swap)]
            one, two, swapped_one, swapped_two = (one.logprob for one in self.model.likelihoods(asked))
            better = (_sigmoid(two - one) + _sigmoid(swapped_one - swapped_two)) / 2
            yield Verdict(pair.id, 1.0 + better)

    def _questions(self, pair: Pair, swap: bool) -> tuple[Continuation, Continuation]:
        first, second = (pair.candidate, pair.reference) if swap else (pair.reference, pair.candidate)
        text = PROMPT.format(instruction=pair.instruction, first=first, second=second)
        laid = self.model.chat(text)
        # Without a template the model goes on with the text, so the text must lead up to the number.
        lead, space = ("", "") if laid != text else (_LEAD, " ")
        return Continuation(laid + lead, f"{space}1"), Continuation(laid + lead, f"{space}2")


def _sigmoid(x: float) -> float:
    if math.isnan(x):  # both verdicts impossible
        return 0.5
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _digest(*parts: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True).encode())
