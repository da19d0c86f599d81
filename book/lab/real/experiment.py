"""The experiment on real tasks: every adapter, several seeds, the same rule of search for each.

    python -m lab.real.experiment gpu --data FOLDER                  # results/finetune_real.json
    python -m lab.real.experiment cpu --data FOLDER --model FOLDER   # results/finetune_real_cpu.json

Run it from the folder `book`. Without --data and --model the hub is asked. A run trains one adapter on
many tasks, then transfers it to the held-out tasks from few examples, as `lab.real.finetune` does. Learning
rates are searched first, on development tasks that are neither trained on nor held out, by the same rule
for every adapter (`lab.runs.climb`). Finished runs are kept in a cache folder, so an interrupted
experiment goes on where it was.
"""

import argparse
import dataclasses
import functools
import json
import os
from pathlib import Path

import pandas

from .. import methods
from ..records import BOOK, RESULTS, mean, provenance
from ..runs import LEARNING_RATES, cache_file, climb, execute_all
from . import finetune, prompts, tasks


@dataclasses.dataclass(frozen=True)
class Profile:
    """How large the experiment is.

    Args:
        out: name of the file of results.
        train: tasks that are trained on.
        development: tasks on which the rates of multi-task training are chosen, by training on them.
        transfer: development tasks on which the rates of few-shot transfer are chosen.
        held_out: tasks of the few-shot transfer that is reported.
        seeds: of the runs that are reported; the search has seed 0.
        few_shot_seeds: seeds of the few-shot sets; None: in the run of number i, the i-th set alone.
        rates: learning rates that a search starts with: of training, and of transfer by each part.
        setting: changes of `finetune.Setting`, the same for every adapter.
        arguments: changes of `finetune.Arguments`, the same for every adapter.
        search_steps: of training while its rate is searched; None: as many as in every other run.
    """

    out: str
    train: tuple[str, ...]
    development: tuple[str, ...]
    transfer: tuple[str, ...]
    seeds: tuple[int, ...]
    few_shot_seeds: tuple[int, ...] | None
    setting: dict
    arguments: dict
    search_steps: int | None = None
    held_out: tuple[str, ...] = tuple(prompts.HELD_OUT)
    rates: dict = dataclasses.field(
        default_factory=lambda: {
            "lr": LEARNING_RATES[3:6],  # 0.003 to 0.03
            "routing": LEARNING_RATES[5:8],  # 0.03 to 0.3
            "all": LEARNING_RATES[2:5],  # 0.001 to 0.01
        }
    )


_TO_SEARCH_ON = "arc_challenge openbookqa qasc dream sciq rotten_tomatoes cola numer_sense".split()
PROFILES = {
    "gpu": Profile(
        out="finetune_real.json",
        train=tuple(prompts.TRAIN),
        development=tuple(prompts.DEVELOPMENT),
        transfer=tuple(prompts.DEVELOPMENT),
        seeds=(1, 2, 3),
        few_shot_seeds=tasks.FEW_SHOT_SEEDS,
        setting={"budget": 16, "test_rows": 500, "few_shot_steps": 30},
        arguments={"max_steps": 1000, "per_device_train_batch_size": 32, "per_device_eval_batch_size": 64},
    ),
    # For two cores in an hour and a half. Eight of the training tasks serve as development tasks, so that the
    # search has more to go by. A run has one few-shot set, a training prompt two choices and 64 tokens.
    "cpu": Profile(
        out="finetune_real_cpu.json",
        train=tuple(name for name in prompts.TRAIN if name not in _TO_SEARCH_ON),
        development=(*_TO_SEARCH_ON, *prompts.DEVELOPMENT),
        transfer=("openbookqa", "rotten_tomatoes", "cosmos_qa"),
        seeds=(1, 2, 3),
        few_shot_seeds=None,
        setting={
            "budget": 8,
            "test_rows": 100,
            "most_choices": 2,
            "max_length": 64,
            "few_shot_steps": 15,
            "dtype": "bfloat16",  # as on a GPU
            "attention": "eager",  # with torch's own a bfloat16 step takes half as long again on a CPU
        },
        arguments={"max_steps": 300, "use_cpu": True},
        search_steps=150,
    ),
    # The embedded backbone and the rows written by hand: it tests the experiment, and measures nothing.
    "rehearsal": Profile(
        out="finetune_real_rehearsal.json",
        train=("boolq", "arc_easy", "trec"),
        development=("multirc", "cosmos_qa"),
        transfer=("multirc",),
        held_out=("rte", "copa"),
        seeds=(1, 2),
        few_shot_seeds=None,
        rates={"lr": LEARNING_RATES[4:6], "routing": LEARNING_RATES[5:7], "all": LEARNING_RATES[4:5]},
        setting={"budget": 2, "max_length": 32, "few_shot_steps": 2},
        arguments={"max_steps": 3, "logging_steps": 1, "use_cpu": True},
    ),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One multi-task training and its transfers.

    Args:
        adapter: one of `finetune.ADAPTERS`.
        seed: of the adapter's start and the order of examples.
        lr: learning rate of training.
        tasks: what it is trained on.
        setting: items of `finetune.Setting`, the same for every adapter.
        arguments: items of `finetune.Arguments`, the same for every adapter.
        new_tasks: what it is transferred to.
        few_shot_seeds: seeds of the few-shot sets.
        few_shot: ((part, learning rate), …) of the transfers.
    """

    adapter: str
    seed: int
    lr: float
    tasks: tuple[str, ...]
    setting: tuple[tuple, ...] = ()
    arguments: tuple[tuple, ...] = ()
    new_tasks: tuple[str, ...] = ()
    few_shot_seeds: tuple[int, ...] = ()
    few_shot: tuple[tuple[str, float], ...] = ()


def execute(run: Run, checkpoints: Path) -> dict:
    """Trains, evaluates and transfers one run.

    Args:
        run: what to do.
        checkpoints: folder that keeps trainings; an interrupted one goes on, a finished one is read.

    Returns:
        Adapter, seed, rate, what `finetune.multi_task` records, and what `finetune.few_shot` does with the
        rates of transfer added.
    """
    training = dataclasses.replace(run, new_tasks=(), few_shot_seeds=(), few_shot=())
    arguments = finetune.Arguments(
        output_dir=str(cache_file(checkpoints, training).with_suffix("")),
        seed=run.seed,
        data_seed=run.seed,
        disable_tqdm=True,
        **dict(run.arguments),
    )
    setting = finetune.Setting(
        adapter=run.adapter,
        lr=run.lr,
        tasks=[*run.tasks],
        new_tasks=[*run.new_tasks],
        parts=[],
        few_shot_seeds=[*run.few_shot_seeds],
        **dict(run.setting),
    )
    chooser, record = finetune.multi_task(setting, arguments, quiet=True)
    record = {"adapter": run.adapter, "seed": run.seed, "lr": run.lr} | record
    record["few_shot"] = finetune.few_shot(chooser, setting, arguments)
    for part, lr in run.few_shot:
        trial = dataclasses.replace(setting, parts=[part], few_shot_lr=lr, few_shot_router_lr=lr)
        found = finetune.few_shot(chooser, trial, arguments, before=False)
        record["few_shot"] += [one | {"lr": lr} for one in found]
    return record


def search(profile: Profile, make_run, run_all) -> tuple[dict, dict[str, dict[str, float]]]:
    """Searches learning rates, by the same rule for every adapter.

    First the rate of training: an adapter is trained on the development tasks, and the accuracy on their
    validation rows counts. Then those of few-shot transfer: it is trained on the training tasks and
    transferred to development tasks.

    Args:
        profile: how large the experiment is.
        make_run: a function of adapter, seed, lr, tasks and steps, and of the fields of `Run` for transfer.
        run_all: a function from runs and a title to records.

    Returns:
        {"training": records, "few_shot": records}, and {adapter: {"lr": ..., "routing": ..., "all": ...}}.
    """
    records = {"training": [], "few_shot": []}

    def evaluate(new):
        runs = [make_run(adapter, 0, lr, profile.development, profile.search_steps) for adapter, lr in new]
        done = run_all(runs, "rates")
        records["training"] += done
        return [mean(record["train"]) for record in done]

    best = climb(dict.fromkeys(finetune.ADAPTERS, profile.rates["lr"]), evaluate)
    chosen = {adapter: {"lr": lr} for adapter, lr in best.items()}

    def evaluate_few_shot(new):
        wanted = {}  # {adapter: what is new to it}: one run tries all of it
        for (adapter, part), lr in new:
            wanted.setdefault(adapter, []).append((part, lr))
        to = {"new_tasks": profile.transfer, "few_shot_seeds": tasks.FEW_SHOT_SEEDS[:1]}
        runs = [
            make_run(adapter, 0, best[adapter], profile.train, few_shot=tuple(trials), **to)
            for adapter, trials in wanted.items()
        ]
        done = run_all(runs, "few-shot rates")
        records["few_shot"] += done
        accuracies = {}
        for record in done:
            for trial in record["few_shot"]:
                key = (record["adapter"], trial["part"]), trial.get("lr")
                accuracies.setdefault(key, []).append(trial["accuracy"])
        # A frozen model without a head has nothing to train, and no accuracy.
        return [mean(accuracies.get(key, [0.0])) for key in new]

    keys = [(adapter, part) for adapter in best for part in parts_of(adapter)]
    for (adapter, part), lr in climb({key: profile.rates[key[1]] for key in keys}, evaluate_few_shot).items():
        chosen[adapter][part] = lr
    return records, chosen


def parts_of(adapter: str) -> tuple[str, ...]:
    """What few-shot transfer of an adapter can train: routing alone only where it is learned."""
    routed = adapter != finetune.FROZEN and methods.learns_routing(adapter)
    return ("routing", "all") if routed else ("all",)


def accuracies(recorded: dict) -> pandas.DataFrame:
    """Accuracies of a recorded experiment, in percent, one row for each run, stage and task.

    Returns:
        Columns: adapter, seed, stage, task, accuracy. The stages are `training tasks`, and for the held-out
        tasks `before` any training on them, after training `routing alone` or `everything`, as means over
        the few-shot sets; `transfer` is `routing alone` where routing is learned and `everything` elsewhere.
    """
    rows, stages = [], {None: "before", "routing": "routing alone", "all": "everything"}
    for run in recorded["runs"]:
        where = {"adapter": run["adapter"], "seed": run["seed"]}
        for task, accuracy in run["train"].items():
            rows.append(where | {"stage": "training tasks", "task": task, "accuracy": accuracy})
        for trial in run["few_shot"]:
            stage = stages[trial["part"]]
            rows.append(where | {"stage": stage, "task": trial["task"], "accuracy": trial["accuracy"]})
            routed = run["parameters"]["routing"] > 0
            if trial["part"] == ("routing" if routed else "all"):
                rows.append(rows[-1] | {"stage": "transfer"})
    keys = ["adapter", "seed", "stage", "task"]
    return pandas.DataFrame(rows).groupby(keys, sort=False, as_index=False).mean()


def table(recorded: dict) -> pandas.DataFrame:
    """The runs of a recorded experiment, in the columns of `lab.english.experiment.table`.

    Returns:
        Columns: width (here the model's name) and split (always 1), adapter, seed, lr; `factors`, `routing`
        and `head`, trainable parameters; `minutes` of training, `tokens/s`, `memory (GB)`, where they are
        known; the stages of `accuracies`, means over tasks.
    """
    means = accuracies(recorded).groupby(["adapter", "seed", "stage"])["accuracy"].mean()
    rows = []
    for run in recorded["runs"]:
        row = {"width": recorded["provenance"]["model"], "split": 1}
        row |= {name: run[name] for name in ("adapter", "seed", "lr")} | run["parameters"]
        if run.get("seconds"):  # not of a run that was interrupted, nor of one without a trained part
            row |= {"minutes": run["seconds"] / 60, "tokens/s": run["tokens"] / run["seconds"]}
        if run.get("memory"):
            row["memory (GB)"] = run["memory"] / 1e9
        rows.append(row | means[run["adapter"], run["seed"]].to_dict())
    return pandas.DataFrame(rows)


def main(arguments: list[str] | None = None) -> dict:
    """The command. Returns what it writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("profile", choices=PROFILES)
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2", help="hub or folder")
    parser.add_argument("--data", help="folder of data sets, see lab.real.tasks (default: the hub)")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument("--cache", type=Path, default=BOOK.parent / "_build" / "real", help="finished runs")
    parser.add_argument("--out", type=Path, help="default: results/, and the profile's file")
    options = parser.parse_args(arguments)
    profile = PROFILES[options.profile]
    out = options.out or RESULTS / profile.out
    where = provenance("lab.real.experiment", "cpu" if profile.arguments.get("use_cpu") else "cuda")
    where |= {
        "command": f"python -m lab.real.experiment {options.profile}",
        "model": Path(options.model).name,
        "workers": options.workers or os.cpu_count(),
    }
    few_shot_seeds = profile.few_shot_seeds or tasks.FEW_SHOT_SEEDS[: len(profile.seeds)]
    whole = finetune.Setting(
        model=options.model,
        data=options.data,
        tasks=[*profile.train],
        new_tasks=[*profile.held_out],
        few_shot_seeds=[*few_shot_seeds],
        **profile.setting,
    )
    finetune.word_all(dataclasses.replace(whole, tasks=[*profile.train, *profile.development]))
    of_run = {"adapter", "lr", "tasks", "new_tasks", "parts", "few_shot_seeds", "transfer"}
    setting = {name: value for name, value in dataclasses.asdict(whole).items() if name not in of_run}

    def make_run(adapter, seed, lr, tasks, steps=None, **transfer):
        arguments = profile.arguments | ({"max_steps": steps} if steps else {})
        return Run(adapter, seed, lr, tasks, tuple(setting.items()), tuple(arguments.items()), **transfer)

    def run_all(runs, title):
        one = functools.partial(execute, checkpoints=options.cache / "checkpoints")
        return execute_all(one, runs, title, options.cache, options.workers)

    searched, chosen = search(profile, make_run, run_all)
    result = {
        "provenance": where,
        "profile": dataclasses.asdict(profile),
        "baselines": finetune.baselines(whole),
        "chosen": chosen,
        "search": searched,
        "runs": [],
    }
    for i, seed in enumerate(profile.seeds):  # all adapters of a seed, then those of the next
        own = few_shot_seeds if profile.few_shot_seeds else few_shot_seeds[i : i + 1]
        to = {"new_tasks": profile.held_out, "few_shot_seeds": own}
        runs = []
        for adapter, rates in chosen.items():
            few_shot = tuple((part, rates[part]) for part in parts_of(adapter))
            runs.append(make_run(adapter, seed, rates["lr"], profile.train, few_shot=few_shot, **to))
        result["runs"] += run_all(runs, f"seed {seed}")
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result) + "\n")
        print(f"{out}: {len(result['runs'])} runs")
    return result


if __name__ == "__main__":
    main()
