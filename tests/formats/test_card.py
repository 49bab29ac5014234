"""The model card: front matter the hub understands, and nothing that runs."""

import pytest
import yaml

from deltasmith.formats.card import Parent, common_licence, front_matter, licence_of, model_card

BASE = Parent("base", "org/base", "base", "", "apache-2.0")
MATH = Parent("math", "org/math", "model", "0.5", "apache-2.0")
LOCAL = Parent("local", "/home/me/local", "model", "1", "apache-2.0")


def card(*parents, name="merged", recipe="merge: sum\n"):
    text, warnings = model_card(name, parents, recipe, merge="sum", version="0.1.0")
    return text.decode(), warnings


def test_front_matter_by_hand():
    text, warnings = card(BASE, MATH, LOCAL)
    assert text.startswith(
        "---\nbase_model:\n- org/base\n- org/math\nbase_model_relation: merge\nlibrary_name: transformers\n"
        "tags:\n- merge\n- deltasmith\nlicense: apache-2.0\n---\n\n# merged\n"
    )
    assert warnings == ()
    assert "| local | local | model | 1 |" in text
    assert "/home/me" not in text
    assert text.endswith("```yaml\nmerge: sum\n```\n")


def test_local_models_alone_claim_no_base_on_the_hub():
    front = front_matter(card(LOCAL)[0])
    assert "base_model" not in front
    assert "base_model_relation" not in front


@pytest.mark.parametrize(
    ("licences", "common"),
    [
        (["mit", "mit"], "mit"),
        (["mit", None], None),
        (["llama3", "apache-2.0"], None),
        (["other", "other"], None),
        ([None, None], None),
        ([], None),
    ],
)
def test_a_licence_is_stated_only_if_it_is_common(licences, common):
    parents = [Parent(f"m{i}", "o/m", licence=licence) for i, licence in enumerate(licences)]
    found, warnings = common_licence(parents)
    assert found == common
    assert (warnings == ()) == (common is not None)
    assert front_matter(card(*parents)[0]).get("license") == common


def test_the_warning_says_who_says_what():
    parents = [Parent("a", "o/a", licence="mit"), Parent("b\x1b", "o/b")]
    (warning,) = common_licence(parents)[1]
    assert warning.startswith(r"the inputs' licences are not one (a: mit, b\x1b: not stated), so the card")


HOSTILE = [
    "---\nlicense: evil",
    "</script><script>alert(1)</script>",
    "x | y\n| z",
    "[a](javascript:alert(1))",
    "![](http://x)",
    "`code`",
    "\x1b[31m\u202e",
    "# head",
    "${jndi}",
    "&lt;",
]


@pytest.mark.parametrize("evil", HOSTILE)
def test_fault_31_hostile_names_stay_text(evil):
    text, _ = card(BASE, Parent(evil, evil, evil, evil), name=evil, recipe=f"a: 1\n```\n{evil}\n````")
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == ["org/base"]
    head, _, recipe = text.partition("## Recipe")
    for raw in ("<script", "](javascript", "![", "\x1b", "\u202e", "\n| z"):
        assert raw not in head
    assert "\x1b" not in recipe
    assert "\u202e" not in recipe
    lines = recipe.strip().splitlines()
    assert lines[0] == "`````yaml"
    assert lines[-1] == "`````"
    assert lines.index("`````", 1) == len(lines) - 1
    rows = [line for line in head.splitlines() if line.startswith("| ")]
    assert len(rows) == 3


def test_a_source_that_only_looks_like_yaml_is_quoted():
    front = front_matter(card(Parent("a", "1e3/true"), Parent("b", "no/~"))[0])
    assert front["base_model"] == ["1e3/true"]


def test_licences_are_read_from_cards(tmp_path):
    assert licence_of(tmp_path) is None
    for text, expected in {
        "---\nlicense: mit\n---\n# x": "mit",
        "---\r\nlicense: apache-2.0\r\n---\r\n": "apache-2.0",
        "\ufeff---\nlicense: mit\n---": "mit",
        "# no front matter": None,
        "---\nlicense: [a, b]\n---\n": None,
        "---\nlicense: 'a b\u202e'\n---\n": None,
        "---\na: &x mit\nlicense: *x\n---\n": None,
        "---\n{\n---\n": None,
        "---\n- a\n---\n": None,
        "---\n" + "[" * 5000 + "\n---\n": None,
        "": None,
    }.items():
        (tmp_path / "README.md").write_bytes(text.encode())
        assert licence_of(tmp_path) == expected, text[:40]
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").mkdir()
    assert licence_of(tmp_path) is None
