"""The experiment's texts: generated programs are Lua, stories read as such, and no text is on both sides."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import zlib
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from deltasmith.errors import DamagedInputError
from deltasmith.lab.features.corpora import DOMAINS, Texts, gather, read_documents
from deltasmith.lab.features.grammar import Grammar, rules_of
from deltasmith.lab.features.lua_idioms import IDIOMS
from deltasmith.lab.features.lua_programs import Writer, programs
from deltasmith.lab.features.stories import stories

ROOT = Path(__file__).parents[2]


def taken(made, seed: str, count: int) -> list[str]:
    return list(itertools.islice(made(Random(seed)), count))


@pytest.mark.parametrize("made", [programs, stories])
def test_texts_are_decided_by_the_seed(made) -> None:
    assert taken(made, "a", 5) == taken(made, "a", 5)
    assert taken(made, "a", 5) != taken(made, "b", 5)


@pytest.mark.parametrize(("made", "least"), [(programs, 0.2), (stories, 0.12)])
def test_texts_are_not_trivially_compressible(made, least: float) -> None:
    text = "\n".join(taken(made, "c", 300)).encode()
    assert len(zlib.compress(text, 9)) / len(text) > least
    assert len(set(taken(made, "c", 300))) == 300


def test_blocks_are_closed_and_names_declared() -> None:
    for text in taken(programs, "d", 60):
        bare = re.sub(r"--\[\[.*?\]\]|--[^\n]*|\"[^\"\n]*\"|'[^'\n]*'", "", text, flags=re.S)
        words = Counter(re.findall(r"[A-Za-z_]+", bare))
        opened = words["function"] + words["then"] - words["elseif"] + words["do"]
        assert opened == words["end"]
        assert words["repeat"] == words["until"]
        assert text.endswith("\n")


@pytest.mark.skipif(shutil.which("luac") is None, reason="needs luac (a Lua 5.4 installation)")
def test_a_lua_compiler_accepts_every_program(tmp_path: Path) -> None:
    path = tmp_path / "program.lua"
    for text in taken(programs, "e", 60):
        path.write_text(text, encoding="utf-8")
        done = subprocess.run(["luac", "-p", str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("luac") is None, reason="needs luac (a Lua 5.4 installation)")
@pytest.mark.parametrize("idiom", IDIOMS, ids=lambda idiom: idiom.__name__)
def test_a_lua_compiler_accepts_every_idiom(idiom, tmp_path: Path) -> None:
    path = tmp_path / "program.lua"
    for seed in range(5):
        writer = Writer(Random(seed))
        writer.line("local M = {}")
        idiom(writer)
        path.write_text("\n".join(writer.lines) + "\n", encoding="utf-8")
        done = subprocess.run(["luac", "-p", str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stderr, path.read_text(encoding="utf-8"))


def test_stories_have_a_beginning_speech_and_no_mark_left() -> None:
    found = taken(stories, "f", 200)
    assert not any(re.search(r"[\[\]{}]", text) for text in found)
    assert sum('"' in text for text in found) > 150
    assert not any(re.search(r"\ba [aeio]", text) for text in found)
    assert not any(re.search(r"[.!?] [a-z]", text) for text in found)


def test_a_grammar_keeps_the_texts_own_values() -> None:
    grammar = Grammar(rules_of("fruit = apple\nline:\n {name} eats a [fruit]. {name} sleeps.\n"))
    assert grammar.expand("[line]", Random(0), {"name": "Ann"}) == "Ann eats an apple. Ann sleeps."


def test_no_document_is_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltasmith.lab.features.corpora._LIMITS", dict.fromkeys(DOMAINS, 60_000))
    record = gather(tmp_path, Texts(seed=3))
    for domain in DOMAINS:
        train, kept = (
            read_documents(tmp_path / f"{domain}.{split}.jsonl") for split in ("train", "features")
        )
        assert not set(train) & set(kept)
        assert record[domain]["train"]["documents"] == len(train)
        assert record[domain]["features"]["characters"] == sum(map(len, kept)) > 0
    assert {record[domain]["train"]["sha256"] for domain in DOMAINS} != {record["lua"]["train"]["sha256"]}


def test_a_users_own_texts_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for number in range(8):
        (mine / f"{number}.lua").write_text(f"print({number})\n", encoding="utf-8")
    (mine / "picture.png").write_bytes(b"\xff\xfe\x00binary")
    documents = sorted(Texts(lua=mine).documents("lua"))
    assert documents == sorted(f"print({number})\n\n\n" for number in range(8))
    with pytest.raises(DamagedInputError, match="no texts"):
        list(Texts(stories=tmp_path / "nowhere").documents("stories"))
    one = tmp_path / "one"
    one.mkdir()
    (one / "a.txt").write_text("x", encoding="utf-8")
    with pytest.raises(DamagedInputError, match="next to no text"):
        gather(tmp_path / "out", Texts(english=one))


def test_the_repositorys_english_is_public_domain_and_said_to_be() -> None:
    readme = (ROOT / "lab" / "corpora" / "README.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "lab" / "corpora").glob("*.txt")):
        assert path.name in readme
    assert "public domain" in readme
