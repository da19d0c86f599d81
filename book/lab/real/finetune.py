"""Fine-tunes a pretrained model on many real tasks, then transfers it to held-out tasks from few examples.

    python -m lab.real.finetune --output_dir runs/first            # from the folder `book`; --help lists all
    python -m lab.real.finetune --output_dir runs/second --adapter Poly --lr 0.003 --max_steps 500
    torchrun --nproc-per-node 2 -m lab.real.finetune --output_dir runs/third      # or: accelerate launch -m …

It goes on where it was when it is started again with the same output_dir. What came out is written to
OUTPUT_DIR/result.json. Most arguments of `transformers.TrainingArguments` are accepted as well.
"""

import copy
import dataclasses
import functools
import itertools
import json
from collections import Counter
from pathlib import Path

import datasets
import torch
import transformers
from tqdm import tqdm
from transformers.trainer_utils import get_last_checkpoint

import minitensorpoly as mtp

from .. import methods
from ..records import provenance
from . import prompts, tasks
from .choosers import Chooser, load_chooser
from .tasks import FEW_SHOT_SEEDS

FROZEN = "frozen"  # no adapter: an encoder still trains its head, an encoder-decoder nothing
ADAPTERS = (*methods.EQUAL_SIZE, methods.PRIVATE, FROZEN)
# Learning rates that the search of `lab.real.experiment` chose for MiniLM.
RATES = {
    "LoRA": 1e-3,
    "TLoRA": 3e-3,
    "Poly": 3e-3,
    "MHR": 3e-3,
    "TensorPoly-I": 1e-2,
    "TensorPoly-II": 1e-2,
    methods.PRIVATE: 3e-3,
    FROZEN: 1e-2,
}
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


def _option(default, help):
    kind = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    return dataclasses.field(**kind, metadata={"help": help})


@dataclasses.dataclass
class Setting:
    """What is fine-tuned, how, and on which tasks."""

    model: str = _option("google/flan-t5-small", "pretrained model: on the hub, or a local folder")
    adapter: str = _option("TensorPoly-I", f"one of {', '.join(ADAPTERS)}")
    budget: int = _option(16, "rank of a LoRA with as many factors; private adapters get an eighth each")
    lr: float | None = _option(None, "learning rate of factors, or of a head alone; default: the adapter's")
    router_lr: float = _option(0.1, "learning rate of routing logits")
    head_lr: float = _option(3e-3, "learning rate of an encoder's head, beside any adapter")
    data: str | None = _option(None, "folder of data sets (see lab.real.tasks); default: the hub")
    tasks: list[str] = _option([*prompts.TRAIN], "training tasks")
    new_tasks: list[str] = _option([*prompts.HELD_OUT], "tasks of few-shot transfer")
    rows: int = _option(2000, "examples of a training task, at most")
    test_rows: int = _option(200, "examples of a task that are evaluated, at most")
    most_choices: int = _option(4, "choices of a training example, at most; evaluation has all")
    max_length: int = _option(
        128, "tokens of a prompt, at most; for an encoder, of prompt and choice together"
    )
    dtype: str = _option("auto", "of the pretrained model: auto (bfloat16 on a GPU), float32, bfloat16")
    attention: str | None = _option(
        None, "implementation of attention, for instance eager; default: automatic"
    )
    dropout: float = _option(0.0, "of the pretrained model, in training")
    chat: bool | None = _option(
        None, "put prompts in the chat template of a decoder's tokenizer; default: if it has one"
    )
    target_modules: str | None = _option(
        None, "pattern of the names of the layers that are adapted; default: all linear ones of the blocks"
    )
    transfer: bool = _option(
        True, "few-shot transfer after training; it copies the model, which FSDP forbids"
    )
    parts: list[str] = _option(["routing", "all"], "what few-shot transfer trains")
    few_shot_seeds: list[int] = _option([*FEW_SHOT_SEEDS], "seeds of the few-shot sets")
    few_shot_steps: int = _option(50, "steps of few-shot transfer")
    few_shot_lr: float = _option(1e-3, "learning rate of few-shot transfer by everything, routing apart")
    few_shot_router_lr: float = _option(0.1, "learning rate of few-shot transfer by routing alone")

    def __post_init__(self):
        if self.adapter not in ADAPTERS:
            raise ValueError(f"adapter={self.adapter!r} must be one of {', '.join(ADAPTERS)}")
        self.lr = RATES[self.adapter] if self.lr is None else self.lr
        for name in [*self.tasks, *self.new_tasks]:
            tasks.find(name)
        if repeated := [name for name, n in Counter([*self.tasks, *self.new_tasks]).items() if n > 1]:
            raise ValueError(f"tasks and new_tasks name {', '.join(repeated)} more than once")
        for name in ("budget", "rows", "test_rows", "max_length", "few_shot_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if unknown := {*self.parts} - {"routing", "all"}:
            raise ValueError(f"parts={self.parts} must be some of routing, all; not {', '.join(unknown)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} must be one of {', '.join(DTYPES)}")
        if self.most_choices < 2:
            raise ValueError(f"most_choices={self.most_choices} must be at least 2: a right and a wrong one")


@dataclasses.dataclass
class Arguments(transformers.TrainingArguments):
    """TrainingArguments with defaults for this task."""

    max_steps: int = 1000
    per_device_train_batch_size: int = 16
    per_device_eval_batch_size: int = 32
    warmup_steps: float = 0.06  # a share of all steps
    lr_scheduler_type: str = "linear"
    logging_steps: float = 20
    save_steps: float = 200
    save_total_limit: int = 1
    report_to: str = "none"
    dataloader_pin_memory: bool = torch.cuda.is_available()
    remove_unused_columns: bool = False  # the collator needs the texts
    include_num_input_tokens_seen: str = "non_padding"
    label_names: list[str] = dataclasses.field(default_factory=lambda: ["labels", "task_ids"])

    def __post_init__(self):
        instead = {"learning_rate": "lr, router_lr and head_lr", "num_train_epochs": "max_steps"}
        for name, other in instead.items():
            if getattr(self, name) != transformers.TrainingArguments.__dataclass_fields__[name].default:
                raise ValueError(f"{name}={getattr(self, name)} has no effect here; give {other}")
        if self.fp16:
            raise ValueError("fp16=True: T5 overflows in float16; the model's dtype is bfloat16 or float32")
        super().__post_init__()
        if self.n_gpu > 1:
            raise ValueError(f"one process for {self.n_gpu} GPUs: launch with torchrun or accelerate")


def make_chooser(setting: Setting, seed: int) -> Chooser:
    """The pretrained model with its adapter and, if it has one, a trainable head."""
    transformers.set_seed(seed)
    dtype = DTYPES[setting.dtype]
    options = setting.max_length, dtype, setting.attention, setting.dropout, setting.chat
    chooser = load_chooser(setting.model, *options)
    chooser.requires_grad_(False)  # what is not adapted stays as it is
    if setting.adapter != FROZEN:
        where = {"target_modules": setting.target_modules or chooser.target_modules}
        # A private LoRA has the rank of Poly's skills: there is one for each task, in place of eight.
        sized_as = "Poly" if setting.adapter == methods.PRIVATE else setting.adapter
        rank = methods.equal_rank(chooser.model, sized_as, setting.budget, **where)
        methods.adapt(chooser.model, setting.adapter, len(setting.tasks), **where, rank=rank)
    for module in chooser.head:
        module.requires_grad_(True)
    return chooser


def word_all(setting: Setting) -> None:
    """Words every row that will be needed, so that a fault in the data is found before any training."""
    for name in setting.tasks:
        _examples(name, 0, setting, "train", setting.rows)
    for name in [*setting.tasks, *setting.new_tasks]:
        _examples(name, 0, setting, "validation", setting.test_rows)
    for name, seed in itertools.product(setting.new_tasks, setting.few_shot_seeds):
        tasks.examples(name, tasks.load_few_shot(name, seed, setting.data), 0)


def mixture(setting: Setting, seed: int) -> datasets.Dataset:
    """The training examples: every task is drawn equally often, whatever the size of its data set."""
    of_task = [_examples(name, i, setting, "train", setting.rows) for i, name in enumerate(setting.tasks)]
    equal = [1 / len(of_task)] * len(of_task)
    return datasets.interleave_datasets(of_task, equal, seed=seed, stopping_strategy="all_exhausted")


def _examples(name, task_id, setting, split, rows):
    """Examples of one task: in training with all its prompts, otherwise with the first."""
    found = tasks.load(name, split, setting.data)
    found = found.add_column("row", list(range(len(found))))  # where it was, for messages
    found = found.shuffle(seed=0).select(range(min(rows, len(found))))
    if split == "train":
        return tasks.examples(name, found, task_id, most_choices=setting.most_choices)
    return tasks.examples(name, found, task_id, prompts=1)


def accuracy_by_task(evaluated: transformers.EvalPrediction, names: dict[int, str]) -> dict[str, float]:
    """Metrics for `Trainer`: accuracy (%) of every task, and their mean; names are those of the ids."""
    labels, task_ids = evaluated.label_ids
    right = 100 * (evaluated.predictions == labels)
    accuracy = {name: float(right[task_ids == i].mean()) for i, name in names.items()}
    return {"accuracy": sum(accuracy.values()) / len(accuracy), **accuracy}


class AdapterTrainer(transformers.Trainer):
    """A Trainer whose factors, routing and head learn at rates of their own, with an accuracy for each task.

    Args:
        chooser: what is trained and evaluated.
        arguments: of Trainer.
        rates: learning rates of factors (of the head, where there is no adapter), routing and head.
        names: {task id: name}.
        train, test: data sets of `tasks.examples`.
    """

    def __init__(self, chooser: Chooser, arguments, rates, names: dict[int, str], train=None, test=None):
        self.rates = rates
        super().__init__(
            chooser,
            arguments,
            data_collator=chooser.collate,
            train_dataset=train,
            eval_dataset=test,
            compute_metrics=functools.partial(accuracy_by_task, names=names),
        )
        if arguments.disable_tqdm:  # who wants no bar wants no lines in its place
            self.remove_callback(transformers.PrinterCallback)

    def create_optimizer(self, model=None):
        """AdamW, made when Trainer wants it: after FSDP, if it is used, has cut the parameters."""
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(parameter_groups(self.model, *self.rates), weight_decay=0.0)
        return self.optimizer


def parameter_groups(chooser: Chooser, lr: float, router_lr: float, head_lr: float) -> list[dict]:
    """Groups for an optimizer: factors, routing and head, or a head alone; none is empty."""
    head = [p for module in chooser.head for p in module.parameters() if p.requires_grad]
    if not hasattr(chooser.model, "adaptation"):
        return [{"params": head, "lr": lr}]
    of_head, groups = {id(p) for p in head}, mtp.parameter_groups(chooser.model, lr, router_lr)
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in of_head]
    return [group for group in [*groups, {"params": head, "lr": head_lr}] if group["params"]]


def multi_task(setting: Setting, arguments: Arguments) -> tuple[Chooser, dict]:
    """Trains an adapter on all training tasks; goes on from the last checkpoint in the output folder.

    Returns:
        The chooser, and a record: parameters, losses, tokens read, accuracy of each training task in percent;
        if the training was not interrupted seconds; on a GPU bytes of memory at the peak.

    Raises:
        ValueError: the output folder has a checkpoint of another setting.
    """
    folder = Path(arguments.output_dir)
    last = get_last_checkpoint(folder) if folder.is_dir() else None
    _check_setting(folder, setting, arguments, resumed=last is not None)
    chooser = make_chooser(setting, arguments.seed)
    ids = dict(enumerate(setting.tasks))
    test = [_examples(name, i, setting, "validation", setting.test_rows) for i, name in ids.items()]
    test = datasets.concatenate_datasets(test)
    rates = setting.lr, setting.router_lr, setting.head_lr
    trainer = AdapterTrainer(chooser, arguments, rates, ids, mixture(setting, arguments.seed), test)
    record = {"parameters": count(chooser)}
    if sum(record["parameters"].values()):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        trained = trainer.train(resume_from_checkpoint=last).metrics
        record["losses"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        record["tokens"] = trainer.state.num_input_tokens_seen
        record["seconds"] = trained["train_runtime"] if last is None else None
        record["memory"] = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    measured = trainer.evaluate()
    record["train"] = {name: measured[f"eval_{name}"] for name in setting.tasks}
    return chooser, record


def _check_setting(folder, setting, arguments, resumed):
    """Keeps the setting beside the checkpoints; raises ValueError if a training goes on with another."""
    of_transfer = {f.name for f in dataclasses.fields(Setting) if f.name.startswith("few_shot")}
    now = {
        name: value
        for name, value in dataclasses.asdict(setting).items()
        if name not in of_transfer | {"new_tasks", "parts", "transfer"}
    }
    now |= {"seed": arguments.seed, "max_steps": arguments.max_steps}
    file = folder / "setting.json"
    if resumed and file.exists():
        before = json.loads(file.read_text())
        if changed := [name for name in now if now[name] != before.get(name)]:
            differences = ", ".join(f"{name}={before.get(name)!r} (now {now[name]!r})" for name in changed)
            raise ValueError(
                f"{folder} has checkpoints of another run, with {differences}; take a new folder"
            )
    elif arguments.should_save:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(now, indent=2) + "\n")


def count(chooser: Chooser) -> dict[str, int]:
    """Trainable parameters: factors, routing, and the head."""
    adapter = {"factors": 0, "routing": 0}
    if hasattr(chooser.model, "adaptation"):
        adapter = methods.count_parameters(chooser.model)
    trained = sum(p.numel() for p in chooser.parameters() if p.requires_grad)
    return adapter | {"head": trained - sum(adapter.values())}


def few_shot(chooser: Chooser, setting: Setting, arguments: Arguments, before: bool = True) -> list[dict]:
    """Transfers a trained chooser to every new task, before any training and from every few-shot set.

    Args:
        chooser: from `multi_task`; it stays as it is.
        setting: new tasks, parts, seeds and rates.
        arguments: batch sizes and the like.
        before: also evaluate it before any training on the new task.

    Returns:
        Records with task, part, seed, accuracy in percent; part and seed are None before any training.
    """
    parts = [part for part in setting.parts if part in _trainable_parts(chooser)]
    ways = [(None, None)] * before + [*itertools.product(parts, setting.few_shot_seeds)]
    quiet = dataclasses.replace(
        arguments,
        max_steps=setting.few_shot_steps,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    rates = {
        "routing": (0.0, setting.few_shot_router_lr, 0.0),
        "all": (setting.few_shot_lr, setting.router_lr, setting.head_lr),
        None: (0.0, 0.0, 0.0),  # it is not trained
    }
    new_id = len(setting.tasks) if hasattr(chooser.model, "adaptation") else 0
    bar = tqdm(
        total=len(setting.new_tasks) * len(ways),
        desc="few-shot transfer",
        disable=arguments.disable_tqdm or not quiet.should_log,
    )
    records = []
    for name in setting.new_tasks:
        test = _examples(name, new_id, setting, "validation", setting.test_rows)
        for part, seed in ways:
            learner, train = _learner(chooser, setting, part, arguments.seed), None
            if part is not None:
                few = tasks.load_few_shot(name, seed, setting.data)
                train = tasks.examples(name, few, new_id, most_choices=setting.most_choices)
            trainer = AdapterTrainer(learner, quiet, rates[part], {new_id: name}, train, test)
            if train is not None:
                trainer.train()
            accuracy = trainer.evaluate()["eval_accuracy"]
            records.append({"task": name, "part": part, "seed": seed, "accuracy": accuracy})
            bar.update()
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
        rank = chooser.model.adaptation.config.rank
        learner = make_chooser(dataclasses.replace(setting, adapter="LoRA", budget=rank), seed)
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
    for name in [*setting.tasks, *setting.new_tasks]:
        test = _examples(name, 0, setting, "validation", setting.test_rows)
        guess = sum(1 / len(choices) for choices in test["choices"]) / len(test)
        majority = Counter(test["label"]).most_common(1)[0][1] / len(test)
        found[name] = {"chance": 100 * guess, "majority": 100 * majority}
    return found


def main(arguments: list[str] | None = None) -> dict:
    """The command. Returns what it writes to result.json."""
    parser = transformers.HfArgumentParser((Setting, Arguments), description=__doc__)
    setting, training = parser.parse_args_into_dataclasses(arguments)
    word_all(setting)
    chooser, record = multi_task(setting, training)
    record["few_shot"] = few_shot(chooser, setting, training) if setting.transfer else []
    record = {"provenance": provenance("lab.real.finetune"), "setting": dataclasses.asdict(setting), **record}
    record["baselines"] = baselines(setting)
    if training.should_save:
        Path(training.output_dir).mkdir(parents=True, exist_ok=True)
        (Path(training.output_dir) / "result.json").write_text(json.dumps(record) + "\n")
    return record


if __name__ == "__main__":
    main()
