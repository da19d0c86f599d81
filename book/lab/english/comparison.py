"""The comparison: every contender at its best, on equal budgets, over splits, settings and steps.

    python -m lab.english.comparison search    # shapes and learning rates, on the development split
    python -m lab.english.comparison final     # the runs that are reported

Run it in the folder `book`. `results/comparison_plan.md` has the questions and the rules. Every finished run
is a line of JSON in `results/comparison`, and no run that is found there is done again.
"""

import argparse
import dataclasses
import functools
from pathlib import Path

from ..records import provenance
from ..runs import NotRecorded, Records, append, work
from . import rules
from .contenders import CONTENDERS, SHAPES
from .run import FEW_SHOTS, SHOTS, Run, execute, run_of
from .search import STEPS, Search

RESULTS = Path(__file__).parents[2] / "results" / "comparison"


def search_file(folder: Path, width: int, budget: str, contender: str) -> Path:
    """Where the trials of a contender are recorded."""
    return folder / "search" / f"{width} {budget} {contender}.jsonl".replace(" ", "_").replace(",", "")


def final_file(folder: Path, width: int, budget: str, setting: str, steps: int) -> Path:
    """Where the final runs of a block are recorded."""
    return folder / "final" / f"{width} {budget} {setting} {steps}.jsonl".replace(" ", "_")


def search_of(folder: Path, width: int, budget: str, contender: str) -> Search:
    """The search of a contender, as it is recorded; what is not raises NotRecorded."""
    return Search(width, budget, contender, Records(search_file(folder, width, budget, contender), run_of))


def search_units(width: int) -> list[tuple]:
    """What is searched for the blocks of final runs, in their order: (budget, what, steps, setting)."""
    units = []
    for budget, setting, steps in rules.BLOCKS[width]:
        units.append((budget, "shape_and_rates", None, None))
        units.append((budget, "rate", steps, setting))
        if setting == "24 tasks" and steps >= STEPS:
            units.append((budget, "few_shot", steps, None))
            units.append((budget, "both_rates", steps, None))
    if width == 64:  # a question of users, which no comparison rests on
        units.append(("large", "sgd", None, None))
    return list(dict.fromkeys(units))


def search_one(folder: Path, width: int, contender: str, unit: tuple, device: str):
    """Does one unit of `search_units` for a contender, or reads it where it is recorded."""
    budget, what, steps, setting = unit
    file = search_file(folder, width, budget, contender)
    record = Records(file, run_of, functools.partial(execute, device=device))
    arguments = [argument for argument in (steps, setting) if argument is not None]
    return getattr(Search(width, budget, contender, record), what)(*arguments)


def final_runs(folder: Path, width: int, block: tuple, pairs) -> list[Run]:
    """The runs of a block, a pair of split and seed after the other, with all contenders in each.

    A contender whose tasks have something of their own is run twice: the second run trains everything, at the
    rates that were searched for both, where the first has `OWN_RATE` for the own part.

    Args:
        folder: of the results; it has the finished search.
        width: of the backbone.
        block: (budget, setting, steps), as in `rules.BLOCKS`.
        pairs: of split and seed.

    Raises:
        NotRecorded: the search has not come so far.
    """
    budget, setting, steps = block
    runs = []
    for contender in SHAPES[width, budget]:
        if not allowed(contender, setting):
            continue
        search = search_of(folder, width, budget, contender)
        found, usual, few_shot, both = search.shape_and_rates(), setting == "24 tasks", (), ()
        if transfers(setting, steps):
            # Other tasks have fewer numbers of examples and no uniform routing; so has width 256.
            rates = search.few_shot(steps if usual else STEPS)
            shots, parts = (SHOTS, CONTENDERS[contender].parts) if usual else (FEW_SHOTS, ("own", "all"))
            few_shot = tuple((p, n, rate) for (p, n), (rate, _) in rates.items() if p in parts and n in shots)
            if CONTENDERS[contender].has_own:
                rates = search.both_rates(steps if usual else STEPS)
                both = tuple(("all", n, rate, own) for n, (rate, own, _) in rates.items() if n in shots)
        settings = {"lr": search.rate(steps, setting), "own_lr": found["own_lr"], "shape": found["shape"]}
        settings |= {"setting": setting, "steps": steps, "forgetting": usual}
        for split, seed in pairs:
            run = Run(width, budget, contender, split=split, seed=seed, **settings)
            runs.append(dataclasses.replace(run, few_shot=few_shot, curve_points=10))
            if both:
                runs.append(dataclasses.replace(run, few_shot=both))
    return sorted(runs, key=lambda run: pairs.index((run.split, run.seed)))


def final_one(folder: Path, run: Run, device: str) -> None:
    """Does one of the final runs, unless it is recorded."""
    file = final_file(folder, run.width, run.budget, run.setting, run.steps)
    Records(file, run_of, functools.partial(execute, device=device))(run)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=["search", "final"])
    parser.add_argument("--width", type=int, default=64, choices=[64, 256])
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the finished runs")
    arguments = parser.parse_args()
    folder, width, device = arguments.results, arguments.width, arguments.device
    command = f"python -m lab.english.comparison {arguments.stage} --width {width} --device {device}"
    append(folder / "provenance.jsonl", provenance("", device) | {"command": command})
    if arguments.stage == "search":
        jobs = [
            (search_one, folder, width, contender, unit, device)
            for unit in search_units(width)
            for contender in SHAPES[width, unit[0]]
            if allowed(contender, unit[3]) and (unit[1] != "both_rates" or CONTENDERS[contender].has_own)
        ]
    else:
        runs = []
        # Five pairs of every block come first: an interruption leaves as much of each.
        for first, last in ((0, 5), (5, 10)):
            for block, splits in rules.BLOCKS[width].items():
                try:
                    runs += final_runs(folder, width, block, rules.PAIRS[first : min(last, splits)])
                except NotRecorded:
                    print("left out, its search is not finished:", *block)
        jobs = [(final_one, folder, run, device) for run in runs]
    work(jobs, arguments.workers, arguments.stage)


def transfers(setting: str, steps: int) -> bool:
    """Whether the runs of a block learn new tasks; otherwise they are about the training tasks alone."""
    return steps >= STEPS and setting != "skills named"


def allowed(contender: str, setting: str | None) -> bool:
    """Whether there is such a contender: private LoRAs of 60 tasks have no shape of the budget's size."""
    return not (CONTENDERS[contender].private and setting == "60 tasks")


if __name__ == "__main__":
    main()
