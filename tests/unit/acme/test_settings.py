"""What is asked of whom."""

from __future__ import annotations

from nexus.acme.explain import HTTP_01, TLS_ALPN_01
from nexus.acme.settings import DIRECTORIES, AcmeSettings
from nexus.config.certificate_rules import CHALLENGE_PORTS, DIRECTORY_NAMES


def test_challenges_take_turns() -> None:
    """A failure may be that of one port alone."""
    both = AcmeSettings("hub.example.com", "https://ca.example.com")
    assert [both.challenge_for(number) for number in range(3)] == [HTTP_01, TLS_ALPN_01, HTTP_01]
    one = AcmeSettings("hub.example.com", "https://ca.example.com", challenges=(TLS_ALPN_01,))
    assert [one.challenge_for(number) for number in range(2)] == [TLS_ALPN_01, TLS_ALPN_01]


def test_each_challenge_has_its_port() -> None:
    """Of this node."""
    settings = AcmeSettings("hub.example.com", "https://ca.example.com", http_port=8080, tls_port=8443)
    assert (settings.local_port(HTTP_01), settings.local_port(TLS_ALPN_01)) == (8080, 8443)


def test_the_rules_of_the_configuration_know_the_same_names() -> None:
    """They stand in a room of their own."""
    assert set(DIRECTORY_NAMES) == set(DIRECTORIES)
    assert set(CHALLENGE_PORTS) == {HTTP_01, TLS_ALPN_01}
