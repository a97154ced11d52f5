"""nexus.masking: no URL that is shown gives a password away."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.masking import MASK, mask_echo, mask_url, shown


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("wss://hub.example.com:8443/connect", "wss://hub.example.com:8443/connect"),
        ("wss://user:hush@hub.example.com/connect", f"wss://{MASK}@hub.example.com/connect"),
        ("wss://hush@[2001:db8::1]:8443", f"wss://{MASK}@[2001:db8::1]:8443"),
        ("https://a:hush@hush@b/@scope/x", f"https://{MASK}@b/@scope/x"),
        ("https://keys.example.com/set?key=hush&a@b", f"https://keys.example.com/set?{MASK}"),
        ("https://keys.example.com?key=//hush@hush", f"https://keys.example.com?{MASK}"),
        ("https://u:hush@h/p?hush\nhush#hush", f"https://{MASK}@h/p?{MASK}"),
        ("https://h/p#hush", f"https://h/p#{MASK}"),
        ("https://h/p?", "https://h/p?"),
        ("user:hush@hub.example.com", f"{MASK}@hub.example.com"),
        ("//user:hush@h", f"//{MASK}@h"),
        ("https://user:hush@", f"https://{MASK}@"),
        ("", ""),
    ],
)
def test_user_password_and_query_are_masked(url: str, expected: str) -> None:
    """And nothing else, so that one still sees which URL it is."""
    assert mask_url(url) == expected


@given(st.text(alphabet="ab:/@?#[]%. ", max_size=20))
def test_masking_twice_is_masking_once(url: str) -> None:
    """Whoever is not sure whether a URL was masked masks it."""
    assert mask_url(mask_url(url)) == mask_url(url)


def test_values_are_shown_as_they_are_except_urls() -> None:
    """Also within a tuple; what is no URL may have any sign in it."""
    value = ("me@example.com", "what?", 443, True, "wss://u:hush@h/mesh")
    assert shown(value) == ("me@example.com", "what?", 443, True, f"wss://{MASK}@h/mesh")
    assert shown(None) is None


@pytest.mark.parametrize(
    ("text", "url", "expected"),
    [
        ("no /p?key=hush today", "https://h/p?key=hush", f"no /p?{MASK} today"),
        ("no 'https://h/p?a=1&amp;b=2'", "https://h/p", f"no 'https://h/p?{MASK}'"),
        ("hush is no key", "https://h/p?key=hush&x=is", f"{MASK} is no key"),
        ("hush hush, a+b=", "https://h/p?hush+hush&b64=a%2Bb=", f"{MASK}, {MASK}"),
        ("bad hush of user", "https://user:hush@h/p#frag", f"bad {MASK} of {MASK}"),
        ("frag", "https://h/p#frag", MASK),
        ("abc, what? all is well", "https://h/p?k=abc", "abc, what? all is well"),
        ("anything", "https://[", "anything"),
    ],
)
def test_what_a_server_repeats_is_masked(text: str, url: str, expected: str) -> None:
    """As written in the URL and decoded; what is too short to be a secret is left."""
    assert mask_echo(text, url) == expected


@given(st.text(max_size=40), st.text(alphabet="abcd:/@?#[]%=&. ", max_size=30))
def test_nothing_that_a_server_says_breaks_masking(text: str, url: str) -> None:
    """Whatever the URL was."""
    assert mask_echo(text, url) == text or MASK in mask_echo(text, url)
