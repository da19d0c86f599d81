"""The tensor product, the leaves, and the factor of each method against a slow construction."""

import functools
import math

import pytest
import torch
from torch import nn

import minitensorpoly as mtp
from common import METHODS, ROUTED, TENSOR, adapted_linear, make_config

ORDERS = range(1, 9)


@pytest.mark.parametrize("n", ORDERS)
def test_tensor_product_equals_kron(n):
    sizes = [2, 3, 4, 1, 2, 3, 2, 5][:n]
    leaves = [torch.randn(size, dtype=torch.float64) for size in sizes]
    expected = functools.reduce(torch.kron, leaves)
    torch.testing.assert_close(mtp.tensor_product(leaves), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("n", ORDERS)
def test_tensor_product_broadcasts_leading_axes(n):
    axes, sizes = [(3, 4), (3, 1), (4,), ()], [2, 3, 4, 1, 2, 3, 2, 5]
    leaves = [torch.randn(*axes[i % 4], sizes[i], dtype=torch.float64) for i in range(n)]
    product = mtp.tensor_product(leaves)
    assert product.shape == (3, 4, math.prod(sizes[:n]))
    for i in range(3):
        for j in range(4):
            alone = [leaf.broadcast_to(3, 4, -1)[i, j] for leaf in leaves]
            torch.testing.assert_close(product[i, j], functools.reduce(torch.kron, alone), rtol=1e-14, atol=0)


@pytest.mark.parametrize("dim, order, size", [(243, 5, 3), (3125, 5, 5), (7776, 5, 6), (16807, 5, 7)])
def test_leaf_size_of_an_exact_power_is_its_root(dim, order, size):
    assert mtp.leaf_size(dim, order) == size


@pytest.mark.parametrize("order", ORDERS)
def test_leaf_size_is_the_smallest_that_covers(order):
    for dim in [*range(1, 300), 4096, 5120, 59049, 10**6, 3**12 - 1, 3**12, 3**12 + 1]:
        size = mtp.leaf_size(dim, order)
        assert size**order >= dim and (size == 1 or (size - 1) ** order < dim)


def slow_layer_norm(x):
    """(x - mean) / sqrt(variance + eps) over all entries, the variance divided by their number."""
    mean = x.sum() / x.numel()
    return (x - mean) / ((x - mean).pow(2).sum() / x.numel() + 1e-5).sqrt()


def slow_factor(factor, method, weights):
    """The factor of one task, (rank, dim), from the table of methods, with loops and `torch.kron`."""

    def product(leaves):  # order times (rank, leaf_size) -> (rank, dim)
        parts = list(leaves)
        if factor.normalize:  # each two leaves become one, and an odd last one stays
            parts = [rows(parts[i : i + 2]) for i in range(0, len(parts), 2)]
            parts = [slow_layer_norm(p) if 2 * i + 1 < len(leaves) else p for i, p in enumerate(parts)]
        return rows(parts)[:, : factor.dim]

    def rows(leaves):
        return torch.stack([functools.reduce(torch.kron, row) for row in zip(*leaves, strict=True)])

    if method in TENSOR:
        order, experts = factor.leaves.shape[:2]
        if method == "tensorpoly-2":
            return product(
                [sum(weights[n, k] * factor.leaves[n, k] for k in range(experts)) for n in range(order)]
            )
        weights = torch.ones(1, experts) if weights is None else weights
        return sum(weights[0, k] * product(factor.leaves[:, k]) for k in range(experts))
    if weights is None:
        return factor.matrices[0]
    blocks = factor.matrices.chunk(len(weights), dim=-1)
    return torch.cat(
        [sum(w[k] * block[k] for k in range(len(w))) for w, block in zip(weights, blocks, strict=True)], -1
    )


SHAPES = [(m, {}) for m in METHODS if m not in TENSOR] + [
    (m, {"order": n, "normalize": normalize}) for m in TENSOR for n in ORDERS for normalize in (False, True)
]


@pytest.mark.parametrize("method, options", SHAPES, ids=str)
def test_output_equals_a_slow_construction(method, options):
    dims = (12, 20) if method == "mhr" else (13, 21)
    model = adapted_linear(method, *dims, alpha=3.0, **options)
    layer, base = model[0], model[0].base
    x, ids = torch.randn(4, 6, dims[0], dtype=torch.float64), torch.tensor([2, 0, 4, 2])
    with torch.no_grad():
        y = model(x, task_ids=ids)
        for i, t in enumerate(ids):
            weights = layer.router and torch.sigmoid(layer.router.logits[t])
            if weights is not None:
                weights = weights / weights.sum(-1, keepdim=True)
            A, B = (slow_factor(f, method, weights) for f in (layer.A, layer.B))
            expected = base(x[i]) + 3.0 / 4 * x[i] @ A.T @ B
            torch.testing.assert_close(y[i], expected, rtol=1e-10, atol=1e-12)


def test_tensorpoly_1_of_order_1_is_poly():
    one = adapted_linear("tensorpoly-1", order=1)
    poly = adapted_linear("poly", n_skills=3)
    with torch.no_grad():
        poly[0].router.logits.copy_(one[0].router.logits)
        for a, b in ((one[0].A, poly[0].A), (one[0].B, poly[0].B)):
            b.matrices.copy_(a.leaves[0])
    x, ids = torch.randn(5, 12, dtype=torch.float64), torch.arange(5)
    torch.testing.assert_close(one(x, task_ids=ids), poly(x, task_ids=ids), rtol=1e-13, atol=0)


EXPERTS = [("lora", {})] + [(m, {"n_skills": k}) for m in ("poly", "mhr") for k in (1, 8)]
EXPERTS += [(m, {"order": n, "tensor_rank": k}) for m in TENSOR for n in (1, 2, 3, 5) for k in (1, 8)]


@pytest.mark.parametrize("method, options", EXPERTS, ids=str)
def test_entries_of_A_start_with_the_variance_of_lora(method, options):
    torch.manual_seed(0)
    config = make_config(method, "0", rank=1024, n_tasks=1, **options)
    models = [mtp.adapt(nn.Sequential(nn.Linear(256, 4)), config) for _ in range(20)]
    variance = torch.stack([model[0].lora(task=0)[0] for model in models]).var()
    kaiming = nn.init.kaiming_uniform_(torch.empty(4000, 256), a=math.sqrt(5)).var()
    assert kaiming.item() == pytest.approx(1 / (3 * 256), rel=0.01)
    # The rows are independent, the entries of a row are not: at order 5 the standard error is 3 %.
    assert variance.item() == pytest.approx(kaiming.item(), rel=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_parameters_follow_their_formula(method):
    d, o, r, T, K, H, R, N = 64, 100, 3, 7, 5, 4, 6, 3
    config = make_config(method, "0", rank=r, n_tasks=T, n_skills=K, n_heads=H, tensor_rank=R, order=N)
    model = mtp.adapt(nn.Sequential(nn.Linear(d, o)), config)
    sizes = {name: p.numel() for name, p in mtp.adapter_parameters(model).items()}
    routing = sizes.pop("0.router.logits", 0)
    leaves = N * R * r * (4 + 5)  # 4**3 = 64, 5**3 >= 100
    factors = {"lora": r * (d + o), "poly": K * r * (d + o), "mhr": K * r * (d + o)}
    experts = {"poly": T * K, "mhr": T * H * K, "tensorpoly-1": T * R, "tensorpoly-2": T * N * R}
    assert sum(sizes.values()) == factors.get(method, leaves)
    assert routing == experts.get(method, 0)
    assert (method in ROUTED) == (routing > 0)
