"""Several processes that are one node: binds for all, starts them, introduces them, and starts anew what ends.

Strategy: the supervisor forks before it has a thread or an event loop, so a worker begins with everything that is
loaded and bound. It keeps all sockets: what knocks at those of a worker that has ended waits for the next one. It knows
no client and no backend. Of two workers each gets one end of a link and of a channel from it; what they say there is
none of its business. A worker whose supervisor is gone ends in order.

Source: fork(2), socket(7) (SO_REUSEPORT), unix(7) (SCM_RIGHTS).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pickle
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NoReturn, cast

from nexus import logs
from nexus.app import Node, NodeAddresses, NodeState, OnReady, obey_signals, run_node
from nexus.assembly import Sockets, bind, bind_too, helper_config
from nexus.config.model import NodeConfig
from nexus.errors import NexusError
from nexus.eventloop import run
from nexus.link.connection import CLOSE_TIMEOUT_S
from nexus.link.endpoint import reset_undelivered
from nexus.mesh.peers_file import PeersFile
from nexus.systemd import ServiceManager
from nexus.workers.channel import MESSAGE_MAX_BYTES, Channel, channel_pair, close_all, receive, send
from nexus.workers.siblings import FIRST, Siblings

_log = logging.getLogger("nexus.supervisor")

ALIVE_S: Final = 1.0  # ours: how often a worker says how it is
HUNG_AFTER_S: Final = 30.0  # ours: so long no turn of an event loop takes
FROZEN_AFTER_S: Final = 5.0  # a supervisor that did not run for so long was stopped, and its workers perhaps with it
# Ours: a worker that ends at once, again and again, must not take a core for being started.
RESTART_MIN_S: Final = 0.1
RESTART_MAX_S: Final = 10.0
STEADY_AFTER_S: Final = 60.0  # one that lived so long is started anew at once
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)


def serve(config: NodeConfig, on_ready: OnReady | None = None, peers: PeersFile | None = None) -> None:
    """Run a node until SIGINT or SIGTERM, in as many processes as ``workers`` says; SIGHUP as for ``run_node``.

    Raises:
        ConfigError, TlsFileError: the configuration cannot be served.
    """
    if config.workers == 1:
        run_node(config, on_ready, peers)
    else:
        with contextlib.ExitStack() as stack:
            first = bind(config, stack)
            sockets = [first, *(bind_too(first, stack) for _ in range(1, config.workers))]
            Supervisor(config, sockets, peers, ServiceManager(os.environ), on_ready).run()


@dataclass
class _Worker:
    """What the supervisor knows of one process."""

    index: int
    pid: int = 0
    control: socket.socket | None = None
    state: NodeState | None = None  # None: it does not serve yet
    started_at: float = 0.0
    heard_at: float = 0.0
    restart_at: float = 0.0
    delay_s: float = RESTART_MIN_S


class Supervisor:
    """Runs in a process without threads and event loop; construct and ``run``."""

    def __init__(
        self,
        config: NodeConfig,
        sockets: list[Sockets],
        peers: PeersFile | None,
        manager: ServiceManager,
        on_ready: OnReady | None,
    ) -> None:
        """Start nothing yet; ``sockets`` are bound, one set a worker."""
        self._config = config
        self._sockets = sockets
        self._peers = peers
        self._manager = manager
        self._on_ready = on_ready
        self._workers = [_Worker(index) for index in range(len(sockets))]
        self._selector = selectors.DefaultSelector()
        self._buffer = memoryview(bytearray(MESSAGE_MAX_BYTES))
        self._stopping = False
        self._failure: NexusError | None = None
        self._told_ready = False
        self._apart: set[tuple[int, int]] = set()  # workers whose link ended while both live
        self._together_at = 0.0
        self._stepped_at = time.monotonic()
        self._addresses: NodeAddresses
        self._alive_at = 0.0

    def run(self) -> None:
        """Supervise until a signal, or until the first worker cannot be started, then until all have ended.

        Raises:
            NexusError: why the first worker cannot serve.
        """
        with self._signals():
            self._start(self._workers[FIRST])  # alone: what is wrong with the configuration is said once
            while any(worker.pid for worker in self._workers) or not self._stopping:
                self._step()
        if self._failure is not None:
            raise self._failure

    def _step(self) -> None:
        """Wait for a second at most, and see to what has happened."""
        for key, _ in self._selector.select(ALIVE_S):
            if isinstance(key.data, _Worker):
                self._hear(key.data)
            else:
                key.data()
        self._reap()
        now = time.monotonic()
        self._bring_together(now)
        was_frozen = now - self._stepped_at > FROZEN_AFTER_S
        self._stepped_at = now
        for worker in self._workers:
            if was_frozen:
                worker.heard_at = now
            if worker.pid and now - worker.heard_at > HUNG_AFTER_S:
                _log.error("worker %d has not moved for %d s: killed", worker.index, HUNG_AFTER_S)
                os.kill(worker.pid, signal.SIGKILL)
                worker.heard_at = now
            elif not worker.pid and not self._stopping and worker.restart_at and now >= worker.restart_at:
                self._start(worker)
        if self._manager.watchdog_s and now >= self._alive_at:
            self._alive_at = now + self._manager.watchdog_s / 2
            self._manager.alive(str(self._state()))

    # -- Signals ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Have signals wake the selector for as long as this lasts."""
        woken, waker = socket.socketpair()
        for end in (woken, waker):
            end.setblocking(False)
        before = {number: signal.signal(number, lambda _number, _frame: None) for number in _SIGNALS}
        old = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        self._selector.register(woken, selectors.EVENT_READ, lambda: self._signalled(woken.recv(4096)))
        try:
            yield
        finally:
            signal.set_wakeup_fd(old)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.close()
            woken.close()
            waker.close()

    def _signalled(self, numbers: bytes) -> None:
        if {signal.SIGINT, signal.SIGTERM} & set(numbers):
            self._stop()
        elif signal.SIGHUP in numbers:
            self._manager.reloading()
            self._signal_all(signal.SIGHUP)
            self._manager.ready(str(self._state()))

    def _stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            for sockets in self._sockets:  # else they would go on to listen when the workers do not any more
                sockets.close()
            self._manager.stopping(self._config.shutdown_grace_s + 3 * CLOSE_TIMEOUT_S)
        self._signal_all(signal.SIGTERM)

    def _signal_all(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.pid:
                os.kill(worker.pid, number)

    # -- Workers ----------------------------------------------------------------------------------------------------

    def _start(self, worker: _Worker) -> None:
        """Fork a worker and introduce it to all others."""
        ours, theirs = channel_pair()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until the worker has done away with these handlers
        pid = os.fork()
        if not pid:
            ours.close()
            self._become(worker.index, theirs)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        theirs.close()
        now = time.monotonic()
        worker.pid, worker.control, worker.state = pid, ours, None
        worker.started_at = worker.heard_at = now
        worker.restart_at = 0.0
        self._selector.register(ours, selectors.EVENT_READ, worker)
        for other in self._workers:
            if other is not worker and other.control is not None:
                _introduce(worker, other)

    def _become(self, index: int, control: socket.socket) -> NoReturn:
        """Be the worker from now on: nothing of the supervisor may be left, and nothing of the caller may run."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN if number is signal.SIGHUP else signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            known = [other.index for other in self._workers if other.control is not None]
            for other in self._workers:
                if other.control is not None:
                    other.control.close()
            for sockets in self._sockets:
                if sockets is not self._sockets[index]:
                    sockets.close()
            self._selector.close()
            config = self._config if index == FIRST else helper_config(self._config)
            logs.configure(config.log_level, cast("logs.LogFormat", config.log_format), sys.stderr, worker=index)
            peers = self._peers if index == FIRST else None
            code = _work(config, index, self._sockets[index], control, peers, known)
        except BaseException:  # noqa: BLE001 — the supervisor's stack must not run in two processes
            _log.exception("worker %d failed", index)
        finally:
            with contextlib.suppress(OSError, ValueError):  # whoever reads the log may be gone
                logging.shutdown()
                sys.stderr.flush()
            os._exit(code)

    def _hear(self, worker: _Worker) -> bool:
        """Take what a worker says: its state, where it listens, why it cannot serve; tell whether it said anything."""
        if worker.control is None:
            return False
        try:
            message, descriptors = receive(worker.control, self._buffer)
        except BlockingIOError:
            return False
        except OSError:
            message, descriptors = b"", []
        close_all(descriptors)
        if not message:
            self._drop(worker)
            return False
        worker.heard_at = time.monotonic()
        kind, _, rest = message.partition(b" ")
        if kind == b"failed":
            if worker.state is None and not self._told_ready:
                self._failure = pickle.loads(rest)  # noqa: S301 — of a process that this one forked
                self._stop()
        elif kind == b"ready":
            self._serves(worker, NodeAddresses(**_fields(rest)))
        elif kind == b"lost":
            self._apart.add((min(worker.index, int(rest)), max(worker.index, int(rest))))
        else:
            worker.state = NodeState(**_fields(rest))
            self._tell_ready()
        return True

    def _bring_together(self, now: float) -> None:
        """Introduce workers anew that lost each other, once in a while; one that has ended is no more among them."""
        if self._stopping or not self._apart or now - self._together_at < ALIVE_S:
            return
        self._together_at = now
        for one, other in self._apart:
            if self._workers[one].control is not None and self._workers[other].control is not None:
                _introduce(self._workers[one], self._workers[other])
        self._apart.clear()

    def _serves(self, worker: _Worker, addresses: NodeAddresses) -> None:
        worker.state = NodeState()
        if worker.index == FIRST and not self._told_ready:
            self._addresses = addresses
            for other in self._workers:
                if not other.pid:
                    self._start(other)

    def _tell_ready(self) -> None:
        """Say once that the node serves: when every worker does and knows the others."""
        if not self._told_ready and not self._stopping:
            count = len(self._workers)
            if all(worker.state is not None and worker.state.workers == count for worker in self._workers):
                self._told_ready = True
                self._manager.ready(str(self._state()))
                if self._on_ready is not None:
                    self._on_ready(self._addresses)

    def _drop(self, worker: _Worker) -> None:
        if worker.control is not None:
            self._selector.unregister(worker.control)
            worker.control.close()
            worker.control = None

    def _reap(self) -> None:
        """See which workers have ended; they are started anew unless the node stops."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for worker in self._workers:
                if worker.pid == pid:
                    self._ended(worker, os.waitstatus_to_exitcode(status))

    def _ended(self, worker: _Worker, code: int) -> None:
        while self._hear(worker):  # its last words
            pass
        self._drop(worker)
        worker.pid, worker.state = 0, None
        if self._stopping:
            return
        now = time.monotonic()
        how = f"was ended by a signal ({signal.strsignal(-code)})" if code < 0 else f"ended with status {code}"
        if now - worker.started_at >= STEADY_AFTER_S:
            worker.delay_s = RESTART_MIN_S
        _log.error("worker %d %s; another one takes its place in %g s", worker.index, how, worker.delay_s)
        worker.restart_at = now + worker.delay_s
        worker.delay_s = min(2 * worker.delay_s, RESTART_MAX_S)

    def _state(self) -> NodeState:
        """Return how the node is: all workers together."""
        states = [worker.state for worker in self._workers if worker.state is not None]
        return NodeState(
            backends=sum(state.backends for state in states),
            streams=sum(state.streams for state in states),
            peers=sum(state.peers for state in states),
            workers=len(states),
            reasons=tuple(dict.fromkeys(reason for state in states for reason in state.reasons)),
        )


def _introduce(one: _Worker, other: _Worker) -> None:
    """Give each of two workers its ends of what connects them."""
    links = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    channels = channel_pair()
    for worker, known, link, channel in zip((one, other), (other, one), links, channels, strict=True):
        if worker.control is not None:
            send(worker.control, b"%d" % known.index, [link.fileno(), channel.fileno()])
    for sock in (*links, *channels):
        sock.close()


def _fields(text: bytes) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(text).items()}


# -- In the worker ----------------------------------------------------------------------------------------------------


def _work(
    config: NodeConfig,
    index: int,
    sockets: Sockets,
    control: socket.socket,
    peers: PeersFile | None,
    known: Sequence[int],
) -> int:
    """Serve as a worker until SIGTERM or the supervisor's end; return the exit status.

    Those of the ``known`` workers are heard before anybody is served.
    """

    async def main() -> None:
        node = Node(config, peers, worker=index)
        assert node.siblings is not None  # noqa: S101 — a worker has them
        obey_signals(node)
        async with asyncio.TaskGroup() as node.siblings.tasks:
            talk = _Talk(node, node.siblings, control)
            await node.siblings.hear(known)
            await node.run(talk.ready, sockets)
            talk.end()
        reset_undelivered()

    try:
        run(main)
    except* NexusError as errors:
        (error, *_) = _leaves(errors)
        send(control, b"failed " + pickle.dumps(error))
    else:
        return 0
    return 1


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


class _Talk:
    """The worker's end of what the supervisor says and hears."""

    def __init__(self, node: Node, siblings: Siblings, control: socket.socket) -> None:
        """Be introduced to other workers from now on."""
        self._node = node
        self._siblings = siblings
        siblings.missed = lambda index: self._channel.send(b"lost %d" % index)
        self._channel = Channel(control, self._hear, node.stop)
        self._timer: asyncio.TimerHandle | None = None

    def ready(self, addresses: NodeAddresses) -> None:
        """Say so, and say from now on how the node is."""
        self._channel.send(b"ready " + json.dumps(asdict(addresses)).encode())
        self._say()

    def end(self) -> None:
        """Say no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._channel.close()

    def _hear(self, message: bytes, descriptors: Sequence[int]) -> None:
        link, channel = (socket.socket(fileno=descriptor) for descriptor in descriptors)
        for sock in (link, channel):
            sock.setblocking(False)
        self._siblings.meet(int(message), link, channel)

    def _say(self) -> None:
        self._channel.send(b"state " + json.dumps(asdict(self._node.state())).encode())
        self._timer = asyncio.get_running_loop().call_later(ALIVE_S, self._say)
