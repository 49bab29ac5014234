"""The verifiable instructions of IFEval: from an instruction's name and arguments to a check of a response.

The rules follow the paper's descriptions. Departures, which matter for few responses: sentences are split by a
rule of ours (`sentences`) where the authors use nltk's trained splitter, capitalised words are runs of letters where
they use nltk's tokens, keywords are taken literally and never as regular expressions, blank paragraphs are not
counted when one is named by its number, asterisks left over by a bullet open no highlight, and a text whose
language cannot be told fails.

Paper: Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models", arXiv 2311.07911, table 1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from deltasmith.errors import DamagedInputError

__all__ = ["INSTRUCTIONS", "Arguments", "Check", "Detector", "NotCheckableError", "check_for", "sentences"]

Check = Callable[[str], bool]
Detector = Callable[[str], str | None]
"""Name a text's language by its ISO 639-1 code, or None where it cannot be told."""

_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"\w+(?:[-'’&./]\w+)*")
_PLACEHOLDER = re.compile(r"\[.*?\]")
_BULLET = re.compile(r"(?m)^\s*(?:\*[^*\n]|-).*$")
_HIGHLIGHT = re.compile(r"(?<!\*)(\*{1,2})(?!\*)[^\n*]*[^\s*][^\n*]*\1(?!\*)")
_TITLE = re.compile(r"<<([^\n]+?)>>")
_FENCE = re.compile(r"(?is)\A\s*```(?:json)?[ \t]*\n?(.*?)\n?[ \t]*```\s*\Z")
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]*_]*\s+(?=[^\sa-z])")
_ABBREVIATION = re.compile(
    r"(?i)(?:^|[\s(\"'“])(?:mr|mrs|ms|dr|prof|st|jr|sr|vs|etc|e\.g|i\.e|cf|no|fig|inc|ltd|co|u\.s|a\.m|p\.m"
    r"|[b-hj-z])\.\s*\Z"
)


class NotCheckableError(Exception):
    """The instruction is unknown, its arguments are not in the file, or nothing here can tell."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """Hold the arguments of one instruction; `where` names the question in errors."""

    given: Mapping[str, Any]
    where: str
    detect: Detector | None

    def text(self, name: str) -> str:
        """Return a string. Raises NotCheckableError without it, DamagedInputError for anything else."""
        value = self._value(name)
        if not isinstance(value, str):
            raise self._damaged(name, value)
        return value

    def texts(self, name: str) -> list[str]:
        """Return a list of strings, with the errors of `text`."""
        value = self._value(name)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self._damaged(name, value)
        return value

    def number(self, name: str) -> int:
        """Return a whole number, with the errors of `text`."""
        value = self._value(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            raise self._damaged(name, value)
        return int(value)

    def bound(self, number: str, relation: str) -> Callable[[int], bool]:
        """Return the comparison with a number that `at least` or `less than` stands for."""
        limit, how = self.number(number), self.text(relation)
        if how == "at least":
            return lambda count: count >= limit
        if how == "less than":
            return lambda count: count < limit
        raise self._damaged(relation, how)

    def _value(self, name: str) -> Any:
        value = self.given.get(name)
        if value is None:
            raise NotCheckableError(f"the file does not give {name}")
        return value

    def _damaged(self, name: str, value: object) -> DamagedInputError:
        return DamagedInputError(
            f"the instruction's {name} is {value!r}",
            where=self.where,
            fix="compare it with IFEval's own file",
        )


def check_for(name: str, arguments: Arguments) -> Check:
    """Return the check of one instruction, such as `punctuation:no_comma`; a blank response fails them all.

    Raises NotCheckableError and DamagedInputError as `Arguments` does.
    """
    build = INSTRUCTIONS.get(name)
    if build is None:
        raise NotCheckableError(f"{name} is not among the {len(INSTRUCTIONS)} instructions known here")
    check = build(arguments)
    return lambda response: bool(response.strip()) and check(response)


def sentences(text: str) -> list[str]:
    """Split a text after `.`, `!` or `?` before white space and anything but a small letter.

    Titles, initials and the commonest abbreviations end none; line ends alone do not either.

    >>> sentences('Dr. Who left. "Why?" Nobody knows, e.g. me')
    ['Dr. Who left.', '"Why?"', 'Nobody knows, e.g. me']
    """
    found, start = [], 0
    for place in _SENTENCE_END.finditer(text):
        if not _ABBREVIATION.search(text[max(start, place.start() - 8) : place.end()]):
            found.append(text[start : place.end()].strip())
            start = place.end()
    last = text[start:].strip()
    return [*found, last] if last else found


def _existence(given: Arguments) -> Check:
    keywords = [keyword.lower() for keyword in given.texts("keywords")]
    return lambda text: all(keyword in text.lower() for keyword in keywords)


def _frequency(given: Arguments) -> Check:
    keyword, fits = given.text("keyword").lower(), given.bound("frequency", "relation")
    return lambda text: fits(text.lower().count(keyword))


def _forbidden(given: Arguments) -> Check:
    words = [re.compile(rf"(?i)\b{re.escape(word)}\b") for word in given.texts("forbidden_words")]
    return lambda text: not any(word.search(text) for word in words)


def _letters(given: Arguments) -> Check:
    letter, fits = given.text("letter").lower(), given.bound("let_frequency", "let_relation")
    return lambda text: fits(text.lower().count(letter))


def _language(given: Arguments) -> Check:
    language, detect = given.text("language"), given.detect
    if detect is None:
        raise NotCheckableError("telling a language needs langdetect (pip install langdetect)")
    return lambda text: detect(text) == language


def _sentence_count(given: Arguments) -> Check:
    fits = given.bound("num_sentences", "relation")
    return lambda text: fits(len(sentences(text)))


def _paragraph_count(given: Arguments) -> Check:
    count = given.number("num_paragraphs")
    return lambda text: _filled(text.split("***")) == count


def _word_count(given: Arguments) -> Check:
    fits = given.bound("num_words", "relation")
    return lambda text: fits(len(_WORD.findall(text)))


def _paragraph_start(given: Arguments) -> Check:
    count, place = given.number("num_paragraphs"), given.number("nth_paragraph")
    word = given.text("first_word").lower()

    def check(text: str) -> bool:
        paragraphs = [part for part in text.split("\n\n") if part.strip()]
        if len(paragraphs) != count or not 1 <= place <= count:
            return False
        first = paragraphs[place - 1].split()[0].lstrip("\"'“‘")
        return re.split(r"[.,?!'\"’”]", first)[0].lower() == word

    return check


def _placeholders(given: Arguments) -> Check:
    least = given.number("num_placeholders")
    return lambda text: len(_PLACEHOLDER.findall(text)) >= least


def _postscript(given: Arguments) -> Check:
    marker = re.sub(r"\\\.(?=.)", r"\\.\\s?", re.escape(given.text("postscript_marker").strip()))
    return lambda text: re.search(rf"(?i){marker}", text) is not None


def _bullets(given: Arguments) -> Check:
    count = given.number("num_bullets")
    return lambda text: len(_BULLET.findall(text)) == count


def _constrained(given: Arguments) -> Check:
    return lambda text: any(answer in text for answer in _ANSWERS)


def _highlights(given: Arguments) -> Check:
    least = given.number("num_highlights")
    return lambda text: len(_HIGHLIGHT.findall(text)) >= least


def _sections(given: Arguments) -> Check:
    heading = re.compile(rf"{re.escape(given.text('section_spliter'))}\s?\d+")
    least = given.number("num_sections")
    return lambda text: len(heading.findall(text)) >= least


def _json_format(given: Arguments) -> Check:
    def check(text: str) -> bool:
        fence = _FENCE.match(text)
        try:
            json.loads(fence[1] if fence else text)
        except (ValueError, RecursionError):
            return False
        return True

    return check


def _title(given: Arguments) -> Check:
    return lambda text: any(found.strip("<> \t") for found in _TITLE.findall(text))


def _two_responses(given: Arguments) -> Check:
    def check(text: str) -> bool:
        parts = text.split("******")
        return _filled(parts) == 2 and len({part.strip() for part in parts if part.strip()}) == 2

    return check


def _repeat(given: Arguments) -> Check:
    prompt = given.text("prompt_to_repeat").strip().lower()
    return lambda text: text.strip().lower().startswith(prompt)


def _ending(given: Arguments) -> Check:
    phrase = given.text("end_phrase").strip().lower()
    return lambda text: text.strip().strip('"').lower().endswith(phrase)


def _capital_words(given: Arguments) -> Check:
    fits = given.bound("capital_frequency", "capital_relation")
    return lambda text: fits(sum(word.isupper() for word in _TOKEN.findall(text)))


def _capitals(given: Arguments) -> Check:
    return lambda text: text.isupper() and _english(given, text)


def _small_letters(given: Arguments) -> Check:
    return lambda text: text.islower() and _english(given, text)


def _no_comma(given: Arguments) -> Check:
    return lambda text: "," not in text


def _quotation(given: Arguments) -> Check:
    return lambda text: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"'


def _filled(parts: list[str]) -> int:
    """Count parts between separators, or return 0 where one between two others is blank."""
    inner = parts[1:-1]
    return 0 if any(not part.strip() for part in inner) else sum(bool(part.strip()) for part in parts)


def _english(given: Arguments, text: str) -> bool:
    """Tell whether a text is English; without a detector only its letters are judged, and the task says so."""
    return given.detect is None or given.detect(text) == "en"


INSTRUCTIONS: Mapping[str, Callable[[Arguments], Check]] = {
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _capitals,
    "change_case:english_lowercase": _small_letters,
    "combination:repeat_prompt": _repeat,
    "combination:two_responses": _two_responses,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:json_format": _json_format,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:title": _title,
    "keywords:existence": _existence,
    "keywords:forbidden_words": _forbidden,
    "keywords:frequency": _frequency,
    "keywords:letter_frequency": _letters,
    "language:response_language": _language,
    "length_constraints:nth_paragraph_first_word": _paragraph_start,
    "length_constraints:number_paragraphs": _paragraph_count,
    "length_constraints:number_sentences": _sentence_count,
    "length_constraints:number_words": _word_count,
    "punctuation:no_comma": _no_comma,
    "startend:end_checker": _ending,
    "startend:quotation": _quotation,
}
