"""Real tasks, yours or the book's: train on them, then use what was trained.

    python -m lab.real check tasks.json                                  # from the folder `book`
    python -m lab.real finetune --task_file tasks.json --output_dir runs/mine
    python -m lab.real predict runs/mine/model texts.csv answers.csv
    python -m lab.real add-task runs/mine/model third.yaml runs/three
    python -m lab.real export runs/three kind exported --merged

`lab/real/example` has files to try them with, and `COMMAND --help` tells more.
"""

import argparse
import json
import sys
from pathlib import Path

import pandas

from . import finetune, tables, task_file, tasks
from .serve import TaskModel
from .settings import Setting


def check(options) -> None:
    """Reads all rows of a task file, and shows the first of each task as a model sees it."""
    own = task_file.read(options.task_file)
    setting = Setting(task_file=options.task_file)
    notes = finetune.word_all(setting)
    for name, task in own.items():
        counts = {split: len(tasks.load(task, split)) for split in ("train", "validation")}
        first = tasks.examples(task, tasks.load(task, "train").select([0]), 0)[0]
        print(f"{name}: {counts['train']} training rows, {counts['validation']} validation rows")
        print(f"  prompt   {first['prompt']!r}")
        print(f"  choices  {first['choices']}")
        print(f"  right    {first['choices'][first['label']]!r}")
    print(*notes, sep="\n")


def predict(options) -> None:
    """Answers the rows of a file, and writes them with `predicted_...` columns beside theirs."""
    rows = tables.read(options.rows).to_list()
    answers = TaskModel.load(options.model, options.base).predict(rows, options.task, options.batch_size)
    for row, answer in zip(rows, answers, strict=True):
        for name, value in answer.items():
            row[f"predicted_{name}"] = json.dumps(value, ensure_ascii=False) if name == "scores" else value
    tables.write_csv(options.answers, rows)
    print(f"{options.answers}: {len(rows)} rows")


def add_task(options) -> None:
    """Adds the tasks of a task file to a model, and writes it to a new folder."""
    if Path(options.new).exists():
        raise ValueError(f"{options.new} is there already; name a new folder")
    model = TaskModel.load(options.model, options.base)
    training = {
        name: getattr(options, name)
        for name in ("steps", "lr", "router_lr", "head_lr", "batch_size", "seed")
        if getattr(options, name) is not None
    }
    for task in task_file.read(options.task_file).values():
        found = model.add_task(task, options.part, **training)
        columns = {name: found[name] for name in ("before", "after", "rows")}
        print("Accuracy in percent", pandas.DataFrame(columns).round(1).to_string(), sep="\n")
        if found["part"] == "routing":
            print(
                f"Only the routing of {task.name} was trained: the other tasks' answers are what they were."
            )
        for name, why in found["unread"].items():
            print(f"What this does to {name} was not measured: {why}")
    model.save(options.new)
    print(f"Written to {options.new}")


def export(options) -> None:
    """Writes one task for PEFT or, merged into the pretrained weights, for transformers."""
    model = TaskModel.load(options.model, options.base)
    model.export(options.task, options.folder, options.merged)
    prompt = model.tasks[model.id_of(options.task)].prompts[0]
    print(
        f"Written to {options.folder}", f"It was trained to read {model.chooser.framed(prompt)!r}", sep="\n"
    )


def _make_parser():
    class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
        pass

    parser = argparse.ArgumentParser("python -m lab.real", description=__doc__, formatter_class=Help)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("finetune", help="train on tasks; see finetune --help", add_help=False)

    def command(name, function):
        one = commands.add_parser(
            name, help=function.__doc__, description=function.__doc__, formatter_class=Help
        )
        one.set_defaults(function=function)
        return one

    command("check", check).add_argument("task_file", help="see lab.real.task_file")
    of_predict, of_add, of_export = (
        command(name, function)
        for name, function in {"predict": predict, "add-task": add_task, "export": export}.items()
    )
    for one in (of_predict, of_add, of_export):
        one.add_argument(
            "model", help="folder of the model: the folder `model` of a run, or what add-task wrote"
        )
        one.add_argument("--base", help="the pretrained model, if it is elsewhere now")
    of_predict.add_argument("rows", help="CSV, TSV, JSON lines or Parquet, with the columns of the prompts")
    of_predict.add_argument("answers", help="CSV that is written")
    of_predict.add_argument("--task", help="of all rows; without it the column `task` tells")
    of_predict.add_argument("--batch_size", type=int, default=32, help="rows that are answered at once")
    of_add.add_argument("task_file", help="the new task, or several")
    of_add.add_argument("new", help="folder that is written")
    of_add.add_argument(
        "--part", choices=("routing", "all"), help="what is trained (default: routing, if any)"
    )
    for name, kind in {"steps": int, "batch_size": int, "seed": int}.items():
        of_add.add_argument(f"--{name}", type=kind, help="of the training")
    for name in ("lr", "router_lr", "head_lr"):
        of_add.add_argument(f"--{name}", type=float, help="learning rate, as of finetune's few-shot transfer")
    of_export.add_argument("task", help="name of the task")
    of_export.add_argument("folder", help="folder that is written")
    of_export.add_argument("--merged", action="store_true", help="for transformers, in place of PEFT")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["finetune"]:
        finetune.main(arguments[1:])
        return
    parser = _make_parser()
    options = parser.parse_args(arguments)
    try:
        options.function(options)
    except (ValueError, KeyError, OSError) as error:
        parser.error(error.args[0] if isinstance(error, KeyError) else str(error))


if __name__ == "__main__":
    main()
