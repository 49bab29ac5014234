"""lm-eval's scores and ours agree item by item on the same GSM8K- and MBPP-format files.

Three ways to the same figures: lm-eval's own `simple_evaluate`, the same task through `HarnessTask`, and the local
task that needs no lm-eval. Answers come from a script, with noise in their format, and from a real small model.
"""

from __future__ import annotations

import json

import pytest
import yaml
from fakes import FakeModel

from deltasmith.evaluate.language import Decoding
from deltasmith.evaluate.local.common import Options
from deltasmith.evaluate.local.gsm8k import FILTERS, Gsm8k
from deltasmith.evaluate.local.mbpp import Mbpp
from deltasmith.evaluate.models.numpy_model import NumpyModel
from deltasmith.evaluate.sandbox import choose_tier
from deltasmith.lab import family_folder

pytest.importorskip("lm_eval")

from deltasmith.evaluate.harness import harness_model, harness_tasks
from deltasmith.evaluate.harness_loading import hushed

pytestmark = pytest.mark.filterwarnings("ignore")  # other people's warnings are theirs

GSM8K = {
    "task": "gsm8k_local",
    "dataset_path": "json",
    "output_type": "generate_until",
    "training_split": "train",
    "fewshot_split": "train",
    "test_split": "test",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_target": "{{answer}}",
    "metric_list": [
        {
            "metric": "exact_match",
            "aggregation": "mean",
            "higher_is_better": True,
            "ignore_case": True,
            "ignore_punctuation": False,
            "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"],
        }
    ],
    "generation_kwargs": {
        "until": ["Question:", "</s>", "<|im_end|>"],
        "do_sample": False,
        "temperature": 0.0,
    },
    "num_fewshot": 2,
    "fewshot_config": {"sampler": "first_n"},
    "filter_list": [
        {
            "name": "strict-match",
            "filter": [
                {"function": "regex", "regex_pattern": "#### (\\-?[0-9\\.\\,]+)"},
                {"function": "take_first"},
            ],
        },
        {
            "name": "flexible-extract",
            "filter": [
                {
                    "function": "regex",
                    "group_select": -1,
                    "regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)",
                },
                {"function": "take_first"},
            ],
        },
    ],
}
ASK = (
    "You are an expert Python programmer, and here is your task: {{text}} Your code should pass these tests:\n\n"
    "{{test_list[0]}}\n{{test_list[1]}}\n{{test_list[2]}}\n[BEGIN]\n"
)
TESTS = "{{test_list[0]}}\n{{test_list[1]}}\n{{test_list[2]}}"
MBPP = """\
task: mbpp_local
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
unsafe_code: true
output_type: generate_until
test_split: test
process_docs: !function utils.test_questions
doc_to_text: {ask}
doc_to_target: {target}
target_delimiter: ""
metric_list:
  - {{metric: !function utils.pass_at_1, aggregation: mean, higher_is_better: true}}
generation_kwargs: {{until: ["[DONE]"], do_sample: false}}
num_fewshot: 2
fewshot_config: {{sampler: first_n, samples: {samples}}}
"""
UTILS = """\
import evaluate

code_eval = evaluate.load("code_eval")


def test_questions(dataset):
    return dataset.filter(lambda one: 11 <= one["task_id"] <= 510)


def pass_at_1(references, predictions):
    references = [references] if isinstance(references, str) else references
    predictions = [[one] if isinstance(one, str) else one for one in predictions]
    return code_eval.compute(references=references, predictions=predictions, k=[1])[0]["pass@1"]
"""
PROBLEMS = [
    ("Ada has 25 cups and gives away 11. How many now?", "25-11=14", "14"),
    ("Of 43 books, Finn sells 26. How many are left?", "43-26=17", "17"),
    ("Mia has 50 stamps and gives away 20. How many now?", "50-20=30", "30"),
    ("21 cards lie in a box. Finn takes 17. How many?", "21-17=4", "4"),
    ("25 coins lie in a box. Ned adds 58. How many?", "25+58=83", "83"),
    ("60 eggs lie in a box. Ada takes 16. How many?", "60-16=44", "44"),
    ("A car costs 1,150 dollars and a bell 50. How many dollars together?", "1150+50=1200", "1,200"),
    ("It was 3 degrees and is 10 colder. How many degrees now?", "3-10=-7", "-7"),
    ("A rope of 5 metres is halved. How long is a part?", "5/2=2.5", "2.5"),
    ("A ticket is $12. What does one cost?", "12", "12"),
    ("Ned has 7 pens and buys none. How many now?", "7+0=7", "7"),
    ("There were 9 lamps. All were sold. How many are left?", "9-9=0", "0"),
]
PROGRAMS = [
    ("add one", "add_one", "n + 1", ["(1) == 2", "(-1) == 0", "(9) == 10"]),
    ("double a number", "double", "2 * n", ["(2) == 4", "(0) == 0", "(-3) == -6"]),
    ("skip 2 values", "skip", "n[2:]", ["([1, 2, 3]) == [3]", "([]) == []", "([4, 5]) == []"]),
    (
        "multiply each value by 7 above 12",
        "times",
        "[v*7 for v in n if v>12]",
        ["([13]) == [91]", "([1]) == []", "([]) == []"],
    ),
    ("all but the first 4", "rest", "n[4:]", ["([1, 2, 3, 4, 5]) == [5]", "([1]) == []", "([]) == []"]),
    (
        "multiply each value by 3 that is even",
        "even",
        "[v*3 for v in n if v%2==0]",
        ["([2, 3]) == [6]", "([]) == []", "([1]) == []"],
    ),
    ("negate a number", "negate", "-n", ["(2) == -2", "(0) == 0", "(-3) == 3"]),
    ("count letters", "count", "len(n)", ["('ab') == 2", "('') == 0", "('abc') == 3"]),
]
NOISE = [
    " {why}\n#### {answer}",
    " The answer is {answer}.",
    " {why} #### {answer}.",
    " ${answer}.",
    "\n#### 99999",
    " first 1, then 2, then {answer} dollars",
    " {why}\n####{answer}",
    "",
    " #### {answer}\n\nQuestion: and 3?\n#### 4",
    " #### $ {answer}",
    " no idea",
    " 1 2 3 #### {answer} units, or 55",
]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    import datasets

    root = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
        yield write_files(root)


def write_files(root):
    solved = [{"question": q, "answer": f"{why}\n#### {answer}"} for q, why, answer in PROBLEMS]
    test = write_lines(root / "test.jsonl", solved)
    train = write_lines(root / "train.jsonl", solved[3:5])
    (root / "gsm8k.yaml").write_text(
        yaml.safe_dump(GSM8K | {"dataset_kwargs": {"data_files": {"train": str(train), "test": str(test)}}})
    )
    numbers = [2, 3, *range(11, 9 + len(PROGRAMS))]
    programs = [
        {
            "task_id": number,
            "text": f"Write a function to {text}.",
            "code": f"def {name}(n):\r\n    return {body}",
            "test_list": [f"assert {name}{rest}" for rest in tests],
        }
        for number, (text, name, body, tests) in zip(numbers, PROGRAMS, strict=True)
    ]
    mbpp = write_lines(root / "mbpp.jsonl", programs)
    (root / "mbpp.yaml").write_text(
        MBPP.format(
            path=json.dumps(str(mbpp)),
            ask=json.dumps(ASK),
            target=json.dumps(
                f"{{% if is_fewshot is defined %}}{{{{code}}}}\n[DONE]{{% else %}}{TESTS}{{% endif %}}"
            ),
            samples=json.dumps([row | {"is_fewshot": True} for row in programs[:2]]),
        )
    )
    (root / "utils.py").write_text(UTILS)
    return root


@pytest.fixture(scope="module")
def tier():
    return choose_tier("auto")


def scripted(prompt):
    """Answer the last question of a prompt rightly every second time, in all sorts of formats."""
    if "[BEGIN]" in prompt:
        i = max(range(len(PROGRAMS)), key=lambda i: prompt.rfind(f"function to {PROGRAMS[i][0]}."))
        _, name, body, _ = PROGRAMS[i]
        return f"def {name}(n):\n    return {[body, 'None', body + ')', body][i % 4]}\n"
    i = max(range(len(PROBLEMS)), key=lambda i: prompt.rfind(PROBLEMS[i][0]))
    text = NOISE[i].format(why=PROBLEMS[i][1], answer=PROBLEMS[i][2])
    return text.partition("Question:")[0]


class Small:
    """A bundled expert, asked the last question of a prompt in the words it was trained on."""

    def __init__(self, label):
        self.inner = NumpyModel.load(family_folder() / "small" / label)
        self.runtime, self.context = self.inner.runtime, self.inner.context

    def generate(self, prompts, decoding):
        if "[BEGIN]" in prompts[0]:
            asked = [p.rpartition("function to ")[2].partition(".")[0] + "\n" for p in prompts]
            names = [p.rpartition("assert ")[2].partition("(")[0] for p in prompts]
            bodies = self.inner.generate(asked, Decoding(40))
            return [f"def {name}(x):\n    {body}\n" for name, body in zip(names, bodies, strict=True)]
        asked = [p.rpartition("Question: ")[2].removesuffix("\nAnswer:") + "\n" for p in prompts]
        return [f" {t}\n#### {t.rpartition('=')[2]}" for t in self.inner.generate(asked, Decoding(40))]


MODELS = {"scripted": lambda label: FakeModel(scripted), "small": Small}


def by_lm_eval(files, name, model, tier):
    """Score with lm-eval's own entry point, and return its score of every item and filter."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    from deltasmith.evaluate.harness_loading import running_code, sandboxed_code_eval

    with hushed(), running_code(tier), sandboxed_code_eval():
        manager = TaskManager(include_path=str(files), include_defaults=False)
        found = lm_eval.simple_evaluate(
            model=harness_model(model),
            tasks=[name],
            task_manager=manager,
            log_samples=True,
            bootstrap_iters=0,
            confirm_run_unsafe_code=True,
        )
    scores = {}
    for sample in found["samples"][name]:
        metric = sample["metrics"][0]
        scores.setdefault(sample["filter"], {})[sample["doc_id"]] = float(sample[metric])
    return scores, found["results"][name]


def ordered(scores):
    return [scores[i] for i in sorted(scores)]


@pytest.mark.parametrize("name", MODELS)
def test_gsm8k(files, name):
    model = MODELS[name]("math")
    theirs, aggregate = by_lm_eval(files, "gsm8k_local", model, None)

    local = Gsm8k.load(files / "test.jsonl", Options(train=files / "train.jsonl", shots=2))
    ours = local.answer(model, local.ids)
    for how in FILTERS:
        assert [o.detail[how] for o in ours] == ordered(theirs[how]), how
    assert [o.score for o in ours] == ordered(theirs["strict-match"])

    (task,) = harness_tasks(["gsm8k_local"], include_path=files)
    through = [o for name in task.ids for o in task.answer(model, [name])]
    assert [o.score for o in through] == ordered(theirs["strict-match"])
    mean = sum(o.score for o in through) / len(through)
    assert mean == pytest.approx(aggregate["exact_match,strict-match"])
    assert task.notes(through) == (
        f"also: exact_match,flexible-extract {aggregate['exact_match,flexible-extract']:.4g}",
    )
    # Neither everything right nor everything wrong, by either filter: agreement means something.
    assert all(2 <= sum(scores.values()) <= len(PROBLEMS) - 2 for scores in theirs.values())
    if name == "scripted":
        assert theirs["strict-match"] != theirs["flexible-extract"]


@pytest.mark.parametrize("name", MODELS)
def test_mbpp(files, tier, name):
    model = MODELS[name]("code")
    theirs, aggregate = by_lm_eval(files, "mbpp_local", model, tier)

    local = Mbpp.load(files / "mbpp.jsonl", Options(tier=tier))
    ours = local.answer(model, local.ids)
    assert [o.score for o in ours] == ordered(theirs["none"])

    (task,) = harness_tasks(["mbpp_local"], include_path=files, tier=tier)
    through = task.answer(model, task.ids)
    assert [o.score for o in through] == ordered(theirs["none"])
    assert sum(o.score for o in through) / len(through) == pytest.approx(aggregate["pass_at_1,none"])
    assert 1 <= sum(theirs["none"].values()) < len(ours)


def test_the_prompts_are_the_same(files, tier):
    models = [FakeModel(scripted) for _ in range(4)]
    for name, local, (through, alone) in (
        (
            "gsm8k_local",
            Gsm8k.load(files / "test.jsonl", Options(train=files / "train.jsonl", shots=2)),
            models[:2],
        ),
        ("mbpp_local", Mbpp.load(files / "mbpp.jsonl", Options(tier=tier)), models[2:]),
    ):
        (task,) = harness_tasks([name], include_path=files, tier=tier)
        task.answer(through, task.ids)
        local.answer(alone, local.ids)
        assert through.prompts == alone.prompts
        assert [d.tokens for d in through.decodings] == [d.tokens for d in alone.decodings]
        assert set(through.decodings[0].stop) == set(alone.decodings[0].stop)
        assert len(task.ids) == len(local.ids) > 0
