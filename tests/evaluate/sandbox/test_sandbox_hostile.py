"""Hostile programs, under every tier that works here: contained, scored as failed, nothing left of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hostile import ATTACKS, FORGERIES, GREEDY, Hostile, programs
from sandboxes import ISOLATING, tier_called, vanish

from deltasmith.evaluate.sandbox import Limits, Tier, Verdict, run_many
from deltasmith.evaluate.sandbox.tiers import TIERS

LIMITS = Limits(seconds=10.0, memory=256 << 20, file_bytes=1 << 20)
SHORT = replace(LIMITS, seconds=0.5)  # for those that use up whatever they are given
WORKERS = 6

Verdicts = dict[str, Verdict]


def judged(hostile: dict[str, Hostile], tier: Tier, limits: Limits, **places: object) -> Verdicts:
    """Run a set, and check that every process of it is gone."""
    verdicts = dict(zip(hostile, run_many(programs(hostile, **places), tier, limits, WORKERS), strict=True))
    assert vanish(), "processes are left over"
    return verdicts


@pytest.fixture(scope="module", params=ISOLATING)
def attacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verdicts]:
    """The verdicts of all attacks on the machine, after a look at what they attacked."""
    tier = tier_called(request.param)
    home = tmp_path_factory.mktemp("home")
    secret = home / "secret"
    secret.write_text("secret")
    for place in (home, secret):
        place.chmod(0o777)
    before = secret.stat()
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander,
        socket.create_server(("127.0.0.1", 0)) as server,
        tempfile.TemporaryDirectory() as short,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as local,
    ):
        local.bind(f"{short}/socket")
        local.setblocking(False)
        verdicts = judged(
            ATTACKS,
            tier,
            LIMITS,
            secret=str(secret),
            folder=str(home),
            parent=os.getpid(),
            bystander=bystander.pid,
            port=server.getsockname()[1],
            socket=f"{short}/socket",
        )
        assert bystander.poll() is None
        bystander.kill()
        with pytest.raises(BlockingIOError):
            local.recv(1)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    after = secret.stat()
    assert [p.name for p in home.iterdir()] == ["secret"]
    assert (after.st_mode, after.st_mtime_ns, after.st_size) == (before.st_mode, before.st_mtime_ns, 6)
    return verdicts


@pytest.fixture(scope="module", params=TIERS)
def exhausted(request: pytest.FixtureRequest) -> Verdicts:
    return judged(GREEDY, tier_called(request.param), SHORT)


@pytest.fixture(scope="module", params=TIERS)
def deceived(request: pytest.FixtureRequest) -> Verdicts:
    return judged(FORGERIES, tier_called(request.param), LIMITS)


def check(verdict: Verdict, hostile: Hostile) -> None:
    assert not verdict.passed
    assert any(word in verdict.reason for word in hostile.says), verdict.reason
    assert verdict.reason.isprintable()
    assert len(verdict.output) <= 1 << 18
    assert all(c.isprintable() or c == "\n" for c in verdict.output)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_on_the_machine_is_contained(attacked: Verdicts, name: str) -> None:
    check(attacked[name], ATTACKS[name])


@pytest.mark.parametrize("name", GREEDY)
def test_greed_is_bounded(exhausted: Verdicts, name: str) -> None:
    check(exhausted[name], GREEDY[name])


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_verdict_fails(deceived: Verdicts, name: str) -> None:
    check(deceived[name], FORGERIES[name])
