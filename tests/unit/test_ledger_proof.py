"""The proof: every kind of difference, kills of every side, mailboxes, torn lines, and files beyond memory."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from smtp_blaster import ledger, ledger_file, ledger_mailbox
from smtp_blaster.cli import main
from smtp_blaster.ledger_file import Ledger

S = 1_000_000_000  # ns


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line.replace(" ", "\t") + "\n" for line in lines))
    return path


def prove(where: Path, accepted: list[str], delivered: list[str], kills: list[str] = ()):
    return ledger.prove(
        [write(where / "accepted", *accepted)],
        [write(where / "delivered", *delivered)],
        kills=[write(where / "kills", *kills)] if kills else (),
    )


# -- kinds of difference ---------------------------------------------------------------------------


def test_each_kind_is_counted_and_named(tmp_path):
    found = prove(
        tmp_path,
        [
            "whole 1 x 10", "lost 1 x 10", "altered 1 x 10", "twice 1 x 10", "part 1 x 10", "part 1 y 10",
            "# refused 10 refused x", "# refused 10 later x", "later 1 x 12",
            "# unknown 10 broken x", "# unknown 10 gone x",
        ],
        [
            "whole 1 x 11", "altered 2 x 11", "twice 1 x 11", "twice 1 x 12", "part 1 x 11", "later 1 x 13",
            "broken 1 x 11", "refused 1 x 11", "foreign 1 x 11",
        ],
    )  # fmt: skip
    assert (found.accepted, found.delivered) == (7, 9)
    assert (found.lost, found.altered) == (2, 1)
    assert found.lost_ids == ["lost to x", "part to y"]
    assert found.altered_ids == ["altered to x"]
    assert (found.duplicated, found.duplicated_explained, found.duplicated_unexplained) == (1, 0, 1)
    assert found.unexplained_ids == ["twice to x"]
    assert (found.unpromised, found.unpromised_unknown, found.unpromised_refused) == (3, 1, 1)
    assert (found.refused, found.unknown) == (1, 2)
    assert not found.is_clean


def test_accepted_again_with_other_octets_either_may_arrive(tmp_path):
    """A source that was restarted may send its numbers again."""
    found = prove(tmp_path, ["a 1 x 1", "a 2 x 5"], ["a 2 x 6"])
    assert (found.accepted, found.altered, found.lost) == (1, 0, 0)


@settings(max_examples=60, deadline=None)
@given(
    accepted=st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("12"), st.sampled_from("xy"))),
    delivered=st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("12"), st.sampled_from("xy"))),
)
def test_the_counts_are_those_of_a_model(accepted, delivered):
    promised: dict[tuple[str, str], set[str]] = {}
    for message, digest, path in accepted:
        promised.setdefault((message, path), set()).add(digest)
    arrived = Counter((message, path) for message, _, path in delivered)
    digests = {key: {d for m, d, p in delivered if (m, p) == key} for key in arrived}
    found = ledger.compare(accepted, delivered)
    assert found.accepted == len(promised)
    assert found.delivered == len(delivered)
    assert found.lost == len(promised.keys() - arrived.keys())
    assert found.duplicated == found.duplicated_unexplained == sum(n - 1 for n in arrived.values())
    assert found.unpromised == len(arrived.keys() - promised.keys())
    assert found.altered == sum(1 for key in promised if digests.get(key, set()) - promised[key])


# -- why a message came twice ----------------------------------------------------------------------


def test_a_lost_reply_explains_one_more_copy(tmp_path):
    found = prove(tmp_path, ["a 1 x 1"], ["a 1 x 2", "# unconfirmed 3 a x", "a 1 x 9", "a 1 x 10"])
    assert (found.duplicated_explained, found.duplicated_unexplained) == (1, 1)


def test_a_reply_lost_behind_the_copies_explains_nothing(tmp_path):
    found = prove(tmp_path, ["a 1 x 1"], ["a 1 x 2", "a 1 x 9", "# unconfirmed 10 a x"])
    assert (found.duplicated_explained, found.duplicated_unexplained) == (0, 1)


@pytest.mark.parametrize(
    ("kill", "explained"),
    [(10, 1), (14, 1), (16, 0), (9, 0), (31, 0)],
    ids=["at once", "within the window", "behind the window", "before", "behind the second copy"],
)
def test_a_kill_explains_what_came_shortly_before_it(tmp_path, kill, explained):
    found = prove(
        tmp_path,
        ["a 1 x 1"],
        [f"a 1 x {10 * S}", f"a 1 x {30 * S}"],
        [f"# killed {kill * S} worker"],
    )
    assert (found.kills, found.duplicated_explained) == (1, explained)
    assert found.is_clean == bool(explained)


def test_a_kill_between_copies_that_are_close(tmp_path):
    copies = [f"a 1 x {10 * S}", f"a 1 x {11 * S}"]
    assert prove(tmp_path, ["a 1 x 1"], copies, [f"# killed {12 * S} w"]).duplicated_explained == 0


def test_a_sink_that_was_killed_explains_its_last_copies(tmp_path):
    """Nobody marked it: a writer began again without having stopped."""
    copies = [
        "# started 1 77", f"early 1 x {10 * S}", f"a 1 x {20 * S}",
        f"# started {22 * S} 78", f"a 1 x {23 * S}", f"early 1 x {24 * S}", f"# stopped {25 * S} 78",
        f"# started {26 * S} 79",
    ]  # fmt: skip
    found = prove(tmp_path, ["a 1 x 1", "early 1 x 1"], copies)
    assert (found.kills, found.duplicated_explained, found.duplicated_unexplained) == (1, 1, 1)
    assert found.unexplained_ids == ["early to x"]


def test_the_end_of_a_source_explains_nothing(tmp_path):
    started = [f"# started {n * S} {n}" for n in (1, 11, 12)]
    found = prove(tmp_path, [*started, "a 1 x 1"], [f"a 1 x {10 * S}", f"a 1 x {30 * S}"])
    assert (found.kills, found.duplicated_unexplained) == (0, 1)


def test_processes_of_a_group_are_no_kills(tmp_path):
    path = tmp_path / "shared"
    first, second = Ledger(path, group="g"), Ledger(path, append=True, group="g")
    first.add("a", "1", ["x"])
    second.add("b", "1", ["x"])
    second.close()
    first.close()
    assert [row[0] for row in ledger_file.rows(path)] == ["entry", "entry"]


def test_mark_is_a_kill_now(tmp_path):
    got = Ledger(tmp_path / "got")
    got.add("a", "1", ["x"])
    ledger.mark(tmp_path / "kills", "the supervisor,\tand all")
    got.add("a", "1", ["x"])
    got.close()
    found = ledger.prove([], [tmp_path / "got"], kills=[tmp_path / "kills"])
    assert (found.kills, found.duplicated_explained, found.unpromised) == (1, 1, 1)


# -- the file --------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "ledger"
    book = Ledger(path)
    book.add("a\tb", "1", ["x\ny", "ö@é", "\udcff@x"])
    book.refuse("r", ["x", "y"])
    book.unknown("u", ["x"])
    book.unconfirmed("c", ["x"])
    assert path.read_text().count("\n") == 1, "before flush() only the start is there"
    book.flush()
    book.close()
    book.close()
    found = [row[:4] for row in ledger_file.rows(path)]
    assert found == [
        ("entry", "a b", "1", "x y"), ("entry", "a b", "1", "ö@é"), ("entry", "a b", "1", "\udcff@x"),
        ("refused", "r", "", "x"), ("refused", "r", "", "y"),
        ("unknown", "u", "", "x"), ("unconfirmed", "c", "", "x"),
    ]  # fmt: skip
    assert list(ledger.read(path)) == [("a b", "1", "x y"), ("a b", "1", "ö@é"), ("a b", "1", "\udcff@x")]
    assert ledger.prove([path], [path]).accepted == 3


def test_every_cut_of_a_file_is_read_and_said(tmp_path):
    """A kill at any octet: whole lines count, the rest is torn, and going on behind it works."""
    whole = tmp_path / "whole"
    book = Ledger(whole)
    for number in range(4):
        book.add(f"m{number}", "d" * 64, ["x@y"])
    book.close()
    octets = whole.read_bytes()
    for cut in range(len(octets)):
        path = tmp_path / "cut"
        path.write_bytes(octets[:cut])
        entries = sum(line[:1] == b"m" for line in octets[:cut].splitlines(True) if line[-1:] == b"\n")
        torn = bool(octets[:cut]) and octets[cut - 1 : cut] != b"\n"
        kinds = Counter(row[0] for row in ledger_file.rows(path))
        assert (kinds["entry"], kinds["torn"]) == (entries, torn)
        again = Ledger(path, append=True)
        again.add("more", "d", ["x@y"])
        again.close()
        kinds = Counter(row[0] for row in ledger_file.rows(path))
        assert (kinds["entry"], kinds["torn"]) == (entries + 1, torn)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("a 1", "not a ledger entry"),
        ("a 1 x 1 1", "not a ledger entry"),
        ("a 1 x soon", "not a ledger entry"),
        ("# sneezed 1", "not a remark"),
        ("# killed", "not a remark"),
        ("# killed soon w", "not a remark"),
        ("# refused 1 a", "cut short"),
    ],
)
@pytest.mark.parametrize("behind", [(), ("b 1 x 1",)])
def test_what_is_no_ledger_is_named(tmp_path, line, why, behind):
    path = write(tmp_path / "bad", "a 1 x 1", line, *behind)
    with pytest.raises(ValueError, match=rf"bad:2: .*{why}"):
        list(ledger_file.rows(path))


def test_more_than_memory_holds_goes_to_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "CACHE_KIB", 256)
    accepted, delivered = tmp_path / "a", tmp_path / "d"
    lines = [f"{number:08d}@x\t{'0' * 64}\tsink@x\t{number}\n" for number in range(50_000)]
    accepted.write_text("".join(lines))
    delivered.write_text("".join(reversed(lines[:-1])))
    seen: list[int] = []
    found = ledger.prove([accepted], [delivered], progress=seen.append)
    assert (found.accepted, found.delivered, found.lost_ids) == (50_000, 49_999, ["00049999@x to sink@x"])
    assert seen == [50_000]


# -- mailboxes -------------------------------------------------------------------------------------


def message(number: int, end: str = "\r\n") -> str:
    return end.join([f"Message-ID: <{number}@test>", "Subject: s", "", "From here", ".dot", ""])


def digest() -> str:
    return hashlib.sha256(message(0).partition("\r\n")[2].encode()).hexdigest()


@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_maildirs(tmp_path, end):
    for user in ("alice", "bob"):
        for folder in ("new", "cur", "tmp"):
            (tmp_path / user / folder).mkdir(parents=True)
    (tmp_path / "alice/new/1").write_bytes(
        f"Return-Path: <>{end}Delivered-To: alice@x{end}{message(1, end)}".encode()
    )
    (tmp_path / "bob/cur/1:2,S").write_bytes(message(1, end).encode())
    (tmp_path / "bob/tmp/2").write_bytes(message(2, end).encode())
    accepted = write(tmp_path / "accepted", *(f"{n}@test {digest()} {to}" for n, to in
        ((1, "alice@x"), (1, "bob@x"), (2, "bob@x"))))  # fmt: skip
    found = ledger.prove([accepted], [], arrivals=ledger_mailbox.maildir(tmp_path))
    assert (found.accepted, found.delivered, found.altered) == (3, 2, 0)
    assert found.lost_ids == ["2@test to bob@x"]
    with pytest.raises(ValueError, match="no Maildir"):
        list(ledger_mailbox.maildir(tmp_path / "alice" / "tmp"))


def test_mbox(tmp_path):
    box = tmp_path / "mbox"
    box.write_text(
        "".join(
            f"From source@x Sat Jan  1 00:00:00 2000\nX-Original-To: <a@x>\n{message(n, chr(10))}\n".replace(
                "\nFrom here", "\n>From here"
            )
            for n in (1, 2, 2)
        )
    )
    accepted = write(tmp_path / "accepted", f"1@test {digest()} a@x", f"2@test {digest()} a@x")
    found = ledger.prove([accepted], [], arrivals=ledger_mailbox.mbox(box))
    assert (found.lost, found.altered, found.duplicated) == (0, 0, 1)
    with pytest.raises(ValueError, match="not an mbox"):
        list(ledger_mailbox.mbox(accepted))


# -- the command -----------------------------------------------------------------------------------


def command(*words: object) -> tuple[int, str]:
    outcome = CliRunner().invoke(main, ["ledger", *map(str, words)])
    return outcome.exit_code, outcome.output


def test_several_files_a_side(tmp_path):
    a = write(tmp_path / "a", "1 d x 1")
    b = write(tmp_path / "b", "2 d x 1")
    c = write(tmp_path / "c", "1 d x 2")
    d = write(tmp_path / "d", "2 d x 2")
    code, output = command("--accepted", a, b, "--delivered", c, d, "--json")
    assert (code, json.loads(output)["accepted"], json.loads(output)["lost"]) == (0, 2, 0)
    code, output = command("--accepted", a, "--accepted", b, "--delivered", c)
    assert code == 1
    assert "lost: 2 to x" in output and "NOT clean" in output
    code, output = command(a, c)
    assert code == 0 and "clean: nothing lost" in output


@pytest.mark.parametrize("bad", ["altered", "twice"])
def test_the_exit_code_is_the_verdict(tmp_path, bad):
    a = write(tmp_path / "a", "1 d x 1")
    c = write(tmp_path / "c", *(["1 e x 2"] if bad == "altered" else ["1 d x 2", "1 d x 3"]))
    assert command(a, c)[0] == 1


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "say what was accepted"),
        (["a"], "two files"),
        (["a", "a", "a"], "two files"),
        (["a", "a", "--accepted", "a"], "does not|two files"),
        (["--accepted", "a"], "where deliveries are"),
        (["a", "missing"], "does not exist"),
    ],
)
def test_usage(tmp_path, monkeypatch, words, what):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a", "1 d x 1")
    code, output = command(*words)
    assert code == 2
    assert any(part in output for part in what.split("|"))


def test_a_bad_file_is_an_error_with_its_line(tmp_path):
    a = write(tmp_path / "a", "1 d x 1", "nonsense", "2 d x 1")
    code, output = command(a, a)
    assert code == 1 and "a:2: not a ledger entry" in output
