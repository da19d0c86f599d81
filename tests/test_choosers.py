"""Choosers score answer choices as the models' own losses do, whatever else is in the batch."""

import copy
import functools
import re

import pytest
import torch
import transformers

import minitensorpoly as mtp
from common import METHODS, enable_checkpointing, make_config, randomize
from lab.english.backbone import load_backbone
from lab.real import choosers, finetune, prompts, tasks

NAMES = ("rte", "copa", "hellaswag", "qasc")  # two, two, four and eight choices
KINDS = {
    "encoder-decoder": choosers.EncoderDecoderChooser,
    "encoder": choosers.EncoderChooser,
    "decoder": choosers.DecoderChooser,  # which has tests of its own
}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_method = pytest.mark.parametrize("method", METHODS)


def make_chooser(kind, **options):
    """The embedded T5, or a tiny random BERT or Llama with the same tokenizer."""
    torch.manual_seed(0)
    model, tokenizer = load_backbone(64)
    if kind == "encoder":
        config = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **SIZES)
        model = transformers.BertForMultipleChoice(config)
    if kind == "decoder":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=len(tokenizer), **SIZES))
    return KINDS[kind](model.eval(), tokenizer, **options)


def adapted_chooser(kind, method, **options):
    chooser = make_chooser(kind, **options)
    mtp.adapt(chooser.model, make_config(method, chooser.target_modules, n_tasks=len(NAMES)))
    return chooser


def make_examples():
    """An example of each task, then another of each."""
    of_task = [
        tasks.examples(name, tasks.load(name, "train", tasks.FIXTURES), i).to_list()
        for i, name in enumerate(NAMES)
    ]
    return [examples[row] for row in (0, 1) for examples in of_task]


def score(chooser, examples):
    batch = chooser.collate(examples)
    with torch.no_grad():
        return chooser.scores(**batch)[0]


def test_encoder_decoder_scores_by_the_models_own_loss():
    chooser = make_chooser("encoder-decoder")
    for example, found in zip(make_examples(), score(chooser, make_examples()), strict=True):
        prompt = chooser.tokenizer(example["prompt"], return_tensors="pt")
        for choice, value in zip(example["choices"], found, strict=False):
            labels = chooser.tokenizer(choice, return_tensors="pt")["input_ids"]
            inputs = {"input_ids": prompt["input_ids"], "attention_mask": prompt["attention_mask"]}
            torch.testing.assert_close(
                -chooser.model(**inputs, labels=labels).loss, value, rtol=1e-4, atol=1e-4
            )


def test_encoder_decoder_loss_has_t_fews_three_parts():
    chooser, examples = make_chooser("encoder-decoder"), make_examples()
    with torch.no_grad():
        output = chooser(**chooser.collate(examples))
    scores, expected = score(chooser, examples), 0.0
    for example, found in zip(examples, scores, strict=True):
        prompt = chooser.tokenizer(example["prompt"], return_tensors="pt")["input_ids"]
        wrong = []
        for i, choice in enumerate(example["choices"]):
            labels = chooser.tokenizer(choice, return_tensors="pt")["input_ids"]
            p = (
                chooser.model(input_ids=prompt, labels=labels)
                .logits[0]
                .softmax(-1)[range(labels.shape[1]), labels[0]]
            )
            wrong += [] if i == example["label"] else (-(1 - p).log()).tolist()
        n = len(example["choices"])
        own = found[example["label"]]
        expected += -own + (found[:n].logsumexp(0) - own) + sum(wrong) / len(wrong)
    torch.testing.assert_close(output["loss"], expected / len(examples), rtol=1e-4, atol=1e-4)


def test_encoder_scores_as_the_multiple_choice_model_does():
    chooser = make_chooser("encoder")
    for example, found in zip(make_examples(), score(chooser, make_examples()), strict=True):
        n = len(example["choices"])
        tokens = chooser.tokenizer(
            [example["prompt"]] * n, example["choices"], padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            whole = chooser.model(
                **{k: v[None] for k, v in tokens.items()}, labels=torch.tensor([example["label"]])
            )
            loss = chooser(**chooser.collate([example]))["loss"]
        torch.testing.assert_close(found[:n], whole.logits[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(loss, whole.loss)


@each_kind
def test_scores_do_not_depend_on_the_rest_of_the_batch(kind):
    chooser, examples = make_chooser(kind), make_examples()
    together = score(chooser, examples)
    assert together.shape == (8, 8)
    for example, row in zip(examples, together, strict=True):
        n = len(example["choices"])
        torch.testing.assert_close(score(chooser, [example])[0, :n], row[:n], rtol=1e-4, atol=1e-4)
        assert row[n:].isneginf().all()


@each_kind
def test_the_choice_is_the_best_score(kind):
    chooser, examples = make_chooser(kind), make_examples()
    with torch.no_grad():
        choice = chooser(**chooser.collate(examples))["choice"]
    for row, best in zip(score(chooser, examples).tolist(), choice, strict=True):
        assert row[best] == max(row)


def test_an_encoder_decoder_writes_what_each_prompt_alone_would_get():
    chooser, examples = adapted_chooser("encoder-decoder", "poly"), make_examples()
    randomize(chooser.model)
    for example, text in zip(examples, chooser.generate(examples, max_new_tokens=5), strict=True):
        prompt = chooser.tokenizer(example["prompt"], return_tensors="pt")["input_ids"]
        ids = chooser.model.generate(input_ids=prompt, task_ids=[example["task_ids"]], max_new_tokens=5)
        assert text == chooser.tokenizer.decode(ids[0], skip_special_tokens=True).strip()


@each_method
@each_kind
def test_an_adapted_chooser_starts_as_its_base_and_every_factor_learns(kind, method):
    examples = make_examples()
    chooser = adapted_chooser(kind, method)
    assert torch.equal(score(chooser, examples), score(make_chooser(kind), examples))
    randomize(chooser.model)
    chooser(**chooser.collate(examples))["loss"].backward()
    for name, parameter in mtp.adapter_parameters(chooser.model).items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@each_kind
def test_the_task_id_decides(kind):
    chooser, examples = adapted_chooser(kind, "tensorpoly-1"), make_examples()
    randomize(chooser.model)
    other = [example | {"task_ids": (example["task_ids"] + 1) % len(NAMES)} for example in examples]
    assert not torch.allclose(score(chooser, examples), score(chooser, other))


@each_kind
def test_checkpointing_of_gradients_changes_nothing(kind):
    examples, gradients = make_examples(), []
    for checkpointing in (False, True):
        chooser = adapted_chooser(kind, "tensorpoly-2")
        randomize(chooser.model).train()
        for module in chooser.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            enable_checkpointing(chooser.model, use_reentrant=False)
        chooser(**chooser.collate(examples))["loss"].backward()
        gradients.append([p.grad for p in mtp.adapter_parameters(chooser.model).values()])
    torch.testing.assert_close(*gradients)


@each_kind
def test_a_state_dict_holds_what_is_trainable_and_loads(kind):
    chooser = adapted_chooser(kind, "poly")
    for module in chooser.head:
        module.requires_grad_(True)
    randomize(chooser.model)
    state = {name: value.clone() for name, value in chooser.state_dict().items()}
    assert set(state) == {name for name, p in chooser.named_parameters() if p.requires_grad}
    assert (len(chooser.head) > 0) == any("classifier" in name for name in state)
    other = adapted_chooser(kind, "poly")
    for module in other.head:
        module.requires_grad_(True)
    assert not any(other.load_state_dict(state))  # nothing missing, nothing unexpected
    assert torch.equal(score(other, make_examples()), score(chooser, make_examples()))
    del state[next(iter(state))]
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(state)


@pytest.mark.parametrize("kind", ["encoder-decoder", "encoder"])
def test_long_prompts_are_cut_at_their_end(kind):
    examples = [e | {"prompt": e["prompt"] + " the" * 500} for e in make_examples()]
    batch = make_chooser(kind, max_length=40).collate(examples)
    assert batch["input_ids"].shape[1] == 40


@pytest.mark.parametrize("kind", KINDS)
def test_load_chooser_knows_the_kind_of_a_folder(kind, tmp_path):
    chooser = make_chooser(kind)
    chooser.model.save_pretrained(tmp_path)
    chooser.tokenizer.save_pretrained(tmp_path)
    loaded = choosers.load_chooser(tmp_path)
    assert type(loaded) is KINDS[kind]
    torch.testing.assert_close(score(loaded.eval(), make_examples()), score(chooser, make_examples()))


@each_kind
def test_a_bfloat16_chooser_trains_its_adapter_and_head_in_float32(kind, tmp_path):
    whole = make_chooser(kind)
    whole.model.save_pretrained(tmp_path)
    whole.tokenizer.save_pretrained(tmp_path)
    half = choosers.load_chooser(tmp_path, dtype=torch.bfloat16)
    mtp.adapt(half.model, make_config("tensorpoly-1", half.target_modules, n_tasks=len(NAMES)))
    for module in half.head:
        module.requires_grad_(True)
    assert half.model.dtype == torch.bfloat16
    assert {p.dtype for p in half.parameters() if p.requires_grad} == {torch.float32}
    batch = whole.collate(make_examples())
    loss = half(**batch)["loss"]
    torch.testing.assert_close(loss, whole(**batch)["loss"], rtol=0.02, atol=0.02)
    loss.backward()
    assert all(p.grad.abs().max() > 0 for module in half.head for p in module.parameters() if p.dim() > 1)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@each_kind
def test_dropout_is_what_was_asked_for(kind, dropout, tmp_path):
    chooser = make_chooser(kind)
    chooser.model.save_pretrained(tmp_path)
    chooser.tokenizer.save_pretrained(tmp_path)
    loaded = choosers.load_chooser(tmp_path, dropout=dropout, attention="eager").train()
    found = {module.p for module in loaded.modules() if isinstance(module, torch.nn.Dropout)}
    assert found == ({dropout} if kind != "decoder" else set())  # Llama's is a function
    assert loaded.model.config._attn_implementation == "eager"
    batch = loaded.collate(make_examples())
    with torch.no_grad():
        assert torch.equal(loaded(**batch)["loss"], loaded(**batch)["loss"]) == (dropout == 0)


def test_every_worded_example_can_be_collated():
    chooser = make_chooser("encoder-decoder")
    for i, name in enumerate(prompts.TASKS):
        examples = tasks.examples(name, tasks.load(name, "validation", tasks.FIXTURES), i)
        assert torch.isfinite(chooser(**chooser.collate(examples.to_list()))["loss"])


# Which layers are adapted

MARIAN = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
MARIAN |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "d_model": 32}
DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
DEBERTA |= {"share_att_key": True, "position_buckets": 16, "norm_rel_ebd": "layer_norm", "type_vocab_size": 0}
FAMILIES = {  # configuration, layers, and ends of their names
    "BART": (transformers.BartConfig(**MARIAN), 2 * 6 + 2 * 10, "fc1 fc2 k_proj out_proj q_proj v_proj"),
    "mT5": (
        transformers.MT5Config(d_model=32, d_ff=48, d_kv=8, num_layers=2, num_heads=4),
        2 * 7 + 2 * 11,
        "k o q v wi_0 wi_1 wo",
    ),
    "DistilBERT": (
        transformers.DistilBertConfig(dim=32, hidden_dim=48, n_layers=2, n_heads=4),
        2 * 6,
        "k_lin lin1 lin2 out_lin q_lin v_lin",
    ),
    "RoBERTa": (transformers.RobertaConfig(**SIZES), 2 * 6, "dense key query value"),
    "DeBERTa": (transformers.DebertaV2Config(**SIZES, **DEBERTA), 2 * 4, "dense value_proj"),
    "ModernBERT": (transformers.ModernBertConfig(**SIZES), 2 * 4, "Wi Wo Wqkv"),
    "GPT-2": (transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4), 2 * 4, "c_attn c_fc c_proj"),
    "Mixtral": (
        transformers.MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=2),
        2 * 4,
        "k_proj o_proj q_proj v_proj",
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_adapted_by_default_in_its_blocks_and_mixes_tasks(family, tmp_path):
    config, layers, ends = FAMILIES[family]
    _, tokenizer = load_backbone(64)
    config = copy.deepcopy(config)
    config.vocab_size, config.decoder_start_token_id, config.pad_token_id = len(tokenizer), 0, 0
    config.bos_token_id, config.eos_token_id = 1, 1
    torch.manual_seed(0)
    auto, kind = choosers.loading.kind_of(config)
    auto.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    chooser = choosers.load_chooser(tmp_path).eval()
    assert type(chooser) is kind
    mtp.adapt(chooser.model, make_config("tensorpoly-1", chooser.target_modules, n_tasks=len(NAMES)))
    names = list(mtp.adapted_layers(chooser.model))
    assert len(names) == layers and {name.rpartition(".")[2] for name in names} == {*ends.split()}
    randomize(chooser.model, std=0.1)
    examples = make_examples()
    together = score(chooser, examples)
    for example, row in zip(examples, together, strict=True):
        n = len(example["choices"])
        torch.testing.assert_close(score(chooser, [example])[0, :n], row[:n], rtol=1e-3, atol=1e-4)
    chooser(**chooser.collate(examples))["loss"].backward()
    parameters = mtp.adapter_parameters(chooser.model).items()
    assert not [name for name, p in parameters if p.grad is None or not p.grad.abs().max() > 0]


def test_layers_that_see_no_rows_are_not_adapted_unawares():
    sizes = {"vocab_size": 64, "d_model": 32, "n_layer": 1, "n_head": 4, "d_inner": 48}
    xlnet = transformers.XLNetForMultipleChoice(transformers.XLNetConfig(**sizes))
    with pytest.raises(ValueError, match="XLNetForMultipleChoice has no linear layers.*name target_modules"):
        choosers.linear_layers(xlnet)


def test_experts_and_what_chooses_them_are_left_out():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.router, self.wi = torch.nn.Linear(4, 2), torch.nn.Linear(4, 4)
            self.experts = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.ModuleDict({"wi": self.wi})])

    model = torch.nn.Module()
    model.config = transformers.PretrainedConfig()
    model.layers, model.head = torch.nn.ModuleList([Block()]), torch.nn.Linear(4, 4)
    pattern = choosers.linear_layers(model)
    assert [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)] == ["layers.0.wi"]


def test_other_layers_can_be_named(tmp_path):
    chooser = make_chooser("decoder")
    chooser.model.save_pretrained(tmp_path)
    chooser.tokenizer.save_pretrained(tmp_path)
    make = functools.partial(finetune.Setting, model=str(tmp_path), tasks=["rte"], new_tasks=["copa"])
    made = finetune.make_chooser(make(target_modules=r".*\.[qv]_proj"), seed=0)
    assert len(mtp.adapted_layers(made.model)) == 4 and made.target_modules == r".*\.[qv]_proj"
    nearest = r"target_modules='q_proj' matches no module; .* 'model.layers.\d.self_attn.q_proj'"
    with pytest.raises(ValueError, match=nearest):
        finetune.make_chooser(make(target_modules="q_proj"), seed=0)
    with pytest.raises(ValueError, match="chat=True, but the tokenizer has no chat template"):
        finetune.make_chooser(make(chat=True), seed=0)


def test_what_is_no_such_model_is_refused(tmp_path):
    chooser = make_chooser("encoder-decoder")
    chooser.tokenizer.save_pretrained(tmp_path)
    chooser.model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="chat=True is for decoders alone"):
        choosers.load_chooser(tmp_path, chat=True)
    transformers.T5EncoderModel(chooser.model.config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="T5Config .* neither .* nor"):
        choosers.load_chooser(tmp_path)
    config = transformers.LlamaConfig(vocab_size=8, **SIZES)
    transformers.LlamaModel(config).save_pretrained(tmp_path)  # it would get a random head
    with pytest.raises(ValueError, match="lm_head.weight is not in the checkpoint"):
        choosers.load_chooser(tmp_path)
