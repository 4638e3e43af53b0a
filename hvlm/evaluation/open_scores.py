"""What open answers are worth: word for word, normalised, and by the words that they share with a right answer.

A question may have several right answers; the one that fits best counts. ``normalised`` is as in VQA's evaluation
(Antol et al. 2015): one case, number words to ten are digits, no articles, no punctuation; ``f1`` is SQuAD's
(Rajpurkar et al. 2016), computed by torchmetrics. Words are what stands between spaces: for a
script without spaces f1 says little.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from hvlm.evaluation.answers import plain
from hvlm.evaluation.scores import Prediction, Tries, means_and_tasks, problems, variants_of

_NUMBERS = {
    word: str(n)
    for n, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}  # fmt: skip
_ARTICLES = {"a", "an", "the"}
_SIGNS = set("=+<>`^|~")  # that Unicode does not count as punctuation
_KEPT = set("%")


def score_open(predictions: Iterable[Prediction], apart: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows for each variant: ``<metric>_macro`` (mean over tasks), ``<metric>_micro`` (mean over questions) and
    ``<metric>/<task>`` for the metrics normalised, exact and f1; names of means say which tasks they leave out.

    chance is what one gets who always gives the most common right answer of the task, which these very questions tell:
    the answer that is right, once normalised, for most of the task's questions; of equals the first.
    """
    out = []
    for variant, questions in variants_of(predictions).items():
        usual = {task: _most_common(of) for task, of in _by_task(questions).items()}
        rows: list[dict[str, Any]] = []
        for metric, worth in METRICS.items():
            rows += means_and_tasks(metric, questions, _value(worth), apart, _constant(worth, usual))
        out += [{"variant": variant, **row} for row in rows + problems(questions)]
    return out


def exact(text: str, answers: Sequence[str]) -> float:
    """1 if the text is word for word one of the answers; case, spaces, quotes and a last full stop aside."""
    return float(Prediction("", "", "", 0, (), None, None, None, "", text, tuple(answers)).right)


def normalised(text: str, answers: Sequence[str]) -> float:
    """1 if the text, normalised, is one of the answers, normalised."""
    return float(normal(plain(text)) in {normal(answer) for answer in answers})


def is_right(p: Prediction) -> bool:
    """Whether an answer counts as right: the option, or, of an open question, the answer once both are normalised."""
    return p.right or (not p.options and normalised(p.text or "", p.answers) == 1.0)


def f1(text: str, answers: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the text's words, for the answer where that is greatest."""
    return _f1(plain(text), tuple(answers)) if text.strip() else 0.0


@lru_cache(maxsize=4096)  # the answer that is always given meets the same few answers again and again
def _f1(text: str, answers: tuple[str, ...]) -> float:
    from torchmetrics.functional.text import squad  # a third of a second, which reports and other scores do without

    found = squad({"prediction_text": text, "id": ""}, {"answers": {"text": list(answers)}, "id": ""})
    return float(found["f1"]) / 100


def normal(text: str) -> str:
    """One case, one space between words, no punctuation (``1,000`` is 1000; ``2.5`` and ``50 %`` stay, ``don't`` is
    dont, ``T-shirt`` two words), number words to ten as digits, no articles. A text of which nothing remains stays."""
    text = " ".join(unicodedata.normalize("NFKC", text).split()).casefold()
    marked = re.sub(r"(?<=\d),(?=\d{3}\b)|['’]", "", text)
    marked = re.sub(r"(?<=\d)[.:](?=\d)", lambda sign: {".": "\ue000", ":": "\ue001"}[sign[0]], marked)
    spaced = "".join(" " if _is_mark(c) else c for c in marked).replace("\ue000", ".").replace("\ue001", ":")
    words = [_NUMBERS.get(word, word) for word in spaced.split() if word not in _ARTICLES]
    return " ".join(words) or text


def _is_mark(c: str) -> bool:
    return c in _SIGNS or (c not in _KEPT and unicodedata.category(c).startswith("P"))


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {"normalised": normalised, "exact": exact, "f1": f1}


def _value(worth: Callable[[str, Sequence[str]], float]) -> Callable[[Tries], float]:
    def value(tries: Tries) -> float:
        return sum(worth(p.text or "", p.answers) if p.text and p.text.strip() else 0.0 for p in tries) / len(tries)

    return value


def _constant(worth: Callable[[str, Sequence[str]], float], usual: dict[str, str]) -> Callable[[Tries], float]:
    def value(tries: Tries) -> float:
        return sum(worth(usual[p.task], p.answers) for p in tries) / len(tries)

    return value


def _by_task(questions: Iterable[Tries]) -> dict[str, list[Tries]]:
    found: dict[str, list[Tries]] = {}
    for tries in questions:
        found.setdefault(tries[0].task, []).append(tries)
    return found


def _most_common(questions: Sequence[Tries]) -> str:
    count: Counter[str] = Counter()
    written: dict[str, str] = {}
    for tries in questions:
        for name, answer in {normal(answer): answer for answer in tries[0].answers}.items():
            count[name] += 1
            written.setdefault(name, answer)
    return written[count.most_common(1)[0][0]]
