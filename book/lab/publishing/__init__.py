"""How do notebooks become a book, a website and Colab's?

notebook.py         the first cell of every notebook
execute.py          executes the notebooks in place
publish.py          a copy of the book with the address of the repository that publishes it
site.py             what the website has beyond what Jupyter Book makes
rehearse_colab.py   a notebook alone, on a machine such as Colab's
update_pins.py      newer versions for requirements.txt
"""
