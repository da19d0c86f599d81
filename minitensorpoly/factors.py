"""The two kinds of factor: parameters that become the factor A or B of a task.

A factor of a task is a matrix of shape (rank, dim): LoRA's A with dim = in_features, the transpose
of LoRA's B with dim = out_features. Every kind of factor has the same three things: its call (the factor of
each task), `fill_` (random entries of a given variance) and `zero_` (entries of zero that still learn).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def tensor_product(leaves: Sequence[Tensor] | Tensor) -> Tensor:
    """Tensor product of N leaves, flattened, over any leading axes.

    Each new leaf is drawn out along a new last axis, which is then folded into the row:

        (a, b) ⊗ (x, y, z) = (ax, ay, az, bx, by, bz)

    Args:
        leaves: N tensors of shape (..., q_1), ..., (..., q_N), with leading axes that broadcast.

    Returns:
        Tensor of shape (..., q_1 * ... * q_N); the last leaf varies fastest, as in `torch.kron`.
    """
    product = leaves[0]
    for leaf in leaves[1:]:
        product = (product[..., :, None] * leaf[..., None, :]).flatten(-2)
    return product


def leaf_size(dim: int, order: int) -> int:
    """The smallest integer q with q**order >= dim (an exact root: 243 at order 5 gives 3)."""
    near = round(dim ** (1 / order))
    return near if near**order >= dim else near + 1


class MatrixFactor(nn.Module):
    """A factor kept as matrices: one for LoRA, one per skill for Poly and MHR.

    With weights w[t, h, k] of task t, head h and skill k, block h of a task's factor is
    sum_k w[t, h, k] matrix[k][block h]. Poly (Ponti et al. 2023) has one head, MHR (Caccia et al. 2023)
    has several.

    Args:
        dim: features on this side of the layer.
        rank: r.
        n_experts: K, how many matrices are mixed.
        n_splits: H, in how many blocks `dim` is cut.

    Raises:
        ValueError: n_splits does not divide dim.
    """

    def __init__(self, dim: int, rank: int, n_experts: int = 1, n_splits: int = 1):
        super().__init__()
        if dim % n_splits:
            raise ValueError(f"n_heads={n_splits} (one block each) must divide the dimension {dim}")
        self.n_splits = n_splits
        self.matrices = nn.Parameter(torch.empty(n_experts, rank, dim))

    def fill_(self, variance: float, weight: float) -> None:
        """Draws the matrices so that, mixed with equal weights `weight`, entries have `variance`."""
        _uniform_(self.matrices, math.sqrt(variance / (len(self.matrices) * weight**2)))

    def zero_(self) -> None:
        """Makes the factor zero for every routing."""
        nn.init.zeros_(self.matrices)

    def forward(self, weights: Tensor | None = None) -> Tensor:
        """Weights (..., heads, skills), or None for a plain sum -> the factor (..., rank, dim)."""
        if weights is None:
            return self.matrices.sum(0)
        blocks = self.matrices.unflatten(-1, (self.n_splits, -1))  # (skills, rank, heads, dim / heads)
        return torch.einsum("...hk,krhp->...rhp", weights, blocks).flatten(-2)


class TensorFactor(nn.Module):
    """A factor kept as leaves of tensor products (Su et al. 2024).

    Each of the `rank` rows of a task's factor is made of leaves, and cut to its first `dim` entries.
    With weights w of task t, mixed after the product (one split) or before it (one split per order):

        TLoRA           sum_k         leaf[1, k] ⊗ ... ⊗ leaf[N, k]
        TensorPoly-I    sum_k w[t, k] leaf[1, k] ⊗ ... ⊗ leaf[N, k]
        TensorPoly-II   (sum_k w[t, 1, k] leaf[1, k]) ⊗ ... ⊗ (sum_k w[t, N, k] leaf[N, k])

    Args:
        dim: features on this side of the layer.
        rank: r.
        n_experts: R, the tensor rank.
        n_splits: 1 to mix products, or N to mix the leaves of each order.
        order: N, leaves in a product.
        normalize: normalise the products of leaf pairs over (rank, leaf_size**2), without trained
            parameters, as the authors' code does.

    Example: 512 features at order 3 need leaves of 8 numbers, since 8 * 8 * 8 = 512. With rank 1
    and tensor rank 2 the factor has 3 * 2 * 1 * 8 = 48 parameters in place of 512:

    >>> TensorFactor(dim=512, rank=1, n_experts=2, order=3).leaves.shape
    torch.Size([3, 2, 1, 8])
    """

    def __init__(self, dim: int, rank: int, n_experts: int = 1, n_splits: int = 1, order=2, normalize=False):
        super().__init__()
        if n_splits not in (1, order):
            raise ValueError(f"n_splits={n_splits} must be 1 (mix products) or order={order} (mix leaves)")
        self.dim, self.n_splits, self.normalize = dim, n_splits, normalize
        self.leaves = nn.Parameter(torch.empty(order, n_experts, rank, leaf_size(dim, order)))

    def fill_(self, variance: float, weight: float) -> None:
        """Draws the leaves so that, mixed with equal weights `weight`, entries have `variance`.

        The variance of a product of independent leaves is the product of their variances, and a
        sum over R experts with weight w multiplies a variance by R w**2: once for each split.
        """
        order, experts = self.leaves.shape[:2]
        leaf_variance = (variance / (experts * weight**2) ** self.n_splits) ** (1 / order)
        _uniform_(self.leaves, math.sqrt(leaf_variance))

    def zero_(self) -> None:
        """Makes the factor zero for every routing, by the first order's leaves alone.

        The gradient of a product of two zeros is zero: with all leaves at zero none would ever move.
        """
        nn.init.zeros_(self.leaves[0])

    def forward(self, weights: Tensor | None = None) -> Tensor:
        """Weights (..., splits, tensor_rank), or None for a plain sum -> the factor (..., rank, dim)."""
        if self.n_splits > 1:
            return self._product(torch.einsum("...nk,nkrq->n...rq", weights, self.leaves))
        products = self._product(self.leaves)  # (tensor_rank, rank, dim)
        if weights is None:
            return products.sum(0)
        return torch.einsum("...sk,krd->...rd", weights, products)  # one split: s is 1

    def _product(self, leaves: Tensor) -> Tensor:
        """(order, ..., rank, leaf_size) -> (..., rank, dim)"""
        if self.normalize:
            leaves = [_normalized_product(pair) for pair in leaves.split(2)]
        return tensor_product(leaves)[..., : self.dim]


def _normalized_product(pair: Tensor) -> Tensor:
    """Product of two leaves, normalised over (rank, leaf_size**2); an odd last leaf stays as it is."""
    product = tensor_product(pair)
    return F.layer_norm(product, product.shape[-2:]) if len(pair) == 2 else product


def _uniform_(tensor: Tensor, std: float) -> None:
    """Fills with U(-b, b) of the given standard deviation, the law of LoRA's Kaiming-uniform A."""
    nn.init.uniform_(tensor, -math.sqrt(3) * std, math.sqrt(3) * std)
