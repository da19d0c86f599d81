"""Many few-shot learners, trained together: each starts from the same trained model and learns on its own.

A learner is one new task with a few examples of it, at one learning rate. What the learners train are the
rows of two matrices, one for the factors and one for what a task has of its own. A batch holds as many rows
of each learner, side by side, so an adapted layer cuts it into groups and gives each group its own factors.
No learner sees another's examples or gradients: together they are trained because that is fast.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import minitensorpoly as mtp
from minitensorpoly.routing import normalized_sigmoid

from .contenders import logits, right


class GroupedLinear(nn.Module):
    """An adapted layer whose rows come in groups of equal size, each with factors that are set before."""

    def __init__(self, layer):
        super().__init__()
        self.base, self.scale = layer.base, layer.adaptation.config.scale
        self.factors = self.vector = None

    @property
    def weight(self) -> Tensor:
        """The base layer's weight; T5 looks at its dtype."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """(rows, tokens, in) -> (rows, tokens, out)"""
        A, B = self.factors  # (groups, r, in), (groups, r, out)
        y = self.base(x)
        hidden = x.reshape(len(A), -1, x.shape[-1]) @ A.mT  # (groups, rows of a group * tokens, r)
        hidden = hidden if self.vector is None else hidden + self.vector[:, None]
        return torch.baddbmm(y.reshape(len(B), -1, y.shape[-1]), hidden, B, alpha=self.scale).view(y.shape)


class Learners:
    """Copies of what a trained model has, one for each learner.

    Args:
        model: the trained model; it stays as it is.
        n: how many learners.
        uniform: whether routing is uniform and stays so; otherwise it starts at the mean of the known
            tasks' logits, as a vector starts at the mean of the known tasks' vectors.

    Attributes:
        factors: (n, numbers), all layers' factors, flat: a row a learner.
        own: (n, numbers), what the new task has of its own; no numbers where there is nothing.
        known: (known tasks, numbers), what the known tasks have of their own.
    """

    def __init__(self, model, n: int, uniform: bool = False):
        self.layers = [layer for layer in mtp.adapted_layers(model).values()]
        self.vectors = getattr(model, "task_vectors", None)
        self.model = _grouped(model)
        self.grouped = [m for m in self.model.modules() if isinstance(m, GroupedLinear)]
        matrices = [
            matrix.detach() for layer in self.layers for f in (layer.A, layer.B) for matrix in f.parameters()
        ]
        self.factor_shapes = [matrix.shape for matrix in matrices]
        self.factors = torch.cat([matrix.flatten() for matrix in matrices]).repeat(n, 1)
        routing = [layer.router.logits.detach() for layer in self.layers if layer.router is not None]
        self.own_shapes = [of_task.shape[1:] for of_task in routing]
        if self.vectors is not None:
            routing.append(self.vectors.detach())
            self.own_shapes.append(self.vectors.shape[1:])
        nothing = self.factors.new_zeros(model.adaptation.config.n_tasks, 0)
        self.known = torch.cat([nothing, *(of_task.flatten(1) for of_task in routing)], 1)
        start = torch.zeros_like(self.known[0]) if uniform else self.known.mean(0)
        self.own = start.repeat(n, 1)

    def logits(self, batch: dict[str, Tensor], factors: Tensor, own: Tensor) -> Tensor:
        """Predictions for a batch whose rows come in groups.

        Args:
            batch: rows of the first group, then of the second, and so on.
            factors: (groups, numbers).
            own: (groups, numbers).

        Returns:
            (rows, tokens, words)
        """
        factors = _cut(factors, self.factor_shapes)
        own = _cut(own, self.own_shapes)
        for i, (layer, grouped) in enumerate(zip(self.layers, self.grouped, strict=True)):
            routing = ()
            if layer.router is not None:
                routing = (normalized_sigmoid(own[i]),)  # (groups, splits, experts)
            grouped.factors = [
                torch.vmap(_build(factor))(stack, *routing)  # (groups, r, dim)
                for factor, stack in zip((layer.A, layer.B), factors[2 * i : 2 * i + 2], strict=True)
            ]
        vectors = None
        if self.vectors is not None and self.vectors.dim() == 3:  # (groups, layers, r)
            for grouped, vector in zip(self.grouped, own[-1].unbind(1), strict=True):
                grouped.vector = vector
        elif self.vectors is not None:
            vectors = own[-1].repeat_interleave(len(batch["labels"]) // len(own[-1]), 0)
        predicted = logits(self.model, batch, vectors)
        for grouped in self.grouped:
            grouped.factors = grouped.vector = None
        return predicted


def train(
    learners: Learners,
    examples: dict[str, Tensor],
    shots: Tensor,
    part: str,
    rates: Tensor,
    own_rates: Tensor,
    steps: int,
    rows: int,
    seed: int,
) -> None:
    """Trains every learner on its own examples, with Adam, warm-up, linear decay and clipping of its own.

    Args:
        learners: trained in place.
        examples: of each learner, (learners, examples, tokens); of those it sees the first.
        shots: (learners,), how many it sees.
        part: "own", "all" or "factors".
        rates: (learners,), highest learning rate of its factors.
        own_rates: (learners,), highest learning rate of what its task has of its own.
        steps: of the optimizer.
        rows: of each learner in a batch, drawn from its examples with replacement.
        seed: of the order of examples; learners with as many shots draw the same ones.
    """
    names = {"own": ["own"], "all": ["factors", "own"], "factors": ["factors"]}[part]
    rates = {"factors": rates, "own": own_rates}
    # Neighbours with the same rate are one parameter of the optimizer.
    parameters = {
        name: [nn.Parameter(block) for block in getattr(learners, name).split(_lengths(rates[name]))]
        for name in names
    }
    groups = [
        {"params": [block], "lr": rate}
        for name in names
        for block, rate in zip(parameters[name], rates[name].unique_consecutive().tolist(), strict=True)
        if block.numel()
    ]
    optimizer, warm_up = torch.optim.Adam(groups, fused=True), max(1, steps // 15)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (steps - step) / (steps - warm_up + 1))
    )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        # (learners, rows): learners with as many shots draw the same rows
        drawn = (torch.rand(rows, generator=generator).to(shots.device) * shots[:, None]).long()
        batch = {
            name: column.gather(1, drawn[..., None].expand(-1, -1, column.shape[-1])).flatten(0, 1)
            for name, column in examples.items()
        }
        now = {"factors": learners.factors, "own": learners.own}
        now |= {name: torch.cat(of_name) for name, of_name in parameters.items()}
        optimizer.zero_grad()
        losses(learners.logits(batch, **now), batch["labels"], len(shots)).sum().backward()
        for group in groups:
            for parameter in group["params"]:
                parameter.grad /= parameter.grad.norm(dim=1, keepdim=True).clamp(min=1.0)
        optimizer.step()
        schedule.step()
    for name, of_name in parameters.items():
        setattr(learners, name, torch.cat(of_name).detach())


def _lengths(values):
    """How long each stretch of equal values is."""
    return values.unique_consecutive(return_counts=True)[1].tolist()


def losses(logits: Tensor, labels: Tensor, groups: int) -> Tensor:
    """Mean cross-entropy over the words of each group of rows: (groups,)."""
    each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(groups, -1)
    return each.sum(1) / (labels != -100).view(groups, -1).sum(1)


@torch.no_grad()
def count_right(
    learners: Learners, of: Tensor, tests: dict[str, Tensor], own: Tensor, rows: int = 512
) -> Tensor:
    """How many sentences are right in each group.

    Args:
        of: (groups,), which learner's factors a group uses.
        tests: (groups, sentences, tokens).
        own: (groups, numbers), routing or vector.
        rows: about how many sentences are computed at once.

    Returns:
        (groups,) integers.
    """
    counts, sentences = [], tests["labels"].shape[1]
    for groups in torch.arange(len(of)).split(max(1, rows // sentences)):
        batch = {name: column[groups].flatten(0, 1) for name, column in tests.items()}
        written = right(learners.logits(batch, learners.factors[of[groups]], own[groups]), batch["labels"])
        counts.append(written.view(len(groups), -1).sum(1))
    return torch.cat(counts)


def _grouped(model):
    """A copy of the frozen backbone, with a `GroupedLinear` in place of each adapted layer."""
    layers = mtp.adapted_layers(model)
    bare = copy.deepcopy(model)
    for name, layer in layers.items():
        bare.set_submodule(name, GroupedLinear(layer))
    bare.__class__ = type(model).__base__
    return bare


def _build(factor):
    """The factor as a function of its parameter, and of the routing weights of one task."""
    (name,) = dict(factor.named_parameters())
    return lambda parameter, *weights: torch.func.functional_call(factor, {name: parameter}, weights)


def _cut(rows, shapes):
    """(n, numbers) -> a list of (n, *shape)"""
    pieces = rows.split([math.prod(shape) for shape in shapes], 1)
    return [piece.unflatten(1, shape) for piece, shape in zip(pieces, shapes, strict=True)]
