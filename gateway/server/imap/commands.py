"""All commands: what each module of this package answers.

Owns      HANDLERS, MODULES
Flow      a module has COMMANDS, and CAPABILITIES where it adds extensions; here they are collected
"""

from __future__ import annotations

from types import ModuleType

from gateway.server.imap import (
    acl,
    append,
    context,
    copy,
    expunge,
    fetch,
    idle,
    list,
    login,
    mailboxes,
    metadata,
    multisearch,
    namespace,
    notify,
    quota,
    replace,
    search,
    select,
    sort,
    status,
    store,
    thread,
    uidbatches,
    urlauth,
    urlfetch,
)
from gateway.server.imap.state import Handler

MODULES: tuple[ModuleType, ...] = (
    acl,
    append,
    context,
    copy,
    expunge,
    fetch,
    idle,
    list,
    login,
    mailboxes,
    metadata,
    multisearch,
    namespace,
    notify,
    quota,
    replace,
    search,
    select,
    sort,
    status,
    store,
    thread,
    uidbatches,
    urlauth,
    urlfetch,
)

HANDLERS: dict[bytes, Handler] = {
    name: handler for module in MODULES for name, handler in module.COMMANDS.items()
}
