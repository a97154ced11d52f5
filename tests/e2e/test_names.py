"""Names as the lab's DNS and its nodes know them: wildcards, regions, and HTTP on port 80."""

from __future__ import annotations

import pytest

from tests.support.lab import NODES, Lab

REGIONS = tuple(NODES)


@pytest.mark.parametrize("region", REGIONS)
def test_a_wildcard_covers_one_label(lab: Lab, region: str) -> None:
    """Over TLS with a certificate for the very name, and over HTTP."""
    assert lab.curl(region, "https://blog.pages.lab.test/").startswith(
        "web-us-2 says hello over TLSv1.3 to blog.pages."
    )
    assert lab.curl(region, "http://any.pages.lab.test/") == "web-us-2 says hello over HTTP to any.pages.lab.test\n"


@pytest.mark.parametrize("region", REGIONS)
def test_a_wildcard_does_not_cover_two_labels_or_none(lab: Lab, region: str) -> None:
    """The DNS leads such names to the node, which has no backend for them."""
    for name in ("a.b.pages.lab.test", "pages.lab.test"):
        assert "unrecognized name" in lab.fails(region, f"https://{name}/")
        assert "404" in lab.fails(region, f"http://{name}/")


@pytest.mark.parametrize("region", REGIONS)
def test_an_exact_name_wins_over_a_wildcard(lab: Lab, region: str) -> None:
    """Both backends are connected to the same node."""
    for _ in range(8):
        assert lab.curl(region, "https://www.pages.lab.test/").startswith("web-us-1 ")


def test_each_region_is_sent_to_its_own_node(lab: Lab) -> None:
    """By the asker's subnet, whatever the name; the world sees both."""
    for region, address in NODES.items():
        for name in ("edge.lab.test", "app.lab.test", "shop.lab.test", "whatever.pages.lab.test"):
            assert lab.dig(region, name)[0] == address
    world = lab.output("node-us", "python3", "-c", "import socket; print(*socket.gethostbyname_ex('edge.lab.test')[2])")
    assert sorted(world.split()) == ["10.231.0.11", "10.231.0.12"]


@pytest.mark.parametrize("region", REGIONS)
def test_port_80_goes_by_host(lab: Lab, region: str) -> None:
    """The backend answers; a name of nobody gets the node's own page."""
    assert lab.curl(region, "http://shop.lab.test/") == "web-eu says hello over HTTP to shop.lab.test\n"
    assert lab.curl(region, "http://SHOP.lab.test./").startswith("web-eu ")
    assert "404" in lab.fails(region, "http://nobody.lab.test/")


def test_a_backend_gets_its_certificate_through_the_proxy(lab: Lab) -> None:
    """A new one, now: the CA asks for the challenge at the node, and the new certificate is what clients see then."""
    command = ("openssl", "x509", "-in", "/shared/certs/web/cert.pem", "-noout", "-serial", "-issuer")
    before = lab.output("web-eu", *command)
    assert "Pebble Intermediate CA" in before
    renew = "CURL_CA_BUNDLE=/trust/ca.pem dehydrated --config /etc/lab/dehydrated.conf --cron --force --alias web"
    lab.output("web-eu", "sh", "-c", f"{renew} --domain shop.lab.test && nginx -c /lab/web/nginx.conf -s reload")
    after = lab.output("web-eu", *command)
    assert after != before
    seen = "openssl s_client -connect shop.lab.test:443 -servername shop.lab.test </dev/null 2>/dev/null"
    for region in REGIONS:
        serial = lab.output(f"tester-{region}", "sh", "-c", f"{seen} | openssl x509 -noout -serial")
        assert serial.strip() == after.splitlines()[0]
    assert "shop.lab.test" in lab.logs("pebble")


def test_weights_hold_over_400_connections(lab: Lab) -> None:
    """Three to one, in either region, with a connection for every request."""
    for region in REGIONS:
        said = lab.curl(region, "--header", "Connection: close", "http://app.lab.test/?[1-400]").splitlines()
        shares = {server: sum(line.startswith(server) for line in said) for server in ("web-us-1", "web-us-2")}
        assert len(said) == 400
        assert shares["web-us-1"] + shares["web-us-2"] == 400
        assert abs(shares["web-us-1"] - 300) <= 4, shares
