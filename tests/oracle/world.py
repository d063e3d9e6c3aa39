"""The host, its VMs as they must be, and whether they are so."""

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from controller.store import bases, invariants, snapshots
from tests.oracle.house import HOST, House
from tests.oracle.model import Hashes, Kept, Machine
from tests.oracle.reading import Reader, chain

KIB = 1024
#: Of one cluster of 64 KiB each is a multiple but the last, whose end is in the middle of one.
DISKS = {"vda": 4096 * KIB, "vdb": 3072 * KIB, "vdc": 2048 * KIB + 37 * 512}
TARGETS = sorted(DISKS)


class World:
    """What is and what must be. ``check`` raises where they differ."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.house = House(root / "house")
        self.reader = Reader()
        self.machines: dict[UUID, Machine] = {}
        self.templates: dict[Path, bytes] = {}
        self.failing = root / "bin" / "failing"
        self._path = os.environ["PATH"]

    async def open(self) -> None:
        """Start everything, with one VM: a plain disk, one on a qcow2 template, one on a shorter raw template."""
        self._install_failing_qemu_img()
        await self.house.__aenter__()
        images, uuid = self.house.images, uuid4()
        disks = {target: images / f"win11-{target}.qcow2" for target in TARGETS}
        run("qemu-img", "create", "-q", "-f", "qcow2", str(disks["vda"]), str(DISKS["vda"]))
        self._make_on_template(disks["vdb"], images / "template.qcow2", "qcow2", DISKS["vdb"], DISKS["vdb"])
        self._make_on_template(disks["vdc"], images / "template.raw", "raw", DISKS["vdc"] - 64 * KIB, DISKS["vdc"])
        self.house.define("win11", uuid, disks)
        await self.house.known(uuid)
        self.machines[uuid] = Machine(uuid, "win11", {}, {})
        await self.measure(self.machines[uuid])

    async def close(self) -> None:
        """Stop everything and take it away."""
        await self.house.__aexit__(None, None, None)
        os.environ["PATH"] = self._path
        shutil.rmtree(self.root)

    def _install_failing_qemu_img(self) -> None:
        """Put a ``qemu-img`` first on the PATH that fails as the file ``failing`` says, as an I/O error would."""
        directory, real = self.failing.parent, shutil.which("qemu-img")
        directory.mkdir()
        script = directory / "qemu-img"
        script.write_text(
            f"""#!/bin/sh
[ -e {self.failing} ] || exec {real} "$@"
read -r command name when < {self.failing}
case "$*" in
    "$command "*"$name"*)
        [ "$when" = before ] || {real} "$@"
        echo Input/output error >&2
        exit 1 ;;
esac
exec {real} "$@"
"""
        )
        script.chmod(0o755)
        os.environ["PATH"] = f"{directory}:{self._path}"

    def _make_on_template(self, disk: Path, template: Path, kind: str, template_bytes: int, disk_bytes: int) -> None:
        run("qemu-img", "create", "-q", "-f", kind, str(template), str(template_bytes))
        run("qemu-io", "-f", kind, "-c", "write -q -P 7 0 1M", str(template))
        self.templates[template] = template.read_bytes()
        names = ("-b", str(template), "-F", kind)
        run("qemu-img", "create", "-q", "-f", "qcow2", *names, str(disk), str(disk_bytes))

    async def measure(self, machine: Machine) -> None:
        """Write down what a VM would see now."""
        machine.disks = await self._disks_of(machine)
        machine.host_files = self._host_files_of(machine)

    async def _disks_of(self, machine: Machine) -> Hashes:
        tops = self.house.tops(machine.uuid)
        hashes = await self.reader.hashes(tops.values())
        return {target: hashes[path] for target, path in tops.items()}

    def _host_files_of(self, machine: Machine) -> Hashes:
        nvram, permall = self.house.nvram(machine.uuid), self.house.permall(machine.uuid)
        return {
            type_: sha256(path.read_bytes()) for type_, path in (("nvram", nvram), ("tpm", permall)) if path.exists()
        }

    async def check(self) -> None:
        """Compare everything that can be seen from outside with what must be, and look for what is left over."""
        await self.house.settle()
        for machine in self.machines.values():
            await self._check_machine(machine)
        await self._check_files()
        await self._check_records()

    async def check_nothing_to_merge(self, machine: Machine) -> None:
        """Raise where a hidden base was left that could have gone."""
        assert await self.house.db.run(bases.ripe, machine.uuid, HOST) == []

    async def check_doctor(self) -> None:
        """Raise where the doctor finds something; that a commit wrote to a frozen file before it failed is known."""
        found = await self.house.get("/v1/doctor?limit=1000")
        altered = {str(uuid) for one in self.machines.values() for uuid, kept in one.snapshots.items() if kept.altered}
        wrong = [one for one in found["items"] if one["severity"] != "info" and one["snapshot"] not in altered]
        assert wrong == []

    async def check_copy(self, made: Machine, kept: Kept, tpm: str) -> None:
        """Raise unless a clone that has not started has what its snapshot holds, and write down what it has."""
        held = self._host_files_of(made)
        wanted = {type_: one for type_, one in kept.host_files.items() if type_ == "nvram" or tpm == "copy"}
        assert held == wanted
        made.host_files = held
        assert await self._disks_of(made) == made.disks

    async def forget(self, machine: Machine) -> None:
        """Undefine a VM, remove its own files as an administrator does, and let the controller forget it."""
        house = self.house
        tops = house.tops(machine.uuid).values()
        others = [top for one in self.machines if one != machine.uuid for top in house.tops(one).values()]
        others += [Path(path) for one in self.machines for path in await house.db.run(snapshots.held, one)]
        needed = {file for head in others for file in chain(head)} | self.templates.keys()
        gone = {file for top in tops for file in chain(top)} - needed
        house.undefine(machine.uuid)
        for file in gone:
            file.unlink()
        status, found = await house.call("DELETE", f"/v1/vms/{machine.uuid}")
        assert status == 200, found
        del self.machines[machine.uuid]

    async def altered(self, kept: Kept) -> set[str]:
        """Return the disks of a snapshot that the records call altered."""
        group = await self.house.db.run(snapshots.group, kept.uuid)
        return {volume.target for volume in group.volumes if volume.altered}

    async def _check_machine(self, machine: Machine) -> None:
        assert await self._disks_of(machine) == machine.disks
        assert self._host_files_of(machine) == machine.host_files
        page = await self.house.get(f"/v1/vms/{machine.uuid}/snapshots?limit=1000")
        listed = {UUID(one["uuid"]): one for one in page["items"]}
        assert listed.keys() == machine.snapshots.keys()
        await self._check_disks(machine, listed)
        for uuid, kept in machine.snapshots.items():
            _check_facts(machine, kept, listed[uuid])
            assert await self._backups(listed[uuid]) == kept.host_files

    async def _check_disks(self, machine: Machine, listed: dict[UUID, Any]) -> None:
        """Every snapshot's frozen files read as the disks did, save those that the records call altered."""
        frozen = {
            (uuid, volume["target"]): Path(volume["path"]) for uuid, one in listed.items() for volume in one["volumes"]
        }
        hashes = await self.reader.hashes(frozen.values())
        for uuid, kept in machine.snapshots.items():
            assert {target for one, target in frozen if one == uuid} == kept.disks.keys()
            for target in kept.disks.keys() - kept.altered:
                assert hashes[frozen[uuid, target]] == kept.disks[target], f"{target} of {uuid} has changed"

    async def _backups(self, one: dict[str, Any]) -> Hashes:
        found = {}
        for backup in one["backup_files"]:
            facts = await self.house.get(f"/v1/backup-files/{backup}")
            data = await self.house.content(f"/v1/backup-files/{backup}/content")
            found[facts["type"]] = sha256(data if facts["type"] == "nvram" else _permall_in(data))
        return found

    async def _check_files(self) -> None:
        """On disk is what the snapshots and the VMs stand on, and nothing else."""
        kept = [uuid for machine in self.machines.values() for uuid in machine.snapshots]
        groups = [await self.house.db.run(snapshots.group, uuid) for uuid in kept]
        heads = {Path(volume.path) for group in groups for volume in group.volumes}
        heads |= {top for machine in self.machines for top in self.house.tops(machine).values()}
        wanted = {file for head in heads for file in chain(head)} | await self._bases_kept()
        assert set(self.house.images.iterdir()) == wanted | self.templates.keys()
        assert {path: path.read_bytes() for path in self.templates} == self.templates
        has = {
            type_: {vm for vm, one in self.machines.items() if type_ in one.host_files} for type_ in ("nvram", "tpm")
        }
        assert set(self.house.nvram_dir.iterdir()) == {self.house.nvram(one) for one in has["nvram"]}
        assert {path.name for path in self.house.swtpm_dir.iterdir()} == set(map(str, has["tpm"]))

    async def _bases_kept(self) -> set[Path]:
        """Return the hidden bases that could not be merged away, of which the operation's result told."""
        able = {one.uuid for one in self.machines.values() if one.base_kept}
        return {Path(row.path) for row in await self.house.db.run(bases.hidden, HOST) if row.vm_id in able}

    async def _check_records(self) -> None:
        """Nothing is begun and not ended, on the host or in the database, and nothing there belongs to nobody."""
        assert [one for one in self.house.agent.manager.all() if one.ended_at is None] == []
        assert self.house.agent.guards.all() == {}
        assert list((self.house.state_dir / "transactions").iterdir()) == []
        kept = {f"hidden base {path} carries nothing" for path in await self._bases_kept()}
        assert set(await self.house.db.run(invariants.orphans)) <= kept
        assert await self.house.db.run(invariants.unsettled) == []


def _check_facts(machine: Machine, kept: Kept, one: dict[str, Any]) -> None:
    told = {key: one[key] for key in ("state", "current", "parent", "automatic", "protected", "labels")}
    assert told == {
        "state": "ready",
        "current": kept.uuid == machine.current,
        "parent": kept.parent and str(kept.parent),
        "automatic": kept.automatic,
        "protected": kept.protected,
        "labels": kept.labels,
    }
    assert kept.name in (None, one["name"])


def run(*argv: str) -> None:
    """Run a command that must succeed."""
    subprocess.run(argv, check=True)


def sha256(data: bytes) -> str:
    """Hash it."""
    return hashlib.sha256(data).hexdigest()


def _permall_in(archive: bytes) -> bytes:
    """Return the TPM's state out of the archive that a backup of it is."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        (member,) = [one for one in tar.getmembers() if one.name.endswith("permall")]
        file = tar.extractfile(member)
        assert file is not None
        return file.read()
