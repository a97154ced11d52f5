"""What the internet sends to an open port, for some seconds: python3 hostile.py HOST SECONDS.

Connections that say nothing, half a ClientHello, one byte a second, noise on every port, huge HTTP heads, upgrades at
the hub and the mesh port without a token or certificate, datagrams of noise. Prints how many connections of each kind
there were; who is attacked is the lab's own node.
"""

import asyncio
import collections
import contextlib
import json
import os
import random
import socket
import sys
import time

HELLO = bytes.fromhex("160301020001000200fc0303")  # the start of a ClientHello that announces more than will come
EACH = 40  # connections of one kind at once


async def silent(reader, writer):
    await reader.read(1)


async def half_a_hello(reader, writer):
    writer.write(HELLO)
    await reader.read(100)


async def a_byte_a_second(reader, writer):
    for byte in HELLO + bytes(500):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(1)


async def noise(reader, writer):
    writer.write(os.urandom(2000))
    await reader.read(100)


async def a_huge_head(reader, writer):
    writer.write(b"GET / HTTP/1.1\r\n" + b"X-Padding: " + b"a" * 200_000)
    await writer.drain()
    await reader.read(100)


async def no_token(reader, writer):
    writer.write(b"GET /connect HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
    await reader.read(100)


KINDS = {
    silent: (443, 80, 8443, 8444),
    half_a_hello: (443, 8443, 8444),
    a_byte_a_second: (443,),
    noise: (443, 80, 53, 5353, 8443, 8444),
    a_huge_head: (80,),
    no_token: (8443, 8444),
}


async def keep_at_it(kind, host, port, end, tally):
    while time.monotonic() < end:
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except OSError:
            tally["refused"] += 1
            await asyncio.sleep(0.1)
            continue
        tally[f"{kind.__name__} on {port}"] += 1
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + min(5, max(0.1, end - time.monotonic()))):
                await kind(reader, writer)
        writer.transport.abort()


async def datagrams(host, end, tally):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        while time.monotonic() < end:
            for port in (53, 5353):
                sock.sendto(os.urandom(random.randrange(1, 1400)), (host, port))
                tally[f"datagrams to {port}"] += 1
            await asyncio.sleep(0.005)


async def main(host, seconds):
    tally = collections.Counter()
    end = time.monotonic() + seconds
    async with asyncio.TaskGroup() as tasks:
        for kind, ports in KINDS.items():
            for port in ports:
                for _ in range(EACH // len(ports)):
                    tasks.create_task(keep_at_it(kind, host, port, end, tally))
        tasks.create_task(datagrams(host, end, tally))
    print(json.dumps(tally))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
