"""A trained model and its tasks, in a folder: it answers, gets new tasks, and is exported.

    model = TaskModel.load("runs/mine/model")
    model.predict(["The soup was cold."], "sentiment")     # [{"answer": "negative", "score": 0.93, ...}]

    model.add_task(task_file.read("kind.yaml")["kind"])
    model.save("runs/with_kind")

    model.export("kind", "exported", merged=True)          # for transformers; or for PEFT

The folder holds `adapter.safetensors` and `adapter.json` (`minitensorpoly.save`), `tasks.json` (a task file;
the order of its tasks is that of their ids), `model.json` (which pretrained model, and how it is read), and
the tokenizer's files. `python -m lab.real` does the same by commands.
"""

import copy
import json
import tempfile
from pathlib import Path

import datasets
import torch
import transformers

import minitensorpoly as mtp

from . import task_file, tasks
from .choosers import Chooser, load_chooser
from .prompts import Prompted
from .settings import Arguments, Setting
from .trainer import learn_briefly


class TaskModel:
    """A chooser with an adapter, and the tasks that it answers.

    Args:
        chooser: trained.
        tasks: those of the task ids 0, 1, ...
        source: arguments of `choosers.load_chooser`, by which the same pretrained model is loaded again.
    """

    def __init__(self, chooser: Chooser, tasks: list[Prompted], source: dict):
        self.chooser, self.tasks, self.source = chooser, list(tasks), source

    @classmethod
    def load(cls, folder: str | Path, model: str | None = None) -> "TaskModel":
        """Reads what `save` wrote, on a GPU if there is one.

        Args:
            folder: of the model.
            model: the pretrained model, if it is elsewhere now: on the hub, or a folder.

        Raises:
            FileNotFoundError: there is no such model in the folder.
            ValueError: a file does not fit the others.
        """
        folder = Path(folder)
        if not (folder / "model.json").is_file():
            inner = folder / "model"
            advice = f"; it is in {inner}" if (inner / "model.json").is_file() else ""
            raise FileNotFoundError(f"{folder} has no model.json, so no trained model{advice}")
        source = json.loads((folder / "model.json").read_text()) | ({"name": model} if model else {})
        known = task_file.read(folder / "tasks.json", check_data=False)
        dtype = source.pop("dtype", None)
        chooser = load_chooser(**source, dtype=dtype and getattr(torch, dtype))
        chooser.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        chooser.requires_grad_(False)
        mtp.load(chooser.model, folder)
        n_tasks = chooser.model.adaptation.config.n_tasks
        if len(known) != n_tasks:
            raise ValueError(f"{folder}: its adapter has {n_tasks} tasks, but tasks.json has {len(known)}")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(chooser.to(device).eval(), [*known.values()], source)

    def save(self, folder: str | Path) -> None:
        """Writes the model, for `load`. The pretrained weights are not in it."""
        folder = Path(folder)
        mtp.save(self.chooser.model, folder)
        self.chooser.tokenizer.save_pretrained(folder)
        task_file.write(folder / "tasks.json", self.tasks)
        local = Path(self.source["name"]).expanduser()
        source = self.source | ({"name": str(local.resolve())} if local.exists() else {})
        source["dtype"] = str(self.chooser.model.dtype).removeprefix("torch.")  # or answers would differ
        (folder / "model.json").write_text(json.dumps(source, indent=2) + "\n")

    def id_of(self, name: str) -> int:
        """The id of a task.

        Raises:
            KeyError: there is no such task; the message lists all.
        """
        names = [task.name for task in self.tasks]
        if name not in names:
            raise KeyError(f"no task is called {name!r}; there are {', '.join(names)}")
        return names.index(name)

    def predict(
        self, rows: list[str] | list[dict], task: str | None = None, batch_size: int = 32
    ) -> list[dict]:
        """Answers.

        Args:
            rows: texts, for a prompt with one column; or the columns that prompts and choices name. Rows of
                several tasks may be mixed.
            task: the task of all rows; None: a row names it in its column `task`, or there is only one.
            batch_size: rows that are answered at once.

        Returns:
            For each row `task`; `answer`, the text of the best choice; `label`, what the label column would
            hold; `score`, its probability among the choices by the model's scores; `scores` of all choices.

        Raises:
            KeyError, ValueError: a row names no task, or lacks a column; the message says which row.
        """
        examples = [self._example(i, row, task) for i, row in enumerate(rows)]
        found = [None] * len(examples)
        in_order = sorted(range(len(examples)), key=lambda i: len(examples[i]["prompt"]))  # like with like
        for start in range(0, len(in_order), batch_size):
            batch = in_order[start : start + batch_size]
            for i, scores in zip(batch, self._scores([examples[i] for i in batch]), strict=True):
                found[i] = _answer(examples[i], scores)
        return found

    def _example(self, i, row, name):
        """A row as an example; its label is not known."""
        task = None
        try:
            if name is None:
                name = self._task_of(row)
            task = self.tasks[self.id_of(name)]
            row = {_only_column(task): row} if isinstance(row, str) else row
            prompt, choices = tasks.ask(task, row, task.prompts[0])
            labels = tasks.label_of_each(task, row, choices)
        except (KeyError, ValueError) as error:
            of = "" if task is None else f"task {task.name!r}: "
            raise type(error)(f"row {i}: {of}{error.args[0]}") from None
        return {
            "prompt": prompt,
            "choices": choices,
            "label": 0,
            "task_ids": self.id_of(name),
            "task": name,
            "labels": labels,
        }

    def _task_of(self, row):
        if isinstance(row, dict) and row.get("task") is not None:
            return row["task"]
        if len(self.tasks) > 1:
            names = ", ".join(task.name for task in self.tasks)
            raise ValueError(
                f"which task is it? Give one for all rows, or a column 'task'; there are {names}"
            )
        return self.tasks[0].name

    def _scores(self, examples):
        """(rows, most choices) scores."""
        chooser = self.chooser
        device = next(chooser.parameters()).device
        batch = {name: tensor.to(device) for name, tensor in chooser.collate(examples).items()}
        half = chooser.model.dtype == torch.bfloat16
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            return chooser.scores(**batch)[0].float().cpu()

    def add_task(
        self,
        task: Prompted,
        part: str | None = None,
        steps: int = Setting.few_shot_steps,
        lr: float = Setting.few_shot_lr,
        router_lr: float = Setting.few_shot_router_lr,
        head_lr: float = Setting.head_lr,
        batch_size: int = 16,
        seed: int = 0,
    ) -> dict:
        """Learns a new task from its training rows.

        Args:
            task: the new task.
            part: "routing": its routing alone, and no other task's answers can change; "all": everything,
                the head included, and theirs do; None: routing where there is one.
            steps, batch_size: of the training.
            lr, router_lr, head_lr: learning rates of factors, routing and head.
            seed: of the order of the rows.

        Returns:
            {"part": ..., "before": {task: accuracy}, "after": {task: accuracy}, "rows": {task: how many},
            "unread": {task: why}}, accuracies in percent on validation rows: of the new task, and for
            "all" of every other whose rows can be read.

        Raises:
            ValueError: there is a task of this name, or the method does not learn routing, or a row of the
                task has a fault.
        """
        if task.name in [one.name for one in self.tasks]:
            raise ValueError(f"there is a task called {task.name!r} already; give the new one another name")
        model, head, new_id = self.chooser.model, self.chooser.head, len(self.tasks)
        logits = [p for name, p in mtp.adapter_parameters(model).items() if name.endswith("router.logits")]
        if not all(p.isfinite().all() for p in logits):
            raise ValueError(
                "private LoRA has nothing that tasks share: train it again, with the new task too"
            )
        part = part or ("routing" if logits else "all")
        # Prompts are taken in turn: where answers alternate in a file, each would go with one prompt.
        rows = tasks.numbered(tasks.load(task, "train")).shuffle(seed=seed)
        train = tasks.examples(task, rows, new_id, most_choices=Setting.most_choices)
        tests, unread = {new_id: _validation(task, new_id)}, {}
        for i, old in enumerate(self.tasks if part == "all" else []):
            try:
                tests[i] = _validation(old, i)
            except (OSError, ValueError) as error:
                unread[old.name] = str(error)
        mtp.add_tasks(model, 1)
        mtp.train_only(model, part)
        for module in head:
            module.requires_grad_(part == "all")
        self.tasks.append(task)
        names = {i: self.tasks[i].name for i in tests}
        test = datasets.concatenate_datasets([*tests.values()])
        transformers.set_seed(seed)
        with tempfile.TemporaryDirectory() as folder:
            arguments = Arguments(output_dir=folder, seed=seed, per_device_train_batch_size=batch_size)
            rates = {"routing": (0.0, router_lr, 0.0), "all": (lr, router_lr, head_lr)}[part]
            before = learn_briefly(self.chooser, arguments, steps, rates, names, None, test)
            after = learn_briefly(self.chooser, arguments, steps, rates, names, train, test)
        self.chooser.eval()
        rows = {name: [*test["task"]].count(name) for name in before}
        return {"part": part, "before": before, "after": after, "rows": rows, "unread": unread}

    @torch.no_grad()
    def export(self, name: str, folder: str | Path, merged: bool = False) -> None:
        """Writes one task for others' libraries, with the head, the tokenizer and the task's prompts.

        Args:
            name: of the task.
            folder: gets the files.
            merged: an ordinary model, which `from_pretrained` of transformers loads; otherwise a LoRA, which
                `peft.PeftModel.from_pretrained(base, folder)` loads.
        """
        task, model = self.id_of(name), self.chooser.model
        if merged:
            mtp.merge(copy.deepcopy(model), task).save_pretrained(folder)
        else:
            mtp.export_lora(model, task, folder)
        self.chooser.tokenizer.save_pretrained(folder)
        task_file.write(Path(folder) / "tasks.json", [self.tasks[task]])


def _validation(task, task_id):
    """Validation rows of a task as examples, as many as a run evaluates."""
    rows = tasks.numbered(tasks.load(task, "validation")).shuffle(seed=0)
    return tasks.examples(task, rows.select(range(min(Setting.test_rows, len(rows)))), task_id, prompts=1)


def _only_column(task):
    """The column that a text alone stands for."""
    columns = tasks.columns(task)
    if len(columns) != 1:
        raise ValueError(
            f"its prompt and choices take the columns {sorted(columns)}; give a row as a dict of them"
        )
    return columns.pop()


def _answer(example, scores):
    choices = example["choices"]
    probabilities = scores[: len(choices)].softmax(0).tolist()
    best = probabilities.index(max(probabilities))
    return {
        "task": example["task"],
        "answer": choices[best],
        "label": example["labels"][best],
        "score": probabilities[best],
        "scores": dict(zip(choices, probabilities, strict=True)),
    }
