"""Routing: from the task of each example to the weights of its experts.

`Router` turns task ids into weights. `Adaptation` carries the ids from the call of the model, where the
user gives them, to the adapted layers deep inside it.
"""

import contextlib
import dataclasses
import math
import threading
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.utils._pytree import tree_leaves

from .config import AdapterConfig


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
    """

    def __init__(self, n_tasks: int, n_splits: int, n_experts: int):
        super().__init__()
        self.logits = nn.Parameter(torch.empty(n_tasks, n_splits, n_experts).uniform_(-1e-3, 1e-3))

    def forward(self, task_ids: Tensor) -> Tensor:
        """Task ids (batch,) -> weights (batch, splits, experts); one id () -> (splits, experts)."""
        return normalized_sigmoid(self.logits[task_ids.to(self.logits.device)])

    @property
    def weights(self) -> Tensor:
        """(tasks, splits, experts) weights of every task, without noise."""
        return normalized_sigmoid(self.logits)


class Call(NamedTuple):
    """What the layers know of the call of the model that is in progress."""

    task_ids: Tensor | None = None  # (batch,), or () where all rows have one task
    shapes: Sequence = ()  # of its inputs, without features
    kept: dict | None = None  # {(layer, dtype): its A and B}, while `generate` runs


class _Calls(threading.local):
    """Each thread has calls of its own."""

    def __init__(self):
        self.entered = Call()  # the innermost call that has begun and not returned
        self.restored = None  # the call whose backward pass is running

    def __reduce__(self):  # a copied or pickled model is in no call
        return type(self), ()


@dataclasses.dataclass(eq=False)
class Adaptation:
    """What an adapted model and all its adapted layers share; the model has it as `model.adaptation`."""

    config: AdapterConfig
    trainable: set  # names of the parameters that were trainable before `adapt`
    trained: set = dataclasses.field(default_factory=set)  # of those beside the adapter that have been since
    calls: _Calls = dataclasses.field(default_factory=_Calls)

    @property
    def call(self) -> Call:
        """The call that is in progress in this thread."""
        return self.calls.restored or self.calls.entered

    @contextlib.contextmanager
    def calling(self, task_ids=None, inputs=(), kept: dict | None = None):
        """Within it, a call with these tasks is in progress.

        Args:
            task_ids: (batch,) integers, or one for all rows; None: those of the call around this one,
                whose rows `generate` may have repeated (beams, several return sequences).
            inputs: all arguments of the call. Their tensors tell which rows a layer may see.
            kept: an empty dict to keep factors in; None: that of the call around, if the tasks are.

        Raises:
            TypeError: not integers.
            ValueError: not one id per row, negative, or n_tasks and above.
        """
        (ids, _, outer), before = self.call, (self.calls.entered, self.calls.restored)
        tensors = [t for t in tree_leaves(inputs) if isinstance(t, Tensor) and t.dim()]
        if task_ids is not None:
            ids, outer = _read(task_ids, self.config.n_tasks, tensors), None
        shapes = [t.shape[:-1] if t.is_floating_point() and t.dim() > 1 else t.shape for t in tensors]
        self.calls.entered, self.calls.restored = Call(ids, shapes, outer if kept is None else kept), None
        try:
            yield
        finally:
            self.calls.entered, self.calls.restored = before

    def task_ids_of(self, x: Tensor, layer: str) -> Tensor | None:
        """The task ids of the rows of a layer's input x: (batch,), or () where all rows have one task.

        A layer may see the batch, or leading axes of an input flattened, example by example: the choices
        of a multiple-choice question, tokens, what `generate` makes of each row.

        Raises:
            ValueError: no task ids are known and the method needs them, or the rows of x are something else.
        """
        ids, shapes, kept = self.call
        if ids is None and self.config.routed:
            raise ValueError("task_ids is missing: model(..., task_ids=ids), or `with task_ids(model, ids):`")
        shapes = [ids.shape, *shapes] if ids is not None and ids.dim() else None  # None: any rows
        if shapes and not any(_follows(x, shape, ids.shape[0], kept is not None) for shape in shapes):
            seen = f"{tuple(x.shape)}: give one id per row, and adapt layers that see the batch first"
            raise ValueError(
                f"task_ids has {len(ids)} entries, but layer {layer!r} sees inputs of shape {seen}"
            )
        return ids

    def restore_in_backward(self, output) -> None:
        """Makes `backward` through any tensor of `output` begin by setting the call in progress again.

        Gradient checkpointing runs layers again in the backward pass, when the call is over.
        """

        def restore(grad, call=self.call):
            self.calls.restored = call
            Variable._execution_engine.queue_callback(lambda: setattr(self.calls, "restored", None))

        for tensor in [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad]:
            tensor.register_hook(restore)


def _read(task_ids, n_tasks, tensors):
    """Checked task ids, as int64 beside the tensors; () in place of (batch,) where all are seen to be equal.

    Ids on the host are looked at. Ids on a device are not, which would wait for it: they are compared there,
    by an assertion. Nor are they where a program is recorded, which would keep what it saw.
    """
    ids = task_ids if isinstance(task_ids, Tensor) else torch.as_tensor(task_ids)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"task_ids has dtype {ids.dtype}; task ids are integers, 0 to {n_tasks - 1}")
    if ids.dim() > 1:
        raise ValueError(f"task_ids has shape {tuple(ids.shape)}; give one task id per row, shape (batch,)")
    fits, in_words = (ids >= 0) & (ids < n_tasks), f"with n_tasks={n_tasks} the ids are 0 to {n_tasks - 1}"
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        torch._assert_async(fits.all(), f"a task id is out of range; {in_words}")
    elif not fits.all():
        raise ValueError(f"task_ids contains {ids[~fits][0].item()}; {in_words}")
    elif ids.dim() and (ids == ids[:1]).all():
        ids = ids[:1].sum()  # of no rows: 0
    return ids.to(tensors[0].device if tensors else None, torch.long, non_blocking=True)


def _follows(x, shape, batch, repeated):
    """Whether x has the batch's rows, as an input of this shape, or rows of n of its leading axes, flattened.

    Rows of the input may be those of the batch, each repeated some times.
    """
    flattened = (math.prod(shape[:n]) for n in range(2, len(shape) + 1) if x.dim() <= len(shape) - n + 2)
    of_batch = shape[0] == batch or (repeated and shape[0] % batch == 0)
    return of_batch and (x.shape[0] == shape[0] or any(x.shape[0] == rows for rows in flattened))
