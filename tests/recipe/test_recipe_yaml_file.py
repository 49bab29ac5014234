from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasmith.errors import RecipeError
from deltasmith.recipe.checks import load
from deltasmith.recipe.tree import Keyed, Listing, Scalar, plain
from deltasmith.recipe.yaml_file import MAX_NODES, parse, read_text, resolve_scalar, to_yaml


def assert_refused(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(text, "recipe.yaml")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E+2", 100.0),
        ("-.5", -0.5),
        ("5.", 5.0),
        ("012", 12),
        ("0o12", 10),
        ("0x1F", 31),
        ("-7", -7),
        ("1e400", float("inf")),
        ("9" * 5000, float("inf")),
        ("-.inf", float("-inf")),
        ("true", True),
        ("~", None),
        ("", None),
        ("null", None),
        *(
            (word, word)
            for word in ("no", "on", "off", "yes", "y", "12:30:45", "1_000", "2020-01-01", "<<", "1e", ".")
        ),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    found = resolve_scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_every_key_and_value_knows_its_place():
    root = parse("a: 1\nb:\n  - {c: x, d: [2]}\n", "r.yaml")
    assert isinstance(root, Keyed)
    assert str(root.entry("b").mark) == "r.yaml:2:1"
    item = root.get("b").items[0]
    assert str(item.entry("d").mark) == "r.yaml:3:12"
    assert str(item.get("d").items[0].mark) == "r.yaml:3:16"
    assert plain(root) == {"a": 1, "b": [{"c": "x", "d": [2]}]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "recipe.yaml is empty; a recipe needs at least `models:`"),
        ("# nothing\n\n", "recipe.yaml is empty; a recipe needs at least `models:`"),
        ("---\n", "recipe.yaml is empty; a recipe needs at least `models:`"),
        ("a: 1\na: 2", 'recipe.yaml:2:1: the key "a" occurs twice (first in line 1); remove one of them'),
        (
            "{a: {b: 1, b: 2}}",
            'recipe.yaml:1:12: the key "b" occurs twice (first in line 1); remove one of them',
        ),
        ("a: &x 1\nb: *x", "recipe.yaml:1:4: anchors and aliases are not allowed; write the value out"),
        ("a: *x", "recipe.yaml:1:4: anchors and aliases are not allowed; write the value out"),
        ("a:\n\tb: 1", "recipe.yaml:2:1: a tab in the indentation; use spaces"),
        ("a: 1\n---\nb: 2", "recipe.yaml:2:1: a second document; a recipe file holds one recipe"),
        ("a: !!int '3'", "recipe.yaml:1:4: the tag tag:yaml.org,2002:int is not allowed; leave it out"),
        ("1: 2", "recipe.yaml:1:1: the key 1 is not text; put it in quotes"),
        ("{a: 1}: 2", "recipe.yaml:1:1: a key must be text; write `key: value`"),
        ("a: x\x07", "recipe.yaml:1:5: the character \\x07 may not stand in a recipe"),
        (
            "a: b: c",
            "recipe.yaml:1:5: not valid YAML: mapping values are not allowed here; "
            "check quotes, colons and indentation",
        ),
        ("\ufeffa: 1", "recipe.yaml starts with a byte order mark; save it as UTF-8 without BOM"),
    ],
)
def test_anything_unusual_is_one_line(text, message):
    assert assert_refused(text) == message


def test_python_tags_construct_nothing():
    assert "is not allowed" in assert_refused("a: !!python/object/apply:os.system ['touch /tmp/no']")


def test_reading_stops_where_the_bound_is_met():
    # The place in the message is where reading stopped: the rest of the text was never looked at.
    assert assert_refused("[" * 5000).startswith("recipe.yaml:1:51: nested more than 50 levels deep")
    assert assert_refused("- " * 5000).startswith("recipe.yaml:1:101: nested more than 50 levels deep")
    assert assert_refused("a: " + "{a: " * 5000).startswith(
        "recipe.yaml:1:200: nested more than 50 levels deep"
    )
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9))
    assert assert_refused("a0: &a0 [lol]\n" + levels).startswith("recipe.yaml:1:5: anchors and aliases")
    many = "a: [" + "1, " * (2 * MAX_NODES) + "]"
    assert assert_refused(many).startswith(
        f"recipe.yaml:1:{3 * MAX_NODES - 4}: more than {MAX_NODES:,} values"
    )


def test_fifty_levels_are_enough():
    text = "[" * 50 + "]" * 50
    assert isinstance(parse(text, "r"), Listing)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "{} is empty; a recipe needs at least `models:`"),
        (b"\xef\xbb\xbfa: 1", "{} starts with a byte order mark; save it as UTF-8 without BOM"),
        ("models: []".encode("utf-16"), "{} is UTF-16; save it as UTF-8"),
        ("models: []".encode("utf-16-le"), "{} is a binary file, not a recipe; give the path of a YAML file"),
        (b"\x7fELF\0\0", "{} is a binary file, not a recipe; give the path of a YAML file"),
        (b"a: \xff\xfe", "{} is not UTF-8 text (byte 3); save it as UTF-8"),
    ],
)
def test_files_that_are_no_text(tmp_path, data, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(data)
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert str(caught.value) == message.format(path)
    assert caught.value.exit_code == 2


def test_a_huge_file_is_not_even_read(tmp_path):
    path = tmp_path / "recipe.yaml"
    with path.open("wb") as file:
        file.truncate(50_000_000)
    with pytest.raises(RecipeError, match=r"larger than 1 MB \(50,000,000 bytes\)"):
        read_text(path, "recipe.yaml")
    assert "larger than 1 MB" in assert_refused("a: " + "ü" * 600_000)


def test_folders_and_missing_files_are_recipe_errors(tmp_path):
    for path, says in (
        (tmp_path, "is a folder"),
        (tmp_path / "no.yaml", "No such file"),
        ("a\0b", "cannot read"),
    ):
        with pytest.raises(RecipeError, match=says) as caught:
            load(path)
        assert caught.value.exit_code == 2


texts = st.one_of(
    st.text(max_size=20).filter(lambda t: t.isprintable() or "\n" in t),
    st.sampled_from(
        ["1e-3", "no", "012", "0o7", "~", "12:30", "true", "", " x ", "- a", "a: b", "#", "'", '"', ".5", "-"]
    ),
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts.filter(bool), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["a", "no", "1e5", "x y"]), values, min_size=1))
def test_what_is_written_is_read_back(value):
    text = to_yaml(value)
    assert plain(parse(text, "r")) == value


def test_scalars_show_how_they_were_written():
    node = parse("a: 1e400", "r").get("a")
    assert isinstance(node, Scalar)
    assert str(node) == "1e400"
