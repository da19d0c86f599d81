"""From the name of a pretrained model to the chooser of its kind."""

import contextlib
import re

import torch
import transformers

from .chooser import Chooser
from .decoder import DecoderChooser
from .encoder import EncoderChooser
from .language import EncoderDecoderChooser


def load_chooser(
    name: str,
    max_length: int = 256,
    dtype: torch.dtype | None = None,
    attention: str | None = None,
    dropout: float = 0.0,
    chat: bool | None = None,
) -> Chooser:
    """A pretrained model, as the chooser of its kind.

    Args:
        name: on the Hugging Face hub, or a local folder.
        max_length: tokens of a prompt.
        dtype: of the model; None: bfloat16 on a GPU that has it, else float32. (T5 overflows in float16.)
            An encoder's head is float32: it is trained, and bfloat16 loses small steps.
        attention: implementation of attention, `attn_implementation` of transformers; None: its own choice.
        dropout: of the pretrained model in training, everywhere.
        chat: put the prompts of a decoder in its chat template; None: if it has one.

    Raises:
        ValueError: it is no such model, weights are missing, or chat does not fit it.
    """
    if dtype is None:
        gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = torch.bfloat16 if gpu else torch.float32
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    config = transformers.AutoConfig.from_pretrained(name)
    for option in filter(re.compile("dropout|pdrop").search, config.to_dict()):
        setattr(config, option, dropout)
    auto, kind = kind_of(config)
    if chat and kind is not DecoderChooser:
        raise ValueError(
            f"chat=True is for decoders alone, and {name} is for a {kind.__name__}; leave chat out"
        )
    with _without_load_report():
        options = {"config": config, "dtype": dtype, "attn_implementation": attention}
        model, loaded = auto.from_pretrained(name, **options, output_loading_info=True)
    chooser = kind(model, tokenizer, max_length, **({"chat": chat} if kind is DecoderChooser else {}))
    of_head = {id(p) for module in chooser.head for p in module.parameters()}
    new = [n for n, p in model.named_parameters() if n in loaded["missing_keys"] and id(p) not in of_head]
    if new:
        raise ValueError(f"{name}: {', '.join(new)} is not in the checkpoint, and no part of a new head")
    for module in chooser.head:
        module.float()
    return chooser


def kind_of(config: transformers.PretrainedConfig) -> tuple[type, type[Chooser]]:
    """The class of transformers that loads such a model, and the chooser for it."""
    if config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM, EncoderDecoderChooser
    if type(config) in transformers.MODEL_FOR_MULTIPLE_CHOICE_MAPPING:
        return transformers.AutoModelForMultipleChoice, EncoderChooser
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM, DecoderChooser
    kind = type(config).__name__
    raise ValueError(
        f"a model with {kind} is neither a decoder or encoder-decoder nor an encoder that chooses"
    )


@contextlib.contextmanager
def _without_load_report():
    """It would warn that a head is new, which is what it is for."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
