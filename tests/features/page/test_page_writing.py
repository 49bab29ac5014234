"""The file as a whole: what stands in it, what it may do, and that it is the same for the same inputs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_findings import made_patterns, made_sweep

from deltasmith.errors import DamagedInputError, RecipeError, RefusedError
from deltasmith.features.following import match
from deltasmith.features.outcome import Outcome
from deltasmith.features.outcome_files import write_outcome
from deltasmith.features.page.writing import report
from deltasmith.features.study import Study
from features.made_studies import HOSTILE, WORDS, made_study, sealed


class Parsed(HTMLParser):
    """Every element with its attributes, and the text of each script and style."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.words: list[str] = []
        self.inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag if tag in self.raw else ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        (self.raw[self.inside] if self.inside else self.words).append(data)

    @property
    def data(self) -> dict:
        return json.loads(self.raw["script"][0])

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture(scope="module")
def page(matched: Path, study: Study, outcome: Outcome, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("out")
    made_patterns(study, outcome, folder / "patterns.json")
    made_sweep(study, folder / "t.json")
    made_sweep(study, folder / "scale.json", axis="scale")
    out = report(
        matched,
        folder / "report.html",
        sweep=[folder / "t.json", folder / "scale.json"],
        patterns=folder / "patterns.json",
    )
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_study(tmp_path_factory.mktemp("hostile") / "study", words=WORDS + HOSTILE, tokens=2500).folder


def test_the_policy_allows_this_script_and_this_style_and_nothing_else(page: str) -> None:
    parsed = Parsed(page)
    policy = next(a["content"] for t, a in parsed.elements if t == "meta" and "http-equiv" in a)
    allowed = dict(part.split(" ", 1) for part in (policy or "").split("; "))
    assert allowed["default-src"] == allowed["base-uri"] == allowed["form-action"] == "'none'"
    for kind, code in (("script-src", parsed.raw["script"][1]), ("style-src", parsed.raw["style"][0])):
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert allowed[kind] == f"'sha256-{digest}'"
    assert set(allowed) == {"default-src", "base-uri", "form-action", "script-src", "style-src"}


def test_nothing_is_loaded_and_no_attribute_acts(page: str) -> None:
    parsed = Parsed(page)
    for tag, attributes in parsed.elements:
        assert tag not in {
            "img",
            "link",
            "iframe",
            "object",
            "embed",
            "form",
            "base",
            "video",
            "audio",
            "source",
        }
        assert not {"src", "style", "srcset", "action", "xlink:href"} & set(attributes), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("href") or "#").startswith("#")
    assert len(parsed.raw["script"]) == 2
    script = parsed.raw["script"][1]
    banned = (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "fetch(",
        "import(",
    )
    assert not [word for word in banned if word in script]
    outside = re.sub(r"http://www\.w3\.org/2000/svg", "", page)
    assert "http:" not in outside
    assert "https:" not in outside


def test_the_parts_come_in_their_order(page: str) -> None:
    """First whether to believe it, then the map, the rates, the features, the sweep, the details."""
    marks = [
        "From <b>base</b>",
        "Is each dictionary usable?",
        "Is each model usable?",
        "Floors:",
        '<h2 id="map">',
    ]
    marks += ["What became of the features", "Not one threshold", "Where the features of merged come from"]
    marks += ["<h2>Features</h2>", "<h2>Along the merge</h2>", "<h2>Details</h2>", "Save as JSON"]
    places = [page.index(mark) for mark in marks]
    assert places == sorted(places)


def test_rates_stand_beside_their_floors_with_words(page: str, outcome: Outcome) -> None:
    said = Parsed(page).text
    edge = outcome.edge("base", "lua")
    assert f"{100 * edge.rates['persisted'].value:.1f} %" in said
    assert "base~again" in said
    assert "base~seed1" in said
    assert "14 only there, 0 only here, p = 0.00012" in said
    assert said.count("for comparison: afresh with another seed: 82.8 %") == len(outcome.edges)
    assert said.count("; for comparison only") == 1
    assert "fewer than the floor" in said
    assert "51.7 %" in said
    assert "permuted tokens" in said


def test_an_edge_that_cannot_be_told_from_its_floor_says_so(
    study: Study, outcome: Outcome, tmp_path: Path
) -> None:
    same = "no evidence that features changed"
    quiet = replace(outcome, edges=(replace(outcome.edges[0], verdict=same), *outcome.edges[1:]))
    write_outcome(quiet, tmp_path / "match")
    page = report(study, tmp_path / "a.html", match=tmp_path / "match").read_text()
    assert page.count(f'class="verdict v-same">{same}') == 2  # in the head, and in the row of the edge
    rows = re.findall(r"<tr>.*?</tr>", page)
    assert [row for row in rows if same in row and "base → lua" in row]


def test_cards_hold_the_same_sentences_under_every_model(page: str, study: Study) -> None:
    data = Parsed(page).data
    card = next(c for c in data["cards"] if (c["model"], c["feature"]) == (0, 3))
    assert [c["feature"] for c in card["columns"]] == [3, 3, 3, 3]
    base, texts = study.codes("base").dense(), study.texts
    assert card["columns"][0]["fires"] == (base[:, 3] > 0).sum()
    assert card["columns"][0]["maximum"] == pytest.approx(base[:, 3].max(), rel=1e-2)
    window, levels = card["windows"][0], card["columns"][0]["levels"][0]
    words = [data["words"][at] for at in window["tokens"]]
    ids = study.held_out.ids
    start = next(
        at
        for at in range(len(ids))
        if [texts[int(t)].replace("\n", "↵") for t in ids[at : at + len(words)]] == words
    )
    shown = dict(zip(levels[::2], levels[1::2], strict=True))
    column = base[start : start + len(words), 3]
    assert set(shown) == set(column.nonzero()[0].tolist())
    for place, level in shown.items():
        assert level == max(1, round(float(column[place] / base[:, 3].max()) * 99))
    assert len(card["columns"][0]["raised"]) == len(card["columns"][0]["lowered"]) == 10


def test_every_edge_of_a_card_has_r_cosine_and_a_runner_up(page: str, outcome: Outcome) -> None:
    data = Parsed(page).data
    card = next(c for c in data["cards"] if (c["model"], c["feature"]) == (0, 31))
    by_edge = {
        (data["edges"][e["edge"]]["parent"], data["edges"][e["edge"]]["child"]): e for e in card["edges"]
    }
    kept, lost = by_edge["base", "stories"], by_edge["base", "lua"]
    links = outcome.edge("base", "stories").parents
    assert kept["r"] == pytest.approx(links.r[31], abs=2e-3)
    assert kept["cosine"] == pytest.approx(links.cosine[31], abs=2e-3)
    assert (kept["next"], kept["next_r"]) == (links.second[31], pytest.approx(links.second_r[31], abs=2e-3))
    assert (kept["fate"], kept["best"]) == ("persisted", True)
    assert lost["fate"] == "disappeared"
    assert lost["r"] < 0.5
    assert [c["linked"] for c in card["columns"]] == [True, False, True, True]
    back = by_edge["lua", "merged"]  # lua has merely something near it: told from the merge's end
    assert (lost["status"], kept["status"], back["status"]) == ("disappeared", "persisted", "emerged")
    near = outcome.edge("lua", "merged").children
    assert back["next"] in (near.best[31], near.second[31])


def test_edges_between_mere_neighbours_are_left_out(page: str) -> None:
    data = Parsed(page).data
    card = next(c for c in data["cards"] if (c["model"], c["feature"]) == (0, 40))  # in the base alone
    assert [c["linked"] if c else None for c in card["columns"]] == [True, False, False, False]
    told = [data["edges"][e["edge"]] for e in card["edges"]]
    assert {edge["parent"] for edge in told} == {"base"}
    assert {e["status"] for e in card["edges"]} == {"disappeared"}


def test_patterns_and_sweeps_have_their_places(page: str) -> None:
    parsed = Parsed(page)
    data = parsed.data
    titles = [g["title"] for g in data["galleries"] if g["group"] == "Patterns"]
    assert titles == ["assignment", "the end"]
    assert all(g["cards"] for g in data["galleries"] if g["group"] == "Patterns")
    assert any(found["pattern"] == "assignment" for card in data["cards"] for found in card["patterns"])
    assert "slerp.yaml: t from 0 to 1" in parsed.text
    assert "slerp.yaml: scale from 0 to 1" in parsed.text
    assert "the merge <b>overflows</b>" in parsed.text
    assert "<b>overflows" not in page
    assert "The best mean accuracy, 46.0 %, is at" in parsed.text


def test_the_same_inputs_give_the_same_bytes(matched: Path, tmp_path: Path) -> None:
    one, other = (report(matched, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert one == other
    assert str(tmp_path).encode() not in one
    assert str(matched).encode() not in one


def test_hostile_tokens_and_labels_stay_text(hostile: Path, tmp_path: Path) -> None:
    page = report(hostile, tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<script>window.hacked" not in page
    assert "<img" not in page
    assert not set(page) & {"\u202e", "\u2028", "\x00"}
    words = Parsed(page).data["words"]
    assert "</script><script>window.hacked=1</script" in " ".join(words)
    assert "⟨202E⟩evil" in "".join(words)
    assert max(map(len, words)) <= 60
    assert len(Parsed(page).raw["script"]) == 2


def test_labels_may_hold_anything(study: Study, tmp_path: Path) -> None:
    label = "\"><script>x</script> 'q'"
    document = json.loads((study.folder / "study.json").read_text())
    document["graph"][0]["label"] = label
    for node in document["graph"]:
        node["parents"] = [label if parent == "base" else parent for parent in node["parents"]]
        node["base"] = label if node["base"] else None
    for member in document["members"]:
        if member["label"] == "base":
            member["label"], member["name"] = label, member["name"].replace("base", label)
    document["scores"][label] = document["scores"].pop("base")
    folder = tmp_path / "study"
    shutil.copytree(study.folder, folder, ignore=shutil.ignore_patterns("match"))
    (folder / "study.json").write_text(json.dumps(document))
    safe = Study.open(folder)
    aliases = {label: "base", f"{label}~again": "base~again", f"{label}~seed1": "base~seed1"}
    reader = _Aliased(safe.folder, safe.document, safe.graph, safe.members, safe.scores, aliases)
    page = report(reader, tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<script>x" not in page
    assert "&quot;&gt;&lt;script&gt;x&lt;/script&gt; &#x27;q&#x27;" in page
    assert len(Parsed(page).raw["script"]) == 2
    assert Parsed(page).data["models"][0] == label


class _Aliased(Study):
    """A study whose files have plainer names than its models."""

    def __init__(self, *parts: object) -> None:
        *fields, aliases = parts
        super().__init__(*fields)
        object.__setattr__(self, "aliases", aliases)

    def codes(self, member: str):
        return super().codes(self.aliases.get(member, member))

    def effects(self, member: str):
        return super().effects(self.aliases.get(member, member))

    def decoder(self, member: str):
        return super().decoder(self.aliases.get(member, member))


def test_a_redacted_page_has_no_word_of_the_corpora(study: Study, tmp_path: Path, matched: Path) -> None:
    secret = tmp_path / "study"
    shutil.copytree(matched, secret)
    texts = {str(at): f"secretword{at} " for at in range(len(WORDS))}
    (secret / "tokens.json").write_text(json.dumps(texts))
    for file in (secret / "effects").iterdir():  # what a feature raises comes from the vocabulary, and stays
        file.unlink()
        shutil.copy(study.folder / "effects" / file.name, file)
    sealed(secret)
    match(secret, resamples=0, overwrite=True)
    page = Parsed(report(secret, tmp_path / "a.html", redact=True).read_text()).data
    assert page["redacted"]
    for card in page["cards"]:
        shown = {page["words"][at] for w in card["windows"] for at in w["tokens"]}
        assert all(set(word) == {"•"} for word in shown)
        assert {page["words"][at] for at, _ in card["types"]} <= shown | {"•" * 11, "•" * 12}
        assert any(levels for levels in card["columns"][card["model"]]["levels"])
    plain = report(secret, tmp_path / "b.html").read_text()
    assert "secretword3" in plain


def test_the_number_of_cards_is_capped(matched: Path, tmp_path: Path) -> None:
    data = Parsed(report(matched, tmp_path / "a.html", features=7).read_text()).data
    assert len(data["cards"]) == 7
    assert {number for g in data["galleries"] for number in g["cards"]} == set(range(7))
    assert next(g for g in data["galleries"] if g["title"] == "Universal")["total"] == 30


def test_effects_may_be_undefined(study: Study, tmp_path: Path) -> None:
    from deltasmith.features.study import Effects, written_effects

    folder = tmp_path / "study"
    shutil.copytree(study.folder, folder)
    for file in (folder / "effects").iterdir():
        whole = study.effects(file.stem)
        empty = Effects(*(array[:, :0] for array in vars(whole).values()))
        file.write_bytes(written_effects(empty))
    sealed(folder)
    match(folder, resamples=0, overwrite=True)
    data = Parsed(report(folder, tmp_path / "a.html").read_text()).data
    assert all(column["raised"] == [] for card in data["cards"] for column in card["columns"] if column)


def test_features_are_matched_where_they_were_not(study: Study, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(study.folder, folder, ignore=shutil.ignore_patterns("match"))
    report(folder, tmp_path / "a.html")
    assert (folder / "match" / "features.json").is_file()


def test_what_belongs_to_another_study_is_refused(study: Study, hostile: Path, tmp_path: Path) -> None:
    made_sweep(study, tmp_path / "sweep.json")
    document = json.loads((hostile / "study.json").read_text()) | {"seed": 5}
    (hostile / "study.json").write_text(json.dumps(document))
    with pytest.raises(RefusedError, match="belongs to another study"):
        report(hostile, tmp_path / "a.html", sweep=tmp_path / "sweep.json")
    with pytest.raises(
        RefusedError,
        match=r"another study, or to an earlier state of this one in .*match; run `deltasmith features match`",
    ):
        report(hostile, tmp_path / "a.html", match=study.folder / "match")
    assert not (tmp_path / "a.html").exists()


def test_outputs_are_not_written_over(matched: Path, tmp_path: Path) -> None:
    page, other = tmp_path / "a.html", tmp_path / "notes.txt"
    other.write_text("mine")
    report(matched, page, features=1)
    with pytest.raises(
        RefusedError, match=r"the output exists in .*; choose another, or replace it with --overwrite"
    ):
        report(matched, page)
    report(matched, page, features=2, overwrite=True)
    with pytest.raises(RefusedError, match="to be replaced is no page"):
        report(matched, other, overwrite=True)
    with pytest.raises(RefusedError, match="the output is a folder"):
        report(matched, tmp_path, overwrite=True)
    assert other.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "notes.txt"]


def test_numbers_that_make_no_sense_are_refused(matched: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="0 features cannot be shown; give 1 or more"):
        report(matched, tmp_path / "a.html", features=0)
    with pytest.raises(DamagedInputError, match=r"there is no features\.json"):
        report(matched, tmp_path / "a.html", match=tmp_path)
