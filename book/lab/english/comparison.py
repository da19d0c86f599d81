"""The comparison: every contender at its best, on equal budgets, over splits, settings and steps.

    python -m lab.english.comparison search    # shapes and learning rates, on the development split
    python -m lab.english.comparison final     # the runs that are reported

Run it in the folder `book`. `results/comparison_plan.md` has the questions and the rules. Every finished run
is a line of JSON in `results/comparison`, and no run that is found there is done again.
"""

import argparse
import functools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path

import torch
from tqdm import tqdm

from .contenders import SHAPES
from .run import SETTINGS, Records, execute
from .search import STEPS, Search

RESULTS = Path(__file__).parents[2] / "results" / "comparison"
# (split, seed): ten splits, so that the runs are independent
PAIRS = tuple((number, number) for number in range(1, 11))


def search_file(folder: Path, width: int, budget: str, contender: str) -> Path:
    """Where the trials of a contender are recorded."""
    return folder / "search" / f"{width} {budget} {contender}.jsonl".replace(" ", "_").replace(",", "")


def search_units(width: int) -> list[tuple]:
    """What is searched, in the order of its importance: (budget, what, steps, setting)."""
    units = [
        ("large", "shape_and_rates", None, None),
        ("large", "few_shot_rates", STEPS, None),
        ("large", "few_shot_rates", 1200, None),
        ("large", "rate", 100, "24 tasks"),
        ("small", "shape_and_rates", None, None),
        ("small", "few_shot_rates", STEPS, None),
        ("small", "few_shot_rates", 1200, None),
        *(("large", "rate", STEPS, setting) for setting in SETTINGS if setting != "24 tasks"),
    ]
    return [unit for unit in units if (width, unit[0]) in SHAPES]


def search_one(folder: Path, width: int, contender: str, unit: tuple, device: str):
    """Does one unit of `search_units` for a contender, or reads it where it is recorded."""
    budget, what, steps, setting = unit
    file = search_file(folder, width, budget, contender)
    record = Records(file, functools.partial(execute, device=device) if device else None)
    arguments = [argument for argument in (steps, setting) if argument is not None]
    return getattr(Search(width, budget, contender, record), what)(*arguments)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=["search", "final"])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.stage == "search":
        jobs = [
            (search_one, arguments.results, arguments.width, contender, unit, arguments.device)
            for unit in search_units(arguments.width)
            for contender in SHAPES[arguments.width, unit[0]]
            if allowed(contender, unit)
        ]
    work(jobs, arguments.workers, arguments.stage)


def allowed(contender: str, unit: tuple) -> bool:
    """Private LoRAs of 60 tasks have no shape of the budget's size."""
    return not (contender.startswith("private") and unit[3] == "60 tasks")


def work(jobs: list[tuple], workers: int, title: str) -> None:
    """Does jobs (function, *arguments) in processes of one thread, in their order, with a progress bar."""
    context = multiprocessing.get_context("spawn")  # a forked process may hang on torch's threads
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        waiting = {pool.submit(*job) for job in jobs}
        with tqdm(total=len(jobs), desc=title) as bar:
            while waiting:
                done, waiting = wait(waiting, return_when="FIRST_COMPLETED")
                for future in done:
                    future.result()
                    bar.update()


if __name__ == "__main__":
    main()
