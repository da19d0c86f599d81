"""Prints the book: one page of all chapters becomes one PDF, with an outline and links that work.

    python -m lab.publishing.pdf PAGE PDF      # `make pdf` builds the page first

Chromium prints, as it prints a page of the website, by the rules for paper in `_static/style.css`.
"""

import os
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")


def at_root(page: Path) -> Path:
    """A copy of the page that `singlehtml` made, one folder up: its addresses are as if it stood there."""
    copy = page.parents[1] / "whole.html"
    copy.write_text(page.read_text().replace('"../_static/', '"_static/'))
    return copy


def print_pdf(page: Path, pdf: Path) -> None:
    """Prints an HTML page, once its formulas are set."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        # Less motion: what opens for print is there at once.
        tab = browser.new_context(reduced_motion="reduce").new_page()
        tab.set_default_timeout(0)
        tab.goto(page.resolve().as_uri())
        tab.wait_for_function("window.MathJax?.startup?.promise")
        tab.evaluate("MathJax.startup.promise.then(() => {})")
        tab.pdf(path=pdf, prefer_css_page_size=True, print_background=True, outline=True, tagged=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    print_pdf(at_root(Path(sys.argv[1])), Path(sys.argv[2]))
