"""Routing: from the task of each example to the weights of its experts.

`Router` turns task ids into weights. `TaskContext` carries the ids from the call of the model,
where the user gives them, to the adapted layers deep inside it.
"""

import dataclasses
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def normalized_sigmoid(logits: Tensor) -> Tensor:
    """sigmoid(logits) divided by its sum over the experts, as in Poly (Ponti et al. 2023).

    Args:
        logits: (..., experts).

    Returns:
        Weights of the same shape; each row sums to 1.
    """
    scores = torch.sigmoid(logits)
    return scores / scores.sum(-1, keepdim=True)


class Router(nn.Module):
    """Routing logits Z of every task, and the weights that come of them.

    Args:
        n_tasks: T.
        n_splits: how many mixtures a task chooses.
        n_experts: how many experts are mixed in each.
        noise_temperature: in training, draw relaxed-Bernoulli samples at this temperature in place
            of the sigmoid, a fresh one for each example; None: no noise.
    """

    def __init__(self, n_tasks: int, n_splits: int, n_experts: int, noise_temperature: float | None = None):
        super().__init__()
        self.noise_temperature = noise_temperature
        self.logits = nn.Parameter(torch.empty(n_tasks, n_splits, n_experts).uniform_(-1e-3, 1e-3))

    def forward(self, task_ids: Tensor) -> Tensor:
        """(tasks,) task ids -> (tasks, splits, experts) weights."""
        logits = self.logits[task_ids]
        if self.training and self.noise_temperature is not None:
            # A relaxed Bernoulli sample is a sigmoid of the logits plus logistic noise, over the temperature.
            uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
            logits = (logits + torch.logit(uniform)) / self.noise_temperature
        return normalized_sigmoid(logits)

    @property
    def weights(self) -> Tensor:
        """(tasks, splits, experts) weights of every task, without noise."""
        return normalized_sigmoid(self.logits)

    def add_tasks(self, n: int) -> None:
        """Appends n tasks whose logits are the mean over the known ones, which stay as they are."""
        mean = self.logits.detach().mean(0, keepdim=True).expand(n, -1, -1)
        self.logits = nn.Parameter(torch.cat([self.logits.detach(), mean]), self.logits.requires_grad)


@dataclasses.dataclass
class Call:
    """What the layers know of the call of the model that is in progress.

    Factors are built for `tasks`. Without an index there is one of them for each example, or a single one
    for all.
    """

    tasks: Tensor | None = None  # (tasks,) task ids
    index: Tensor | None = None  # (batch,) where each example finds its task in `tasks`
    factors: dict | None = None  # {(layer, dtype): its factors}, while `generate` runs


class TaskContext:
    """The call in progress, shared by a model and all its adapted layers.

    `call` is a plain attribute, set when the model is called and put back when it returns: one thread
    at a time may call a model. Gradient checkpointing runs layers again in the backward pass, when the
    call is over; `restore_in_backward` sets that very call again, so several calls may be pending
    before one `backward`.
    """

    def __init__(self):
        self.call = Call()

    def tasks_of(self, n_rows: int) -> tuple[Tensor, Tensor | None]:
        """Tasks (tasks,) and index (batch,) or None of the call, for a layer that sees so many rows.

        A layer may see a multiple of the batch, each example's rows side by side: beams, several
        return sequences, the choices of a multiple-choice question, flattened tokens.

        Raises:
            ValueError: no call with task ids is in progress, or n_rows is no multiple of the batch.
        """
        tasks, index = self.call.tasks, self.call.index
        if tasks is None:
            raise ValueError("task_ids is missing: call the adapted model with task_ids=..., one id per row")
        batch = len(tasks if index is None else index)
        if n_rows % batch:
            advice = "leave layers that do not follow the batch out of target_modules"
            raise ValueError(f"a layer sees {n_rows} rows, no multiple of the {batch} task_ids; {advice}")
        return tasks, index

    def restore_in_backward(self, output) -> None:
        """Makes `backward` through any tensor of `output` begin by setting the call in progress again."""
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(partial(self._restore, self.call))

    def _restore(self, call, grad):
        self.call = call
        torch.autograd.Variable._execution_engine.queue_callback(self._clear)

    def _clear(self):
        self.call = Call()


def read_task_ids(task_ids, n_tasks: int, inputs, grouped: bool = True) -> Call:
    """Checks the task ids of a call, and finds out how few tasks need factors.

    Ids on the host are compared with n_tasks at once, and a task that occurs twice gets its factors
    once. Ids on a device are not looked at, which would wait for it: they are compared there, by an
    assertion, and all tasks get factors if they are fewer than the examples.

    Args:
        task_ids: (batch,) integers, or a sequence of them.
        n_tasks: T.
        inputs: the arguments of the call; the first tensor among them tells the batch and the device.
        grouped: False: factors for each example, even of one task (noise differs between them).

    Returns:
        The call, with tasks and index as int64 on the device of the inputs.

    Raises:
        TypeError: not integers.
        ValueError: not one id per row, negative, or n_tasks and above.
    """
    task_ids = torch.as_tensor(task_ids)
    if task_ids.is_floating_point() or task_ids.is_complex() or task_ids.dtype == torch.bool:
        raise TypeError(f"task_ids has dtype {task_ids.dtype}; task ids are integers, 0 to {n_tasks - 1}")
    wanted = "give one task id per row"
    if task_ids.dim() != 1:
        raise ValueError(f"task_ids has shape {tuple(task_ids.shape)}; {wanted}, shape (batch,)")
    batch = len(task_ids)
    first = next((t for t in tree_leaves(inputs) if isinstance(t, Tensor) and t.dim() > 0), task_ids)
    if len(first) != batch:
        raise ValueError(f"task_ids has {batch} entries, but the batch has {len(first)} rows; {wanted}")
    fits = (task_ids >= 0) & (task_ids < n_tasks)
    wanted = f"with n_tasks={n_tasks} the ids are 0 to {n_tasks - 1}"
    on_host = task_ids.device.type == "cpu" and not torch.compiler.is_compiling()
    if not on_host:
        torch._assert_async(fits.all(), f"a task id is out of range; {wanted}")
    elif not fits.all():
        raise ValueError(f"task_ids contains {task_ids[~fits][0].item()}; {wanted}")
    tasks, index = task_ids, None
    if grouped and on_host:
        tasks, index = task_ids.unique(return_inverse=True)
        if len(tasks) in (1, batch):
            tasks, index = task_ids[: len(tasks)], None
    elif grouped and n_tasks < batch:
        tasks, index = torch.arange(n_tasks, device=task_ids.device), task_ids
    move = partial(Tensor.to, device=first.device, dtype=torch.long, non_blocking=on_host)
    return Call(move(tasks), None if index is None else move(index))
