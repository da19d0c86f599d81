"""What a fine-tuning is given: `Setting`, this project's options, and `Arguments`, those of Trainer."""

import argparse
import dataclasses
import re
from collections import Counter
from pathlib import Path

import torch
import transformers
from transformers.hf_argparser import string_to_bool

import minitensorpoly as mtp

from .. import methods
from . import prompts, task_file
from .tasks import FEW_SHOT_SEEDS, find

FROZEN = "frozen"  # no adapter: an encoder still trains its head, an encoder-decoder nothing
ADAPTERS = (*methods.EQUAL_SIZE, methods.PRIVATE, FROZEN)
# Learning rates that did best for MiniLM on twelve of the book's data sets, of rates half a decade apart, in
# an earlier search; its records are in the history of results/finetune_real_cpu.json.
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
BY_LIBRARY = {options["method"]: name for name, options in methods.EQUAL_SIZE.items()}
SHAPE = ("rank", "alpha", "order", "tensor_rank", "n_skills", "n_heads")  # options of `AdapterConfig`


def find_adapter(name: str) -> str:
    """The book's name of an adapter, of that name or of the library's for its method, in capitals or not.

    >>> find_adapter("tensorpoly-1"), find_adapter("tensorpoly-i"), find_adapter("private-lora")
    ('TensorPoly-I', 'TensorPoly-I', 'private LoRA')

    Raises:
        ValueError: there is none; the message lists both vocabularies.
    """
    names = BY_LIBRARY | {one.lower().replace(" ", "-"): one for one in ADAPTERS}
    key = name.lower().replace(" ", "-")
    if key not in names:
        both = f"{', '.join(BY_LIBRARY)} (the library's names), {', '.join(ADAPTERS)} (the book's)"
        raise ValueError(f"adapter={name!r} must be one of {both}")
    return names[key]


def _option(default, help):
    kind = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    return dataclasses.field(**kind, metadata={"help": help})


@dataclasses.dataclass
class Setting:
    """What is fine-tuned, how, and on which tasks."""

    task_file: str | None = _option(None, "file of your own tasks (see lab.real.task_file)")
    tasks: list[str] | None = _option(
        None,
        "training tasks, yours or the book's; default: those of the task file, or without one "
        + ", ".join(prompts.TRAIN),
    )
    new_tasks: list[str] | None = _option(
        None,
        "tasks of few-shot transfer, perhaps none; default: none with a task file, or without one "
        + ", ".join(prompts.HELD_OUT),
    )
    data: str | None = _option(None, "folder of the book's data sets (see lab.real.tasks); default: the hub")
    model: str = _option("google/flan-t5-small", "pretrained model: on the hub, or a local folder")
    adapter: str = _option(
        "TensorPoly-I", f"one of {', '.join(BY_LIBRARY)}; or, as the book calls them, {', '.join(ADAPTERS)}"
    )
    budget: int = _option(16, "rank of a LoRA with as many factors; private adapters get an eighth each")
    rank: int | None = _option(
        None, "of the adapter, as in minitensorpoly.AdapterConfig; default: the budget's"
    )
    alpha: float | None = _option(None, "of the adapter: its update is scaled by alpha / rank; default: by 1")
    order: int | None = _option(None, "of a tensor adapter; default: 2")
    tensor_rank: int | None = _option(None, "of a tensor adapter; default: 8")
    n_skills: int | None = _option(None, "of Poly and MHR; default: 8")
    n_heads: int | None = _option(None, "of MHR; default: 8")
    lr: float | None = _option(None, "learning rate of factors, or of a head alone; default: the adapter's")
    router_lr: float = _option(0.1, "learning rate of routing logits")
    head_lr: float = _option(3e-3, "learning rate of an encoder's head, beside any adapter")
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
        self.adapter = find_adapter(self.adapter)
        self._check_shape()
        self.lr = RATES[self.adapter] if self.lr is None else self.lr
        own = {} if self.task_file is None else task_file.read(self.task_file)
        if known := sorted(own.keys() & prompts.TASKS.keys()):
            raise ValueError(f"{self.task_file}: the book has tasks called {', '.join(known)}; rename yours")
        self.known = own | prompts.TASKS
        if self.tasks is None:
            self.tasks = [*(own or prompts.TRAIN)]
        if self.new_tasks is None:
            self.new_tasks = [] if own else [*prompts.HELD_OUT]
        for name in [*self.tasks, *self.new_tasks]:
            self.find(name)
        if not self.tasks:
            raise ValueError("tasks is empty: name one at least")
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
        _check_model(self.model)

    def _check_shape(self):
        """Raises the library's errors before a model is loaded."""
        allowed = {methods.PRIVATE: ("rank", "alpha"), FROZEN: ()}.get(self.adapter, SHAPE)
        if foreign := [name for name in self.shape if name not in allowed]:
            raise ValueError(f"{self.adapter} has no option {', '.join(foreign)}")
        if self.adapter != FROZEN:
            mtp.AdapterConfig(target_modules=".*", **methods.ADAPTERS[self.adapter] | self.shape)

    @property
    def shape(self) -> dict:
        """Options of `AdapterConfig` that are given."""
        return {name: getattr(self, name) for name in SHAPE if getattr(self, name) is not None}

    @property
    def source(self) -> dict:
        """What `choosers.load_chooser` has to know to load the same pretrained model again."""
        return {
            "name": self.model,
            "max_length": self.max_length,
            "attention": self.attention,
            "chat": self.chat,
        }

    @property
    def used(self) -> list[str]:
        """The tasks whose data are read."""
        return [*self.tasks, *(self.new_tasks if self.transfer else [])]

    def find(self, name: str) -> prompts.Prompted:
        """The task of a name, yours or the book's.

        Raises:
            KeyError: there is no such task; the message lists all.
        """
        return find(name, self.known)


def _check_model(name):
    """Tells a folder that is not there from a name on the hub, before anything is asked for it."""
    folder, fits = Path(name).expanduser(), "a folder that save_pretrained wrote fits, or a name on the hub"
    if folder.exists():
        if not (folder / "config.json").is_file():
            raise ValueError(f"model={name!r} is here, but has no config.json; {fits}")
    elif not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        raise ValueError(f"model={name!r} does not exist, and is no name on the hub; {fits}")


# Options of Trainer that would have no effect here, or break: what to do instead.
IN_VAIN = {
    "learning_rate": "give lr, router_lr and head_lr",
    "num_train_epochs": "give max_steps",
    "resume_from_checkpoint": "a run goes on by itself from the newest complete checkpoint of its output_dir",
    "label_smoothing_factor": "the losses are those of lab.real.choosers",
    "remove_unused_columns": "the collator needs the texts",
}


@dataclasses.dataclass
class Arguments(transformers.TrainingArguments):
    """TrainingArguments with defaults for this task."""

    output_dir: str | None = dataclasses.field(
        default=None, metadata={"help": "folder of the run: checkpoints, result.json, and the trained model"}
    )
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
    remove_unused_columns: bool = False
    ddp_find_unused_parameters: bool = False  # there are none; looking for them costs time and a warning
    include_num_input_tokens_seen: str = "non_padding"
    label_names: list[str] = dataclasses.field(default_factory=lambda: ["labels", "task_ids"])

    def __post_init__(self):
        if self.output_dir is None:
            raise ValueError("output_dir is missing: name a folder for the run, such as runs/first")
        for name, instead in IN_VAIN.items():
            if getattr(self, name) != Arguments.__dataclass_fields__[name].default:
                raise ValueError(f"{name}={getattr(self, name)} has no effect here; {instead}")
        if self.fp16:
            raise ValueError("fp16=True: T5 overflows in float16; the model's dtype is bfloat16 or float32")
        super().__post_init__()
        if self.n_gpu > 1:
            raise ValueError(f"one process for {self.n_gpu} GPUs: launch with torchrun or accelerate")


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and tells defaults."""

    def _get_help_string(self, action):  # a default of None says nothing
        return action.help if action.default is None else super()._get_help_string(action)


# Groups of --help, by which the parser lists the options of a class.
Setting._argument_group_name = "options of this project"
Arguments._argument_group_name = "options of transformers.TrainingArguments"


def make_parser(prog: str, description: str) -> transformers.HfArgumentParser:
    """The parser of both, the options of a class in a group of --help."""
    usage = f"python -m {prog} --output_dir FOLDER [OPTIONS]"
    parser = transformers.HfArgumentParser(
        (Setting, Arguments), prog=prog, usage=usage, description=description, formatter_class=_Help
    )
    for action in parser._actions:
        if action.nargs == "+":  # a list may be empty
            action.nargs = "*"
        if action.type is string_to_bool:  # and a switch stand alone
            action.nargs, action.const = "?", True
    return parser
