"""Whose process is known to be dead."""

import os
import subprocess
import sys

from controller import owners

ELSEWHERE = "11111111-2222-3333-4444-555555555555/pid:[1]/1/1/ab"


def named_by_another_process(*, wait: str = "") -> tuple[str, "subprocess.Popen[str]"]:
    code = f"from controller import owners; print(owners.new(), flush=True); {wait or 'pass'}"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process.stdout.readline().strip(), process


def test_the_living_are_not_dead() -> None:
    assert not owners.is_dead(owners.new())
    name, process = named_by_another_process(wait="input()")
    assert not owners.is_dead(name)
    process.communicate("done")


def test_a_process_that_ended_is_dead_also_before_it_is_reaped() -> None:
    name, process = named_by_another_process(wait="input()")
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    assert owners.is_dead(name)
    process.communicate()
    assert owners.is_dead(name)


def test_a_reused_process_number_is_not_the_process_that_had_it() -> None:
    world, pid, _, token = owners.new().rsplit("/", 3)
    assert owners.is_dead(f"{world}/{pid}/1/{token}")


def test_of_another_machine_boot_or_version_nothing_is_known() -> None:
    assert not owners.is_dead(ELSEWHERE)
    assert not owners.is_dead("0123456789abcdef")
    assert not owners.is_dead("")


def told_under(proc_options: str, code: str, user: int = 0) -> str:
    """Run code as a user for whom ``/proc`` is mounted anew with these options, as systemd does for a service."""
    begin = f"import os; from controller import owners; os.setgroups([]); os.setgid({user}); os.setuid({user}); {code}"
    mount = f'mount -t proc -o {proc_options} proc /proc && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, sys.executable, begin], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_where_proc_shows_no_boot_id_an_engine_has_a_name_of_which_nothing_is_known() -> None:
    name = told_under("subset=pid", "me = owners.new(); assert not owners.is_dead(me); print(me)")
    assert name.startswith("unknown/")
    assert not owners.is_dead(name)


def test_a_living_process_that_proc_hides_is_not_taken_for_dead() -> None:
    name, process = named_by_another_process(wait="input()")
    for options in ("hidepid=invisible", "hidepid=noaccess"):
        assert told_under(options, f"print(owners.is_dead({name!r}))", user=65534) == "False"
    process.communicate("done")
    assert told_under("hidepid=invisible", f"print(owners.is_dead({name!r}))", user=65534) == "True"


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_who_shows_the_same_for_a_lease_is_silent_and_who_shows_news_is_not() -> None:
    clock = Clock()
    silence = owners.Silence(15, clock)
    assert not silence.is_over("job", ("a", 1))
    clock.now_s += 14
    assert not silence.is_over("job", ("a", 1))
    assert not silence.is_over("other", ("a", 1))
    clock.now_s += 1
    assert silence.is_over("job", ("a", 1))
    assert not silence.is_over("job", ("a", 2))  # heard of, if late
    clock.now_s += 15
    assert silence.is_over("job", ("a", 2))
    assert not silence.is_over("job", ("b", 2))  # somebody else has it now


def test_what_is_forgotten_begins_a_lease_of_its_own_when_it_is_seen_again() -> None:
    clock = Clock()
    silence = owners.Silence(15, clock)
    silence.is_over("job", 1)
    silence.forget_others(["another"])
    clock.now_s += 60
    assert not silence.is_over("job", 1)
