"""A linear layer with an adapter: base layer + two factors + router."""

import torch
from torch import Tensor, nn

from .config import AdapterConfig
from .routing import Router, TaskContext


def linear_features(module: nn.Module) -> tuple[int, int] | None:
    """(in_features, out_features) of a linear layer, None for any other module."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if is_transposed(module):
        return tuple(module.weight.shape)
    return None


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear layer keeps its weight as (in, out): GPT-2's Conv1D does."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


class AdaptedLinear(nn.Module):
    """A linear layer plus a low-rank update that depends on each example's task.

        y = W x + (alpha / rank) B[τ] A[τ] x        A[τ]: (rank, in)   B[τ]: (out, rank), as in LoRA

    The update starts at zero exactly, with A drawn at the variance of LoRA's Kaiming-uniform A. A layer
    with routing has no second derivative: `backward(create_graph=True)` raises a RuntimeError.

    Args:
        base: the linear layer (`nn.Linear` or GPT-2's `Conv1D`), kept as it is.
        config: the adapter.
        context: carries the task ids of the model's current call.
        router: routing weights of this layer, perhaps shared with others; None for lora and tlora.
    """

    def __init__(self, base: nn.Module, config: AdapterConfig, context: TaskContext, router: Router | None):
        super().__init__()
        self.in_features, self.out_features = linear_features(base)
        self.base, self.context, self.router, self.scale = base, context, router, config.scale
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.A, self.B = config.make_factor(self.in_features), config.make_factor(self.out_features)
        # The adapter stays in float32 beside a bfloat16 base: small steps would be lost in bfloat16.
        dtype = torch.promote_types(base.weight.dtype, torch.float32)
        for part in filter(None, (self.A, self.B, router)):
            part.to(base.weight.device, dtype)
        weight = 1 / config.routing_shape[-1] if config.routed else 1.0
        self.A.fill_(variance=1 / (3 * self.in_features), weight=weight)
        self.B.fill_(variance=1 / (3 * self.out_features), weight=weight)
        self.B.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, ..., in_features) -> (batch, ..., out_features)"""
        y = self.base(x)
        x, kept = self.dropout(x).to(y.dtype), self.context.call.factors
        tasks, index = (None, None) if self.router is None else self.context.tasks_of(len(x))
        if torch.is_grad_enabled() and self.router is not None and not _is_transformed():
            parameters = (getattr(factor, factor.name) for factor in (self.A, self.B))
            output = _Update.apply(y, x, self.scale, self._rebuilt, index, *parameters, self.router(tasks))
        elif kept is None or self.training or torch.is_grad_enabled() or _is_transformed():
            output, _ = _update(y, x, self.scale, *self._factors(x.dtype, tasks, index))
        else:  # in `generate`: the factors of the first token are those of all
            if (self, x.dtype) not in kept:
                kept[self, x.dtype] = self._factors(x.dtype, tasks, index)
            output, _ = _update(y, x, self.scale, *kept[self, x.dtype])
        return output.view(y.shape)

    def _factors(self, dtype, tasks, index):
        """A (groups, rank, in) and the transpose of B (groups, rank, out) of the tasks in a batch."""
        if self.router is None:
            return [factor()[None].to(dtype) for factor in (self.A, self.B)]  # one group, all rows
        weights = self.router(tasks)
        return _spread(self.A(weights), self.B(weights), dtype, index)

    def _rebuilt(self, dtype, index, a, b, weights):
        """The same, of given parameters and weights."""
        return _spread(self.A.build(a, weights), self.B.build(b, weights), dtype, index)

    @torch.no_grad()
    def lora(self, task: int) -> tuple[Tensor, Tensor]:
        """The ordinary LoRA that the method is for one task: A (rank, in) and B (out, rank)."""
        if self.router is None:
            return self.A(), self.B().mT
        weights = self.router.weights[task, None]  # (1, splits, experts)
        return self.A(weights)[0], self.B(weights)[0].mT

    @property
    def weight(self) -> Tensor:
        """The base layer's weight; some models look at its dtype (T5 at `wo.weight.dtype`)."""
        return self.base.weight

    def extra_repr(self) -> str:
        shape = f"in={self.in_features}, out={self.out_features}, scale={self.scale:g}"
        return shape + (f", routing={tuple(self.router.logits.shape)}" if self.router else "")


def _is_transformed():
    """Whether PyTorch compiles or transforms what runs, and would not follow `_Update`."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _spread(A, B, dtype, index):
    """Factors of tasks -> factors of groups: of each example, if there is an index."""
    return [f.to(dtype) if index is None else f.to(dtype).index_select(0, index) for f in (A, B)]


def _grouped(x, factor):
    """(rows, ..., features) -> (groups, tokens, features)"""
    return x.reshape(len(factor), -1, x.shape[-1])


def _update(y, x, scale, A, B):
    """y + scale B A x, where each group of rows has an A and a B of its own; and its A x.

    Shapes: y (rows, ..., out), x (rows, ..., in), A (groups, rank, in), B transposed (groups, rank, out);
    returned (groups, tokens, out) and (groups, tokens, rank).
    """
    hidden = torch.bmm(_grouped(x, A), A.mT)
    return torch.baddbmm(_grouped(y, B), hidden, B, alpha=scale), hidden


class _Update(torch.autograd.Function):
    """`_update` in training, which keeps no factors for the backward pass but builds them once more.

    An A and a B for each row can take as much memory as the layer's input. There is no second derivative.
    """

    @staticmethod
    def forward(ctx, y, x, scale, build, index, *parts):
        output, hidden = _update(y, x, scale, *build(x.dtype, index, *parts))
        ctx.save_for_backward(x, hidden.to(x.dtype), index, *parts)  # autocast may have changed it
        ctx.scale, ctx.build = scale, build
        return output

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            raise RuntimeError("create_graph=True: an adapted layer has no second derivative")
        x, hidden, index, *parts = ctx.saved_tensors
        with torch.enable_grad():
            needed = ctx.needs_input_grad[-len(parts) :]
            parts = [part.detach().requires_grad_(n) for part, n in zip(parts, needed, strict=True)]
            A, B = ctx.build(x.dtype, index, *parts)
        grad_output = grad.to(x.dtype)
        grad_hidden = ctx.scale * torch.bmm(grad_output, B.mT)
        grad_A = torch.bmm(grad_hidden.mT, _grouped(x, A))
        grad_B = torch.bmm(ctx.scale * hidden.mT, grad_output)
        learning = [(f, g) for f, g in ((A, grad_A), (B, grad_B)) if f.requires_grad]
        if learning:
            torch.autograd.backward(*zip(*learning, strict=True))
        grad_x = torch.bmm(grad_hidden, A).view(x.shape) if ctx.needs_input_grad[1] else None
        grad_y = grad.reshape(*x.shape[:-1], grad.shape[-1])
        return grad_y, grad_x, None, None, None, *(part.grad for part in parts)
