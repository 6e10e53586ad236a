"""VQA accuracy: an answer counts by how many people gave it, `min(people/3, 1)`.

Antol et al., VQA: Visual Question Answering, ICCV 2015. Answers are compared in the form of its evaluation code: lower
case, number words as digits, without articles and punctuation. Where that puts missing apostrophes back into some
contractions, they are left out of these here, which makes the same answers equal: `dont` is `don't`, and `dogs` is not
`dog's`. That code averages the accuracy over the sets of all people but one; here all count at once.
"""

from __future__ import annotations

import re
from math import fsum
from typing import Any

from ..data.row import Row
from ..fusion.errors import DataError
from .job import Job, Scored
from .suite import Vqa

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(NUMBERS)}}
ARTICLES = ("a", "an", "the")
MARKS = ';/[]"{}()=+\\_-><@`,?!'
NEGATED = "ai are ca could did does do had has have is might must need ought sha should was were wo would"
ENDED = """couldve mightve mustve notve shouldve theyve weve whatve whereve whove wouldve youve hed howd itd someoned
somethingd thered theyd whered whod youd howll itll somebodyll someonell somethingll theyll whatll wholl
whyll youll therere theyre whatre whyre youre hes hows somebodys someones thats theres whats whens wheres
whos whys couldntve hadntve mightntve shouldntve wouldntve hedve itdve shedve somebodyd somebodydve
someonedve somethingdve theredve theydve wedve whodve youdve yall yallll yalldve maam oclock owsat twas"""
# What may lack its apostrophes: the contractions that the evaluation code knows, without them.
CONTRACTIONS = {*(f"{verb}nt" for verb in NEGATED.split()), *ENDED.split()}
RIGHT = 0.5  # from which score on an answer is right, where it is to be right or wrong
ENOUGH = 3  # people who give an answer make it right


def plain_answer(text: str) -> str:
    """Return an answer in the form in which answers are compared."""
    given = " ".join(text.lower().split())
    has_thousands = re.search(r"\d,\d", given) is not None
    text = given
    for mark in MARKS:
        beside_space = f"{mark} " in given or f" {mark}" in given
        text = text.replace(mark, "" if beside_space or has_thousands else " ")
    words = [DIGITS.get(word, word) for word in re.sub(r"\.(?!\d)", "", text).split()]
    return " ".join(_contracted(word) for word in words if word not in ARTICLES)


def _contracted(word: str) -> str:
    bare = word.replace("'", "")
    return bare if bare in CONTRACTIONS else word


def vqa_accuracy(answer: str, people: list[str]) -> float:
    """Return `min(number of people who gave the answer / 3, 1)`."""
    plain = plain_answer(answer)
    return min(sum(plain_answer(other) == plain for other in people) / ENOUGH, 1.0)


def vqa(task: Vqa, job: Job) -> Scored:
    """Write an answer to `prompt`, of its `image`, and compare it with all of `answers`."""
    people, prompts = [], []
    for row in job.rows:
        people.append(people_of(row))
        prompts.append(job.encoder.prompt(row, room=task.max_new_tokens))
    written = job.written(task, prompts)
    scores = [vqa_accuracy(text, own) for text, own in zip(written, people, strict=True)]
    return Scored(
        score=100 * fsum(scores) / len(scores), num_rows=len(scores), outcomes=tuple(score >= RIGHT for score in scores)
    )


def people_of(row: Row) -> list[str]:
    """Return what people answered: texts, or objects with an `answer`, as the data set's annotations have."""
    given: Any = row.get("answers")
    found = [one.get("answer") if isinstance(one, dict) else one for one in given] if isinstance(given, list) else []
    texts = [one for one in found if isinstance(one, str)]
    if len(texts) < max(ENOUGH, len(found)):
        raise DataError(
            f"`answers` of {row.what} must be a list of at least {ENOUGH} people's answers",
            hint="`scorer: exact-match` compares with one answer, or any of several",
        )
    return texts
