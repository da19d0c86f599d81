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
        if self.router is None:
            A, B = self.A().to(x.dtype), self.B().to(x.dtype).mT  # (rank, in), (out, rank)
            return y + self.scale * (self.dropout(x) @ A.mT) @ B.mT
        rows = len(x)
        weights = self.router(self.context.rows(rows))  # (rows, splits, experts)
        A = self.A(weights).to(x.dtype)  # (rows, rank, in)
        B = self.B(weights).to(x.dtype).mT  # (rows, out, rank)
        hidden = torch.bmm(self.dropout(x).reshape(rows, -1, self.in_features), A.mT)  # (rows, tokens, rank)
        y_rows = y.reshape(rows, -1, self.out_features)
        return torch.baddbmm(y_rows, hidden, B.mT, alpha=self.scale).view_as(y)

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
