"""nexus.workers.sibling: the link and the channel to another worker, and what becomes of both when it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence

from nexus.link.flow import Drop, Flow
from nexus.link.stream import Stream
from nexus.protocol.framing import Buffer
from nexus.protocol.tunnels import TunnelRequest
from nexus.transport import OpenRequest
from nexus.workers.channel import channel_pair, close_all
from nexus.workers.messages import Look, News, PassedBackend, Serves, Text
from nexus.workers.sibling import Line, RemoteBackend, Sibling
from tests.support.hub import WAIT_S, eventually
from tests.support.processes import open_descriptors

REQUEST = OpenRequest("app.example.com", is_tls=True, local_port=443, client="203.0.113.9:51234")
SERVES = Serves(1, ("app.example.com", "udp:53"), 1, "b", "192.0.2.1", {53: 7})


class Owner:
    """Keeps what a sibling says of its worker."""

    def __init__(self) -> None:
        self.met_once = asyncio.Event()
        self.texts: list[Text] = []
        self.messages: list[bytes] = []
        self.requests: list[TunnelRequest] = []
        self.losses = 0

    def met(self, sibling: Sibling) -> None:
        del sibling
        self.met_once.set()

    def told(self, sibling: Sibling, text: Text) -> None:
        del sibling
        self.texts.append(text)

    def handed(self, message: bytes, descriptors: Sequence[int]) -> None:
        self.messages.append(message)
        close_all(descriptors)

    def requested(self, line: Line, request: TunnelRequest) -> None:
        del line
        self.requests.append(request)

    def lost(self, sibling: Sibling) -> None:
        del sibling
        self.losses += 1


class FlowEnd:
    """An owner of a flow that expects nothing."""

    def deliver(self, flow: Flow, datagram: Buffer) -> None:
        raise AssertionError((flow, datagram))

    def sent(self, flow: Flow) -> None:
        raise AssertionError(flow)

    def dropped(self, flow: Flow, why: Drop, count: int = 1) -> None:
        raise AssertionError((flow, why, count))

    def flow_ended(self, flow: Flow) -> None:
        del flow


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[tuple[Sibling, Owner], tuple[Sibling, Owner]]]:
    """Connect worker 0, as worker 1 sees it, and worker 1, as worker 0 does."""
    links, channels = socket.socketpair(), channel_pair()
    for sock in links:
        sock.setblocking(False)
    owners = (Owner(), Owner())
    ends = [Sibling(index, owner, 1) for index, owner in enumerate(owners)]
    async with asyncio.TaskGroup() as tasks:
        for index, end in enumerate(ends):
            tasks.create_task(end.serve(links[index], channels[index], dials=not index))
        async with asyncio.timeout(WAIT_S):
            for owner in owners:
                await owner.met_once.wait()
        yield (ends[0], owners[0]), (ends[1], owners[1])
        ends[0].line.session.link.close()


async def test_workers_say_and_hand_each_other_what_they_have() -> None:
    """Texts by the link, sockets by the channel, tunnels as nodes ask for them."""
    async with pair() as ((near, _), (_, owner)):
        near.tell(Look())
        near.tell(News((), (25,)))
        with socket.socket() as passed:
            assert near.hand(PassedBackend("192.0.2.1"), passed.fileno())
        assert isinstance(RemoteBackend(near, SERVES).open_stream(REQUEST, "app.example.com"), Stream)
        await eventually(lambda: owner.texts == [Look(), News((), (25,))], "the texts")
        await eventually(lambda: len(owner.messages) == 1, "the socket")
        await eventually(lambda: len(owner.requests) == 1, "the request")
        (request,) = owner.requests
        assert (request.route_key, request.client, request.port) == ("app.example.com", REQUEST.client, 443)
    assert owner.losses == 1


async def test_a_worker_that_is_gone_takes_nothing() -> None:
    """Neither sockets nor streams nor flows; nothing of it is left open."""
    before = open_descriptors()
    async with pair() as ((near, owner), _):
        backend = RemoteBackend(near, SERVES)
        assert backend.udp_routes == {53: 7}
    assert owner.losses == 1
    with socket.socket() as passed:
        assert not near.hand(PassedBackend("192.0.2.1"), passed.fileno())
    assert not near.take_over(REQUEST, own=True)
    assert backend.open_stream(REQUEST, "app.example.com") is None
    assert backend.open_flow(REQUEST, FlowEnd(), ("203.0.113.9", 5)) is None
    assert open_descriptors() == before


async def test_a_worker_that_ends_before_the_link_is_open_was_never_there() -> None:
    """Its end of both is closed by then."""
    link, other_link = socket.socketpair()
    channel, other_channel = channel_pair()
    link.setblocking(False)
    other_link.close()
    other_channel.close()
    owner = Owner()
    await Sibling(1, owner, 1).serve(link, channel, dials=True)
    assert (link.fileno(), channel.fileno()) == (-1, -1)
    assert not owner.met_once.is_set()


async def test_backends_on_the_way_count_until_they_join() -> None:
    """And leave with what they brought."""
    owner = Owner()
    sibling = Sibling(1, owner, 1)
    sibling.place.expect("192.0.2.1")
    sibling.joined(SERVES)
    assert sibling.place.load("192.0.2.1") == (1, 1)
    assert sibling.left(1).serves is SERVES
    assert sibling.place.load("192.0.2.1") == (0, 0)
