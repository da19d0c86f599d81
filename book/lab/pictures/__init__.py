"""How does it look?

ideas.py        pictures that explain
results.py      pictures of what was measured
front_page.py   the picture of the first page
"""
