"""Log lines: one fact a line, whatever the values hold."""

import logging
import subprocess
import sys

import pytest

from agent.web import out_of_memory
from agent.web.log import REQUEST_ID, KeyValueFormatter, configure, kv, render


def line(message: object, **more: object) -> str:
    record = logging.makeLogRecord(
        {"name": "agent.x", "levelname": "INFO", "msg": message, "created": 0.0, "msecs": 0.0, **more}
    )
    return KeyValueFormatter().format(record)


def test_a_line_names_time_level_logger_event_and_facts() -> None:
    assert line(kv("listening", url="http://x:1", tls=True, peer=None)) == (
        "time=1970-01-01T00:00:00.000Z level=info logger=agent.x event=listening url=http://x:1 tls=true"
    )


@pytest.mark.parametrize("value", ["two words", "", 'quo"te', "a=b", "line\nbreak", "bell\x07", "back\\slash"])
def test_an_odd_value_stays_on_its_line_in_quotes(value: str) -> None:
    text = render({"name": value})
    assert text.startswith('name="')
    assert "\n" not in text


def test_a_plain_message_its_extra_facts_and_a_traceback_are_one_line() -> None:
    try:
        int("first\nsecond")
    except ValueError:
        text = line("gone %s", args=("away",), path="/x", exc_info=sys.exc_info())
    assert 'msg="gone away" path=/x exception="Traceback' in text
    assert "\n" not in text


def test_the_request_id_is_on_each_line_of_its_request() -> None:
    token = REQUEST_ID.set("r1")
    try:
        assert line(kv("x")).endswith(" request=r1")
    finally:
        REQUEST_ID.reset(token)


def test_configure_sends_everything_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure("warning")
        logging.getLogger("anything").warning("hello")
        logging.getLogger("anything").info("unheard")
    finally:
        root.handlers[:], root.level = before, level
    captured = capsys.readouterr()
    assert "msg=hello" in captured.err
    assert "unheard" not in captured.err
    assert captured.out == ""


ENDS = """
import logging, sys
from agent.web.log import configure
configure()
{trouble}
print("lives on")
"""
TOLD = "try: raise MemoryError\nexcept MemoryError: logging.exception('it broke')"
NOT_TOLD = """
class Large:
    def __str__(self): raise MemoryError
logging.info('%s', Large())
"""


IN_A_THREAD = """
import threading
def run(): raise MemoryError
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""
NOWHERE = """
class Last:
    def __del__(self): raise MemoryError
Last()
"""
IN_THE_LOOP = """
import asyncio
from agent.web import out_of_memory
def fail(): raise MemoryError
async def main():
    asyncio.get_running_loop().time = fail
    await asyncio.sleep(0)
out_of_memory.run(main())
"""


@pytest.mark.parametrize("trouble", [TOLD, NOT_TOLD, IN_A_THREAD, NOWHERE, IN_THE_LOOP])
def test_a_process_that_ran_out_of_memory_ends_and_says_so(trouble: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDS.format(trouble=trouble)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (out_of_memory.EXIT_CODE, "")
    assert done.stderr.endswith("event=out-of-memory\n")


def test_a_line_that_cannot_be_written_for_another_reason_ends_nothing() -> None:
    trouble = "logging.info('%d', 'no number')"
    done = subprocess.run(
        [sys.executable, "-c", ENDS.format(trouble=trouble)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "lives on\n"
