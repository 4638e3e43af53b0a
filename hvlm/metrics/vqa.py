"""The soft accuracy of visual question answering: how many of ten people gave the answer.

An answer is right as far as people agree with it: its accuracy is the mean over the people of min(1, matches among the
others / 3), which for ten is 0, 0.3, 0.6, 0.9 and 1 for 0, 1, 2, 3, and 4 or more who gave it (Antol et al. 2015).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, get_args

Variant = Literal["official", "always_normalised", "vizwiz"]
VARIANTS: tuple[Variant, ...] = ("official", "always_normalised")  # what is computed of any set
_ENOUGH = 3  # others who say the same
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_NUMBERS = dict(zip("zero one two three four five six seven eight nine ten".split(), map(str, range(11)), strict=True))
_NUMBERS["none"] = "0"
_ARTICLES = frozenset({"a", "an", "the"})
# Whole forms; what lacks one of the apostrophes becomes one of them.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
    """.split()
_WHOLE = {
    whole[:i] + whole[i + 1 :]: whole for whole in _CONTRACTIONS for i, letter in enumerate(whole) if letter == "'"
}


def vqa_accuracy(answer: str, people: Sequence[str], variant: Variant = "official") -> float:
    """How right an answer is, 0 to 1.

    Args:
        answer: what was said.
        people: what each person answered, ten as a rule.
        variant: ``official`` compares as they are where the people all say the same, letter by letter, and otherwise
            normalises both sides, as VQA's own program does; ``always_normalised`` normalises always, as EvalAI's (of
            TextVQA, too) and lmms-eval's do; ``vizwiz`` normalises what was said and not what the people answered, as
            VizWiz' own program does.

    Raises:
        ValueError: no people, or another variant.
    """
    if variant not in get_args(Variant):
        raise ValueError(f"variant={variant!r}: expected one of {', '.join(get_args(Variant))}")
    if isinstance(people, str) or not people:
        raise ValueError(f"people is {people!r:.40}: expected their answers, in a list")
    said = re.sub(r"[\n\t]", " ", answer).strip()
    theirs = list(people)
    if variant == "vizwiz":
        said = normalised(said)
    elif variant == "always_normalised" or len(set(theirs)) > 1:
        said, theirs = normalised(said), [normalised(one) for one in theirs]
    same = theirs.count(said)
    # For those who said it there is one match less among the others.
    agree, differ = min(1.0, (same - 1) / _ENOUGH) if same else 0.0, min(1.0, same / _ENOUGH)
    return (same * agree + (len(theirs) - same) * differ) / len(theirs)


def normalised(text: str) -> str:
    """As VQA's program normalises: marks, then case, number words, articles and apostrophes."""
    out = text
    digits = re.search(r"\d,\d", text) is not None
    for mark in _MARKS:
        beside_a_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_a_space or digits else " ")
    out = _PERIOD.sub("", out)
    words = [_NUMBERS.get(word, word) for word in out.lower().split()]
    return " ".join(_WHOLE.get(word, word) for word in words if word not in _ARTICLES)
