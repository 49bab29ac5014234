"""Hostile text becomes harmless in HTML, in a script element, and to the eye."""

from __future__ import annotations

import json

import pytest

from deltasmith.features.page.escaping import island, text, visible
from features.made_studies import HOSTILE


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("a b", "a b"),
        ("\n", "↵"),
        ("\t", "⇥"),
        ("\x00\x1b", "␀␛"),
        ("\x7f\x9f", "⟨007F⟩⟨009F⟩"),
        ("\u202eevil\u2066", "⟨202E⟩evil⟨2066⟩"),
        ("\u2028\u2029", "⟨2028⟩⟨2029⟩"),
        ("\ufeff\ue000", "⟨FEFF⟩⟨E000⟩"),
        ("\ud800", "⟨D800⟩"),
        ("naïve 日本 שלום", "naïve 日本 שלום"),
        ("👩\u200d🔬", "👩\u200d🔬"),
        ("w" * 41, "w" * 40 + "…"),
    ],
)
def test_every_character_can_be_seen_and_none_turns_the_text(raw: str, shown: str) -> None:
    assert visible(raw) == shown


def test_html_is_escaped_in_text_and_in_attributes() -> None:
    assert (
        text("""<img src='x' onerror="a&b">""") == "&lt;img src=&#x27;x&#x27; onerror=&quot;a&amp;b&quot;&gt;"
    )
    assert text(None) == "None"


@pytest.mark.parametrize("hostile", [*HOSTILE, "]]>", "\u2029", "</SCRIPT", "<!--<script>"])
def test_an_island_holds_anything_and_nothing_of_it_ends_the_element(hostile: str) -> None:
    made = island({"text": hostile, hostile: 1})
    assert made.isascii()
    assert not set(made) & set("<>&\n\r\x00")
    assert json.loads(made) == {"text": hostile, hostile: 1}


def test_an_island_has_no_number_that_json_lacks() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        island(float("nan"))
