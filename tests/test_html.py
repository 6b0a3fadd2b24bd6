"""The HTML report in a real browser: Debian's chromium, without a window."""

import re
import shutil
from collections import Counter

import pytest
from PIL import Image

from recipes._lab.collection import catalogue, page
from tests.test_way_in import entry, recorded_claim

playwright = pytest.importorskip(
    "playwright.sync_api", reason="no browser tests without Playwright: pip install -e '.[browser]'"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt install chromium")

PHONE = {"width": 360, "height": 740}
WIDE = {"width": 1400, "height": 900}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page of a few recipes: measured, run here, with a picture, with nothing."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "wide").mkdir()
    Image.new("RGB", (2000, 900), "white").save(folder / "wide" / "wide.png")
    long_words = recorded_claim("Bigger is always better", "contradicted", mean=-0.04)
    long_words["text"] = "A claim of <b>many</b> words " * 6
    entries = [
        entry("first", ["slow", "overfits"], [recorded_claim(), long_words]),
        entry("second", ["overfits"], [recorded_claim(mean=0.0, verdict="no clear difference")]),
        entry("wide", ["explodes"], [recorded_claim()]),
        entry("unmeasured", ["slow"]),
    ]
    entries[0].card["Caveat"] = "<script>document.title = 'broken'</script> & more"
    here = {**entries[0].record, "claims": [recorded_claim(mean=0.03)], "notes": ["QUICK"]}
    local = dict.fromkeys([found.name for found in entries]) | {"first": here}
    pictures = {
        found.name: page.read_pictures(folder / found.name, found.name) for found in entries
    }
    file = folder / "report.html"
    file.write_text(page.render(entries, local, pictures), encoding="utf-8")
    return file.as_uri()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        # The sandbox needs rights that containers lack; the page is our own.
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, address):
    """Return a function that opens the page; afterwards nothing must have gone wrong in it."""
    complaints, requests, contexts = [], [], []

    def open_page(size=WIDE, scheme="light", fragment="", address=address):
        context = browser.new_context(viewport=size, color_scheme=scheme)
        contexts.append(context)
        opened = context.new_page()
        opened.on("console", lambda message: complaints.append(message.text))
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("request", lambda request: requests.append(request.url))
        opened.goto(address + fragment)
        return opened

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def visible_recipes(opened):
    return [article.get_attribute("id") for article in opened.locator("article:visible").all()]


def test_page_of_the_real_recipes_shows_all_of_them(open_page, tmp_path):
    page.write(tmp_path / "no runs", tmp_path / "report.html")
    opened = open_page(address=(tmp_path / "report.html").as_uri())
    assert visible_recipes(opened) == [path.stem for path in catalogue.paths()]
    text = opened.locator("main").inner_text()
    for found in catalogue.read_all():
        assert found.title in text and f"python -m recipes.{found.name}" in text
        for claim in (found.record or {"claims": []})["claims"]:
            assert " ".join(claim["text"].split()) in text


def test_every_link_leads_to_a_part_of_the_page_and_every_name_is_used_once(open_page):
    opened = open_page()
    links = opened.eval_on_selector_all("a[href]", "all => all.map(a => a.getAttribute('href'))")
    names = opened.eval_on_selector_all("[id]", "all => all.map(one => one.id)")
    assert links and {link.removeprefix("#") for link in links} <= set(names)
    assert max(Counter(names).values()) == 1


def test_symptoms_are_chosen_with_the_keyboard_alone(open_page):
    opened = open_page()
    assert visible_recipes(opened) == ["first", "second", "wide", "unmeasured"]
    opened.keyboard.press("Tab")
    chosen = []
    for _ in range(3):
        opened.keyboard.press("ArrowRight")
        value = opened.evaluate("document.activeElement.value")
        rows = opened.locator(".claims tbody tr:visible").all_inner_texts()
        assert {row.split()[0] for row in rows} == set(visible_recipes(opened))
        chosen.append((value, visible_recipes(opened)))
    assert chosen == [
        ("explodes", ["wide"]),
        ("slow", ["first", "unmeasured"]),
        ("overfits", ["first", "second"]),
    ]
    assert catalogue.SYMPTOMS["overfits"] in opened.locator("#shown").inner_text()
    # Where the focus is has to be seen: the button looks other than when it has none.
    outline = "document.querySelector('input:focus + span').computedStyleMap().get('outline-style')"
    assert str(opened.evaluate(f"{outline}.toString()")) == "solid"


def test_a_choice_is_part_of_the_address(open_page):
    opened = open_page(fragment="#for=overfits")
    assert visible_recipes(opened) == ["first", "second"]
    opened.get_by_text("slow (2)").click()
    assert opened.url.endswith("#for=slow")
    opened.reload()
    assert visible_recipes(opened) == ["first", "unmeasured"]


def test_a_link_to_a_hidden_recipe_shows_it(open_page):
    opened = open_page(fragment="#for=explodes")
    opened.evaluate("location.hash = '#second'")
    opened.wait_for_function("!document.getElementById('second').hidden")
    assert opened.evaluate("document.getElementById('second').getBoundingClientRect().top") < 900


@pytest.mark.parametrize("width", [320, 360, 700, 1400])
def test_nothing_sticks_out_at_the_side(open_page, width):
    opened = open_page({"width": width, "height": 740})
    assert opened.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(open_page, scheme):
    """WCAG 2.1, 1.4.3: a contrast of at least 4.5."""
    opened = open_page(scheme=scheme)
    colors = """all => all.filter(one => one.textContent.trim()).map(one => {
      let ground = one;
      while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)")
        ground = ground.parentElement;
      return [getComputedStyle(one).color, getComputedStyle(ground).backgroundColor, one.outerHTML];
    })"""
    found = opened.eval_on_selector_all(
        "h1, h2, h3, p, a, td, th, dd, dt, code, .verdict, .quiet, fieldset span, button", colors
    )
    assert len(found) > 30
    for color, ground, html in found:
        assert contrast(color, ground) >= 4.5, html[:200]
    (body_ground,) = {ground for _, ground, html in found if html.startswith("<h1")}
    assert (luminance(body_ground) < 0.5) == (scheme == "dark")


def contrast(color, ground):
    darker, lighter = sorted([luminance(color), luminance(ground)])
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color):
    channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_card_is_shown_as_it_is_written(open_page):
    opened = open_page()
    assert opened.title() == "Training recipes for Keras"
    assert "<script>document.title = 'broken'</script> & more" in opened.inner_text("#first")
    assert "<b>many</b>" in opened.locator(".claims").inner_text()


def test_what_ran_here_stands_beside_what_was_recorded(open_page):
    opened = open_page()
    cell = opened.locator(".claims tr", has_text="first").first.inner_text()
    assert "+2.0 [+1.0, +3.0] points" in cell
    assert "here: supported, +3.0 [+2.0, +4.0] points" in cell and "smoke run" in cell
    assert "QUICK" in opened.inner_text("#first")
    assert "not measured" in opened.inner_text("#unmeasured")


def test_picture_is_part_of_the_page_and_scrolls_on_a_phone(open_page):
    opened = open_page(PHONE)
    opened.locator("#wide img").scroll_into_view_if_needed()
    opened.wait_for_function("document.querySelector('#wide img').naturalWidth === 1400")
    wider = "figure => figure.scrollWidth > figure.clientWidth"
    assert opened.eval_on_selector("#wide figure", wider)


def test_a_command_can_be_copied(open_page):
    opened = open_page()
    button = opened.get_by_role("button", name="Copy the command python -m recipes.first")
    button.focus()
    opened.keyboard.press("Enter")
    opened.wait_for_function("['Copied', 'Selected'].includes(document.activeElement.textContent)")
    if button.text_content() == "Selected":
        assert opened.evaluate("getSelection().toString()") == "python -m recipes.first"
