"""The real tasks of chapter 9: for each, where its data set is, prompts, answer choices and the label.

Every task becomes a prompt and a few answer choices, one of which is right. A template takes columns of
the data set in braces. The prompts were written for this book. In the first prompt, which evaluation uses,
the question stands before a long passage, so that cutting the passage off leaves the question.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Prompted:
    """A data set as prompts with answer choices.

    Args:
        hub: repository on the Hugging Face hub, and its configuration, `repository:configuration`; empty:
            the data set is in files.
        prompts: templates; the first is used in evaluation, all in training.
        choices: a template for each choice, or the column that holds a list of choices.
        label: the column of the right answer.
        labels: its values in the order of the choices, or the column that holds a list of them; empty:
            0, 1, 2 … as the choices are numbered; None: these numbers, or the choices' texts. If they are
            the choices themselves, the choices are put in alphabetical order, so that the place of the right
            one tells nothing.
        splits: what the hub calls the splits "train" and "validation", or the files that hold them; the
            second is None if there is none.
        revision: branch of the repository.
        name: of the task, where it is known under one.
    """

    hub: str
    prompts: tuple[str, ...]
    choices: tuple[str, ...] | str
    label: str = "label"
    labels: tuple[str, ...] | str | None = ()
    splits: tuple[str, str | None] = ("train", "validation")
    revision: str | None = None
    name: str = ""


PARQUET = "refs/convert/parquet"  # the hub's own copy of sets whose loading scripts no longer run
YES_MAYBE_NO = ("Yes", "Maybe", "No")
NUMBERS = ("no", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def _anli(number):
    return Prompted(
        "facebook/anli",
        (
            "Statement: {hypothesis}\nDoes the text say so? Yes, maybe or no?\nText: {premise}",
            '{premise}\nFrom this alone, is it true that "{hypothesis}"? Yes, no, or maybe?',
        ),
        YES_MAYBE_NO,
        splits=(f"train_r{number}", f"dev_r{number}"),
    )


def _lettered(hub, *prompts):
    """A set whose choices have letters, and whose label is a letter."""
    return Prompted(hub, prompts, "choices.text", label="answerKey", labels="choices.label")


HELD_OUT = {
    "rte": Prompted(
        "aps/super_glue:rte",
        (
            "Claim: {hypothesis}\nIs the claim supported by this text? {premise}",
            '{premise}\nDoes it follow that "{hypothesis}"? Yes or no?',
        ),
        ("Yes", "No"),
    ),
    "cb": Prompted(
        "aps/super_glue:cb",
        (
            "Claim: {hypothesis}\nIs the claim true, given what is said here? {premise}",
            '{premise}\nDoes the speaker mean that "{hypothesis}"? Yes, no, or maybe?',
        ),
        ("Yes", "No", "Maybe"),
    ),
    "copa": Prompted(
        "aps/super_glue:copa",
        (
            "{premise} What is the most likely {question}?",
            "Here is an event: {premise}\nName its {question}.",
        ),
        ("{choice1}", "{choice2}"),
    ),
    "wic": Prompted(
        "aps/super_glue:wic",
        (
            'Does "{word}" mean the same in both sentences?\n{sentence1}\n{sentence2}',
            'Sentence 1: {sentence1}\nSentence 2: {sentence2}\nIs "{word}" used in one sense? Yes or no?',
        ),
        ("No", "Yes"),
    ),
    "wsc": Prompted(
        "aps/super_glue:wsc.fixed",
        (
            'In the following text, does "{span2_text}" stand for "{span1_text}"? {text}',
            '{text}\nDoes the word "{span2_text}" here refer to {span1_text}? Yes or no?',
        ),
        ("No", "Yes"),
    ),
    "winogrande": Prompted(
        "allenai/winogrande:winogrande_xl",
        ("{sentence}\nWhat belongs in the blank _?", "Fill in the blank, marked by _. {sentence}"),
        ("{option1}", "{option2}"),
        label="answer",
        labels=("1", "2"),
    ),
    "hellaswag": Prompted(
        "Rowan/hellaswag",
        ("How does this go on? {ctx}", "Choose the best ending.\n{activity_label}: {ctx}"),
        "endings",
    ),
    "anli_r1": _anli(1),
    "anli_r2": _anli(2),
    "anli_r3": _anli(3),
}

DEVELOPMENT = {
    "cosmos_qa": Prompted(
        "allenai/cosmos_qa",
        ("{question}\n{context}", "Read and answer. Question: {question}\nText: {context}"),
        ("{answer0}", "{answer1}", "{answer2}", "{answer3}"),
        revision=PARQUET,
    ),
    "commonsense_qa_2": Prompted(
        "tasksource/commonsense_qa_2.0",
        ("{question}\nIs that right? Yes or no?", "Yes or no? {question}"),
        ("yes", "no"),
        label="answer",
        labels=("yes", "no"),
    ),
    "tweet_eval_irony": Prompted(
        "cardiffnlp/tweet_eval:irony",
        (
            "Is this tweet meant ironically? {text}",
            "{text}\nDoes the author mean what is written, or is it irony?",
        ),
        ("It is meant literally.", "It is irony."),
    ),
    "multirc": Prompted(
        "aps/super_glue:multirc",
        (
            'Question: {question}\nIs "{answer}" a correct answer, by this text? {paragraph}',
            "{question}\nAnswer: {answer}\nIs the answer correct? Yes or no?\n{paragraph}",
        ),
        ("No", "Yes"),
    ),
}

TRAIN = {
    "ag_news": Prompted(
        "fancyzhx/ag_news",
        ("Which section of a newspaper is this from? {text}", "{text}\nWhat is this article about?"),
        ("World news", "Sports", "Business", "Science and technology"),
        splits=("train", "test"),
    ),
    "arc_challenge": _lettered(
        "allenai/ai2_arc:ARC-Challenge",
        "{question}",
        "Answer this question of an exam. {question}",
    ),
    "arc_easy": _lettered(
        "allenai/ai2_arc:ARC-Easy",
        "{question}",
        "A question of science: {question}",
    ),
    "boolq": Prompted(
        "aps/super_glue:boolq",
        ("{question}? Yes or no?\n{passage}", "Answer from the passage: {question}?\nPassage: {passage}"),
        ("No", "Yes"),
    ),
    "cola": Prompted(
        "nyu-mll/glue:cola",
        ("Is this sentence grammatical? {sentence}", "{sentence}\nWould a native speaker say so?"),
        ("No", "Yes"),
    ),
    "commonsense_qa": _lettered(
        "tau/commonsense_qa",
        "{question}",
        "Use common sense to answer. {question}",
    ),
    "creak": Prompted(
        "amydeng2000/CREAK",
        (
            "True or false? {sentence}",
            "Someone claims about {entity}: {sentence} Is the claim true or false?",
        ),
        ("false", "true"),
        labels=("false", "true"),
    ),
    "dream": Prompted(
        "dataset-org/dream",
        ("{question}\n{dialogue}", "Listen to the dialogue, then answer: {question}\n{dialogue}"),
        "choice",
        label="answer",
        labels="choice",
        revision=PARQUET,
    ),
    "mrpc": Prompted(
        "nyu-mll/glue:mrpc",
        (
            "Do these two sentences say the same?\n{sentence1}\n{sentence2}",
            "First: {sentence1}\nSecond: {sentence2}\nIs the second a paraphrase of the first?",
        ),
        ("No", "Yes"),
    ),
    "numer_sense": Prompted(
        "INK-USC/numer_sense",
        ("Which number word belongs in the place of <mask>? {sentence}", "{sentence}\n<mask> is:"),
        NUMBERS,
        label="target",
        labels=NUMBERS,
        splits=("train[200:]", "train[:200]"),  # the labels of its other splits are secret
        revision=PARQUET,
    ),
    "openbookqa": _lettered(
        "allenai/openbookqa:main",
        "{question_stem}",
        "Complete or answer: {question_stem}",
    ),
    "piqa": Prompted(
        "ybisk/piqa",
        ("{goal}", "How would you do this? {goal}"),
        ("{sol1}", "{sol2}"),
        revision=PARQUET,
    ),
    "qasc": _lettered(
        "allenai/qasc",
        "{question}",
        "{question} Two facts have to be put together: {fact1} {fact2}",
    ),
    "rotten_tomatoes": Prompted(
        "cornell-movie-review-data/rotten_tomatoes",
        ("Did the critic like the film? {text}", "{text}\nIs this review positive or negative?"),
        ("negative", "positive"),
    ),
    "sciq": Prompted(
        "allenai/sciq",
        ("{question}\n{support}", "Support: {support}\nQuestion: {question}"),
        ("{distractor1}", "{correct_answer}", "{distractor2}", "{distractor3}"),
        label="correct_answer",
        labels=("{distractor1}", "{correct_answer}", "{distractor2}", "{distractor3}"),
    ),
    "social_i_qa": Prompted(
        "lighteval/siqa",
        ("{context} {question}", "Situation: {context}\nQuestion: {question}"),
        ("{answerA}", "{answerB}", "{answerC}"),
        labels=("1", "2", "3"),
    ),
    "sst2": Prompted(
        "nyu-mll/glue:sst2",
        (
            "Is this said of a good film or of a bad one? {sentence}",
            "{sentence}\nThe reviewer thinks the film is:",
        ),
        ("bad", "good"),
    ),
    "subj": Prompted(
        "SetFit/subj",
        ("Does this state a fact or an opinion? {text}", "{text}\nIs the sentence objective or subjective?"),
        ("an objective fact", "a subjective opinion"),
        splits=("train", "test"),
    ),
    "trec": Prompted(
        "CogComp/trec",
        ("What kind of thing does this question ask for? {text}", "{text}\nThe answer will be:"),
        ("an abbreviation", "a thing", "a description", "a person or a group", "a place", "a number"),
        label="coarse_label",
        splits=("train", "test"),
        revision=PARQUET,
    ),
    "tweet_eval_emotion": Prompted(
        "cardiffnlp/tweet_eval:emotion",
        ("What does the author of this tweet feel? {text}", "{text}\nName the emotion."),
        ("anger", "joy", "optimism", "sadness"),
    ),
}

TASKS = {
    name: dataclasses.replace(task, name=name) for name, task in (TRAIN | DEVELOPMENT | HELD_OUT).items()
}
