"""A linear layer with an adapter: base layer + two factors + router."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .routing import Adaptation, Router


def linear_features(module: nn.Module) -> tuple[int, int] | None:
    """(in_features, out_features) of a linear layer, None for any other module."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return tuple(module.weight.shape) if is_transposed(module) else None


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear layer keeps its weight as (in, out): GPT-2's Conv1D does."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


class AdaptedLinear(nn.Module):
    """A linear layer plus a low-rank update that depends on each row's task.

        y = W x + (alpha / rank) B[τ] A[τ] x        A[τ]: (rank, in)   B[τ]: (out, rank), as in LoRA

    The update starts at zero exactly, with A drawn at the variance of LoRA's Kaiming-uniform A.

    Args:
        base: the linear layer (`nn.Linear` or GPT-2's `Conv1D`), kept as it is.
        adaptation: the configuration, and the task ids of the model's current call.
        router: routing weights of this layer, perhaps shared with others; None for lora and tlora.
        name: of the layer, for errors.
    """

    def __init__(self, base: nn.Module, adaptation: Adaptation, router: Router | None, name: str = ""):
        super().__init__()
        config, (self.in_features, self.out_features) = adaptation.config, linear_features(base)
        # The base's parameters are this layer's own, under their own names: whatever ties, moves, saves or
        # loads weights of the model finds them where they were. The base itself is no submodule.
        object.__setattr__(self, "base", base)
        self._parameters, self._buffers = base._parameters, base._buffers
        self._modules.update(base._modules)
        self.A, self.B = config.make_factor(self.in_features), config.make_factor(self.out_features)
        self.router, self.dropout = router, nn.Dropout(config.dropout)
        self.adaptation, self.name = adaptation, name
        # The adapter stays in float32 beside a bfloat16 base: small steps would be lost in bfloat16.
        dtype = torch.float64 if base.weight.dtype == torch.float64 else torch.float32
        # The device on which accelerate computes with a weight that it keeps elsewhere.
        device = getattr(getattr(base, "_hf_hook", None), "execution_device", None)
        for part in filter(None, (self.A, self.B, router)):
            part.to(base.weight.device if device is None else device, dtype)
        weight = 1 / config.routing_shape[-1] if config.routed else 1.0
        self.A.fill_(variance=1 / (3 * self.in_features), weight=weight)
        self.B.fill_(variance=1 / (3 * self.out_features), weight=weight)
        self.B.zero_()
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, ..., in_features) -> (batch, ..., out_features)"""
        y = self.base(x)
        A, B = self._factors(x, y.dtype)  # (batch, in, rank), (batch, rank, out); one task: without batch
        x = (self.dropout(x) if self.training else x).to(y.dtype).reshape(*A.shape[:-2], -1, self.in_features)
        mm = torch.bmm if A.dim() == 3 else torch.mm  # @ would reshape, which tells at one token
        return y.add(mm(mm(x, A), B).view(*y.shape[:-1], B.shape[-1]), alpha=self.adaptation.config.scale)

    def _factors(self, x, dtype):
        """The transposes of A and B, of the task of each row of x, or of the one task of all rows."""
        ids, kept = self.adaptation.task_ids_of(x, self.name), self.adaptation.call.kept
        if kept is None or self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            kept = {}  # factors may change
        if (self, dtype) not in kept:
            weights = self.router and self.router(ids)
            kept[self, dtype] = self.A(weights).to(dtype).mT, self.B(weights).to(dtype)
        return kept[self, dtype]

    @torch.no_grad()
    def lora(self, task: int) -> tuple[Tensor, Tensor]:
        """The ordinary LoRA that the method is for one task: A (rank, in) and B (out, rank)."""
        weights = self.router and self.router.weights[task]  # (splits, experts)
        return self.A(weights), self.B(weights).mT

    @torch.no_grad()
    def merged_weight(self, task: int) -> Tensor:
        """The base layer's weight W with a task's update.

        Raises:
            ValueError: the base is not x Wᵀ + b of a floating-point W that it holds. W may be computed from
                others (weight_norm, prune), quantised or offloaded; or the base may do more.
        """
        W, transposed = self._parameters.get("weight"), is_transposed(self.base)
        plain = W is not None and W.is_floating_point() and W.itemsize > 1 and not W.is_meta
        if plain:
            x = torch.linspace(-1, 1, self.in_features).to(W)[None]
            y = F.linear(x, W.mT if transposed else W, self.base.bias)
            rounding = 8 * torch.finfo(y.dtype).eps * y.abs().max().item()
            plain = torch.allclose(self.base(x), y, rtol=0, atol=rounding)
        if not plain:
            raise ValueError(f"layer {self.name!r}: {self.base} is not x W + b of a floating-point W")
        A, B = self.lora(task)
        update = self.adaptation.config.scale * B @ A  # (out, in)
        return (W + (update.mT if transposed else update)).to(W.dtype)

    def train(self, mode: bool = True):
        """As of any module, and of the base."""
        self.base.train(mode)
        return super().train(mode)
