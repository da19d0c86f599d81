"""What do adapters learn where the answer is known? Tasks in controlled English, made of known skills.

tasks.py        sentences, skills, tasks, splits, data sets
backbone.py     the small T5 that the experiments adapt: pretraining and loading
training.py     tokenising, training, evaluation, few-shot transfer

comparison.py   the comparison of every contender at its best, by one command; it uses the following
contenders.py   adapters of equal size in several shapes, and dense ones that are told the task
run.py          one run, and the files of finished runs
learners.py     many few-shot learners, trained together
search.py       shapes and learning rates, by one rule for all
rules.py        the primary comparisons, fixed before the final runs
statistics.py   tables, intervals, tests
outcomes.py     what the search has chosen, and which final runs are recorded
"""
