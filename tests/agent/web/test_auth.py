"""Secrets in files, tokens in headers, root on the unix socket."""

from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from agent.web import auth
from agent.web.auth import Identity, Secret, first_of, one_secret, read_secret_file, require_role
from agent.web.errors import Forbidden, SettingsError


def request(authorization: str | None = None) -> web.Request:
    return make_mocked_request("GET", "/", headers={} if authorization is None else {"Authorization": authorization})


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("the-secret\n")
    path.chmod(0o600)
    return path


def test_the_secret_is_the_files_text_without_white_space(token_file: Path) -> None:
    assert read_secret_file(token_file).reveal() == "the-secret"


@pytest.mark.case("X5")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610])
def test_a_token_file_that_others_may_use_is_refused(token_file: Path, mode: int) -> None:
    token_file.chmod(mode)
    with pytest.raises(SettingsError, match="chmod 600"):
        read_secret_file(token_file)


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe", b"x" * 5000])
def test_a_token_file_without_a_usable_secret_is_refused(token_file: Path, content: bytes) -> None:
    token_file.write_bytes(content)
    with pytest.raises(SettingsError):
        read_secret_file(token_file)


def test_a_token_file_that_is_missing_or_a_directory_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(SettingsError, match="cannot be read"):
            read_secret_file(path)


@pytest.mark.case("X5")
def test_a_secret_has_no_repr() -> None:
    secret = Secret("hunter2")
    assert "hunter2" not in f"{secret!r} {secret} {[secret]} {vars(auth).get('nothing')}"


@pytest.mark.case("X2")
def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return a == b

    monkeypatch.setattr("hmac.compare_digest", compare)
    assert Secret("abc").equals("abc")
    assert not Secret("abc").equals("abd")
    assert compared == [(b"abc", b"abc"), (b"abc", b"abd")]


@pytest.mark.parametrize(
    ("authorization", "known"),
    [
        ("Bearer the-secret", True),
        ("bearer  the-secret", True),
        ("Bearer the-secre", False),
        ("Bearer the-secret2", False),
        ("Bearer", False),
        ("Bearer ", False),
        ("Basic the-secret", False),
        ("the-secret", False),
        (None, False),
    ],
)
async def test_only_the_whole_secret_gets_in(authorization: str | None, known: bool) -> None:
    identity = await one_secret(Secret("the-secret"), "controller")(request(authorization))
    assert identity == (Identity("controller", "admin") if known else None)


def test_bytes_that_are_no_text_are_a_wrong_token_and_not_an_error() -> None:
    assert not Secret("the-secret").equals("\udcff")


async def test_the_first_that_knows_the_caller_decides() -> None:
    both = first_of(one_secret(Secret("a"), "first"), one_secret(Secret("b"), "second"))
    assert await both(request("Bearer b")) == Identity("second", "admin")
    assert await both(request("Bearer c")) is None


async def test_a_tcp_peer_is_never_root() -> None:
    assert await auth.root_on_unix_socket(request()) is None


@pytest.mark.case("X1")
def test_a_role_includes_those_below_it() -> None:
    require_role(Identity("a", "admin"), "reader")
    require_role(Identity("o", "operator"), "operator")
    with pytest.raises(Forbidden):
        require_role(Identity("r", "reader"), "operator")
