"""Host files over HTTP."""

import hashlib
import io
from uuid import uuid4

import pytest

from agent.client import AgentProblem
from tests.agent.api.conftest import VM, Host, Serving
from tests.agent.host.tar import archive, member
from tests.agent.transactions.rig import nvram, permall

PATH = f"/v1/vms/{VM}/host-files/nvram"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def test_host_files_are_listed_with_their_hashes(host: Host, serving: Serving) -> None:
    found = await serving.client.host_files(VM)
    assert [one.type for one in found.items] == ["nvram", "tpm"]
    assert found.items[0].sha256 == sha256(host.nvram.read_bytes())


@pytest.mark.case("B11")
async def test_reading_again_with_if_none_match_answers_304_until_the_bytes_change(
    host: Host, serving: Serving
) -> None:
    first = await serving.client.read_host_file(VM, "nvram")
    assert first is not None
    assert first.data == host.nvram.read_bytes()
    assert await serving.client.read_host_file(VM, "nvram", first.sha256) is None
    response = await serving.http.get(PATH, headers={"If-None-Match": f'"{first.sha256}"'})
    assert (response.status, await response.read()) == (304, b"")
    assert response.headers["ETag"] == f'"{first.sha256}"'
    host.nvram.write_bytes(nvram(b"B"))
    again = await serving.client.read_host_file(VM, "nvram", first.sha256)
    assert again is not None
    assert again.data == nvram(b"B")


@pytest.mark.case("B11")
async def test_writing_with_a_stale_if_match_answers_412_and_changes_nothing(host: Host, serving: Serving) -> None:
    before = host.nvram.read_bytes()
    inode = host.nvram.stat().st_ino
    with pytest.raises(AgentProblem) as caught:
        await serving.client.write_host_file(VM, "nvram", nvram(b"B"), if_match=sha256(b"what I saw"))
    assert caught.value.answer.status == 412
    assert caught.value.answer.facts["found"] == sha256(before)
    assert (host.nvram.read_bytes(), host.nvram.stat().st_ino) == (before, inode)
    assert (await serving.client.vm(VM)).guard is None


@pytest.mark.case("B11")
@pytest.mark.parametrize("if_match", ["current", "*", None])
async def test_writing_with_the_present_version_or_any_replaces_the_file(
    host: Host, serving: Serving, if_match: str | None
) -> None:
    current = sha256(host.nvram.read_bytes())
    data = nvram(b"B")
    headers = {"X-Content-SHA256": sha256(data)}
    if if_match:
        headers["If-Match"] = if_match.replace("current", f'"{current}"')
    response = await serving.http.put(PATH, data=data, headers=headers)
    assert response.status == 200
    assert (await response.json())["sha256"] == sha256(data)
    assert host.nvram.read_bytes() == data


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "invalid-request"),
        ({"X-Content-SHA256": "abc"}, "invalid-request"),
        ({"X-Content-SHA256": "0" * 64}, "hash-mismatch"),
        ({"X-Content-SHA256": "right", "If-Match": '"a", "b"'}, "invalid-request"),
        ({"X-Content-SHA256": "right", "If-Match": "unquoted"}, "invalid-request"),
    ],
)
async def test_a_write_that_is_not_sound_changes_nothing(
    host: Host, serving: Serving, headers: dict[str, str], code: str
) -> None:
    before, data = host.nvram.read_bytes(), nvram(b"B")
    headers = {name: value.replace("right", sha256(data)) for name, value in headers.items()}
    response = await serving.http.put(PATH, data=data, headers=headers)
    assert (await response.json())["code"] == code
    assert host.nvram.read_bytes() == before


async def test_a_tpm_travels_as_an_archive_and_comes_back_the_same(host: Host, serving: Serving) -> None:
    content = await serving.client.read_host_file(VM, "tpm")
    assert content is not None
    (host.tpm / "tpm2-00.permall").write_bytes(permall(b"B"))
    written = await serving.client.write_host_file(VM, "tpm", content.data)
    assert written.sha256 == content.sha256
    assert (host.tpm / "tpm2-00.permall").read_bytes() == permall(b"A")


@pytest.mark.case("B10")
async def test_a_body_above_the_limit_is_refused_by_its_count(host: Host, serving: Serving) -> None:
    before = host.nvram.read_bytes()

    async def endless() -> object:
        for _ in range(100):
            yield b"x" * 65536

    for body in (io.BytesIO(b"x" * (host.config.host_file_limit_bytes + 1)), endless()):
        response = await serving.http.put(PATH, data=body, headers={"X-Content-SHA256": "0" * 64})
        assert response.status == 413
    assert host.nvram.read_bytes() == before


@pytest.mark.case("B10")
async def test_a_damaged_file_is_refused_by_name_and_the_other_is_unharmed(host: Host, serving: Serving) -> None:
    host.nvram.write_bytes(nvram(b"A")[:1000])
    with pytest.raises(AgentProblem) as caught:
        await serving.client.read_host_file(VM, "nvram")
    assert caught.value.answer.code == "host-file-damaged"
    assert await serving.client.read_host_file(VM, "tpm") is not None
    assert [one.type for one in (await serving.client.host_files(VM)).missing] == ["nvram"]


async def test_a_running_domain_is_not_written_to(host: Host, serving: Serving) -> None:
    host.domain.state = "running"
    with pytest.raises(AgentProblem) as caught:
        await serving.client.write_host_file(VM, "nvram", nvram(b"B"))
    assert caught.value.answer.code == "domain-running"
    assert host.nvram.read_bytes() == nvram(b"A")


async def test_an_unknown_type_or_domain_is_named(serving: Serving) -> None:
    assert (await serving.http.get(f"/v1/vms/{VM}/host-files/bios")).status == 400
    with pytest.raises(AgentProblem) as caught:
        await serving.client.read_host_file(uuid4(), "nvram")
    assert caught.value.answer.code == "domain-not-found"


def spoiled(*members: bytes) -> bytes:
    """Make an archive that holds a sound state and something besides."""
    return archive(member("tpm2/tpm2-00.permall", permall(b"B")), *members)


@pytest.mark.case("X7")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 1024,
        b"not a tar",
        nvram(b"A"),
        spoiled(member("/etc/passwd", b"x")),
        spoiled(member("tpm2/../../../x", b"x")),
        spoiled(member("tpm2/link", b"", b"2", link=b"/etc/shadow")),
        spoiled(member("tpm2/link", b"", b"1", link=b"/etc/shadow")),
        spoiled(member("tpm2/device", b"", b"3")),
        spoiled(member("tpm2/pipe", b"", b"6")),
        spoiled(member("tpm2/tpm2-00.permall", permall(b"C"))),
        spoiled(member("tpm2/bomb", b"", size=b"77777777777\0")),
        spoiled(*(member(f"tpm2/{number}") for number in range(100))),
        archive(member("tpm2/tpm2-00.permall", permall(b"B")[:-1])),
    ],
    ids=[
        "nothing",
        "only an end",
        "text",
        "nvram",
        "absolute",
        "upwards",
        "symbolic link",
        "hard link",
        "device",
        "pipe",
        "twice",
        "a size that lies",
        "a crowd",
        "a state cut short",
    ],
)
async def test_a_hostile_tpm_archive_leaves_the_old_state(host: Host, serving: Serving, data: bytes) -> None:
    with pytest.raises(AgentProblem) as caught:
        await serving.client.write_host_file(VM, "tpm", data)
    assert caught.value.answer.status in {409, 422}
    assert (host.tpm / "tpm2-00.permall").read_bytes() == permall(b"A")
    assert (await serving.client.vm(VM)).guard is None
