"""Next-hop URLs and the choice of a route."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config_model import DeliveryConfig, RouteConfig
from gateway.queue import routing
from gateway.queue.routing import Route, Router, parse_next_hop


@pytest.mark.parametrize(
    ("url", "canonical", "scheme", "host", "port", "path"),
    [
        ("smtp://mx.example.org", "smtp://mx.example.org:25", "smtp", "mx.example.org", 25, ""),
        ("SMTP://MX.example:2525", "smtp://mx.example:2525", "smtp", "mx.example", 2525, ""),
        ("smtp://[2001:db8::1]", "smtp://[2001:db8::1]:25", "smtp", "2001:db8::1", 25, ""),
        ("smtps://mx/", "smtps://mx:465", "smtps", "mx", 465, ""),
        ("lmtp://10.0.0.5", "lmtp://10.0.0.5:24", "lmtp", "10.0.0.5", 24, ""),
        ("lmtp+unix:/run/lmtp", "lmtp+unix:/run/lmtp", "lmtp+unix", "", 0, "/run/lmtp"),
        ("lmtp+unix:///run/lmtp", "lmtp+unix:/run/lmtp", "lmtp+unix", "", 0, "/run/lmtp"),
        ("maildir:/var/mail/", "maildir:/var/mail", "maildir", "", 0, "/var/mail"),
        ("https://h/in?k=1", "https://h/in?k=1", "https", "h", 443, "/in"),
        ("http://h:8080", "http://h:8080", "http", "h", 8080, "/"),
        ("store:", "store:", "store", "", 0, ""),
        ("discard:", "discard:", "discard", "", 0, ""),
        ("mx:", "mx:", "mx", "", 0, ""),
    ],
)  # fmt: skip
def test_next_hop_urls(url, canonical, scheme, host, port, path):
    hop = parse_next_hop(url)
    assert (hop.url, hop.scheme, hop.host, hop.port, hop.path) == (
        canonical, scheme, host, port, path,
    )  # fmt: skip
    assert parse_next_hop(hop.url) == hop
    assert str(hop) == canonical


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("", "allowed are smtp://"),
        ("mx.example.org", "allowed are smtp://"),
        ("ftp://x", "unknown scheme 'ftp'"),
        ("smtp:x", "expected smtp://host"),
        ("smtp://", "expected smtp://host"),
        ("smtp://x:99999", "expected smtp://host"),
        ("smtp://x:abc", "expected smtp://host"),
        ("smtp://[::1", "expected smtp://host"),
        ("smtp://x/path", "nothing may follow the port"),
        ("smtp://x?y=1", "nothing may follow the port"),
        ("smtp://me:secret@x", "not supported"),
        ("http://h/#x", "no meaning"),
        ("lmtp+unix:run/lmtp", "absolute"),
        ("maildir:/a/../b", "'..'"),
        ("maildir:/a%00b", "NUL"),
        ("store:/x", "nothing behind the colon"),
    ],
)
def test_wrong_next_hops_say_what_is_allowed(url, hint):
    with pytest.raises(ValueError, match=r".") as caught:
        parse_next_hop(url)
    assert hint in str(caught.value)


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=40))
def test_any_text_is_a_next_hop_or_a_value_error(text):
    for url in (text, "smtp://" + text, "http://" + text, "maildir:/" + text):
        try:
            hop = parse_next_hop(url)
        except ValueError:
            continue
        assert hop.scheme


def router(*routes: RouteConfig) -> Router:
    return Router(routes, DeliveryConfig(), "mx.example.org")


def route(*domains: str, hop: str = "smtp://relay", **keys) -> RouteConfig:
    return RouteConfig(domains=domains, next_hop=(hop,), **keys)


def index_for(table: Router, forward_path: str) -> int | None:
    found = table.route_for(forward_path)
    return None if found is None else found.index


def test_exact_subdomain_and_star():
    table = router(
        route("special.example.org"),
        route("example.org", ".example.org"),
        route(".org"),
        route("*"),
    )
    for _ in range(2):  # the second time from the cache
        assert index_for(table, "a@example.org") == 1
        assert index_for(table, "a@EXAMPLE.ORG") == 1
        assert index_for(table, "a@special.example.org") == 0
        assert index_for(table, "a@x.y.example.org") == 1
        assert index_for(table, "a@other.org") == 2
        assert index_for(table, "a@badexample.org") == 2
        assert index_for(table, "a@example.com") == 3
        assert index_for(table, "a@[192.0.2.1]") == 3


def test_first_match_wins_over_the_more_specific_one():
    table = router(route("*"), route("example.org"))
    assert index_for(table, "a@example.org") == 0


def test_no_route():
    table = router(route("example.org"))
    assert table.route_for("a@example.com") is None
    assert table.route_for("a@sub.example.org") is None
    assert not table.names_domain("example.com")
    assert table.names_domain("Example.org")


def test_star_is_not_a_named_domain():
    table = router(route("example.org", ".example.org"), route("*"))
    assert table.names_domain("a.example.org")
    assert not table.names_domain("example.com")


def test_recipients_narrow_a_route():
    table = router(
        route("example.org", hop="smtp://a", recipients=("Alice@Example.org",)),
        route("example.org", hop="smtp://b", recipients=("bob@example.org",)),
    )
    assert index_for(table, "alice@example.org") == 0
    assert index_for(table, "BOB@example.org") == 1
    assert table.route_for("carol@example.org") is None
    assert table.names_domain("example.org")


def test_star_takes_no_mailbox_that_its_own_domain_does_not_list():
    table = router(
        route("*", hop="smtp://c", recipients=("x@example.org",)),
        route("example.org", hop="smtp://a", recipients=("alice@example.org",)),
        route("*"),
    )
    assert index_for(table, "x@example.org") == 0
    assert index_for(table, "alice@example.org") == 1
    assert table.route_for("carol@example.org") is None
    assert index_for(table, "carol@sub.example.org") == 2


def test_postmaster_always_has_a_place():
    # RFC 5321 §4.5.1, §4.1.1.3
    table = router(
        route("example.org", recipients=("bob@example.org",)), route("mx.example.org", hop="store:")
    )
    assert index_for(table, "Postmaster@example.org") == 0
    assert index_for(table, "Postmaster") == 1


def test_internationalised_domains_meet_their_a_labels():
    table = router(route("bücher.example"), route("xn--strae-oqa.example"))
    assert index_for(table, "a@xn--bcher-kva.example") == 0
    assert index_for(table, "a@BÜCHER.example") == 0
    assert index_for(table, "a@straße.example") == 1
    assert table.route_for("a@strasse.example") is None


def test_domain_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(routing, "DOMAIN_CACHE_ENTRIES", 100)
    table = router(route("*"))
    for number in range(1000):
        assert table.route_for(f"a@d{number}.example") is not None
        assert len(table._cache) <= 100


def test_mx_is_known_but_not_yet_delivered_to():
    with pytest.raises(ValueError, match="mx: delivery is not in this version; name a next hop"):
        Route(route("*", hop="mx:"), DeliveryConfig())


@pytest.mark.parametrize("pattern", ["", ".", "..a", "*.example.org", "a@b", "a b"])
def test_wrong_domains_say_what_is_allowed(pattern):
    with pytest.raises(ValueError, match="allowed are"):
        Route(route(pattern), DeliveryConfig())


def test_recipients_are_mailboxes():
    with pytest.raises(ValueError, match="recipients: 'bob'"):
        Route(route("example.org", recipients=("bob",)), DeliveryConfig())


def test_what_a_route_leaves_open_is_the_delivery_sections():
    delivery = DeliveryConfig(max_connections=3, initial_connections=5, recipients=7)
    plain = Route(route("a"), delivery)
    own = Route(route("a", max_connections=9, recipients_per_transaction=1), delivery)
    assert (plain.max_connections, plain.initial_connections) == (3, 3)
    assert (own.max_connections, own.initial_connections) == (9, 5)
    assert (plain.recipients_per_transaction, own.recipients_per_transaction) == (7, 1)


def test_rerouted_mail_keeps_the_options_of_its_route():
    old = Route(route("a", tls="required", rate_per_s=2.0), DeliveryConfig())
    new = old.with_next_hop(parse_next_hop("lmtp://elsewhere"))
    assert new.name == "lmtp://elsewhere:24"
    assert (new.config.tls, new.config.rate_per_s) == ("required", 2.0)


@settings(deadline=None, max_examples=100)
@given(
    patterns=st.lists(
        st.lists(st.sampled_from(["a", ".a", "b.a", ".b.a", "c.b.a", "*"]), min_size=1, max_size=3),
        max_size=5,
    ),
    domain=st.sampled_from(["a", "b.a", "c.b.a", "d.c.b.a", "x", "ba"]),
)
def test_look_up_equals_a_plain_walk_over_all_routes(patterns, domain):
    def matches(pattern: str) -> bool:
        return (
            pattern == "*"
            or pattern == domain
            or (pattern[0] == "." and domain.endswith(pattern))
        )

    expected = next((i for i, keys in enumerate(patterns) if any(map(matches, keys))), None)
    table = router(*(route(*keys) for keys in patterns))
    assert index_for(table, f"x@{domain}") == expected
