"""What is remembered of peers whose extensions broke: for a while, and of so many."""

from gateway.delivery import avoid
from gateway.delivery.avoid import PIPELINING, STARTTLS, Avoid


def test_an_extension_is_avoided_for_a_while_with_that_peer():
    now = 0.0
    memory = Avoid(lambda: now)
    memory.add(STARTTLS, ("192.0.2.1", 25), 300.0)
    assert memory.has(STARTTLS, ("192.0.2.1", 25))
    assert not memory.has(PIPELINING, ("192.0.2.1", 25))
    assert not memory.has(STARTTLS, ("192.0.2.2", 25))
    now = 300.0
    assert not memory.has(STARTTLS, ("192.0.2.1", 25))
    assert len(memory) == 0
    memory.add(STARTTLS, "/lmtp", 300.0)
    memory.add(STARTTLS, "/lmtp", 0.0)
    assert not memory.has(STARTTLS, "/lmtp")


def test_the_oldest_are_forgotten(monkeypatch):
    monkeypatch.setattr(avoid, "PEERS_MAX", 3)
    memory = Avoid()
    for peer in (1, 2, 3, 1, 4):
        memory.add(PIPELINING, peer, 60.0)
    assert [memory.has(PIPELINING, peer) for peer in (1, 2, 3, 4)] == [True, False, True, True]
