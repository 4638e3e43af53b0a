"""Serving the page: on this machine alone unless told otherwise, with temporary files of its own that go with it."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvlm.data import decode_process
from hvlm.data.tar import VIDEO_FIELDS
from hvlm.errors import UserError
from hvlm.ui.guard import LOOPBACK, Guard
from hvlm.ui.uploads import Uploads

log = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each of gradio's own calls


@dataclass(frozen=True)
class Settings:
    """Of one command; ``hvlm.commands.ui.USAGE`` says what they are."""

    checkpoint: str
    beside: str | None = None
    videos: str | None = None
    host: str = "127.0.0.1"
    port: int = 7860
    upload_mb: int = 200
    max_new_tokens: int = 32


def check(settings: Settings) -> None:
    """UserError for a number out of its range, before anything is loaded."""
    for name, least, most in (("port", 1, 65535), ("upload_mb", 1, 100_000), ("max_new_tokens", 1, 4096)):
        value = getattr(settings, name)
        if not least <= value <= most:
            raise UserError(f"{name}={value}: expected {least} to {most}")


def videos_of(folder: str | None) -> dict[str, Path]:
    """{name: file} of the videos directly inside, or links to them. UserError where there are none."""
    if folder is None:
        return {}
    where = Path(folder).expanduser()
    if not where.is_dir():
        raise UserError(f"videos={folder}: no such folder; expected one that holds video files")
    files = (file for file in sorted(where.iterdir()) if file.suffix.lower().lstrip(".") in VIDEO_FIELDS)
    found = {file.name: file for file in files if file.is_file()}
    if not found:
        raise UserError(f"videos={folder}: no video in it; expected files that end in {', '.join(VIDEO_FIELDS)}")
    return found


@contextmanager
def served(settings: Settings) -> Iterator[str]:
    """Load, open the page, give its address; afterwards it is closed and its temporary files are gone.

    Raises:
        UserError: gradio is not installed, a setting or a checkpoint is wrong, the port is taken.
    """
    check(settings)
    videos = videos_of(settings.videos)
    # Nothing is sent anywhere: neither that the page was opened, nor a question whether there is a newer gradio.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio as gr
    except ImportError as error:
        raise UserError(f"hvlm ui: gradio is not installed ({error}); pip install 'hvlm[ui]', or make ui") from error
    from starlette.middleware import Middleware

    from hvlm.ui.page import CSS, page

    models = _models(settings)
    with tempfile.TemporaryDirectory(prefix="hvlm-ui-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        made = page(models, videos, settings.max_new_tokens, Uploads(Path(folder)))
        most = settings.upload_mb * 2**20
        hosts = LOOPBACK if settings.host in LOOPBACK else ()
        guard = Middleware(Guard, folder=Path(folder), upload_bytes=most, hosts=hosts)
        # Said here whatever gradio's variables of the environment say.
        off: dict[str, Any] = {
            "share": False,
            "ssr_mode": False,
            "mcp_server": False,
            "pwa": False,
            "run_history": False,
        }
        off |= {"enable_monitoring": False, "num_workers": 0}
        # Fonts of this machine: the default themes ask a server elsewhere for theirs.
        theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
        try:
            _, address, _ = made.launch(
                server_name=settings.host,
                server_port=settings.port,
                max_file_size=most,
                app_kwargs={"middleware": [guard]},
                theme=theme,
                css=CSS,
                footer_links=[],
                **off,
                quiet=True,
                prevent_thread_lock=True,
            )
        except OSError as error:
            raise UserError(
                f"port={settings.port}: cannot be opened on host={settings.host} ({error}); give another port"
            ) from error
        try:
            decode_process.result(os.getpid, timeout=decode_process.START_S)  # else the first question waits for it
            if settings.host not in LOOPBACK:
                log.warning(f"host={settings.host}: everybody who reaches this machine can ask, and upload files")
            yield address
        finally:
            made.close(verbose=False)


def _models(settings: Settings) -> dict[str, Any]:
    """{name: model}; two of one path are refused, as there would be nothing to compare."""
    from hvlm.api.load import load

    given = {"checkpoint": settings.checkpoint, "beside": settings.beside}
    paths = {key: path for key, path in given.items() if path}
    if len({Path(path).expanduser().resolve() for path in paths.values()}) < len(paths):
        raise UserError(f"beside={settings.beside}: is the checkpoint itself; name another one, or leave it out")
    found = {}
    for key, path in paths.items():
        try:
            found[path] = load(path)
        except UserError as error:  # which of the two
            raise UserError(f"{key}={path}: {str(error).removeprefix(f'{path}: ')}") from error
        if not found[path].vlm.head.writes:
            raise UserError(f"{key}={path}: its head ({found[path].vlm.head.task}) writes no words; expected head=text")
    return found


def run(settings: Settings) -> None:
    """Serve until Ctrl-C or a request to end."""
    import threading

    over = threading.Event()
    before = {s: signal.signal(s, lambda *_: over.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        with served(settings) as address:
            print(f"{address} (Ctrl-C ends it)", flush=True)
            over.wait()
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
