"""The laboratory: a multi-task benchmark with a known answer, real tasks, and the experiments on both.

methods.py          the adapters that are compared

tasks.py            controlled English: sentences, skills, tasks, splits, data sets
backbone.py         the small T5 that its experiments adapt: pretraining and loading
training.py         training and evaluation
experiment.py       the whole experiment, by one command, recorded as JSON

prompts.py          34 real data sets as prompts with answer choices
real_tasks.py       loading and wording them
choosers.py         pretrained models that choose an answer
finetune.py         one multi-task fine-tune and its few-shot transfer, by one command
real_experiment.py  the whole experiment on real tasks, by one command, recorded as JSON
plans.py            parameters and memory of models that are too large to load

bench.py            time and memory of the adapters
results.py          reading recorded results: means, intervals, tables
figures.py          pictures of results
drawings.py         pictures that explain
idea.py             the picture of the first page
notebook.py         the first cell of every notebook
execute.py          executes the notebooks in place
publish.py          a copy of the book with the address of the repository that publishes it
site.py             what the website has beyond what Jupyter Book makes
"""
