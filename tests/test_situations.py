"""Where users put adapters: each test is a situation in which this kind of software has answered wrongly.

The answer is right, or an error says what to do.
"""

import copy
import io
import pickle
import threading

import peft
import pytest
import tokenizers
import torch
import transformers
from accelerate import Accelerator, cpu_offload
from accelerate.state import AcceleratorState
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LongformerConfig,
    LongformerModel,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

import minitensorpoly as mtp
from common import (
    METHODS,
    N_TASKS,
    ROUTED,
    adapted_linear,
    adapted_t5,
    enable_checkpointing,
    make_batch,
    make_config,
    make_t5,
    randomize,
)

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"intermediate_size": 48, "max_position_embeddings": 70}


def make_bert(seed=0):
    """A BERT with a head that is to be trained."""
    torch.manual_seed(seed)
    model = BertForSequenceClassification(BertConfig(**SMALL, num_labels=3))
    return model.requires_grad_(False).eval()


def adapted_bert(method="poly"):
    model = randomize(mtp.adapt(make_bert(), make_config(method, r".*\.(query|value)")))
    model.classifier.requires_grad_(True)
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.add_(1.0)  # trained
    return model


BERT_BATCH = {"input_ids": torch.arange(24).view(3, 8) % 60 + 2}


def logits(model, **ids):
    with torch.no_grad():
        return model(**BERT_BATCH, **ids).logits


# 1. Rows that do not follow the batch


def make_longformer():
    torch.manual_seed(0)
    return LongformerModel(LongformerConfig(**SMALL, attention_window=4, pad_token_id=1)).eval()


@pytest.mark.parametrize("tokens", [8, 6])
@pytest.mark.parametrize("method", ROUTED)
def test_layers_that_see_the_sequence_first_are_refused_by_name(method, tokens):
    model = mtp.adapt(make_longformer(), make_config(method, r".*\.(query|value)"))
    ids = torch.arange(2 * tokens).view(2, tokens) % 60 + 2
    message = r"task_ids has 2 entries, but layer 'encoder.layer.0.attention.self.query' sees inputs of shape"
    with pytest.raises(ValueError, match=message):
        model(ids, task_ids=[0, 1])
    assert model(ids, task_ids=[1, 1]).last_hidden_state.isfinite().all()  # one task fits any rows


class SequenceFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.outer(self.inner(x).transpose(0, 1)).transpose(0, 1)


class Expert(SequenceFirst):
    """Gives some tokens of the batch to a layer, as a mixture of experts does."""

    def forward(self, x):
        hidden = self.inner(x)
        chosen = hidden.flatten(0, 1)[hidden.flatten(0, 1)[:, 0].topk(len(x)).indices]
        return hidden.mean(1) + self.outer(chosen)


@pytest.mark.parametrize("kind, tokens", [(SequenceFirst, 6), (SequenceFirst, 4), (Expert, 6)])
def test_a_check_names_the_first_layer_whose_rows_are_not_the_batchs(kind, tokens):
    torch.manual_seed(0)
    model = mtp.adapt(kind().eval(), make_config("poly", "inner|outer"))
    x, ids = torch.randn(4, tokens, 4), [0, 1, 2, 3]
    with pytest.raises(ValueError, match="layer 'outer'"):
        mtp.check_rows(model, ids, x=x)
    mtp.check_rows(mtp.adapt(kind().eval(), make_config("poly", "inner")), ids, x=x)


def test_a_check_passes_what_is_right_and_leaves_nothing_behind():
    model, batch = adapted_t5("poly"), make_batch()
    before = model(**batch).logits
    mtp.check_rows(model, batch["task_ids"], **{k: v for k, v in batch.items() if k != "task_ids"})
    assert torch.equal(model(**batch).logits, before)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_more_images_than_texts_are_refused():
    """As of LLaVA with several images a row: the vision tower sees rows that are none of the batch's."""

    class Vision(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.text = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, text, image):
            return self.text(text).sum() + self.image(image).sum()

    model = mtp.adapt(Vision(), make_config("poly", "image|text"))
    text, image = torch.randn(2, 3, 4), torch.randn(4, 5, 4)
    with pytest.raises(ValueError, match="layer 'image'"):
        model(text, image, task_ids=[0, 1])
    assert model(text, image[:2], task_ids=[0, 1]).isfinite()


def test_flattened_tokens_and_choices_follow_the_batch():
    torch.manual_seed(0)

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4, dtype=torch.float64)

        def forward(self, x):
            return self.inner(x.flatten(0, -2)).view(x.shape)

    model = randomize(mtp.adapt(Flat(), make_config("tensorpoly-1", "inner")))
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    y = model(x, task_ids=[0, 4, 2])
    for row, task in enumerate([0, 4, 2]):
        torch.testing.assert_close(y[row], model(x[row, None], task_ids=task)[0])


# 2. What is trained is saved


@pytest.mark.parametrize("method", METHODS)
def test_a_trained_head_is_saved_and_exported_with_the_adapter(method, tmp_path):
    model = adapted_bert(method)
    expected = logits(model, task_ids=2)
    mtp.save(model, tmp_path / "ours")
    loaded = mtp.load(make_bert(), tmp_path / "ours")
    assert torch.equal(logits(loaded, task_ids=2), expected)
    trained = [{name for name, p in m.named_parameters() if p.requires_grad} for m in (model, loaded)]
    assert trained[0] == trained[1] and "classifier.weight" in trained[0]

    mtp.export_lora(model, 2, tmp_path / "peft")
    theirs = peft.PeftModel.from_pretrained(make_bert(seed=0), tmp_path / "peft").eval()
    torch.testing.assert_close(logits(theirs), expected, rtol=1e-4, atol=1e-5)


def test_a_head_that_is_frozen_after_training_is_still_saved(tmp_path):
    model = adapted_bert("poly")
    mtp.add_tasks(model, 1)
    mtp.train_only(model, "routing")
    mtp.save(model, tmp_path)
    assert torch.equal(logits(mtp.load(make_bert(), tmp_path), task_ids=5), logits(model, task_ids=5))


def test_a_parameter_that_peft_cannot_keep_is_refused_by_name(tmp_path):
    model = adapted_bert("poly")
    mtp.adapted_layers(model)["bert.encoder.layer.0.attention.self.query"].weight.requires_grad_(True)
    with pytest.raises(ValueError, match="'bert.encoder.layer.0.attention.self.query'"):
        mtp.export_lora(model, 0, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_auto_class_of_peft_finds_the_task_of_the_model(tmp_path):
    model = adapted_bert("poly")
    model.config._name_or_path = str(tmp_path / "base")
    make_bert().save_pretrained(tmp_path / "base")
    mtp.export_lora(model, 1, tmp_path / "peft")
    loaded = peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "peft").eval()
    torch.testing.assert_close(logits(loaded), logits(model, task_ids=1), rtol=1e-4, atol=1e-5)


# 3. A compiled wrapper


@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_wrapper_is_the_model_that_it_wraps(method, tmp_path):
    torch.compiler.reset()
    model = adapted_linear(method)
    compiled, x = (
        torch.compile(copy.deepcopy(model), backend="eager"),
        torch.randn(2, 12, dtype=torch.float64),
    )
    expected = model(x, task_ids=[1, 1])
    mtp.save(compiled, tmp_path / "ours")
    base = nn.Sequential(copy.deepcopy(model[0].base))
    torch.testing.assert_close(mtp.load(base, tmp_path / "ours")(x, task_ids=[1, 1]), expected)
    mtp.export_lora(compiled, 1, tmp_path / "peft")
    theirs = peft.PeftModel.from_pretrained(nn.Sequential(copy.deepcopy(model[0].base)), tmp_path / "peft")
    torch.testing.assert_close(theirs(x), expected, rtol=1e-5, atol=1e-6)
    mtp.add_tasks(compiled, 1)
    assert compiled(x, task_ids=[5, 5]).isfinite().all()
    assert mtp.merge(compiled, 1) is compiled
    torch.testing.assert_close(compiled(x), expected)


def test_a_compiled_wrapper_is_adapted_inside():
    compiled = torch.compile(nn.Sequential(nn.Linear(12, 20)), backend="eager")
    x = torch.randn(2, 12)
    before = compiled(x)
    mtp.adapt(compiled, make_config("poly", "0"))
    assert torch.equal(compiled(x, task_ids=[0, 1]), before)
    randomize(compiled)
    assert not torch.allclose(compiled(x, task_ids=[0, 1]), before)


# 4. save_pretrained


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_is_saved_as_a_whole_is_not_lost(method, tmp_path):
    model = adapted_t5(method)
    model.save_pretrained(tmp_path)
    base = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    for name, parameter in make_t5().named_parameters():
        assert torch.equal(base.get_parameter(name), parameter)
    batch = make_batch()
    assert torch.equal(mtp.load(base, tmp_path)(**batch).logits, model(**batch).logits)


def test_what_trainer_saves_is_read_in_the_same_way(tmp_path):
    model = adapted_t5("tensorpoly-2")
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    Trainer(model, arguments).save_model(str(tmp_path / "saved"))
    base = T5ForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    batch = make_batch()
    assert torch.equal(mtp.load(base, tmp_path / "saved")(**batch).logits, model(**batch).logits)


# 5. Threads


@pytest.mark.parametrize("method", ROUTED)
def test_threads_that_share_a_model_keep_their_tasks_apart(method):
    model, wrong = randomize(adapted_t5(method), std=1.0), []
    enable_checkpointing(model, use_reentrant=False)
    batch = make_batch(rows=2)
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    writing = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    parameters = list(mtp.adapter_parameters(model).values())

    def results(ids):
        with torch.no_grad():
            forward = model(**{**batch, "task_ids": ids}).logits
        written = model.generate(**text, task_ids=ids, **writing)
        model.train()
        loss = model(**{**batch, "task_ids": ids}).loss
        return [forward, written, *torch.autograd.grad(loss, parameters)]

    tasks = [torch.tensor([n % N_TASKS, (n + 1) % N_TASKS]) for n in range(8)]
    model.eval()
    model.train = lambda mode=True: model  # the mode belongs to the model, not to a thread
    expected = [results(ids) for ids in tasks]

    def work(n):
        for ours, theirs in zip(results(tasks[n]), expected[n], strict=True):
            if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# 6. Offloaded and meta layers


@pytest.mark.parametrize("method", METHODS)
def test_an_offloaded_model_is_adapted_where_it_computes(method):
    batch = make_batch()
    expected = randomize(mtp.adapt(make_t5(), make_config(method)))(**batch).logits
    model = make_t5()
    cpu_offload(model)
    assert model.encoder.block[0].layer[0].SelfAttention.q.weight.is_meta
    model = randomize(mtp.adapt(model, make_config(method)))
    torch.testing.assert_close(model(**batch).logits, expected)
    with pytest.raises(ValueError, match="is not x W"):
        mtp.merge(model, 0)
    torch.testing.assert_close(model(**batch).logits, expected)


def test_loading_into_a_meta_model_is_refused(tmp_path):
    mtp.save(adapted_t5("poly"), tmp_path)
    model = make_t5().to("meta")
    with pytest.raises(ValueError, match="meta device"):
        mtp.load(model, tmp_path)
    assert type(model) is T5ForConditionalGeneration


# 7. Linear layers that are more than x W + b


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def weight_norm(layer):
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(layer)


UNUSUAL = {
    "a forward of its own": lambda layer: Doubled(4, 4),
    "parametrized": parametrizations.weight_norm,
    "weight_norm": weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "pruned": lambda layer: prune.random_unstructured(layer, "weight", amount=0.5),
    "float8": lambda layer: layer.to(torch.float8_e4m3fn),
    "integers": lambda layer: quantised(layer),
}


def quantised(layer):
    layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    return layer


@pytest.mark.parametrize("name", UNUSUAL)
def test_a_layer_that_a_merged_weight_does_not_replace_is_refused_before_any_is_merged(name):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    base[1] = UNUSUAL[name](base[1])
    kept = base[0].weight.clone()
    model = randomize(mtp.adapt(base, make_config("tensorpoly-1", "[01]", tensor_rank=2)))
    with pytest.raises(ValueError, match="layer '1': "):
        mtp.merge(model, 0)
    assert torch.equal(model[0].weight, kept) and len(mtp.adapted_layers(model)) == 2


@pytest.mark.parametrize("name", ["a forward of its own", "spectral_norm"])
def test_an_unusual_layer_is_exported(name, tmp_path):
    torch.manual_seed(0)
    base = nn.Sequential(UNUSUAL[name](nn.Linear(4, 4))).eval()
    model = randomize(mtp.adapt(copy.deepcopy(base), make_config("poly", "0")))
    mtp.export_lora(model, 1, tmp_path)
    x = torch.randn(2, 4)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(loaded(x), model(x, task_ids=1))


@pytest.mark.parametrize("method", METHODS)
def test_a_float8_base_gets_an_adapter_of_float32(method):
    layer = nn.Linear(12, 20)
    layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    model = mtp.adapt(nn.Sequential(layer), make_config(method, "0"))
    assert {p.dtype for p in mtp.adapter_parameters(model).values()} == {torch.float32}


# 8. Recorded programs


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # shapes are compared once
@pytest.mark.parametrize("method", METHODS)
def test_a_trace_with_equal_ids_answers_for_others(method):
    class Positional(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = adapted_linear(method).eval()

        def forward(self, x, ids):
            return self.model(x, task_ids=ids)

    model, x = Positional(), torch.randn(4, 12, dtype=torch.float64)
    traced = torch.jit.trace(model, (x, torch.tensor([1, 1, 1, 1])))
    ids = torch.tensor([4, 0, 3, 0])
    torch.testing.assert_close(traced(x, ids), model(x, ids))


@pytest.mark.parametrize("method", METHODS)
def test_an_exported_program_takes_any_batch(method):
    model = adapted_linear(method, dtype=torch.float32).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(
        model,
        (torch.randn(4, 3, 12),),
        {"task_ids": torch.tensor([1, 1, 1, 1])},
        dynamic_shapes={"input": {0: batch}, "task_ids": {0: batch}},
    )
    x, ids = torch.randn(7, 3, 12), torch.tensor([4, 0, 3, 0, 2, 2, 1])
    torch.testing.assert_close(program.module()(x, task_ids=ids), model(x, task_ids=ids))


# 9. A forward on the instance


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_accelerate_has_prepared(method, when):
    batch, model = make_batch(), make_t5()
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    if when == "before":
        model = accelerator.prepare(model)
    mtp.adapt(model, make_config(method))
    if when == "after":
        model = accelerator.prepare(model)
    randomize(model)
    assert "forward" in vars(model)
    mixed = model(**batch).logits
    for row, task in enumerate(batch["task_ids"].tolist()):
        merged = mtp.merge(copy.deepcopy(model), task)
        one = {name: batch[name][row, None] for name in ("input_ids", "attention_mask", "labels")}
        torch.testing.assert_close(merged(**one).logits[0], mixed[row], rtol=0.1, atol=0.1)
    mtp.merge(model, 0)
    del batch["task_ids"]
    assert model(**batch).logits.isfinite().all()


def test_trainer_in_bfloat16_and_a_merge_after_it(tmp_path):
    model, batch = adapted_t5("poly"), make_batch(rows=8)
    columns = {name: column.tolist() for name, column in batch.items()}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], max_steps=2, bf16=True, disable_tqdm=True
    )
    Trainer(model, arguments, train_dataset=rows).train()
    ids = batch.pop("task_ids")
    expected = model(**batch, task_ids=torch.full_like(ids, 3)).logits
    torch.testing.assert_close(mtp.merge(model, 3)(**batch).logits, expected, rtol=0.1, atol=0.1)


# 10. A tied head


@pytest.mark.parametrize("method", METHODS)
def test_a_tied_head_may_be_adapted(method, tmp_path):
    model = randomize(mtp.adapt(make_t5(), make_config(method, "lm_head")))
    batch = make_batch()
    expected = model(**batch).logits
    model.tie_weights()
    assert model.lm_head.weight is model.shared.weight
    assert torch.equal(model(**batch).logits, expected)
    model.save_pretrained(tmp_path)  # as Trainer does at a checkpoint
    other = mtp.load(T5ForConditionalGeneration.from_pretrained(tmp_path).eval(), tmp_path)
    assert torch.equal(other(**batch).logits, expected)


def test_resizing_an_adapted_vocabulary_says_what_does_not_fit():
    model = mtp.adapt(make_t5(), make_config("poly", "lm_head"))
    model.resize_token_embeddings(80)
    with pytest.raises(RuntimeError, match=r"\(80\) must match .* \(64\)"):  # the adapter's outputs are 64
        model(**make_batch())
    rest = mtp.adapt(make_t5(), make_config("poly"))
    rest.resize_token_embeddings(80)
    assert rest(**make_batch()).logits.shape[-1] == 80


# 11. Pickle


@pytest.mark.parametrize("copied", ["pickle", "torch.save", "deepcopy"])
@pytest.mark.parametrize("method", METHODS)
def test_a_model_as_a_whole_is_written_and_read(method, copied):
    model, batch = adapted_t5(method), make_batch()
    if copied == "pickle":
        other = pickle.loads(pickle.dumps(model))
    elif copied == "torch.save":
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = copy.deepcopy(model)
    expected = model(**batch).logits
    assert torch.equal(other(**batch).logits, expected) and type(other) is type(model)
    randomize(other, seed=5)
    assert torch.equal(model(**batch).logits, expected)
    mtp.merge(other, 1)
    assert type(other) is T5ForConditionalGeneration


# 12. Smaller


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_batch_has_an_empty_answer(method):
    model = adapted_linear(method)
    for x in (torch.empty(0, 12), torch.empty(0, 3, 12)):
        y = model(x.double(), task_ids=torch.empty(0, dtype=torch.long))
        assert y.shape == (*x.shape[:-1], 20)


@pytest.mark.parametrize("method", ROUTED)
def test_parts_and_layers_are_called_with_their_tasks(method):
    model, batch = adapted_t5(method), make_batch()
    expected = model(**batch).encoder_last_hidden_state
    with mtp.task_ids(model, batch["task_ids"]):
        hidden = model.get_encoder()(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        assert torch.equal(hidden, expected)
        hidden.sum().backward()
        assert torch.equal(model(**{**batch, "task_ids": None}).encoder_last_hidden_state, expected)
        layer = next(iter(mtp.adapted_layers(model).values()))
        assert layer(torch.randn(4, 3, 32)).shape == (4, 3, 32)
    with pytest.raises(ValueError, match="task_ids is missing"):
        model.get_encoder()(batch["input_ids"])


def test_a_pipeline_extracts_features_of_one_task():
    model = randomize(mtp.adapt(make_bert(), make_config("poly", r".*\.(query|value)")))
    words = {"[UNK]": 0, "[PAD]": 1, "a": 2, "b": 3}
    core = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]")),
        unk_token="[UNK]",
        pad_token="[PAD]",
    )
    pipe = transformers.pipeline("text-classification", model=model, tokenizer=core, device="cpu")
    merged = transformers.pipeline(
        "text-classification", model=mtp.merge(copy.deepcopy(model), 3), tokenizer=core, device="cpu"
    )
    with mtp.task_ids(model, 3):
        ours = pipe(["a", "b"])
    assert [answer["score"] for answer in ours] == pytest.approx(
        [a["score"] for a in merged(["a", "b"])], rel=1e-4
    )


def test_a_backward_pass_within_a_context_leaves_it_as_it_is():
    model, x = adapted_linear("poly"), torch.randn(3, 12, dtype=torch.float64)
    with mtp.task_ids(model, [0, 1, 2]):
        expected = model(x)
        expected.sum().backward()
        assert torch.equal(model(x), expected)
