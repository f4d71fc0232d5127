"""An object in a process of its own, whose methods are called from here: what that process takes is the object's."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from predistill.errors import PredistillError, RunError

__all__ = ["Apart"]

LAST_SECONDS = 5.0


class Apart:
    """The object `make(**settings)` in a fresh process; a context manager, at whose end the process has ended.

    It is made at once, beside whatever goes on here; the first `ask` waits for it. What is refused there with a
    PredistillError is raised here. The process ends with this one, however that ends.
    """

    def __init__(self, make: Callable[..., Any], *, name: str, **settings: Any) -> None:
        self._name = name
        context = multiprocessing.get_context("spawn")  # a fork after torch has made threads may hang
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, settings), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *failure: object) -> None:
        self._pipe.close()  # what it waits for
        self._process.join(timeout=LAST_SECONDS)
        self._process.terminate()
        self._process.join()

    def ask(self, method: str, **settings: Any) -> Any:
        """What the object's method answers."""
        try:
            self._pipe.send((method, settings))
            answer, refused = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise self._gone() from None
        if refused is not None:
            raise refused
        return answer

    def _gone(self) -> Exception:
        self._process.join()
        code = self._process.exitcode
        assert code is not None
        if code > 0:  # a bug: its traceback stands on stderr
            return RuntimeError(f"the process of {self._name} ended with exit code {code}")
        return RunError(
            f"The process of {self._name} was ended by {signal.Signals(-code).name}. If memory ran short, name fewer "
            "models at once, or use --dtype bf16."
        )


def _serve(pipe: Connection, make: Callable[..., Any], settings: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches the whole group; the caller decides
    thing, refused = None, None
    try:
        thing = make(**settings)
    except PredistillError as error:
        refused = error
    while True:
        try:
            method, given = pipe.recv()
        except EOFError:  # the caller has gone
            return
        answer = None
        if thing is not None:
            try:
                answer, refused = getattr(thing, method)(**given), None
            except PredistillError as error:
                refused = error
        try:
            pipe.send((answer, refused))
        except ConnectionError:
            return
