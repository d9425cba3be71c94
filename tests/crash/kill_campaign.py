"""Rounds of SIGKILL: one gateway after the other on the same spool, mail before it, a sink behind it, and the ledgers.

    Owns      KillCampaign (the rounds), KillReport (what came of them)
    Flow      round: choose point, moment and victim → load → death → start again; at the end all mail has to be there
    Limits    a round that does not reach its point within its load is counted as such; at the end come up to MORE
              rounds for every point that nobody died at
    Errors    AssertionError from judge() when the ledgers say that something is wrong

What is promised: all that the source got a 250 for is at the sink, unaltered.  It may be there twice when the next hop
had taken it and our record of that was not on disk when the process died (RFC 1047).  That is not guessed from times:
faults.c writes down every RESULT and SETTLED record that is on disk, and no delivery may come after its own.
"""

from __future__ import annotations

import errno
import os
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from faults import NAMES, POINTS, SCOPES, WHENS, Control, environment, make_control, read_settled
from faults import build as build_faults
from gateway_rig import Burst, Rig, gone, kill, poll
from smtp_blaster.content import identify
from smtp_blaster.sink import Fault, Receipt

from gateway.spool.record import PENDING, SETTLED, decode_number, unpack_numbers, unpack_results

# Small files, so that segments begin, fill up, are compacted and go all the time.
SPOOL = {
    "segment_octets": 1024 * 1024,
    "chunk_octets": 64 * 1024,
    "min_free_octets": 1024 * 1024,
    "compact_below": 0.6,
    "spare_segments": 1,
    "probe_interval_s": 0.1,
}
# The next hop sometimes says no: some of the mail is deferred when the blow falls.
DEFERRING = (
    Fault("rcpt", code=451, probability=0.03),
    Fault("content", code=451, probability=0.01),
)
LOAD = (
    {"connections": 6, "size_octets": 4000, "dots": True, "rate": 150.0},
    {"connections": 2, "size_octets": 20_000, "pipelining": True, "chunking": True, "rate": 60.0},
    {"connections": 2, "size_octets": 3000, "recipients": 5, "pipelining": True, "rate": 40.0},
    {"connections": 2, "size_octets": 600_000, "rate": 6.0},
)
BURST_S = 1.0
START_S = 90.0  # on a machine that does much else
MORE = 4

RANDOM = "at random"
AT_START = (
    "partition lock",
    "header reuse",
    *(name for name in NAMES if name.startswith("recovery: ")),
)
AT_ADOPTION = tuple(name for name in NAMES if name.startswith("adoption: "))
NEVER_ALONE = ("any",)
# Where half of it can be done.
TORN = (
    "segment allocate", "segment probe", "segment fill", "header copy", "header", "header reuse",
    "group: message", "group: chunk", "group: end of chunks", "group: result", "group: update",
    "group: settled", "group: cut", "compaction copy", "adoption: copy", "adoption: settle",
)  # fmt: skip

_RECEIVED_ID = re.compile(rb"\bid ([0-9A-HJKMNP-TV-Z]{12})\b")


class Order(msgspec.Struct, frozen=True):
    """What a round is to do."""

    point: str
    when: str
    scope: str


class PointCount(msgspec.Struct):
    """One named point."""

    point: str
    what: str
    reached: int
    before: int  # deaths there
    after: int
    midway: int

    @property
    def kills(self) -> int:
        return self.before + self.after + self.midway


class KillReport(msgspec.Struct, kw_only=True):
    """What came of a campaign.  Messages are what a source got a 250 for; the rest are pairs with a recipient."""

    rounds: int
    seed: int
    seconds: float
    kills: dict[str, int]  # by victim
    points: list[PointCount]
    at_random: int
    not_reached: int  # rounds that ended before their point came
    messages: int
    promised: int
    delivered: int
    lost: int
    altered: int
    duplicated: int
    in_window: int  # of these: delivered before our record of the first delivery was on disk
    widest_window_ms: float  # between the next hop's taking it and the kill
    unpromised: int  # taken by us, the 250 lost with the connection

    @property
    def missed(self) -> list[str]:
        """Points where nobody died."""
        return [count.point for count in self.points if not count.kills]


class KillCampaign:
    """with KillCampaign(where, rounds=…, seed=…) as campaign: campaign.run(); report = campaign.judge()."""

    def __init__(self, where: Path, *, rounds: int, seed: int) -> None:
        self.rounds = rounds
        self.seed = seed
        self._where = where
        self._chance = random.Random(seed)
        self._control: Control = make_control(where / "control")
        self._settled = where / "settled"
        self._environment = {
            name: value
            for name, value in environment(
                build_faults(where), where / "control", self._settled
            ).items()
            if name in ("LD_PRELOAD", "FAULT_CONTROL", "FAULT_SETTLED")
        }
        self._arrivals: dict[tuple[str, str], list[int]] = defaultdict(list)  # ns, monotonic
        self._ids: dict[str, int] = {}  # Message-ID → number of its queue id
        self._kills_ns: list[int] = []
        self._random_kills: dict[str, int] = defaultdict(int)
        self._not_reached = 0
        self._accepted = 0
        self._burst = 0
        self._started = time.monotonic()

    def __enter__(self) -> KillCampaign:
        os.environ.update(self._environment)
        self._rig = Rig(self._where, plan={"faults": DEFERRING}, spool=SPOOL)
        self._rig.sink.sink.on_message = self._arrived
        self._rig.__enter__()
        return self

    def __exit__(self, *why: object) -> None:
        for name in self._environment:
            os.environ.pop(name, None)
        self._rig.__exit__(*why)

    def _arrived(self, receipt: Receipt) -> None:
        now = time.monotonic_ns()
        message_id, _ = identify(receipt.content)
        found = _RECEIVED_ID.search(receipt.content[:2000])
        if found is not None:
            self._ids[message_id] = decode_number(found.group(1).decode())
        for path in receipt.rcpts:
            self._arrivals[message_id, path].append(now)

    # -- rounds ------------------------------------------------------------------------------------

    def run(self, progress: Callable[[int, str], None] = lambda done, what: None) -> None:
        """All rounds, then up to MORE for every point that nobody died at."""
        orders = self._orders()
        for number in range(self.rounds):
            self._round(next(orders), number, progress)
        for _ in range(MORE):
            for point in self._missed():
                whens = ("before", "after", *(["midway"] if point in TORN else []))
                order = Order(point, self._chance.choice(whens), "everything")
                self._round(order, self.rounds, progress)
                self.rounds += 1
        progress(self.rounds, "the last mail")

    def obey(self, orders: Sequence[Order]) -> None:
        """These rounds and no other."""
        for number, order in enumerate(orders):
            self._round(order, number, lambda done, what: None)

    def _round(self, order: Order, number: int, progress: Callable[[int, str], None]) -> None:
        progress(number, f"{order.scope} {order.when} {order.point}")
        if order.point in AT_ADOPTION:
            self._adoption_round(order)
        elif order.point in AT_START:
            self._start_round(order)
        else:
            self._load_round(order)
        if self._rig.gateway.process.poll() is not None or len(self._rig.workers()) < 2:
            self._restart(write_method=self._chance.choice(("auto", "auto", "dsync")))

    def _missed(self) -> list[str]:
        kills = self._control.kills_of
        named = [name for name in NAMES if name not in NEVER_ALONE]
        return [name for name in named if not any(kills(name, when) for when in WHENS)]

    def _orders(self) -> Iterator[Order]:
        """Every point at every moment, again and again, and blind blows between them."""
        moments = [
            (point, when)
            for point in NAMES
            if point not in NEVER_ALONE
            for when in WHENS
            if when != "midway" or point in TORN
        ]
        while True:
            self._chance.shuffle(moments)
            for number, (point, when) in enumerate(moments):
                yield Order(point, when, self._chance.choice(("worker", "worker", *SCOPES)))
                if number % 4 == 3:
                    yield Order(RANDOM, "", self._chance.choice(SCOPES))

    def _load(self) -> Burst:
        self._burst += 1
        plans = ({**plan, "duration_s": BURST_S, "seed": self._burst} for plan in LOAD)
        return self._rig.burst(*plans)

    def _load_round(self, order: Order) -> None:
        control, rig = self._control, self._rig
        if order.point == "group sync":
            self._restart(write_method="fdatasync")
        burst = self._load()
        time.sleep(self._chance.uniform(0.05, 0.4))
        if order.point == RANDOM:
            self._strike(order.scope)
        else:
            if order.point == "group: cut":
                control.write_count, control.write_errno = 1, errno.EIO
            deaths = control.deaths
            common = order.point in ("group: message", "completion signalled", "reply")
            control.arm(
                order.point,
                order.when,
                order.scope,
                self._chance.randrange(1, 60) if common else self._chance.randrange(1, 3),
            )
            poll(lambda: control.deaths > deaths, 2 * BURST_S)
            if control.deaths == deaths:
                self._not_reached += 1
            control.clear()
        if order.scope == "supervisor":
            poll(lambda: rig.gateway.process.poll() is not None, 1)
        if rig.gateway.process.poll() is not None:
            self._restart()
        burst.join()
        self._accepted += burst.accepted

    def _kill_all(self) -> None:
        if self._rig.gateway.process.poll() is None:
            self._strike("everything")
        self._rig.gateway.kill()

    def _strike(self, scope: str) -> None:
        rig = self._rig
        self._kills_ns.append(time.monotonic_ns())
        self._random_kills[scope] += 1
        if scope == "worker":
            workers = rig.workers()
            if workers:
                kill(self._chance.choice(workers))
        elif scope == "supervisor":
            left = rig.kill_supervisor()
            assert poll(lambda: gone(left), 60), "workers outlived their supervisor"
        else:
            rig.gateway.kill()

    def _start_round(self, order: Order) -> None:
        """Die while starting after a death that left something to do."""
        control = self._control
        burst = self._load()
        time.sleep(self._chance.uniform(0.2, 0.5))
        deaths = control.deaths
        if order.point == "recovery: set aside":
            control.arm("group: message", "midway", "everything", self._chance.randrange(1, 20))
        elif order.point == "recovery: remove":
            point = self._chance.choice(("segment create", "segment allocate", "segment fill"))
            control.arm(point, "after", "everything")
        else:
            control.arm("any", self._chance.choice(WHENS), "everything", 5)
        poll(lambda: control.deaths > deaths, 2 * BURST_S)
        self._kill_all()
        control.clear()
        burst.join()
        self._accepted += burst.accepted
        self._die_starting(order)

    def _adoption_round(self, order: Order) -> None:
        """Two workers become one; whoever moves the orphan's mail dies."""
        rig = self._rig
        self._kill_all()
        rig.configure(hold=True)
        self._start()
        burst = self._load()
        burst.join()
        self._accepted += burst.accepted
        self._kill_all()
        rig.configure(workers=1)
        self._die_starting(order)
        self._restart()

    def _die_starting(self, order: Order) -> None:
        control, rig = self._control, self._rig
        deaths = control.deaths
        scope = order.scope if order.scope != "supervisor" else "everything"
        control.arm(order.point, order.when, scope, self._chance.randrange(1, 3))
        self._forget_log()
        rig.gateway.launch()

        def over() -> bool:
            dead = rig.gateway.process.poll() is not None
            return control.deaths > deaths or dead or rig.gateway.is_ready()

        assert poll(over, START_S), "it neither died nor served"
        if control.deaths == deaths:
            self._not_reached += 1
        control.clear()
        poll(lambda: scope == "worker" or rig.gateway.process.poll() is not None, 2)
        if rig.gateway.process.poll() is not None:
            self._start()
        else:
            self._expect_ready()

    def _restart(self, **settings: str) -> None:
        self._kill_all()
        self._rig.configure(**settings)  # type: ignore[arg-type]
        self._start()

    def _start(self) -> None:
        self._forget_log()
        self._rig.gateway.launch()
        self._expect_ready()

    def _expect_ready(self) -> None:
        gateway = self._rig.gateway
        assert poll(gateway.is_ready, START_S), f"it does not serve: {gateway.log()[-20:]}"

    def _forget_log(self) -> None:
        """Nothing that was acknowledged may have been damaged; then the log may go."""
        gateway = self._rig.gateway
        for entry in gateway.log("spool_damaged"):
            assert "acknowledged=False" in entry["detail"], entry
        gateway.log_file.unlink(missing_ok=True)

    # -- the verdict -------------------------------------------------------------------------------

    def judge(self) -> KillReport:
        """Let everything come out, and compare.  AssertionError when a promise was broken."""
        rig, control = self._rig, self._control
        control.clear()
        self._restart()
        difference = rig.settle(120)
        assert poll(lambda: rig.queued() == 0, 60), rig.gateway.command("queue", "list")
        difference = rig.difference()
        rig.gateway.stop()
        assert rig.gateway.process.returncode == 0
        self._forget_log()
        in_window, outside = self._duplicates()
        report = self._report(difference, in_window)
        assert (difference.lost, difference.altered) == (0, 0), (report, difference.lost_ids)
        assert not outside, f"delivered although our record of it was on disk: {outside[:5]}"
        return report

    def _duplicates(self) -> tuple[int, list[str]]:
        """How many came again before our record of the first was on disk, and those that should not have."""
        recorded: dict[tuple[int, int], int] = {}  # number and recipient (-1: all) → when
        for record in read_settled(self._settled):
            if record.kind == SETTLED:
                for number in unpack_numbers(record.payload):
                    recorded.setdefault((number, -1), record.at_ns)
            else:
                for index, state, _ in unpack_results(record.payload):
                    if state != PENDING:
                        recorded.setdefault((record.number, index), record.at_ns)
        in_window, outside = 0, []
        for (message_id, path), times in self._arrivals.items():
            for again in sorted(times)[1:]:
                number = self._ids[message_id]
                at = recorded.get((number, _index(path)), recorded.get((number, -1)))
                if at is not None and at < again:
                    outside.append(f"{message_id} to {path}")
                else:
                    in_window += 1
        return in_window, outside

    def _widest_window_ms(self) -> float:
        """Of all duplicates: between the arrival of the first and the nearest kill."""
        kills = sorted([*self._kills_ns, *self._deaths()])
        return max(
            (
                min(abs(at - first) for at in kills) / 1e6
                for times in self._arrivals.values()
                for first in sorted(times)[:-1]
            ),
            default=0.0,
        )

    def _deaths(self) -> list[int]:
        return [self._control.death[i].at_ns for i in range(min(self._control.deaths, 4096))]

    def _report(self, difference: object, in_window: int) -> KillReport:
        control = self._control
        kills = dict(self._random_kills)
        for i in range(min(control.deaths, 4096)):
            scope = SCOPES[control.death[i].scope]
            kills[scope] = kills.get(scope, 0) + 1
        points = [
            PointCount(
                name, what, control.hits_of(name), *(control.kills_of(name, w) for w in WHENS)
            )
            for name, what in POINTS.items()
            if name not in NEVER_ALONE
        ]
        return KillReport(
            rounds=self.rounds,
            seed=self.seed,
            seconds=time.monotonic() - self._started,
            kills=kills,
            points=points,
            at_random=sum(self._random_kills.values()),
            not_reached=self._not_reached,
            messages=self._accepted,
            promised=difference.accepted,
            delivered=difference.delivered,
            lost=difference.lost,
            altered=difference.altered,
            duplicated=difference.duplicated,
            in_window=in_window,
            widest_window_ms=self._widest_window_ms(),
            unpromised=difference.unpromised,
        )


def _index(path: str) -> int:
    """The recipient's place in the envelope: the source writes sink-1@…, sink-2@… in order."""
    found = re.match(r"[a-z]+-(\d+)@", path)
    return int(found.group(1)) - 1 if found else 0
