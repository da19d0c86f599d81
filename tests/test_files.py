"""Saving, loading, adding tasks, exporting, merging: nothing is lost and nothing is left behind."""

import copy
import json
import os

import peft
import pytest
import safetensors.torch
import torch
from transformers import GPT2Config, GPT2LMHeadModel, T5ForConditionalGeneration

import minitensorpoly as mtp
from common import METHODS, ROUTED, adapted_t5, make_batch, make_config, make_t5, randomize


def outputs(model, task=None):
    batch = make_batch()
    if task is not None:
        batch["task_ids"] = torch.full((4,), task)
    if not hasattr(model, "adaptation"):
        del batch["task_ids"]
    with torch.no_grad():
        return model(**batch).logits


def trainable_names(model):
    """Tied parameters under each of their names."""
    return {n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}


def make_gpt2():
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=1)).requires_grad_(False).eval()


@pytest.mark.parametrize("method", METHODS)
def test_loaded_adapter_equals_the_saved_one_bit_for_bit(method, tmp_path):
    model = adapted_t5(method)
    mtp.add_tasks(model, 2)
    mtp.save(model, tmp_path)
    loaded = mtp.load(make_t5(), tmp_path)
    assert torch.equal(outputs(loaded, 6), outputs(model, 6))
    assert torch.equal(outputs(loaded), outputs(model))
    assert loaded.adaptation.config == model.adaptation.config
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter.json", "adapter.safetensors"]
    assert json.loads((tmp_path / "adapter.json").read_text())["config"]["method"] == method


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_adapter_of_a_base_of_another_dtype_loads(method, dtype, tmp_path):
    model = randomize(mtp.adapt(make_t5().to(dtype), make_config(method)))
    mtp.save(model, tmp_path)
    loaded = mtp.load(make_t5().to(dtype), tmp_path)
    assert torch.equal(outputs(loaded), outputs(model))
    kept = torch.float64 if dtype == torch.float64 else torch.float32  # no step is lost in bfloat16
    saved = safetensors.torch.load_file(tmp_path / "adapter.safetensors")
    for name, parameter in mtp.adapter_parameters(loaded).items():
        assert parameter.dtype == saved[name].dtype == kept


def test_saved_options_come_back(tmp_path):
    options = {"order": 3, "normalize": True, "alpha": 2.0, "dropout": 0.1}
    model = adapted_t5("tensorpoly-1", **options)
    mtp.save(model, tmp_path)
    loaded = mtp.load(make_t5(), tmp_path)
    assert loaded.adaptation.config == model.adaptation.config
    assert torch.equal(outputs(loaded), outputs(model))


def test_first_save_that_is_interrupted_leaves_no_adapter(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda source, target: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mtp.save(adapted_t5("poly"), tmp_path)
    with pytest.raises(FileNotFoundError, match="adapter.safetensors"):
        mtp.load(make_t5(), tmp_path)
    mtp.save(adapted_t5("poly"), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter.json", "adapter.safetensors"]


def test_interrupted_save_leaves_the_old_adapter_readable(tmp_path, monkeypatch):
    old, new = adapted_t5("poly"), randomize(adapted_t5("poly"), seed=2)
    mtp.save(old, tmp_path)

    def half_a_file(tensors, file, metadata):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", half_a_file)
        with pytest.raises(KeyboardInterrupt):
            mtp.save(new, tmp_path)
    assert torch.equal(outputs(mtp.load(make_t5(), tmp_path)), outputs(old))

    replace = os.replace
    for calls, readable in ((0, old), (1, new)):  # interrupted before the first, and between the two
        done = []

        def interrupted(source, target, calls=calls, done=done):
            if len(done) == calls:
                raise KeyboardInterrupt
            done.append(replace(source, target))

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", interrupted)
            with pytest.raises(KeyboardInterrupt):
                mtp.save(new, tmp_path)
        assert torch.equal(outputs(mtp.load(make_t5(), tmp_path)), outputs(readable))
    mtp.save(new, tmp_path)
    assert torch.equal(outputs(mtp.load(make_t5(), tmp_path)), outputs(new))


@pytest.mark.parametrize("method", METHODS)
def test_added_tasks_start_at_the_mean_and_keep_the_known_ones(method):
    model = adapted_t5(method)
    before = outputs(model)
    assert mtp.add_tasks(model, 2) == range(5, 7)
    assert torch.equal(outputs(model), before)
    for layer in mtp.adapted_layers(model).values():
        if layer.router is not None:
            logits = layer.router.logits
            torch.testing.assert_close(logits[5:], logits[:5].mean(0, keepdim=True).expand(2, -1, -1))
            assert logits.requires_grad
    assert outputs(model, 6).isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_merged_model_equals_the_task_and_has_no_trace_of_an_adapter(method):
    base = make_t5()
    base.lm_head.weight.requires_grad_(True)
    model = randomize(mtp.adapt(copy.deepcopy(base), make_config(method)))
    expected = outputs(model, 3)
    assert not torch.allclose(expected, outputs(base), atol=0.01)
    merged = mtp.merge(model, task=3)
    assert merged is model
    torch.testing.assert_close(outputs(merged), expected, rtol=1e-3, atol=1e-4)
    assert type(merged) is T5ForConditionalGeneration
    assert [(n, type(m)) for n, m in merged.named_modules()] == [
        (n, type(m)) for n, m in base.named_modules()
    ]
    assert merged.state_dict().keys() == base.state_dict().keys()
    assert vars(merged).keys() == vars(base).keys()
    assert trainable_names(merged) == trainable_names(base) != set()
    mtp.adapt(merged, make_config(method))  # and it can be adapted again


@pytest.mark.parametrize("method", METHODS)
def test_merging_in_float64_is_exact(method):
    model = randomize(mtp.adapt(make_t5().double(), make_config(method)))
    expected = outputs(model, 1)
    torch.testing.assert_close(outputs(mtp.merge(model, task=1)), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
def test_merging_a_tied_weight_leaves_the_embedding_alone(trainable, method):
    base = make_t5().requires_grad_(trainable)
    names = trainable_names(base)
    model = randomize(mtp.adapt(base, make_config(method, target_modules="lm_head")))
    assert trainable_names(model) == set(mtp.adapter_parameters(model))
    embedding = model.shared.weight.clone()
    assert model.lm_head.weight is model.shared.weight
    expected = outputs(model, 2)
    mtp.merge(model, task=2)
    assert torch.equal(model.shared.weight, embedding)
    assert model.encoder.embed_tokens.weight is model.decoder.embed_tokens.weight is model.shared.weight
    assert trainable_names(model) == names
    torch.testing.assert_close(outputs(model), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ROUTED)
def test_merged_and_exported_task_of_shared_routing(method, tmp_path):
    model = adapted_t5(method, dropout=0.5)
    layers = list(mtp.adapted_layers(model).values())
    for layer in layers:
        layer.router = layers[0].router
    mtp.add_tasks(model, 1)
    assert layers[-1].router.logits.shape[0] == 6  # once
    expected = outputs(model, 3)
    mtp.export_lora(model.train(), task=3, folder=tmp_path)
    loaded = peft.PeftModel.from_pretrained(make_t5(), tmp_path).eval()
    torch.testing.assert_close(outputs(loaded), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(outputs(mtp.merge(model, task=3).eval()), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_exported_task_loads_in_peft(method, tmp_path):
    model = adapted_t5(method, alpha=2.0)
    mtp.export_lora(model, task=3, folder=tmp_path)
    loaded = peft.PeftModel.from_pretrained(make_t5(), tmp_path).eval()
    torch.testing.assert_close(outputs(loaded), outputs(model, 3), rtol=1e-3, atol=1e-4)
    if method in ROUTED:
        assert not torch.allclose(outputs(model, 2), outputs(model, 3), atol=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_exported_and_merged_task_of_conv1d_layers(method, tmp_path):
    config = make_config(method, target_modules=r".*\.(c_attn|c_proj|c_fc)")
    model = randomize(mtp.adapt(make_gpt2(), config))
    ids = torch.randint(64, (2, 8))
    with torch.no_grad():
        expected = model(input_ids=ids, task_ids=torch.tensor([4, 4])).logits
        mtp.export_lora(model, task=4, folder=tmp_path)
        loaded = peft.PeftModel.from_pretrained(make_gpt2(), tmp_path).eval()
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=1e-3, atol=1e-4)
        merged = mtp.merge(model, task=4)
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-3, atol=1e-4)
    base = make_gpt2()
    assert [(n, type(m)) for n, m in merged.named_modules()] == [
        (n, type(m)) for n, m in base.named_modules()
    ]
    shapes = [{n: t.shape for n, t in m.state_dict().items()} for m in (merged, base)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("method", ["lora", "tlora"])
def test_methods_without_routing_need_no_task(method, tmp_path):
    model = adapted_t5(method)
    mtp.export_lora(model, None, tmp_path)
    expected = outputs(model)
    torch.testing.assert_close(outputs(mtp.merge(model)), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_state_dict_and_deepcopy_give_independent_equals(method):
    model = adapted_t5(method)
    other = mtp.adapt(make_t5(), make_config(method))
    other.load_state_dict(model.state_dict())
    twin = copy.deepcopy(model)
    expected = outputs(model)
    assert torch.equal(outputs(other), expected) and torch.equal(outputs(twin), expected)
    randomize(twin, seed=9)
    mtp.add_tasks(twin, 1)
    assert torch.equal(outputs(model), expected) and not torch.equal(outputs(twin), expected)
    assert twin.adaptation is not model.adaptation
