"""A linear layer with an adapter: base layer + two factors + router."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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

    The update starts at zero exactly, with A drawn at the variance of LoRA's Kaiming-uniform A.

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
        x, known = self.dropout(x).to(y.dtype), self.context.call.factors
        compiling, learning = torch.compiler.is_compiling(), torch.is_grad_enabled()
        if learning and self.router is not None and not compiling:  # the backward pass builds them again
            return _Update.apply(y, x, self.scale, self._factors, *self._parts(len(x)))
        if learning or self.training or compiling or known is None:  # for this call alone
            return _update(y, x, self.scale, *self._factors(x.dtype, *self._parts(len(x))))[0]
        if (self, x.dtype) not in known:  # in `generate`: for all of its tokens
            known[self, x.dtype] = self._factors(x.dtype, *self._parts(len(x)))
        return _update(y, x, self.scale, *known[self, x.dtype])[0]

    def _parts(self, n_rows):
        """What factors are built of: index, parameters of A and B, and weights (tasks, splits, experts)."""
        parameters = next(self.A.parameters()), next(self.B.parameters())
        if self.router is None:
            return None, *parameters
        tasks, index = self.context.tasks_of(n_rows)
        return index, *parameters, self.router(tasks)

    def _factors(self, dtype, index, a, b, weights=None):
        """A (groups, rank, in) and the transpose of B (groups, rank, out)."""
        factors = [self.A.build(a, weights).to(dtype), self.B.build(b, weights).to(dtype)]
        if weights is None:
            return [factor[None] for factor in factors]  # one group, all rows
        return factors if index is None else [factor.index_select(0, index) for factor in factors]

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


def _update(y, x, scale, A, B):
    """y + scale B A x, where each group of rows has an A and a B of its own; and its A x.

    Shapes: y (rows, ..., out), x (rows, ..., in), A (groups, rank, in), B transposed (groups, rank, out).
    """
    hidden = torch.bmm(_grouped(x, A), A.mT)  # (groups, tokens, rank)
    return torch.baddbmm(_grouped(y, B), hidden, B, alpha=scale).view(y.shape), hidden


def _grouped(x, factor):
    """(rows, ..., features) -> (groups, tokens, features)"""
    return x.reshape(len(factor), -1, x.shape[-1])


class _Update(torch.autograd.Function):
    """`_update` in training, which keeps no factors for the backward pass but builds them once more.

    An A and a B for each row can take as much memory as the layer's input, and take little time to build.
    """

    @staticmethod
    def forward(ctx, y, x, scale, build, index, *parts):
        y, hidden = _update(y, x, scale, *build(x.dtype, index, *parts))
        ctx.save_for_backward(x, hidden, index, *parts)
        ctx.scale, ctx.build = scale, build
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, hidden, index, *parts = ctx.saved_tensors
        needed = ctx.needs_input_grad[-len(parts) :]
        with torch.enable_grad():
            parts = [part.detach().requires_grad_(n) for part, n in zip(parts, needed, strict=True)]
            A, B = ctx.build(x.dtype, index, *parts)
        grad_y = _grouped(grad, B)
        grad_hidden = ctx.scale * torch.bmm(grad_y, B.mT)
        grad_A = torch.bmm(grad_hidden.mT, _grouped(x, A))
        grad_B = torch.bmm(ctx.scale * hidden.mT, grad_y)
        learning = [(f, g) for f, g in ((A, grad_A), (B, grad_B)) if f.requires_grad]
        if learning:
            torch.autograd.backward(*zip(*learning, strict=True))
        grad_x = torch.bmm(grad_hidden, A).view(x.shape) if ctx.needs_input_grad[1] else None
        return grad, grad_x, None, None, None, *(part.grad for part in parts)
