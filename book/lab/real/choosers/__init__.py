"""Models that choose: they score every answer choice of a prompt, and the best one is the answer.

This is rank classification, as T-Few (Liu et al. 2022) and the paper evaluate. Three kinds of pretrained
model stand behind one interface:

- a decoder alone (Llama, Qwen, GPT-2 ...) scores a choice by the mean log-likelihood of its tokens after
  the prompt;
- an encoder-decoder (T5, BART ...) does the same, and reads the prompt with its encoder;
- an encoder (BERT, DeBERTa ...) reads prompt and choice together, and a small head scores the pair.

    chooser = load_chooser("HuggingFaceTB/SmolLM2-135M-Instruct")
    batch = chooser.collate(examples)          # rows of `tasks.examples`
    chooser(**batch)                           # {"loss": ..., "choice": (batch,)}
    chooser.generate(examples)                 # or let it write its answer: a text for each

Read `chooser`, then `language` or `encoder`, then `decoder`.
"""

from .chooser import Chooser, linear_layers
from .decoder import DecoderChooser
from .encoder import EncoderChooser
from .language import EncoderDecoderChooser, LanguageChooser, chosen
from .loading import load_chooser

__all__ = [
    "Chooser",
    "DecoderChooser",
    "EncoderChooser",
    "EncoderDecoderChooser",
    "LanguageChooser",
    "chosen",
    "linear_layers",
    "load_chooser",
]
