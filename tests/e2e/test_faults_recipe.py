"""Faults of recipes and command lines: exit 2, every problem in a line of its own, nothing written."""

from __future__ import annotations

import pytest

from models import Family, assert_refused, check_refusal, family, run, spawn, write_recipe


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Family:
    return family(tmp_path_factory.mktemp("family") / "models")


@pytest.fixture
def text(models):
    """Write a recipe as text beside the models; the models part is given."""

    def write(
        body, head="base: ./base\nmodels:\n- {model: ./m0, label: math}\n- {model: ./m1}\n", name="r.yaml"
    ):
        path = models.root / name
        path.write_text(head + body)
        return path

    return write


@pytest.mark.parametrize(
    ("body", "hint"),
    [("merge: elct\n", "elect"), ("preset: tiess\n", "ties"), ("merge: {eelect: {}}\n", "elect")],
)
def test_fault_01_misspelt_method(text, body, hint):
    assert_refused(2, text(body), "r.yaml:5:", f'"{hint}"')


@pytest.mark.parametrize(
    ("body", "place", "hint"),
    [
        ("preset: ties\ndensty: 0.2\n", "r.yaml:6:1", '"density"'),
        ("merge: {elect: {zeroo: none}}\n", "r.yaml:5:", '"zero"'),
        ("scal: 0.5\n", "r.yaml:5:1", '"scale"'),
    ],
)
def test_fault_02_misspelt_parameter_has_line_column_and_suggestion(text, body, place, hint):
    assert_refused(2, text(body), place, hint)


def test_fault_03_unknown_key(text):
    assert_refused(2, text("merge: sum\nzzz: 1\n"), "r.yaml:6:1", "zzz")


@pytest.mark.parametrize("body", ["merge: sum\nmerge: mean\n", "preset: ties\ndensity: 0.2\ndensity: 0.2\n"])
def test_fault_04_duplicate_key(text, body):
    assert_refused(2, text(body), "r.yaml:", "twice")


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf", "1e400", "-1e400"])
@pytest.mark.parametrize(
    "head", ["models:\n- {model: ./m0, weight: X}\n", "models:\n- {model: ./m0}\nscale: X\n"]
)
def test_fault_05_numbers_that_are_not_finite(text, number, head):
    assert_refused(2, text("", "base: ./base\n" + head.replace("X", number)), "r.yaml:")


@pytest.mark.parametrize(
    "body",
    [
        "preset: ties\ndensity: 0\n",
        "preset: ties\ndensity: 1.5\n",
        "preset: ties\ndensity: -0.1\n",
        "preset: ties\ndensity: true\n",
        "preset: dare\ndensity: {math: 0.5, m1: 7}\n",
        "preset: dare\ndensity: {layers: [0.5, 7]}\n",
        "preset: della\ndensity: 0.5\nwindow: 1.5\n",
        "preset: slerp\nt: 1.5\n",
        "preset: slerp\nt: -0.5\n",
        "preset: pcb\nratio: 0\n",
        "preset: tall\ntask: math\nmask_scale: -1\n",
    ],
)
def test_fault_06_numbers_out_of_range(text, body):
    assert_refused(2, text(body), "r.yaml:")


@pytest.mark.parametrize("number", ["1e-3", "1.e-3", "+1e-3", "1E-3", ".001", "0.001"])
def test_fault_07_numbers_with_exponents_are_numbers(text, number):
    planned = run("plan", text(f"scale: {number}\n"), "--json")
    assert planned.document["recipe"]["scale"] == 0.001


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"# nothing\n# here\n",
        b"- a\n- b\n",
        b"just words\n",
        b"\x7fELF\x00\x01\x02\xff",
        "base: ./base\n".encode("utf-16"),
        b"\xff\xfe\x00",
        b"\xef\xbb\xbfbase: ./base\n",
        b"base: ./base\nmodels:\n\t- ./m0\n",
        b"base: [\n",
        b"--- 1\n--- 2\n",
    ],
)
def test_fault_08_files_that_are_no_recipe(models, data):
    path = models.root / "r.yaml"
    path.write_bytes(data)
    assert len(assert_refused(2, path, "r.yaml").err.splitlines()) == 1


def test_fault_08_the_recipe_is_missing_or_a_folder(models):
    check_refusal(run("plan", models.root / "none.yaml"), 2, "none.yaml")
    check_refusal(run("plan", models.root), 2)


@pytest.mark.parametrize("kind", ["aliases", "brackets", "indents", "size"])
def test_fault_09_recipes_that_would_eat_the_machine(models, kind):
    path = models.root / "r.yaml"
    if kind == "aliases":
        rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
        path.write_text("\n".join(rows))
    elif kind == "brackets":
        path.write_text("base: " + "[" * 5000 + "]" * 5000)
    elif kind == "indents":
        path.write_text("\n".join(" " * i + "a:" for i in range(5000)))
    else:
        path.write_text("base: ./base\n" + "# padding\n" * 5_000_000)
    assert_refused(2, path, "r.yaml")
    path.unlink()


def test_fault_10_all_problems_at_once(text):
    body = "preset: ties\ndensty: 0.2\nscale: .nan\nseed: x\nzzz: 1\nnonfinite: perhaps\n"
    result = assert_refused(2, text(body), "5 problems")
    lines = result.err.splitlines()[1:]
    assert len(lines) == 5
    for line, place in zip(lines, ("6:1", "7:8", "8:7", "9:1", "10:12"), strict=True):
        assert f"r.yaml:{place}: " in line


def test_fault_11_the_same_model_twice_is_allowed_and_stated(models):
    entries = [{"model": "./m0"}, {"model": "./m0"}, {"model": "./base"}]
    recipe = write_recipe(models.root / "r.yaml", {"base": "./base", "models": entries})
    notes = " | ".join(run("plan", recipe, "--json").document["notes"])
    assert "m0, m1 are the same model" in notes
    assert "base, m2 are the same model" in notes


def test_fault_11_equal_labels_are_refused(text):
    assert_refused(
        2,
        text("", "base: ./base\nmodels:\n- {model: ./m0, label: a}\n- {model: ./m1, label: a}\n"),
        "r.yaml:4:",
    )


def test_fault_12_zero_models_are_refused_and_one_is_allowed(text):
    assert_refused(2, text("", "base: ./base\nmodels: []\n"), "models")
    assert_refused(2, text("merge: sum\n", "base: ./base\n"), "models")
    assert run("plan", text("", "base: ./base\nmodels:\n- {model: ./m0}\n"), "--quiet").code == 0


def test_fault_12_merges_of_two_refuse_one(text):
    assert_refused(2, text("merge: slerp\n", "models:\n- {model: ./m0}\n"))


def test_fault_14_a_glob_that_matches_no_tensor(text):
    assert_refused(2, text('where: "*.mpl.*"\n'), "*.mpl.*")
    edit = "base: ./base\nmodels:\n- {model: ./m0, edits: [{amplify: {factor: 2}, where: '*.mpl.*'}]}\n"
    assert_refused(2, text("", edit), "*.mpl.*")


def test_fault_14_a_list_of_globs_that_leaves_a_tensor_without_a_value(text):
    assert_refused(2, text('scale: [{where: "*.mlp.*", value: 0.5}]\n'), "lm_head.weight")


@pytest.mark.parametrize(
    "key", ["slices: []", "layer_range: [0, 4]", "rules: [{where: x}]", "regex: a", "vocab: union"]
)
def test_later_features_are_refused_as_unsupported(text, key):
    assert_refused(2, text(key + "\n"), "not supported yet")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "RECIPE"),
        (("r.yaml",), "OUT"),
        (("r.yaml", "out", "--nope"), "--nope"),
        (("r.yaml", "out", "--threads", "0"), "threads"),
        (("r.yaml", "out", "--memory", "lots"), "lots"),
        (("r.yaml", "out", "--memory", "0"), "size"),
        (("r.yaml", "out", "--shard-size", "-1"), "size"),
        (("r.yaml", "out", "--seed", "x"), "seed"),
    ],
)
def test_wrong_command_lines(arguments, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_refusal(run("merge", *arguments), 2, word)
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_command_has_a_suggestion():
    check_refusal(run("mrege"), 2, "'merge'")


@pytest.mark.parametrize(
    ("setting", "word"),
    [("scale=.nan", "scale"), ("scal=1", "scale"), ("models.7.weight=1", "models"), ("scale", "scale")],
)
def test_wrong_settings(text, setting, word):
    path = text("merge: sum\n")
    check_refusal(run("plan", path, "--set", setting), 2, word)


def test_messages_reach_a_terminal_that_knows_no_unicode(text):
    result = spawn("plan", text("zzzé\u202e: 1\n"), PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0")
    check_refusal(result, 2, "zzz")
