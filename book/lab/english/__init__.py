"""What do adapters learn where the answer is known? Tasks in controlled English, made of known skills.

tasks.py        sentences, skills, tasks, splits, data sets
backbone.py     the small T5 that the experiments adapt: pretraining and loading
training.py     training and evaluation
experiment.py   the whole experiment, by one command, recorded as JSON
"""
