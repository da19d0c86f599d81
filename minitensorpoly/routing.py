"""Routing: from the task of each example to the weights of its experts.

`Router` turns task ids into weights. `TaskContext` carries the ids from the call of the model,
where the user gives them, to the adapted layers deep inside it.
"""

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
        """(rows,) task ids -> (rows, splits, experts) weights."""
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


class TaskContext:
    """The task ids of the call in progress, shared by a model and all its adapted layers.

    A plain attribute, set when the model is called and cleared when it returns. Gradient checkpointing
    runs layers again in the backward pass, when the call is over; `restore_in_backward` sets the ids of
    that very call again, so several calls may be pending before one `backward`.
    """

    def __init__(self):
        self.task_ids: Tensor | None = None

    def rows(self, n_rows: int) -> Tensor:
        """The task of each of a layer's rows.

        A layer may see a multiple of the batch, each example's rows side by side: beams, several
        return sequences, the choices of a multiple-choice question, flattened tokens.

        Raises:
            ValueError: no call with task ids is in progress, or n_rows is no multiple of the batch.
        """
        if self.task_ids is None:
            raise ValueError("task_ids is missing: call the adapted model with task_ids=..., one id per row")
        batch = len(self.task_ids)
        if n_rows % batch:
            advice = "leave layers that do not follow the batch out of target_modules"
            raise ValueError(f"a layer sees {n_rows} rows, no multiple of the {batch} task_ids; {advice}")
        return self.task_ids if n_rows == batch else self.task_ids.repeat_interleave(n_rows // batch)

    def restore_in_backward(self, output) -> None:
        """Makes `backward` through any tensor of `output` begin by setting today's ids again."""
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(partial(self._restore, self.task_ids))

    def _restore(self, task_ids, grad):
        self.task_ids = task_ids
        torch.autograd.Variable._execution_engine.queue_callback(self._clear)

    def _clear(self):
        self.task_ids = None


def check_task_ids(task_ids, n_tasks: int, inputs) -> Tensor:
    """Checks the ids of one call, and returns them as int64 on the device of the inputs.

    Ids on the host are compared with n_tasks at once; ids on a device are compared there, by an
    assertion that does not wait for the device.

    Args:
        task_ids: (batch,) integers, or a sequence of them.
        n_tasks: T.
        inputs: the arguments of the call; the first tensor among them tells the batch and the device.

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
    first = next((t for t in tree_leaves(inputs) if isinstance(t, Tensor) and t.dim() > 0), None)
    if first is not None and len(first) != len(task_ids):
        raise ValueError(
            f"task_ids has {len(task_ids)} entries, but the batch has {len(first)} rows; {wanted}"
        )
    fits = (task_ids >= 0) & (task_ids < n_tasks)
    wanted = f"with n_tasks={n_tasks} the ids are 0 to {n_tasks - 1}"
    if task_ids.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(fits.all(), f"a task id is out of range; {wanted}")
    elif not fits.all():
        raise ValueError(f"task_ids contains {task_ids[~fits][0].item()}; {wanted}")
    return task_ids.long() if first is None else task_ids.to(first.device, torch.long)
