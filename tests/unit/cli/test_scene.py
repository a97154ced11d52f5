"""What the demo puts up, in this process."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import socket
import ssl
from pathlib import Path

import pytest

from cli import scene
from nexus.errors import ConfigError
from tests.support.command_line import GOOD_REPORT as GOOD


async def test_scene_plays_and_comes_down(tmp_path: Path) -> None:
    """Real HTTPS through a real node; nothing listens afterwards."""
    async with scene.play(tmp_path, 0) as report:
        assert report.ok
        assert report.status == 200
        assert report.tunnelled
        assert report.direct_port != report.port
        assert report.certificate.subject == "CN=app.nexus.test"
        assert report.certificate.issuer == "CN=Nexus Proxy demo CA"
        assert report.sees_backend
        assert not report.sees_node
        assert report.ca_file == str(tmp_path / "ca.pem")
        fingerprint = ssl.PEM_cert_to_DER_cert((tmp_path / "app.pem").read_text())
        assert report.certificate.sha256 == hashlib.sha256(fingerprint).hexdigest()
    for address in (report.hub, f"127.0.0.1:{report.port}", f"127.0.0.1:{report.direct_port}", report.backend):
        host, _, port = address.rpartition(":")
        with pytest.raises(OSError, match="Connect"):
            await asyncio.open_connection(host, int(port))


async def test_page_shows_the_request(tmp_path: Path) -> None:
    """To whoever asks again, as curl does."""
    async with scene.play(tmp_path, 0) as report:
        context = ssl.create_default_context(cafile=report.ca_file)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", report.port, ssl=context, server_hostname=report.hostname
        )
        writer.write(b"GET /again HTTP/1.1\r\nHost: x\r\n\r\n")
        page = await reader.read(-1)
        writer.close()
        await writer.wait_closed()
    assert b"GET /again HTTP/1.1" in page


async def test_port_in_use_is_one_configuration_error(tmp_path: Path) -> None:
    """Not a group of errors."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="relayPorts"):
        async with scene.play(tmp_path, taken.getsockname()[1]):
            pass


async def test_step_that_takes_too_long_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its limit."""
    monkeypatch.setattr(scene, "_STEP_TIMEOUT_S", 0)
    with pytest.raises(TimeoutError, match="nothing happened within 0 s"):
        await scene._within(asyncio.Event().wait(), "nothing happened")


async def test_other_failures_are_not_taken_for_the_alert(tmp_path: Path) -> None:
    """The second request must be refused by TLS, by that alert: not by another certificate or a closed port."""
    async with scene.play(tmp_path, 0) as report:
        hub_port = int(report.hub.rpartition(":")[2])
        outcome, refused = await scene._get_refused(tmp_path / "ca.pem", hub_port)
        assert (outcome, refused) == ("TLS: CERTIFICATE_VERIFY_FAILED", False)
    outcome, refused = await scene._get_refused(tmp_path / "ca.pem", hub_port)
    assert outcome
    assert not refused


@pytest.mark.parametrize(
    "change",
    [
        {"status": 500},
        {"sees_backend": False},
        {"sees_node": True},
        {"tunnelled": False},
        {"bytes_to_client": 0},
        {"bytes_to_backend": 0},
        {"unknown_refused": False},
    ],
)
def test_any_flaw_makes_the_report_bad(change: dict[str, object]) -> None:
    """Each check counts."""
    assert GOOD.ok
    assert not dataclasses.replace(GOOD, **change).ok  # type: ignore[arg-type]
