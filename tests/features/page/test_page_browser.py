"""The page in a real browser: nothing is asked of a network, nothing is complained of, and everything can be used."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import BROWSER, DRIVER, Browser
from made_findings import made_patterns, made_sweep

from deltasmith.features.following import match
from deltasmith.features.page.writing import report
from features.made_studies import HOSTILE, WORDS, made_study

pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver")

SHOWN = "return [...document.querySelectorAll('#cards > details')].map(e => e.querySelector('.title').firstChild.data)"
ABOUT = "return ['.kicker', 'h3'].map(s => document.querySelector('#about ' + s).textContent).join(': ')"
PANEL = "return [...document.querySelectorAll('main > section')].filter(s => !s.hidden).map(s => s.id).join()"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page full of hostile text, with everything on it."""
    folder = tmp_path_factory.mktemp("browser")
    study = made_study(folder / "study", words=WORDS + HOSTILE)
    found = match(study, resamples=20, threads=1)
    made_patterns(study, found, folder / "study" / "match" / "patterns.json")
    made_sweep(study, folder / "sweep.json")
    return report(study, folder / "a page.html", sweep=folder / "sweep.json")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Browser, Path]]:
    folder = tmp_path_factory.mktemp("profile")
    (folder / "downloads").mkdir()
    browser = Browser(folder / "user", folder / "downloads")
    yield browser, folder / "downloads"
    browser.close()


@pytest.fixture
def browser(running: tuple[Browser, Path], page: Path) -> Iterator[Browser]:
    """The page, open; after every test there was no complaint, no request, and nothing was hacked."""
    browser, _ = running
    browser.run("window.location.href = 'about:blank'")
    browser.until("return location.href === 'about:blank'")
    browser.console(), browser.requests()
    browser.resize(1280, 900)
    browser.open(page.as_uri())
    yield browser
    assert browser.console() == []
    assert {address.split("#")[0] for address in browser.requests()} - {page.as_uri(), "about:blank"} == set()
    assert browser.run("return [document.documentElement.dataset.errors, window.hacked]") == ["0", None]


def test_tabs_show_one_part_at_a_time(browser: Browser) -> None:
    assert browser.run(PANEL) == "overview"
    for name in ("rates", "features", "sweep", "details", "overview"):
        browser.click(f"#tab-{name}")
        assert browser.run(PANEL) == name
        assert (
            browser.run("return document.querySelector('[role=tab][aria-selected=true]').id") == f"tab-{name}"
        )
    browser.type("#tab-overview", "\ue014")  # the right arrow
    assert browser.run(PANEL) == "rates"
    browser.run("history.back()")
    browser.until(f"return (() => {{ {PANEL} }})() === 'overview'")


def test_a_band_of_the_map_leads_to_its_gallery(browser: Browser) -> None:
    browser.click('.map a[aria-label^="base → lua: 14 disappeared"]')
    assert browser.run(PANEL) == "features"
    assert browser.run(ABOUT) == "base → lua: Disappeared"
    assert len(browser.run(SHOWN)) == 14
    assert (
        browser.run("return document.querySelector('[data-gallery][aria-current]').textContent")
        == "Disappeared14"
    )


def test_statuses_are_filtered_in_the_map(browser: Browser) -> None:
    on = "return [...document.querySelectorAll('.map.filtered .band.on')].map(b => b.dataset.status)"
    browser.click("[data-band=drifted]")
    assert set(browser.run(on)) == {"drifted"}
    browser.click("[data-band=emerged]")
    assert set(browser.run(on)) == {"drifted", "emerged"}
    browser.click("[data-band=drifted]")
    browser.click("[data-band=emerged]")
    assert browser.run(on) == []
    assert not browser.run("return document.querySelector('.map').classList.contains('filtered')")


def test_cards_open_with_the_same_sentences_under_every_model(browser: Browser) -> None:
    browser.click("#tab-features")
    assert len(browser.run(SHOWN)) > 20
    opened = "return document.querySelectorAll('#cards > details[open] .grid-models').length"
    assert browser.run(opened) == 1
    browser.click("#cards > details:nth-child(2) > summary")
    browser.until(f"return (() => {{ {opened} }})() === 2")
    cells = browser.run(
        "const grid = document.querySelector('#cards > details:nth-child(2) .grid-models');"
        "const read = e => [...e.querySelectorAll('.tok')].map(t => t.textContent).join('');"
        "const lines = [...grid.querySelectorAll('.sentence')].map(read);"
        "return [grid.querySelectorAll('.head').length, lines, grid.querySelectorAll('.hot').length,"
        " grid.querySelectorAll('.histogram rect').length, grid.querySelectorAll('.word').length]"
    )
    heads, lines, hot, bars, effects = cells
    assert heads == 4
    assert len(lines) % 4 == 0
    assert all(len(set(lines[at : at + 4])) == 1 for at in range(0, len(lines), 4))
    assert hot >= len(lines)
    assert (bars, effects) == (64, 80)


def test_shading_follows_the_activation(browser: Browser) -> None:
    browser.click("#tab-features")
    colours = browser.run(
        "return [...document.querySelectorAll('.tok.hot')].map(e =>"
        " [Number(e.style.getPropertyValue('--a')), getComputedStyle(e).backgroundColor])"
    )
    alphas = sorted(
        (level, float(colour.rstrip(")").replace("/", ",").split(",")[-1])) for level, colour in colours
    )
    assert alphas[0][1] < alphas[-1][1]
    assert [a for _, a in alphas] == sorted(a for _, a in alphas)


def test_search_and_filters_find_cards_in_all_galleries(browser: Browser) -> None:
    browser.click("#tab-features")
    everything = browser.run(SHOWN)
    browser.type("#search", "merged · 91")
    assert "merged · 91" in browser.run(SHOWN)
    assert set(browser.run(SHOWN)) - set(everything)
    browser.run(
        "const s = document.querySelector('#search'); s.value = ''; s.dispatchEvent(new Event('input'))"
    )
    assert browser.run(SHOWN) == everything
    browser.click("[data-filter=drifted]")
    assert browser.run(SHOWN) == []
    browser.type("#search", "base")
    drifted = {int(title.split()[-1]) for title in browser.run(SHOWN) if title.startswith("base")}
    assert drifted
    assert drifted <= set(range(50, 58))
    browser.type("#search", "nothing of this kind")
    assert browser.run(SHOWN) == []


def test_patterns_and_every_gallery_can_be_shown(browser: Browser) -> None:
    browser.click("#tab-features")
    count = browser.run("return document.querySelectorAll('[data-gallery]').length")
    for at in range(count):
        browser.run("document.querySelector(`[data-gallery='${arguments[0]}']`).click()", at)
        assert browser.run(
            "return document.querySelector('[data-gallery][aria-current]').dataset.gallery"
        ) == str(at)
    assert browser.run(ABOUT) == "Patterns: the end"
    assert "precision / recall" in browser.run("return document.querySelector('.found').textContent")


def test_the_keyboard_goes_through_the_cards(browser: Browser) -> None:
    browser.click("#tab-features")
    focused = "return [...document.querySelectorAll('.card > summary')].indexOf(document.activeElement)"
    for key, place in (("j", 0), ("j", 1), ("j", 2), ("k", 1)):
        browser.run(
            "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], bubbles: true}))",
            key,
        )
        assert browser.run(focused) == place
    browser.run("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '/', bubbles: true}))")
    assert browser.run("return document.activeElement.id") == "search"


def test_hostile_text_is_shown_and_does_nothing(browser: Browser) -> None:
    browser.click("#tab-features")
    browser.run("document.querySelectorAll('#cards > details').forEach(e => { e.open = true })")
    browser.until(
        "return [...document.querySelectorAll('#cards > details')].every(e => e.querySelector('.body'))"
    )
    inside = "return ['script', 'img', 'b b'].map(t => document.querySelectorAll('main ' + t).length)"
    assert browser.run(inside) == [0, 0, 0]
    shown = browser.run("return document.querySelector('#cards').textContent")
    assert "</script><script>window.hacked" in shown
    assert "<img src=x onerror=window.hacked=1>" in shown
    assert not set(shown) & {"\u202e", "\u2028", "\x00"}


@pytest.mark.parametrize(
    ("width", "height", "dark"), [(1600, 1000, False), (700, 900, False), (390, 844, True)]
)
def test_no_part_is_wider_than_the_window(browser: Browser, width: int, height: int, dark: bool) -> None:
    browser.resize(width, height, dark=dark, mobile=width < 600)
    for name in ("overview", "rates", "features", "sweep", "details"):
        browser.run("document.querySelector('#tab-' + arguments[0]).click()", name)
        assert browser.run("return document.documentElement.scrollWidth") <= width, name
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(20, 23, 27)") is dark


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
@pytest.mark.parametrize("part", ["rates", "g0"])
def test_a_link_to_a_part_lands_at_the_title_or_at_the_tabs(
    browser: Browser, page: Path, width: int, height: int, part: str
) -> None:
    browser.resize(width, height, mobile=width < 600)
    browser.run("window.location.href = 'about:blank'")
    browser.until("return location.href === 'about:blank'")
    browser.open(f"{page.as_uri()}#{part}")
    browser.run("return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    places = "return ['nav.tabs', 'main'].map(s => document.querySelector(s).getBoundingClientRect().top)"
    tabs, main = browser.run(places)
    assert 0 <= tabs < 0.7 * height
    assert tabs == 0 or browser.run("return window.scrollY") == 0
    assert abs(main - tabs - browser.run("return document.querySelector('nav.tabs').offsetHeight")) < 2


def test_on_a_telephone_the_diagram_is_whole_and_labels_stay_in_one_piece(browser: Browser) -> None:
    browser.resize(390, 844, mobile=True)
    assert (
        browser.run("const box = document.querySelector('.mapbox'); return box.scrollWidth - box.clientWidth")
        <= 0
    )
    broken = (
        "const label = [...document.querySelectorAll('th')].find(e => e.textContent === 'base~again');"
        "const range = document.createRange();"
        "const lines = [...label.querySelector('span').childNodes].filter(n => n.data).map(n => {"
        " range.selectNodeContents(n); return range.getClientRects().length; });"
        "return Math.max(...lines)"
    )
    assert browser.run(broken) == 1


def test_without_a_script_the_numbers_are_there(browser: Browser) -> None:
    browser.command("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.command("Page.reload", {})
        time.sleep(0.3)
        tree = browser.command("DOMSnapshot.captureSnapshot", {"computedStyles": []})
    finally:
        browser.command("Emulation.setScriptExecutionDisabled", {"value": False})
    drawn = [tree["strings"][at] for at in tree["documents"][0]["layout"]["text"] if at >= 0]
    for words in (
        "Is each dictionary usable?",
        "75.9 %",
        "What became of the features on every edge",
        "Details",
    ):
        assert any(words in line for line in drawn), words
    assert any("need the page's own script" in line for line in drawn)
    browser.run("location.reload()")
    browser.until("return document.documentElement.dataset.ready === '1'")


def test_everything_is_printed(browser: Browser) -> None:
    browser.command("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        shown = (
            "return [...document.querySelectorAll('main > section')].filter(e => e.offsetHeight > 0).length"
        )
        assert browser.run(shown) == 5
        assert browser.run("return document.querySelector('nav.tabs').offsetHeight") == 0
    finally:
        browser.command("Emulation.setEmulatedMedia", {"media": ""})


def test_the_data_can_be_saved(browser: Browser, running: tuple[Browser, Path]) -> None:
    browser.click("#tab-details")
    browser.click("#export")
    file = running[1] / "features-page.json"
    last = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < last
        time.sleep(0.05)
    assert json.loads(file.read_text())["models"] == ["base", "lua", "stories", "merged"]
