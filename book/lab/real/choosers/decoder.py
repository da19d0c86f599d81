"""The chooser that is a decoder alone: Llama, Qwen, SmolLM2, GPT-2 and all other causal language models."""

import inspect
import itertools
import logging

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from .language import LanguageChooser, of_tokens

ANSWER = "\nAnswer:"  # after a prompt, for models without a chat template
_logger = logging.getLogger(__name__)


class DecoderChooser(LanguageChooser):
    """A language model that goes on with the prompt.

    The model reads a prompt once for all its choices, and keeps its keys and values for them. Only the
    positions that predict an answer's token go through the vocabulary.

    Args:
        model, tokenizer: as for `Chooser`.
        max_length: tokens of a prompt, without those of the chat template. The middle of a longer one is
            left out, since a question may stand at either end. Answers are never cut.
        chat: put the prompts in the tokenizer's chat template; None: if it has one.

    Raises:
        ValueError: chat is True, and the tokenizer has no chat template.
    """

    def __init__(self, model, tokenizer, max_length: int = 256, chat: bool | None = None):
        super().__init__(model, tokenizer, max_length)
        self.chat = tokenizer.chat_template is not None if chat is None else chat
        if self.chat and tokenizer.chat_template is None:
            raise ValueError("chat=True, but the tokenizer has no chat template; leave chat out")
        self._frame = self._ids([self.framed("")])[0]  # tokens around a prompt
        self._told = False

    def read(self, examples):
        return self._padded(
            [self._cut(ids) for ids in self._ids([self.framed(e["prompt"]) for e in examples])]
        )

    def tokenize(self, examples):
        """Prompts and answers are tokenized together, then divided: tokens may depend on what is before."""
        framed = [self.framed(example["prompt"]) for example in examples]
        space = "" if self.chat else " "
        whole = self._ids(
            [f + space + choice for f, e in zip(framed, examples, strict=True) for choice in e["choices"]]
        )
        end = [i for i in [self.tokenizer.eos_token_id] if i is not None]
        prompts, answers, rows = [], [], iter(whole)
        for prompt, example in zip(self._ids(framed), examples, strict=True):
            own = list(itertools.islice(rows, len(example["choices"])))
            n = min(_common(prompt, ids) for ids in own)
            prompts.append(self._cut(prompt[:n]))
            answers += [torch.tensor(ids[n:] + end) for ids in own]
        answer_ids = pad_sequence(answers, batch_first=True, padding_value=-100)
        return {**self._padded(prompts), "answer_ids": answer_ids}

    def framed(self, prompt):
        if not self.chat:
            return prompt + ANSWER
        message = {"role": "user", "content": prompt}
        # Models that think aloud when asked to know the last option, others do not look at it.
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        return self.tokenizer.apply_chat_template([message], **options)

    def _ids(self, texts):
        """Tokens of each text, which is not at its end yet. A chat template has its own special tokens."""
        rows = self.tokenizer(texts, add_special_tokens=not self.chat)["input_ids"]
        return [ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids for ids in rows]

    def _cut(self, ids):
        """A prompt's tokens, without its middle if it is too long; what frames it stays."""
        excess = len(ids) - len(self._frame) - self.max_length
        if excess <= 0:
            return ids
        if not self._told:
            self._told = True
            n = self.max_length + excess
            _logger.warning(f"a prompt has {n} tokens: it loses its middle, by max_length={self.max_length}")
        start = _common(self._frame, ids) + (self.max_length + 1) // 2
        return ids[:start] + ids[start + excess :]

    def _padded(self, prompts):
        """Prompts end in the same column, where their answers begin."""
        masks = [torch.ones(len(ids), dtype=torch.long) for ids in prompts]
        ids = [torch.tensor(ids) for ids in prompts]
        options = {"batch_first": True, "padding_side": "left"}
        return {
            "input_ids": pad_sequence(ids, padding_value=self.pad_token_id, **options),
            "attention_mask": pad_sequence(masks, **options),
        }

    def log_likelihoods(self, task_ids, owner, input_ids, attention_mask, answer_ids) -> Tensor:
        """(pairs, tokens), of what `answer_ids` has"""
        way = self._shared if self._keeps_prompts() else self._apart
        return way(task_ids, owner, input_ids, attention_mask, answer_ids)

    def _keeps_prompts(self):
        """Whether the model can go on with a prompt that it has read: for that it is told where it stands."""
        known = inspect.signature(self.model.forward).parameters
        forgets = any(
            m.training and getattr(m, "gradient_checkpointing", False) for m in self.model.modules()
        )
        return {"position_ids", "past_key_values"} <= known.keys() and not forgets

    def _shared(self, task_ids, owner, input_ids, attention_mask, answer_ids):
        """Every prompt is read once; its keys and values go to all its choices."""
        tokens, last = answer_ids.clamp(min=0), input_ids.shape[1] - 1
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        inputs["position_ids"] = _positions(attention_mask)
        read = self._predict(task_ids, torch.full_like(input_ids[:, :1], last), **inputs, use_cache=True)
        if type(read.get("past_key_values")) is not DynamicCache:  # what it keeps is not made for copies
            return self._apart(task_ids, owner, input_ids, attention_mask, answer_ids)
        first = read.logits.float().log_softmax(-1)  # (batch, 1, vocabulary)
        log_p = [first[owner[:, None], 0, tokens[:, :1]]]
        if tokens.shape[1] > 1:
            read.past_key_values.reorder_cache(owner)
            mask = torch.cat([attention_mask[owner], (answer_ids[:, :-1] != -100).long()], 1)
            inputs = {"input_ids": tokens[:, :-1], "attention_mask": mask}
            inputs["position_ids"] = _positions(mask)[:, last + 1 :]
            inputs["past_key_values"] = read.past_key_values
            rest = self.call(task_ids[owner], **inputs, use_cache=True)
            log_p.append(of_tokens(rest.logits, tokens[:, 1:]))
        return torch.cat(log_p, 1)

    def _apart(self, task_ids, owner, input_ids, attention_mask, answer_ids):
        """Every choice stands behind a prompt of its own, and the padding behind both."""
        tokens, prompts = answer_ids.clamp(min=0), attention_mask.sum(1)[owner, None]
        ids = torch.cat([input_ids[owner], tokens], 1)
        mask = torch.cat([attention_mask[owner], (answer_ids != -100).long()], 1)
        steps = torch.arange(ids.shape[1], device=ids.device)
        turned = (steps + input_ids.shape[1] - prompts) % len(
            steps
        )  # the padding on the left goes to the right
        inputs = {"input_ids": ids.gather(1, turned), "attention_mask": mask.gather(1, turned)}
        columns = prompts - 1 + steps[: tokens.shape[1]]
        logits = self._predict(task_ids[owner], columns, **inputs, use_cache=False).logits
        return of_tokens(logits, tokens)

    def _predict(self, task_ids, columns, **inputs):
        """A call whose logits are those of some columns alone, (rows, columns): the head sees no others."""

        def select(head, arguments):
            hidden = arguments[0]
            return hidden.gather(1, columns[..., None].expand(-1, -1, hidden.shape[-1]))

        hook = self.model.get_output_embeddings().register_forward_pre_hook(select)
        try:
            return self.call(task_ids, **inputs)
        finally:
            hook.remove()


def _positions(mask):
    """Where each token stands in its row, with padding on the left."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def _common(a, b):
    """How many tokens two sequences share at their start."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
