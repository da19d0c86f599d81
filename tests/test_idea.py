"""The picture of the first page."""

import pytest
import torch

import minitensorpoly as mtp
from lab import idea


@pytest.mark.parametrize("name", idea.drawings())
def test_file_is_what_the_script_draws(name):
    assert (idea.IMAGES / name).read_text() == idea.drawings()[name], "in book: python -m lab.idea"


def test_picture_multiplies_and_mixes_as_the_library_does():
    leaves = torch.tensor([idea.FIRST, idea.SECOND])
    products = mtp.tensor_product(leaves)
    drawn = [idea.product(*pair) for pair in zip(idea.FIRST, idea.SECOND, strict=True)]
    torch.testing.assert_close(torch.tensor(drawn), products)
    mixed = torch.tensor(idea.mixture(idea.WEIGHTS[0], drawn))
    torch.testing.assert_close(mixed, torch.tensor(idea.WEIGHTS[0]) @ products)


def test_routing_weights_of_the_picture_sum_to_one():
    assert torch.tensor(idea.WEIGHTS).sum(-1).tolist() == pytest.approx([1, 1])
