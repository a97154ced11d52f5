"""Words for an operator."""

from __future__ import annotations

import pytest

from nexus.acme.explain import DETAIL_MAX_CHARACTERS, HTTP_01, TLS_ALPN_01, CaProblem, explain, tidy

HOST = "hub.example.com"


@pytest.mark.parametrize(
    ("problem", "challenge", "local_port", "words"),
    [
        (CaProblem("dns", "NXDOMAIN"), HTTP_01, 80, ("finds no usable address", "create an A or AAAA record")),
        (CaProblem("connection", "no such host"), HTTP_01, 80, ("finds no usable address",)),
        (CaProblem("connection", "refused"), HTTP_01, 80, ("on port 80", "open port 80, and point")),
        (
            CaProblem("connection", "timeout"),
            HTTP_01,
            8080,
            ("on port 80", "open port 80 and let it lead to port 8080 of this node"),
        ),
        (CaProblem("tls", "handshake"), TLS_ALPN_01, 443, ("on port 443", "open port 443")),
        (CaProblem("unauthorized", "404"), HTTP_01, 80, ("something other than this node answered",)),
        (CaProblem("unauthorized"), "", 0, ("does not accept the account",)),
        (CaProblem("caa", "forbids"), HTTP_01, 80, ("CAA record of hub.example.com",)),
        (CaProblem("rateLimited", "too many"), "", 0, ("rate limit for hub.example.com", "wait")),
        (CaProblem("externalAccountRequired"), "", 0, ("acmeEABKeyID and acmeEABKeyFile",)),
        (CaProblem("neverHeardOf", "odd"), "", 0, ("refuses a certificate for hub.example.com", "it says: odd")),
        (CaProblem(""), HTTP_01, 80, ("refuses a certificate for hub.example.com",)),
    ],
)
def test_each_problem_names_the_thing_and_the_mend(
    problem: CaProblem, challenge: str, local_port: int, words: tuple[str, ...]
) -> None:
    """In one line, and with what the CA said."""
    text = explain(problem, HOST, challenge, local_port)
    assert all(word in text for word in words), text
    assert "\n" not in text
    assert "{" not in text
    assert ";" in text
    assert (problem.detail in text) is True


def test_what_a_stranger_put_into_the_cas_words_stays_one_bounded_line() -> None:
    """The CA quotes pages that it found."""
    text = tidy("a\r\nb\x1b[31m" + "c" * 1000)
    assert text.startswith("a b [31mccc")
    assert len(text) == DETAIL_MAX_CHARACTERS
    assert text.isprintable()
