"""What the website promises its readers, tried in a real browser by `make test-site`."""

import ast
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import HEIGHTS, ROOT, SITE, Visit, open_context
from playwright.sync_api import expect

SCREENSHOTS = ROOT / "_build" / "screenshots"
LOOKS = [(width, theme) for width in HEIGHTS for theme in ("light", "dark")]
BOOK = re.findall(r"\b(?:root|file): (\S+)", (ROOT / "_toc.yml").read_text())
PAGES = [*BOOK, "genindex", "search"]
NOTEBOOKS = [page for page in BOOK if (ROOT / f"{page}.ipynb").exists()]
TOPICS = {
    "book/01_lora": "low-rank update",
    "book/02_tensor_products": "Kronecker product",
    "book/03_tlora": "entangled leaves",
    "book/04_many_tasks": "negative transfer",
    "book/05_routing": "MHR heads",
    "book/06_tensorpoly_1": "routing ranks",
    "book/07_tensorpoly_2": "routing orders",
    "book/08_experiment": "few-shot transfer",
    "book/09_finetune": "GPU fine-tune",
    "book/10_cost": "memory cost",
    "book/11_use": "use project",
    "book/12_own_tasks": "own tasks",
}

each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS)


@pytest.fixture(scope="session", params=LOOKS, ids=lambda look: f"{look[0]}-{look[1]}")
def look(request, browser):
    """A width, a theme, and a browser's context with both."""
    with open_context(browser, *request.param) as context:
        yield *request.param, context


@pytest.fixture(scope="module", params=PAGES)
def visit(request, look, origin):
    """Every page in every look, photographed."""
    width, theme, context = look
    visit = Visit(context, f"{origin}{request.param}.html")
    photograph = SCREENSHOTS / f"{width}-{theme}" / f"{Path(request.param).name}.jpg"
    visit.page.screenshot(path=photograph, full_page=True, quality=80)
    yield visit
    visit.page.close()


@pytest.fixture(params=HEIGHTS)
def reader(request, browser, origin):
    """The front page of the book, on a laptop and on a phone."""
    with open_context(browser, request.param, "light") as context:
        page = context.new_page()
        page.goto(origin)
        page.wait_for_url(f"{origin}{BOOK[0]}.html")
        yield page


def test_page_loads_without_complaint(visit):
    assert visit.complaints == []
    assert visit.failures == []


def test_page_asks_nothing_of_another_host(visit, origin):
    assert visit.requests_beyond(origin) == []


def test_page_is_light_or_dark_as_the_readers_system(visit, look):
    _, theme, _ = look
    assert visit.page.evaluate("document.documentElement.dataset.theme") == theme


def test_formulas_are_typeset(visit):
    assert visit.untypeset_formulas() == []


def test_page_does_not_scroll_sideways(visit):
    width = visit.page.evaluate("document.documentElement.scrollWidth")
    assert width <= visit.page.viewport_size["width"]


def test_images_are_loaded_and_have_alternative_texts(visit):
    poor = "[...document.images].filter(e => !e.complete || !e.naturalWidth || !e.alt.trim()).map(e => e.src)"
    assert visit.page.evaluate(poor) == []


def test_page_has_no_serious_barrier(visit):
    visit.page.evaluate("document.querySelectorAll('details').forEach(e => (e.open = true))")
    # preload: axe would fetch the style sheets once more, some by a wrong name.
    found = Axe().run(visit.page, options={"resultTypes": ["violations"], "preload": False})
    barriers = [
        (violation["id"], node["target"], node["failureSummary"])
        for violation in found.response["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
    assert barriers == []


@pytest.mark.parametrize("page", [*PAGES, "search.html?q=routing"])
def test_page_works_as_a_file(browser, page):
    file, _, query = page.partition(".html")
    with open_context(browser, 1280, "light") as context:
        visit = Visit(context, (SITE / f"{file}.html").as_uri() + query)
        if query:
            expect(visit.page.locator("#search-results a").first).to_be_visible()
        assert visit.complaints == []
        assert visit.failures == []
        assert visit.requests_beyond("file:") == []
        assert visit.untypeset_formulas() == []


def test_every_internal_link_and_anchor_is_alive(desk, origin):
    anchors, links = {}, {}
    for page in PAGES:
        desk.goto(f"{origin}{page}.html")
        anchors[desk.url] = desk.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
        for link in desk.evaluate("[...document.links].map(e => e.href)"):
            if link.startswith(origin):
                links.setdefault(link, page)
    assert len(links) > 100

    def is_alive(link):
        url, _, anchor = link.partition("#")
        return unquote(anchor) in anchors[url] if anchor else desk.request.get(url).ok

    assert [(page, link) for link, page in links.items() if not is_alive(link)] == []


def test_every_chapter_has_a_topic():
    assert list(TOPICS) == [page for page in BOOK if Path(page).name[0].isdigit()]


@pytest.mark.parametrize("chapter, topic", TOPICS.items())
def test_search_finds_a_chapter_by_its_topic_and_marks_the_words(reader, chapter, topic):
    reader.locator(".search-button__button:visible").first.click()
    reader.locator("dialog input[type=search]").fill(topic)
    reader.keyboard.press("Enter")
    # Results move down the page while their summaries arrive: a click may miss, a key does not.
    reader.locator(f"#search-results a[href='{chapter}.html']").press("Enter")
    marked = reader.locator("article .highlighted").first
    expect(marked).to_be_visible()
    assert marked.text_content().lower() in topic.lower()


@each_notebook
def test_copy_buttons_copy(desk, origin, notebook):
    desk.goto(f"{origin}{notebook}.html")
    cells = desk.locator("div.highlight:has(> button.copybtn):visible").all()
    assert cells
    for cell in cells:
        cell.hover()
        cell.locator("button.copybtn").click()
        assert desk.evaluate("navigator.clipboard.readText()") == cell.locator("pre").text_content().rstrip()


@each_notebook
def test_cells_that_show_something_have_no_assertions(desk, origin, notebook):
    desk.goto(f"{origin}{notebook}.html")
    shown = desk.locator(".cell:has(> .cell_output) .cell_input pre").all_text_contents()
    assert shown or notebook not in TOPICS
    for code in shown:
        assert not [one for one in ast.parse(code).body if isinstance(one, ast.Assert)], code


@each_notebook
def test_solutions_open_and_close(desk, origin, notebook):
    desk.goto(f"{origin}{notebook}.html")
    solutions = desk.locator(".tag_hide-cell details").all()
    assert solutions or notebook not in TOPICS
    for solution in solutions:
        code, summary = solution.locator("pre").first, solution.locator("summary")
        expect(code).to_be_hidden()
        summary.click()
        expect(code).to_be_visible()
        summary.click()
        expect(code).to_be_hidden()


def test_next_and_previous_lead_through_the_book_in_order(reader, origin):
    def walk(arrow):
        pages = [reader.url]
        while reader.locator(arrow).count():
            with reader.expect_navigation(wait_until="domcontentloaded"):
                reader.locator(arrow).click()
            pages.append(reader.url)
        return pages

    book = [f"{origin}{page}.html" for page in BOOK]
    assert walk("a.right-next") == book
    assert walk("a.left-prev") == book[::-1]
