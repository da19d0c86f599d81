"""What a printed page promises: the text, whole, black on white, whatever the reader's screen."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from browsing import ROOT, open_context

BOOK = re.findall(r"\b(?:root|file): (\S+)", (Path(__file__).parents[2] / "_toc.yml").read_text())
PAPER = 673  # an A4 page less its margins, in CSS pixels
SCREEN_ONLY = [
    ".bd-sidebar-primary",
    ".bd-sidebar-secondary",
    ".bd-header-article",
    ".prev-next-area",
    ".bd-footer",
    "#jb-print-docs-body",
    "button.copybtn",
    "a.headerlink",
]

PALE = """() => {  // texts whose contrast with white is below 4.5
    const linear = c => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4)
    const contrast = color => {
        const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map(linear)
        return 1.05 / (0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05)
    }
    return [...document.querySelectorAll("article *")]
        .filter(e => e.checkVisibility() && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
        .filter(e => contrast(getComputedStyle(e).color) < 4.5)
        .map(e => [getComputedStyle(e).color, e.textContent.slice(0, 60)])
}"""
GROUNDS = """() => [...document.querySelectorAll("html, body, .bd-main, article")]
    .map(e => getComputedStyle(e).backgroundColor)"""
BEYOND = """edge => [...document.querySelectorAll("article *")]
    .filter(e => e.checkVisibility() && !e.closest("mjx-assistive-mml, .visually-hidden"))
    .filter(e => e.getBoundingClientRect().right > edge + 1)
    .map(e => [e.tagName, e.className, Math.round(e.getBoundingClientRect().right)])"""


@pytest.fixture(scope="module", params=["light", "dark"])
def printer(request, browser):
    """An empty page in each theme."""
    with open_context(browser, PAPER, request.param) as context:
        yield context.new_page()


@pytest.fixture(scope="module", params=BOOK)
def sheet(request, printer, origin):
    """Every page of the book, as it is printed."""
    printer.emulate_media(media="screen")
    printer.goto(f"{origin}{request.param}.html")
    printer.evaluate("window.MathJax?.startup.promise.then(() => {})")
    printer.emulate_media(media="print")
    printer.wait_for_function("document.documentElement.dataset.theme === 'light'")
    return printer


def test_only_the_text_is_printed(sheet):
    shown = [s for s in SCREEN_ONLY if sheet.locator(f"{s} >> visible=true").count()]
    assert shown == []
    assert sheet.locator("h1 >> visible=true").count() == 1


def test_text_is_dark_on_white(sheet):
    assert set(sheet.evaluate(GROUNDS)) <= {"rgb(255, 255, 255)", "rgba(0, 0, 0, 0)"}
    assert sheet.evaluate(PALE) == []


def test_nothing_is_wider_than_the_page(sheet):
    assert sheet.evaluate(BEYOND, PAPER) == []


def test_solutions_are_printed(sheet):
    hidden = "[...document.querySelectorAll('.tag_hide-cell pre')].filter(e => !e.checkVisibility()).length"
    assert sheet.evaluate(hidden) == 0


def test_after_printing_the_page_is_as_before(browser, origin):
    with open_context(browser, theme="dark") as context:
        page = context.new_page()
        page.goto(f"{origin}book/01_lora.html")
        solution = page.locator(".tag_hide-cell details pre").first
        page.emulate_media(media="print")
        solution.wait_for(state="visible")
        page.emulate_media(media="screen")
        solution.wait_for(state="hidden")
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_a_page_becomes_a_pdf(tmp_path):
    page = tmp_path / "book" / "whole.html"
    page.parent.mkdir()
    script = '<script src="../_static/formulas.js"></script>'
    page.write_text(f"<html><head>{script}</head><body><h1>A title</h1></body></html>")
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static" / "formulas.js").write_text("MathJax = {startup: {promise: Promise.resolve()}}")
    command = [sys.executable, "-m", "lab.publishing.pdf", page, tmp_path / "whole.pdf"]
    subprocess.run(command, cwd=ROOT / "book", check=True, timeout=600)
    printed = (tmp_path / "whole.pdf").read_bytes()
    assert printed.startswith(b"%PDF") and b"/Outlines" in printed
