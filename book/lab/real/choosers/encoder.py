"""The chooser that is an encoder: a small head scores prompt and choice together."""

import torch

from .chooser import Chooser, by_row


class EncoderChooser(Chooser):
    """Scores prompt and choice together, by the head of an `AutoModelForMultipleChoice`."""

    def tokenize(self, examples):
        prompts = [example["prompt"] for example in examples for _ in example["choices"]]
        answers = [choice for example in examples for choice in example["choices"]]
        options = {"truncation": True, "padding": True, "return_tensors": "pt"}
        return dict(self.tokenizer(prompts, answers, max_length=self.max_length, **options))

    def scores(self, labels, task_ids, choices, owner, **tokens):
        """(batch, most choices) scores, −inf where there is no choice, and no other loss."""
        pairs = {name: ids[:, None] for name, ids in tokens.items()}  # questions of one choice each
        logits = self.call(task_ids[owner], **pairs).logits[:, 0]
        return by_row(logits.float(), choices, -torch.inf), 0.0

    @property
    def head(self):
        """The encoder's pooler, if it has one, and all that the model has outside of the encoder."""
        encoder = self.model.base_model
        known = [getattr(encoder, "pooler", None), *(m for m in self.model.children() if m is not encoder)]
        return [module for module in known if module is not None and any(True for _ in module.parameters())]
