"""What the tests of the website share: where it is, and pages of it in a browser."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"
TIMEOUT = 180_000  # milliseconds: a machine that is busy with something else is slow, not wrong
HEIGHTS = {1280: 800, 390: 844}  # of a laptop and a phone, by their widths


class Visit:
    """A page in the browser, and what came up while it loaded."""

    def __init__(self, context, url):
        self.page = context.new_page()
        self.complaints, self.requests, self.failures = [], [], []
        self.page.on("console", self.note)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("requestfailed", lambda request: self.failures.append(request.url))
        self.page.on("response", lambda answer: answer.ok or self.failures.append(answer.url))
        self.page.goto(url)
        self.page.evaluate("window.MathJax?.startup.promise.then(() => {})")

    def note(self, message):
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def requests_beyond(self, origin):
        return [url for url in self.requests if not url.startswith((origin, "data:", "blob:"))]

    def untypeset_formulas(self):
        """Formulas left as TeX, formulas with an error, and TeX in the text where no formula is."""
        return self.page.evaluate(r"""() => {
            const text = document.body.cloneNode(true)
            text.querySelectorAll("code, pre, script, style, mjx-container").forEach(e => e.remove())
            return [
                ...[...document.querySelectorAll(".math:not(:has(mjx-container))")].map(e => e.textContent),
                ...[...document.querySelectorAll("mjx-merror")].map(e => e.outerHTML),
                ...(text.textContent.match(/\\[a-zA-Z]{2,}|\\[()[\]]|\$[^\s$][^$]*\$/g) ?? []),
            ]
        }""")


def open_context(browser, width=1280, theme="light"):
    context = browser.new_context(
        viewport={"width": width, "height": HEIGHTS.get(width, 1000)},
        color_scheme=theme,
        reduced_motion="reduce",
        permissions=["clipboard-read", "clipboard-write"],
    )
    context.set_default_timeout(TIMEOUT)
    return context
