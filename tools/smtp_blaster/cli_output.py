"""Results as JSON for machines, as lines for people."""

from __future__ import annotations

from typing import Any

import click
import msgspec


def show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(result))
        return
    for name, value in result.items():
        if isinstance(value, dict):
            value = "  ".join(f"{key}: {round(number, 3)}" for key, number in value.items())
        elif isinstance(value, float):
            value = round(value, 2)
        click.echo(f"{name.replace('_', ' '):22}  {value}")
