"""Private libvirt hosts for the tests, the demo and the benchmark: real libvirtd, QEMU, OVMF and swtpm.

::

    with LabHost("kvm1") as host:                       # namespaces, virtlogd, libvirtd with the project's hook
        vm = host.define_guest("win11")                 # UEFI, TPM 2.0, two qcow2 disks, the first with FAT
        vm.boot()                                       # to the UEFI shell, about 6 s
        vm.set_variable("Colour", "green")              # into NVRAM
        vm.write_file("note.txt", "by the guest")       # onto the first disk
        vm.shutdown()
        vm.tpm.write_index(0x1500016, b"sealed")        # into the TPM, while the VM is off
        vm.disk("vdb").write(4096, b"changed")
        with AgentDaemon(host) as agent, ControllerDaemon(root) as controller:
            controller.add_host(agent)
            controller.coldframe("snapshot", "create", "win11", "first")

Modules: ``host`` (LabHost), ``guest``, ``console``, ``disks``, ``tpm``, ``network`` (cables between hosts), ``daemons``
(our own), ``fleet`` (several hosts with shared storage), ``namespace`` and ``holder`` (what it all stands on),
``mortal_agent``, ``mortal_controller``, ``mortal_fleet`` (daemons that die where a test says), ``preloaded`` (a clock
that is stepped, memory that runs out), ``fixtures`` (pytest), ``requirements`` (what the machine lacks). All calls
block. Everything of a host ends with the
process that made it, even when that is killed; a child that it forks without exec (multiprocessing's fork) must end
too, as it holds the same pipe.
"""
