"""One run of the comparison: multi-task training, few-shot transfer, and what the old tasks lose by it."""

import dataclasses
import functools
import json
import shutil
import time

import torch
from torch import Tensor

import minitensorpoly as mtp

from . import contenders, learners, tasks
from .contenders import CONTENDERS
from .training import FEW_ROWS, FEW_STEPS, OWN_RATE, Data, examples, select

BATCH = {64: 64, 256: 32}  # rows in a batch of multi-task training
SHOTS = (2, 8, 32, 128)
FEW_SHOTS = (8, 32)  # in other settings than 24 tasks, and at the greater width
N_TEST = 100  # sentences of each task, training or held-out
N_OLD = 10  # sentences of each training task, for what a learner has forgotten
N_CURVE = 10  # sentences of each task, for a point of a learning curve
OPTIMIZERS = {"Adam": {}, "SGD": {"momentum": 0.9}}  # of multi-task training, with their options
torch._dynamo.config.recompile_limit = 1000  # every shape is compiled once, in one process


@dataclasses.dataclass(frozen=True)
class Setting:
    """The tasks and their texts: how many training tasks, with how many examples, told by what."""

    n_tasks: int = 24
    n_examples: int = 500
    all_shared: bool = False  # every tag belongs to two training tasks, not only half of them
    named: bool = False  # the text names the skills


SETTINGS = {
    "24 tasks": Setting(),
    "shared tags": Setting(all_shared=True),
    "60 tasks": Setting(n_tasks=60, all_shared=True),
    "16 examples": Setting(n_examples=16),
    "skills named": Setting(named=True),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One multi-task training and what follows it.

    Args:
        width: of the backbone.
        budget: a name in `contenders.BUDGETS`.
        contender: a key of `contenders.CONTENDERS`.
        shape: of its adapter.
        setting: a key of `SETTINGS`.
        steps: of multi-task training.
        split: number of the split of tasks; 0 is for development.
        seed: of the adapter's start, the sentences and their order.
        lr: learning rate of the factors.
        own_lr: learning rate of what each task has of its own.
        few_shot: what is learned from a few examples of each held-out task: (part, shots, learning rate), or
            (part, shots, rate of the factors, rate of what the task has of its own), which is `OWN_RATE`
            if it is left out.
        few_steps: steps of that.
        n_test: sentences of each held-out task.
        forgetting: whether to see what the training tasks lose.
        curve_points: of the learning curve.
        optimizer: of multi-task training, a key of `OPTIMIZERS`.
    """

    width: int
    budget: str
    contender: str
    shape: str
    setting: str
    steps: int
    split: int
    seed: int
    lr: float
    own_lr: float
    few_shot: tuple = ()
    few_steps: int = FEW_STEPS
    n_test: int = N_TEST
    forgetting: bool = False
    curve_points: int = 0
    optimizer: str = "Adam"

    @property
    def key(self) -> str:
        """All fields, as JSON: what tells runs apart."""
        return json.dumps(vars(self), sort_keys=True)


def execute(run: Run, device: str = "cpu") -> dict:
    """Trains, evaluates and transfers one run.

    Returns:
        JSON: the run, the numbers of its parameters, and sentences that are right, counted for each task:
        of the training tasks at the end (`train`, of `N_TEST`) and on the way (`curve`: [step, all tasks
        together]); of the held-out tasks for each entry of few_shot (`few_shot`, of n_test); of
        all training tasks together after each held-out task was learned (`old`, beside what it was `before`).
    """
    start = time.process_time()
    split, setting = make_split(run), SETTINGS[run.setting]
    model, _, predict = workbench(run.width, run.contender, run.shape, setting.n_tasks, device)
    before = dataclasses.replace(run, few_shot=(), few_steps=FEW_STEPS, n_test=N_TEST, forgetting=False)
    state, curve = trained(before, device)
    model.load_state_dict(state)
    test = sentences(split.train, N_TEST, f"test {run.seed}", setting.named, device)
    counts = {name: sum(p.numel() for p in group) for name, group in contenders.parameters(model).items()}
    right = predict(test).view(setting.n_tasks, N_TEST).sum(1)
    record = dataclasses.asdict(run) | {"parameters": counts, "train": right.tolist(), "curve": curve}
    record["few_shot"], record["old"] = [], []
    for part in dict.fromkeys(trial[0] for trial in run.few_shot):
        trials = [tuple(trial[1:]) for trial in run.few_shot if trial[0] == part]
        few_shot, old = transfer(run, model, split, part, trials, device)
        record["few_shot"] += few_shot
        record["old"] += old
    return record | {"seconds": round(time.process_time() - start, 1)}


@functools.lru_cache(maxsize=2)  # a search asks for the same training with other few-shot rates
def trained(run: Run, device: str) -> tuple[dict[str, Tensor], list]:
    """What a model has after multi-task training, and its learning curve."""
    split, setting = make_split(run), SETTINGS[run.setting]
    model, loss_of, predict = workbench(run.width, run.contender, run.shape, setting.n_tasks, device)
    model.load_state_dict(
        contenders.build(run.width, run.contender, run.shape, setting.n_tasks, run.seed).state_dict()
    )
    data = sentences(split.train, setting.n_examples, f"train {run.seed}", setting.named, device)
    test = sentences(split.train, N_TEST, f"test {run.seed}", setting.named, device)
    # The sentences of the curve are the first of each task.
    some = torch.arange(len(test["labels"]), device=device) % N_TEST < N_CURVE
    points = {round(run.steps * (i + 1) / run.curve_points) for i in range(run.curve_points)}
    curve = []

    def look(step):
        if step in points:
            curve.append([step, int(predict(select(test, some)).sum())])

    train(run, model, loss_of, data, look)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, curve


def make_split(run: Run) -> tasks.Split:
    """The tasks of a run; where all tags are shared, two training tasks have the same one."""
    setting = SETTINGS[run.setting]
    split = tasks.make_split(run.split, setting.n_tasks)
    if not setting.all_shared:
        return split
    train = [dataclasses.replace(task, tag=f"src{i // 2}") for i, task in enumerate(split.train)]
    first = setting.n_tasks // 2
    held_out = [dataclasses.replace(task, tag=f"src{first + i}") for i, task in enumerate(split.held_out)]
    return tasks.Split(tuple(train), tuple(held_out))


def sentences(of: tuple, n: int, seed: str, named: bool, device: str) -> Data:
    """n tokenised sentences of each task, task after task, on the device."""
    return {name: column.to(device) for name, column in examples(of, n, seed, named).items()}


@functools.lru_cache(maxsize=64)  # compiling takes a minute, and a search has many runs of a shape
def workbench(width: int, contender: str, shape: str, n_tasks: int, device: str):
    """A model, its compiled loss (batch -> a number), and batch -> whether each row is right."""
    model = contenders.build(width, contender, shape, n_tasks, seed=0).to(device).train()

    def logits(batch):
        ids = batch["task_ids"]
        vectors = model.task_vectors[ids] if CONTENDERS[contender].vector else None
        return contenders.logits(model, batch, vectors, task_ids=ids)

    def loss(batch):
        return learners.losses(logits(batch), batch["labels"], groups=1).sum()

    @torch.no_grad()
    def predict(data):
        batches = (select(data, rows) for rows in torch.arange(len(data["labels"])).split(512))
        return torch.cat([contenders.right(logits(batch), batch["labels"]) for batch in batches])

    with mtp.task_ids(model, 0):  # a first time, before the compiler looks
        pass
    compiles = shutil.which("g++") or device != "cpu"
    return model, torch.compile(loss, dynamic=False) if compiles else loss, predict


def train(run: Run, model, loss_of, data: Data, look=lambda step: None) -> None:
    """Multi-task training, with warm-up, linear decay and clipping.

    Args:
        look: called after each step with its number, from 1.
    """
    groups = contenders.parameters(model)
    groups = [
        {"params": groups["factors"], "lr": run.lr},
        *([{"params": groups["own"], "lr": run.own_lr}] if groups["own"] else []),
    ]
    optimizer = getattr(torch.optim, run.optimizer)(groups, fused=True, **OPTIMIZERS[run.optimizer])
    warm_up = max(1, run.steps // 15)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm_up, (run.steps - step) / (run.steps - warm_up + 1)),
    )
    generator = torch.Generator().manual_seed(run.seed)
    for step in range(1, run.steps + 1):
        rows = torch.randint(len(data["task_ids"]), (BATCH[run.width],), generator=generator)
        optimizer.zero_grad()
        loss_of(select(data, rows)).backward()
        for group in groups:  # factors and routing have scales of their own
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimizer.step()
        schedule.step()
        look(step)


def transfer(run: Run, model, split: tasks.Split, part: str, trials: list, device: str):
    """Few-shot transfer of a trained model to the held-out tasks; the model stays as it was.

    Every held-out task is learned on its own, from each number of examples and at each learning rate
    that is tried. All of them together are one training of many learners.

    Args:
        part: what is trained: "own", "all" or "factors".
        trials: (shots, learning rate), perhaps with the rate of what the task has of its own.

    Returns:
        A list of {part, shots, rate, right: a count for each held-out task}, with own_rate where the trial
        has one; and, if the run asks for it, a list of {part, shots, rate, before, right: a count for each
        held-out task}, of old sentences.
    """
    setting, new = SETTINGS[run.setting], len(split.held_out)
    few = sentences(split.held_out, max(SHOTS), f"few-shot {run.seed}", setting.named, device)
    test = sentences(split.held_out, run.n_test, f"test {run.seed}", setting.named, device)
    if CONTENDERS[run.contender].private:  # a new task starts as a new LoRA
        model = contenders.build(run.width, "LoRA", run.shape, 1, run.seed).to(device)
    together = learners.Learners(model, len(trials) * new, uniform=part == "factors")
    of_task = torch.arange(new, device=device).repeat(len(trials))
    own_rates = [rate if part == "own" else (*own, OWN_RATE)[0] for _, rate, *own in trials]
    columns = torch.tensor([[t[0] for t in trials], [t[1] for t in trials], own_rates], device=device)
    shots, rates, own_rates = columns.repeat_interleave(new, 1)
    learners.train(
        together,
        by_task(few, new, of_task),
        shots,
        part,
        rates,
        own_rates,
        run.few_steps,
        FEW_ROWS,
        run.seed,
    )
    each = torch.arange(len(of_task), device=device)
    right = learners.count_right(together, each, by_task(test, new, of_task), together.own)
    names = [{"part": part} | dict(zip(("shots", "rate", "own_rate"), t, strict=False)) for t in trials]
    few_shot = [n | {"right": r} for n, r in zip(names, right.view(-1, new).tolist(), strict=True)]
    if not run.forgetting or CONTENDERS[run.contender].private:  # a private adapter changes no other task
        return few_shot, []
    before, after = forgetting(run, model, split, together, device)
    return few_shot, [
        n | {"before": before, "right": r} for n, r in zip(names, after.view(-1, new).tolist(), strict=True)
    ]


def forgetting(run: Run, model, split: tasks.Split, together, device: str) -> tuple[int, Tensor]:
    """Old sentences that are right with the old factors, and with each learner's: a number, (learners,).

    The training tasks keep what they have of their own: their routing, or their vectors.
    """
    old, setting = len(split.train), SETTINGS[run.setting]
    tests = sentences(split.train, N_OLD, f"test {run.seed}", setting.named, device)
    each, of_task = torch.arange(len(together.factors), device=device), torch.arange(old, device=device)

    def count(which, of):
        groups = of.repeat_interleave(old)
        task = of_task.repeat(len(of))
        right = learners.count_right(which, groups, by_task(tests, old, task), together.known[task])
        return right.view(len(of), old).sum(1)

    unchanged = learners.Learners(model, 1)
    return int(count(unchanged, each[:1])), count(together, each)


def by_task(data: Data, n_tasks: int, of_task: Tensor) -> Data:
    """(tasks * sentences, tokens) -> (groups, sentences, tokens), of the given tasks."""
    columns = ("input_ids", "attention_mask", "labels")
    return {name: data[name].unflatten(0, (n_tasks, -1))[of_task] for name in columns}


def run_of(record: dict) -> Run:
    """The run that a record is of."""
    fields = {field.name: record.get(field.name, field.default) for field in dataclasses.fields(Run)}
    names = ("part", "shots", "rate", "own_rate")
    trials = [tuple(trial[name] for name in names if name in trial) for trial in record["few_shot"]]
    return Run(**fields | {"few_shot": tuple(trials)})
