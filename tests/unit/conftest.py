"""What unit tests share: event loops to run on, a logging tree that each leaves as it found it, a CA, a web client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop

from nexus.web import WebClient
from tests.support.processes import Pki
from tests.support.web_server import web_context

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, LoopFactory]:
    """Run each asynchronous test of a module with ``ON_BOTH_LOOPS = True`` on asyncio's event loop and on uvloop's."""
    del config
    factories: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop}
    if getattr(item.module, "ON_BOTH_LOOPS", False):  # type: ignore[attr-defined]  # of functions, all there are here
        factories["uvloop"] = uvloop.new_event_loop
    return factories


@pytest.fixture(autouse=True)
def _logging_is_restored() -> Iterator[None]:
    """``nexus.logs.configure`` in one test must not hide the records of another from ``caplog``."""
    loggers = [logging.getLogger(name) for name in ("nexus", "asyncio", "nexus.websocket")]
    before = [(logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:] = handlers


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """A CA for all tests of this module."""
    return Pki.create(Path(tmp_path_factory.mktemp("pki")))


@pytest.fixture
async def web(pki: Pki) -> AsyncIterator[WebClient]:
    """A web client as a node's, which trusts the CA of ``pki`` alone."""
    found = WebClient(web_context(pki))
    yield found
    await found.aclose()
