"""Fine-tunes a pretrained model on many tasks, yours or the book's, then transfers it to new ones.

    python -m lab.real.finetune --output_dir runs/first            # from the folder `book`
    python -m lab.real.finetune --output_dir runs/mine --task_file lab/real/example/tasks.json
    python -m lab.real.finetune --output_dir runs/second --adapter poly --n_skills 4 --lr 0.003
    torchrun --nproc-per-node 2 -m lab.real.finetune --output_dir runs/third
    accelerate launch --multi_gpu -m lab.real.finetune --output_dir runs/fourth
    python -m lab.real.finetune --output_dir runs/fifth --report_to tensorboard     # or wandb

Started again with the same output_dir, it goes on where it was. What comes out, in OUTPUT_DIR:

    model/           the adapter, the tasks and the tokenizer: what `python -m lab.real predict` reads
    result.json      what was measured
    few_shot.jsonl   transfers, as they end
    checkpoint-…/    where training goes on

TensorBoard and Weights & Biases are programs of their own: pip install tensorboard, or wandb. The first
writes to OUTPUT_DIR/runs, or where TENSORBOARD_LOGGING_DIR says; the second asks for a key, and
WANDB_MODE=offline keeps it on this machine.
"""

import copy
import dataclasses
import hashlib
import itertools
import json
from collections import Counter
from pathlib import Path

import datasets
import pandas
import torch
import transformers
from tqdm import tqdm

import minitensorpoly as mtp

from .. import methods
from ..records import provenance
from . import tasks
from .choosers import Chooser, load_chooser
from .serve import TaskModel
from .settings import ADAPTERS, DTYPES, FROZEN, RATES, Arguments, Setting, make_parser
from .trainer import AdapterTrainer, count, learn_briefly, newest_checkpoint

__all__ = [
    "ADAPTERS",
    "FROZEN",
    "RATES",
    "Arguments",
    "Setting",
    "count",
    "few_shot",
    "main",
    "multi_task",
    "run",
]


TRANSFERS = "few_shot.jsonl"


def make_chooser(setting: Setting, seed: int) -> Chooser:
    """The pretrained model with its adapter and, if it has one, a trainable head."""
    transformers.set_seed(seed)
    chooser = load_chooser(**setting.source, dtype=DTYPES[setting.dtype], dropout=setting.dropout)
    chooser.requires_grad_(False)  # what is not adapted stays as it is
    if setting.adapter != FROZEN:
        where = setting.target_modules or chooser.target_modules
        shape = {"target_modules": where} | setting.shape
        if "rank" not in shape:
            # A private LoRA has the rank of Poly's skills: there is one for each task, in place of eight.
            sized_as = "Poly" if setting.adapter == methods.PRIVATE else setting.adapter
            shape["rank"] = methods.equal_rank(chooser.model, sized_as, setting.budget, **shape)
        methods.adapt(chooser.model, setting.adapter, len(setting.tasks), **shape)
    for module in chooser.head:
        module.requires_grad_(True)
    return chooser


def word_all(setting: Setting) -> list[str]:
    """Words every row that will be needed, so that a fault in the data is found before any training.

    Returns:
        What a reader should know of the data of each task: sentences.
    """
    notes = []
    for name in setting.used:
        test = _examples(name, 0, setting, "validation", setting.test_rows)
        if name in setting.tasks:
            train = _examples(name, 0, setting, "train", setting.rows)
            notes += [f"{name}: {note}" for note in _notes(setting, name, train, test)]
        else:
            for seed in setting.few_shot_seeds:
                task = setting.find(name)
                tasks.examples(task, tasks.load_few_shot(task, seed, setting.data), 0)
    return notes


def _notes(setting, name, train, test):
    task, found = setting.find(name), []
    every = len(tasks.load(task, "train", setting.data))
    if task.splits[1] is None:
        found.append(f"no validation rows are given, so {len(test)} of the training rows are held out")
    if len(train) < every:
        found.append(f"{len(train)} of {every} training rows are used; --rows takes more")
    answers, tested = ([e["choices"][e["label"]] for e in of] for of in (train, test))
    if all(
        list(choices) == test["choices"][0] for choices in test["choices"]
    ):  # they are the same in all rows
        if never := [choice for choice in test["choices"][0] if choice not in answers]:
            found.append(f"no training row has the answer {', '.join(map(repr, never))}")
        if len({*tested}) == 1:
            found.append(f"every validation row has the answer {tested[0]!r}: their accuracy says little")
    if both := len({*test["prompt"]} & {*train["prompt"]}):
        found.append(f"{both} validation prompts are among the training rows too")
    return found


def mixture(setting: Setting, seed: int) -> datasets.Dataset:
    """The training examples: every task is drawn equally often, whatever the size of its data set."""
    of_task = [_examples(name, i, setting, "train", setting.rows) for i, name in enumerate(setting.tasks)]
    equal = [1 / len(of_task)] * len(of_task)
    return datasets.interleave_datasets(of_task, equal, seed=seed, stopping_strategy="all_exhausted")


def _examples(name, task_id, setting, split, rows):
    """Examples of one task: in training with all its prompts, otherwise with the first."""
    task = setting.find(name)
    found = tasks.numbered(tasks.load(task, split, setting.data))
    found = found.shuffle(seed=0).select(range(min(rows, len(found))))
    if split == "train":
        return tasks.examples(task, found, task_id, most_choices=setting.most_choices)
    return tasks.examples(task, found, task_id, prompts=1)


def multi_task(setting: Setting, arguments: Arguments, quiet: bool = False) -> tuple[Chooser, dict]:
    """Trains an adapter on all training tasks; goes on from the newest checkpoint in the output folder.

    Args:
        setting, arguments: what and how.
        quiet: print nothing.

    Returns:
        The chooser, and a record: parameters, losses, tokens read, seconds, on a GPU bytes of memory at the
        peak, accuracy of each training task in percent, and on how many rows.

    Raises:
        ValueError: the output folder has a checkpoint of another setting.
    """
    last, faults = newest_checkpoint(Path(arguments.output_dir))
    if arguments.should_log and not quiet:
        print(*faults, sep="\n", end="\n" * bool(faults))
    _check_setting(setting, arguments, resumed=last is not None)
    chooser = make_chooser(setting, arguments.seed)
    ids = dict(enumerate(setting.tasks))
    test = [_examples(name, i, setting, "validation", setting.test_rows) for i, name in ids.items()]
    test = datasets.concatenate_datasets(test)
    rates = setting.lr, setting.router_lr, setting.head_lr
    trainer = AdapterTrainer(chooser, arguments, rates, ids, mixture(setting, arguments.seed), test, quiet)
    record = {"parameters": count(chooser)}
    if sum(record["parameters"].values()):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        trainer.train_or_read(last)
        record["losses"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        record["tokens"] = trainer.state.num_input_tokens_seen
        record["seconds"] = trainer.clock.seconds
        record["memory"] = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    record["train"] = trainer.accuracies()
    record["rows"] = dict(Counter(test["task"]))
    return chooser, record


# Arguments of Trainer that a training depends on.
_OF_TRAINING = """
seed data_seed max_steps per_device_train_batch_size gradient_accumulation_steps max_grad_norm
optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon lr_scheduler_type warmup_steps
""".split()


def _check_setting(setting, arguments, resumed):
    """Keeps the setting beside the checkpoints; raises ValueError if a training goes on with another."""
    of_transfer = {f.name for f in dataclasses.fields(Setting) if f.name.startswith("few_shot")}
    now = {
        name: value
        for name, value in dataclasses.asdict(setting).items()
        if name not in of_transfer | {"new_tasks", "parts", "transfer", "task_file"}
    }
    now |= {name: getattr(arguments, name) for name in _OF_TRAINING}
    for name in setting.tasks:
        task = setting.find(name)
        if not task.hub:
            now[f"task {name}"] = repr(dataclasses.replace(task, splits=()))
            now[f"rows of {name}"] = hashlib.sha256(Path(task.splits[0]).read_bytes()).hexdigest()[:8]
    now = json.loads(json.dumps(now))
    folder = Path(arguments.output_dir)
    file = folder / "setting.json"
    if resumed and file.exists():
        before = json.loads(file.read_text())
        if changed := [name for name in now | before if now.get(name) != before.get(name)]:
            pairs = (f"{name}={before.get(name)!r} (now {now.get(name)!r})" for name in changed)
            raise ValueError(
                f"{folder} has checkpoints of another run, with {', '.join(pairs)}; take a new folder"
            )
    elif arguments.should_save:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(now, indent=2) + "\n")


def few_shot(
    chooser: Chooser,
    setting: Setting,
    arguments: Arguments,
    before: bool = True,
    file: Path | None = None,
) -> list[dict]:
    """Transfers a trained chooser to every new task, before any training and from every few-shot set.

    Args:
        chooser: from `multi_task`; it stays as it is.
        setting: new tasks, parts, seeds and rates.
        arguments: batch sizes and the like.
        before: also evaluate it before any training on the new task.
        file: gets a line for each transfer when it ends; those that it has are not done again.

    Returns:
        Records with task, part, seed, accuracy in percent; part and seed are None before any training.
        Steps and rates are those of the training.
    """
    parts = [part for part in setting.parts if part in _trainable_parts(chooser)]
    ways = [(None, None)] * before + [*itertools.product(parts, setting.few_shot_seeds)]
    rates = {
        "routing": (0.0, setting.few_shot_router_lr, 0.0),
        "all": (setting.few_shot_lr, setting.router_lr, setting.head_lr),
        None: (0.0, 0.0, 0.0),  # it is not trained
    }
    new_id = len(setting.tasks) if hasattr(chooser.model, "adaptation") else 0
    done = read_transfers(file)
    bar = tqdm(
        total=len(setting.new_tasks) * len(ways),
        desc="few-shot transfer",
        disable=arguments.disable_tqdm or not arguments.should_log or not setting.new_tasks,
    )
    records = []
    for name, (part, seed) in itertools.product(setting.new_tasks, ways):
        steps = 0 if part is None else setting.few_shot_steps
        what = {"task": name, "part": part, "seed": seed, "steps": steps, "rates": [*rates[part]]}
        what["test_rows"] = setting.test_rows
        record = next((one for one in done if what.items() <= one.items()), None)
        if record is None:
            task = setting.find(name)
            test = _examples(name, new_id, setting, "validation", setting.test_rows)
            few = None if part is None else tasks.load_few_shot(task, seed, setting.data)
            train = few and tasks.examples(task, few, new_id, most_choices=setting.most_choices)
            learner = _learner(chooser, setting, part, arguments.seed)
            measured = learn_briefly(learner, arguments, steps, rates[part], {new_id: name}, train, test)
            record = what | {"accuracy": measured[name]}
            if file is not None and arguments.should_save:
                with file.open("a") as lines:  # it may have been left in the middle of a line
                    lines.write("\n" + json.dumps(record) + "\n")
        records.append(record)
        bar.update()
    return records


def read_transfers(file: Path | None) -> list[dict]:
    """The records of few-shot transfer that a file has; a line that a kill cut off is none."""
    records = []
    for line in file.read_text().splitlines() if file is not None and file.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def _trainable_parts(chooser):
    """What few-shot transfer can train in a chooser: an encoder-decoder without adapter has nothing."""
    counts = count(chooser)
    return ["routing"] * (counts["routing"] > 0) + ["all"] * (sum(counts.values()) > 0)


def _learner(chooser, setting, part, seed):
    """A copy of a trained chooser that has room for a new task, and trains a part of itself.

    Of private adapters none is the new task's: it gets a new LoRA of their rank, beside the trained head.
    """
    if setting.adapter == methods.PRIVATE:
        config = chooser.model.adaptation.config
        learner = make_chooser(dataclasses.replace(setting, adapter="LoRA", rank=config.rank), seed)
        for new, trained in zip(learner.head, chooser.head, strict=True):
            new.load_state_dict(trained.state_dict())
    else:  # the frozen parameters are shared, not copied
        frozen = {id(p): p for p in chooser.parameters() if not p.requires_grad}
        learner = copy.deepcopy(chooser, frozen)
    if hasattr(learner.model, "adaptation"):
        mtp.add_tasks(learner.model, 1)
        mtp.train_only(learner.model, part or "all")
    for module in learner.head:
        module.requires_grad_(part != "routing")
    return learner


def baselines(setting: Setting) -> dict[str, dict[str, float]]:
    """{task: accuracy in percent of a guess, and of always choosing the most frequent place of the answer}.

    Both are of the examples that are evaluated. Where a task has the same choices for every row, the most
    frequent place is the most frequent answer.
    """
    found = {}
    for name in setting.used:
        test = _examples(name, 0, setting, "validation", setting.test_rows)
        guess = sum(1 / len(choices) for choices in test["choices"]) / len(test)
        majority = Counter(test["label"]).most_common(1)[0][1] / len(test)
        found[name] = {"chance": 100 * guess, "majority": 100 * majority}
    return found


def table(record: dict) -> str:
    """The accuracies of a record, task by task, beside a guess and the most frequent answer."""
    lines = pandas.DataFrame(record["baselines"]).T
    trained = _with_mean(pandas.DataFrame({"accuracy": record["train"]}).join(lines))
    trained["rows"] = [*record["rows"].values(), sum(record["rows"].values())]
    texts = [trained.to_string()]
    if record["few_shot"]:
        trials = pandas.DataFrame(record["few_shot"])
        ways = {None: "before", "routing": "routing alone", "all": "everything"}
        trials["way"] = [ways[part] for part in trials["part"].replace({float("nan"): None})]
        of = trials.groupby(["task", "way"], sort=False)["accuracy"].mean().unstack("way")
        texts.append("Transfer to new tasks\n" + _with_mean(of.join(lines)).to_string())
    return "\n\n".join(["Accuracy in percent", *texts])


def _with_mean(frame):
    frame.index.name = frame.columns.name = None
    return pandas.concat([frame, frame.mean().rename("mean").to_frame().T]).round(1)


def prepare(arguments: list[str] | None = None) -> tuple[Setting, Arguments, list[str]]:
    """Reads the command's arguments and words all rows; what `word_all` says of them comes third.

    Raises:
        ValueError, TypeError, KeyError, OSError: something is wrong with an argument or with the data.
    """
    setting, training = _parser().parse_args_into_dataclasses(arguments)
    return setting, training, word_all(setting)


def _parser():
    return make_parser("lab.real.finetune", __doc__)


def main(arguments: list[str] | None = None) -> dict:
    """The command. Returns what it writes to result.json."""
    try:
        setting, training, notes = prepare(arguments)
    except (ValueError, TypeError, KeyError, OSError) as error:  # whoever typed it needs no traceback
        _parser().error(error.args[0] if isinstance(error, KeyError) else str(error))
    return _run(setting, training, notes)


def run(setting: Setting, arguments: Arguments) -> dict:
    """What the command does: trains, transfers, prints a table, and writes a model that answers.

    Args:
        setting, arguments: what and how.

    Returns:
        What is in OUTPUT_DIR/result.json. The model is in OUTPUT_DIR/model, for `serve.TaskModel.load`.

    Raises:
        ValueError, OSError: a row of the data has a fault, or a file is missing; nothing was trained then.
    """
    return _run(setting, arguments, word_all(setting))


def _run(setting, training, notes):
    folder, says = Path(training.output_dir), training.should_log
    if says:
        print(*notes, sep="\n", end="\n" * bool(notes))
    chooser, record = multi_task(setting, training)
    served = setting.adapter != FROZEN and not training.fsdp  # which has cut the adapter in pieces
    if training.should_save and served:
        trained = [tasks.placed(setting.find(name), setting.data) for name in setting.tasks]
        TaskModel(chooser, trained, setting.source).save(folder / "model")
    if setting.transfer:
        record["few_shot"] = few_shot(chooser, setting, training, file=folder / TRANSFERS)
    else:
        record["few_shot"] = read_transfers(folder / TRANSFERS)
    record = {"provenance": provenance("lab.real.finetune"), "setting": dataclasses.asdict(setting), **record}
    record["baselines"] = baselines(setting)
    if training.should_save:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").write_text(json.dumps(record) + "\n")
    if says:
        print("", table(record), "", f"Written to {folder}", sep="\n")
        if served:
            print(f"It answers: python -m lab.real predict {folder / 'model'} TEXTS.csv ANSWERS.csv")
    return record


if __name__ == "__main__":
    main()
