"""What the search has chosen, and which final runs are recorded."""

import functools
from pathlib import Path

import pandas

from ..runs import read
from . import rules
from .comparison import RESULTS, allowed, final_file, search_file, search_of, transfers
from .contenders import CONTENDERS, SHAPES, build, parameters
from .run import N_TEST
from .search import STEPS, TRIAL_RATES, TRIAL_STEPS, score
from .statistics import FIXED, tidy


def final_records(folder: Path, width: int = 64) -> list[dict]:
    """The recorded final runs of a width, block after block, and in each contender after contender."""
    found = []
    for budget, setting, steps in rules.BLOCKS[width]:
        records = read(final_file(folder, width, budget, setting, steps))
        found += sorted(records, key=lambda record: [*CONTENDERS].index(record["contender"]))
    return found


def block(
    folder: Path = RESULTS, budget="large", setting="24 tasks", steps=STEPS, width=64
) -> pandas.DataFrame:
    """The accuracies of one block's recorded final runs; see `statistics.tidy`."""
    records = read(final_file(folder, width, budget, setting, steps))
    return tidy(sorted(records, key=lambda record: [*CONTENDERS].index(record["contender"])))


def progress(folder: Path) -> pandas.DataFrame:
    """How many final runs of each block are recorded, and how many the rules ask for."""
    rows = []
    for width, blocks in rules.BLOCKS.items():
        for (budget, setting, steps), splits in blocks.items():
            asked = splits * sum(
                1 + (CONTENDERS[contender].has_own and transfers(setting, steps))
                for contender in SHAPES[width, budget]
                if allowed(contender, setting)
            )
            done = len(read(final_file(folder, width, budget, setting, steps)))
            rows.append([width, budget, setting, steps, done, asked])
    return pandas.DataFrame(rows, columns=["width", "budget", "setting", "steps", "recorded", "runs"])


def development(
    contender: str, steps: int, folder: Path = RESULTS, width=64, budget="large"
) -> pandas.DataFrame:
    """How a contender does on the development split, at its chosen shape and rates; see `statistics.tidy`.

    The search has two seeds, and it was this split that the rates were chosen on.
    """
    search = search_of(folder, width, budget, contender)
    chosen = {name: search.shape_and_rates()[name] for name in ("shape", "own_lr")}
    chosen |= {"steps": steps, "lr": search.rate(steps), "setting": "24 tasks"}
    by_seed = {}
    for record in read(search_file(folder, width, budget, contender)):
        if chosen.items() <= record.items():
            by_seed.setdefault(record["seed"], record)
    return tidy([record | {"few_shot": []} for record in by_seed.values()])


@functools.cache
def better_part(folder: Path = RESULTS, searched: bool = True, width: int = 64):
    """What `rules.verdicts` asks: (contender, budget, steps, shots) -> "own" or "all".

    Args:
        folder: of the results.
        searched: whether everything is trained at searched rates for both; otherwise it is the part
            `statistics.FIXED`, as it was planned.
        width: of the backbone.
    """

    searches = functools.cache(functools.partial(search_of, folder, width))  # each file is read once

    @functools.cache
    def better(contender, budget="large", steps=STEPS, shots=8):
        if not CONTENDERS[contender].has_own:
            return "all"
        search = searches(budget, contender)
        alone = search.few_shot(steps)
        everything = search.both_rates(steps)[shots] if searched else alone["all", shots]
        return "own" if alone["own", shots][-1] > everything[-1] else "all" if searched else FIXED

    return better


def new_tasks(
    shots: int, budget="large", setting="24 tasks", steps=STEPS, width=64, folder: Path = RESULTS
) -> pandas.DataFrame:
    """Transfer from so many examples in a block, of each contender by the part that `better_part` names.

    Rows of `statistics.tidy`. In a setting with other tasks the part is the one of the usual 24.
    """
    part = functools.partial(better_part(folder, width=width), budget=budget, steps=steps)
    return rules.by_better_part(block(folder, budget, setting, steps, width), shots, part)


def trials(folder: Path, width: int, budget: str) -> pandas.DataFrame:
    """Every trial of shapes and rates, a mean over its seeds.

    Returns:
        Columns: contender, shape, lr, own_lr; `train`, exact match on the training tasks, and `score`, what
        the trial was judged by, both in percent.
    """
    rows = []
    for contender in SHAPES[width, budget]:
        parts = [part for part in CONTENDERS[contender].parts if part in TRIAL_RATES]
        for record in read(search_file(folder, width, budget, contender)):
            if record["few_steps"] == TRIAL_STEPS and record["few_shot"]:
                train = 100 * sum(record["train"]) / (N_TEST * len(record["train"]))
                cell = [contender, record["shape"], record["lr"], record["own_lr"]]
                rows.append([*cell, train, 100 * score(record, parts)])
    columns = ["contender", "shape", "lr", "own_lr", "train", "score"]
    return pandas.DataFrame(rows, columns=columns).groupby(columns[:4], sort=False).mean().reset_index()


def chosen(folder: Path, width: int, budget: str) -> pandas.DataFrame:
    """What the search has chosen for each contender, for runs of `STEPS` steps.

    Returns:
        A row for each contender: trials; the shape; `factors`, and `own` numbers for each of 24 tasks;
        the rate of either; and the columns of `few_shot_rates`.
    """
    counts = trials(folder, width, budget).groupby("contender").size()
    found = {}
    for contender in SHAPES[width, budget]:
        best = search_of(folder, width, budget, contender).shape_and_rates()
        sizes = parameters(build(width, contender, best["shape"], n_tasks=24, seed=0))
        sizes = {name: sum(p.numel() for p in group) for name, group in sizes.items()}
        row = {"trials": counts[contender], "shape": best["shape"]}
        row |= {"factors": sizes["factors"], "own": sizes["own"] // 24}
        row |= {"rate": best["lr"], "rate of own": best["own_lr"] or "–"}
        found[contender] = row | few_shot_rates(folder, width, budget, contender, STEPS)
    return pandas.DataFrame(found).T


def few_shot_rates(folder: Path, width: int, budget: str, contender: str, steps: int) -> dict[str, str]:
    """The rates that the search has found, for each number of examples.

    Returns:
        "few-shot own": of the own part alone. Where everything is trained, "few-shot all": of the factors,
        and "with own": of the own part.
    """
    search = search_of(folder, width, budget, contender)
    alone = search.few_shot(steps)
    rates = {"few-shot own": [], "few-shot all": [alone["all", n][0] for n in search.shots], "with own": []}
    if CONTENDERS[contender].has_own:
        both = search.both_rates(steps)
        rates["few-shot own"] = [alone["own", n][0] for n in search.shots]
        rates["few-shot all"], rates["with own"] = ([both[n][i] for n in search.shots] for i in (0, 1))
    return {name: " ".join(f"{rate:g}".lstrip("0") for rate in of) or "–" for name, of in rates.items()}
