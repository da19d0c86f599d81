"""The pictures that readers move, in the chapters: what they show is what the library computes."""

import json
import re

import pytest
import torch
from browsing import HEIGHTS, open_context
from playwright.sync_api import expect

import minitensorpoly as mtp
from lab.english.contenders import CONTENDERS

PAGES = {"leaves": "02_tensor_products", "routing": "07_tensorpoly_2", "film": "05_routing"}


def visit(context, origin, kind):
    page = context.new_page()
    page.goto(f"{origin}book/{PAGES[kind]}.html")
    return page, page.locator(f"#motion-{kind}")


def numbers(picture, part):
    """What a part of a picture shows."""
    cells = picture.locator(f"[data-part={part}] rect").all()
    return torch.tensor([float(cell.get_attribute("data-value")) for cell in cells])


def move(picture, values):
    """Sets the sliders, as a reader does."""
    sliders = picture.locator("input[type=range]").all()
    for slider, value in zip(sliders, values, strict=True):
        slider.fill(str(value))


@pytest.mark.parametrize("width", HEIGHTS)
def test_leaves_multiply_as_in_the_library(browser, origin, width):
    with open_context(browser, width) as context:
        _, picture = visit(context, origin, "leaves")
        first, second = [0.3, -1.0, 0.0, 0.8], [-0.2, 0.5, 1.0, -0.7]
        move(picture, first + second)
        product = mtp.tensor_product([torch.tensor(first), torch.tensor(second)])
        for part, expected in (("first", first), ("second", second), ("grid", product), ("row", product)):
            torch.testing.assert_close(numbers(picture, part), torch.as_tensor(expected))
        signs = picture.locator("[data-part=row] rect").evaluate_all(
            "cells => cells.map(c => c.className.baseVal)"
        )
        assert signs == ["minus" if number < 0 else "plus" for number in product.tolist()]


@pytest.mark.parametrize("weights", [(0.3, 0.9, 0.2), (1.0, 0.5, 0.5), (0.0, 0.0, 1.0)])
def test_rows_are_mixed_as_in_the_library(browser, origin, weights):
    with open_context(browser) as context:
        page, picture = visit(context, origin, "routing")
        script = picture.locator("script").text_content()
        leaves = torch.tensor(json.loads(re.search(r'"leaves": (\[.*?\]\]\])', script)[1]))
        shares = torch.tensor([[w, 1 - w] for w in weights])
        for part, factor, own in (("one", "tensorpoly-1", shares[:1]), ("two", "tensorpoly-2", shares[1:])):
            row = mtp.METHODS[factor].factor(16, rank=1, order=2, n_experts=2, n_splits=len(own))
            row.leaves.data.copy_(leaves[:, :, None].view_as(row.leaves))
            expected = row(own)[0].detach()
            move(picture, weights)
            torch.testing.assert_close(numbers(picture, part), expected)
            rank = torch.linalg.matrix_rank(expected.view(4, 4)).item()
            expect(picture.locator(f"[data-words={part}]")).to_have_text(f"rank {rank}")


def test_the_film_goes_from_uniform_to_chosen(browser, origin):
    with open_context(browser) as context:
        page, picture = visit(context, origin, "film")
        last = numbers(picture, "weights")
        slider, button = picture.locator("input"), picture.get_by_role("button")
        expect(picture.locator("[data-words=step]")).to_have_text("step 299")
        slider.focus()
        page.keyboard.press("Home")
        expect(slider).to_have_attribute("aria-valuetext", "step 0")
        first = numbers(picture, "weights").view(24, 8)
        torch.testing.assert_close(first, torch.full((24, 8), 1 / 8), rtol=0, atol=0.05)
        button.click()
        expect(button).to_have_text("Stop")
        expect(button).to_have_text("Play")  # at the end
        assert torch.equal(numbers(picture, "weights"), last) and last.std() > 3 * first.std()
        button.click()  # again, from the beginning
        expect(picture.locator("[data-words=step]")).to_have_text("step 0")
        button.click()
        expect(button).to_have_text("Play")


@pytest.mark.parametrize("kind", PAGES)
def test_without_scripts_the_picture_stands_there(browser, origin, kind):
    with browser.new_context(java_script_enabled=False) as context:
        _, picture = visit(context, origin, kind)
        assert picture.locator("rect").count() > 0 and picture.locator("svg").first.is_visible()
        assert not picture.locator("input").first.is_visible()


@pytest.mark.parametrize("scripts", [True, False])
def test_lines_are_switched_on_and_off_by_keys(browser, origin, scripts):
    with browser.new_context(java_script_enabled=scripts) as context:
        page = context.new_page()
        page.goto(f"{origin}book/08_experiment.html")
        chart = page.locator("#switches-steps")
        boxes = chart.get_by_role("checkbox").all()
        for i, box in enumerate(boxes):
            line = chart.locator(f"[data-line='{i}']")
            before = box.is_checked()
            assert line.is_visible() == before
            box.focus()
            page.keyboard.press("Space")
            assert box.is_checked() != before and line.is_visible() != before
        assert len(boxes) == len(CONTENDERS)
