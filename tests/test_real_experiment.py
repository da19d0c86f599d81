"""Many customers of one model: who asks what, the two halves of a model, the runs, and the budgets."""

import copy
import dataclasses
import json
import math
import re

import pytest
import tokenizers
import torch
import transformers

from lab import methods, records
from lab.real import customers, experiment, plans
from lab.real.customers import QUESTIONS, Customer

INTENTS = (
    "card_arrival",
    "declined_transfer",
    "exchange_rate",
    "top_up_limits",
    "age_limit",
    "cash_withdrawal",
)
PLACES = [
    f"area[{area}], familyFriendly[{family}], priceRange[{price}], rating[{rating}], "
    f"food[{food}], eatType[{kind}]"
    for area, family, price, rating, food, kind in (
        ("riverside", "yes", "high", "5 out of 5", "Chinese", "coffee shop"),
        ("city centre", "no", "cheap", "low", "English", "restaurant"),
    )
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Both data sets, with a few invented rows of each."""
    folder = tmp_path_factory.mktemp("data")
    messages = [
        {"text": f"{name.replace('_', ' ')} {i}", "label": k}
        for k, name in enumerate(INTENTS)
        for i in range(40)
    ]
    descriptions = [
        {"human_reference": f"{re.sub(r'[^ a-z]', ' ', said)} {i}", "meaning_representation": said}
        for said in PLACES
        for i in range(40)
    ]
    for name, rows in (("banking77", messages), ("e2e_nlg_cleaned", descriptions)):
        (folder / "tasks" / name).mkdir(parents=True)
        for split in ("train", "validation"):
            lines = [json.dumps(row) + "\n" for row in rows]
            (folder / "tasks" / name / f"{split}.jsonl").write_text("".join(lines))
    (folder / "tasks" / "banking77" / "label_names.json").write_text(json.dumps(INTENTS))
    return str(folder)


def save_model(kind, folder):
    """A tiny random model, and a tokenizer of letters."""
    letters = {"[PAD]": 0, "[UNK]": 1} | {chr(97 + i): 2 + i for i in range(26)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    )
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8}
    torch.manual_seed(0)
    if kind == "bert":
        model = transformers.BertModel(transformers.BertConfig(vocab_size=28, **size))
    else:
        model = transformers.LlamaModel(transformers.LlamaConfig(vocab_size=28, **size))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_model("bert", tmp_path_factory.mktemp("bert"))


# ------------------------------------------------------------ who asks what


@pytest.mark.parametrize("number", range(6))
def test_new_customers_are_what_they_are_called(number):
    split = customers.make_split(number)
    assert (len(split.train), len(split.known), len(split.new)) == (30, 5, 2)
    ways = [(c.question, c.code) for c in split.train]
    assert len(set(split.train)) == 30 and all(ways.count(way) == 2 for way in ways)
    for customer in split.known:
        assert (customer.question, customer.code) not in ways
        assert (customer.question, 1 - customer.code) in ways
    assert not {c.question for c in split.new} & {c.question for c in split.train}
    assert {QUESTIONS[c.question].source for c in split.new} == set(customers.HUB)
    assert split == customers.make_split(number) != customers.make_split(number + 1)


@pytest.mark.parametrize(
    ("name", "yes", "no"),
    [
        ("a card", "card_arrival pin_blocked visa_or_mastercard", "topping_up transfer_timing"),
        (
            "trouble",
            "card_not_working transaction_charged_twice lost_or_stolen_card",
            "exchange_rate age_limit",
        ),
        ("fees and rates", "exchange_charge transfer_fee_charged", "transaction_charged_twice card_arrival"),
        ("money that comes in", "top_up_limits receiving_money", "cancel_transfer cash_withdrawal_charge"),
        ("who the owner is", "verify_my_identity change_pin age_limit", "topping_up_by_card transfer_timing"),
        ("cash", "cash_withdrawal_charge atm_support", "card_arrival exchange_rate"),
    ],
)
def test_messages_are_answered_by_their_intent(name, yes, no):
    answers = {intent: QUESTIONS[name].answer({"intent": intent}) for intent in f"{yes} {no}".split()}
    assert answers == dict.fromkeys(yes.split(), True) | dict.fromkeys(no.split(), False)


def test_descriptions_are_answered_by_what_is_said_of_them():
    asked = {name: q for name, q in QUESTIONS.items() if q.source == "e2e_nlg_cleaned"}
    for said, answer in zip(PLACES, (True, False), strict=True):
        assert {q.answer({"meaning_representation": said}) for q in asked.values()} == {answer}
    for nothing in ("name[Aromi]", "priceRange[moderate], rating[average], food[Italian], eatType[pub]"):
        assert {q.answer({"meaning_representation": nothing}) for q in asked.values()} == {None}


def test_examples_are_balanced_and_called_by_the_customers_code(data):
    texts = customers.load(data)
    for name, code in [(name, code) for name in QUESTIONS for code in (0, 1)]:
        rows = customers.examples(texts, Customer(name, code), "train", 12, seed=1)
        assert sorted(label for _, label in rows) == [0] * 6 + [1] * 6
        source = {row["text"]: QUESTIONS[name].answer(row) for row in texts[QUESTIONS[name].source]["train"]}
        assert all(source[text] is (label == code) for text, label in rows)  # label 0 is A
    one, other = (customers.examples(texts, Customer("cash", 0, i), "train", 12, 1) for i in (0, 1))
    assert one != other == customers.examples(texts, Customer("cash", 0, 1), "train", 12, 1)
    with pytest.raises(ValueError, match="cash.*train.*not 50"):
        customers.examples(texts, Customer("cash", 0), "train", 100, seed=1)


# ------------------------------------------------------------ the model, and its runs


def run(contender="Poly", **changes):
    usual = {"shape": experiment.SHAPES[contender][0], "rows": 4, "split": 1, "seed": 1}
    usual |= {"base": "minilm", "lr": 0.01, "own_lr": 0.1}
    return experiment.Run(contender=contender, **usual | changes)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_two_halves_are_the_whole(kind, tmp_path):
    folder = save_model(kind, tmp_path)
    model, _, tokenizer = experiment.pretrained(folder)
    reader = experiment.make_reader(run("LoRA, vector"), folder, "cpu")
    pairs = [("a card", 0), ("something much longer than that", 1)]
    batch = experiment.encode(pairs, [0, 1], folder, "cpu")
    inputs = tokenizer([text for text, _ in pairs], padding=True, padding_side="right", return_tensors="pt")
    mask = inputs["attention_mask"][..., None]
    with torch.no_grad():
        states = model(**{k: inputs[k] for k in ("input_ids", "attention_mask")}).last_hidden_state
        expected = reader.head((states * mask).sum(1) / mask.sum(1))
        short = experiment.select(batch, torch.arange(2))
        labels = short.pop("labels")
        torch.testing.assert_close(reader(**short), expected)
        reader.vectors[1] = 1.0  # the other customer's answer alone changes
        changed = reader(**short) != expected
    assert labels.tolist() == [0, 1] and short["states"].shape[1] == inputs["input_ids"].shape[1]
    assert not torch.isclose(reader(**short)[1], expected[1]).all() and changed[1].all()
    torch.testing.assert_close(reader(**short)[0], expected[0])


@pytest.mark.parametrize("contender", experiment.SHAPES)
def test_a_run_is_recorded(contender, bert, data, monkeypatch):
    for name, small in {"STEPS": 3, "FEW_STEPS": 2, "N_TEST": 4, "N_OLD": 2, "SHOTS": (2, 4)}.items():
        monkeypatch.setattr(experiment, name, small)
    monkeypatch.setattr(experiment, "BUDGET", 4)
    few_shot = tuple((part, 2, 0.01) for part in experiment.parts_of(contender))
    wanted = run(contender, few_shot=few_shot, forgetting=True)
    record = json.loads(json.dumps(experiment.execute(wanted, bert, data, "cpu")))
    assert experiment.run_of(record).key == wanted.key
    assert len(record["train"]) == 30 and max(record["train"]) <= 4
    assert [trial["part"] for trial in record["transfers"]] == [part for part, *_ in few_shot]
    for trial in record["transfers"]:
        assert len(trial["right"]) == 7 and max(trial["right"]) <= 4
        changes_others = trial["part"] == "all" and contender != methods.PRIVATE
        assert len(trial["old"]) == (7 if changes_others else 0)
    if contender == "Poly":  # the same run gives the same record
        again = json.loads(json.dumps(experiment.execute(wanted, bert, data, "cpu")))
        assert again | {"seconds": 0} == record | {"seconds": 0}


@pytest.mark.parametrize("contender", ["LoRA, vector", "TensorPoly-II"])
def test_what_a_customer_has_of_its_own_changes_no_others_answers(contender, bert, data):
    reader = experiment.make_reader(run(contender), bert, "cpu")
    rows = experiment.rows_of(run().seed, customers.make_split(1).train[:2], "train", 4, 0, bert, data, "cpu")
    experiment.learn(reader, rows, {"factors": 0.1, "own": 0.1, "head": 0.1}, 2, 4, seed=0)
    learner = copy.deepcopy(reader)
    learner.add_customers(1)
    own = [p for n, p in learner.named_parameters() if n.endswith("router.logits") or n == "vectors"]
    for parameter in own:  # starts at the mean of the others'
        torch.testing.assert_close(parameter[30], parameter[:30].mean(0))
    new = {**rows, "task_ids": torch.full_like(rows["task_ids"], 30)}
    state = {name: p.clone() for name, p in learner.named_parameters()}
    experiment.learn(learner, new, {"own": 0.1}, 3, 4, seed=0)
    batch = {k: v for k, v in rows.items() if k != "labels"}
    torch.testing.assert_close(learner(**batch), reader(**batch), rtol=0, atol=0)
    moved = {name for name, p in learner.named_parameters() if not torch.equal(p, state[name])}
    assert moved and all(name.endswith("router.logits") or name == "vectors" for name in moved)


def test_the_search_asks_of_every_contender_as_much_and_the_final_runs_take_what_it_found(tmp_path):
    trials = {}
    for contender, shapes in experiment.SHAPES.items():
        asked = []

        def record(of_run, asked=asked, shapes=shapes):
            asked.append(of_run)
            score = 50 - abs(math.log(of_run.lr / 0.007)) - abs(math.log((of_run.own_lr or 0.1) / 0.1))
            score -= abs(shapes.index(of_run.shape) - len(shapes) // 2)
            transfers = [
                {"shots": n, "rate": rate, "right": [40 - abs(math.log(rate / 0.03))]}
                for _, n, rate in of_run.few_shot
            ]
            return dataclasses.asdict(of_run) | {"train": [score], "transfers": transfers}

        search = experiment.Search("minilm", contender, record)
        found = search.shape_and_rates()
        assert found["lr"] == 0.007 and found["closed"], (contender, found)
        trials[contender] = len({of_run.key for of_run in asked})
        assert all(rate == 0.03 for rate, _ in search.few_shot().values())
        assert {of_run.split for of_run in asked} == {0}
        final = experiment.final_runs("minilm", contender, record)
        assert len(final) == 2 * len(experiment.SPLITS) and {r.lr for r in final} == {0.007}
        assert all(bool(r.few_shot) == (r.rows == experiment.ROWS[0]) for r in final)
        assert 0 not in {r.split for r in final}
    assert set(trials.values()) <= set(range(experiment.TRIALS[0], experiment.TRIALS[1] + 1)), trials


REAL = {
    "minilm": transformers.BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536),
    "smollm2": transformers.LlamaConfig(
        hidden_size=576,
        num_hidden_layers=30,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
    ),
}


@pytest.mark.parametrize("base", experiment.BASES)
def test_every_shape_has_the_budget_within_7_percent(base, monkeypatch):
    with torch.device("meta"):
        whole = transformers.AutoModel.from_config(REAL[base])
    upper = experiment.upper_half(whole.requires_grad_(False))
    monkeypatch.setattr(experiment, "pretrained", lambda folder: (whole, upper, None))
    counts = {}
    for contender, shapes in experiment.SHAPES.items():
        for shape in shapes:
            with torch.device("meta"):
                reader = experiment.make_reader(run(contender, base=base, shape=shape), "", "meta")
            counts[contender, shape] = sum(p.numel() for p in reader.groups()["factors"])
    budget = counts["LoRA", ""]
    assert all(abs(n / budget - 1) < 0.07 for n in counts.values()), counts


def test_the_plan_says_what_the_code_does():
    plan = " ".join((records.RESULTS / "customers_plan.md").read_text().split())
    e = experiment
    for words in (
        f"{e.STEPS} steps of {e.BATCH} rows",
        f"{e.FEW_STEPS} steps of {e.FEW_ROWS} rows, from {e.SHOTS[0]} rows or from {e.SHOTS[1]}",
        f"LoRA of rank {e.BUDGET}",
        f"at a rate of {e.HEAD_RATE}",
        f"with {e.ROWS[0]} rows for each training customer",
        f"same three with {e.ROWS[1]} rows",
        f"of {e.N_TEST} validation rows each",
        f"up to {e.TRIALS[1]} while the best has an untried neighbour",
    ):
        assert words in plan, words
    assert e.TRIALS[0] == 10 and len(e.SPLITS) == 3 and e.N_OLD == 4  # ten, three, four in words


# ------------------------------------------------------------ results that are absent, and larger models


def test_absent_results_are_said_to_be_not_measured(tmp_path, capsys):
    assert records.read_if_measured(tmp_path / "finetune_real.json") is None
    assert capsys.readouterr().out == "finetune_real.json: not measured yet\n"


def t5_parameters(d, d_ff, heads, layers=24, vocabulary=32128, d_kv=64, buckets=32):
    """T5 version 1.1, counted by hand."""
    attention, feed_forward = 4 * d * heads * d_kv, 3 * d * d_ff
    encoder = layers * (attention + feed_forward + 2 * d)
    decoder = layers * (2 * attention + feed_forward + 3 * d)
    return 2 * vocabulary * d + encoder + decoder + 2 * (d + buckets * heads)


@pytest.mark.parametrize("name", plans.T5_SIZES)
def test_planned_parameters_are_those_counted_by_hand(name):
    d, d_ff, heads = plans.T5_SIZES[name].values()
    planned = plans.plan(name, "LoRA", n_tasks=20, rank=1)
    assert planned["base"] == t5_parameters(d, d_ff, heads)
    inner = heads * 64  # an attention has four layers, a gated feed-forward three
    layers = {"attention": 4 * (d + inner) * 3, "feed-forward": 3 * (d + d_ff) * 2}
    assert planned["factors"] == 24 * sum(layers.values())
    assert planned["layers"] == 24 * (4 * 3 + 3 * 2) and planned["routing"] == 0


def test_planned_memory_counts_weights_gradients_and_moments():
    assert plans.memory(trained=0, base=10**9) == 2
    assert plans.memory(trained=10**9, base=0) == 16
    assert plans.memory(10**9, 10**9, gpus=4) == 4.5
