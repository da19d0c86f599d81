// Without a server, the search cannot fetch the pages for their excerpts.
DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = location.protocol !== "file:";

window.addEventListener("load", async () => {
  // The role that docutils writes is not allowed in a list.
  document.querySelectorAll(".citation-list > *").forEach((entry) => entry.setAttribute("role", "listitem"));

  // On a phone a figure scrolls: by keys, too.
  document.querySelectorAll(".cell_output figure").forEach((figure) => {
    if (figure.scrollWidth > figure.clientWidth) figure.tabIndex = 0;
  });

  // The theme loads the search on every page, and Sphinx highlights no words where the search is loaded.
  if (document.getElementById("search-results")) return;
  await window.MathJax?.startup.promise; // a mark inside TeX would break the formula
  SphinxHighlight.highlightSearchWords();
});

// On paper: black on white, and all but the set-up open. Afterwards all is as it was.
let undress = null;

function dressForPaper() {
  if (undress) return;
  const theme = document.documentElement.dataset.theme;
  const closed = document.querySelectorAll("details:not([open], .tag_hide-input details)");
  document.documentElement.dataset.theme = "light";
  closed.forEach((details) => (details.open = true));
  undress = () => {
    document.documentElement.dataset.theme = theme;
    closed.forEach((details) => (details.open = false));
    undress = null;
  };
}

matchMedia("print").addEventListener("change", (medium) => (medium.matches ? dressForPaper() : undress?.()));
window.addEventListener("beforeprint", dressForPaper);
window.addEventListener("afterprint", () => undress?.());
