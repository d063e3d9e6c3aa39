"""``coldframe-agent check``: what the agent needs of its host, looked at without changing anything."""

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from agent.config import Config
from agent.host import hook_file, process
from agent.host.confine import Bounds
from agent.host.hypervisor import Hypervisor
from agent.web import serving
from agent.web.auth import read_secret_file
from agent.web.errors import Error

_HOOK_HELP = {
    "missing": "is not there, so nothing keeps a VM from starting in the middle; run make install, restart libvirtd",
    "not-executable": "is not executable, so libvirt does not call it; run: chmod 755",
    "different": "belongs to another version of Coldframe; install the one that came with this agent",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``detail`` says what was found, or what is wrong and what to do."""

    name: str
    ok: bool
    detail: str


async def run(config: Config) -> list[Finding]:
    """Look at everything; one problem does not keep the rest from being looked at."""
    checks: list[tuple[str, Callable[[Config], Awaitable[str]]]] = [
        ("token", _token),
        ("listen", _listen),
        ("state-dir", _state_dir),
        ("hook", _hook),
        ("libvirt", _libvirt),
        ("qemu-img", _qemu_img),
    ]
    findings = [await _finding(name, check, config) for name, check in checks]
    images = [_directory(path, "make it, or correct allowed_image_dirs") for path in config.allowed_image_dirs]
    return [*findings, *images, _directory(config.nvram_dir), _directory(config.swtpm_dir)]


class _Problem(Exception):
    """What a check found to be wrong."""


async def _finding(name: str, check: Callable[[Config], Awaitable[str]], config: Config) -> Finding:
    try:
        return Finding(name, ok=True, detail=await check(config))
    except (Error, _Problem, OSError) as err:
        return Finding(name, ok=False, detail=str(err))


async def _token(config: Config) -> str:
    await asyncio.to_thread(read_secret_file, config.token_file)
    return f"{config.token_file} can be used"


async def _listen(config: Config) -> str:
    tls = config.tls
    if tls is not None:
        await asyncio.to_thread(serving.tls_context, tls)
    if not config.listen:
        return f"{config.socket} only"
    serving.check_listen(config.listen, tls)
    return f"{config.listen} {'with' if tls else 'without'} TLS, and {config.socket}"


async def _state_dir(config: Config) -> str:
    return await asyncio.to_thread(_look_at_state_dir, config.state_dir)


def _look_at_state_dir(path: Path) -> str:
    try:
        found = path.stat()
    except FileNotFoundError:
        return f"{path} is not there yet; the agent makes it"
    if not stat.S_ISDIR(found.st_mode):
        raise _Problem(f"{path} is not a directory")
    if found.st_uid != os.geteuid():
        raise _Problem(f"{path} belongs to user {found.st_uid}, this is user {os.geteuid()}")
    if found.st_mode & 0o077:
        raise _Problem(f"{path} is open to group or others; run: chmod 700 {path}")
    return f"{path} is private"


async def _hook(config: Config) -> str:
    path = config.hook_file
    state = await asyncio.to_thread(hook_file.state, path)
    if state != "ok":
        raise _Problem(f"{path} {_HOOK_HELP[state]}")
    told = await asyncio.to_thread(hook_file.told_state_dir, path)
    if told is not None and told != config.state_dir:
        raise _Problem(
            f"{path}.conf names the state directory {told}; start the agent once, it writes {config.state_dir}"
        )
    return f"{path} is in force"


async def _libvirt(config: Config) -> str:
    async with Hypervisor(config.libvirt_uri, 1, config.libvirt_deadline_s) as hypervisor:
        versions = await hypervisor.versions()
    if versions.qemu is None:
        raise _Problem(f"{config.libvirt_uri}: libvirt {versions.libvirt} finds no QEMU")
    return f"{config.libvirt_uri}: libvirt {versions.libvirt}, QEMU {versions.qemu}"


async def _qemu_img(config: Config) -> str:
    done = await process.run(["qemu-img", "--version"], timeout_s=10, bounds=Bounds())
    if done.returncode != 0:
        raise _Problem(done.error_text)
    return done.stdout.decode(errors="replace").splitlines()[0]


def _directory(path: Path, if_missing: str | None = None) -> Finding:
    """Look at one directory. Those that libvirt makes with the first VM that needs them may be missing."""
    if path.is_dir():
        return Finding(str(path), ok=True, detail="is a directory")
    if path.exists():
        return Finding(str(path), ok=False, detail="is not a directory; correct the setting")
    return Finding(str(path), ok=if_missing is None, detail=f"is not there; {if_missing or 'libvirt makes it'}")
