"""Work that may never come back, in a process of its own that is killed when its time is up.

A decoder that hangs holds Python's global lock, so that no thread and no signal handler of its process gets a turn;
another process can always end it. One such process belongs to each process that reads. It lives as long as its owner
and is started again after it was killed. It imports what decoding needs and not torch. Requests and answers go through
a socket, arrays through memory that both map.

It has a session of its own, and signals that ask to stop are the owner's matter: one that reaches all processes of a
run at once (``timeout``, a cluster's warning) must not make the clip that is being decoded a bad one.

If the owner dies first, the process ends as well: it sees the closed socket or, if it hangs, the kernel's alarm clock.
"""

from __future__ import annotations

import atexit
import logging
import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from inspect import isgenerator
from multiprocessing import util
from multiprocessing.connection import Connection, Pipe
from typing import Any

from hvlm.data.quarantine import SampleError
from hvlm.data.video import VideoDecodeError
from hvlm.errors import UserError

START_S = 120.0  # for the process to import what it needs
GRACE_S = 5.0  # after which the process ends by itself if nobody ended it in time
IN_BAND = 4096  # bytes: arrays up to this go through the socket


class DecodeTimeout(VideoDecodeError):
    """The work was not done in time. Attributes: name, field, reason."""


def results(function: Callable, *args: Any, timeout: float, each: bool = False) -> Iterator[Any]:
    """Call a function in the process and give what it yields (or returns, as the only item).

    Arrays in an item lie in shared memory and hold until the next item is asked for.

    Args:
        function: importable by its name from the same places as here.
        args: can be pickled.
        timeout: seconds for the whole work, or for each item; the time spent here between items does not count.
        each: whether every item has that much time.

    Raises:
        DecodeTimeout: the time is up; the process was killed.
        VideoDecodeError: as the function raised a SampleError, or because the process died.
    """
    return _own().results(function, args, timeout, each)


def result(function: Callable, *args: Any, timeout: float) -> Any:
    """What a function returns. Raises as ``results`` does."""
    return next(results(function, *args, timeout=timeout))


class _Process:
    """The process as its owner sees it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._child: subprocess.Popen | None = None
        self._socket: Connection | None = None
        self._told: set[str] = set()

    def results(self, function: Callable, args: tuple, timeout: float, each: bool) -> Iterator[Any]:
        request = pickle.dumps((function, args, timeout, each), protocol=5)
        self._ask(request)
        waits, left = True, timeout
        try:
            while True:
                started = time.monotonic()
                answer = self._answer(left, timeout, function)
                left = timeout if each else max(0.0, left - (time.monotonic() - started))
                kind, payload, sizes, told = answer
                waits = False
                self._tell(told)
                if kind == "end":
                    return
                if kind == "item":
                    yield pickle.loads(payload, buffers=self._buffers(sizes))
                elif kind == "bad":
                    raise VideoDecodeError(*payload)
                else:
                    raise RuntimeError(f"in the decode process:\n{payload}")
                waits = True
                self._socket.send_bytes(b"next")
        except GeneratorExit:
            if self._socket is not None and not waits:
                self._socket.send_bytes(b"stop")
            raise
        except BaseException:
            if waits:  # it is still at work, on something that nobody wants any more
                self.kill()
            raise

    def _ask(self, request: bytes) -> None:
        if self._child is None or self._child.poll() is not None:
            self._start()
        try:
            self._socket.send_bytes(request)
        except OSError:  # it died between two requests
            self._start()
            self._socket.send_bytes(request)

    def _answer(self, left: float, timeout: float, function: Callable) -> tuple:
        try:
            if self._socket.poll(left):
                return pickle.loads(self._socket.recv_bytes())
        except (EOFError, OSError):
            code = self._child.wait()
            self.kill()
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            raise VideoDecodeError("", "video", f"the process that decodes {how}") from None
        self.kill()
        raise DecodeTimeout(
            "", "video", f"not decoded within {timeout:g} s, so the decoder was killed; if the file is sound, raise "
            "dataset.decode_timeout"
        )  # fmt: skip

    def _buffers(self, sizes: list[int]) -> list[memoryview]:
        total = sum(sizes)
        if total > len(self._map):
            self._map = mmap.mmap(self._memory, os.fstat(self._memory).st_size)
        view, at, parts = memoryview(self._map), 0, []
        for size in sizes:
            parts.append(view[at : at + size])
            at += size
        return parts

    def _tell(self, told: list[tuple[str, int, str]]) -> None:
        for name, level, message in told:
            if message not in self._told:
                self._told.add(message)
                logging.getLogger(name).log(level, message)

    def _start(self) -> None:
        self.kill()
        self._socket, theirs = Pipe()
        self._memory = _shared_file()
        os.ftruncate(self._memory, mmap.PAGESIZE)
        self._map = mmap.mmap(self._memory, mmap.PAGESIZE)
        places = os.pathsep.join(path or os.getcwd() for path in sys.path)
        code = f"import hvlm.data.decode as d; d.decode_process.serve({theirs.fileno()}, {self._memory})"
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self._memory),
                env=os.environ | {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        try:
            ready = self._socket.poll(START_S) and self._socket.recv_bytes()
        except (EOFError, OSError):
            ready = False
        if not ready:
            self.kill()
            raise UserError("the process that decodes videos does not start; what it said stands above")

    def kill(self) -> None:
        """End the process, whatever it does."""
        if self._socket is not None:
            self._socket.close()
            os.close(self._memory)
            self._socket = None
        if self._child is not None:
            if os.getpid() == self.owner:
                self._child.kill()
                self._child.wait()
            else:
                self._child.returncode = 0  # it is another process' child
            self._child = None


_process: _Process | None = None


def _own() -> _Process:
    global _process
    if _process is None or _process.owner != os.getpid():
        _process = _Process()
        util.Finalize(None, _end, exitpriority=1)  # a worker of multiprocessing does not run what atexit knows
    return _process


def _end() -> None:
    global _process
    if _process is not None:
        _process.kill()
    _process = None


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_end)


def _shared_file() -> int:
    """A file of which both sides map what it holds. Not below /dev/shm, which is small in many containers."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("hvlm-decoded")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


# ------------------------------------------------------------------------------------------------ the other side


def serve(socket_descriptor: int, memory: int) -> None:
    """Do what is asked for until the socket is closed."""
    for asked in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(asked, signal.SIG_IGN)  # for the owner, who ends this process
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    told: list[tuple[str, int, str]] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append((record.name, record.levelno, record.getMessage()))  # type: ignore
    logging.getLogger().addHandler(handler)
    socket = Connection(socket_descriptor)
    try:
        socket.send_bytes(b"ready")
    except ConnectionError:  # the owner was killed meanwhile
        return
    shared = mmap.mmap(memory, mmap.PAGESIZE)

    def send(kind: str, payload: Any = None, sizes: tuple = ()) -> None:
        try:
            socket.send_bytes(pickle.dumps((kind, payload, list(sizes), list(told))))
        except ConnectionError:  # the owner was killed while it waited
            raise SystemExit from None
        told.clear()

    while True:
        try:
            function, args, timeout, each = pickle.loads(socket.recv_bytes())
        except (EOFError, ConnectionError):  # the latter where the owner was killed before it read the last answer
            return
        try:
            signal.setitimer(signal.ITIMER_REAL, timeout + GRACE_S)
            done = function(*args)
            for item in done if isgenerator(done) else (done,):
                shared = _send_item(send, item, memory, shared)
                if each:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                if socket.recv_bytes() == b"stop":
                    break
                if each:
                    signal.setitimer(signal.ITIMER_REAL, timeout + GRACE_S)
            else:
                send("end")
        except (EOFError, ConnectionError):
            return
        except SampleError as error:
            send("bad", (error.name, error.field, error.reason))
        except MemoryError:
            send("bad", ("", "video", "there is not enough memory to decode it"))
        except Exception:
            send("failed", traceback.format_exc())
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _send_item(send: Callable, item: Any, memory: int, shared: mmap.mmap) -> mmap.mmap:
    buffers: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes <= IN_BAND:
            return True
        buffers.append(raw)
        return False

    payload = pickle.dumps(item, protocol=5, buffer_callback=keep)
    total = sum(raw.nbytes for raw in buffers)
    if total > len(shared):
        os.ftruncate(memory, total)
        shared = mmap.mmap(memory, total)
    at = 0
    for raw in buffers:
        shared[at : at + raw.nbytes] = raw
        at += raw.nbytes
    send("item", payload, [raw.nbytes for raw in buffers])
    return shared
