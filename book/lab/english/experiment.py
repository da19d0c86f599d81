"""The experiment: every adapter, at every width, over seeds and splits of the tasks.

    python -m lab.english.experiment        # from the folder `book`; writes results/lab_cpu.json

One run trains an adapter on the training tasks of a split, then transfers it to the held-out tasks.
The learning rates of each adapter at each width are searched first, on the development split, over
the same grids for all. Finished runs are kept in a cache folder, so an interrupted experiment goes on
where it was.
"""

import argparse
import copy
import dataclasses
import functools
import itertools
import json
import time
from pathlib import Path

import pandas
import torch

import minitensorpoly as mtp

from .. import methods
from ..records import BOOK, RESULTS, mean, provenance
from ..runs import LEARNING_RATES, climb, execute_all
from . import tasks
from .backbone import load_backbone, make_tokenizer
from .training import by_task, encode, exact_match, select, train

# of multi-task training; a step at width 256 costs three times as much, so it sees half the examples
BUDGET = {64: {"steps": 300, "batch_size": 64}, 256: {"steps": 300, "batch_size": 32}}
N_TRAIN, N_TEST = 500, 100  # examples a task
ROUTER_LR = 0.1  # the authors' setting; the same for every routed method
FEW_SHOT_STEPS = {"routing": 50, "all": 30}
SHOTS = (8, 32)
FEW_SHOT_RATES = {"routing": LEARNING_RATES[6:9], "all": LEARNING_RATES[3:6]}  # what it starts with
ADAPTERS = {64: list(methods.ADAPTERS), 256: [*methods.EQUAL_SIZE, "Poly K=2", "TensorPoly-I N=4"]}
# (split, seed), on three splits, so that an interval shows what both choices change
PAIRS = ((1, 1), (2, 2), (3, 3), (1, 4), (2, 5), (3, 6))
CONTROL = ("LoRA", "Poly", "TensorPoly-I")  # the adapters of the control with named skills
LONGER = 4  # how many times the steps, in the control of a longer training


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run and its transfer.

    Args:
        width: of the backbone.
        adapter: a key of `methods.ADAPTERS`.
        split: number of the split of tasks; 0 is for development.
        seed: of the adapter's start, the sentences and their order.
        lr: learning rate of the factors.
        few_shot: {(part that is trained, shots): learning rates tried}, as a tuple of items.
        named: name the skills in the text (control).
        longer: train for this many times the usual steps (control).
        keep_routing: record the routing's similarity between each two tasks.
    """

    width: int
    adapter: str
    split: int
    seed: int
    lr: float
    few_shot: tuple = ()
    named: bool = False
    longer: int = 1
    keep_routing: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """What few-shot transfer may train: routing alone only where it is learned."""
        return ("routing", "all") if methods.learns_routing(self.adapter) else ("all",)


def execute(run: Run) -> dict:
    """Trains, evaluates and transfers one run.

    Returns:
        Its specification, the numbers of parameters, exact match by task of the training tasks, and of
        the held-out tasks by part, shots and learning rate; JSON can hold all of it.
    """
    start = time.perf_counter()
    model, _, split = multi_task(run)
    test = examples(split.train, N_TEST, f"test {run.seed}", run.named)
    record = dataclasses.asdict(run) | {
        "parameters": methods.count_parameters(model),
        "train": by_task(exact_match(model, test), test["task_ids"]),
        "train_seconds": time.perf_counter() - start,
    }
    if methods.learns_routing(run.adapter) and not run.named:
        similarity = routing_similarity(model)
        record["routing_correlation"] = correlation(similarity, skill_overlap(split.train))
        if run.keep_routing:
            record["routing_similarity"] = similarity.tolist()
    record["few_shot"] = [
        {
            "part": part,
            "shots": shots,
            "lr": lr,
            "accuracy": transfer(model, run, split, part, shots, lr),
        }
        for (part, shots), rates in run.few_shot
        for lr in rates
    ]
    return record | {"seconds": time.perf_counter() - start}


@functools.lru_cache(maxsize=8)  # the runs of one process often share a split and a seed
def examples(of: tuple[tasks.Task, ...], n_examples: int, seed: str, named: bool = False, first_id: int = 0):
    """Tokenised sentences of tasks; the arguments are those of `tasks.make_dataset`."""
    return encode(tasks.make_dataset(of, n_examples, seed, named, first_id), make_tokenizer())


def multi_task(run: Run, progress: str | None = None):
    """The backbone, adapted and trained on the training tasks of the run's split.

    Returns:
        model, tokenizer, split.
    """
    torch.manual_seed(run.seed)
    split = tasks.make_split(run.split)
    model, tokenizer = load_backbone(run.width)
    methods.adapt(model, run.adapter, len(split.train))
    data = examples(split.train, N_TRAIN, f"train {run.seed}", run.named)
    budget = BUDGET[run.width]
    steps = budget["steps"] * run.longer
    train(model, data, steps, run.lr, ROUTER_LR, budget["batch_size"], run.seed, progress)
    return model, tokenizer, split


def transfer(model, run: Run, split, part: str, shots: int, lr: float) -> dict[int, float]:
    """Few-shot transfer of a trained model to the held-out tasks; the model stays as it was.

    With part="routing" all held-out tasks are learned in one training: each has routing of its own
    and shares nothing that is trained, so none learns from another (only the clipping of gradients
    sees them all). With part="all" each task gets a training of its own, from a fresh copy. A private
    adapter for a new task starts as a new LoRA.

    Returns:
        Exact match of each held-out task.
    """
    n_train, n_new = len(split.train), len(split.held_out)
    few = examples(split.held_out, shots, f"few-shot {run.seed}", run.named, first_id=n_train)
    test = examples(split.held_out, N_TEST, f"test {run.seed}", run.named, first_id=n_train)
    accuracy = {}
    groups = [range(n_new)] if part == "routing" else [[i] for i in range(n_new)]
    for group in groups:
        if run.adapter == methods.PRIVATE:
            torch.manual_seed(run.seed)
            learner = mtp.adapt(
                load_backbone(run.width)[0],
                mtp.AdapterConfig("lora", methods.TARGET_MODULES, n_tasks=n_train + n_new, rank=1),
            )
        else:
            learner = copy.deepcopy(model)
            mtp.add_tasks(learner, n_new)
            mtp.train_only(learner, part)
        rows = torch.isin(few["task_ids"], torch.tensor(group) + n_train)
        router_lr = lr if part == "routing" else ROUTER_LR
        batch_size = 32 if part == "routing" else min(shots, 16)
        train(
            learner,
            select(few, rows),
            FEW_SHOT_STEPS[part],
            lr,
            router_lr,
            batch_size,
            run.seed,
        )
        rows = torch.isin(test["task_ids"], torch.tensor(group) + n_train)
        accuracy |= by_task(exact_match(learner, select(test, rows)), test["task_ids"][rows])
    return accuracy


def routing_similarity(model) -> torch.Tensor:
    """Cosine similarity, between each two tasks, of their routing weights over all layers, centred."""
    weights = torch.cat(
        [w.flatten(1) for w in mtp.routing_weights(model).values()], 1
    )  # (tasks, layers * ...)
    weights = torch.nn.functional.normalize(weights - weights.mean(0), dim=1)
    return weights @ weights.T


def skill_overlap(of: list) -> torch.Tensor:
    """Between each two tasks, the skills that they share over the skills that either has."""
    return torch.tensor(
        [[len({*a.skills} & {*b.skills}) / len({*a.skills} | {*b.skills}) for a in of] for b in of]
    )


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Pearson's correlation of two (tasks, tasks) matrices over the pairs of different tasks."""
    pairs = torch.ones_like(a).triu(1).bool()
    return torch.corrcoef(torch.stack([a[pairs], b[pairs]]))[0, 1].item()


def search(width: int, start: dict[str, tuple], cache: Path, both_parts: bool, workers: int | None = None):
    """Searches learning rates on the development split, by the same rule for every adapter.

    First the rate of multi-task training, by exact match on the training tasks. Then, at that rate,
    those of few-shot transfer, by exact match on the development tasks.

    Args:
        width: of the backbone.
        start: {adapter: the rates of multi-task training to start with}; see `climb`.
        cache: folder that keeps finished runs.
        both_parts: as in `final_runs`.
        workers: processes; None: one per core.

    Returns:
        The records, and {adapter: {"lr": ..., "routing": ..., "all": ...}}.
    """
    records = []

    def evaluate(new):
        runs = [Run(width, adapter, tasks.DEVELOPMENT, 0, lr) for adapter, lr in new]
        done = execute_all(execute, runs, f"width {width}: learning rates", cache, workers)
        records.extend(done)
        return [mean(record["train"]) for record in done]

    def evaluate_few_shot(new):
        rates = {}  # {run: {part: rates}}: one run tries all rates of an adapter
        for (run, part), rate in new:
            rates.setdefault(run, {}).setdefault(part, []).append(rate)
        runs = [
            dataclasses.replace(run, few_shot=tuple(((p, max(SHOTS)), tuple(r)) for p, r in parts.items()))
            for run, parts in rates.items()
        ]
        done = execute_all(execute, runs, f"width {width}: few-shot learning rates", cache, workers)
        records.extend(done)
        scores = {
            (record["adapter"], trial["part"], trial["lr"]): mean(trial["accuracy"])
            for record in done
            for trial in record["few_shot"]
        }
        return [scores[run.adapter, part, rate] for (run, part), rate in new]

    best = climb(start, evaluate)
    chosen = {adapter: {"lr": lr} for adapter, lr in best.items()}
    runs = [Run(width, adapter, tasks.DEVELOPMENT, 0, lr) for adapter, lr in best.items()]
    parts = [(run, part) for run in runs for part in (run.parts if both_parts else run.parts[:1])]
    for (run, part), lr in climb({key: FEW_SHOT_RATES[key[1]] for key in parts}, evaluate_few_shot).items():
        chosen[run.adapter][part] = lr
    return records, chosen


def final_runs(
    width: int, chosen: dict, pairs, adapters: list[str], both_parts: bool = True, shots: tuple = SHOTS
) -> list[Run]:
    """The runs that are reported: every adapter at its chosen rates, on every pair of split and seed.

    Args:
        width: of the backbone.
        chosen: what `search` returned.
        pairs: pairs of split and seed.
        adapters: keys of `methods.ADAPTERS`.
        both_parts: transfer by routing alone and by everything; otherwise by everything only where
            there is no routing to learn.
        shots: examples of each held-out task.
    """
    runs = []
    for (split, seed), adapter in itertools.product(pairs, adapters):
        rates = chosen[adapter]
        run = Run(width, adapter, split, seed, rates["lr"], keep_routing=(split, seed) == pairs[0])
        parts = run.parts if both_parts else run.parts[:1]
        few_shot = tuple(((part, n), (rates[part],)) for part in parts for n in shots)
        runs.append(dataclasses.replace(run, few_shot=few_shot))
    return runs


def control_runs(width: int, chosen: dict, pairs) -> list[Run]:
    """Two controls: the text names the skills, so no task id is needed; and LoRA trains for longer."""
    runs = [
        Run(width, adapter, split, seed, chosen[adapter]["lr"], named=True)
        for (split, seed), adapter in itertools.product(pairs, CONTROL)
    ]
    return runs + [
        Run(width, "LoRA", split, seed, chosen["LoRA"]["lr"], longer=LONGER) for split, seed in pairs[:3]
    ]


def table(records: list[dict]) -> pandas.DataFrame:
    """One row a run. Accuracies are exact match in percent, means over tasks.

    Returns:
        Columns: width, adapter, split, seed, lr; `factors` and `routing`, trainable parameters; `train`
        and its two halves, `own tag` and `shared tag`; `correlation` of the routing's similarity with
        the overlap of skills; for few-shot transfer columns such as `routing, 32 shots`, and `transfer,
        32 shots`, by routing alone where routing is learned and by everything elsewhere.
    """
    rows = []
    for record in records:
        shared = tasks.make_split(record["split"]).shared
        row = {name: record[name] for name in ("width", "adapter", "split", "seed", "lr")} | record[
            "parameters"
        ]
        row["train"] = 100 * mean(record["train"])
        for half, is_shared in (("own tag", False), ("shared tag", True)):
            row[half] = 100 * mean(
                [a for task, a in record["train"].items() if shared[int(task)] == is_shared]
            )
        row["correlation"] = record.get("routing_correlation")
        for trial in record["few_shot"]:
            accuracy = 100 * mean(trial["accuracy"])
            row[f"{trial['part']}, {trial['shots']} shots"] = accuracy
            row.setdefault(f"transfer, {trial['shots']} shots", accuracy)  # routing alone comes first
        rows.append(row)
    return pandas.DataFrame(rows)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--pairs", type=int, default=5, help="how many pairs of split and seed")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument(
        "--cache", type=Path, default=BOOK.parent / "_build" / "lab", help="folder of finished runs"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "lab_cpu.json")
    arguments = parser.parse_args()
    pairs, common = PAIRS[: arguments.pairs], (arguments.cache, arguments.workers)
    result = {
        "provenance": provenance("lab.english.experiment"),
        "search": [],
        "chosen": {},
        "control": [],
        "runs": [],
    }
    chosen = {}
    for width in arguments.widths:
        first = width == arguments.widths[0]  # the width with the controls and both ways of transfer
        if first:
            start = {adapter: LEARNING_RATES[2:8] for adapter in ADAPTERS[width]}
        else:  # three rates around the best one of the first width
            best = {adapter: LEARNING_RATES.index(rates["lr"]) for adapter, rates in chosen.items()}
            start = {
                adapter: LEARNING_RATES[best[adapter] - 1 : best[adapter] + 2] for adapter in ADAPTERS[width]
            }
        records, chosen = search(width, start, arguments.cache, first, arguments.workers)
        result["search"] += records
        result["chosen"][str(width)] = chosen
        if first:
            result["control"] = execute_all(
                execute, control_runs(width, chosen, pairs), f"width {width}: control", *common
            )
        runs = final_runs(width, chosen, pairs, ADAPTERS[width], both_parts=first)
        result["runs"] += execute_all(execute, runs, f"width {width}: runs", *common)
        arguments.out.parent.mkdir(exist_ok=True)
        arguments.out.write_text(json.dumps(result) + "\n")
        print(f"{arguments.out}: {len(result['runs'])} runs up to width {width}")


if __name__ == "__main__":
    main()
