"""What bad input gets: an exception of the right type, a message that helps, and an unharmed model."""

import copy
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
        attributes = [*vars(model), copy.copy(getattr(model, "adaptation", None))]
        return type(model), modules, flags, attributes, list(model.state_dict()), output

    *before, output = state()
    yield
    *after, output_after = state()
    assert after == before
    assert torch.equal(output_after, output)


BAD_CONFIGS = {
    "unknown method": (
        dict(method="loar"),
        ValueError,
        "unknown method 'loar'; the methods are lora, tlora, poly",
    ),
    "rank of zero": (dict(rank=0), ValueError, "rank=0 must be at least 1"),
    "negative n_tasks": (dict(n_tasks=-1), ValueError, "n_tasks=-1 must be at least 1"),
    "n_skills of zero": (dict(n_skills=0), ValueError, "n_skills=0 must be at least 1"),
    "order of zero": (dict(method="tlora", order=0), ValueError, "order=0 must be at least 1"),
    "tensor_rank of zero": (dict(method="tlora", tensor_rank=0), ValueError, "tensor_rank=0 must be"),
    "n_heads of zero": (dict(method="mhr", n_heads=0), ValueError, "n_heads=0 must be at least 1"),
    "fractional rank": (dict(rank=1.5), TypeError, "rank=1.5 must be an integer, not float"),
    "boolean order": (dict(method="tlora", order=True), TypeError, "order=True must be an integer"),
    "order of Poly": (
        dict(order=2),
        ValueError,
        "order=2: poly has no order; only tlora, tensorpoly-1, tensorpoly-2",
    ),
    "skills of LoRA": (
        dict(method="lora", n_skills=2),
        ValueError,
        "lora has no n_skills; only poly, mhr have",
    ),
    "normalised Poly": (dict(normalize=False), ValueError, "poly has no normalize"),
    "shared routing of LoRA": (
        dict(method="lora", share_routing="(.*)"),
        ValueError,
        "lora has no share_routing",
    ),
    "text for normalize": (
        dict(method="tlora", normalize="yes"),
        TypeError,
        "normalize='yes' must be True or False",
    ),
    "negative alpha": (dict(alpha=-1.0), ValueError, "alpha=-1.0 must be above 0"),
    "infinite alpha": (dict(alpha=float("inf")), ValueError, "alpha=inf must be"),
    "text for alpha": (dict(alpha="16"), TypeError, "alpha='16' must be a number, not str"),
    "dropout of one": (dict(dropout=1.0), ValueError, "dropout=1.0 must be at least 0 and below 1"),
    "no dropout": (dict(dropout=None), TypeError, "dropout=None must be a number"),
    "noise of zero": (dict(noise_temperature=0), ValueError, "noise_temperature=0 must be above 0"),
    "list of targets": (
        dict(target_modules=["q"]),
        TypeError,
        r"target_modules=\['q'\] must be a regular expression",
    ),
    "broken expression": (
        dict(target_modules="(q"),
        ValueError,
        r"target_modules='\(q' is not a regular expression",
    ),
    "no count": (dict(rank=None), TypeError, "rank=None must be an integer, not NoneType"),
    "text for a count": (dict(n_tasks="5"), TypeError, "n_tasks='5' must be an integer, not str"),
    "fractional tensor_rank": (dict(method="tlora", tensor_rank=2.0), TypeError, "tensor_rank=2.0 must"),
    "tensor_rank of MHR": (dict(method="mhr", tensor_rank=2), ValueError, "mhr has no tensor_rank; only"),
    "heads of Poly": (dict(n_heads=2), ValueError, "poly has no n_heads; only mhr have"),
    "skills of TensorPoly": (dict(method="tensorpoly-2", n_skills=2), ValueError, "has no n_skills; only"),
    "noise of TLoRA": (dict(method="tlora", noise_temperature=1.0), ValueError, "has no noise_temperature"),
    "dropout below zero": (dict(dropout=-0.1), ValueError, "dropout=-0.1 must be at least 0"),
    "dropout not a number": (dict(dropout=float("nan")), ValueError, "dropout=nan must be at least 0"),
    "broken routing groups": (dict(share_routing="(q"), ValueError, "share_routing='.q' is not a regular"),
    "empty routing groups": (dict(share_routing=""), ValueError, "share_routing='' must have exactly one"),
    "a number for groups": (dict(share_routing=0), TypeError, "share_routing=0 must be a regular"),
    "two routing groups": (dict(share_routing="(.)(.*)"), ValueError, "must have exactly one group, for"),
    "group missing": (dict(share_routing=".*"), ValueError, "share_routing='.*' must have exactly one group"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_bad_configuration(name):
    options, error, message = BAD_CONFIGS[name]
    with pytest.raises(error, match=message):
        config(**options)


BAD_TARGETS = {
    "part of a name": (dict(target_modules="q"), r"matches no module; the nearest names are '.*\.q'"),
    "no match": (
        dict(target_modules=r".*(query|value)"),
        r"matches no module; the nearest names are 'encoder",
    ),
    "no linear layer": (
        dict(target_modules=r".*SelfAttention"),
        r"SelfAttention', a T5Attention; only linear",
    ),
    "heads": (dict(method="mhr", n_heads=5), r"layer 'encoder.*q': n_heads=5 must divide the dimension 32"),
    "share": (dict(share_routing="(encoder).*"), r"does not match the adapted layer 'decoder.block.0"),
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
    message = "layer 'encoder.block.0.*wi': n_heads=4 must divide the dimension 50"
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


def test_nearest_names_are_those_that_end_alike():
    with pytest.raises(ValueError) as error:
        mtp.adapt(make_t5(), config(target_modules=".*(query|value)"))
    nearest = str(error.value).split("'")[3::2]
    assert {name.rpartition(".")[2] for name in nearest[:2]} == {"q", "v"} and len(nearest) == 4


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
    "missing": (None, ValueError, "task_ids is missing: {method} needs"),
    "too few": (
        [0, 1, 2],
        ValueError,
        "task_ids has 3 entries, but the batch has 4 rows; give one task id per row",
    ),
    "too many": ([0] * 8, ValueError, "task_ids has 8 entries, but the batch has 4 rows"),
    "a matrix": ([[0], [1], [2], [3]], ValueError, r"task_ids has shape \(4, 1\)"),
    "a number": (1, ValueError, r"task_ids has shape \(\)"),
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
    assert model.adaptation.context.call == mtp.routing.Call()


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
    with pytest.raises(ValueError, match="task_ids is missing: call the adapted model"):
        model.encoder(input_ids=batch["input_ids"])


def test_a_layer_whose_rows_do_not_follow_the_batch():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(x.new_ones(3, 4))

    model = mtp.adapt(Model(), config(target_modules="linear", n_tasks=2))
    with pytest.raises(ValueError, match="a layer sees 3 rows, no multiple of the 2 task_ids; leave"):
        model(torch.ones(2, 4), task_ids=torch.tensor([0, 1]))


def test_data_parallel_replica():
    model = adapted_t5("poly")
    replica = model._replicate_for_data_parallel()
    with pytest.raises(
        ValueError, match="nn.DataParallel is not supported: launch with torchrun or accelerate"
    ):
        replica(**make_batch())


BAD_TASKS = {
    "missing": (None, ValueError, "task is missing: {method} has an update for each task; say which"),
    "too large": (5, ValueError, "task=5 must be at least 0 and below 5"),
    "negative": (-1, ValueError, "task=-1 must be at least 0"),
    "text": ("3", TypeError, "task='3' must be an integer, not str"),
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


def test_merging_into_quantised_weights():
    model = adapted_t5("lora")
    layers = mtp.adapted_layers(model)
    name, layer = list(layers.items())[-1]
    layer.base.weight = nn.Parameter(layer.base.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(
        ValueError, match=f"layer '{name}': merge.. needs floating-point weights, not torch.int8"
    ):
        mtp.merge(model)
    assert len(mtp.adapted_layers(model)) == len(layers)


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
    model, message = make_t5(), "this T5ForConditionalGeneration is not adapted; call adapt"
    with left_as_it_was(model), pytest.raises(ValueError, match=message):
        NEED_ADAPTER[name](model, tmp_path)
    assert not list(tmp_path.iterdir())


def described(description):
    """Damage: a safetensors file with another description."""
    return lambda file: safetensors.torch.save_file(
        {"a": torch.ones(1)}, file, {"description": json.dumps(description)}
    )


BAD_FILES = {
    "truncated": (
        lambda f: f.write_bytes(f.read_bytes()[:1000]),
        "adapter.safetensors is truncated or not a",
    ),
    "empty": (lambda f: f.write_bytes(b""), "is truncated or not a safetensors file"),
    "foreign": (
        lambda f: safetensors.torch.save_file({"a": torch.ones(1)}, f),
        "is not an adapter that minitensorpoly",
    ),
    "cut in the header": (lambda f: f.write_bytes(f.read_bytes()[:20]), "is truncated or not a"),
    "pickled": (lambda f: torch.save({"a": torch.ones(1)}, f), "is truncated or not a safetensors file"),
    "other description": (described([1, 2]), "is not an adapter that minitensorpoly"),
    "version that is no number": (described({"format_version": "x", "config": {}}), "is not an adapter"),
    "newer": (described({"format_version": 99, "config": {}}), "version 99; this library reads up to 1"),
    "unknown option": (described({"format_version": 1, "config": {"new": 1}}), "does not know: new"),
    "newer and unknown": (described({"format_version": 2, "config": {"new": 1}}), "format version 2"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_adapter_file(name, tmp_path):
    damage, message = BAD_FILES[name]
    mtp.save(adapted_t5("poly"), tmp_path)
    damage(tmp_path / "adapter.safetensors")
    model = make_t5().requires_grad_(True)
    with left_as_it_was(model), pytest.raises(ValueError, match=message):
        mtp.load(model, tmp_path)


@pytest.mark.parametrize("folder", [".", "missing"])
def test_no_adapter_in_the_folder(folder, tmp_path):
    model, message = make_t5(), "adapter.safetensors does not exist; give the folder that save"
    with left_as_it_was(model), pytest.raises(FileNotFoundError, match=message):
        mtp.load(model, tmp_path / folder)


@pytest.mark.parametrize("method", METHODS)
def test_loading_into_a_model_of_other_shapes_leaves_it_as_it_was(method, tmp_path):
    mtp.save(adapted_t5(method), tmp_path)
    for changes in ({"d_ff": 96}, {"num_layers": 1}):
        model = make_t5(**changes)
        model.lm_head.requires_grad_(True)
        message = "does not fit the model: the shape of .*(encoder|decoder).* is .* in the file and .* in"
        with left_as_it_was(model), pytest.raises(ValueError, match=message):
            mtp.load(model, tmp_path)


def test_loading_into_an_adapted_model(tmp_path):
    model = adapted_t5("poly")
    mtp.save(model, tmp_path)
    with left_as_it_was(model), pytest.raises(ValueError, match="adapted already"):
        mtp.load(model, tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_extra_repr_tells_the_routing(method):
    text = repr(mtp.adapt(make_t5(), make_config(method)))
    assert ("routing=(5, " in text) == (method in ROUTED)
