"""Who answers, where no domain is given: what the router of a gathered model says, and how it is written down."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hvlm.contracts import Benchmark
from hvlm.data.collate import Item, collate
from hvlm.data.decode import decode
from hvlm.data.video import VideoDecodeError
from hvlm.errors import UserError
from hvlm.evaluation.asking import Answer, Query
from hvlm.evaluation.scores import Prediction
from hvlm.io.json_lines import write_lines
from hvlm.rebuild import Loaded
from hvlm.router import Route, pooled

log = logging.getLogger(__name__)

ROUTES = "routes.jsonl"


def settle(loaded: Loaded, video: Path, seconds: float) -> tuple[Loaded, dict[str, Any]]:
    """Let the router pick who answers about a video, by what it shows until ``seconds``, and say who.

    Returns:
        (the model with that specialist, without its router; the route as plain values).
    """
    model, inputs = loaded.model, loaded.inputs
    try:
        frames, time_T = decode(
            video, inputs.num_frames, name=str(video), size=inputs.size, section=(0.0, seconds),
            timeout=loaded.config["dataset"]["decode_timeout"],
        )  # fmt: skip
    except VideoDecodeError as error:
        raise UserError(f"{video}: cannot be read as a video ({error.reason})") from error
    batch = collate([Item(frames, time_T, [])], pad_id=loaded.chat.pad_id, size=inputs.size).to(loaded.device)
    with model.adapter.using(language=-1, vision=-1):
        (route,) = model.router.routes(pooled(model.vision, batch))
    chat = loaded.chat.asking(model.router.prompts.get(route.domain))
    model.router = None
    model.adapter.use(route.adapter if route.adapter in model.adapter.names else None)
    log.info(
        f"domain {route.domain} (confidence {route.confidence:.2f}, of {len(time_T)} frames until {seconds:.2f} s), so "
        f"{route.adapter} answers; domain=NAME says it yourself"
    )
    return loaded._replace(chat=chat), as_plain(route)


class Routed:
    """A way to answer in which each clip is asked by the specialist that the router picks, in its words: for
    specialists whose conversations begin differently. (Else a batch may mix them, see ``hvlm.model.VLM.routed``.)

    answer: the way that each of them answers.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer, self.open_questions = answer, answer.open_questions

    def __call__(
        self, loaded: Loaded, benchmark: Benchmark, clips: Sequence[Query], variant: str
    ) -> list[list[Prediction]]:
        """The predictions about each clip."""
        prompts = loaded.model.router.prompts
        if not prompts:
            return self.answer(loaded, benchmark, clips, variant)
        groups: dict[str | None, list[int]] = {}
        for i, route in enumerate(self._routes(loaded, clips)):
            groups.setdefault(None if route is None else prompts.get(route.domain), []).append(i)
        found: dict[int, list[Prediction]] = {}
        for prompt, members in groups.items():
            one = loaded._replace(chat=loaded.chat.asking(prompt))
            answers = self.answer(one, benchmark, [clips[i] for i in members], variant)
            found |= dict(zip(members, answers, strict=True))
        return [found[i] for i in range(len(clips))]

    def _routes(self, loaded: Loaded, clips: Sequence[Query]) -> list[Route | None]:
        """None: of no video."""
        seen = [i for i, clip in enumerate(clips) if clip.frames_TCHW is not None]
        items = [Item(clips[i].frames_TCHW, clips[i].time_T, []) for i in seen]
        if not items:
            return [None] * len(clips)
        batch = collate(items, pad_id=loaded.chat.pad_id, size=loaded.inputs.size).to(loaded.device)
        with loaded.model.adapter.using(language=-1, vision=-1):
            routes = dict(zip(seen, loaded.model.router.routes(pooled(loaded.model.vision, batch)), strict=True))
        return [routes.get(i) for i in range(len(clips))]


def as_plain(route: Route) -> dict[str, Any]:
    """For a line of JSON."""
    return {**route._asdict(), "confidence": round(route.confidence, 4)}


def say_routes(said: Mapping[str, Route], out: Path) -> None:
    """Where the router sent the clips: counts in the log, each clip in ``out/routes.jsonl``."""
    write_lines(out / ROUTES, [{"uid": uid, **as_plain(route)} for uid, route in said.items()])
    count = Counter(route.adapter for route in said.values())
    sure = sum(route.confidence for route in said.values()) / max(len(said), 1)
    shares = ", ".join(f"{number} to {name}" for name, number in count.most_common())
    log.info(f"router: {len(said)} clips, {shares}; confidence {sure:.3f} on average; {out / ROUTES}")
