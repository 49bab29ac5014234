"""Names, strings and comments of generated Lua programs: words put together by chance. No syntax."""

from __future__ import annotations

from random import Random

__all__ = ["Names"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_VERBS = _words(
    "get set make load save parse read write find update remove insert build render draw check count sort merge apply "
    "reset init open close send handle push pop copy filter print format scan move spawn hit select expand convert "
    "compute resolve register dispatch collect clear split join trim lookup normalize encode decode"
)
_NOUNS = _words(
    "item player enemy score level map tile node list tree path file line word token value key index count size width "
    "height color position speed angle timer event handler callback buffer queue stack cache table entry record field "
    "name user group message request response header body state config option result error status module object class "
    "parent child frame sprite button window text image sound weapon damage health inventory quest bullet grid cell "
    "vector matrix point segment shape weight total offset limit step range input output stream block page column row"
)
_SHORT = _words("i j k n x y s t v a b c p q r")
_ADJECTIVES = _words(
    "max min last next first current new old total local global default empty active visible final raw temp"
)
_STEMS = _words("lua game util string core data net ui math log sys io")
_SENTENCES = (
    "{verb} the {noun}",
    "{verb} every {noun} of the {other}",
    "returns the {adjective} {noun}, or nil if there is none",
    "TODO: {verb} the {noun} when the {other} changes",
    "the {noun} must not be {adjective}",
    "{verb} {noun}s until the {other} is {adjective}",
    "see the {other} {noun}",
    "this {verb}s a {noun}; the {other} stays as it is",
    "{adjective} {noun} for each {other}",
    "avoid a {adjective} {noun}",
)
_PHRASES = (
    "{adjective} {noun}",
    "{noun}",
    "no such {noun}",
    "invalid {noun}",
    "{noun} not found",
    "could not {verb} {noun}",
    "{noun}s: %d",
    "{verb}ing %s ...",
    "{noun} = %s",
    "{noun}/{other}",
    "{noun}.{other}",
    "%s: expected {noun}, got %s",
    "{noun} is {adjective}",
    "hello {noun}",
)


class Names:
    """Draw names in one program's own style; what was drawn for a role is used again by the writer."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self._snake = rng.random() < 0.4
        self._pool = rng.sample(_NOUNS, 14)  # a program is about a few things

    def noun(self) -> str:
        """Return one of the nouns that the program is about."""
        return self.rng.choice(self._pool)

    def variable(self) -> str:
        """Return a name such as `count`, `maxScore` or `last_item`."""
        shape = self.rng.random()
        if shape < 0.5:
            return self.noun()
        if shape < 0.62:
            return self.rng.choice(_SHORT)
        return self._joined(self.rng.choice(_ADJECTIVES), self.noun())

    def function(self) -> str:
        """Return a name such as `loadItem` or `load_item`."""
        return self._joined(self.rng.choice(_VERBS), self.noun())

    def type_name(self) -> str:
        """Return a name such as `TokenStream`."""
        return self.noun().capitalize() + (self.noun().capitalize() if self.rng.random() < 0.4 else "")

    def constant(self) -> str:
        """Return a name such as `MAX_SCORE`."""
        return f"{self.rng.choice(_ADJECTIVES)}_{self.noun()}".upper()

    def module(self) -> str:
        """Return the name of a module to require."""
        stem = self.rng.choice(_STEMS)
        return f"{stem}.{self.noun()}" if self.rng.random() < 0.6 else self.noun()

    def text(self) -> str:
        """Return a quoted string."""
        said = self._filled(self.rng.choice(_PHRASES))
        return f'"{said}"' if self.rng.random() < 0.85 else f"'{said}'"

    def comment(self) -> str:
        """Return the text of a comment."""
        return self._filled(self.rng.choice(_SENTENCES))

    def _joined(self, first: str, second: str) -> str:
        return f"{first}_{second}" if self._snake else first + second.capitalize()

    def _filled(self, pattern: str) -> str:
        rng = self.rng
        return pattern.format(
            verb=rng.choice(_VERBS), noun=self.noun(), other=self.noun(), adjective=rng.choice(_ADJECTIVES)
        )
