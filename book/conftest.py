"""Notebooks as tests, on a machine that is busy with something else."""


def pytest_itemcollected(item):
    if hasattr(item, "output_timeout"):  # of a cell; nbval itself waits for 5 seconds
        item.output_timeout = 600
