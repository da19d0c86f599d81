"""What do adapters learn on a pretrained model and real tasks?

prompts.py      34 real data sets as prompts with answer choices
tasks.py        loading and wording them
choosers/       pretrained models that choose an answer: decoders, encoder-decoders, encoders
models.py       a language model for work without a hub, by one command
finetune.py     one multi-task fine-tune and its few-shot transfer, by one command
experiment.py   the whole experiment, by one command, recorded as JSON
plans.py        parameters and memory of models that are too large to load
"""
