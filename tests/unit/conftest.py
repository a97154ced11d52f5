"""What all unit tests share: the event loops to run on, and a logging tree that each test leaves as it found it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping

import pytest
import uvloop

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
