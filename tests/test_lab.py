"""The laboratory: its language, its backbones, its training."""

import copy

import pytest
import torch

import minitensorpoly as mtp
from lab import methods, records
from lab.english import backbone, statistics, tasks, training

CAT = tasks.Sentence(("big", "old"), ("cat", "teacher"), "see", "today")
RENDERED = {
    "": "the big cat sees the old teacher today .",
    "past": "the big cat saw the old teacher today .",
    "negate": "the big cat does not see the old teacher today .",
    "plural": "the big cats see the old teachers today .",
    "swap": "the old teacher sees the big cat today .",
    "opposite": "the small cat sees the young teacher today .",
    "category": "the big animal sees the old person today .",
    "ask": "does the big cat see the old teacher today ?",
    "front": "today the big cat sees the old teacher .",
    "past+negate": "the big cat did not see the old teacher today .",
    "plural+category": "the big animals see the old people today .",
    "plural+negate": "the big cats do not see the old teachers today .",
    "past+ask": "did the big cat see the old teacher today ?",
    "negate+ask+front": "today does the big cat not see the old teacher ?",
    "swap+opposite": "the young teacher sees the small cat today .",
    "past+plural+front": "today the big cats saw the old teachers .",
}


@pytest.mark.parametrize("skills", RENDERED)
def test_skills_render_as_written_by_hand(skills):
    names = skills.split("+") if skills else []
    assert CAT.render(names) == RENDERED[skills]
    assert CAT.render(names[::-1]) == RENDERED[skills]


def test_every_task_changes_every_sentence_in_its_own_way():
    split = tasks.make_split(1)
    sets = [task.skills for task in split.train + split.held_out]
    assert len({CAT.render(skills) for skills in sets}) == len(sets) == 32


@pytest.mark.parametrize("number", range(4))
def test_split_is_what_it_says(number):
    split, development = tasks.make_split(number), tasks.make_split(tasks.DEVELOPMENT)
    train, held_out = ({task.skills for task in part} for part in (split.train, split.held_out))
    assert len(train) == 24 and len(held_out) == 8 and not train & held_out
    assert {len(skills) for skills in train | held_out} <= {2, 3}
    assert all(sum(skill in skills for skills in train) >= 4 for skill in tasks.SKILLS)
    reserved = {task.skills for task in development.held_out}
    assert not reserved & train and (number == 0 or not reserved & held_out)
    tags = [task.tag for task in split.train]
    assert split.shared == [False] * 12 + [True] * 12
    assert all(tags[i] == tags[i + 1] for i in range(12, 24, 2)) and len(set(tags)) == 18
    assert not set(tags) & {task.tag for task in split.held_out}
    assert split == tasks.make_split(number) and split != tasks.make_split(number + 1)


def test_dataset_has_its_columns_and_names_no_skill_unless_asked():
    split = tasks.make_split(1)
    data = tasks.make_dataset(split.train, 5, seed=1, first_id=3)
    assert data.column_names == ["source", "target", "task_ids", "task"] and len(data) == 120
    assert data["task_ids"][0] == 3 and data["task_ids"][-1] == 26
    assert data["source"][0].startswith(f"{split.train[0].tag} : the ")
    words = {word for text in data["source"] for word in text.split()}
    assert not words & set(tasks.SKILLS) and words <= set(tasks.VOCABULARY)
    named = tasks.make_dataset(split.train, 5, seed=1, named=True)
    assert named["source"][0].split(" : ")[0] == " ".join([split.train[0].tag, *split.train[0].skills])
    assert named["target"] == data["target"]
    assert tasks.make_dataset(split.train, 5, seed=1, first_id=3)["source"] == data["source"]
    assert tasks.make_dataset(split.train, 5, seed=2)["source"] != data["source"]


def test_tokenizer_keeps_every_word():
    tokenizer = backbone.make_tokenizer()
    text = " ".join(tasks.VOCABULARY[3:])
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text + " </s>" and tokenizer.unk_token_id not in ids
    assert (
        ids[-1] == tokenizer.eos_token_id and tokenizer("dog zebra")["input_ids"][1] == tokenizer.unk_token_id
    )


@pytest.mark.parametrize("width", [64, 256])
def test_shipped_backbone_knows_every_skill_alone(width):
    model, tokenizer = backbone.load_backbone(width)
    data = tasks.make_pretraining_dataset(400, seed=123)
    matches = training.exact_match(model, training.encode(data, tokenizer))
    assert matches.float().mean() >= 0.99
    for skill in (tasks.COPY, *tasks.SKILLS):
        assert matches[torch.tensor([name == skill for name in data["task"]])].float().mean() >= 0.9
    assert model.dtype == torch.float32 and model.config.d_model == width


def test_shipped_weights_are_small_and_only_safetensors():
    files = [file for file in backbone.WEIGHTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 10e6
    assert {file.suffix for file in files} == {".json", ".safetensors"}


def test_missing_backbone_tells_how_to_make_it():
    with pytest.raises(FileNotFoundError, match="make it with: python -m lab.english.backbone --width 96"):
        backbone.load_backbone(96)


def test_a_fresh_run_of_the_pretraining_learns():
    # Fewer steps than the shipped weights took, of fewer rows; it got 0.53.
    _, accuracy = backbone.pretrain(64, seed=1, steps=300, batch_size=64, sentences=16_000)
    assert accuracy >= 0.3


def adapted(adapter, n_tasks=24):
    """The backbone with a fresh adapter."""
    torch.manual_seed(1)
    return methods.adapt(backbone.load_backbone(64)[0], adapter, n_tasks)


def test_training_lowers_the_loss_and_is_deterministic():
    losses = []
    for _ in range(2):
        model, data = adapted("TensorPoly-I"), training.examples(tasks.make_split(1).train, 4, "5")
        losses.append(training.train(model, data, steps=40, lr=0.1, router_lr=0.1, batch_size=32))
    assert sum(losses[0][-5:]) < 0.8 * sum(losses[0][:5])
    assert losses[0] == losses[1] and len(losses[0]) == 40


def test_exact_match_agrees_with_comparing_text():
    model, split, tokenizer = adapted("LoRA"), tasks.make_split(1), backbone.make_tokenizer()
    training.train(model, training.examples(split.train, 4, "5"), steps=40, lr=0.01, batch_size=16)
    data = tasks.make_dataset(split.train[:4], 8, seed=5)
    encoded = training.encode(data, tokenizer)
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask", "task_ids")}
    written = tokenizer.batch_decode(
        model.eval().generate(**inputs, max_new_tokens=20), skip_special_tokens=True
    )
    expected = [text.strip() == target for text, target in zip(written, data["target"], strict=True)]
    assert training.exact_match(model, encoded, batch_size=5).tolist() == expected
    single = tasks.make_pretraining_dataset(20, seed=3)  # a model that is right on some, and wrong on others
    mixed = training.encode(single, tokenizer)
    mixed["labels"][::2, 0] = tokenizer.unk_token_id
    matches = training.exact_match(backbone.load_backbone(64)[0], mixed)
    assert not matches[::2].any() and matches[1::2].float().mean() > 0.9


def test_gradient_cosines_equal_autograds():
    torch.manual_seed(0)
    model, tokenizer = backbone.load_backbone(64)
    methods.adapt(model, "Poly", 3)
    data = training.encode(tasks.make_dataset(tasks.make_split(1).train[:3], 4, seed=0), tokenizer)
    cosines = training.gradient_cosines(model, data, tasks=3, rows=4)
    parameters = [p for p in model.parameters() if p.requires_grad]
    losses = [model(**training.select(data, data["task_ids"] == task)).loss for task in range(3)]
    vectors = [torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]) for loss in losses]
    for i in range(3):
        for j in range(3):
            expected = torch.nn.functional.cosine_similarity(vectors[i], vectors[j], dim=0)
            torch.testing.assert_close(cosines[i, j], expected)
    assert all(p.grad is None for p in parameters)


@torch.no_grad()
def test_private_adapters_share_nothing():
    model = methods.adapt(backbone.load_backbone(64)[0], methods.PRIVATE, n_tasks=4)
    for layer in mtp.adapted_layers(model).values():
        assert 0.7 < layer.A.matrices.var() * 3 * layer.in_features < 1.4  # each starts as a LoRA does
        layer.B.matrices.normal_()
    ids = torch.tensor([0, 1, 2, 3])
    text = torch.randint(3, 90, (1, 6)).repeat(4, 1)
    inputs = {"input_ids": text, "labels": text}
    before = model(**inputs, task_ids=ids).logits
    for layer in mtp.adapted_layers(model).values():
        layer.A.matrices[2] += 1
    after = model(**inputs, task_ids=ids).logits
    assert [torch.equal(a, b) for a, b in zip(after, before, strict=True)] == [True, True, False, True]
    assert methods.count_parameters(model)["routing"] == 0


@pytest.mark.parametrize("part", ["routing", "all"])
def test_transfer_leaves_the_model_as_it_was(monkeypatch, part):
    monkeypatch.setattr(training, "FEW_STEPS", 2)
    model, of = adapted("TensorPoly-II"), tasks.make_split(1).held_out[:2]
    before = copy.deepcopy(model.state_dict())
    accuracy = training.transfer(model, of, part, shots=2, lr=0.1, seed=1, n_test=4)
    assert sorted(accuracy) == [24, 25]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_transfer_learns_a_skill_that_a_text_could_name():
    # Two tasks of one known skill each: routing of experts that know skills would do it, and so do factors.
    of = tuple(tasks.Task((skill,), "src90") for skill in ("past", "ask"))
    accuracy = training.transfer(adapted("TensorPoly-I"), of, "all", shots=32, lr=0.03, seed=1, n_test=20)
    assert min(accuracy.values()) > 0.5


def test_tasks_that_learn_their_routing_together_do_not_learn_from_each_other():
    model, held_out = adapted("TensorPoly-I"), tasks.make_split(1).held_out[:2]
    data = training.examples(held_out, 4, "0", first_id=24)
    learners = []
    for changed in (False, True):
        learner = copy.deepcopy(model)
        mtp.add_tasks(learner, 2)
        mtp.train_only(learner, "routing")
        labels = data["labels"].clone()
        if changed:
            labels[(data["task_ids"] == 25)[:, None] & (labels != -100)] = 5
        learner(**data | {"labels": labels}).loss.backward()
        learners.append(mtp.adapter_parameters(learner))
    for name, parameter in learners[0].items():
        if name.endswith("logits"):
            torch.testing.assert_close(parameter.grad[24], learners[1][name].grad[24], rtol=1e-4, atol=1e-7)
            assert not parameter.grad[:24].any()


def test_similarity_of_skills():
    of = [tasks.Task(("past", "swap"), "src0"), tasks.Task(("past", "ask", "front"), "src1")]
    assert tasks.skill_overlap(of).tolist() == [[1.0, 0.25], [0.25, 1.0]]
    values = torch.rand(5, 5)
    assert statistics.correlation(values, 2 * values + 1) == pytest.approx(1)
    assert statistics.correlation(values, -values) == pytest.approx(-1)


def test_missing_results_are_not_measured_yet(tmp_path):
    with pytest.raises(FileNotFoundError, match="not measured yet; run `python -m lab.cost.bench cpu`"):
        records.read(tmp_path / "none.json", "lab.cost.bench cpu")
