"""Causal language models as choosers: against each choice alone, with all logits, no padding and no cache."""

import copy
import logging

import pytest
import tokenizers
import torch
import transformers

import minitensorpoly as mtp
from common import METHODS, enable_checkpointing, make_config, randomize
from lab.real import choosers

WORDS = 160  # of the vocabulary
SMALL = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
MLP = {"intermediate_size": 48}
GROUPED = MLP | {"num_key_value_heads": 2, "head_dim": 8}
GPT2 = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 1}
WINDOW = {"sliding_window": 5}  # of tokens: shorter than the prompts
FAMILIES = {
    "llama": transformers.LlamaConfig(**SMALL, **GROUPED),
    "qwen2": transformers.Qwen2Config(**SMALL, **MLP, num_key_value_heads=2),  # biases
    "gpt2": transformers.GPT2Config(**GPT2),  # learned positions, Conv1D
    "mistral": transformers.MistralConfig(**SMALL, **GROUPED, **WINDOW),
    "gemma2": transformers.Gemma2Config(
        **SMALL, **GROUPED, **WINDOW
    ),  # every second layer; logits are capped
    "gpt_neox": transformers.GPTNeoXConfig(**SMALL, **MLP, rotary_pct=0.25),  # part of a head is turned
    "opt": transformers.OPTConfig(  # positions are counted from 2
        **SMALL | {"pad_token_id": 1}, ffn_dim=48, word_embed_proj_dim=32
    ),
    "bloom": transformers.BloomConfig(vocab_size=WORDS, hidden_size=32, n_layer=2, n_head=4),  # no positions
}
EXAMPLES = [  # of four tasks, with two to five choices
    ("Is it raining? The street is wet, and people carry umbrellas.", ("No", "Yes"), 1),
    ("Who sings?", ("a bird", "the old stone in the garden"), 0),
    ("How does this go on? She opened the door, and", ("the cat ran out.", "then", "it snowed", "a"), 0),
    ("Which is it", ("one", "two", "three", "four or five of them", "six"), 3),
    ("Is it late? It is noon.", ("No", "Yes"), 0),
    ("What barks, and guards the house of the old man at night?", ("a dog", "the moon"), 0),
]
EXAMPLES = [
    {"prompt": prompt, "choices": choices, "label": label, "task_ids": i % 4}
    for i, (prompt, choices, label) in enumerate(EXAMPLES)
]
N_TASKS = 4
each_family = pytest.mark.parametrize("family", FAMILIES)
each_method = pytest.mark.parametrize("method", METHODS)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    """Byte pairs, as in most of these models. It has no token for padding, and begins every text with one."""
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    texts = [" ".join([e["prompt"], *e["choices"], "\nAnswer: [user] [assistant]"]) for e in EXAMPLES]
    options = {"vocab_size": WORDS, "special_tokens": ["<s>", "</s>"], "show_progress": False}
    core.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(**options))
    core.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def make_chooser(family, tokenizer, **options):
    """A tiny random model whose weights are large enough for its scores to differ."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return choosers.DecoderChooser(model, tokenizer, **options)


def adapted_chooser(family, method, tokenizer, **options):
    chooser = make_chooser(family, tokenizer, **options)
    mtp.adapt(chooser.model, make_config(method, chooser.target_modules, n_tasks=N_TASKS))
    randomize(chooser.model)
    return chooser


def log_likelihoods(model, tokenizer, prompt, choice):
    """(tokens,) of one choice, by the model's logits for prompt and choice as one text."""
    ids = tokenizer(prompt + choice)["input_ids"] + [tokenizer.eos_token_id]
    n = len(tokenizer(prompt)["input_ids"])
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    return log_p[range(n - 1, len(ids) - 1), ids[n:]]


def expected(chooser, example):
    """[(tokens,) of each choice], of a plain model that has the adapter of the example's task merged."""
    model = copy.deepcopy(chooser.model)
    if hasattr(model, "adaptation"):
        mtp.merge(model, example["task_ids"])
    prompt = example["prompt"] + "\nAnswer:"
    return [log_likelihoods(model, chooser.tokenizer, prompt, " " + c) for c in example["choices"]]


def score(chooser, examples):
    with torch.no_grad():
        return chooser.scores(**chooser.collate(examples))[0]


def check_scores(chooser, examples):
    for example, found in zip(examples, score(chooser, examples), strict=True):
        means = torch.stack([log_p.mean() for log_p in expected(chooser, example)])
        torch.testing.assert_close(found[: len(means)], means, rtol=1e-4, atol=1e-4)
        assert found[len(means) :].isneginf().all()


@each_family
def test_scores_are_mean_log_likelihoods_after_the_prompt(family, tokenizer):
    check_scores(make_chooser(family, tokenizer), EXAMPLES)


@each_family
def test_mixed_tasks_score_as_each_ones_merged_model(family, tokenizer):
    check_scores(adapted_chooser(family, "tensorpoly-1", tokenizer), EXAMPLES)


@each_method
def test_every_method_scores_as_its_merged_models(method, tokenizer):
    check_scores(adapted_chooser("llama", method, tokenizer), EXAMPLES)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "bloom"])
def test_a_prompt_that_is_read_once_gives_the_same_scores_and_gradients(family, tokenizer, monkeypatch):
    results = []
    for together in (True, False):
        chooser = adapted_chooser(family, "tensorpoly-1", tokenizer)
        monkeypatch.setattr(chooser, "_keeps_prompts", lambda together=together: together)
        output = chooser(**chooser.collate(EXAMPLES))
        output["loss"].backward()
        gradients = [p.grad for p in mtp.adapter_parameters(chooser.model).values()]
        results.append([output["loss"], score(chooser, EXAMPLES), *gradients])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_left_padding_is_hidden_from_every_implementation_of_attention(attention, tokenizer):
    chooser = make_chooser("llama", tokenizer)
    chooser.model.set_attn_implementation(attention)
    examples = EXAMPLES
    lengths = chooser.collate(examples)["attention_mask"].sum(1)
    assert lengths.min() < lengths.max() / 2
    check_scores(chooser, examples)


def seen_by(module):
    """The shapes of what a module reads from now on."""
    shapes = []
    module.register_forward_hook(lambda module, arguments, output: shapes.append(tuple(arguments[0].shape)))
    return shapes


@each_family
def test_blocks_see_a_prompt_once_and_the_head_what_predicts_an_answer(family, tokenizer):
    chooser, examples = make_chooser(family, tokenizer), EXAMPLES
    batch = chooser.collate(examples)
    rows, pairs, longest = len(examples), len(batch["owner"]), batch["answer_ids"].shape[1]
    length = batch["input_ids"].shape[1]
    read = seen_by(chooser.model.get_input_embeddings())
    written = seen_by(chooser.model.get_output_embeddings())
    score(chooser, examples)
    if family == "bloom":  # it cannot be told where a token stands: a prompt for each choice
        assert read == [(pairs, length + longest)]
        assert [shape[:2] for shape in written] == [(pairs, longest)]
    else:
        assert read == [(rows, length), (pairs, longest - 1)]
        assert [shape[:2] for shape in written] == [(rows, 1), (pairs, longest - 1)]


def test_loss_has_t_fews_three_parts(tokenizer):
    chooser, examples, losses = adapted_chooser("llama", "poly", tokenizer), EXAMPLES, []
    for example in examples:
        log_p = expected(chooser, example)
        scores = torch.stack([x.mean() for x in log_p])
        own = example["label"]
        wrong = torch.cat([-(1 - x.exp()).log() for i, x in enumerate(log_p) if i != own])
        losses.append(-scores[own] + wrong.mean() - scores.log_softmax(0)[own])
    with torch.no_grad():
        found = chooser(**chooser.collate(examples))["loss"]
    torch.testing.assert_close(found, sum(losses) / len(losses), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_checkpointing_of_gradients_changes_nothing(family, tokenizer):
    gradients = []
    for checkpointing in (False, True):
        chooser = adapted_chooser(family, "tensorpoly-2", tokenizer).train()
        for module in chooser.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            enable_checkpointing(chooser.model, use_reentrant=False)
        chooser(**chooser.collate(EXAMPLES))["loss"].backward()
        gradients.append([p.grad for p in mtp.adapter_parameters(chooser.model).values()])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_an_adapted_head_learns_as_well(tokenizer):
    chooser = make_chooser("llama", tokenizer)
    mtp.adapt(chooser.model, make_config("poly", r"lm_head|.*\.q_proj", n_tasks=N_TASKS))
    randomize(chooser.model)
    check_scores(chooser, EXAMPLES)


def _prompt(chooser, examples):
    batch = chooser.collate(examples)
    return chooser.tokenizer.decode(batch["input_ids"][0][batch["attention_mask"][0] == 1])


def test_a_chat_template_is_taken_where_there_is_one(tokenizer):
    example, chatty = EXAMPLES[1], copy.deepcopy(tokenizer)
    chatty.chat_template = TEMPLATE
    plain, chat = make_chooser("llama", tokenizer), make_chooser("llama", chatty)
    assert not plain.chat and chat.chat and not make_chooser("llama", chatty, chat=False).chat
    framed = f"[user] {example['prompt']}\n[assistant]\n"
    assert _prompt(chat, [example]) == "<s>" + framed  # one <s>, not two
    assert _prompt(plain, [example]) == f"<s>{example['prompt']}\nAnswer:"
    for choice, found in zip(example["choices"], score(chat, [example])[0], strict=False):
        log_p = log_likelihoods(chat.model, tokenizer, framed, choice)
        torch.testing.assert_close(log_p.mean(), found, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="chat=True, but the tokenizer has no chat template"):
        make_chooser("llama", tokenizer, chat=True)


def _all_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("chat", [False, True])
def test_a_long_prompt_loses_its_middle_and_an_answer_nothing(chat, tokenizer, caplog):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TEMPLATE if chat else None
    long = {"prompt": "Is it so? " + "the cat " * 50 + "Yes or no?", "choices": ["Yes", "No " * 30]}
    long |= {"label": 0, "task_ids": 0}
    with caplog.at_level(logging.WARNING):
        chooser = make_chooser("llama", tokenizer, max_length=16)
        text, batch = _prompt(chooser, [long, long]), chooser.collate([long])
    n = len(_all_of(tokenizer, long["prompt"]))
    messages = [record.getMessage() for record in caplog.records]  # it is said once
    assert messages == [f"a prompt has {n} tokens: it loses its middle, by max_length=16"]
    before, after = ("<s>[user] ", "\n[assistant]\n") if chat else ("<s>", "\nAnswer:")
    assert text.startswith(before + "Is it") and text.endswith("no?" + after)
    kept = text.removeprefix(before).removesuffix(after)
    assert len(_all_of(tokenizer, kept)) in (16, 17)  # where both ends meet, letters may join otherwise
    answer = batch["answer_ids"][1]
    assert tokenizer.decode(answer[answer != -100]).strip() == ("No " * 30).strip() + " </s>"


def test_tokens_that_join_prompt_and_answer_are_the_answers():
    ids = {"Is": 0, "?": 1, "?Yes": 2, "No": 3, "</s>": 4}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="?"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    joining = transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    joining.chat_template = "Is {{ messages[0]['content'] }}"
    chooser = make_chooser("llama", joining)
    batch = chooser.collate([{"prompt": "?", "choices": ["Yes", " No"], "label": 0, "task_ids": 0}])
    assert batch["input_ids"].tolist() == [[0]]
    assert batch["answer_ids"].tolist() == [[2, 4, -100], [1, 3, 4]]


# The second way to answer


def test_it_writes_what_each_prompt_alone_would_get(tokenizer):
    chooser, examples = adapted_chooser("llama", "tensorpoly-1", tokenizer), EXAMPLES
    for example, text in zip(examples, chooser.generate(examples, max_new_tokens=6), strict=True):
        model = mtp.merge(copy.deepcopy(chooser.model), example["task_ids"])
        ids = tokenizer(example["prompt"] + "\nAnswer:")["input_ids"]
        n = len(ids)
        while len(ids) < n + 6 and ids[-1] != tokenizer.eos_token_id:
            with torch.no_grad():
                ids.append(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
        assert text == tokenizer.decode(ids[n:], skip_special_tokens=True).strip()


def test_a_text_names_the_choice_that_it_begins_with():
    choices = ["a person", "a person or a group", "No", "$5"]
    found = [
        choosers.chosen(text, choices) for text in ("A person.", "a person or a group?", "no, a dog", "5", "")
    ]
    assert found == [0, 1, 2, 3, None]
    assert choosers.chosen("nobody", choices) is None and choosers.chosen("anything", ["?", "!"]) is None
