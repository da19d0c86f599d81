"""What bad input gets: an exception of the right type, a message that helps, and an unharmed model."""

import json
from contextlib import contextmanager

import pytest
import safetensors.torch
import torch
from torch import nn

import minitensorpoly as mtp
from common import METHODS, ROUTED, adapted_t5, make_batch, make_config, make_t5
from minitensorpoly.layer import AdaptedLinear


def config(method="poly", target_modules=".*q", **options):
    return mtp.AdapterConfig(method, target_modules, **options)


@contextmanager
def left_as_it_was(model):
    """Checks that a failed call changes no class, module, parameter, flag, attribute or output."""

    def state():
        batch = make_batch()
        if not hasattr(model, "adaptation"):
            del batch["task_ids"]
        with torch.no_grad():
            output = model(**batch).logits
        flags = {n: p.requires_grad for n, p in model.named_parameters(remove_duplicate=False)}
        modules = [(name, type(module)) for name, module in model.named_modules()]
        attributes = [*vars(model), {**vars(model.adaptation)} if hasattr(model, "adaptation") else None]
        return type(model), modules, flags, attributes, list(model.state_dict()), output

    *before, output = state()
    yield
    *after, output_after = state()
    assert after == before
    assert torch.equal(output_after, output)


# The last option is the bad one: its name and its value are in the message.
BAD_CONFIGS = [
    (dict(method="loar"), ValueError),
    (dict(rank=0), ValueError),
    (dict(rank=1.5), TypeError),
    (dict(rank=None), TypeError),
    (dict(n_tasks=-1), ValueError),
    (dict(n_tasks="5"), TypeError),
    (dict(n_skills=0), ValueError),
    (dict(method="tlora", order=0), ValueError),
    (dict(method="tlora", order=True), TypeError),
    (dict(method="tlora", tensor_rank=0), ValueError),
    (dict(method="tlora", tensor_rank=2.0), TypeError),
    (dict(method="mhr", n_heads=0), ValueError),
    (dict(method="tlora", normalize="yes"), TypeError),
    (dict(alpha=-1.0), ValueError),
    (dict(alpha=float("inf")), ValueError),
    (dict(alpha="16"), TypeError),
    (dict(dropout=1.0), ValueError),
    (dict(dropout=-0.1), ValueError),
    (dict(dropout=float("nan")), ValueError),
    (dict(dropout=None), TypeError),
    (dict(target_modules=["q"]), TypeError),
    (dict(target_modules="(q"), ValueError),
]
FOREIGN = {"n_skills": 2, "n_heads": 2, "order": 3, "tensor_rank": 2, "normalize": True}


@pytest.mark.parametrize("options, error", BAD_CONFIGS, ids=str)
def test_bad_configuration_is_refused_by_name_and_value(options, error):
    name, value = list(options.items())[-1]
    with pytest.raises(error) as raised:
        config(**options)
    assert name in str(raised.value) and repr(value) in str(raised.value)


@pytest.mark.parametrize("option", FOREIGN)
@pytest.mark.parametrize("method", METHODS)
def test_an_option_of_other_methods_is_refused_and_they_are_named(method, option):
    owners = [name for name in METHODS if option in mtp.METHODS[name].options]
    if method in owners:
        assert getattr(config(method, **{option: FOREIGN[option]}), option) == FOREIGN[option]
        return
    with pytest.raises(ValueError) as raised:
        config(method, **{option: FOREIGN[option]})
    assert all(word in str(raised.value) for word in (method, f"{option}={FOREIGN[option]!r}", *owners))


def test_an_unknown_method_is_told_the_known_ones():
    with pytest.raises(ValueError) as raised:
        config("loar")
    assert all(method in str(raised.value) for method in METHODS)


BAD_TARGETS = {
    "part of a name": (dict(target_modules="q"), r"target_modules='q' matches no module.*coder.*\.q'"),
    "no match": (dict(target_modules=r".*(query|value)"), r"matches no module.*coder.*\.q'"),
    "no linear layer": (dict(target_modules=r".*SelfAttention"), r"SelfAttention', a T5Attention"),
    "heads": (dict(method="mhr", n_heads=5), r"layer 'encoder.*q': n_heads=5 .*32"),
}


@pytest.mark.parametrize("name", BAD_TARGETS)
def test_bad_target_leaves_the_model_as_it_was(name):
    options, message = BAD_TARGETS[name]
    model = make_t5()
    model.lm_head.requires_grad_(True)
    with left_as_it_was(model), pytest.raises(ValueError, match=message):
        mtp.adapt(model, config(**options))


def test_heads_that_do_not_divide_a_later_layer_leave_the_model_as_it_was():
    model = make_t5(d_ff=50)  # 4 heads divide the 32 features of the layers before it
    message = "layer 'encoder.block.0.*wi': n_heads=4 .*50"
    with left_as_it_was(model), pytest.raises(ValueError, match=message):
        mtp.adapt(model, make_config("mhr", n_heads=4))


def test_model_whose_call_has_task_ids_of_its_own_is_left_as_it_was():
    class Model(nn.Sequential):
        def forward(self, x, task_ids=None):
            return super().forward(x)

    model = Model(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="task_ids"):
        mtp.adapt(model, config(target_modules="0"))
    assert type(model) is Model and type(model[0]) is nn.Linear and not hasattr(model, "adaptation")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_pattern_that_matches_nothing_is_told_one_layer_of_each_ending():
    with pytest.raises(ValueError) as error:
        mtp.adapt(make_t5(), config(target_modules=".*(query|value)"))
    named = str(error.value).split("'")[3::2]
    assert sorted(name.rpartition(".")[2] for name in named) == ["k", "lm_head", "o", "q", "v", "wi", "wo"]
    assert set(named) <= {name for name, _ in make_t5().named_modules()}


def test_a_method_in_place_of_a_configuration():
    model = make_t5()
    with (
        left_as_it_was(model),
        pytest.raises(TypeError, match="config='poly' must be an AdapterConfig, not str"),
    ):
        mtp.adapt(model, "poly")


def test_adapting_twice():
    model = adapted_t5("poly")
    with (
        left_as_it_was(model),
        pytest.raises(ValueError, match=r"adapted already: merge\(\) a task"),
    ):
        mtp.adapt(model, config())


def test_adapting_a_model_with_an_adapted_part():
    model = make_t5()
    mtp.adapt(model.encoder, config(n_tasks=5))
    with pytest.raises(ValueError, match="adapted already"):
        mtp.adapt(model, config())
    assert not hasattr(model, "adaptation")


@pytest.mark.parametrize(
    "model, name",
    [
        (nn.MultiheadAttention(8, 2), "out_proj"),
        (nn.TransformerEncoderLayer(8, 2), "linear1"),
        (nn.TransformerEncoderLayer(8, 2), "self_attn.out_proj"),
    ],
)
def test_layer_whose_weight_is_used_without_a_call(model, name):
    model, message = nn.Sequential(model), f"layer '0.{name}': .* uses its weight without calling it"
    with pytest.raises(ValueError, match=message):
        mtp.adapt(model, config(target_modules=f".*{name}"))
    assert type(model) is nn.Sequential and type(model.get_submodule(f"0.{name}")) is not AdaptedLinear


BAD_IDS = {
    "missing": (None, ValueError, "task_ids is missing"),
    "too few": ([0, 1, 2], ValueError, r"task_ids has 3 entries, .*\(4, .*give one id per row"),
    "too many": ([0, 1] * 4, ValueError, r"task_ids has 8 entries, .*\(4, "),
    "a matrix": ([[0], [1], [2], [3]], ValueError, r"task_ids has shape \(4, 1\)"),
    "fractions": ([0.0, 1.0, 2.0, 3.0], TypeError, "dtype torch.float32; task ids are integers, 0 to 4"),
    "booleans": ([True] * 4, TypeError, "dtype torch.bool"),
    "negative": ([0, -1, 2, 3], ValueError, "task_ids contains -1; with n_tasks=5 the ids are 0 to 4"),
    "too large": ([0, 1, 5, 3], ValueError, "task_ids contains 5; with n_tasks=5"),
}


@pytest.mark.parametrize("method", ROUTED)
@pytest.mark.parametrize("call", ["forward", "generate"])
@pytest.mark.parametrize("name", BAD_IDS)
def test_bad_task_ids(name, call, method):
    ids, error, message = BAD_IDS[name]
    model, batch = adapted_t5(method), make_batch()
    batch["task_ids"] = None if ids is None else torch.tensor(ids)
    if call == "generate":
        del batch["labels"]
    with left_as_it_was(model), pytest.raises(error, match=message.format(method=method)):
        (model if call == "forward" else model.generate)(**batch)
    assert model.adaptation.call == mtp.routing.Call()


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(ROUTED)))
@pytest.mark.parametrize("name", sorted(set(BAD_IDS) - {"missing"}))
def test_methods_without_routing_check_ids_that_they_are_given(name, method):
    ids, error, message = BAD_IDS[name]
    model, batch = adapted_t5(method), make_batch()
    batch["task_ids"] = torch.tensor(ids)
    with left_as_it_was(model), pytest.raises(error, match=message):
        model(**batch)


@pytest.mark.parametrize("method", ROUTED)
def test_a_submodule_called_on_its_own_misses_the_ids(method):
    model, batch = adapted_t5(method), make_batch()
    model(**batch).loss.backward()
    with pytest.raises(ValueError, match="task_ids is missing"):
        model.encoder(input_ids=batch["input_ids"])


BAD_TASKS = {
    "missing": (None, ValueError, "task is missing: {method}"),
    "too large": (5, ValueError, "task=5 must be"),
    "negative": (-1, ValueError, "task=-1 must be"),
    "text": ("3", TypeError, "task='3' must be"),
}


@pytest.mark.parametrize("method", ROUTED)
@pytest.mark.parametrize("name", BAD_TASKS)
def test_bad_task_of_merge_and_export(name, method, tmp_path):
    task, error, message = BAD_TASKS[name]
    model = adapted_t5(method)
    for function in (mtp.merge, lambda model, task: mtp.export_lora(model, task, folder=tmp_path)):
        with left_as_it_was(model), pytest.raises(error, match=message.format(method=method)):
            function(model, task)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(ROUTED)))
@pytest.mark.parametrize("name", sorted(set(BAD_TASKS) - {"missing"}))
def test_methods_without_routing_check_a_task_that_they_are_given(name, method):
    task, error, message = BAD_TASKS[name]
    model = adapted_t5(method)
    with left_as_it_was(model), pytest.raises(error, match=message):
        mtp.merge(model, task)


@pytest.mark.parametrize("n, error", [(0, ValueError), (-2, ValueError), (1.0, TypeError), (True, TypeError)])
@pytest.mark.parametrize("method", METHODS)
def test_bad_number_of_added_tasks(method, n, error):
    model = adapted_t5(method)
    with left_as_it_was(model), pytest.raises(error, match=f"n={n} must be"):
        mtp.add_tasks(model, n)
    assert model.adaptation.config.n_tasks == 5


@pytest.mark.parametrize("method", METHODS)
def test_unknown_part_to_train(method):
    model = adapted_t5(method)
    with (
        left_as_it_was(model),
        pytest.raises(ValueError, match="part='router' must be 'routing' or 'all'"),
    ):
        mtp.train_only(model, "router")
    if method not in ROUTED:
        with left_as_it_was(model), pytest.raises(ValueError, match=f"{method} has no routing; train 'all'"):
            mtp.train_only(model, "routing")


NEED_ADAPTER = {
    "adapted_layers": lambda model, folder: mtp.adapted_layers(model),
    "adapter_parameters": lambda model, folder: mtp.adapter_parameters(model),
    "save": lambda model, folder: mtp.save(model, folder),
    "export_lora": lambda model, folder: mtp.export_lora(model, 0, folder=folder),
    "merge": lambda model, folder: mtp.merge(model, 0),
    "add_tasks": lambda model, folder: mtp.add_tasks(model, 1),
    "train_only": lambda model, folder: mtp.train_only(model, "all"),
    "parameter_groups": lambda model, folder: mtp.parameter_groups(model, 0.1),
    "routing_weights": lambda model, folder: mtp.routing_weights(model),
}


@pytest.mark.parametrize("name", NEED_ADAPTER)
def test_model_that_is_not_adapted(name, tmp_path):
    model, message = make_t5(), "this T5ForConditionalGeneration is not adapted"
    with left_as_it_was(model), pytest.raises(ValueError, match=message):
        NEED_ADAPTER[name](model, tmp_path)
    assert not list(tmp_path.iterdir())


def described(description):
    """Damage: a safetensors file with another description."""
    return lambda file: safetensors.torch.save_file(
        {"a": torch.ones(1)}, file, {"description": json.dumps(description)}
    )


BAD_FILES = {
    "truncated": lambda f: f.write_bytes(f.read_bytes()[:1000]),
    "empty": lambda f: f.write_bytes(b""),
    "foreign": lambda f: safetensors.torch.save_file({"a": torch.ones(1)}, f),
    "cut in the header": lambda f: f.write_bytes(f.read_bytes()[:20]),
    "pickled": lambda f: torch.save({"a": torch.ones(1)}, f),
    "other description": described([1, 2]),
    "version that is no number": described({"format_version": "x", "config": {}}),
    "newer": described({"format_version": 99, "config": {}}),
    "unknown option": described({"format_version": 1, "config": {"new": 1}}),
    "newer and unknown": described({"format_version": 2, "config": {"new": 1}}),
}
BECAUSE = {"newer": "99", "newer and unknown": "format version is 2", "unknown option": "'new'"}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_adapter_file(name, tmp_path):
    mtp.save(adapted_t5("poly"), tmp_path)
    BAD_FILES[name](tmp_path / "adapter.safetensors")
    model = make_t5().requires_grad_(True)
    message = f"adapter.safetensors is not an adapter for this model: .*{BECAUSE.get(name, '')}"
    with left_as_it_was(model), pytest.raises(ValueError, match=message):
        mtp.load(model, tmp_path)


@pytest.mark.parametrize("folder", [".", "missing"])
def test_no_adapter_in_the_folder(folder, tmp_path):
    model, message = make_t5(), "adapter.safetensors"
    with left_as_it_was(model), pytest.raises(FileNotFoundError, match=message):
        mtp.load(model, tmp_path / folder)


@pytest.mark.parametrize("method", METHODS)
def test_loading_into_a_model_of_other_shapes_leaves_it_as_it_was(method, tmp_path):
    mtp.save(adapted_t5(method), tmp_path)
    for changes in ({"d_ff": 96}, {"num_layers": 1}):
        model = make_t5(**changes)
        model.lm_head.requires_grad_(True)
        message = "does not fit the model: the shape of .*(encoder|decoder).* is .* in the file, and .* in"
        with left_as_it_was(model), pytest.raises(ValueError, match=message):
            mtp.load(model, tmp_path)


def test_loading_into_an_adapted_model(tmp_path):
    model = adapted_t5("poly")
    mtp.save(model, tmp_path)
    with left_as_it_was(model), pytest.raises(ValueError, match="adapted already"):
        mtp.load(model, tmp_path)
