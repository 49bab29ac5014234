"""Text that nobody vouches for, made harmless: as HTML, inside a script element, and to the eye."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from typing import Any

__all__ = ["breakable", "island", "text", "visible"]

_SHOWN = {"\n": "↵", "\r": "␍", "\t": "⇥"}
_SIGNS = re.compile(r"[~._/+-](?=[^~._/+-])")
_HIDDEN = {"Cf", "Co", "Cn", "Cs", "Zl", "Zp"}
"""Unicode's categories of characters that show nothing, or turn the direction of what follows."""
_JOINERS = {"\u200c", "\u200d"}  # they shape words of several scripts, and emoji; they hide and turn nothing


def visible(raw: str, limit: int = 40) -> str:
    r"""Return text in which every character can be seen, of at most about `limit` characters.

    Line ends and tabs become arrows, control characters their pictures, and characters that are invisible or change
    the direction of the text their code points.

    >>> visible("a\n\x00\u202eb")
    'a↵␀⟨202E⟩b'
    """
    cut = raw if len(raw) <= limit else raw[:limit]
    return "".join(_seen(c) for c in cut) + ("…" if len(raw) > limit else "")


def text(raw: object, limit: int = 200) -> str:
    """Return anything as text for HTML, between tags or within a quoted attribute.

    >>> text('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    return html.escape(visible(str(raw), limit), quote=True)


def breakable(raw: object, limit: int = 200) -> str:
    """Return a name as HTML that may be broken after its signs, and so need not be within a word.

    >>> breakable("base~again")
    'base~<wbr>again'
    """
    return _SIGNS.sub(r"\g<0><wbr>", text(raw, limit))


def island(document: Any) -> str:
    r"""Return JSON that can stand in a script element: no character of it ends the element or the line.

    >>> island({"a": "</script><!--\u2028"})
    '{"a":"\\u003c/script\\u003e\\u003c!--\\u2028"}'
    """
    raw = json.dumps(document, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return raw.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _seen(character: str) -> str:
    if character in _SHOWN:
        return _SHOWN[character]
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if character in _JOINERS or (code < 0x7F):
        return character
    if code <= 0x9F or unicodedata.category(character) in _HIDDEN:
        return f"⟨{code:04X}⟩"
    return character
