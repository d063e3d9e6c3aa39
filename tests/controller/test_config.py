from pathlib import Path

import pytest

from agent.web.errors import ListenRefused, SettingsError
from agent.web.settings import show
from controller.config import load

KEYS = ("listen", "database", "token_file", "encryption_key_file", "tls_cert", "tls_key", "tls_client_ca")


def file(tmp_path: Path, text: str = "") -> Path:
    path = tmp_path / "controller.toml"
    path.write_text(text)
    return path


def test_the_keys_of_the_contract_are_there_with_their_defaults(tmp_path: Path) -> None:
    settings = load(file(tmp_path), {}).settings
    assert all(hasattr(settings, key) for key in KEYS)
    assert (settings.listen, settings.database) == ("127.0.0.1:7700", "sqlite:////var/lib/coldframe/controller.db")
    assert settings.tls is None


@pytest.mark.case("X3")
@pytest.mark.parametrize("listen", ["0.0.0.0:7700", "[::]:7700", "192.0.2.7:7700", "kvm.example.org:7700"])
def test_an_address_that_others_can_reach_is_refused_without_tls(tmp_path: Path, listen: str) -> None:
    with pytest.raises(ListenRefused):
        load(file(tmp_path, f'listen = "{listen}"'), {})


def test_an_unknown_key_and_a_value_out_of_range_are_fatal(tmp_path: Path) -> None:
    for text in ("lease = 5", "lease_s = 1", "per_host_limit = 0", 'log_level = "loud"', "events_kept = 1"):
        with pytest.raises(SettingsError):
            load(file(tmp_path, text), {})


@pytest.mark.case("X6")
def test_a_key_that_this_version_would_not_use_keeps_it_from_starting(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot encrypt"):
        load(file(tmp_path, 'encryption_key_file = "/etc/coldframe/key"'), {})


@pytest.mark.case("X5")
def test_a_password_in_the_databases_address_is_not_shown(tmp_path: Path) -> None:
    loaded = load(file(tmp_path), {"COLDFRAME_CONTROLLER_DATABASE": "postgresql://me:hunter2@db/coldframe"})
    assert "hunter2" in loaded.settings.database
    assert "hunter2" not in show(loaded)
