"""Drawings: the picture of the first page, and letters that stand out."""

import pytest
import torch

import minitensorpoly as mtp
from lab.pictures import front_page, ideas


@pytest.mark.parametrize("name", front_page.drawings())
def test_file_is_what_the_script_draws(name):
    assert (front_page.IMAGES / name).read_text() == front_page.drawings()[name], (
        "in book: python -m lab.pictures.front_page"
    )


def test_picture_multiplies_and_mixes_as_the_library_does():
    leaves = torch.tensor([front_page.FIRST, front_page.SECOND])
    products = mtp.tensor_product(leaves)
    drawn = [front_page.product(*pair) for pair in zip(front_page.FIRST, front_page.SECOND, strict=True)]
    torch.testing.assert_close(torch.tensor(drawn), products)
    mixed = torch.tensor(front_page.mixture(front_page.WEIGHTS[0], drawn))
    torch.testing.assert_close(mixed, torch.tensor(front_page.WEIGHTS[0]) @ products)


def test_routing_weights_of_the_picture_sum_to_one():
    assert torch.tensor(front_page.WEIGHTS).sum(-1).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize(
    "ground, contrast_of_white",
    [(ideas.BLUE, 5.19), (ideas.ORANGE, 2.25), (ideas.GREEN, 3.42), (ideas.GREY, 1.92)],
)
def test_letters_on_a_colour_have_the_larger_contrast(ground, contrast_of_white):
    contrast_of_black = 21 / contrast_of_white  # their product is that of black and white
    assert ideas._ink(ground) == ("white" if contrast_of_white > contrast_of_black else "black")
