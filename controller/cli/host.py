"""``coldframe host``: the KVM hosts that the controller looks after."""

from pathlib import Path
from typing import Annotated

import typer

from agent.web.auth import read_secret_file
from agent.wire.fleet import AddHost, ChangeHost, Host
from controller.cli.client import path
from controller.cli.session import Session, command
from controller.cli.text import facts, printable, table, when

app = typer.Typer(help="KVM hosts.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The host's name.", metavar="NAME")]


@command(app, "add")
def add(
    session: Session,
    name: Name,
    url: Annotated[str, typer.Argument(help="The agent's address: https://, http:// or unix:///path.", metavar="URL")],
    agent_token_file: Annotated[
        Path, typer.Option(help="A file with the secret that is in the agent's token file.", metavar="FILE")
    ],
    fingerprint: Annotated[
        str | None, typer.Option(help="SHA-256 of the agent's certificate, in hex.", metavar="HEX")
    ] = None,
) -> None:
    """Enrol a host."""
    secret = read_secret_file(agent_token_file).reveal()
    body = AddHost(name=name, url=url, agent_token=secret, fingerprint=fingerprint)
    host = session.client.change("POST", path("hosts"), Host, body)
    session.show(host, lambda: session.out.print(f"Host {printable(name)} is enrolled"))


@command(app, "list")
def list_(session: Session) -> None:
    """List the hosts."""
    hosts = session.client.items(path("hosts"), Host)
    rows = [(one.name, one.url, "yes" if one.reachable else "no", when(one.last_seen_at), one.vms) for one in hosts]
    session.show(hosts, lambda: table(session.out, ("NAME", "URL", "REACHABLE", "LAST SEEN", "VMS"), rows))


@command(app, "show")
def show(session: Session, name: Name) -> None:
    """Show one host with its facts."""
    host = session.client.get(path("hosts", name), Host)
    session.show(host, lambda: facts(session.out, _facts(host)))


@command(app, "set")
def set_(  # noqa: PLR0917 - one parameter for each option of the command
    session: Session,
    name: Name,
    agent_url: Annotated[str | None, typer.Option(help="The agent's new address.", metavar="URL")] = None,
    agent_token_file: Annotated[
        Path | None, typer.Option(help="A file with the secret that is now in the agent's token file.", metavar="FILE")
    ] = None,
    fingerprint: Annotated[
        str | None,
        typer.Option(help="SHA-256 of its new certificate, in hex; '' takes the pin off.", metavar="HEX"),
    ] = None,
    rename: Annotated[str | None, typer.Option(help="A new name for the host.", metavar="NEW")] = None,
) -> None:
    """Change how a host is reached, or its name. Work under way goes on at the new address."""
    secret = None if agent_token_file is None else read_secret_file(agent_token_file).reveal()
    body = ChangeHost(name=rename, url=agent_url, agent_token=secret, fingerprint=fingerprint)
    if body == ChangeHost():
        raise typer.BadParameter("give --agent-url, --agent-token-file, --fingerprint or --rename")
    host = session.client.change("PATCH", path("hosts", name), Host, body)
    session.show(host, lambda: session.out.print(f"Host {printable(name)} is changed"))


@command(app, "remove")
def remove(session: Session, name: Name) -> None:
    """Forget a host. Nothing on the host itself changes."""
    host = session.client.get(path("hosts", name), Host)
    session.client.act("DELETE", path("hosts", name))
    session.show(host, lambda: session.out.print(f"Host {printable(name)} is removed"))


def _facts(host: Host) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [
        ("name", host.name),
        ("url", host.url),
        ("reachable", "yes" if host.reachable else f"no: {host.error}"),
        ("last seen", when(host.last_seen_at)),
        ("vms", host.vms),
    ]
    if host.facts:
        rows += [
            ("hostname", host.facts.hostname),
            ("agent", host.facts.agent_version),
            ("libvirt", host.facts.libvirt_version if host.facts.libvirt_connected else "not connected"),
            ("qemu", host.facts.qemu_version),
            ("start hook", host.facts.hook),
            ("addresses", " ".join(f"{one.address}/{one.prefix_length}" for one in host.facts.addresses)),
            ("links down", " ".join(one.name for one in host.facts.links if not one.up)),
        ]
    return rows
