"""IMAP with the clients that people use, each with an account of its own on one gateway."""

from __future__ import annotations

import asyncio
import email
import json
import mailbox
import os
import pty
import shutil
import smtplib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from getmail_client import getmail
from imap_house import PASSWORD, ImapHouse, message
from interop_peers import need, wait_for


def run(words: list[str], *, ok: tuple[int, ...] = (0,), **options: object) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(words, capture_output=True, timeout=120, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode in ok, (done.returncode, done.stdout + done.stderr)
    return done


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "HOME": str(home), "LC_ALL": "C.UTF-8", "TERM": "xterm"}


# -- curl ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["imap", "imap+starttls", "imaps"])
@pytest.mark.parametrize("login", ["AUTH=PLAIN", "AUTH=LOGIN", ""])
def test_curl(house: ImapHouse, account: str, tmp_path: Path, scheme: str, login: str) -> None:
    words = [need("curl"), "--silent", "--show-error", "--insecure", "--max-time", "60"]
    words += ["--user", f"{account}:{PASSWORD}"]
    if login:
        words += ["--login-options", login]
    if scheme == "imap+starttls":
        words.append("--ssl-reqd")
    port = house.tls_port if scheme == "imaps" else house.port
    url = f"{scheme.partition('+')[0]}://127.0.0.1:{port}/"
    for number in (1, 2):
        (tmp_path / "mail").write_bytes(message(number))
        run([*words, "-T", str(tmp_path / "mail"), url + "INBOX"])
    assert run([*words, url + "INBOX;UID=2"]).stdout == message(2)
    assert run([*words, url + "INBOX;MAILINDEX=1;SECTION=HEADER.FIELDS%20(SUBJECT)"]).stdout.startswith(
        b"Subject: number 1\r\n"
    )
    assert run([*words, url + "INBOX?SUBJECT%20%22number%202%22"]).stdout == b"* SEARCH 2\r\n"
    assert b'"/" INBOX\r\n' in run([*words, url]).stdout.replace(b'"INBOX"', b"INBOX")
    run([*words, url + "INBOX", "-X", "STORE 1 +Flags \\Deleted"])
    run([*words, url + "INBOX", "-X", "EXPUNGE"])
    assert list(house.contents(account)) == [message(2)]


# -- mbsync ----------------------------------------------------------------------------------------


def mbsync(house: ImapHouse, account: str, home: Path, *, tls: bool = False) -> None:
    home.mkdir(exist_ok=True)
    (home / "near").mkdir(exist_ok=True)
    config = home / "mbsyncrc"
    config.write_text(
        f"""\
IMAPAccount far
Host localhost
Port {house.tls_port if tls else house.port}
User {account}
Pass "{PASSWORD}"
SSLType {"IMAPS" if tls else "None"}
{f"CertificateFile {home / 'trusted.pem'}" if tls else ""}

IMAPStore far
Account far

MaildirStore near
Path {home}/near/
Inbox {home}/near/INBOX
SubFolders Verbatim

Channel all
Far :far:
Near :near:
Patterns *
Create Both
Remove Both
Expunge Both
SyncState *
"""
    )
    run([need("mbsync"), "-c", str(config), "--all"], env=environment(home))


def without_tuid(octets: bytes) -> bytes:
    """Without the field by which mbsync knows its uploads again."""
    return b"".join(line for line in octets.splitlines(True) if not line.startswith(b"X-TUID:"))


def near_mail(home: Path, folder: str = "INBOX") -> dict[bytes, str]:
    """{octets with CRLF: Maildir flags} without what the client added."""
    box = mailbox.Maildir(home / "near" / folder, factory=None)
    found = {}
    for key in box.iterkeys():
        octets = without_tuid(box.get_bytes(key).replace(b"\n", b"\r\n"))
        found[octets] = "".join(sorted(box[key].get_flags()))
    return found


def near_change(home: Path, octets: bytes, flags: str | None, folder: str = "INBOX") -> None:
    """Set a message's flags; None: remove it."""
    box = mailbox.Maildir(home / "near" / folder, factory=None)
    for key in box.iterkeys():
        if octets.splitlines()[4] in box.get_bytes(key):
            if flags is None:
                box.remove(key)
            else:
                found = box[key]
                found.set_subdir("cur")
                found.set_flags(flags)
                box[key] = found
            return
    raise AssertionError("no such message here")


def test_mbsync_both_ways_with_conflicts(house: ImapHouse, account: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    house.fill(account, 6)
    client = house.login(account)
    client.create("Archive/2026")
    client.append("Archive/2026", "(\\Seen)", "", message(50))
    mbsync(house, account, home)
    assert set(near_mail(home)) == {message(number) for number in range(1, 7)}
    assert near_mail(home, "Archive/2026") == {message(50): "S"}

    # Both sides change: each its own messages, and both the same one.
    near_change(home, message(1), "S")
    near_change(home, message(2), "FR")
    near_change(home, message(3), None)
    near_change(home, message(4), "F")  # while the server expunges it
    mailbox.Maildir(home / "near/INBOX", factory=None).add(message(7).replace(b"\r\n", b"\n"))
    client.select("INBOX")
    client.store("2", "+FLAGS", "(\\Seen)")
    client.store("4", "+FLAGS", "(\\Deleted)")
    client.store("5", "+FLAGS", "(\\Answered $Forwarded)")
    client.expunge()
    client.append("INBOX", "(\\Flagged)", "", message(8))
    client.logout()
    for _ in range(2):
        mbsync(house, account, home)
    near, far = near_mail(home), house.contents(account)
    assert {without_tuid(octets): flags - {"$Forwarded"} for octets, flags in far.items()} == {
        octets: {name for letter, name in LETTERS.items() if letter in flags} for octets, flags in near.items()
    }
    expected = {1: "S", 2: "FRS", 5: "R", 6: "", 7: "", 8: "F"}
    assert {octets: flags.replace("P", "") for octets, flags in near.items()} == {
        message(number): flags for number, flags in expected.items()
    }


LETTERS = {"S": "\\Seen", "R": "\\Answered", "F": "\\Flagged", "D": "\\Draft", "T": "\\Deleted"}


def test_mbsync_over_tls(
    house: ImapHouse, account: str, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(certificate[0], home / "trusted.pem")
    house.fill(account, 3)
    mbsync(house, account, home, tls=True)
    assert set(near_mail(home)) == {message(number) for number in range(1, 4)}


# -- offlineimap, getmail, fetchmail ---------------------------------------------------------------


def test_offlineimap(house: ImapHouse, account: str, tmp_path: Path) -> None:
    need("offlineimap")
    house.fill(account, 4)
    (tmp_path / "rc").write_text(
        f"""\
[general]
accounts = a
metadata = {tmp_path}/meta
ui = quiet
[Account a]
localrepository = near
remoterepository = far
[Repository near]
type = Maildir
localfolders = {tmp_path}/near
[Repository far]
type = IMAP
remotehost = 127.0.0.1
remoteport = {house.port}
remoteuser = {account}
remotepass = {PASSWORD}
ssl = no
starttls = no
auth_mechanisms = PLAIN, LOGIN
"""
    )
    words = ["offlineimap", "-o", "-c", str(tmp_path / "rc")]
    run(words, env=environment(tmp_path))
    assert set(near_mail(tmp_path)) == {message(number) for number in range(1, 5)}
    near_change(tmp_path, message(2), "FS")
    near_change(tmp_path, message(3), None)
    mailbox.Maildir(tmp_path / "near/INBOX", factory=None).add(message(9).replace(b"\r\n", b"\n"))
    run(words, env=environment(tmp_path))
    far = house.contents(account)
    assert far[message(2)] == {"\\Flagged", "\\Seen"}
    assert message(3) not in far
    assert sum(b"Subject: number 9\r\n" in octets for octets in far) == 1
    assert len(far) == 4


def test_getmail(house: ImapHouse, account: str, tmp_path: Path) -> None:
    house.fill(account, 3)
    near = getmail(tmp_path, "IMAP", house.port, account, PASSWORD, 'mailboxes = ("INBOX",)')
    subjects = sorted(str(mail["Subject"]) for mail in mailbox.Maildir(near))
    assert subjects == ["number 1", "number 2", "number 3"]
    assert house.contents(account) == {}


def test_fetchmail(house: ImapHouse, account: str, tmp_path: Path) -> None:
    need("fetchmail")
    house.fill(account, 3)
    box = tmp_path / "box"
    rc = tmp_path / "fetchmailrc"
    rc.write_text(
        f"poll 127.0.0.1 protocol imap port {house.port} auth password\n"
        f'  user "{account}" password "{PASSWORD}" no sslcertck\n'
        f'  mda "cat >>{box}" no rewrite\n'
    )
    rc.chmod(0o600)
    words = ["fetchmail", "--fetchmailrc", str(rc), "--invisible", "--nokeep"]
    run(words, env={**environment(tmp_path), "FETCHMAILHOME": str(tmp_path)})
    mails = box.read_bytes().replace(b"\r\n", b"\n")
    assert all(message(number).replace(b"\r\n", b"\n") in mails for number in range(1, 4))
    assert house.contents(account) == {}


# -- neomutt, imapfilter ---------------------------------------------------------------------------


def test_neomutt(house: ImapHouse, account: str, tmp_path: Path) -> None:
    """On a terminal: limits to what it found by a server-side search, saves it elsewhere, deletes, quits."""
    need("neomutt")
    house.fill(account, 5)
    client = house.login(account)
    client.create("Saved")
    (tmp_path / "rc").write_text(
        f"""\
set folder="imap://127.0.0.1:{house.port}/" spoolfile="+INBOX" imap_user="{account}" imap_pass="{PASSWORD}"
set ssl_starttls=no ssl_force_tls=no quit=yes delete=yes confirmappend=no confirmcreate=no mark_old=no
set wait_key=no imap_idle=yes imap_condstore=yes imap_qresync=yes header_cache="{tmp_path}/cache"
push '<tag-pattern>=B "line of text" ~s "number 2"<enter><tag-prefix><save-message>=Saved<enter><sync-mailbox><quit>'
"""
    )
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        ["neomutt", "-n", "-F", str(tmp_path / "rc")],
        stdin=end, stdout=end, stderr=end, env=environment(tmp_path), start_new_session=True,
    )  # fmt: skip
    os.close(end)
    seen = bytearray()
    try:
        while process.poll() is None:
            try:
                seen += os.read(terminal, 65536)
            except OSError:  # the other end is closed
                break
        assert process.wait(60) == 0, seen[-2000:]
    finally:
        if process.poll() is None:
            process.kill()
        os.close(terminal)
    assert list(house.contents(account, "Saved")) == [message(2)]
    assert set(house.contents(account)) == {message(number) for number in (1, 3, 4, 5)}


def test_imapfilter(house: ImapHouse, account: str, tmp_path: Path) -> None:
    need("imapfilter")
    house.fill(account, 5)
    (tmp_path / "config.lua").write_text(
        textwrap.dedent(
            f"""\
            options.timeout = 60
            options.create = true
            options.starttls = false
            account = IMAP {{ server = '127.0.0.1', port = {house.port},
                              username = '{account}', password = '{PASSWORD}' }}
            found = account.INBOX:contain_subject('number 2') + account.INBOX:contain_subject('number 4')
            found:mark_flagged()
            found:move_messages(account['Filtered'])
            rest = account.INBOX:is_unseen() * account.INBOX:contain_body('line of text')
            rest:mark_seen()
            """
        )
    )
    run(["imapfilter", "-c", str(tmp_path / "config.lua")], env=environment(tmp_path))
    assert house.contents(account, "Filtered") == {message(n): {"\\Flagged"} for n in (2, 4)}
    assert house.contents(account) == {message(n): {"\\Seen"} for n in (1, 3, 5)}


# -- Python, node ----------------------------------------------------------------------------------


LIVETEST = """\
import argparse
from imapclient import livetest
# What two tests take its own objects for.
argparse.Namespace.__getitem__ = lambda self, name: getattr(self, name)
livetest.Envelope.__len__ = lambda self: 10
# Not about the server: hosts that are not there, and a command that imaplib does not know.
livetest.TestSocketTimeout = argparse.Namespace
made = livetest.createUidTestClass
def make(*arguments, **options):
    found = made(*arguments, **options)
    del found.test_move
    return found
livetest.createUidTestClass = make
# Servers may let a name be subscribed to that does not exist (RFC 9051 section 6.3.7).
del livetest.TestGeneral.test_subscriptions
livetest.main()
"""


def test_imapclient_livetest(house: ImapHouse, account: str, tmp_path: Path) -> None:
    """The suite that imapclient runs against servers: its commands, with and without UIDs."""
    ini = tmp_path / "live.ini"
    ini.write_text(
        f"[DEFAULT]\nhost = 127.0.0.1\nport = {house.port}\nssl = false\nusername = {account}\npassword = {PASSWORD}\n"
    )
    done = run([sys.executable, "-W", "ignore", "-c", LIVETEST, str(ini)], ok=(0, 1))
    assert done.returncode == 0, done.stderr.decode()[-6000:]
    assert b"\nRan " in done.stderr


def test_aioimaplib(house: ImapHouse, account: str) -> None:
    """IDLE hears of a message that another session appends, and fetches it."""
    from aioimaplib import IMAP4

    async def main() -> None:
        client = IMAP4("127.0.0.1", house.port, timeout=60)
        await client.wait_hello_from_server()
        assert (await client.login(account, PASSWORD)).result == "OK"
        assert (await client.select("INBOX")).result == "OK"
        idle = await client.idle_start(timeout=60)
        await asyncio.to_thread(house.fill, account, 1)
        pushed = await client.wait_server_push(60)
        assert b"1 EXISTS" in pushed
        client.idle_done()
        await asyncio.wait_for(idle, 60)
        found = await client.uid("fetch", "1", "(BODY.PEEK[])")
        assert message(1) in [bytes(line) for line in found.lines if isinstance(line, bytearray)]
        assert (await client.search("SUBJECT number")).lines[0] == b"1"
        await client.logout()

    asyncio.run(main())


FLOW = """\
const { ImapFlow } = require(process.argv[2]);
(async () => {
  const client = new ImapFlow({ host: '127.0.0.1', port: +process.argv[3], secure: false, doSTARTTLS: true,
    tls: { rejectUnauthorized: false }, auth: { user: process.argv[4], pass: process.argv[5] }, logger: false });
  await client.connect();
  const out = { capabilities: [...client.capabilities.keys()], enabled: [...client.enabled] };
  const lock = await client.getMailboxLock('INBOX');
  out.exists = client.mailbox.exists;
  out.subjects = [];
  for await (const one of client.fetch('1:*', { uid: true, flags: true, envelope: true, bodyStructure: true,
      internalDate: true, size: true, source: true, threadId: true, headers: ['subject'] })) {
    out.subjects.push([one.uid, one.envelope.subject, one.source.length === one.size, one.bodyStructure.type,
      one.modseq > 0n]);
  }
  out.found = await client.search({ subject: 'number 2' }, { uid: true });
  await client.messageFlagsAdd('2', ['\\\\Flagged', 'Later']);
  await client.mailboxCreate(['Kept', 'Ängste']);
  out.moved = await client.messageMove('3', 'Kept/Ängste');
  out.appended = await client.append('INBOX', 'Subject: new\\r\\n\\r\\nbody\\r\\n', ['\\\\Seen'],
    new Date('2026-01-02T03:04:05Z'));
  await client.messageDelete('1');
  out.list = (await client.list()).map(one => [one.path, one.specialUse || '']);
  out.status = await client.status('Kept/Ängste', { messages: true, uidNext: true, highestModseq: true });
  out.quota = await client.getQuota('INBOX');
  out.left = await client.search({ all: true }, { uid: true });
  lock.release();
  await client.logout();
  console.log(JSON.stringify(out, (key, value) => typeof value === 'bigint' ? Number(value)
    : value instanceof Map ? Object.fromEntries(value) : value));
})().catch(error => { console.error(error); process.exit(1); });
"""


def test_imapflow(house: ImapHouse, account: str, tmp_path: Path) -> None:
    node = need("node")
    package = Path(
        os.environ.get("MAIL_GATEWAY_PEERS")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mail-gateway/peers"
    ) / "imapflow/node_modules/imapflow"
    if not package.exists():
        pytest.skip("imapflow is not installed (tools/install_peers needs the npm registry)")
    house.fill(account, 3)
    script = tmp_path / "flow.js"
    script.write_text(FLOW)
    done = run([node, str(script), str(package), str(house.port), account, PASSWORD])
    out = json.loads(done.stdout)
    assert out["exists"] == 3
    assert out["subjects"] == [[n, f"number {n}", True, "text/plain", True] for n in (1, 2, 3)]
    assert out["found"] == [2]
    assert out["moved"]["uidMap"] == {"3": 1}
    assert out["appended"]["uid"] == 4
    assert out["left"] == [2, 4]
    assert ["Kept/Ängste", ""] in out["list"]
    assert out["status"]["messages"] == 1
    assert house.contents(account)[message(2)] == {"\\Flagged", "Later"}


def test_imaplib_and_email(house: ImapHouse, account: str) -> None:
    """What a Python script does: append, search, partial fetch, copy, delete."""
    house.fill(account, 3)
    client = house.login(account)
    assert client.select("INBOX") == ("OK", [b"3"])
    assert client.search(None, "FROM", '"Bob"', "UNSEEN") == ("OK", [b"1 2 3"])
    assert client.search("UTF-8", "SUBJECT", '"number"')[1] == [b"1 2 3"]
    _, data = client.fetch("2", "(RFC822)")
    assert email.message_from_bytes(data[0][1])["Subject"] == "number 2"
    assert client.response("FLAGS")[1] is not None
    assert client.sort("(REVERSE DATE)", "UTF-8", "ALL") == ("OK", [b"3 2 1"])
    assert client.thread("REFERENCES", "UTF-8", "ALL")[0] == "OK"
    assert client.create("Copies")[0] == "OK"
    assert client.copy("1:2", "Copies")[0] == "OK"
    assert client.store("1:2", "+FLAGS.SILENT", "\\Deleted")[0] == "OK"
    assert client.expunge() == ("OK", [b"1", b"1"]) or client.select("INBOX")[1] == [b"1"]
    assert client.status("Copies", "(MESSAGES)")[1] == [b'"Copies" (MESSAGES 2)']
    assert client.getquotaroot("INBOX")[0] == "OK"
    assert client.namespace()[1][0].startswith(b'(("" "/"))')
    client.logout()


def test_a_delivery_is_seen_by_all(house: ImapHouse, account: str) -> None:
    """LMTP in, an IDLE session of another connection hears of it."""
    watching = house.login(account)
    watching.select("INBOX")
    watching.send(b"idle IDLE\r\n")
    assert watching.readline().startswith(b"+")
    with smtplib.LMTP("127.0.0.1", house.ports[2]) as client:
        client.sendmail("bob@example.test", [account], message(1))
    line = b""
    while b"EXISTS" not in line:
        line = watching.readline()
    assert line == b"* 1 EXISTS\r\n"
    watching.send(b"DONE\r\n")
    wait_for(lambda: watching.readline().startswith(b"idle OK"), "the end of IDLE")
    watching.shutdown()
