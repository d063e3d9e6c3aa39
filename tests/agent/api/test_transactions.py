"""Transactions over HTTP, in the order in which a controller calls."""

from uuid import UUID, uuid4

import pytest

from agent.client import AgentProblem
from agent.wire.transaction import FrozenVolume, HostFileRef, RevertRequest, SnapshotRequest, Transaction
from tests.agent.api.conftest import VM, Host, Serving
from tests.agent.transactions.rig import nvram, permall


async def snapshot(serving: Serving, txn: UUID) -> Transaction:
    return await serving.client.put_transaction(txn, SnapshotRequest(vm=VM, snapshot=uuid4()))


async def test_a_snapshot_is_prepared_fetched_and_committed(host: Host, serving: Serving) -> None:
    txn = uuid4()
    prepared = await snapshot(serving, txn)
    assert (prepared.state, [one.target for one in prepared.volumes]) == ("prepared", ["vda", "vdb"])
    assert await serving.client.captured(txn, "nvram") == host.nvram.read_bytes()
    assert len(await serving.client.captured(txn, "tpm")) > 6000
    assert (await serving.client.renew(txn)).lease_expires_at is not None
    assert (await serving.client.commit(txn)).state == "committed"
    assert (await serving.client.commit(txn)).state == "committed"
    assert [one.id for one in await serving.client.transactions()] == [txn]
    assert [disk.chain_depth for disk in await serving.client.disks(VM)] == [2, 2]


async def test_a_revert_takes_uploads_and_puts_everything_back(host: Host, serving: Serving) -> None:
    first = uuid4()
    prepared = await snapshot(serving, first)
    files = {one.type: await serving.client.captured(first, one.type) for one in prepared.host_files}
    await serving.client.commit(first)
    host.nvram.write_bytes(nvram(b"B"))
    (host.tpm / "tpm2-00.permall").write_bytes(permall(b"B"))
    request = RevertRequest(
        vm=VM,
        snapshot=uuid4(),
        volumes=[FrozenVolume(target=one.target, path=one.path) for one in prepared.volumes],
        host_files=[
            HostFileRef(type=one.type, format=one.format, size_bytes=one.size_bytes, sha256=one.sha256)
            for one in prepared.host_files
        ],
    )
    second = uuid4()
    await serving.client.put_transaction(second, request)
    with pytest.raises(AgentProblem) as caught:
        await serving.client.commit(second)
    assert caught.value.answer.code == "host-file-not-uploaded"
    for kind, data in files.items():
        await serving.client.upload(second, kind, data)
    assert (await serving.client.commit(second)).state == "committed"
    assert host.nvram.read_bytes() == nvram(b"A")
    assert (host.tpm / "tpm2-00.permall").read_bytes() == permall(b"A")


@pytest.mark.case("S15")
async def test_the_same_id_and_request_twice_answer_the_same(serving: Serving) -> None:
    txn, request = uuid4(), SnapshotRequest(vm=VM, snapshot=uuid4())
    assert await serving.client.put_transaction(txn, request) == await serving.client.put_transaction(txn, request)
    with pytest.raises(AgentProblem) as caught:
        await serving.client.put_transaction(txn, SnapshotRequest(vm=VM, snapshot=uuid4()))
    assert caught.value.answer.code == "transaction-mismatch"


async def test_abort_undoes_and_what_ended_cannot_be_committed(host: Host, serving: Serving) -> None:
    txn = uuid4()
    before = sorted(path.name for path in (host.root / "images").iterdir())
    await snapshot(serving, txn)
    assert (await serving.client.abort(txn)).state == "aborted"
    assert (await serving.client.abort(txn)).state == "aborted"
    assert sorted(path.name for path in (host.root / "images").iterdir()) == before
    for call in (serving.client.commit, serving.client.renew):
        with pytest.raises(AgentProblem) as caught:
            await call(txn)
        assert caught.value.answer.status == 409


async def test_a_second_transaction_on_one_domain_is_refused_with_who_holds_it(serving: Serving) -> None:
    txn = uuid4()
    await snapshot(serving, txn)
    with pytest.raises(AgentProblem) as caught:
        await snapshot(serving, uuid4())
    assert caught.value.answer.code == "domain-busy"
    assert str(txn) in caught.value.answer.detail


@pytest.mark.parametrize("state", ["running", "paused"])
async def test_a_refused_snapshot_says_what_to_do(host: Host, serving: Serving, state: str) -> None:
    host.domain.state = state  # type: ignore[assignment]
    with pytest.raises(AgentProblem) as caught:
        await snapshot(serving, uuid4())
    assert caught.value.answer.code == f"domain-{state}"
    assert "nothing was touched" in caught.value.answer.detail


async def test_calls_on_an_unknown_transaction_name_it(serving: Serving) -> None:
    txn, client = uuid4(), serving.client
    for call in (client.transaction, client.commit, client.abort, client.renew):
        with pytest.raises(AgentProblem, match=str(txn)):
            await call(txn)
    with pytest.raises(AgentProblem, match=str(txn)):
        await client.captured(txn, "nvram")
    with pytest.raises(AgentProblem, match=str(txn)):
        await client.upload(txn, "nvram", b"x")


async def test_an_upload_whose_hash_is_not_the_announced_one_is_refused(serving: Serving) -> None:
    txn = uuid4()
    await snapshot(serving, txn)
    with pytest.raises(AgentProblem) as caught:
        await serving.client.upload(txn, "nvram", b"x", "0" * 64)
    assert caught.value.answer.code == "hash-mismatch"


@pytest.mark.parametrize("lease_s", [0, -1, -1e308, 1e9])
async def test_a_lease_out_of_range_never_blocks_a_domain_for_longer_than_the_limit(
    host: Host, serving: Serving, lease_s: float
) -> None:
    txn = uuid4()
    prepared = await serving.client.put_transaction(txn, SnapshotRequest(vm=VM, snapshot=uuid4(), lease_s=lease_s))
    assert prepared.lease_expires_at is not None
    left_s = (prepared.lease_expires_at - prepared.started_at).total_seconds()
    assert left_s <= host.config.max_lease_s + 60
