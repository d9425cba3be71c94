"""`gateway serve`: run in the foreground until SIGTERM."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from gateway.cli.common import config_option, fail, load_or_exit
from gateway.config_checks import warnings_for
from gateway.config_model import Config


@click.command("serve")
@config_option
def command(config_file: str) -> None:
    """Serve.  SIGHUP reads the configuration again, SIGTERM drains, SIGUSR1 reopens the log."""
    from gateway.app import run_worker
    from gateway.supervisor import StartError, Supervisor

    config = load_or_exit(config_file)
    if os.isatty(sys.stdout.fileno()):
        _greet(config)
    preload(config)
    try:
        supervisor = Supervisor(config, run_worker, config_file=config_file)
        for warning in warnings_for(config):
            supervisor.log.warning("config", text=warning)
        sys.exit(supervisor.run())
    except StartError as error:
        fail(str(error))


def preload(config: Config) -> None:
    """Import before the fork what workers import when they need it: they share its pages, and may
    become a user who cannot read our installation."""
    modules = ["encodings.idna"]
    hops = [hop for route in config.route for hop in route.next_hop]
    if any(listen.service == "http" for listen in config.listen):
        modules.append("aiohttp.web")
    if any(hop.startswith("http") for hop in hops):
        modules.append("aiohttp")
    for module in modules:
        import_module(module)


def _greet(config: Config) -> None:
    """How to send a first mail, and where it arrives."""
    smtp = next((listen for listen in config.listen if listen.service == "smtp"), None)
    route = next((route for route in config.route if "*" not in route.domains), None)
    if smtp is None or smtp.address.path or route is None:
        return
    domain = route.domains[0].removeprefix(".")
    recipient = route.recipients[0] if route.recipients else f"postmaster@{domain}"
    host = "127.0.0.1" if smtp.address.host in ("0.0.0.0", "::") else smtp.address.host
    host = f"[{host}]" if ":" in host else host
    server = f"{host}:{smtp.address.port}"
    click.echo("Send a mail:")
    click.echo(f"  swaks --server {server} --to {recipient} --from me@example.org")
    click.echo(
        "  printf 'Subject: hello\\n\\nHello.\\n' | "
        f"curl -s smtp://{server} --mail-from me@example.org --mail-rcpt {recipient} -T -"
    )
    if "store:" in route.next_hop:
        local_part, _, domain = recipient.rpartition("@")
        click.echo(f"It arrives in {config.store_dir / domain / local_part}/new")
    else:
        click.echo(f"It goes to {', '.join(route.next_hop)}")
    http = next((listen for listen in config.listen if listen.service == "http"), None)
    if http is not None and not http.address.path:
        click.echo(f"Metrics: http://{http.address}/metrics")
    click.echo("Ctrl-C stops.\n")
