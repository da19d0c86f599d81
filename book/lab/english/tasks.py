"""Controlled English: a multi-task benchmark whose latent skills are known.

A sentence is a record of words, such as *the big cat sees the old teacher today .* A skill changes
the record in one way (its nouns become plural, its verb negated), a task is a set of two or three
skills, and the text of an example does not name them:

    source   src7 : the big cat sees the old teacher today .
    target   today the big cats did not see the old teachers .      (past, negate, plural, front)

Half of the training tasks have a source tag (`src7`) of their own. The others share tags in pairs,
so that nothing in the text, and only the task id, tells the two tasks of a pair apart.
"""

import dataclasses
import itertools
import random
from collections.abc import Sequence

import datasets
import torch

SKILLS = ("past", "negate", "plural", "swap", "opposite", "category", "ask", "front")
COPY = "copy"  # the name of the empty set of skills in the backbone's pretraining

# noun, its plural, its category; the categories' plurals follow below
_NOUNS = """cat cats animal|dog dogs animal|horse horses animal|cow cows animal|bird birds animal
fox foxes animal|teacher teachers person|doctor doctors person|farmer farmers person|king kings person
nurse nurses person|singer singers person|car cars vehicle|bus buses vehicle|train trains vehicle
boat boats vehicle|truck trucks vehicle|bike bikes vehicle"""
NOUNS = {n: (p, c) for n, p, c in (row.split() for row in _NOUNS.replace("\n", "|").split("|"))}
CATEGORY_PLURALS = {"animal": "animals", "person": "people", "vehicle": "vehicles"}
PLURALS = {noun: plural for noun, (plural, _) in NOUNS.items()} | CATEGORY_PLURALS
# verb: third person singular, past
VERBS = {
    v: (s, p)
    for v, s, p in (
        row.split()
        for row in "see sees saw|like likes liked|follow follows followed|find finds found|call calls called|"
        "help helps helped|meet meets met|hear hears heard|know knows knew|pass passes passed".split("|")
    )
}
_ANTONYMS = "big small|old young|fast slow|clean dirty|happy sad|strong weak|loud quiet|warm cold"
OPPOSITES = dict(pair for row in _ANTONYMS.split("|") for pair in (row.split(), row.split()[::-1]))
TIMES = ("today", "often", "again", "now", "sometimes", "always")
N_TAGS = 40


def _vocabulary():
    words = [
        "<pad>",
        "</s>",
        "<unk>",
        ":",
        ".",
        "?",
        "the",
        "do",
        "does",
        "did",
        "not",
        COPY,
        *SKILLS,
    ]
    words += [f"src{i}" for i in range(N_TAGS)]
    for noun, (plural, _) in NOUNS.items():
        words += [noun, plural]
    for category, plural in CATEGORY_PLURALS.items():
        words += [category, plural]
    for verb, forms in VERBS.items():
        words += [verb, *forms]
    return words + list(OPPOSITES) + list(TIMES)


VOCABULARY = _vocabulary()


@dataclasses.dataclass(frozen=True)
class Sentence:
    """*the {adjectives[0]} {nouns[0]} {verb} the {adjectives[1]} {nouns[1]} {time} .*"""

    adjectives: tuple[str, str]
    nouns: tuple[str, str]
    verb: str
    time: str

    @classmethod
    def sample(cls, rng: random.Random) -> "Sentence":
        """A sentence with two different nouns and adjectives."""
        adjectives, nouns = rng.sample(list(OPPOSITES), 2), rng.sample(list(NOUNS), 2)
        return cls(tuple(adjectives), tuple(nouns), rng.choice(list(VERBS)), rng.choice(TIMES))

    def render(self, skills: Sequence[str] = ()) -> str:
        """The sentence with some skills applied; their order does not matter.

        >>> cat = Sentence(("big", "old"), ("cat", "teacher"), "see", "today")
        >>> cat.render()
        'the big cat sees the old teacher today .'
        >>> cat.render({"past", "negate", "plural"})
        'the big cats did not see the old teachers today .'
        >>> cat.render({"swap", "ask", "opposite"})
        'does the young teacher see the small cat today ?'
        """
        adjectives, nouns = self.adjectives, self.nouns
        if "swap" in skills:
            adjectives, nouns = adjectives[::-1], nouns[::-1]
        if "opposite" in skills:
            adjectives = [OPPOSITES[a] for a in adjectives]
        if "category" in skills:
            nouns = [NOUNS[n][1] for n in nouns]
        if "plural" in skills:
            nouns = [PLURALS[n] for n in nouns]
        subject, object_ = (f"the {a} {n}" for a, n in zip(adjectives, nouns, strict=True))
        singular, past = VERBS[self.verb]
        auxiliary = "did" if "past" in skills else "do" if "plural" in skills else "does"
        negation = ["not"] if "negate" in skills else []
        if "ask" in skills:
            clause = [auxiliary, subject, *negation, self.verb, object_]
        elif negation:
            clause = [subject, auxiliary, "not", self.verb, object_]
        else:
            clause = [
                subject,
                past if "past" in skills else self.verb if "plural" in skills else singular,
                object_,
            ]
        clause = [self.time, *clause] if "front" in skills else [*clause, self.time]
        return " ".join([*clause, "?" if "ask" in skills else "."])


@dataclasses.dataclass(frozen=True)
class Task:
    """A set of skills and the source tag under which its examples appear."""

    skills: tuple[str, ...]
    tag: str

    @property
    def name(self) -> str:
        """The skills joined, for instance 'past+swap'."""
        return "+".join(self.skills)


@dataclasses.dataclass(frozen=True)
class Split:
    """Which tasks are trained, which are held out; all are different sets of skills.

    Args:
        train: the training tasks; the first half have tags of their own, the others share in pairs.
        held_out: tasks for few-shot transfer.
    """

    train: tuple[Task, ...]
    held_out: tuple[Task, ...]

    @property
    def shared(self) -> list[bool]:
        """For each training task, whether it shares its tag."""
        tags = [task.tag for task in self.train]
        return [tags.count(tag) > 1 for tag in tags]


DEVELOPMENT = 0  # the number of the split on which everything is tuned


def make_split(number: int, n_train: int = 24, n_held_out: int = 8) -> Split:
    """Splits the 84 sets of two or three skills.

    Eight sets are set aside for development. Split 0 holds them out; everything is tuned there.
    Splits 1, 2, … neither train on them nor hold them out. Every skill is in at least four training
    tasks of every split, so a held-out task asks for nothing but a new combination.
    """
    combinations = [c for size in (2, 3) for c in itertools.combinations(SKILLS, size)]
    random.Random("development").shuffle(combinations)
    development, rest = combinations[:n_held_out], combinations[n_held_out:]
    rng = random.Random(f"split {number}")
    while True:
        rng.shuffle(rest)
        train, held_out = rest[:n_train], rest[n_train : n_train + n_held_out]
        if all(sum(skill in c for c in train) >= 4 for skill in SKILLS):
            break
    if number == DEVELOPMENT:
        held_out = development
    own = n_train // 2
    tags = [*range(own), *(own + i // 2 for i in range(n_train - own))]
    new = range(tags[-1] + 1, tags[-1] + 1 + n_held_out)
    return Split(
        tuple(Task(skills, f"src{tag}") for skills, tag in zip(train, tags, strict=True)),
        tuple(Task(skills, f"src{tag}") for skills, tag in zip(held_out, new, strict=True)),
    )


def skill_overlap(of: Sequence[Task]) -> torch.Tensor:
    """Between each two tasks, the skills that they share over the skills that either has: (tasks, tasks)."""
    return torch.tensor(
        [[len({*a.skills} & {*b.skills}) / len({*a.skills} | {*b.skills}) for a in of] for b in of]
    )


def make_dataset(
    tasks: Sequence[Task], n_examples: int, seed: int | str, named: bool = False, first_id: int = 0
) -> datasets.Dataset:
    """Examples of tasks.

    Args:
        tasks: the tasks.
        n_examples: how many sentences for each.
        seed: different seeds give different sentences.
        named: name the skills in the text (the control in which no task id is needed).
        first_id: task id of the first task.

    Returns:
        A data set with the columns `source` (text in), `target` (text out), `task_ids` (int) and
        `task` (the task's name), task after task.
    """
    rows = []
    for task_id, task in enumerate(tasks, start=first_id):
        rng = random.Random(f"{seed} {task.name}")
        for _ in range(n_examples):
            rows.append(
                _example(Sentence.sample(rng), task, named) | {"task_ids": task_id, "task": task.name}
            )
    return datasets.Dataset.from_list(rows)


def make_pretraining_dataset(n_examples: int, seed: int) -> datasets.Dataset:
    """Single skills (and none), named in the text, under random source tags; columns as above."""
    rng = random.Random(f"pretraining {seed}")
    rows = []
    for _ in range(n_examples):
        skill = rng.choice((COPY, *SKILLS))
        task = Task((skill,), f"src{rng.randrange(N_TAGS)}")
        rows.append(_example(Sentence.sample(rng), task, named=True) | {"task_ids": 0, "task": skill})
    return datasets.Dataset.from_list(rows)


def _example(sentence, task, named):
    names = [*task.skills, ":"] if named else [":"]
    return {
        "source": " ".join([task.tag, *names, sentence.render()]),
        "target": sentence.render(task.skills),
    }
