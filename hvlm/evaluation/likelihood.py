"""How likely the model finds each answer to each prompt about a clip, with one vision pass per clip.

All rows about a batch of clips travel in one ``Batch`` (several rows per clip). Where every answer to a prompt is a
single token, one row per prompt is enough: the distribution over its next token holds all of them. Otherwise there is
one row per answer.

The end token is never part of the score. Only so are the two ways the same number, and only so is the mean over an
answer's own tokens not diluted by a token that all answers share (which favours short ones). The price: with
``loglik_sum`` an answer is never less likely than one that continues it, so answers that begin alike need the mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hvlm.caching import PastKV
from hvlm.contracts import Benchmark
from hvlm.data.collate import Item, collate
from hvlm.errors import UserError
from hvlm.evaluation.asking import Query
from hvlm.evaluation.encoder import once
from hvlm.evaluation.scores import Likelihood, Prediction, Question
from hvlm.precision import autocast
from hvlm.prompts import context
from hvlm.rebuild import Loaded
from hvlm.text.chat import Chat, Encoded
from hvlm.types import Batch, InputSpec


class Scores(Protocol):
    """What is needed of a model; ``hvlm.model.VLM`` documents all."""

    def parameters(self) -> Iterator[Tensor]: ...

    def token_logprobs(self, batch: Batch, cache: PastKV | None = None) -> Tensor: ...

    def next_token_logprobs(self, batch: Batch, cache: PastKV | None = None) -> Tensor: ...

    def forgetful(self) -> PastKV | None: ...


class _Row(NamedTuple):
    """One answer to one prompt about one clip. ``row`` ends with the answer's last token, before the end token."""

    clip: int
    prompt: str
    answer: str
    row: Encoded


class ByLikelihood:
    """Answers by the likelihood of what may be answered."""

    open_questions = False

    def __call__(
        self, loaded: Loaded, benchmark: Benchmark, clips: Sequence[Query], variant: str
    ) -> list[list[Prediction]]:
        """The predictions about each clip."""
        found = answer_likelihoods(loaded.model, loaded.chat, clips, loaded.inputs, loaded.precision)
        return [
            [p for question in clip.questions for p in benchmark.predict(question, likelihoods, variant)]
            for clip, likelihoods in zip(clips, found, strict=True)
        ]


@torch.inference_mode()
def answer_likelihoods(
    model: Scores,
    chat: Chat,
    clips: Sequence[Query],
    inputs: InputSpec,
    precision: str,
) -> list[dict[tuple[str, str], Likelihood]]:
    """For each clip {(prompt, answer): Likelihood}. The caller puts the model into eval mode.

    inputs: how the model wants its clips. precision: one of ``hvlm.precision.DTYPES``.
    Raises UserError for an answer of no tokens and for answers that the tokenizer cannot tell apart.
    """
    next_token, whole = _rows(chat, clips, inputs.order)
    device = next(model.parameters()).device
    out: list[dict[tuple[str, str], Likelihood]] = [{} for _ in clips]
    everyone = bool(next_token and whole)  # both passes are then about the same frames
    with autocast(device, precision), once(model.vision if everyone else None):
        frames = None
        if next_token:
            batch = _batch(chat, clips, [rows[0] for rows in next_token], inputs, everyone).to(device)
            frames = batch.frames_BTCHW
            for rows, logp_V in zip(
                next_token, model.next_token_logprobs(batch, model.forgetful()).float().cpu(), strict=True
            ):
                for clip, prompt, answer, row in rows:
                    out[clip][prompt, answer] = Likelihood(float(logp_V[row.ids[-1]]), 1)
        if whole:
            batch = _batch(chat, clips, whole, inputs, everyone).to(device)
            batch = batch if frames is None else batch._replace(frames_BTCHW=frames)
            logp_KS = model.token_logprobs(batch, model.forgetful()).float().cpu()
            for (clip, prompt, answer, row), total in zip(whole, logp_KS.sum(1).tolist(), strict=True):
                out[clip][prompt, answer] = Likelihood(total, sum(row.loss_mask))
    return out


def check_answers(chat: Chat, questions: Sequence[Question], order: str) -> None:
    """UserError for an answer of no tokens and for answers that the tokenizer cannot tell apart."""
    _rows(chat, [Query(None, None, questions)], order)


def check_lengths(chat: Chat, questions: Sequence[Question], order: str, max_tokens: int) -> None:
    """UserError where not one of the questions fits into ``max_tokens`` with its longest answer and nothing before."""
    shortest = None
    for one in (q.tries[0] for q in questions):
        tokens = max(len(chat.encode(str(one.prompt), answer, "last", order).ids) for answer in one.answers)
        shortest = tokens if shortest is None else min(shortest, tokens)
        if tokens <= max_tokens:
            return
    if shortest is not None:
        raise UserError(
            f"dataset.max_tokens={max_tokens}: the shortest of {len(questions)} questions of the benchmark has "
            f"{shortest} tokens; raise it, or set evaluate=false"
        )


def _rows(chat: Chat, clips: Sequence[Query], order: str) -> tuple[list[list[_Row]], list[_Row]]:
    """(the rows of each prompt whose answers are all single tokens, the rows of the other prompts)."""
    next_token, whole = [], []
    encoded: dict[tuple[str, str], Encoded] = {}  # the same few prompts come back for every clip
    for i, clip in enumerate(clips):
        for prompt, answers in clip.answers.items():
            for answer in answers:
                if (prompt, answer) not in encoded:
                    encoded[prompt, answer] = _without_end(
                        chat.encode(prompt, answer, "last", order, **context(prompt))
                    )
                if not any(encoded[prompt, answer].loss_mask):
                    raise UserError(f"the answer {answer!r} to {prompt!r} is no token at all; it cannot be scored")
            rows = [_Row(i, prompt, answer, encoded[prompt, answer]) for answer in answers]
            _check_distinct(rows, chat)
            if all(sum(row.row.loss_mask) == 1 for row in rows):
                next_token.append(rows)
            else:
                whole += rows
    return next_token, whole


def _check_distinct(rows: Sequence[_Row], chat: Chat) -> None:
    """Answers outside a small vocabulary all become the unknown word, and the first would win by its place."""
    seen: dict[tuple[int, ...], str] = {}
    for row in rows:
        ids = tuple(row.row.ids)
        if seen.setdefault(ids, row.answer) != row.answer:
            raise UserError(
                f"the tokenizer cannot tell the answers {seen[ids]!r} and {row.answer!r} apart (both are "
                f"{chat.decode(row.row.ids[-1:])!r}); use a language model whose vocabulary has both, e.g. "
                "language=smollm2_135m, or train the tokenizer on text with them"
            )


def _without_end(row: Encoded) -> Encoded:
    """The model is causal: leaving out the last token changes nothing before it."""
    return row._replace(ids=row.ids[:-1], loss_mask=row.loss_mask[:-1])


def _batch(chat: Chat, clips: Sequence[Query], rows: Sequence[_Row], inputs: InputSpec, everyone: bool) -> Batch:
    """The rows, which come clip by clip, with the clips that they are about; clips that no row asks about stay out
    unless ``everyone`` is wanted."""
    by_clip: dict[int, list[_Row]] = {i: [] for i in range(len(clips))} if everyone else {}
    for row in rows:
        by_clip.setdefault(row.clip, []).append(row)
    items = [
        Item(clip.frames_TCHW, clip.time_T, [(*row.row, {}) for row in about], uid=clip.uid, motion=clip.motion_TYX)
        for clip, about in ((clips[i], rows) for i, rows in by_clip.items())
    ]
    return collate(items, pad_id=chat.pad_id, size=inputs.size, motion=inputs.motion)
