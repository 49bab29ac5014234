"""What an honest program may count on, what its verdict says, and how the sandbox itself fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from sandboxes import children, tier_called, vanish

from deltasmith.errors import ResourceError
from deltasmith.evaluate.sandbox import Limits, Program, Tier, Verdict, run_many, run_program
from deltasmith.evaluate.sandbox.__main__ import main
from deltasmith.evaluate.sandbox.tiers import TIERS

STANDARD_LIBRARY = (
    "array, ast, asyncio, bisect, calendar, cmath, collections, contextlib, copy, csv, ctypes, "
    "dataclasses, datetime, decimal, difflib, enum, fractions, functools, hashlib, heapq, io, "
    "itertools, json, locale, logging, marshal, math, numbers, operator, pathlib, pickle, pprint, "
    "queue, random, re, select, signal, socket, ssl, statistics, string, struct, subprocess, sys, "
    "tempfile, textwrap, threading, time, timeit, traceback, typing, unicodedata, unittest, uuid, "
    "zlib"
)
PATIENT = Limits(seconds=30.0, cpu_seconds=30)


@pytest.fixture(scope="module")
def tier() -> Tier:
    """The one that users get."""
    return tier_called("auto")


@pytest.fixture(scope="module", params=TIERS)
def each_tier(request: pytest.FixtureRequest) -> Tier:
    return tier_called(request.param)


def test_a_right_program_passes_with_its_output(each_tier: Tier) -> None:
    verdict = run_program(
        "def f(x):\n    print('häß\\t\\x1b[2J')\n    return x + 1", "assert f(1) == 2", each_tier, PATIENT
    )
    assert verdict == Verdict(True, "passed", "häß     \\x1b[2J")


def test_candidate_then_setup_then_tests_share_a_namespace(tier: Tier) -> None:
    verdict = run_program("order = [1]", "assert order == [1, 2]", tier, PATIENT, setup="order.append(2)")
    assert verdict.passed


REASONS = [
    ("f = int", "", "pass\nassert f(2) == 3", "failed: AssertionError in line 2 of the tests"),
    ("f = int", "", "assert f(2) == 3, 'no'", "failed: AssertionError in line 1 of the tests: no"),
    ("\n1/0", "", "", "failed: ZeroDivisionError in line 2 of the candidate: division by zero"),
    ("", "g()", "", "failed: NameError in line 1 of the setup: name 'g' is not defined"),
    ("def f(:", "", "", "failed: SyntaxError: invalid syntax (<candidate>, line 1)"),
    ("", "", "def f(:", "failed: SyntaxError: invalid syntax (<tests>, line 1)"),
    ("x = bytes(10**12)", "", "", "memory: MemoryError in line 1 of the candidate"),
    ("raise ValueError('a\\nb\\x1b')", "", "", r"failed: ValueError in line 1 of the candidate: a b\x1b"),
    ("", "", "", "passed"),
]
HONEST = [
    "import threading\nt = threading.Thread(target=print); t.start(); t.join()",
    "from concurrent.futures import ThreadPoolExecutor\nx = list(ThreadPoolExecutor(4).map(abs, range(99)))",
    "import asyncio\nasync def f(): await asyncio.sleep(0)\nasyncio.run(f())",
    "import signal\nsignal.signal(signal.SIGALRM, print); signal.alarm(1); signal.alarm(0)",
    "import sys\nsys.setrecursionlimit(20000)\ndef f(n): return n and f(n - 1)\nf(15000)",
    "import collections, dataclasses, enum, typing\nP = collections.namedtuple('P', 'x')\n"
    "@dataclasses.dataclass\nclass D:\n    x: 'typing.List[int]'\nclass E(enum.Enum):\n    A = 1",
    "import pickle\nclass A: pass\npickle.loads(pickle.dumps(A()))",
    "import os\nos.makedirs('a/b')\nopen('a/b/c', 'w').write('x')\nos.rename('a/b/c', 'd')\nopen('d').read()",
    "import tempfile\nwith tempfile.TemporaryFile(dir='.') as f: f.write(b'x')",
    "import os, signal\nsignal.signal(signal.SIGUSR1, lambda *_: None)\nos.kill(os.getpid(), signal.SIGUSR1)",
    "import os\nassert os.listdir('.') == [] and dict(os.environ).keys() <= {'LC_CTYPE', 'PWD'}, dict(os.environ)",
    "assert __name__ == 'solution'",
    "import sys\nassert sys.stdin.read() == '' and sys.argv == ['solution'] and sys.flags.isolated",
    "import os\nn = 0\nfor i in range(3, 256):\n    try: os.fstat(i); n += 1\n    except OSError: pass\n"
    "assert n == 2, n",
    "import os\nassert os.getuid() != 0, 'NPROC does not bind root'",
    f"import {STANDARD_LIBRARY}\nassert random.random() < 1",
]


@pytest.fixture(scope="module")
def reasons(each_tier: Tier) -> list[str]:
    programs = [Program(candidate, tests, setup) for candidate, setup, tests, _ in REASONS]
    programs += [Program(candidate, "assert True") for candidate in HONEST]
    return [verdict.reason for verdict in run_many(programs, each_tier, PATIENT, workers=4)]


@pytest.mark.parametrize("index", range(len(REASONS)))
def test_the_reason_says_what_and_where(reasons: list[str], index: int) -> None:
    assert reasons[index] == REASONS[index][3]


@pytest.mark.parametrize("index", range(len(HONEST)))
def test_honest_programs_pass(reasons: list[str], index: int) -> None:
    assert reasons[len(REASONS) + index] == "passed", HONEST[index]


def test_nothing_of_this_process_is_inherited(tier: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_SECRET", "x")
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    candidate = f"import os\nassert 'SANDBOX_SECRET' not in os.environ\nos.fstat({reading})"
    reason = run_program(candidate, "", tier, PATIENT).reason
    # The runner's own two descriptors lie at random places from 10 on.
    assert "Bad file descriptor" in reason or (reading >= 10 and reason == "passed")
    os.close(reading)
    os.close(writing)


def test_output_is_cut(each_tier: Tier) -> None:
    verdict = run_program("print('x' * 1_000_000)", "assert True", each_tier, PATIENT)
    assert verdict.passed
    assert verdict.output == "x" * (64 << 10)


def test_long_sources_arrive(tier: Tier) -> None:
    verdict = run_program(
        "x = 0\n" + "x += 1\n" * 30_000, "assert x == 30_000\n" + "# long\n" * 100_000, tier, PATIENT
    )
    assert verdict.reason == "passed"


def test_tests_that_the_program_never_reads_do_not_hang(tier: Tier) -> None:
    candidate = "import os, time\nos.closerange(3, 256)\ntime.sleep(600)"
    verdict = run_program(candidate, "# long\n" * 100_000, tier, Limits(seconds=1.0))
    assert verdict.reason == "timed out"


def test_processor_time_of_all_threads_is_bounded(tier: Tier) -> None:
    verdict = run_program("while True: pass", "", tier, Limits(seconds=60.0, cpu_seconds=1))
    assert verdict.reason == "timed out: processor time"


def test_a_busy_machine_does_not_change_a_verdict(tier: Tier) -> None:
    """Four programs of 0.3 s for every processor, all at once: each waits longer than it may take."""
    candidate = "import time\nwhile time.process_time() < 0.3: pass"
    count = 4 * len(os.sched_getaffinity(0))
    if count > 48:
        pytest.skip("too many processors to keep busy")
    verdicts = run_many([Program(candidate, "assert True")] * count, tier, Limits(seconds=0.6), workers=count)
    assert {verdict.reason for verdict in verdicts} == {"passed"}


def test_memory_is_bounded(tier: Tier) -> None:
    candidate = "x = bytearray(200 << 20)"
    assert run_program(candidate, "assert True", tier, PATIENT).passed
    verdict = run_program(candidate, "assert True", tier, replace(PATIENT, memory=100 << 20))
    assert verdict.reason == "memory: MemoryError in line 1 of the candidate"


def test_an_object_equal_to_everything_passes_and_nothing_can_be_done(tier: Tier) -> None:
    """The limit of every test by assertions: docs/sandbox.md says so."""
    candidate = "class Any:\n    def __eq__(self, other): return True\ndef f(x): return Any()"
    assert run_program(candidate, "assert f(1) == 2", tier, PATIENT).passed


def test_an_orphan_dies_even_without_a_sandbox() -> None:
    tier = tier_called("unsafe")
    candidate = "import os, time\nif not os.fork():\n    os.setsid()\n    os.fork()\n    time.sleep(600)"
    assert run_program(candidate, "assert True", tier, PATIENT).reason == "passed"
    assert vanish()


def test_nothing_survives_the_evaluation_itself(each_tier: Tier, tmp_path: Path) -> None:
    code = (
        "from deltasmith.evaluate.sandbox import *\n"
        f"print(run_program('import time; time.sleep(600)', '', choose_tier({each_tier.name!r}), Limits(seconds=600)))"
    )
    before = children()
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # it cannot tidy up
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.DEVNULL, env=environment
    ) as evaluation:
        until = time.monotonic() + 60
        while len(children() - before) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.3)
        evaluation.send_signal(signal.SIGKILL)
    assert vanish()


def test_folders_are_removed_however_they_are_left(
    each_tier: Tier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    candidate = (
        "import os\nos.mkdir('closed', 0)\nos.symlink('/', 'root')\nos.symlink('.', 'self')\nopen('x', 'w')\n"
        "for i in range(300): os.mkdir('d'); os.chdir('d')"
    )
    run_program(candidate, "assert True", each_tier, PATIENT)
    assert list(tmp_path.iterdir()) == []


def test_many_programs_keep_their_order(tier: Tier) -> None:
    programs = [
        Program(f"import time; time.sleep({0.2 if i == 0 else 0}); x = {i}", f"assert x == {i % 3}")
        for i in range(9)
    ]
    verdicts = list(run_many(programs, tier, PATIENT, workers=3))
    assert [v.passed for v in verdicts] == [i == i % 3 for i in range(9)]
    assert list(run_many([], tier)) == []


def test_a_sandbox_that_cannot_be_set_up_is_no_verdict(each_tier: Tier) -> None:
    if each_tier.name == "unsafe":
        pytest.skip("it sets nothing up")
    with pytest.raises(ResourceError, match=f"could not be set up: .*/nowhere.* in tier {each_tier.name}"):
        run_program("", "", replace(each_tier, readable=(*each_tier.readable, "/nowhere/at/all")))
    with pytest.raises(ResourceError, match="cannot start"):
        run_program("", "", replace(each_tier, python="/nowhere/python", bubblewrap=""))


ROWS = [
    {
        "task_id": 1,
        "code": "def inc(x):\r\n\treturn x + 1",
        "test_list": ["assert inc(1) == 2", "assert inc(0) == 1"],
    },
    {
        "task_id": 2,
        "code": "class P: pass",
        "test_setup_code": "p = P()\np.x = 1",
        "test_list": ["assert p.x == 1"],
    },
    {
        "task_id": 3,
        "code": "f = int",
        "test_list": ["assert f('1') == 1"],
        "challenge_test_list": ["assert f('2') == 1"],
    },
]


def test_a_file_of_reference_solutions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tier = tier_called("auto")
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS[:2])))
    assert main([str(file), "--seconds", "30"]) == 0
    assert capsys.readouterr().out.startswith(f"2 of 2 passed; {tier.describe().partition(' (')[0]}")
    file.write_text("\n".join(map(json.dumps, ROWS)))
    assert main([str(file), "--seconds", "30"]) == 6
    assert capsys.readouterr().out.startswith(
        "3: failed: AssertionError in line 2 of the tests\n2 of 3 passed"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "line 1 is no record"), ('{"task_id": 1}', "KeyError"), (None, "cannot be read")],
)
def test_a_damaged_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "rows.jsonl").write_text(content)
    assert main([str(tmp_path / "rows.jsonl")]) == 3
    assert words in capsys.readouterr().err
