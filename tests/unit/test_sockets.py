"""nexus.sockets: listening where one was told to, errors that name a mend, and an accept that outlives trouble."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket

import pytest

from nexus import sockets
from nexus.errors import ConfigError
from nexus.sockets import (
    BACKLOG,
    LINK_UNSENT_BYTES,
    accept,
    format_address,
    keep_unsent_short,
    listen,
    listen_too,
    listen_udp,
    source_key,
    source_keys,
)

KEY = "backendListenAddress"
needs_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")


def connect(sock: socket.socket, host: str = "127.0.0.1") -> socket.socket:
    """Connect to a listening socket."""
    return socket.create_connection((host, sock.getsockname()[1]), timeout=10)


# -- Listening ------------------------------------------------------------------------------------------------------


def test_accepted_sockets_have_no_delay_and_keep_alive() -> None:
    """They inherit it from the listening one, in the original's numbers (spec node-and-mesh 4.1)."""
    with listen("127.0.0.1", 0, KEY) as sock, connect(sock):
        sock.setblocking(True)
        accepted, _ = sock.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 15
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 9


def test_a_platform_without_keep_alive_numbers_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep-alive is on all the same."""
    monkeypatch.delattr(socket, "TCP_KEEPIDLE")
    with listen("127.0.0.1", 0, KEY) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="this system has no such option")
def test_a_link_keeps_little_in_the_kernel_that_was_not_sent() -> None:
    """Whatever the kernel would make of its buffer; a Unix socket has no such option, and needs none."""
    with socket.create_server(("127.0.0.1", 0)) as listener, connect(listener) as sock:
        keep_unsent_short(sock)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == LINK_UNSENT_BYTES
    left, right = socket.socketpair()
    with left, right:
        keep_unsent_short(left)


def test_the_backlog_takes_a_burst() -> None:
    """Design 4 asks for at least 1024."""
    assert BACKLOG >= 1024


@needs_ipv6
def test_no_host_means_both_families_on_one_socket() -> None:
    """As the original listens."""
    with listen("", 0, KEY) as sock, connect(sock, "127.0.0.1"), connect(sock, "::1"):
        assert sock.family == socket.AF_INET6


@needs_ipv6
def test_an_ipv6_address_is_that_address_only() -> None:
    """Not its IPv4 sibling."""
    with listen("::1", 0, KEY) as sock:
        connect(sock, "::1").close()
        with pytest.raises(ConnectionError):
            connect(sock, "127.0.0.1")


def test_without_ipv6_no_host_means_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without IPv6 is served, too."""
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with listen("", 0, KEY) as sock:
        assert sock.getsockname()[0] == "0.0.0.0"


def test_a_name_is_resolved() -> None:
    """``localhost`` is an address of this machine."""
    with listen("localhost", 0, KEY) as sock:
        assert sock.getsockname()[0] in {"127.0.0.1", "::1"}


def test_a_port_in_use_is_an_error_that_names_key_and_mend() -> None:
    """An operator knows what to change and how to find who is there."""
    with listen("127.0.0.1", 0, KEY) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            listen("127.0.0.1", port, KEY)
    (problem,) = caught.value.problems
    assert problem.key == KEY
    assert f"127.0.0.1:{port}" in problem.what
    assert "in use" in problem.what
    assert "ss -tulpn" in problem.mend


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6), ""])
def test_a_shared_port_is_listened_on_again_and_by_nobody_else(host: str) -> None:
    """The kernel spreads connections over both sockets; a second program is refused, even one that shares its own."""
    with listen(host, 0, KEY, shared=True) as one, listen_too(one) as other:
        assert other.getsockname()[:2] == one.getsockname()[:2]
        got = {one: 0, other: 0}
        for _ in range(100):
            with connect(one, host or "127.0.0.1"):
                for sock in got:
                    with contextlib.suppress(BlockingIOError):
                        sock.accept()[0].close()
                        got[sock] += 1
        assert sum(got.values()) == 100
        assert all(got.values())
        with pytest.raises(ConfigError, match="in use"):
            listen(host, one.getsockname()[1], KEY, shared=True)
    with listen("127.0.0.1", 0, KEY) as alone, pytest.raises(OSError, match="in use"):
        listen_too(alone)


@pytest.mark.parametrize(
    ("host", "shown", "mend"),
    [
        ("192.0.2.1", "192.0.2.1:0", "not one of this machine's"),
        ("2001:db8::1", "[2001:db8::1]:0", ""),
        ("a..b", "a..b:0", "check the address"),
    ],
)
def test_an_address_that_is_not_ours_is_an_error(host: str, shown: str, mend: str) -> None:
    """Whether a machine, the resolver or IDNA refuses it."""
    with pytest.raises(ConfigError) as caught:
        listen(host, 0, KEY)
    (problem,) = caught.value.problems
    assert shown in problem.what
    assert mend in problem.mend


def test_a_name_without_an_address_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the resolver's words."""

    def getaddrinfo(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(ConfigError, match=r"hub\.example:0: Name or service not known; check the address"):
        listen("hub.example", 0, KEY)


def test_a_forbidden_port_names_the_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports below 1024 need a right; all interfaces are shown as ``*``."""

    def refuse(*_: object, **_options: object) -> socket.socket:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(sockets, "_bind", refuse)
    with pytest.raises(ConfigError, match=r"\*:443.*CAP_NET_BIND_SERVICE"):
        listen("", 443, KEY)


# -- Accepting ------------------------------------------------------------------------------------------------------


class Listener(socket.socket):
    """A listening socket whose first accepts fail."""

    errors: list[int]

    def accept(self) -> tuple[socket.socket, object]:
        """Raise what is left to raise, then accept."""
        if self.errors:
            raise OSError(self.errors.pop(0), "so it goes")
        return super().accept()


def failing(*errors: int) -> Listener:
    """Return such a socket."""
    listener = Listener(fileno=listen("127.0.0.1", 0, KEY).detach())
    listener.setblocking(False)
    listener.errors = list(errors)
    return listener


async def test_a_connection_comes_with_its_address() -> None:
    """As text, without the port."""
    with listen("127.0.0.1", 0, KEY) as sock, connect(sock):
        connection, address = await accept(sock)
        connection.close()
    assert address == "127.0.0.1"


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EHOSTUNREACH])
async def test_a_connection_that_broke_while_it_waited_is_passed_over(number: int) -> None:
    """The next one is served at once (accept(2))."""
    with failing(number) as sock, connect(sock):
        async with asyncio.timeout(sockets.ACCEPT_PAUSE_S):
            connection, _ = await accept(sock)
        connection.close()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_a_lack_of_resources_is_waited_out(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a pause, for an immediate retry would only burn the CPU."""
    pauses: list[float] = []
    real_sleep = asyncio.sleep

    async def sleep(delay_s: float) -> None:
        pauses.append(delay_s)
        await real_sleep(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with failing(number, number) as sock, connect(sock):
        connection, _ = await accept(sock)
        connection.close()
    assert pauses == [sockets.ACCEPT_PAUSE_S] * 2


@pytest.mark.parametrize("number", [errno.EBADF, errno.EINVAL, errno.ENOTSOCK])
async def test_a_socket_that_does_not_listen_is_an_error(number: int) -> None:
    """Trying again would never end."""
    with failing(number) as sock, pytest.raises(OSError, match="so it goes"):
        await accept(sock)


# -- Addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("192.0.2.1", 5), "192.0.2.1:5"),
        (("2001:db8::1", 5, 0, 0), "[2001:db8::1]:5"),
        (("::ffff:192.0.2.1", 5, 0, 0), "192.0.2.1:5"),
        (("::ffff:0:1", 5, 0, 0), "[::ffff:0:1]:5"),
    ],
)
def test_addresses_are_written_as_the_original_writes_them(address: tuple[object, ...], text: str) -> None:
    """IPv6 in brackets, a v4-mapped address as IPv4."""
    assert format_address(address) == text


def test_what_is_formatted_is_what_the_kernel_says() -> None:
    """For a real socket."""
    with listen("127.0.0.1", 0, KEY) as sock:
        assert format_address(sock.getsockname()) == f"127.0.0.1:{sock.getsockname()[1]}"


# -- UDP ------------------------------------------------------------------------------------------------------------


def closed(found: list[socket.socket]) -> list[tuple[int, int]]:
    """Close sockets and return their families and ports."""
    with contextlib.ExitStack() as stack:
        return [(stack.enter_context(sock).family, sock.getsockname()[1]) for sock in found]


@needs_ipv6
def test_no_host_means_a_udp_socket_for_each_family_with_one_port() -> None:
    """W26: also where the port is any free one."""
    (first, port), (second, same) = closed(listen_udp("", 0, KEY))
    assert (first, second) == (socket.AF_INET, socket.AF_INET6)
    assert port == same != 0


def test_without_ipv6_all_udp_is_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for TCP."""
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    assert [family for family, _ in closed(listen_udp("", 0, KEY))] == [socket.AF_INET]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", pytest.param("::1", marks=needs_ipv6)])
def test_a_udp_address_is_one_socket(host: str) -> None:
    """It does not block, and has room for a burst."""
    (sock,) = listen_udp(host, 0, KEY)
    with sock:
        assert sock.getblocking() is False
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 2 * 212_992


def test_a_udp_port_in_use_is_refused_and_nothing_stays_open() -> None:
    """The second family failing closes the first; the message names port and mend."""
    (taken,) = listen_udp("127.0.0.1", 0, KEY)
    with taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on .*:{port}: .*ss -tulpn"):
            listen_udp("127.0.0.1", port, KEY)


@needs_ipv6
def test_a_udp_port_that_one_family_lacks_leaves_the_other_free() -> None:
    """Half a port is none."""
    (taken,) = listen_udp("::1", 0, KEY)
    with taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError):
            listen_udp("", port, KEY)
        closed(listen_udp("127.0.0.1", port, KEY))


# -- Sources -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("not:an:address", "not:an:address"),
        ("::1\0", "::1\0"),
        ("", ""),
    ],
)
def test_a_source_is_an_ipv4_address_or_an_ipv6_network(address: str, key: str) -> None:
    """One site is one source; text that is no address is itself."""
    assert source_key(address) == key
    assert source_keys(address)[0] == key


@pytest.mark.parametrize(
    ("address", "keys"),
    [
        ("2001:db8:1:2:3:4:5:6", ("2001:db8:1:2::/64", "2001:db8:1::/48")),
        ("2001:db8:1:ffff::1", ("2001:db8:1:ffff::/64", "2001:db8:1::/48")),
        ("2001:db8:1::1", ("2001:db8:1::/64", "2001:db8:1::/48")),
        ("192.0.2.7", ("192.0.2.7",)),
        ("::ffff:192.0.2.7", ("192.0.2.7",)),
        ("not:an:address", ("not:an:address",)),
    ],
)
def test_an_ipv6_address_counts_for_the_wider_network_as_well(address: str, keys: tuple[str, ...]) -> None:
    """Who owns a /48 owns 65,536 sources; the two never share a name."""
    assert source_keys(address) == keys
