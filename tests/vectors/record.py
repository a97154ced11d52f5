"""Record the ClientHellos of real programs on loopback into ``client_hello/``.

    python tests/vectors/record.py                # every program found on this machine
    python tests/vectors/record.py curl go        # only these

A listener takes one connection after another, reads until the client falls silent, and closes without an answer; the
first connection that sent anything is kept. The parser under test takes no part in this. Programs that are not
installed are skipped, so vectors of theirs stay as they are. ``README.md`` says which versions made the ones kept here.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

NAME = "app.example.com"
FOLDER = Path(__file__).parent / "client_hello"
SILENCE_S = 0.5  # a client that waits for our answer says nothing more for that long
PROGRAM_S = 20  # time for one program, its start included

PYTHON = """
import socket, ssl, sys
context = ssl.create_default_context()
context.set_alpn_protocols(["h2", "http/1.1"])
context.wrap_socket(socket.create_connection(("127.0.0.1", int(sys.argv[1]))), server_hostname=sys.argv[2])
"""

GO = """
package main

import ("crypto/tls"; "os")

func main() {
	config := &tls.Config{ServerName: os.Args[2], NextProtos: []string{"h2", "http/1.1"}}
	tls.Dial("tcp", "127.0.0.1:"+os.Args[1], config)
}
"""

JAVA = """
import java.net.Socket;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.SSLSocketFactory;

public class Hello {
    public static void main(String[] a) throws Exception {
        Socket plain = new Socket("127.0.0.1", Integer.parseInt(a[0]));
        SSLSocketFactory factory = (SSLSocketFactory) SSLSocketFactory.getDefault();
        ((SSLSocket) factory.createSocket(plain, a[1], Integer.parseInt(a[0]), true)).startHandshake();
    }
}
"""

NODE = """
const [port, servername] = process.argv.slice(2);
require("tls").connect({host: "127.0.0.1", port, servername, ALPNProtocols: ["h2", "http/1.1"]}).on("error", () => {});
"""

FIREFOX_PREFERENCES = """
user_pref("network.dns.localDomains", "app.example.com");
user_pref("app.update.enabled", false);
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
user_pref("toolkit.telemetry.reportingpolicy.firstRun", false);
"""

Command = Callable[[int, Path], list[str]]


def write(folder: Path, name: str, text: str) -> str:
    """Put a source file into the folder of one run and return its path."""
    path = folder / name
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return str(path)


def curl(port: int, _folder: Path) -> list[str]:
    """Run curl, usually built on OpenSSL."""
    return ["curl", "-sk", "--resolve", f"{NAME}:{port}:127.0.0.1", f"https://{NAME}:{port}/"]


def openssl(port: int, _folder: Path) -> list[str]:
    """Run OpenSSL's own client, which offers no ALPN unless asked."""
    return ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", NAME]


def openssl_nosni(port: int, _folder: Path) -> list[str]:
    """Run OpenSSL's own client without SNI."""
    return ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-noservername"]


def openssl_tls12(port: int, folder: Path) -> list[str]:
    """Run OpenSSL's own client for TLS 1.2 only."""
    return [*openssl(port, folder), "-tls1_2"]


def python(program: str) -> Command:
    """Run Python's ssl module, on whatever OpenSSL that Python was built with."""
    return lambda port, folder: [program, write(folder, "hello.py", PYTHON), str(port), NAME]


def go(port: int, folder: Path) -> list[str]:
    """Compile and run Go's crypto/tls."""
    return ["go", "run", write(folder, "hello.go", GO), str(port), NAME]


def java(port: int, folder: Path) -> list[str]:
    """Compile and run the JDK's own TLS (JSSE)."""
    return ["java", write(folder, "Hello.java", JAVA), str(port), NAME]


def node(port: int, folder: Path) -> list[str]:
    """Run Node.js, which brings its own OpenSSL."""
    return ["node", write(folder, "hello.js", NODE), str(port), NAME]


def chromium(port: int, folder: Path) -> list[str]:
    """Run Chromium (BoringSSL): GREASE, shuffled extensions, a post-quantum key share, ECH GREASE."""
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    switches += " disable-component-update disable-sync"
    return [
        "chromium",
        *(f"--{switch}" for switch in switches.split()),
        f"--user-data-dir={folder}",
        f"--host-resolver-rules=MAP {NAME} 127.0.0.1",
        f"https://{NAME}:{port}/",
    ]


def firefox(port: int, folder: Path) -> list[str]:
    """Run Firefox (NSS): a post-quantum key share, ECH GREASE."""
    write(folder, "user.js", FIREFOX_PREFERENCES)
    return ["firefox-esr", "--headless", "--no-remote", "--profile", str(folder), f"https://{NAME}:{port}/"]


PROGRAMS: dict[str, Command] = {
    "curl": curl,
    "openssl": openssl,
    "openssl_nosni": openssl_nosni,
    "openssl_tls12": openssl_tls12,
    "python3.11": python("python3.11"),
    "python3.13": python("python3.13"),
    "go": go,
    "java": java,
    "node": node,
    "chromium": chromium,
    "firefox": firefox,
}


def read_until_silent(connection: socket.socket) -> bytes:
    """Return what the client says before it waits for us."""
    connection.settimeout(SILENCE_S)
    received = b""
    try:
        while chunk := connection.recv(65_536):
            received += chunk
    except OSError:  # silence, or a reset
        pass
    return received


def record(command: Command) -> bytes:
    """Run a program against a listener of its own and return the first bytes it sent, none if it is not installed."""
    kept: list[bytes] = []
    done = threading.Event()

    def listen(listener: socket.socket) -> None:
        while not done.is_set():
            connection, _ = listener.accept()
            with connection:
                if received := read_until_silent(connection):
                    kept.append(received)
                    done.set()

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
    ):
        threading.Thread(target=listen, args=(listener,), daemon=True).start()
        words = command(listener.getsockname()[1], Path(folder))
        if shutil.which(words[0]) is None:
            return b""
        quiet = subprocess.DEVNULL
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True
        ) as process:
            done.wait(PROGRAM_S)
            os.killpg(process.pid, signal.SIGKILL)  # browsers and "go run" have children
    return kept[0] if kept else b""


def main() -> None:
    """Record the programs named on the command line, or all of them."""
    for name in sys.argv[1:] or PROGRAMS:
        hello = record(PROGRAMS[name])
        if hello:
            (FOLDER / f"{name}.bin").write_bytes(hello)
        sys.stdout.write(f"{name}: {f'{len(hello)} bytes' if hello else 'nothing recorded, file left as it is'}\n")


if __name__ == "__main__":
    main()
