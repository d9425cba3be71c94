"""Every other kind of next hop: LMTP, web hooks, Maildirs, discard; and peers with odd manners.

Standards RFC 2033 §4.2, RFC 9110 §10.2.3, RFC 2104, RFC 5321 §4.1.2, §4.2, §4.4; Maildir
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from e2e.rig import (
    CLOSE,
    DROP,
    EVERYTHING,
    PLAIN,
    QUICK,
    Gateway,
    Lab,
    Sender,
    Session,
    route,
    wait_until,
    without_received,
)
from e2e.web_hook import WebHook

CONTENT = b"From: alice@sender.test\r\nSubject: x\r\n\r\n.body\r\n"
THREE = ["bob@rcpt.test", "gone@rcpt.test", "late@rcpt.test"]

# -- LMTP --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offers", [EVERYTHING, PLAIN, ()], ids=["BDAT", "DATA", "step by step"])
def test_lmtp_one_fails_one_waits_one_is_delivered(lab: Lab, offers: tuple[str, ...]) -> None:
    """RFC 2033 §4.2: a reply for each; only what was deferred is sent again."""
    hop = lab.hop(
        offers,
        {
            ("content", "gone@rcpt.test"): "550 5.2.1 disabled",
            ("content", "late@rcpt.test"): "452 4.2.2 full",
        },
        lmtp=True,
    )
    back = lab.hop()
    gateway = lab.gateway(route(hop.url, "rcpt.test"), route(back.url, "sender.test"))
    gateway.send(CONTENT, THREE)
    assert hop.wait()[0].to == ["bob@rcpt.test"]
    report = back.wait()[0].content
    assert report.count(b"Final-Recipient:") == 1
    assert b"Final-Recipient: rfc822; gone@rcpt.test" in report
    assert gateway.wait_for("deferred")[0]["forward_path"] == "late@rcpt.test"
    hop.replies.clear()
    gateway.retry()
    assert hop.wait(2)[1].to == ["late@rcpt.test"]
    gateway.wait_empty()
    assert {e["forward_path"] for e in gateway.events("delivered")} == {
        "bob@rcpt.test",
        "late@rcpt.test",
    }
    assert len(back.received) == 1


def test_lmtp_replies_follow_those_who_were_accepted(lab: Lab) -> None:
    """Refused at RCPT: no reply behind the content."""
    hop = lab.hop(
        lmtp=True,
        replies={
            ("RCPT", "gone@rcpt.test"): "550 5.1.1 who?",
            ("content", "late@rcpt.test"): "450 4.2.0 later",
        },
    )
    gateway = lab.gateway(route(hop.url, "rcpt.test"))
    gateway.send(CONTENT, THREE, sender="")
    assert gateway.wait_for("delivered")[0]["forward_path"] == "bob@rcpt.test"
    assert gateway.wait_for("bounced")[0]["forward_path"] == "gone@rcpt.test"
    assert gateway.wait_for("deferred")[0]["forward_path"] == "late@rcpt.test"


def test_lmtp_that_dies_between_its_replies(lab: Lab) -> None:
    """Who had a reply has a verdict; the others are sent again, and no one else."""
    hop = lab.hop(lmtp=True, replies={("content", "late@rcpt.test"): CLOSE})
    gateway = lab.gateway(route(hop.url, "rcpt.test"))
    gateway.send(CONTENT, THREE)
    deferred = gateway.wait_for("deferred")
    assert [line["forward_path"] for line in deferred] == ["late@rcpt.test"]
    assert "twice" in deferred[0]["reply"]
    hop.replies.clear()
    gateway.retry()
    assert hop.wait(2)[1].to == ["late@rcpt.test"]
    gateway.wait_empty()


def test_lmtp_over_a_unix_socket(lab: Lab) -> None:
    """It comes and goes like a port."""
    path = f"{lab.directory}/lmtp socket"
    gateway = lab.gateway(route(f"lmtp+unix:{path.replace(' ', '%20')}", "rcpt.test"))
    gateway.send(CONTENT)
    assert "No such file" in gateway.wait_for("lane_down")[0]["reply"]
    hop = lab.hop(lmtp=True, path=path)
    assert hop.wait()[0].body == CONTENT
    for _ in range(20):
        gateway.send(CONTENT, THREE)
    hop.wait(21)
    gateway.wait_empty()
    assert len(gateway.events("delivered")) == 61
    assert hop.said("LHLO mx.example.test")
    assert not hop.said("STARTTLS")


def test_lmtp_is_greeted_with_lhlo_only(lab: Lab) -> None:
    """RFC 2033 §4.1: no HELO when it is refused."""
    hop = lab.hop(lmtp=True, replies={"LHLO": "500 5.5.1 what?"})
    gateway = lab.gateway(route(hop.url, "rcpt.test"))
    gateway.send(CONTENT)
    gateway.wait_for("lane_down")
    assert not hop.said("HELO")
    assert not hop.said("EHLO")


# -- peers with odd manners --------------------------------------------------------------------------------------------

LATIN = b"550 5.1.1 Postfach unbekannt, M\xfcller".decode("utf-8", "surrogateescape")


@pytest.mark.parametrize(
    ("reply", "event", "enhanced", "words"),
    [
        (LATIN, "bounced", "5.1.1", "Postfach unbekannt, M"),
        ("550", "bounced", "5.0.0", ""),
        ("550 no status", "bounced", "5.0.0", "no status"),
        ("550-5.7.1 first\r\n550-5.7.1 second\r\n550 5.7.1 third", "bounced", "5.7.1", "first second third"),
        ("550 4.7.1 of two minds", "bounced", "5.", "of two minds"),
        ("450 " + "x" * 1800, "deferred", "4.0.0", "xxxx"),
        ("354 carry on", "deferred", "4.5.0", "carry on"),
        ("999 beyond", "deferred", "4.5.0", ""),
        ("gibberish", "deferred", "4.5.0", ""),
        ("251 2.1.5 will forward", "relayed", "2.", ""),
    ],
    ids=["latin-1", "bare", "no status", "lines", "class", "long", "354", "999", "gibberish", "251"],
)  # fmt: skip
def test_odd_replies_to_rcpt(lab: Lab, reply: str, event: str, enhanced: str, words: str) -> None:
    """Only 5yz is permanent; what is not understood is transient; reports and logs stay readable."""
    hop, back = lab.hop(PLAIN, {"RCPT": reply}), lab.hop()
    gateway = lab.gateway(route(hop.url, "rcpt.test"), route(back.url, "sender.test"))
    queue_id = gateway.send(CONTENT)
    wait_until(lambda: gateway.events(event, queue_id), f"{event!r}")
    line = gateway.events(event, queue_id)[0]
    assert line["enhanced"].startswith(enhanced)
    assert words in line["reply"]
    if event == "bounced":
        report = back.wait()[0]
        assert not report.message.defects
        assert b"Action: failed" in report.content
        gateway.wait_empty()


def test_a_peer_without_ehlo(lab: Lab) -> None:
    """RFC 5321 §3.2: HELO, and nothing that EHLO would have offered."""
    hop = lab.hop(replies={"EHLO": "500 5.5.1 never heard of it"})
    gateway = lab.gateway(route(hop.url, "rcpt.test"))
    gateway.send(CONTENT, "bob@rcpt.test NOTIFY=FAILURE", mail="BODY=8BITMIME RET=HDRS")
    mail = hop.wait()[0]
    assert mail.mail == "<alice@sender.test>"
    assert mail.rcpts == ["<bob@rcpt.test>"]
    assert mail.body == CONTENT


def test_421_in_the_middle(lab: Lab) -> None:
    """RFC 5321 §3.8: it closes; the mail goes over the next connection."""
    closing = iter(["421 4.3.2 bye"])
    hop = lab.hop(replies={"MAIL": lambda *_: next(closing, None)})
    gateway = lab.gateway(route(hop.url, "rcpt.test"))
    gateway.send(CONTENT)
    gateway.wait_for("deferred")
    gateway.retry()
    hop.wait()
    gateway.wait_empty()


def test_a_connection_that_was_closed_meanwhile(lab: Lab) -> None:
    """An idle connection that the peer gave up costs no attempt."""
    hop = lab.hop()
    gateway = lab.gateway(route(hop.url, "rcpt.test"))
    for number in range(1, 6):
        gateway.send(CONTENT)
        gateway.wait_for("relayed", number)
        hop.hang_up()
    gateway.wait_empty()
    assert not gateway.events("deferred")


@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA", "content"])
def test_a_peer_that_falls_silent(lab: Lab, stage: str) -> None:
    """RFC 5321 §4.5.3.2: each state has its timeout; the mail is kept."""

    def silent(session: Session, argument: str) -> str:
        over.wait(30)
        return DROP

    over = threading.Event()
    hop = lab.hop(PLAIN, {stage: silent})
    names = {"MAIL": "mail_s", "RCPT": "rcpt_s", "DATA": "data_init_s", "content": "data_done_s"}
    gateway = lab.gateway(
        route(hop.url, "rcpt.test"), extra=f"{QUICK}[delivery]\n{names[stage]} = 0.1\n"
    )
    gateway.send(CONTENT)
    line = gateway.wait_for("deferred")[0]
    assert line["enhanced"] == "4.4.2"
    assert "timed out" in line["reply"]
    hop.replies.clear()
    over.set()
    gateway.retry()
    hop.wait()
    gateway.wait_empty()


# -- web hooks ---------------------------------------------------------------------------------------------------------


SECRET = "what only we know"


def check_signature(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    """As a receiver would: X-Signature: t=<seconds>,v1=<hex of HMAC-SHA256 over "seconds.body">."""
    fields = dict(word.split("=", 1) for word in handler.headers["X-Signature"].split(","))
    assert abs(time.time() - int(fields["t"])) < 60
    expected = hmac.new(SECRET.encode(), fields["t"].encode() + b"." + body, hashlib.sha256)
    assert hmac.compare_digest(expected.hexdigest(), fields["v1"])


@pytest.mark.parametrize("size", [0, 1_000_000], ids=["small", "streamed"])
def test_webhook_raw(lab: Lab, hook: WebHook, size: int) -> None:
    gateway = lab.gateway(
        route(
            hook.url, "rcpt.test", http_secret=SECRET, http_headers={"Authorization": "Bearer abc"}
        )
    )
    content = CONTENT + (b"z" * 70 + b"\r\n") * (size // 72)
    queue_id = gateway.send(content, ["bob@rcpt.test", '"eve..x"@rcpt.test'])
    handler, body = hook.wait()[0]
    check_signature(handler, body)
    assert without_received(body) == content
    headers = handler.headers
    assert handler.path == "/in?key=1"
    assert headers["Authorization"] == "Bearer abc"
    assert headers["Content-Type"] == "message/rfc822"
    assert headers["X-Queue-Id"] == queue_id
    assert headers["X-Reverse-Path"] == "alice@sender.test"
    assert headers.get_all("X-Forward-Path") == ["bob@rcpt.test", '"eve..x"@rcpt.test']
    gateway.wait_empty()
    delivered = gateway.events("delivered")
    assert len(delivered) == 2
    assert "thanks" in delivered[0]["reply"]


def test_webhook_json(lab: Lab, hook: WebHook) -> None:
    gateway = lab.gateway(route(hook.url, "rcpt.test", http_format="json", http_secret=SECRET))
    attachment = bytes(range(256))
    content = (
        b"From: =?utf-8?q?J=C3=BCrgen?= <j@sender.test>\r\nSubject: two parts\r\nMIME-Version: 1.0\r\n"
        b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n'
        b"--b\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        + "Grüße".encode()
        + b"\r\n--b\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n"
        b'Content-Disposition: attachment; filename="a.bin"\r\n\r\n'
        + base64.encodebytes(attachment).replace(b"\n", b"\r\n")
        + b"--b--\r\n"
    )
    queue_id = gateway.send(content, "bob@rcpt.test", mail="BODY=8BITMIME ENVID=e1")
    handler, body = hook.wait()[0]
    check_signature(handler, body)
    assert handler.headers["Content-Type"] == "application/json"
    message = json.loads(body)
    assert message["queue_id"] == queue_id
    assert message["envelope"]["reverse_path"] == "alice@sender.test"
    assert message["envelope"]["recipients"][0]["forward_path"] == "bob@rcpt.test"
    assert message["envelope"]["envid"] == "e1"
    assert ["From", "Jürgen <j@sender.test>"] in message["headers"]
    text, file = message["parts"]
    assert (text["part"], text["text"]) == ("1", "Grüße")
    assert (file["part"], file["filename"]) == ("2", "a.bin")
    assert base64.b64decode(file["base64"]) == attachment
    gateway.wait_empty()


@pytest.mark.parametrize(
    ("status", "event", "enhanced"),
    [
        (400, "bounced", "5.3.0"),
        (404, "bounced", "5.3.0"),
        (413, "bounced", "5.3.4"),
        (401, "deferred", "4.3.2"),
        (408, "deferred", "4.3.2"),
        (429, "deferred", "4.3.2"),
        (302, "deferred", "4.3.2"),
        (500, "deferred", "4.3.0"),
        (503, "deferred", "4.3.0"),
        (202, "delivered", "2.0.0"),
        (204, "delivered", "2.0.0"),
    ],
)
def test_webhook_status(lab: Lab, hook: WebHook, status: int, event: str, enhanced: str) -> None:
    hook.answers = [
        (status, {"Location": "http://127.0.0.1:1/"}, b"" if status == 204 else b"because")
    ]
    gateway = lab.gateway(route(hook.url, "rcpt.test"))
    gateway.send(CONTENT)
    line = gateway.wait_for(event)[0]
    assert line["enhanced"] == enhanced
    assert f"HTTP {status}" in line["reply"]
    if event == "deferred":
        gateway.retry()
        gateway.wait_for("delivered")
        keys = {handler.headers["Idempotency-Key"] for handler, _ in hook.requests}
        assert len(hook.requests) == 2
        assert len(keys) == 1
    gateway.wait_empty()


def test_webhook_retry_after(lab: Lab, hook: WebHook) -> None:
    """RFC 9110 §10.2.3: not before that, though our own schedule would be sooner."""
    hook.answers = [(503, {"Retry-After": "1000"}, b"maintenance")]
    gateway = lab.gateway(route(hook.url, "rcpt.test"))
    queue_id = gateway.send(CONTENT)
    gateway.wait_for("deferred")
    shown = gateway.call(gateway.queue.show, queue_id)
    assert 990 < shown["next_attempt_at"] / 1e9 - time.time() < 1110


def test_webhook_that_does_not_answer(lab: Lab, hook: WebHook) -> None:
    over = threading.Event()
    hook.answers = [lambda: over.wait(20) and None]
    gateway = lab.gateway(route(hook.url, "rcpt.test"), extra=f"{QUICK}[delivery]\nhttp_s = 0.2\n")
    gateway.send(CONTENT)
    line = gateway.wait_for("deferred")[0]
    assert line["enhanced"] == "4.4.2"
    over.set()
    gateway.retry()
    gateway.wait_for("delivered")


def test_webhook_that_is_away(lab: Lab) -> None:
    away = WebHook()
    away.close()
    back_again = WebHook()
    try:
        gateway = lab.gateway(route([away.url, back_again.url], "rcpt.test"))
        gateway.send(CONTENT)
        assert without_received(back_again.wait()[0][1]) == CONTENT
        gateway.wait_empty()
    finally:
        back_again.close()


def test_webhook_reset_in_the_middle(lab: Lab, hook: WebHook) -> None:
    def reset() -> None:
        hook.requests[-1][0].connection.close()
        raise ConnectionError

    hook.answers = [reset]
    hook.server.handle_error = lambda *_: None  # type: ignore[method-assign]
    gateway = lab.gateway(route(hook.url, "rcpt.test"))
    gateway.send(CONTENT)
    gateway.wait_for("deferred")
    gateway.retry()
    gateway.wait_for("delivered")
    gateway.wait_empty()


def test_webhook_names_in_utf8(lab: Lab, hook: WebHook) -> None:
    gateway = lab.gateway(route(hook.url, "rcpt.test"))
    with Sender(gateway.port) as sender:
        sender.send("MAIL FROM:<jürgen@sender.test> SMTPUTF8\r\n".encode())
        sender.reply()
        sender.send("RCPT TO:<žofie@rcpt.test>\r\n".encode())
        sender.reply()
        sender.command("DATA")
        sender.send(CONTENT.replace(b".body", b"..body") + b".\r\n")
        assert sender.code() == 250
    handler, body = hook.wait()[0]
    # Python's server reads header fields as Latin-1.
    assert handler.headers["X-Reverse-Path"].encode("latin-1").decode() == "jürgen@sender.test"
    assert handler.headers["X-Forward-Path"].encode("latin-1").decode() == "žofie@rcpt.test"
    assert without_received(body) == CONTENT
    gateway.wait_empty()


# -- Maildir, store, discard -------------------------------------------------------------------------------------------

ODD = {
    "bob": "bob",
    "Bob": "bob",
    '"bob"': "bob",
    r'"b\ob"': "bob",
    "O'Hara+tag": None,
    '"a b"': None,
    '"a/b"': None,
    '"../../../../tmp/evil"': None,
    '"."': None,
    '".."': None,
    ".": None,
    '"%2e%2e"': None,
    '"{domain}"': None,
    '"a@b"': None,
    '"-rf"': None,
    "x" * 64: None,
    '"' + "y/" * 31 + '"': None,
    "ünïcode": None,
    "日本": None,
}


def mailboxes(root: Path) -> dict[str, list[Path]]:
    """{path below root: its messages}"""
    return {
        str(new.parent.relative_to(root)): sorted(new.iterdir())
        for new in root.rglob("new")
        if new.is_dir()
    }


def test_odd_mailboxes_stay_in_their_place(lab: Lab) -> None:
    """RFC 5321 §4.1.2: whatever a local part may be, it is one directory below its domain's."""
    root = lab.directory / "mail"
    gateway = lab.gateway(route(f"maildir:{root}/{{domain}}/{{local_part}}", "rcpt.test"))
    sent: list[str] = []
    with Sender(gateway.port) as sender:
        for local_part in ODD:
            sender.command("MAIL FROM:<alice@sender.test> SMTPUTF8")
            sender.send(f"RCPT TO:<{local_part}@rcpt.test>\r\n".encode())
            if sender.reply()[-1].startswith("250"):
                sender.command("DATA")
                sender.send(b"X-To: " + local_part.encode() + b"\r\n\r\nx\r\n.\r\n")
                assert sender.code() == 250
                sent.append(local_part)
            else:
                sender.command("RSET")
    assert len(sent) >= len(ODD) - 1  # "." alone is no local part
    gateway.wait_for("delivered", len(sent))
    found = mailboxes(root)
    assert all(len(Path(path).parts) == 2 and path.startswith("rcpt.test/") for path in found), (
        found
    )
    same = [part for part in sent if ODD[part] == "bob"]
    assert len(found) == len(sent) - len(same) + 1
    assert len(found["rcpt.test/bob"]) == len(same)
    assert not (lab.directory / "tmp").exists()
    assert sum(map(len, found.values())) == len(sent)
    for files in found.values():
        for file in files:
            assert file.stat().st_mode & 0o777 == 0o600
    gateway.wait_empty()


def test_maildir_has_the_trace_fields(lab: Lab) -> None:
    """RFC 5321 §4.4: the reverse-path becomes Return-Path, the null one too."""
    gateway = lab.gateway(route(f"maildir:{lab.directory}/mail", "rcpt.test"))
    gateway.send(CONTENT)
    gateway.send(CONTENT, sender="")
    gateway.wait_for("delivered", 2)
    contents = sorted(file.read_bytes() for file in (lab.directory / "mail" / "new").iterdir())
    for content, sender in zip(contents, (b"", b"alice@sender.test"), strict=True):
        head = b"Return-Path: <%s>\r\nDelivered-To: bob@rcpt.test\r\n" % sender
        assert content.startswith(head)
        assert without_received(content[len(head) :]) == CONTENT
    assert not list((lab.directory / "mail" / "tmp").iterdir())


def test_a_maildir_that_cannot_be_written(lab: Lab) -> None:
    """Kept, and delivered when it can."""
    if os.geteuid() == 0:
        blocked = lab.directory / "mail"
        blocked.write_bytes(b"not a directory")
    else:
        blocked = lab.directory / "mail"
        blocked.mkdir(mode=0o500)
    gateway = lab.gateway(route(f"maildir:{blocked}/{{local_part}}", "rcpt.test"))
    gateway.send(CONTENT)
    line = gateway.wait_for("deferred")[0]
    assert line["enhanced"] == "4.3.0"
    if blocked.is_file():
        blocked.unlink()
    else:
        blocked.chmod(0o700)
    gateway.retry()
    gateway.wait_for("delivered")
    assert len(mailboxes(blocked)["bob"]) == 1


def test_discard(lab: Lab) -> None:
    gateway: Gateway = lab.gateway(route("discard:", "rcpt.test"))
    with Sender(gateway.port) as sender:
        for _ in range(50):
            sender.submit(CONTENT, THREE)
    gateway.wait_empty()
    assert len(gateway.events("discarded")) == 150
    assert gateway.worker.metrics.discarded == 150
