"""The library on other models: real classes of transformers, in tiny random configurations."""

import copy

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import minitensorpoly as mtp
from common import METHODS, make_config, randomize

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
MODELS = {
    "T5": (
        lambda: T5ForConditionalGeneration(
            T5Config(**T5, feed_forward_proj="gated-gelu", decoder_start_token_id=0)
        ),
        r".*\.(q|k|v|o|wi_0|wi_1|wo)",
    ),
    "BERT": (
        lambda: BertForSequenceClassification(BertConfig(**SMALL)),
        r"bert\.encoder.*\.(query|key|value|dense)",
    ),
    "GPT-2": (
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, eos_token_id=1)),
        r".*\.(c_attn|c_proj|c_fc)",
    ),
    "Llama": (
        lambda: LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2, eos_token_id=1)),
        r".*\.([qkvo]_proj|(gate|up|down)_proj)",
    ),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_model_starts_at_its_base_mixes_tasks_trains_and_generates(name, method):
    make, pattern = MODELS[name]
    torch.manual_seed(0)
    model = make().requires_grad_(False).eval()
    labels = torch.randint(2, 64, (3, 7))
    batch = {
        "input_ids": torch.randint(2, 64, (3, 7)),
        "labels": labels if name != "BERT" else torch.tensor([0, 1, 1]),
    }
    ids = torch.tensor([4, 0, 2])
    base = model(**batch).logits
    mtp.adapt(model, make_config(method, pattern))
    assert torch.equal(model(**batch, task_ids=ids).logits, base)

    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.Adam(mtp.parameter_groups(model, lr=0.02))
    losses = []
    for _ in range(6):
        loss = model(**batch, task_ids=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)

    randomize(model)
    logits = model(**batch, task_ids=ids).logits
    merged = [mtp.merge(copy.deepcopy(model), task=task) for task in ids.tolist()]
    for row in range(3):
        one = {key: value[row : row + 1] for key, value in batch.items()}
        torch.testing.assert_close(logits[row], merged[row](**one).logits[0], rtol=1e-3, atol=1e-3)
    if model.can_generate():
        options = {"num_beams": 2, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
        text = model.generate(input_ids=batch["input_ids"], task_ids=ids, **options)
        for row in range(3):
            assert torch.equal(
                text[row], merged[row].generate(input_ids=batch["input_ids"][row, None], **options)[0]
            )


T0_3B = {"d_model": 2048, "d_ff": 5120, "d_kv": 64, "num_heads": 32, "num_layers": 24, "vocab_size": 32128}


@pytest.mark.parametrize(
    "method, options, factors, routing",
    [
        ("lora", {"rank": 1}, 2.21, 0),
        ("lora", {"rank": 16}, 35.4, 0),
        ("poly", {"rank": 1, "n_skills": 8}, 17.7, 3456),
        ("mhr", {"rank": 1, "n_skills": 8, "n_heads": 8}, 17.7, 8 * 3456),
        ("tlora", {"rank": 16, "tensor_rank": 1, "order": 2}, 1.39, 0),
        ("tensorpoly-1", {"rank": 16, "tensor_rank": 8, "order": 2}, 11.1, 3456),
        ("tensorpoly-1", {"rank": 16, "tensor_rank": 8, "order": 4}, 3.24, 3456),
        ("tensorpoly-2", {"rank": 16, "tensor_rank": 8, "order": 2}, 11.1, 6912),
        ("tensorpoly-2", {"rank": 16, "tensor_rank": 8, "order": 4}, 3.24, 13824),
    ],
)
def test_parameters_of_an_adapted_t0_3b(method, options, factors, routing):
    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(**T0_3B, feed_forward_proj="gated-gelu"))
    mtp.adapt(model, mtp.AdapterConfig(method, MODELS["T5"][1], n_tasks=1, **options))
    assert len(mtp.adapted_layers(model)) == 432
    sizes = {name: p.numel() for name, p in mtp.adapter_parameters(model).items()}
    logits = sum(size for name, size in sizes.items() if name.endswith("router.logits"))
    assert logits == routing
    assert (sum(sizes.values()) - logits) / 1e6 == pytest.approx(factors, rel=0.005)
