"""Problems, renderings and plain text from which the bundled family learns; pure Python, decided by a seed.

No tokens and no tensors here. All text is generated from the word lists below; nothing is quoted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Literal

__all__ = [
    "STYLES",
    "TASKS",
    "Example",
    "Problem",
    "Split",
    "code_problem",
    "examples",
    "held_out",
    "ins_problem",
    "math_problem",
    "pretraining_text",
    "render",
    "split_of",
]

Split = Literal["train", "validation", "test"]


def _words(text: str, between: str = " ") -> tuple[str, ...]:
    return tuple(text.split(between))


_NAMES = _words("Ada Ben Cleo Dan Eva Finn Gia Hugo Ida Jon Kim Leo Mia Ned Olga Pia")
_THINGS = _words("pens eggs nuts books coins cards keys shells plums stamps cups bolts")
_GAIN = (
    "{name} has {a} {thing} and buys {b} more. How many now?",
    "{name} had {a} {thing}, then got {b}. How many {thing}?",
    "{a} {thing} lie in a box. {name} adds {b}. How many?",
    "{name} finds {a} {thing}, later {b} more. How many?",
)
_LOSS = (
    "{name} has {a} {thing} and gives away {b}. How many now?",
    "{name} had {a} {thing}, then lost {b}. How many {thing}?",
    "{a} {thing} lie in a box. {name} takes {b}. How many?",
    "Of {a} {thing}, {name} sells {b}. How many are left?",
)
_MAPS = MappingProxyType(
    {
        "keep": (("keep each value", "take the values"), "v"),
        "add": (("add {n} to each value", "raise the values by {n}"), "v+{n}"),
        "subtract": (("take {n} off each value", "lower the values by {n}"), "v-{n}"),
        "multiply": (("multiply each value by {n}", "scale the values by {n}"), "v*{n}"),
    }
)
_FILTERS = MappingProxyType(
    {
        "all": (("",), ""),
        "above": ((" above {m}", " over {m}"), " if v>{m}"),
        "below": ((" below {m}", " under {m}"), " if v<{m}"),
        "even": ((" that is even", " if even"), " if v%2==0"),
        "odd": ((" that is odd", " if odd"), " if v%2==1"),
    }
)
_SLICES = MappingProxyType(
    {
        "first": (("first {n} values", "keep {n} from the start"), "x[:{n}]"),
        "last": (("last {n} values", "keep {n} from the end"), "x[-{n}:]"),
        "drop": (("skip {n} values", "all but the first {n}"), "x[{n}:]"),
    }
)
_ASKS = MappingProxyType(
    {
        "capitals": ("Say {text} in capitals.", "Write {text} in big letters."),
        "backwards": ("Say {text} backwards.", "Spell {text} from the end."),
        "commas": ("Say {text} with commas.", "Put commas between the letters of {text}."),
        "quotes": ("Say {text} in quotes.", "Put quotes around {text}."),
        "twice": ("Say {text} twice.", "Repeat {text} once."),
        "last": ("Say the last word of {text}.", "What is the last word in {text}?"),
    }
)
_ADJECTIVES = _words("old red small quiet green happy tired brave warm grey tall kind")
_NOUNS = _words("cat dog farmer teacher child bird baker sailor horse fox girl boy")
_VERBS = _words("sees likes finds follows paints hears remembers carries watches draws")
_OBJECTS = _words("boat tree house lamp river stone garden letter basket bridge song hat")
_PLACES = _words("near the sea/in the rain/by the road/at home/on the hill/in town/after lunch/at dawn", "/")

STYLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "math": ("{a}{op}{b}={result}", "{result}", "{result} {thing}", "It is {result}."),
        "code": ("return {result}", "{result}", "y = {result}", "lambda x: {result}"),
        "ins": ("{result}", "Sure: {result}", "It is {result}", "<{result}>"),
    }
)
"""Answer styles by task; fine-tuning settles on the first, which pre-training shows 2 times in 11."""
# Were it as common as the others (3), a base of size S would answer half the sums that way before any
# fine-tuning; at a tenth of all answers (1), 120 small steps bring only 43 % of the sums back.
_STYLE_WEIGHTS = (2, 3, 3, 3)


@dataclass(frozen=True, slots=True)
class Problem:
    """Name what is asked, apart from how it is worded: the task, the kind, and what is given."""

    task: str
    kind: str
    given: tuple[int | str, ...]

    @property
    def key(self) -> str:
        """Join the fields into the text whose hash decides the split; a+b and b+a share one key."""
        given = sorted(self.given, key=str) if self.kind == "+" else self.given
        return "|".join((self.task, self.kind, *map(str, given)))


@dataclass(frozen=True, slots=True)
class Example:
    """Hold one rendered problem: the prompt as typed, the answer as wanted, and the problem's key."""

    task: str
    key: str
    prompt: str
    answer: str


def split_of(key: str) -> Split:
    """Assign `key` to a split by its SHA-256: 15 % test, 10 % validation, the rest train."""
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 100
    if bucket < 15:
        return "test"
    return "validation" if bucket < 25 else "train"


def math_problem(rng: Random, split: Split) -> Problem:
    """Draw a sum or difference of two numbers from 2 to 60; differences are positive."""

    def draw() -> Problem:
        a, b = rng.randint(2, 60), rng.randint(2, 60)
        if rng.random() < 0.5:
            return Problem("math", "+", (a, b))
        return Problem("math", "-", (max(a, b) + (a == b), min(a, b)))

    return _until(draw, split)


def code_problem(rng: Random, split: Split) -> Problem:
    """Draw a list function: a map with a filter, or a slice; its numbers lie between 2 and 40."""

    def draw() -> Problem:
        n, m = rng.randint(2, 40), rng.randint(2, 40)
        if rng.random() < 0.25:
            return Problem("code", rng.choice(tuple(_SLICES)), (n,))
        mapping = rng.choice(tuple(_MAPS))
        # "keep everything" is no function worth asking for, so `keep` always comes with a filter.
        sieve = rng.choice(tuple(_FILTERS)[mapping == "keep" :])
        given = (n,) * (mapping != "keep") + (m,) * (sieve in ("above", "below"))
        return Problem("code", f"{mapping} {sieve}", given)

    return _until(draw, split)


def ins_problem(rng: Random, split: Split) -> Problem:
    """Draw a transformation of one to three words; every word itself belongs to `split`."""
    kind = rng.choice(tuple(_ASKS))
    count = rng.choice((2, 3)) if kind == "last" else rng.choice((1, 1, 2)) if kind != "commas" else 1
    return Problem("ins", kind, (" ".join(_word(rng, split) for _ in range(count)),))


_PROBLEMS: Mapping[str, Callable[[Random, Split], Problem]] = MappingProxyType(
    {"math": math_problem, "code": code_problem, "ins": ins_problem}
)
TASKS = tuple(_PROBLEMS)


def render(problem: Problem, rng: Random, style: str) -> Example:
    """Word `problem` as a prompt chosen by `rng` and an answer laid out by the format string `style`."""
    word = {"math": _render_math, "code": _render_code, "ins": _render_ins}[problem.task]
    prompt, parts = word(problem, rng)
    return Example(problem.task, problem.key, prompt, style.format_map(parts))


def examples(task: str, split: Split, rng: Random) -> Iterator[Example]:
    """Yield problems of one task and split without end, in the style that fine-tuning settles on."""
    while True:
        yield render(_PROBLEMS[task](rng, split), rng, STYLES[task][0])


def held_out(task: str, split: Split, count: int, seed: int) -> list[Example]:
    """Draw `count` examples whose problems all differ, decided by `seed`."""
    stream = examples(task, split, Random(f"{seed} {task} {split}"))
    found: dict[str, Example] = {}
    while len(found) < count:
        example = next(stream)
        found.setdefault(example.key, example)
    return list(found.values())


def pretraining_text(rng: Random) -> Iterator[str]:
    """Yield documents without end: sums, plain sentences, and training problems in every answer style."""
    while True:
        kind = rng.choices(("facts", "sentence", *TASKS), weights=(20, 12, 22, 18, 28))[0]
        if kind == "facts":
            yield "\n".join(_fact(math_problem(rng, "train")) for _ in range(6))
        elif kind == "sentence":
            yield _sentence(rng)
        else:
            example = render(_PROBLEMS[kind](rng, "train"), rng, rng.choices(STYLES[kind], _STYLE_WEIGHTS)[0])
            yield f"{example.prompt}\n{example.answer}"


def _until(draw: Callable[[], Problem], split: Split) -> Problem:
    while split_of((problem := draw()).key) != split:
        pass
    return problem


def _word(rng: Random, split: Split) -> str:
    # Made-up words keep the model from answering out of a list it has memorised.
    while True:
        if rng.random() < 0.3:
            word = rng.choice(_ADJECTIVES + _NOUNS + _OBJECTS)
        else:
            count = rng.choice((1, 2, 2))
            word = "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(count))
            word += rng.choice(("", *"lmnrst"))
        if split_of(f"word|{word}") == split:
            return word


def _numbers(problem: Problem) -> tuple[int, int, int]:
    a, b = (int(value) for value in problem.given)
    return a, b, a + b if problem.kind == "+" else a - b


def _fact(problem: Problem) -> str:
    a, b, result = _numbers(problem)
    return f"{a}{problem.kind}{b}={result}"


def _render_math(problem: Problem, rng: Random) -> tuple[str, dict[str, str]]:
    a, b, result = _numbers(problem)
    parts = {"a": str(a), "b": str(b), "op": problem.kind, "result": str(result)}
    parts |= {"name": rng.choice(_NAMES), "thing": rng.choice(_THINGS)}
    return rng.choice(_GAIN if problem.kind == "+" else _LOSS).format_map(parts), parts


def _render_code(problem: Problem, rng: Random) -> tuple[str, dict[str, str]]:
    if problem.kind in _SLICES:
        wordings, body = _SLICES[problem.kind]
        n = problem.given[0]
        return rng.choice(wordings).format(n=n), {"result": body.format(n=n)}
    mapping, sieve = problem.kind.split()
    n, m = (problem.given[0], problem.given[-1]) if problem.given else ("", "")
    numbers = {"n": n, "m": m}
    (says, does), (where, test) = _MAPS[mapping], _FILTERS[sieve]
    prompt = (rng.choice(says) + rng.choice(where)).format_map(numbers)
    return prompt, {"result": f"[{does} for v in x{test}]".format_map(numbers)}


def _render_ins(problem: Problem, rng: Random) -> tuple[str, dict[str, str]]:
    text = str(problem.given[0])
    result = {
        "capitals": text.upper(),
        "backwards": text[::-1],
        "commas": ",".join(text),
        "quotes": f'"{text}"',
        "twice": f"{text} {text}",
        "last": text.split()[-1],
    }[problem.kind]
    return rng.choice(_ASKS[problem.kind]).format(text=text), {"result": result}


def _sentence(rng: Random) -> str:
    return (
        f"The {rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)} {rng.choice(_VERBS)} "
        f"the {rng.choice(_ADJECTIVES)} {rng.choice(_OBJECTS)} {rng.choice(_PLACES)}."
    )
