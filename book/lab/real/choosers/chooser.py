"""What every chooser does: batches, a loss and a choice, and a state of what is trained."""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class Chooser(nn.Module):
    """A pretrained model that chooses. `tokenize` and `scores` are what the kinds differ in.

    Its `state_dict` holds what is trainable, and nothing else: the rest is the pretrained model's. A bfloat16
    model runs under autocast, so that a head and adapters in float32 fit in.

    Args:
        model: the pretrained model, adapted or not.
        tokenizer: its tokenizer.
        max_length: tokens of a prompt, for an encoder of prompt and choice together; what is longer is cut.
    """

    accepts_loss_kwargs = False  # for Trainer: the further arguments of `forward` are tokens

    def __init__(self, model: nn.Module, tokenizer, max_length: int = 256):
        super().__init__()
        self.model, self.tokenizer, self.max_length = model, tokenizer, max_length
        self.register_state_dict_post_hook(_keep_trainable)
        self.register_load_state_dict_post_hook(_expect_trainable)

    def collate(self, examples: list[dict]) -> dict[str, Tensor]:
        """A batch: labels (batch,), task_ids (batch,), choices (batch, most choices) True where there is
        one, owner (pairs,) the row of every choice, and what `tokenize` adds."""
        counts = torch.tensor([len(example["choices"]) for example in examples])
        return {
            "labels": torch.tensor([example["label"] for example in examples]),
            "task_ids": torch.tensor([example["task_ids"] for example in examples]),
            "choices": torch.arange(counts.max()) < counts[:, None],
            "owner": torch.arange(len(examples)).repeat_interleave(counts),
            **self.tokenize(examples),
        }

    def forward(self, labels, task_ids, choices, owner, **tokens) -> dict[str, Tensor]:
        """The loss, a mean over the rows, and the number of the best choice, (batch,)."""
        half = self.model.dtype == torch.bfloat16
        with torch.autocast(labels.device.type, torch.bfloat16, enabled=half):
            scores, loss = self.scores(labels, task_ids, choices, owner, **tokens)
        return {"loss": loss + F.cross_entropy(scores, labels), "choice": scores.argmax(1)}

    def framed(self, prompt: str) -> str:
        """A prompt as the model reads it, up to its answer."""
        return prompt

    def of_tasks(self, task_ids: Tensor) -> dict[str, Tensor]:
        """The argument that a call of the model needs if it is adapted."""
        return {"task_ids": task_ids} if hasattr(self.model, "adaptation") else {}

    def call(self, task_ids: Tensor, **inputs):
        """Calls the model, with task ids if it is adapted."""
        return self.model(**inputs, **self.of_tasks(task_ids))

    @property
    def target_modules(self) -> str:
        """The linear layers that are adapted, or would be by default."""
        adapted = hasattr(self.model, "adaptation")
        return self.model.adaptation.config.target_modules if adapted else linear_layers(self.model)

    @property
    def head(self) -> list[nn.Module]:
        """Modules on top that every method trains beside the adapter."""
        return []


# Linear layers that do not see a row for each example, and so no tasks: {model type: ends of their names}.
WITHOUT_ROWS = {
    "deberta-v2": "(query|key)_proj",  # they see the table of relative positions as well
    "longformer": "(query|key|value)(_global)?",  # tokens stand before rows here
    "led": "(query|key|value)(_global)?",
    "fsmt": ".*",
    "xlnet": ".*",
}


def linear_layers(model: nn.Module) -> str:
    r"""A pattern for `target_modules`: the linear layers of the model's numbered blocks.

    Embeddings, the language model's head, poolers and classifiers stand outside of the blocks. The router and
    the experts of a mixture are left out, and what `WITHOUT_ROWS` names.

    Raises:
        ValueError: there are none.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> print(linear_layers(GPT2LMHeadModel(GPT2Config(n_embd=12, n_layer=1))))
    .*\.\d+\.(.+\.)?(c_attn|c_fc|c_proj)
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    in_blocks = [name for name in linear if re.search(r"\.\d+\.", name) and ".experts." not in name]
    left_out = re.compile(WITHOUT_ROWS.get(model.config.model_type, "router"))
    ends = sorted({end for end in map(_end, in_blocks) if not left_out.fullmatch(end)})
    if not ends:
        kind, known = type(model).__name__, ", ".join(sorted(set(map(_end, linear))))
        raise ValueError(
            f"{kind} has no linear layers in numbered blocks that are known to see a row for each example; "
            f"name target_modules yourself: its linear layers end in {known}"
        )
    no_experts = r"(?!.*\.experts\.)" if any(".experts." in name for name in linear) else ""
    return rf"{no_experts}.*\.\d+\.(.+\.)?({'|'.join(ends)})"


def _end(name):
    return name.rpartition(".")[2]


def by_row(values: Tensor, choices: Tensor, missing: float) -> Tensor:
    """(pairs,) -> (batch, most choices)"""
    return values.new_full(choices.shape, missing).masked_scatter(choices, values)


def _keep_trainable(module, state, prefix, metadata):
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    frozen |= {name for name, _ in module.named_buffers(remove_duplicate=False)}
    for name in frozen:
        state.pop(prefix + name, None)


def _expect_trainable(module, incompatible):
    wanted = {name for name, p in module.named_parameters() if p.requires_grad}
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name in wanted]
