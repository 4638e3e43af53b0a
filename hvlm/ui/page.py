"""The page: a video, a question, and an answer of each model beside the other. Needs gradio (the extra ``ui``)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from hvlm.api.model import Model
from hvlm.errors import UserError
from hvlm.ui.asking import Told, in_a_thread, tell
from hvlm.ui.drawing import strips, table
from hvlm.ui.uploads import Uploads

log = logging.getLogger(__name__)

CSS = ".figures td {padding: 1px 10px 1px 0}"
WAITING = 32  # questions in the queue
MAX_QUESTION = 2_000  # letters


def page(models: Mapping[str, Model], videos: Mapping[str, Path], max_new_tokens: int, uploads: Uploads) -> gr.Blocks:
    """The page, not yet served.

    Args:
        models: {what it is called: one or two of them}.
        videos: {name: file} that can be picked.
        max_new_tokens: of an answer.
        uploads: keeps account of the visitors' files.
    """
    trained = max(model.inputs.num_frames for model in models.values())

    def ask(upload: str | None, picked: str | None, question: str, frames: float, request: gr.Request) -> Iterator[Any]:
        # What a visitor sends is an uploaded file, or the name of a listed one; never another path.
        video = str(videos[picked]) if picked in videos else None
        shown = ["", *["", "", ""] * len(models)]
        if upload is not None:
            video = upload if uploads.add(request.session_hash or "", upload) else None
        if video is None:
            yield ["Choose a video first." if upload is None else "The file is gone; upload it again.", *shown[1:]]
            return
        if not (question or "").strip():
            yield ["Write a question first.", *shown[1:]]
            return
        if len(question) > MAX_QUESTION:
            yield [f"The question has {len(question):,} letters; at most {MAX_QUESTION:,} are read.", *shown[1:]]
            return
        shown[0] = "reading ..."
        yield list(shown)
        for i, model in enumerate(models.values()):
            try:
                for told in in_a_thread(lambda model=model: tell(model, video, question, int(frames), max_new_tokens)):
                    shown[0] = told.note or "answering ..."
                    shown[1 + 3 * i : 4 + 3 * i] = _shown(told)
                    yield list(shown)
            except UserError as error:
                said = str(error).replace(video, Path(video).name)
                yield [" ".join(said.split()), *shown[1:]]  # the name of a file may hold more lines than one
                return
            except Exception as error:  # of one question: the page goes on for everybody else
                log.exception("a question could not be answered")
                why = f"The question could not be answered ({type(error).__name__}); the server's log says more."
                yield [why, *shown[1:]]
                return
        yield ["done" if shown[0] == "answering ..." else shown[0], *shown[1:]]

    def keep(upload: str | None, request: gr.Request) -> None:
        if upload:
            uploads.add(request.session_hash or "", upload)

    def leave(request: gr.Request) -> None:
        uploads.remove(request.session_hash or "")

    # What a visitor who vanished left behind goes within two hours.
    with gr.Blocks(title="hvlm", delete_cache=(600, 7200), analytics_enabled=False) as made:
        gr.Markdown("## Ask about a video")
        with gr.Row():
            with gr.Column():
                upload = _for_files_alone(gr.File(label="video", elem_id="video", type="filepath"), uploads)
                picked = gr.Dropdown(
                    ["", *videos], value="", label="or one of these", elem_id="picked", visible=bool(videos)
                )
            with gr.Column():
                question = gr.Textbox(label="question", elem_id="question", max_length=MAX_QUESTION)
                frames = gr.Slider(1, max(64, 4 * trained), trained, step=1, label="frames", elem_id="frames")
                button = gr.Button("Ask", variant="primary", elem_id="ask")
                status = gr.Textbox(label="status", elem_id="status", interactive=False)
        answers: list[Any] = []
        with gr.Row():
            for i, name in enumerate(models):
                with gr.Column():
                    answers.append(gr.Textbox(label=name, elem_id=f"answer{i}", interactive=False))
                    answers.append(gr.HTML(elem_id=f"figures{i}"))
                    answers.append(gr.HTML(elem_id=f"pictures{i}"))
        how: dict[str, Any] = {
            "inputs": [upload, picked, question, frames],
            "outputs": [status, *answers],
            "concurrency_limit": 1,  # a model answers one question at a time; the others see their place in the queue
            "concurrency_id": "models",
            "show_progress": "minimal",
        }
        button.click(ask, **how)
        question.submit(ask, **how)
        upload.upload(keep, upload, None, queue=False)
        made.unload(leave)
    made.queue(max_size=WAITING)
    return made


def _shown(told: Told) -> list[str]:
    return [told.text, table(told.figures), strips(told.pictures)]


def _for_files_alone(upload: gr.File, uploads: Uploads) -> gr.File:
    """Take what was uploaded and nothing else. Gradio's own takes folders, too, at which its removal of old files then
    ends; it fetches a file from any address that a visitor sends; it makes an empty file for each question, and leaves
    it. Not a subclass: for those gradio writes a file beside the module."""
    move = upload.async_move_resource_to_block_cache

    async def moved(path: str | Path | None) -> str | None:
        if path is not None and not uploads.holds(path):
            raise gr.Error("The file is gone; upload it again.")
        return await move(path)

    upload.async_move_resource_to_block_cache = moved
    upload.preprocess = lambda payload: None if payload is None else payload.path
    return upload
