"""The agent's settings."""

from pathlib import Path

import pytest

from agent import config
from agent.config import Config
from agent.web.errors import ListenRefused, SettingsError


def test_every_key_that_must_exist_has_its_default() -> None:
    defaults = config.load(None, {}).settings if not config.DEFAULT_FILE.exists() else Config()
    assert (defaults.listen, defaults.socket) == ("127.0.0.1:7701", Path("/run/coldframe/agent.sock"))
    assert defaults.libvirt_uri == "qemu:///system"
    assert defaults.state_dir == Path("/var/lib/coldframe/agent")
    assert defaults.allowed_image_dirs == [Path("/var/lib/libvirt/images")]
    assert (defaults.nvram_dir, defaults.swtpm_dir) == (
        Path("/var/lib/libvirt/qemu/nvram"),
        Path("/var/lib/libvirt/swtpm"),
    )
    assert (defaults.max_chain_depth, defaults.tls, defaults.log_level) == (100, None, "info")


@pytest.mark.parametrize("hook_dir", ["/etc/libvirt/hooks", "/etc/libvirt/hooks/qemu.d"])
def test_the_hooks_directory_or_its_qemu_d_may_be_given(hook_dir: str) -> None:
    assert Config(hook_dir=Path(hook_dir)).hook_file == Path("/etc/libvirt/hooks/qemu.d/50-coldframe")


@pytest.mark.case("X3")
def test_an_address_that_others_reach_is_refused_without_tls() -> None:
    with pytest.raises(ListenRefused, match="set tls_cert"):
        Config(listen="192.0.2.7:7701").check()
    Config(listen="192.0.2.7:7701", tls_cert=Path("/c"), tls_key=Path("/k")).check()
    Config(listen="").check()


def test_half_of_tls_is_refused() -> None:
    with pytest.raises(SettingsError, match="needs both"):
        Config(tls_cert=Path("/c")).check()


def test_a_file_an_environment_and_flags_meet(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text("max_chain_depth = 7\n")
    environ = {"COLDFRAME_AGENT_ALLOWED_IMAGE_DIRS": "/a,/b", "COLDFRAME_CONTROLLER_LISTEN": "x"}
    loaded = config.load(file, environ, {"state_dir": str(tmp_path), "listen": None})
    assert loaded.settings == Config(max_chain_depth=7, allowed_image_dirs=[Path("/a"), Path("/b")], state_dir=tmp_path)


@pytest.mark.parametrize(
    "text", ["max_chain_depth = 0", "allowed_image_dirs = []", "log_level = 'loud'", "max_lease_s = 0"]
)
def test_values_out_of_range_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=text.split(maxsplit=1)[0]):
        config.load(file, {})
