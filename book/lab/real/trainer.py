"""Training by `transformers.Trainer`: rates for each part, an accuracy for each task, and going on again."""

import dataclasses
import functools
import json
import re
import time
import zipfile
from pathlib import Path

import safetensors
import safetensors.torch
import transformers
from transformers.trainer_callback import ExportableState

import minitensorpoly as mtp

from .. import methods
from .choosers import Chooser


def accuracy_by_task(evaluated: transformers.EvalPrediction, names: dict[int, str]) -> dict[str, float]:
    """Metrics for `Trainer`: accuracy (%) of every task, and their mean; names are those of the ids."""
    labels, task_ids = evaluated.label_ids
    right = 100 * (evaluated.predictions == labels)
    accuracy = {f"accuracy_{name}": float(right[task_ids == i].mean()) for i, name in names.items()}
    return {"accuracy": sum(accuracy.values()) / len(accuracy), **accuracy}


class AdapterTrainer(transformers.Trainer):
    """A Trainer whose factors, routing and head learn at rates of their own, with an accuracy for each task.

    Args:
        chooser: what is trained and evaluated.
        arguments: of Trainer.
        rates: learning rates of factors (of the head, where there is no adapter), routing and head.
        names: {task id: name}.
        train, test: data sets of `tasks.examples`.
        quiet: print nothing.
    """

    def __init__(
        self, chooser: Chooser, arguments, rates, names: dict[int, str], train=None, test=None, quiet=False
    ):
        self.rates, self.names, self.clock = rates, names, Clock()
        super().__init__(
            chooser,
            arguments,
            data_collator=chooser.collate,
            train_dataset=train,
            eval_dataset=test,
            compute_metrics=functools.partial(accuracy_by_task, names=names),
            callbacks=[self.clock],
        )
        if quiet:
            self.remove_callback(transformers.PrinterCallback)

    def create_optimizer(self, model=None):
        """The optimizer of the arguments, made when Trainer wants it: after FSDP has cut the parameters."""
        if self.optimizer is None:
            groups = parameter_groups(self.model, *self.rates, self.args.weight_decay)
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind(groups, **options)
        return self.optimizer

    def train_or_read(self, checkpoint: Path | None) -> None:
        """Trains, from a checkpoint if there is one; a training that is finished there is read."""
        if checkpoint is not None:
            state = transformers.TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            self.clock.before = state.stateful_callbacks.get("Clock", {}).get("attributes", {}).get("before")
            if state.global_step >= self.args.max_steps:
                best = self.args.load_best_model_at_end and state.best_model_checkpoint
                file = Path(best or checkpoint) / "model.safetensors"
                self.model.load_state_dict(safetensors.torch.load_file(file))
                self.state = state
                return
        self.train(resume_from_checkpoint=checkpoint and str(checkpoint))

    def accuracies(self) -> dict[str, float]:
        """{task: accuracy in percent} on the test examples."""
        self.remove_callback(transformers.PrinterCallback)  # whoever asks shows them
        measured = self.evaluate()
        return {name: measured[f"eval_accuracy_{name}"] for name in self.names.values()}


def learn_briefly(
    chooser: Chooser, arguments, steps: int, rates, names: dict[int, str], train=None, test=None
) -> dict[str, float]:
    """Trains a few steps, writing and printing nothing, and evaluates.

    Args:
        chooser, rates, names, train, test: as of `AdapterTrainer`; nothing is trained where `train` is None.
        arguments: batch sizes and the like.
        steps: of training.

    Returns:
        {task: accuracy in percent}
    """
    never = dict.fromkeys(("save_strategy", "eval_strategy", "logging_strategy"), "no")
    never |= {"load_best_model_at_end": False, "report_to": "none", "disable_tqdm": True}
    arguments = dataclasses.replace(arguments, max_steps=max(1, steps), **never)
    trainer = AdapterTrainer(chooser, arguments, rates, names, train, test, quiet=True)
    if train is not None:
        trainer.train()
    return trainer.accuracies()


class Clock(transformers.TrainerCallback, ExportableState):
    """Seconds of a training, kept in its checkpoints: what a kill makes it do again counts once."""

    def __init__(self):
        self.before, self.start = 0.0, None  # seconds until the checkpoint, and when this part started

    @property
    def seconds(self) -> float | None:
        """None: a checkpoint does not tell."""
        return (
            self.before if None in (self.before, self.start) else self.before + time.monotonic() - self.start
        )

    def on_train_begin(self, arguments, state, control, **others):
        self.start = time.monotonic()
        state.stateful_callbacks.setdefault("Clock", self.state())

    def on_train_end(self, arguments, state, control, **others):
        self.before, self.start = self.seconds, None

    def state(self):
        return {"args": {}, "attributes": {"before": self.seconds}}


def parameter_groups(
    chooser: Chooser, lr: float, router_lr: float, head_lr: float, weight_decay: float = 0.0
) -> list[dict]:
    """Groups for an optimizer: factors, routing and head, or a head alone; none is empty.

    Routing does not decay: that would change tasks which are not in the batch.
    """
    head = [p for module in chooser.head for p in module.parameters() if p.requires_grad]
    if not hasattr(chooser.model, "adaptation"):
        return [{"params": head, "lr": lr, "weight_decay": weight_decay}]
    of_head, groups = {id(p) for p in head}, mtp.parameter_groups(chooser.model, lr, router_lr)
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in of_head]
        group.setdefault("weight_decay", weight_decay)  # routing has none
    groups.append({"params": head, "lr": head_lr, "weight_decay": weight_decay})
    return [group for group in groups if group["params"]]


def count(chooser: Chooser) -> dict[str, int]:
    """Trainable parameters: factors, routing, and the head."""
    adapter = {"factors": 0, "routing": 0}
    if hasattr(chooser.model, "adaptation"):
        adapter = methods.count_parameters(chooser.model)
    trained = sum(p.numel() for p in chooser.parameters() if p.requires_grad)
    return adapter | {"head": trained - sum(adapter.values())}


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint in a folder, and a sentence about each newer one that is not."""
    found = {int(match[1]): path for path in folder.glob("checkpoint-*") if (match := _NUMBERED(path.name))}
    faults = []
    for _, path in sorted(found.items(), reverse=True):
        fault = _fault(path)
        if fault is None:
            return path, faults
        faults.append(f"{path} is incomplete ({fault}): it is passed over")
    return None, faults


_NUMBERED = re.compile(r"checkpoint-(\d+)").fullmatch


def _fault(checkpoint):
    """What is wrong with a checkpoint; None: nothing. Trainer writes trainer_state.json last."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
        for file in checkpoint.glob("*.safetensors"):
            with safetensors.safe_open(file, "pt"):
                pass
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        return str(error)
    files = [file for ending in ("*.pt", "*.pth", "*.bin") for file in checkpoint.glob(ending)]
    broken = [file.name for file in files if not zipfile.is_zipfile(file)]
    return f"{', '.join(broken)} cannot be read" if broken else None
