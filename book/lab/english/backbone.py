"""The backbone: a small T5, pretrained on single skills that the text names.

    python -m lab.english.backbone --width 64    # in the folder `book`; writes lab/english/weights

The model is a real `T5ForConditionalGeneration`. Its vocabulary is the benchmark's, a word a token.
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration, utils

from . import tasks
from .training import encode, exact_match, make_tokenizer

utils.logging.disable_progress_bar()  # loading a few megabytes needs no bar
WEIGHTS = Path(__file__).parent / "weights"
# Each width has a learning rate of its own: what trains one does not train the other.
PRETRAINING = {64: {"lr": 3e-3, "steps": 1200}, 256: {"lr": 4e-4, "steps": 1500}}


def make_config(width: int) -> T5Config:
    """Two encoder and two decoder layers of the given width, without dropout."""
    return T5Config(
        vocab_size=len(tasks.VOCABULARY),
        d_model=width,
        d_ff=2 * width,
        d_kv=width // 4,
        num_heads=4,
        num_layers=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )


def load_backbone(width: int) -> tuple[T5ForConditionalGeneration, PreTrainedTokenizerFast]:
    """The pretrained backbone that ships with the book, in float32, and its tokenizer."""
    folder = WEIGHTS / f"width_{width}"
    if not folder.exists():
        raise FileNotFoundError(
            f"{folder} does not exist; make it with: python -m lab.english.backbone --width {width}"
        )
    # Plain attention: on sentences this short it is faster on a CPU than the fused kernel.
    model = T5ForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model, make_tokenizer()


def pretrain(
    width: int,
    seed: int = 0,
    steps: int | None = None,
    lr: float | None = None,
    batch_size: int = 128,
    sentences: int = 64_000,
):
    """Trains the backbone from random weights, on so many sentences.

    Returns:
        The model, and its exact match (0 to 1) on sentences that it has not seen.
    """
    settings = PRETRAINING.get(width, {"lr": 4e-4 * 256 / width, "steps": 1500})
    steps, lr = steps or settings["steps"], lr or settings["lr"]
    torch.manual_seed(seed)
    model, tokenizer = T5ForConditionalGeneration(make_config(width)), make_tokenizer()
    data = encode(tasks.make_pretraining_dataset(sentences, seed), tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    progress = tqdm(range(steps), desc=f"pretraining width {width}")
    for step in progress:
        rows = torch.randint(len(data["task_ids"]), (batch_size,), generator=generator)
        batch = {name: column[rows] for name, column in data.items() if name != "task_ids"}
        loss = model(**batch, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    test = tasks.make_pretraining_dataset(2_000, seed=10_000 + seed)
    return model, exact_match(model, encode(test, tokenizer)).float().mean().item()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--width", type=int, required=True, help="width of the model: 64 or 256 ship with the book"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for them (default: lab/english/weights/width_WIDTH)")
    arguments = parser.parse_args()
    model, accuracy = pretrain(arguments.width, arguments.seed)
    folder = arguments.out or WEIGHTS / f"width_{arguments.width}"
    # bfloat16 halves the file; the frozen model that everything adapts is the rounded one.
    model.to(torch.bfloat16).save_pretrained(folder)
    model, tokenizer = (
        T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32),
        make_tokenizer(),
    )
    test = encode(tasks.make_pretraining_dataset(2_000, seed=10_000 + arguments.seed), tokenizer)
    rounded = exact_match(model, test).float().mean().item()
    print(f"{folder}: exact match {accuracy:.4f} on unseen sentences, {rounded:.4f} rounded to bfloat16")


if __name__ == "__main__":
    main()
