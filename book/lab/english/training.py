"""Tokenising, training, evaluation and few-shot transfer: the few lines that all experiments share."""

import copy
import functools
from collections.abc import Callable

import datasets
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, get_linear_schedule_with_warmup

import minitensorpoly as mtp

from . import tasks

FEW_STEPS, FEW_ROWS = 80, 4  # few-shot training: steps, and rows of each new task in a batch
OWN_RATE = 0.1  # of routing and vectors while everything is trained on a few examples
Data = dict[str, Tensor]  # input_ids, attention_mask, labels (-100 where padded), task_ids: a row an example


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the benchmark's vocabulary; it ends every text with </s>."""
    ids = {word: i for i, word in enumerate(tasks.VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        "$A </s>", special_tokens=[("</s>", ids["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def encode(dataset: datasets.Dataset, tokenizer) -> Data:
    """Tokenises a data set with the columns source, target and task_ids, padded to its longest row."""
    columns = dataset[:]  # lists; a column of its own would be read row by row
    source = tokenizer(columns["source"], padding=True, return_tensors="pt")
    target = tokenizer(columns["target"], padding=True, return_tensors="pt")
    return {
        "input_ids": source["input_ids"],
        "attention_mask": source["attention_mask"],
        "labels": target["input_ids"].masked_fill(target["attention_mask"] == 0, -100),
        "task_ids": torch.tensor(columns["task_ids"]),
    }


@functools.lru_cache(maxsize=16)  # runs of one process often share a split and a seed
def examples(of: tuple[tasks.Task, ...], n: int, seed: str, named: bool = False, first_id: int = 0) -> Data:
    """n tokenised sentences of each task, task after task; arguments as in `tasks.make_dataset`."""
    return encode(tasks.make_dataset(of, n, seed, named, first_id), make_tokenizer())


def select(data: Data, rows) -> Data:
    """Some rows of the data: a mask or indices."""
    return {name: column[rows] for name, column in data.items()}


def train(
    model,
    data: Data,
    steps: int,
    lr: float,
    router_lr: float | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: str | None = None,
    on_step: Callable[[int], None] | None = None,
) -> list[float]:
    """Trains whatever is trainable in an adapted model, with Adam, warm-up and linear decay.

    Args:
        model: an adapted model.
        data: the training examples; batches are drawn uniformly from all of them.
        steps: optimizer steps.
        lr: highest learning rate of the factors.
        router_lr: highest learning rate of the routing; None: lr.
        batch_size: rows in a batch.
        seed: of the order of examples.
        progress: title of a progress bar; None: no bar.
        on_step: called before each step with its number, to look at the model as it learns.

    Returns:
        The loss of every step.
    """
    model.train()
    groups = mtp.parameter_groups(model, lr, router_lr)
    optimizer = torch.optim.Adam(groups, fused=True)
    for group in groups:  # the schedule goes on behind its first value, 0, at which nothing is learned
        group["initial_lr"] = group["lr"]
    schedule = get_linear_schedule_with_warmup(optimizer, max(1, steps // 15), steps + 1, last_epoch=0)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for step in tqdm(range(steps), desc=progress, disable=progress is None):
        if on_step is not None:
            on_step(step)
        rows = torch.randint(len(data["task_ids"]), (batch_size,), generator=generator)
        loss = model(**select(data, rows), use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        for group in groups:  # factors and routing have scales of their own
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def exact_match(model, data: Data, batch_size: int = 512) -> Tensor:
    """Whether greedy decoding gives the whole target, for each example.

    Returns:
        (examples,) booleans.
    """
    was_training, pad = model.training, model.config.pad_token_id
    model.eval()
    matches = []
    for rows in torch.arange(len(data["labels"])).split(batch_size):
        inputs = select(data, rows)
        wanted = inputs.pop("labels")
        wanted = wanted.masked_fill(wanted == -100, pad)
        if not hasattr(model, "adaptation"):
            del inputs["task_ids"]
        written = model.generate(**inputs, max_new_tokens=wanted.shape[1], do_sample=False)[:, 1:]
        written = F.pad(written, (0, wanted.shape[1] - written.shape[1]), value=pad)
        matches.append((written == wanted).all(1))
    model.train(was_training)
    return torch.cat(matches)


def by_task(matches: Tensor, task_ids: Tensor) -> dict[int, float]:
    """Exact match of each task, 0 to 1."""
    return {int(t): matches[task_ids == t].float().mean().item() for t in task_ids.unique()}


def transfer(
    model, of: tuple[tasks.Task, ...], part: str, shots: int, lr: float, seed: int, n_test: int = 100
) -> dict[int, float]:
    """Few-shot transfer of a trained model with routing to new tasks; the model stays as it was.

    By routing alone, all new tasks are learned in one training, since none has anything that another
    trains. By everything, each learns from a copy of its own.

    Args:
        model: an adapted model.
        of: the new tasks.
        part: "routing" or "all".
        shots: examples of each new task.
        lr: learning rate of the routing alone, or of the factors.
        seed: of the sentences and of their order.
        n_test: sentences of each task to be right on.

    Returns:
        Exact match of each new task, 0 to 1.
    """
    known, accuracy = model.adaptation.config.n_tasks, {}
    few = examples(of, shots, f"few-shot {seed}", first_id=known)
    test = examples(of, n_test, f"test {seed}", first_id=known)
    new = [known + i for i in range(len(of))]
    for ids in [new] if part == "routing" else [[i] for i in new]:
        learner = copy.deepcopy(model)
        mtp.add_tasks(learner, len(new))
        mtp.train_only(learner, part)
        rows = torch.isin(few["task_ids"], torch.tensor(ids))
        own_lr = lr if part == "routing" else OWN_RATE
        train(learner, select(few, rows), FEW_STEPS, lr, own_lr, FEW_ROWS * len(ids), seed)
        rows = torch.isin(test["task_ids"], torch.tensor(ids))
        accuracy |= by_task(exact_match(learner, select(test, rows)), test["task_ids"][rows])
    return accuracy


def gradient_cosines(model, data: Data, tasks: int, rows: int = 32) -> Tensor:
    """Cosine of the angle between the gradients of each two tasks' losses.

    Args:
        model: an adapted model; its gradients are cleared.
        data: examples of the tasks 0 to tasks - 1.
        tasks: number of tasks.
        rows: of each task, the first ones.

    Returns:
        (tasks, tasks), over all trainable parameters together.
    """
    gradients = []
    for task in range(tasks):
        own = (data["task_ids"] == task).nonzero()[:rows, 0]
        model.zero_grad()
        model(**select(data, own)).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    model.zero_grad()
    gradients = F.normalize(torch.stack(gradients), dim=1)
    return gradients @ gradients.T
