"""What do adapters learn on a pretrained model and real tasks?

prompts.py      34 real data sets as prompts with answer choices
task_file.py    your own tasks, described in a file; example/ has one
tables.py       their rows, from CSV files and others
tasks.py        loading and wording tasks, the book's and yours
choosers/       pretrained models that choose an answer: decoders, encoder-decoders, encoders
models.py       a language model for work without a hub, by one command
settings.py     the options of a fine-tune
trainer.py      training by transformers.Trainer, and going on again
finetune.py     one multi-task fine-tune and its few-shot transfer, by one command
serve.py        a trained model answers, gets new tasks, and is exported
__main__.py     all of that as commands
customers.py    thirty customers who ask different things of the same texts
experiment.py   the experiment on them, by one command
plans.py        parameters and memory of models that are too large to load
"""
