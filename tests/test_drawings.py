"""Drawings: the picture of the first page, and letters that stand out."""

import pytest
import torch

import minitensorpoly as mtp
from lab import drawings, idea


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


@pytest.mark.parametrize(
    "ground, contrast_of_white",
    [(drawings.BLUE, 5.19), (drawings.ORANGE, 2.25), (drawings.GREEN, 3.42), (drawings.GREY, 1.92)],
)
def test_letters_on_a_colour_have_the_larger_contrast(ground, contrast_of_white):
    contrast_of_black = 21 / contrast_of_white  # their product is that of black and white
    assert drawings._ink(ground) == ("white" if contrast_of_white > contrast_of_black else "black")
