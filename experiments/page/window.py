"""A window of headless Chromium with the page of ``hvlm ui``, driven by selenium."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from experiments.report.browser import browser
from hvlm.errors import UserError

WIDTH = 1280  # pixels
WAIT = 120.0  # seconds, for anything
CLEAR = "#video button[aria-label*='Clear'], #video button[aria-label*='Remove']"
# Milliseconds from the click until a letter of the first model's answer stands in its box.
FIRST_LETTER = """
const done = arguments[arguments.length - 1], began = performance.now();
const box = () => document.querySelector('#answer0 textarea, #answer0 input');
const look = () => box() && box().value ? done(performance.now() - began) : setTimeout(look, 2);
document.querySelector('#ask').click();
look();
"""


def missing() -> str:
    """What the window needs and this machine lacks, or ""."""
    packages = [name for name in ("gradio", "selenium") if importlib.util.find_spec(name) is None]
    programs = [name for name, found in (("chromium", browser()), ("chromedriver", driver())) if found is None]
    return ", ".join(packages + programs)


def driver() -> str | None:
    return shutil.which("chromedriver")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Window:
    """One visitor's.

    Args:
        address: of the page.

    Raises:
        UserError: something of ``missing`` is.
    """

    def __init__(self, address: str) -> None:
        if lacking := missing():
            raise UserError(
                f"not installed: {lacking}; pip install 'hvlm[ui]' selenium, and chromium with its chromedriver "
                "(Debian, Ubuntu: apt install chromium chromium-driver)"
            )
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = browser() or ""
        # no-sandbox: root has none, in containers; dev/shm is small there.
        for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", f"window-size={WIDTH},1400"):
            options.add_argument(f"--{flag}")
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(driver()))
        try:
            self.driver.set_script_timeout(WAIT)
            self.open(address)
        except BaseException:
            self.driver.quit()
            raise

    def __enter__(self) -> Window:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.driver.quit()

    def open(self, address: str) -> None:
        """The page, as another visitor."""
        self.driver.get(address)
        self.until(lambda: self.all("#ask"), "the page")

    def all(self, css: str) -> list[Any]:
        return self.driver.find_elements("css selector", css)

    def until(self, holds: Callable[[], object], what: str) -> None:
        """Wait until it holds. AssertionError, naming what was waited for, after ``WAIT`` seconds."""
        ends = time.monotonic() + WAIT
        while not holds():
            if time.monotonic() > ends:
                raise AssertionError(f"{what} did not come; status: {self.value('status')!r}")
            time.sleep(0.05)

    def value(self, name: str) -> str:
        """What stands in a text field."""
        boxes = self.all(f"#{name} textarea, #{name} input")
        return boxes[0].get_property("value") if boxes else ""

    def upload(self, file: Path) -> None:
        if self.all(CLEAR):
            self.driver.execute_script(f'document.querySelector("{CLEAR}").click()')
        self.until(lambda: self.all("#video input[type=file]"), "the place for a file")
        self.all("#video input[type=file]")[0].send_keys(str(file))
        # Gradio cuts long names in the middle, but keeps how they begin and end.
        self.until(lambda: file.stem[:6] in self.all("#video")[0].text, f"the upload of {file.name}")
        self.until(lambda: not self.all("#video .progress-bar, #video .wrap.generating"), "the end of the upload")

    def write(self, question: str) -> None:
        box = self.all("#question textarea, #question input")[0]
        box.clear()
        box.send_keys(question)

    def ask(self, question: str) -> None:
        self.write(question)
        self.all("#ask")[0].click()

    def first_letter_ms(self, question: str) -> float:
        """Ask, in a window in which nothing was asked before; milliseconds until the answer begins to be seen."""
        self.write(question)
        return float(self.driver.execute_async_script(FIRST_LETTER))

    def answered(self) -> None:
        """Wait for the end of the answer and its pictures."""
        self.until(lambda: self.value("status") not in ("", "reading ...", "answering ..."), "the end of the answer")

    def keep(self, picture: Path) -> None:
        """The whole page as a PNG."""
        self.driver.set_window_size(WIDTH, 400)
        height = self.driver.execute_script("return document.documentElement.scrollHeight")
        self.driver.set_window_size(WIDTH, height + self.driver.execute_script("return outerHeight - innerHeight"))
        self.driver.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
        if not self.driver.save_screenshot(str(picture)):
            raise UserError(f"{picture}: cannot be written; give a path that ends in .png, in a folder that is there")
