"""What the pages look like, as far as a browser can measure it."""

import re
from pathlib import Path

import pytest
from browsing import open_context

ROOT = Path(__file__).parents[2]
BOOK = re.findall(r"\b(?:root|file): (\S+)", (ROOT / "_toc.yml").read_text())
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
FRONT = BOOK[0]

each_page = pytest.mark.parametrize("name", BOOK)


@pytest.fixture(scope="module")
def page(browser):
    with open_context(browser) as context:
        yield context.new_page()


def visit(page, origin, name, viewport=DESK, theme="light"):
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size(viewport)
    page.goto(f"{origin}{name}.html")
    page.evaluate("window.MathJax?.startup.promise.then(() => {})")


@each_page
def test_code_and_its_outputs_do_not_scroll_on_a_desk(page, origin, name):
    visit(page, origin, name)
    page.evaluate("document.querySelectorAll('details').forEach(e => (e.open = true))")
    scrolling = """[...document.querySelectorAll("article pre, .cell_output .output")]
        .filter(e => e.scrollWidth > e.clientWidth)
        .map(e => [e.scrollWidth - e.clientWidth, e.textContent.slice(0, 200)])"""
    assert page.evaluate(scrolling) == []


@each_page
def test_title_fits_a_tab_and_names_the_book(page, origin, name):
    visit(page, origin, name)
    assert page.title().endswith(" — minitensorpoly")
    assert len(page.title()) <= 70


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_logo_stands_above_the_name(page, origin, theme):
    visit(page, origin, FRONT, theme=theme)
    logo = page.locator(".navbar-brand img >> visible=true")
    assert logo.get_attribute("alt") and 40 <= logo.bounding_box()["height"] <= 80
    name = page.locator(".navbar-brand .logo__title")
    assert name.text_content() == "minitensorpoly"
    assert name.bounding_box()["y"] >= logo.bounding_box()["y"] + logo.bounding_box()["height"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_figures_have_a_white_ground(page, origin, theme):
    """Their letters are black."""
    visit(page, origin, "book/08_experiment", theme=theme)
    grounds = """[...document.querySelectorAll("div.cell_output img")].map(image => {
        let e = image
        while (/rgba\\(.*, 0\\)/.test(getComputedStyle(e).backgroundColor)) e = e.parentElement
        return getComputedStyle(e).backgroundColor
    })"""
    assert set(page.evaluate(grounds)) == {"rgb(255, 255, 255)"}


@pytest.mark.parametrize("viewport, file", [(DESK, "idea.svg"), (PHONE, "idea_narrow.svg")])
def test_front_page_has_one_picture_of_the_idea_and_its_letters_are_legible(page, origin, viewport, file):
    visit(page, origin, FRONT, viewport)
    pictures = page.locator("article img[src*='idea'] >> visible=true")
    assert pictures.count() == 1
    assert pictures.get_attribute("src").endswith(file)
    scale = pictures.evaluate("e => e.getBoundingClientRect().width / e.naturalWidth")
    smallest = min(map(float, re.findall(r'font-size="([\d.]+)"', (ROOT / "book/images" / file).read_text())))
    assert scale * smallest >= 11


def test_front_page_leads_at_once_to_reading_running_and_copying(page, origin):
    visit(page, origin, FRONT)
    cards = page.locator(".sd-card").all()
    assert [card.locator(".sd-card-title").text_content().split()[0] for card in cards] == [
        "Read",
        "Run",
        "Copy",
    ]
    for card in cards:
        assert card.bounding_box()["y"] + card.bounding_box()["height"] <= DESK["height"]  # without scrolling
        assert card.locator("a").count()


def test_table_of_the_methods_fits_a_phone(page, origin):
    visit(page, origin, FRONT, PHONE)
    table = page.locator("table.methods")
    widths = table.evaluate("e => [e.scrollWidth, e.parentElement.clientWidth]")
    assert widths[0] <= widths[1]
    assert page.locator("table.methods tbody tr").count() == 6
