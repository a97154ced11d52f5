"""Ask for a page of known length over TLS, again and again, and say what came of each request, one JSON object a line.

python3 load.py URL SECONDS [PER_SECOND]: ``at`` is unix seconds at the request's start, ``outcome`` is "ok" or what
went wrong, ``ms`` how long it took. Ends after SECONDS or at SIGTERM or SIGINT, with a summary on stderr. Every request
has a connection of its own; SSL_CERT_FILE names the roots.
"""

import asyncio
import collections
import json
import signal
import ssl
import sys
import time
from urllib.parse import urlsplit

TIMEOUT_S = 20


async def ask(host: str, path: str, context: ssl.SSLContext) -> str:
    reader, writer = await asyncio.open_connection(host, 443, ssl=context)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(": ", 1) for line in head.decode().splitlines()[1:] if ": " in line)
        if not head.startswith(b"HTTP/1.1 200 "):
            return head.partition(b"\r\n")[0].decode()
        body = await reader.read(-1)
        expected = int(fields["content-length"])
        return "ok" if len(body) == expected else f"TRUNCATED WITHOUT AN ERROR: {len(body)} of {expected} bytes"
    finally:
        writer.close()


async def one(host: str, path: str, context: ssl.SSLContext, tally: collections.Counter[str]) -> None:
    at, started = time.time(), time.monotonic()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            outcome = await ask(host, path, context)
    except (OSError, EOFError, TimeoutError) as error:
        outcome = f"{type(error).__name__}: {error}"
    tally[outcome] += 1
    print(json.dumps({"at": at, "outcome": outcome, "ms": round((time.monotonic() - started) * 1000, 1)}), flush=True)


async def main(url: str, seconds: float, per_second: float) -> None:
    parts = urlsplit(url)
    context = ssl.create_default_context()
    tally: collections.Counter[str] = collections.Counter()
    end = time.monotonic() + seconds
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    async with asyncio.TaskGroup() as tasks:
        while time.monotonic() < end and not stop.is_set():
            tasks.create_task(one(parts.hostname or "", parts.path or "/", context, tally))
            await asyncio.sleep(1 / per_second)
    for outcome, count in tally.most_common():
        print(f"{count:6d}  {outcome}", file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 20))
