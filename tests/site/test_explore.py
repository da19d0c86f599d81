"""The page "Try it": its own mathematics against the library's, and what its sliders do."""

import functools
import itertools
import json

import pytest
import torch
from browsing import HEIGHTS, ROOT, SITE, open_context
from playwright.sync_api import expect
from torch import nn

import minitensorpoly as mtp
from minitensorpoly.factors import TensorFactor
from minitensorpoly.routing import Router

METHODS = tuple(mtp.METHODS)
SIZES = [  # dim, rank, order, tensor_rank, tasks
    (16, 1, 1, 1, 1),
    (64, 4, 2, 4, 24),
    (64, 4, 4, 4, 24),
    (64, 2, 5, 3, 1024),
    (256, 8, 6, 16, 7),
    (768, 16, 3, 8, 20),
    (8192, 2, 2, 6, 64),
]
START = {"dim": 64, "rank": 4, "order": 2, "tensor_rank": 4, "tasks": 24}


@pytest.fixture(scope="module")
def explore(desk, origin):
    """The page on a laptop, for its functions."""
    desk.goto(f"{origin}book/explore.html")
    return desk


@pytest.fixture(params=["served", "as a file"])
def fresh(request, browser, origin):
    """The page as a reader meets it, from a server and from a folder."""
    with open_context(browser, 1280, "light") as context:
        page = context.new_page()
        served = request.param == "served"
        page.goto(f"{origin}book/explore.html" if served else (SITE / "book" / "explore.html").as_uri())
        yield page


def library_counts(dim, rank, order, tensor_rank, tasks):
    """{method: [adapter parameters, routing parameters]} of an adapted linear layer."""
    options = {"order": order, "tensor_rank": tensor_rank, "n_skills": tensor_rank}
    found = {}
    for method, row in mtp.METHODS.items():
        own = {name: value for name, value in options.items() if name in row.options}
        model = nn.Sequential(nn.Linear(dim, dim, device="meta"))
        mtp.adapt(model, mtp.AdapterConfig(method, "0", n_tasks=tasks, rank=rank, **own))
        numbers = {name: p.numel() for name, p in mtp.adapter_parameters(model).items()}
        routing = sum(n for name, n in numbers.items() if name.endswith("router.logits"))
        found[method] = [sum(numbers.values()) - routing, routing]
    return found


def shown_counts(page):
    """The same, as the table shows it."""
    rows = page.locator("#explore-parameters tbody tr").all()
    return {
        row.get_attribute("data-method"): [int(text.replace(",", "")) for text in cells[:2]]
        for row in rows
        for cells in [row.locator("td").all_text_contents()]
    }


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def assert_equal(ours, theirs):
    torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("order", range(1, 9))
def test_leaf_size_is_the_librarys(explore, order):
    powers = [base**order + step for base in range(2, 8) for step in (-1, 0, 1)]
    dims = [dim for dim in [*range(1, 300), 768, 3072, 4096, 5120, 8192, *powers] if dim <= 10**5]
    ours = explore.evaluate("([dims, order]) => dims.map(d => tensorpoly.leafSize(d, order))", [dims, order])
    assert ours == [mtp.leaf_size(dim, order) for dim in dims]
    assert order != 5 or ours[dims.index(243)] == 3


@pytest.mark.parametrize("dim, rank, order, tensor_rank, tasks", SIZES)
def test_parameters_are_those_of_an_adapted_layer(explore, dim, rank, order, tensor_rank, tasks):
    sizes = {"dim": dim, "rank": rank, "order": order, "tensorRank": tensor_rank, "tasks": tasks}
    ours = explore.evaluate("sizes => tensorpoly.parameters(sizes)", sizes)
    assert tuple(ours) == METHODS
    expected = library_counts(dim, rank, order, tensor_rank, tasks)
    assert {method: [n["adapter"], n["routing"]] for method, n in ours.items()} == expected


@pytest.mark.parametrize("order", range(1, 7))
def test_tensor_product_equals_kron(explore, order):
    leaves = [random(size) for size in [2, 3, 4, 1, 2, 5][:order]]
    ours = explore.evaluate("leaves => tensorpoly.tensorProduct(leaves)", [leaf.tolist() for leaf in leaves])
    assert_equal(ours, functools.reduce(torch.kron, leaves))
    assert_equal(ours, mtp.tensor_product(leaves))


def test_weights_are_the_routers(explore):
    router = Router(n_tasks=3, n_splits=4, n_experts=5).double()
    nn.init.normal_(router.logits, std=4)
    script = "logits => logits.map(task => task.map(split => tensorpoly.normalizedSigmoid(split)))"
    assert_equal(explore.evaluate(script, router.logits.tolist()), router(torch.arange(3)).detach())


@pytest.mark.parametrize("variant", [1, 2])
@pytest.mark.parametrize("dim, order, tensor_rank", [(16, 1, 3), (64, 2, 4), (64, 4, 1), (50, 3, 5)])
def test_factors_of_a_task_are_the_librarys(explore, variant, dim, order, tensor_rank):
    splits = 1 if variant == 1 else order
    factor = TensorFactor(dim, 3, n_experts=tensor_rank, n_splits=splits, order=order).double()
    nn.init.normal_(factor.leaves)
    weights = random(splits, tensor_rank).sigmoid()
    script = f"([leaves, weights, dim]) => tensorpoly.factorOfTensorPoly{variant}(leaves, weights, dim)"
    ours = explore.evaluate(script, [factor.leaves.tolist(), weights.tolist(), dim])
    assert_equal(ours, factor(weights[None])[0].detach())


def test_the_table_begins_and_stays_with_the_librarys_numbers(fresh):
    assert shown_counts(fresh) == library_counts(**START)
    fresh.locator("#explore-dim").fill("18")
    fresh.locator("#explore-tasks").fill("11")
    assert shown_counts(fresh) == library_counts(**START | {"dim": 8192, "tasks": 1024})


@pytest.mark.parametrize(
    "slider, name, value, says",
    [
        ("dim", "dim", 96, "10² = 100 is enough"),
        ("rank", "rank", 8, "8² = 64 is just right"),
        ("order", "order", 3, "4³ = 64 is just right"),
        ("tensorRank", "tensor_rank", 6, "8² = 64 is just right"),
        ("tasks", "tasks", 32, "8² = 64 is just right"),
    ],
)
def test_a_key_moves_a_slider_and_all_that_hangs_on_it(fresh, slider, name, value, says):
    fresh.locator(f"#explore-{slider}").focus()
    fresh.keyboard.press("ArrowRight")
    expect(fresh.locator(f"#explore-{slider}-value")).to_have_text(str(value))
    expect(fresh.locator(f"#explore-{slider}")).to_have_attribute("aria-valuetext", str(value))
    assert shown_counts(fresh) == library_counts(**START | {name: value})
    plain = says.replace("²", "2").replace("³", "3")
    expect(fresh.locator("#explore-leaf-size")).to_contain_text(plain)


def test_growth_shows_leaves_products_and_what_is_cut(explore):
    explore.reload()
    explore.get_by_role("button", name="d = 64, N = 4").click()
    growth = explore.locator("#explore-growth")
    for text in ("3 × 3 = 9 numbers", "9 × 3 = 27 numbers", "27 × 3 = 81 numbers", "64 kept, 17 cut off"):
        expect(growth).to_contain_text(text)
    assert growth.locator("svg.band").count() == 3
    assert growth.locator("rect.cut").count() == 17


def rows(page):
    """The drawn numbers of the two rows, with their signs."""
    script = """row => [...row.querySelectorAll("rect.plus, rect.minus")].map(
        cell => Number(cell.querySelector("title").textContent.split(": ")[1]))"""
    return [torch.tensor(page.locator(f"#explore-row-{i}").evaluate(script)) for i in (1, 2)]


def test_a_logit_changes_its_mixture_by_keys_alone(fresh):
    before = rows(fresh)
    dial = fresh.get_by_role("slider", name="logit of product 1")
    weight = fresh.locator("[data-weight='1,0,0']")
    shares = fresh.locator("[data-weight^='1,']")
    dial.focus()
    old = float(weight.text_content())
    fresh.keyboard.press("ArrowLeft")
    fresh.keyboard.press("ArrowLeft")
    assert float(weight.text_content()) < old
    assert sum(map(float, shares.all_text_contents())) == pytest.approx(1, abs=0.02)  # each is rounded
    expect(dial).to_be_focused()
    after = rows(fresh)
    assert not torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])


def test_every_task_has_weights_of_its_own_and_keeps_them(fresh):
    task, another = fresh.locator("#explore-task"), fresh.get_by_role("button", name="Another task")
    fresh.locator("#explore-tasks").fill("1")  # two tasks
    first = fresh.locator("[data-weight]").all_text_contents()
    another.click()
    expect(task).to_have_text("Task 2 of 2")
    assert fresh.locator("[data-weight]").all_text_contents() != first
    another.click()
    expect(task).to_have_text("Task 1 of 2")
    assert fresh.locator("[data-weight]").all_text_contents() == first
    fresh.locator("#explore-tasks").fill("0")
    expect(another).to_be_disabled()


def test_large_sizes_are_drawn_in_part_and_say_so(fresh):
    fresh.locator("#explore-dim").fill("18")
    fresh.locator("#explore-tensorRank").fill("7")
    expect(fresh.locator("#explore-growth")).to_contain_text("91 × 91 = 8,281 numbers, first 100")
    note = fresh.locator("#explore-drawn")
    expect(note).to_contain_text("first 64 of the 8,192 numbers of a row, 32 of the 91 numbers of a leaf")
    expect(note).to_contain_text("4 of the 16 experts")
    assert fresh.locator("rect").count() < 2000


def test_what_the_suggestions_say_is_so(explore):
    """The numbers beside the buttons, and the claims about rows."""
    explore.reload()

    def follow(name):
        explore.get_by_role("button", name=name, exact=True).click()
        return shown_counts(explore)

    assert (mtp.leaf_size(64, 4), mtp.leaf_size(64, 6)) == (3, 2)
    start = shown_counts(explore)
    assert start["tlora"][0] == start["lora"][0]
    counts = follow("d = 4096")
    assert counts["tlora"][0] * 8 == counts["lora"][0]
    assert [order * mtp.leaf_size(64, order) for order in (4, 5, 6)] == [12, 15, 12]
    assert all(routing > adapter for adapter, routing in list(follow("T = 1024").values())[4:])
    assert follow("N = 1")["tensorpoly-1"] == follow("N = 1")["tensorpoly-2"] == follow("N = 1")["poly"]
    follow("N = 2, R = 4")
    expect(explore.locator("#explore-count-2")).to_have_text("2 × 4 weights, for 16 products")
    follow("One expert alone")
    first, second = rows(explore)
    torch.testing.assert_close(first, second, rtol=0, atol=0.02)
    explore.get_by_role("slider", name="logit of product 1").press("Home")
    first, second = rows(explore)
    assert (first - second).abs().max() > 0.1
    follow("R = 1")
    assert set(explore.locator("[data-weight]").all_text_contents()) == {"1.00"}


def test_every_suggestion_sets_values_that_the_sliders_have(explore):
    explore.reload()
    buttons = explore.locator("button[data-set]").all()
    assert len(buttons) >= 9
    for button in buttons:
        button.click()
        for name, value in json.loads(button.get_attribute("data-set")).items():
            if name != "only":
                expect(explore.locator(f"#explore-{name}-value")).to_have_text(f"{value:,}")


def test_colours_follow_the_theme_switch(explore):
    explore.reload()
    colour = "getComputedStyle(document.querySelector('rect.plus')).fill"
    seen = set()
    for theme in ("light", "dark"):
        explore.evaluate("theme => (document.documentElement.dataset.theme = theme)", theme)
        seen.add(explore.evaluate(colour))
    assert len(seen) == 2


def test_nothing_scrolls_sideways_on_a_phone_at_any_size(browser, origin):
    with open_context(browser, 390, "light") as context:
        page = context.new_page()
        page.goto(f"{origin}book/explore.html")
        for dim, order, experts in itertools.product((0, 4, 18), range(6), (0, 7)):
            for name, step in {
                "dim": dim,
                "order": order,
                "tensorRank": experts,
                "rank": 6,
                "tasks": 11,
            }.items():
                page.locator(f"#explore-{name}").fill(str(step))
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, (dim, order, experts)


def test_a_heading_that_is_jumped_to_stands_below_the_settings(browser, origin):
    for width in HEIGHTS:
        with open_context(browser, width, "light") as context:
            page = context.new_page()
            page.goto(f"{origin}book/explore.html#what-a-layer-costs")
            heading = page.get_by_role("heading", name="What a layer costs").bounding_box()
            settings = page.locator("form.settings").bounding_box()
            assert settings["y"] + settings["height"] <= heading["y"] < HEIGHTS[width] / 2


def test_script_is_short_and_loaded_by_its_page_alone():
    assert len((ROOT / "book" / "_static" / "explore.js").read_text().splitlines()) < 300
    loading = [page.name for page in SITE.rglob("*.html") if "explore.js" in page.read_text()]
    assert loading == ["explore.html"]
