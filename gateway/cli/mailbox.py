"""`gateway mailbox`: look at, check, fill, empty and take away the mail of accounts.

Flow      options → the account's files, read and written beside running workers → a notice to them
Errors    exit 1 when something is lost or damaged, or is not there; 75 when an account is in use or the disk is full
Blocking  everything: this is a program of its own
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from gateway._native import RECORD_OCTETS
from gateway.cli.accounts_file import become_owner, name_or_exit
from gateway.cli.common import (
    FAILED,
    TEMPORARY,
    config_option,
    fail,
    json_option,
    load_or_exit,
    print_json,
    print_table,
    size,
)
from gateway.config_model import Config
from gateway.mail.imap_rights import ANYONE, AUTHENTICATED, parse_rights
from gateway.notice_link import send_notices
from gateway.store import account_sharing
from gateway.store.account import AccountFile
from gateway.store.check import Report, check_account
from gateway.store.errors import StoreError
from gateway.store.maildir import export_maildir, import_maildir, maildir_folders
from gateway.store.mbox import export_mbox, import_mbox
from gateway.store.model import DELETED, SEEN, Mailbox, Notice, ranges_of, records_of
from gateway.store.names import account_directory, account_names
from gateway.store.notices import encode_notices
from gateway.store.shares import Shares
from gateway.store.transfer import Import

DAY_S = 86400


@click.group("mailbox")
def command() -> None:
    """See, check, import, export and expunge the mail of accounts."""


@command.command("list")
@click.argument("account", required=False)
@json_option
@config_option
def list_(account: str | None, as_json: bool, config_file: str) -> None:
    """The mailboxes of ACCOUNT; without one, the accounts that have mail."""
    config = _prepared(config_file)
    if account is None:
        _list_accounts(config, as_json)
        return
    with _account(config, account) as file:
        boxes = file.mailboxes()
    if as_json:
        print_json([_as_json(account, box) for box in boxes])
        return
    print_table(
        "",
        (">messages", ">unseen", ">size", "use", "mailbox"),
        [
            (box.messages, box.unseen, size(box.octets), " ".join(box.special_use), box.name)
            for box in boxes
        ],
    )


def _list_accounts(config: Config, as_json: bool) -> None:
    rows: list[dict[str, Any]] = []
    for name in account_names(config.store_dir):
        with _account(config, name, known=True) as file:
            usage = file.usage()
        rows.append({"account": name, "messages": usage.messages, "octets": usage.octets})
    if as_json:
        print_json(rows)
    else:
        print_table(
            "",
            (">messages", ">size", "account"),
            [(row["messages"], size(row["octets"]), row["account"]) for row in rows],
        )


@command.command("stat")
@click.argument("account")
@click.argument("mailbox", default="INBOX")
@json_option
@config_option
def stat(account: str, mailbox: str, as_json: bool, config_file: str) -> None:
    """Everything about one MAILBOX of ACCOUNT (INBOX unless named)."""
    config = _prepared(config_file)
    with _account(config, account) as file:
        box = file.mailbox(mailbox)
        octets, free = file.disk_octets()
    found = _as_json(account, box) | {"account_file_octets": octets, "account_file_free_octets": free}
    if as_json:
        print_json(found)
    else:
        print_table("", ("what", "value"), [(key, _plain(value)) for key, value in found.items()])


def _as_json(account: str, box: Mailbox) -> dict[str, Any]:
    return {
        "name": box.name,
        "object_id": box.object_id(account),
        "selectable": box.selectable,
        "messages": box.messages,
        "unseen": box.unseen,
        "deleted": box.deleted,
        "octets": box.octets,
        "uidvalidity": box.uidvalidity,
        "uidnext": box.uidnext,
        "highestmodseq": box.highestmodseq,
        "special_use": box.special_use,
        "subscribed": box.subscribed,
        "keywords": box.keywords,
    }


def _plain(value: object) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)


@command.command("check")
@click.argument("accounts", nargs=-1, metavar="[ACCOUNT]...")
@click.option("--no-repair", is_flag=True, help="only say what is wrong")
@json_option
@config_option
def check(accounts: tuple[str, ...], no_repair: bool, as_json: bool, config_file: str) -> None:
    """Verify and repair the mail of ACCOUNTs, of all when none is named; says what it did."""
    config = _prepared(config_file)
    names = [name_or_exit(config, one) for one in accounts]
    reports: list[Report] = []
    for name in names or list(account_names(config.store_dir)):
        with _progress(as_json, name) as shown:
            try:
                report = check_account(
                    account_directory(config.store_dir, name),
                    config.store,
                    account=name,
                    repair=not no_repair,
                    progress=shown,
                )
                if not no_repair:
                    _share_again(config, name)
            except StoreError as error:
                _refused(error)
        reports.append(report)
        if not as_json:
            _print_report(report)
    if as_json:
        print_json([_report_json(report) for report in reports])
    if any(finding.lost or no_repair for report in reports for finding in report.findings):
        raise SystemExit(FAILED)


def _share_again(config: Config, name: str) -> None:
    """What the account shares is known to those it shares with."""
    file = AccountFile(account_directory(config.store_dir, name), config.store)
    shares = Shares(config.store_dir)
    try:
        account_sharing.resync(file, name, shares)
    finally:
        shares.close()
        file.close()


def _print_report(report: Report) -> None:
    state = "clean" if report.clean else f"{len(report.findings)} findings"
    click.echo(
        f"{report.account}: {report.messages} messages, {size(report.octets)}, "
        f"{report.mailboxes} mailboxes: {state}"
    )
    for finding in report.findings:
        done = "repaired" if finding.repaired else "found"
        click.echo(f"  {'LOST' if finding.lost else done}: {finding.what}")


def _report_json(report: Report) -> dict[str, Any]:
    return {
        "account": report.account,
        "clean": report.clean,
        "mailboxes": report.mailboxes,
        "messages": report.messages,
        "octets": report.octets,
        "findings": [
            {"what": one.what, "repaired": one.repaired, "lost": one.lost}
            for one in report.findings
        ],
    }


@command.command("import")
@click.argument("account")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--format", "kind", type=click.Choice(["auto", "maildir", "mbox"]), default="auto")
@click.option("--mailbox", default="", help="put INBOX of a Maildir, or the mbox, into this one")
@json_option
@config_option
def import_(
    account: str, path: Path, kind: str, mailbox: str, as_json: bool, config_file: str
) -> None:
    """Add the mail at PATH, a Maildir with its folders or an mbox file, to ACCOUNT.

    Flags, keywords and dates are kept; UIDs, too, where Dovecot left them and the mailbox is new.
    Done again, it adds only what is not there yet.
    """
    path = path.absolute()
    config = _prepared(config_file)
    is_maildir = kind == "maildir" or (kind == "auto" and path.is_dir())
    results: list[Import] = []
    with _account(config, account, create=True) as file:
        try:
            if is_maildir:
                results = _import_maildir(file, path, mailbox, as_json)
            else:
                total = path.stat().st_size
                with _progress(as_json, path.name) as shown:
                    read = _Counter(shown, total)
                    results = [import_mbox(file, path, mailbox or "INBOX", read)]
        except (OSError, ValueError) as error:
            fail(str(error))
        _tell(config, account, file)
    if as_json:
        print_json([{"mailbox": r.mailbox, "added": r.added, "known": r.known} for r in results])
    else:
        for result in results:
            click.echo(f"{result.mailbox}: {result.added} added, {result.known} were there")


def _import_maildir(file: AccountFile, path: Path, mailbox: str, as_json: bool) -> list[Import]:
    results = []
    for folder in maildir_folders(path):
        name = (mailbox or "INBOX") if folder.name == "INBOX" else folder.name
        with _progress(as_json, name) as shown:
            results.append(import_maildir(file, folder, name, _Counter(shown, folder.count())))
    subscriptions = path / "subscriptions"
    if subscriptions.is_file():
        for line in subscriptions.read_text(errors="replace").splitlines():
            name = line.strip().replace(".", "/").replace("\t", "/")
            if name and not name.startswith("V/"):  # Dovecot's second format begins with "V 2"
                file.subscribe(name)
    return results


@command.command("export")
@click.argument("account")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--format", "kind", type=click.Choice(["maildir", "mbox"]), default="maildir")
@click.option("--mailbox", default="", help="only this one; needed for mbox")
@click.option("--crlf", is_flag=True, help="keep CRLF in a Maildir instead of LF")
@json_option
@config_option
def export(
    account: str,
    path: Path,
    kind: str,
    mailbox: str,
    crlf: bool,
    as_json: bool,
    config_file: str,
) -> None:
    """Write the mail of ACCOUNT to PATH: a Maildir for Dovecot and others, or an mbox file."""
    path = path.absolute()
    config = _prepared(config_file)
    results = []
    with _account(config, account) as file:
        boxes = (
            [file.mailbox(mailbox)] if mailbox else [b for b in file.mailboxes() if b.selectable]
        )
        if kind == "mbox" and not mailbox:
            fail("an mbox file holds one mailbox: name it with --mailbox", 2)
        try:
            for box in boxes:
                with _progress(as_json, box.name) as shown:
                    written = _Counter(shown, box.messages)
                    if kind == "mbox":
                        count = export_mbox(file, box, path, written=written)
                    else:
                        count = export_maildir(file, box, path, crlf_lines=crlf, written=written)
                results.append({"mailbox": box.name, "written": count})
        except OSError as error:
            fail(str(error))
    if as_json:
        print_json(results)
    else:
        for result in results:
            click.echo(f"{result['mailbox']}: {result['written']} written")


@command.command("expunge")
@click.argument("account")
@click.argument("mailbox")
@click.option("--deleted", is_flag=True, help="only messages with the flag \\Deleted")
@click.option("--seen", is_flag=True, help="only messages with the flag \\Seen")
@click.option("--older-than", type=click.IntRange(0), metavar="DAYS", help="saved so long ago")
@click.option("--all", "everything", is_flag=True, help="all messages: nothing else was said")
@json_option
@config_option
def expunge(
    account: str,
    mailbox: str,
    deleted: bool,
    seen: bool,
    older_than: int | None,
    everything: bool,
    as_json: bool,
    config_file: str,
) -> None:
    """Remove messages from MAILBOX of ACCOUNT for good."""
    if not (deleted or seen or older_than is not None or everything):
        fail("say which: --deleted, --seen, --older-than DAYS or --all", 2)
    config = _prepared(config_file)
    must = (DELETED if deleted else 0) | (SEEN if seen else 0)
    before = None if older_than is None else time.time() - older_than * DAY_S
    count = 0
    with _account(config, account) as file:
        box = file.mailbox(mailbox)
        with _progress(as_json, box.name) as shown:
            progress = _Counter(shown, box.messages)
            for chunk in file.snapshot(box.id).chunks:
                uids = [
                    record.uid
                    for record in records_of(chunk)
                    if record.flags & must == must
                    and (before is None or record.save_date <= before)
                ]
                if uids:
                    file.expunge(box.id, ranges_of(uids), deleted_only=False)
                    while file.reclaim():
                        pass
                    count += len(uids)
                progress(len(chunk) // RECORD_OCTETS)
        _tell(config, account, file)
    if as_json:
        print_json({"mailbox": box.name, "expunged": count})
    else:
        click.echo(f"{box.name}: {count} expunged")


@command.group("acl")
def acl() -> None:
    """See and change who else may use the mailboxes of an account (RFC 4314)."""


@acl.command("list")
@click.argument("account")
@click.argument("mailbox", required=False)
@json_option
@config_option
def acl_list(account: str, mailbox: str | None, as_json: bool, config_file: str) -> None:
    """With whom ACCOUNT shares MAILBOX, or any of its mailboxes; what is taken away has "-" before the name."""
    config = _prepared(config_file)
    rows: list[dict[str, str]] = []
    with _account(config, account) as file:
        boxes = [file.mailbox(mailbox)] if mailbox else file.mailboxes()
        for box in boxes:
            for identifier, rights in account_sharing.acl(file, box.id).items():
                rows.append({"mailbox": box.name, "identifier": identifier, "rights": rights})
    if as_json:
        print_json(rows)
    else:
        columns = ("mailbox", "identifier", "rights")
        print_table("", columns, [tuple(row[column] for column in columns) for row in rows])


@acl.command("set")
@click.argument("account")
@click.argument("mailbox")
@click.argument("identifier")
@click.argument("rights")
@click.option("--add", "how", flag_value="+", help="the RIGHTS beside those there are")
@click.option("--remove", "how", flag_value="-", help="these RIGHTS no longer")
@click.option("--deny", is_flag=True, help="take the RIGHTS away, whoever else grants them")
@config_option
def acl_set(
    account: str,
    mailbox: str,
    identifier: str,
    rights: str,
    how: str | None,
    deny: bool,
    config_file: str,
) -> None:
    """Let IDENTIFIER, an account or "anyone", have RIGHTS on MAILBOX of ACCOUNT; "" forgets it.

    RIGHTS are letters: l look up, r read, s keep \\Seen, w change other flags, i insert, p post, k make
    mailboxes within, x delete it, t set \\Deleted, e expunge, a administer.
    """
    config = _prepared(config_file)
    who = identifier.lower()
    user = ("-" if deny else "") + (
        who if who in (ANYONE, AUTHENTICATED) else name_or_exit(config, who)
    )
    try:
        letters = parse_rights(rights)
    except ValueError as error:
        fail(str(error), 2)
    owner = name_or_exit(config, account)
    if user.removeprefix("-") == owner:
        fail("its owner may do everything with a mailbox", 2)
    shares = Shares(config.store_dir)
    with _account(config, account) as file:
        box = file.mailbox(mailbox)
        entries_max = config.imap.acl_entries
        account_sharing.set_acl(file, owner, shares, box.id, user, how or "", letters, entries_max)
        shares.close()
        _tell(config, account, file)
        now = account_sharing.acl(file, box.id).get(user, "")
    click.echo(f"{box.name}: {user} {now or 'has no entry'}")


# -- shared ------------------------------------------------------------------------------------------


def _prepared(config_file: str) -> Config:
    """The configuration; as root we go on as the user of the workers, whose files these are."""
    config = load_or_exit(config_file)
    try:
        become_owner(config)
    except OSError as error:
        fail(f"{error}; run it as the user of the gateway, or as root", TEMPORARY)
    return config


@contextmanager
def _account(
    config: Config, name: str, *, create: bool = False, known: bool = False
) -> Iterator[AccountFile]:
    """The account's files; what the store says no with ends the command."""
    normal = name if known else name_or_exit(config, name)
    try:
        file = AccountFile(account_directory(config.store_dir, normal), config.store, create=create)
        try:
            yield file
        finally:
            file.close()
    except StoreError as error:
        _refused(error, normal)


def _refused(error: StoreError, account: str = "") -> Any:
    fail(f"{account}: {error}" if account else str(error), TEMPORARY if error.transient else FAILED)


def _tell(config: Config, account: str, file: AccountFile) -> None:
    """Sessions that have a mailbox open look at it."""
    name = name_or_exit(config, account)
    notices = [Notice(name, box.id, box.highestmodseq) for box in file.mailboxes()]
    send_notices(config.control_dir, encode_notices([Notice(name, 0, 0), *notices]))


class _Counter:
    """Turns "so many more" into "so many of all"."""

    def __init__(self, shown: Callable[[int, int], None], total: int) -> None:
        self._shown = shown
        self._total = total
        self._done = 0

    def __call__(self, more: int) -> None:
        self._done += more
        self._shown(self._done, self._total)


@contextmanager
def _progress(quiet: bool, what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda _done, _all: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
