"""The laboratory: a multi-task benchmark with a known answer, and the experiment on it.

tasks.py       controlled English: sentences, skills, tasks, splits, data sets
backbone.py    the small T5 that all experiments adapt: pretraining and loading
training.py    training and evaluation
methods.py     the adapters that are compared
experiment.py  the whole experiment, by one command, recorded as JSON
results.py     reading recorded results: means, intervals, tables
figures.py     pictures of results
"""

import transformers

transformers.utils.logging.disable_progress_bar()  # loading a few megabytes needs no bar
