"""Models that choose: they score every answer choice of a prompt, and the best one is the answer.

This is rank classification, as T-Few (Liu et al. 2022) and the paper evaluate. Two kinds of pretrained
model stand behind one interface:

- an encoder-decoder scores a choice by the mean log-likelihood of its tokens;
- an encoder reads prompt and choice together, and a small head scores the pair.

    chooser = load_chooser("google/flan-t5-small")
    batch = chooser.collate(examples)          # rows of `tasks.examples`
    chooser(**batch)                           # {"loss": ..., "choice": (batch,)}
"""

import contextlib
import re

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput


class Chooser(nn.Module):
    """A pretrained model that chooses. `tokenize` and `scores` are what the two kinds differ in.

    Its `state_dict` holds what is trainable, and nothing else: the rest is the pretrained model's. A bfloat16
    model runs under autocast, so that a head and adapters in float32 fit in.

    Args:
        model: the pretrained model, adapted or not.
        tokenizer: its tokenizer.
        max_length: tokens of a prompt, for an encoder of prompt and choice together; the longer of the two is
            cut off at its end.
    """

    target_modules: str  # the linear layers that are adapted
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

    def call(self, task_ids: Tensor, **inputs):
        """Calls the model, with task ids if it is adapted."""
        return self.model(**inputs, **({"task_ids": task_ids} if hasattr(self.model, "adaptation") else {}))

    @property
    def head(self) -> list[nn.Module]:
        """Modules on top that every method trains beside the adapter."""
        return []


class EncoderDecoderChooser(Chooser):
    """Scores a choice by the mean log-likelihood of its tokens.

    Its loss has T-Few's three parts (Liu et al. 2022, section 3.2): language modelling of the right choice,
    unlikelihood of the wrong ones, and cross entropy of the scores. Each is a mean over rows of a mean over
    tokens, so that a batch that is split over processes gives the same loss.
    """

    target_modules = r".*\.(q|k|v|o|wi|wi_0|wi_1|wo)"

    def tokenize(self, examples):
        prompts = [example["prompt"] for example in examples]
        answers = [choice for example in examples for choice in example["choices"]]
        options = {"truncation": True, "padding": True, "return_tensors": "pt"}
        read = self.tokenizer(prompts, max_length=self.max_length, **options)
        written = self.tokenizer(answers, max_length=self.max_length, **options)
        return {
            "input_ids": read["input_ids"],
            "attention_mask": read["attention_mask"],
            "answer_ids": written["input_ids"].masked_fill(written["attention_mask"] == 0, -100),
        }

    def scores(self, labels, task_ids, choices, owner, input_ids, attention_mask, answer_ids):
        """(batch, most choices) scores, −inf where there is no choice, and the loss of the tokens."""
        # A first call encodes every prompt once; the second decodes all its choices.
        start = input_ids.new_full((len(labels), 1), self.model.config.decoder_start_token_id)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": start}
        encoded = self.call(task_ids, **inputs, use_cache=False).encoder_last_hidden_state
        logits = self.call(
            task_ids[owner],
            attention_mask=attention_mask[owner],
            encoder_outputs=BaseModelOutput(encoded[owner]),
            decoder_input_ids=self.model.prepare_decoder_input_ids_from_labels(answer_ids),
            use_cache=False,
        ).logits
        mask = answer_ids != -100  # (pairs, tokens)
        log_p = logits.float().log_softmax(-1).gather(-1, answer_ids.clamp(min=0)[..., None])[..., 0]
        score = (log_p * mask).sum(1) / mask.sum(1)  # (pairs,)
        unlikelihood = -(1 - log_p.exp()).clamp(min=1e-6).log() * mask  # (pairs, tokens)
        scores = _by_row(score, choices, -torch.inf)
        wrong = choices.scatter(1, labels[:, None], False)
        penalty = _by_row(unlikelihood.sum(1), choices, 0.0) * wrong
        tokens = _by_row(mask.sum(1), choices, 0) * wrong
        language = -scores.gather(1, labels[:, None]).mean()
        return scores, language + (penalty.sum(1) / tokens.sum(1)).mean()


class EncoderChooser(Chooser):
    """Scores prompt and choice together, by the head of an `AutoModelForMultipleChoice`."""

    target_modules = r".*\.layer\.\d+\..*(query|key|value|dense)"

    def tokenize(self, examples):
        prompts = [example["prompt"] for example in examples for _ in example["choices"]]
        answers = [choice for example in examples for choice in example["choices"]]
        options = {"truncation": True, "padding": True, "return_tensors": "pt"}
        return dict(self.tokenizer(prompts, answers, max_length=self.max_length, **options))

    def scores(self, labels, task_ids, choices, owner, **tokens):
        """(batch, most choices) scores, −inf where there is no choice, and no other loss."""
        pairs = {name: ids[:, None] for name, ids in tokens.items()}  # questions of one choice each
        logits = self.call(task_ids[owner], **pairs).logits[:, 0]
        return _by_row(logits.float(), choices, -torch.inf), 0.0

    @property
    def head(self):
        known = (getattr(self.model.base_model, "pooler", None), getattr(self.model, "classifier", None))
        return [module for module in known if module is not None]


def load_chooser(
    name: str,
    max_length: int = 256,
    dtype: torch.dtype | None = None,
    attention: str | None = None,
    dropout: float = 0.0,
) -> Chooser:
    """A pretrained model, as the chooser of its kind.

    Args:
        name: on the Hugging Face hub, or a local folder.
        max_length: tokens of a prompt.
        dtype: of the model; None: bfloat16 on a GPU that has it, else float32. (T5 overflows in float16.)
            An encoder's head is float32: it is trained, and bfloat16 loses small steps.
        attention: implementation of attention, `attn_implementation` of transformers; None: its own choice.
        dropout: of the pretrained model in training, everywhere.

    Raises:
        ValueError: an encoder whose head this book does not know: BERT's and its likes' are known.
    """
    if dtype is None:
        gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = torch.bfloat16 if gpu else torch.float32
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    config = transformers.AutoConfig.from_pretrained(name)
    for option in filter(re.compile("dropout|pdrop").search, config.to_dict()):
        setattr(config, option, dropout)
    options = {"config": config, "dtype": dtype, "attn_implementation": attention}
    if config.is_encoder_decoder:
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(name, **options)
        return EncoderDecoderChooser(model, tokenizer, max_length)
    with _without_load_report():
        model, loaded = transformers.AutoModelForMultipleChoice.from_pretrained(
            name, **options, output_loading_info=True
        )
    chooser = EncoderChooser(model, tokenizer, max_length)
    of_head = {id(p) for module in chooser.head for p in module.parameters()}
    new = [n for n, p in model.named_parameters() if n in loaded["missing_keys"] and id(p) not in of_head]
    if new:
        raise ValueError(f"{name}: {', '.join(new)} are not in the checkpoint, and no part of a known head")
    for module in chooser.head:
        module.float()
    return chooser


@contextlib.contextmanager
def _without_load_report():
    """It would warn that the head is new, which is what it is for."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def _by_row(values, choices, missing):
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
