"""A process that ran out of memory ends.

Nobody can say what a process is worth in which anything may have failed, the callback that somebody waits for too: it
would live on and never answer. Each daemon is started again at once, and recovers from what it has on disk.
"""

import asyncio
import os
import sys
import threading
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

#: What a daemon ends with then: no other code of its own.
EXIT_CODE = 70
_LAST_WORDS = b"level=critical event=out-of-memory\n"


def end() -> NoReturn:
    """End at once, as a crash would, without asking for more memory."""
    os.write(2, _LAST_WORDS)
    os._exit(EXIT_CODE)


def end_if(value: BaseException | None) -> None:
    """End where an exception tells of it."""
    if isinstance(value, MemoryError):
        end()


class _Loop(asyncio.SelectorEventLoop):
    def run_forever(self) -> None:
        try:
            super().run_forever()
        except MemoryError:  # of the loop itself: what it was about to run is lost, and would be waited for at the end
            end()


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a daemon as asyncio.run does, and end where its loop runs out of memory."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)


def watch() -> None:
    """End where a thread dies of it, or nobody is left to raise it to. What else goes wrong is told as before."""
    in_thread, in_nothing = threading.excepthook, sys.unraisablehook

    def of_thread(args: threading.ExceptHookArgs, /) -> None:
        end_if(args.exc_value)
        in_thread(args)

    def unraisable(args: "sys.UnraisableHookArgs", /) -> None:
        end_if(args.exc_value)
        in_nothing(args)

    threading.excepthook, sys.unraisablehook = of_thread, unraisable
