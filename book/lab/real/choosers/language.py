"""Choosers that are language models: what scores and losses they share, and the encoder-decoder."""

import re

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from .chooser import Chooser, by_row


class LanguageChooser(Chooser):
    """Scores a choice by the mean log-likelihood of its tokens, and can write an answer of its own.

    Its loss has T-Few's three parts (Liu et al. 2022, section 3.2): language modelling of the right choice,
    unlikelihood of the wrong ones, and cross entropy of the scores. Each is a mean over rows of a mean over
    tokens, so that a batch that is split over processes gives the same loss.

    Tokens of a batch: input_ids and attention_mask (batch, tokens) of the prompts, and answer_ids
    (pairs, tokens) of all choices, -100 where there is none. The kinds differ in `read`, the first two, and
    in `log_likelihoods`, those of the last.
    """

    def scores(self, labels, task_ids, choices, owner, **tokens):
        """(batch, most choices) scores, −inf where there is no choice, and the loss of the tokens."""
        mask = tokens["answer_ids"] != -100  # (pairs, tokens)
        log_p = self.log_likelihoods(task_ids, owner, **tokens)
        score = (log_p * mask).sum(1) / mask.sum(1)  # (pairs,)
        unlikelihood = -(1 - log_p.exp()).clamp(min=1e-6).log() * mask  # (pairs, tokens)
        scores = by_row(score, choices, -torch.inf)
        wrong = choices.scatter(1, labels[:, None], False)
        penalty = by_row(unlikelihood.sum(1), choices, 0.0) * wrong
        tokens = by_row(mask.sum(1), choices, 0) * wrong
        language = -scores.gather(1, labels[:, None]).mean()
        return scores, language + (penalty.sum(1) / tokens.sum(1)).mean()

    @torch.no_grad()
    def generate(self, examples: list[dict], max_new_tokens: int = 32) -> list[str]:
        """What the model writes after each prompt, without a look at the choices. `chosen` compares it.

        Args:
            examples: rows of `tasks.examples`; `prompt` and `task_ids` are enough.
            max_new_tokens: of an answer, at most.

        Returns:
            A text for each example.
        """
        task_ids = torch.tensor([example["task_ids"] for example in examples])
        inputs = {name: ids.to(self.model.device) for name, ids in self.read(examples).items()}
        written = self.model.generate(
            **inputs,
            **self.of_tasks(task_ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.pad_token_id,
        )
        if not self.model.config.is_encoder_decoder:
            written = written[:, inputs["input_ids"].shape[1] :]  # it repeats the prompt
        return [text.strip() for text in self.tokenizer.batch_decode(written, skip_special_tokens=True)]

    @property
    def pad_token_id(self) -> int:
        """What fills up rows, where attention masks hide it: a tokenizer need not have a token for it."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(i for i in known if i is not None)


def chosen(text: str, choices: list[str]) -> int | None:
    """The number of the choice that a generated text begins with, None if there is none.

    >>> chosen("Yes, it is.", ["No", "Yes"])
    1
    >>> chosen("a person or a group", ["a person", "a person or a group"])  # the longest one
    1
    """
    text, wanted = _words(text), [_words(choice) for choice in choices]
    begins = [i for i, words in enumerate(wanted) if words and words == text[: len(words)]]
    return max(begins, key=lambda i: len(wanted[i]), default=None)


def _words(text):
    return re.findall(r"\w+", text.casefold())


class EncoderDecoderChooser(LanguageChooser):
    """A language model that reads the prompt with its encoder, once for all choices."""

    def read(self, examples):
        return self._padded([example["prompt"] for example in examples])

    def tokenize(self, examples):
        answers = self._padded([choice for example in examples for choice in example["choices"]])
        answer_ids = answers["input_ids"].masked_fill(answers["attention_mask"] == 0, -100)
        return {**self.read(examples), "answer_ids": answer_ids}

    def _padded(self, texts):
        options = {"truncation": True, "max_length": self.max_length, "padding": True, "return_tensors": "pt"}
        tokens = self.tokenizer(texts, **options)
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}

    def log_likelihoods(self, task_ids, owner, input_ids, attention_mask, answer_ids) -> Tensor:
        """(pairs, tokens), of what `answer_ids` has"""
        # A first call encodes every prompt once; the second decodes all its choices.
        start = input_ids.new_full((len(input_ids), 1), self.model.config.decoder_start_token_id)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": start}
        encoded = self.call(task_ids, **inputs, use_cache=False).encoder_last_hidden_state
        logits = self.call(
            task_ids[owner],
            attention_mask=attention_mask[owner],
            encoder_outputs=BaseModelOutput(encoded[owner]),
            decoder_input_ids=self.model.prepare_decoder_input_ids_from_labels(answer_ids),
            use_cache=False,
        ).logits
        return of_tokens(logits, answer_ids.clamp(min=0))


def of_tokens(logits: Tensor, tokens: Tensor) -> Tensor:
    """(rows, tokens, vocabulary) -> (rows, tokens) log-likelihoods"""
    return logits.float().log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
