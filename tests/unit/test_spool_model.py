"""The spool against a dictionary: accept, settle, update, hold, restart in any order; segments as small as they go."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)
from msgspec import structs
from spool_rig import SMALL, Rig

from gateway.spool.record import DELIVERED, EXPIRED, PENDING
from gateway.spool.spool import Stored

TINY = structs.replace(SMALL, segment_octets=64 * 1024, memory_octets=16 * 1024)


class Model:
    """What the spool must know about a message."""

    def __init__(self, stored: Stored, content: bytes) -> None:
        self.content = content
        self.states = [PENDING] * len(stored.states)
        self.details: dict[int, bytes] = {}
        self.attempts = [0] * len(stored.states)
        self.held = False
        self.route = ""


class SpoolMachine(RuleBasedStateMachine):
    messages = Bundle("messages")

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="spool-model-"))
        self.rig = Rig(self.root, TINY)
        self.rig.open()
        self.stored: dict[str, Stored] = {}
        self.model: dict[str, Model] = {}

    def teardown(self) -> None:
        self.rig.end()
        shutil.rmtree(self.root)

    @rule(
        target=messages,
        size=st.one_of(st.integers(0, 6000), st.integers(8000, 30_000)),
        recipients=st.integers(1, 3),
        memory=st.booleans(),
    )
    def accept(self, size: int, recipients: int, memory: bool) -> str:
        content = bytes([len(self.model) % 256]) * size
        durability = "memory" if memory else "fsync"
        stored = self.rig.store(content, prefix=b"P", recipients=recipients, durability=durability)
        self.stored[stored.queue_id] = stored
        self.model[stored.queue_id] = Model(stored, b"P" + content)
        return stored.queue_id

    @rule(target=messages, count=st.integers(2, 30))
    def accept_and_forget_many(self, count: int):
        """Traffic that passes through: it fills segments that others are held in."""
        for _ in range(count):
            self.rig.spool.settle(self.rig.store(bytes(2500)), 0, DELIVERED)
        return multiple()

    @rule(
        queue_id=messages,
        index=st.integers(0, 2),
        state=st.sampled_from([PENDING, DELIVERED, EXPIRED]),
    )
    def settle(self, queue_id: str, index: int, state: int) -> None:
        model = self.model.get(queue_id)
        if model is None or index >= len(model.states) or model.states[index] != PENDING:
            return
        detail = b"why %d" % index if state == PENDING else b""
        self.rig.spool.settle(self.stored[queue_id], index, state, detail)
        model.states[index] = state
        if detail:
            model.details[index] = detail
        if PENDING not in model.states:
            del self.model[queue_id], self.stored[queue_id]

    @rule(queue_id=messages, held=st.booleans(), route=st.sampled_from(["", "smtp://elsewhere"]))
    def update(self, queue_id: str, held: bool, route: str) -> None:
        model = self.model.get(queue_id)
        if model is None:
            return
        stored = self.stored[queue_id]
        stored.held, stored.route = held, route
        stored.attempts[0] += 1
        self.rig.spool.update(stored)
        model.held, model.route = held, route
        model.attempts[0] += 1

    @rule(queue_id=consumes(messages))
    def settle_all(self, queue_id: str) -> None:
        if queue_id in self.model:
            for index in range(len(self.model[queue_id].states)):
                self.rig.spool.settle(self.stored[queue_id], index, DELIVERED)
            del self.model[queue_id], self.stored[queue_id]

    @rule()
    def abort_one(self) -> None:
        incoming = self.rig.spool.begin()
        incoming.append(bytes(10_000))
        incoming.abort()

    @rule()
    def wait(self) -> None:
        self.rig.settle_down()

    @rule()
    def restart(self) -> None:
        recovery = self.rig.reopen()
        assert not recovery.damaged
        self.stored = {stored.queue_id: stored for stored in recovery.messages}
        assert sorted(self.stored) == sorted(self.model)
        for queue_id, model in self.model.items():
            stored = self.stored[queue_id]
            assert list(stored.states) == model.states
            assert stored.unsettled == model.states.count(PENDING)
            assert stored.details == model.details
            assert list(stored.attempts) == model.attempts
            assert (stored.held, stored.route) == (model.held, model.route)
            assert self.rig.read(stored) == model.content

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        queue_id = data.draw(st.sampled_from(sorted(self.model)))
        assert self.rig.read(self.stored[queue_id]) == self.model[queue_id].content

    @invariant()
    def segments_agree(self) -> None:
        for segment in self.rig.spool.log.segments.values():
            octets = sum(
                32 + length for m in segment.live for at, _, length in m.records() if at is segment
            )
            assert octets == segment.live_octets
            assert all(m.counted for m in segment.live)


TestSpool = SpoolMachine.TestCase
TestSpool.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
