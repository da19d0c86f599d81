// Without a server, the search cannot fetch the pages for their excerpts.
DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = location.protocol !== "file:";

window.addEventListener("load", async () => {
  // The role that docutils writes is not allowed in a list.
  document.querySelectorAll(".citation-list > *").forEach((entry) => entry.setAttribute("role", "listitem"));

  // The theme loads the search on every page, and Sphinx highlights no words where the search is loaded.
  if (document.getElementById("search-results")) return;
  await window.MathJax?.startup.promise; // a mark inside TeX would break the formula
  SphinxHighlight.highlightSearchWords();
});
