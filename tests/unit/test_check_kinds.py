"""Each kind of check against servers on loopback: good ones, and those that hang, trickle, talk nonsense."""

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

import dns.message
import dns.rcode
import dns.rrset
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from loaded_mp.checks import CHECKS
from loaded_mp.checks.check import Check, Finding
from loaded_mp.checks.runner import Runner, Target
from loaded_mp.fields import Address, Endpoint

pytestmark = pytest.mark.uncompiled

DEADLINE_S = 10
LOOPBACK: dict[int, Address] = {4: ip_address("127.0.0.1"), 6: ip_address("::1")}
both = pytest.mark.parametrize("version", [4, 6])

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def check_of(**settings: Any) -> Check:
    """A check as a configuration gives it."""
    (model,) = [each for each in CHECKS if each.model_fields["type"].default == settings["type"]]
    return model.model_validate({"timeout_s": 5, **settings})


async def ask(check: Check, version: int = 4) -> Finding | None:
    """What the runner makes of one attempt; None if nothing was learnt."""
    endpoint = Endpoint(LOOPBACK[version], check.port_of(None, None))
    async with asyncio.timeout(DEADLINE_S):
        result = await Runner([], lambda _: None)._ask(Target(1, endpoint, check), 0)
    return result.finding if result else None


@contextlib.asynccontextmanager
async def server(serve: Serve, version: int = 4, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A TCP server; its port. What a client breaks is no fault of it."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.transport.abort()

    listening = await asyncio.start_server(served, str(LOOPBACK[version]), 0, ssl=tls)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        await listening.wait_closed()


def says(text: bytes) -> Serve:
    """Says something and waits for the end."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(text)
        await reader.read()

    return serve


def answers_http(head: str, body: bytes = b"") -> Serve:
    """Answers one request, and keeps it in `heard`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await reader.read()

    return serve


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def gigabyte(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As much as is taken; says in `sent` how much that was."""
    global sent
    sent = 0
    while sent < 1 << 30:
        writer.write(b"y" * 65_536)
        await writer.drain()
        sent += 65_536


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.transport.abort()


sent = 0


class Datagrams(asyncio.DatagramProtocol):
    """Answers datagrams by a function of them."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: Any) -> None:
        self._transport.sendto(self._answer(data), address)


@contextlib.asynccontextmanager
async def datagrams(answer: Callable[[bytes], bytes], version: int = 4) -> AsyncIterator[int]:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Datagrams(answer), local_addr=(str(LOOPBACK[version]), 0)
    )
    try:
        yield transport.get_extra_info("sockname")[1]
    finally:
        transport.close()
        await asyncio.sleep(0)  # it closes in the next round


def certificate(folder: Path, days: float, name: str = "web.example") -> tuple[ssl.SSLContext, Path]:
    """A server's TLS, with a certificate that it has signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=100))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{days}.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM) + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context, path


@both
def test_tcp_says_and_expects(version: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"PING\r\n"
        writer.write(b"+PO")
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.write(b"NG\r\n")
        await reader.read()

    async def body() -> None:
        async with server(serve, version) as port:
            check = check_of(type="tcp", port=port, send="PING\r\n", expect=r"^\+PONG")
            assert await ask(check, version) == Finding(said=r"answered '+PONG\r\n'")

    asyncio.run(body())


def test_a_server_that_speaks_first_says_bytes() -> None:
    async def body() -> None:
        async with server(says(b"\x00\xff\x01")) as port:
            assert await ask(check_of(type="tcp", port=port, expect="\xff\x01$")) == Finding(
                said=r"answered '\x00ÿ\x01'"
            )

    asyncio.run(body())


@both
@pytest.mark.parametrize(
    ("head", "text", "settings", "fault"),
    [
        ("200 OK", "", {}, None),
        ("302 Found", "", {}, None),
        ("404 Not Found", "", {}, "status 404"),
        ("500 Oh", "", {}, "status 500"),
        ("404 Not Found", "", {"status": [200, "404-405"]}, None),
        ("200 OK", "all is well", {"expect": "is w.ll$"}, None),
        ("200 OK", "all is bad", {"expect": "well"}, "status 200, answered 'all is bad', expected 'well'"),
        ("200 OK", "größer", {"expect": "größer"}, None),
    ],
)
def test_http(version: int, head: str, text: str, settings: dict[str, Any], fault: str | None) -> None:
    async def body() -> None:
        async with server(answers_http(head, text.encode()), version) as port:
            found = await ask(check_of(type="http", port=port, **settings), version)
        assert found == (Finding(fault) if fault else Finding(said=f"status {head[:3]}"))

    asyncio.run(body())


def test_an_http_request_is_what_was_configured() -> None:
    heard = b""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        heard = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nto the end")

    async def body() -> None:
        async with server(serve) as port:
            more = {
                "method": "POST",
                "path": "/a?b",
                "host": "web.example",
                "headers": ["X-Key: k", "User-Agent: me"],
            }
            assert await ask(check_of(type="http", port=port, expect="end$", **more)) == Finding(
                said="status 200"
            )

    asyncio.run(body())
    assert heard.split(b"\r\n") == [
        b"POST /a?b HTTP/1.1",
        b"Host: web.example",
        b"X-Key: k",
        b"User-Agent: me",
        b"Connection: close",
        b"",
        b"",
    ]


@both
def test_https_and_tls_see_certificates(version: int, tmp_path: Path) -> None:
    tls, path = certificate(tmp_path, 10)
    late, _ = certificate(tmp_path, -1)
    good = {"verify": True, "ca_file": str(path), "server_name": "web.example"}

    async def body() -> None:
        async with server(answers_http("204 Nothing"), version, tls) as port:
            for settings in ({}, good):
                found = await ask(check_of(type="https", port=port, **settings), version)
                assert found
                assert (found.fault, found.said) == (None, "status 204")
                assert found.certificate_expires_s == pytest.approx(time.time() + 864_000, abs=60)
            found = await ask(check_of(type="tls", port=port, **good), version)
            assert found
            assert found.said == "handshake done"
            assert found.certificate_expires_s
            other = await ask(check_of(type="tls", port=port, **{**good, "server_name": "else"}), version)
            assert other
            assert other.fault
            assert other.fault.startswith("no TLS: certificate refused, Hostname mismatch")
            unknown = await ask(check_of(type="tls", port=port, verify=True), version)
            assert unknown == Finding("no TLS: certificate refused, self-signed certificate")
        async with server(hang, version, late) as port:
            found = await ask(check_of(type="tls", port=port), version)
            assert found
            assert found.certificate_expires_s == pytest.approx(time.time() - 86_400, abs=60)
        async with server(says(b"220 no TLS here\r\n"), version) as port:
            assert await ask(check_of(type="tls", port=port), version) == Finding(
                "no TLS: wrong version number"
            )

    asyncio.run(body())


def test_tls_says_and_expects(tmp_path: Path) -> None:
    tls, _ = certificate(tmp_path, 10)

    async def body() -> None:
        async with server(says(b"* OK IMAP ready\r\n"), tls=tls) as port:
            found = await ask(check_of(type="tls", port=port, expect="^\\* OK"))
            assert found
            assert found.said == r"answered '* OK IMAP ready\r\n'"

    asyncio.run(body())


@both
def test_icmp(version: int) -> None:
    assert asyncio.run(ask(check_of(type="icmp"), version)) == Finding(said="echoed")


def test_an_echo_from_nobody() -> None:
    check = check_of(type="icmp", timeout_s=0.1)

    async def body() -> None:
        result = await Runner([], lambda _: None)._ask(Target(1, Endpoint.read("127.255.255.255"), check), 0)
        assert result is None or result.finding.fault

    asyncio.run(body())


@both
def test_udp(version: int) -> None:
    async def body() -> None:
        async with datagrams(lambda data: data[::-1], version) as port:
            ask_for = {"type": "udp", "port": port, "send": "ab\xff"}
            assert await ask(check_of(**ask_for, expect="^\xffba$"), version) == Finding(
                said="answered 'ÿba'"
            )
            assert await ask(check_of(**ask_for), version) == Finding(said="answered 'ÿba'")
            assert await ask(check_of(**ask_for, expect="c"), version) == Finding(
                "answered 'ÿba', expected 'c'"
            )
        assert await ask(check_of(**ask_for), version) == Finding("refused")

    asyncio.run(body())


def name_server(rcode: dns.rcode.Rcode, *records: str) -> Callable[[bytes], bytes]:
    def answer(data: bytes) -> bytes:
        question = dns.message.from_wire(data)
        response = dns.message.make_response(question)
        response.set_rcode(rcode)
        if records:
            response.answer = [dns.rrset.from_text(question.question[0].name, 60, "IN", "A", *records)]
        return response.to_wire()

    return answer


@both
@pytest.mark.parametrize(
    ("answer", "expect", "found"),
    [
        (name_server(dns.rcode.NOERROR, "10.0.0.7"), "", Finding(said="answered 10.0.0.7")),
        (
            name_server(dns.rcode.NOERROR, "10.0.0.7", "10.0.0.8"),
            "10.0.0.8",
            Finding(said="answered 10.0.0.8"),
        ),
        (
            name_server(dns.rcode.NOERROR, "10.0.0.7"),
            "10.0.0.8",
            Finding("answered '10.0.0.7', expected 10.0.0.8"),
        ),
        (name_server(dns.rcode.NOERROR), "", Finding("answered no record, expected one")),
        (name_server(dns.rcode.SERVFAIL), "", Finding("answered SERVFAIL")),
        (lambda _: b"garbage", "", Finding("answered no DNS: 'garbage'")),
        (lambda data: bytes([data[0] ^ 1]) + data[1:], "", Finding("answered something else")),
    ],
)
def test_dns(version: int, answer: Callable[[bytes], bytes], expect: str, found: Finding) -> None:
    async def body() -> None:
        async with datagrams(answer, version) as port:
            check = check_of(type="dns", port=port, name="www.example.org", expect=expect)
            assert await ask(check, version) == found

    asyncio.run(body())


@both
@pytest.mark.parametrize(
    ("greeting", "found"),
    [
        (b"220 mail ESMTP\r\n", Finding(said="greeted with '220 mail ESMTP'")),
        (b"220-mail\r\n220 ESMTP\r\n", Finding(said="greeted with '220-mail'")),
        (b"554 go away\r\n", Finding("greeted with '554 go away'")),
        (b"x" * 100_000, Finding(f"answered '{'x' * 60}'..., no line")),
    ],
)
def test_smtp(version: int, greeting: bytes, found: Finding) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        assert await reader.readline() == b"QUIT\r\n"
        writer.write(b"221 bye\r\n")
        await reader.read()

    async def body() -> None:
        async with server(serve, version) as port:
            assert await ask(check_of(type="smtp", port=port), version) == found

    asyncio.run(body())


@both
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("up", Finding(said="up")),
        ("75%", Finding(said="answered '75%'", percent=75)),
        ("ready up 50%", Finding(said="up", percent=50, wanted="ready")),
        ("drain", Finding(said="answered 'drain'", wanted="drain")),
        ("maint", Finding(said="answered 'maint'", wanted="maintenance")),
        ("down", Finding("down", said="answered 'down'")),
        ("stopped#no disk", Finding("stopped: 'no disk'", said="answered 'stopped#no disk'")),
        ("MAXCONN:30, 20%", Finding(said="answered 'MAXCONN:30, 20%'", percent=20)),
        ("hello", None),
        ("", None),
    ],
)
def test_agent(version: int, line: str, found: Finding | None) -> None:
    async def body() -> None:
        async with server(says(line.encode() + b"\n"), version) as port:
            assert await ask(check_of(type="agent", port=port), version) == found

    asyncio.run(body())


def test_an_agent_that_is_not_there_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        async with server(hang) as port:
            assert await ask(check_of(type="agent", port=port, timeout_s=0.1)) is None
        assert await ask(check_of(type="agent", port=port)) is None

    asyncio.run(body())
    assert 'cause="no answer within 0.1 s" effect="its last word holds"' in caplog.text
    assert "cause=refused" in caplog.text


def script(folder: Path, text: str) -> str:
    # Where others may read it, too.
    path = folder / "check"
    path.write_text(f"#!/bin/sh\n{text}\n")
    for each in (path, *folder.parents[:2], folder):
        each.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "weighted", "found"),
    [
        ("exit 0", False, Finding(said="status 0")),
        ("exit 0", True, Finding(said="status 0")),
        ("echo gone; echo more; exit 3", False, Finding("status 3, 'gone'")),
        ("exit 1", True, Finding("status 1")),
        ("exit 12", True, Finding(said="status 12", weight=10)),
        ('echo "$1 $(id -un) $HOME"', False, Finding(said="status 0, '127.0.0.1 nobody'")),
        ("head -c 1000000 /dev/zero | tr '\\000' z", False, Finding(said=f"status 0, '{'z' * 60}'...")),
        ("kill -9 $$", True, Finding("status -9")),
        ("sleep 60 & exit 0", False, Finding(said="status 0")),
    ],
)
def test_command(tmp_path: Path, text: str, weighted: bool, found: Finding) -> None:
    program = script(tmp_path, text)
    check = check_of(type="command", run=[program, "{address}"], weighted=weighted)
    assert asyncio.run(ask(check)) == found


def test_a_command_that_hangs_ends_with_its_children(tmp_path: Path) -> None:
    program = script(tmp_path, "sleep 61.7 & sleep 61.7")

    def sleeping() -> bool:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if b"61.7" in path.read_bytes():
                    return True
        return False

    async def body() -> None:
        assert await ask(check_of(type="command", run=["/bin/true"])) == Finding(said="status 0")
        before = len(os.listdir("/proc/self/fd"))
        assert await ask(check_of(type="command", run=[program], timeout_s=0.3)) == Finding(
            "no answer within 0.3 s"
        )
        async with asyncio.timeout(DEADLINE_S):
            while sleeping() or len(os.listdir("/proc/self/fd")) > before:
                await asyncio.sleep(0.01)

    asyncio.run(body())


def test_a_command_that_cannot_be_run_is_no_backends_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = script(tmp_path, "exit 0")
    check = check_of(type="command", run=[program])
    Path(program).unlink()
    assert asyncio.run(ask(check)) is None
    assert "event=checks-hindered" in caplog.text


BAD = {
    "hang": hang,
    "trickle": trickle,
    "gigabyte": gigabyte,
    "reset": reset,
    "garbage": says(b"\x00\xff" * 500),
}
ASKING: dict[str, dict[str, Any]] = {
    "tcp": {"send": "hello", "expect": "never"},
    "http": {"expect": "never"},
    "https": {"expect": "never"},
    "tls": {"expect": "never"},
    "smtp": {},
    "agent": {},
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize(
    ("kind", "encrypted"), [*((kind, False) for kind in ASKING), ("https", True), ("tls", True)]
)
def test_a_bad_server_costs_one_slot_and_one_line(
    kind: str, name: str, encrypted: bool, tmp_path: Path
) -> None:
    tls = certificate(tmp_path, 1)[0] if encrypted else None
    check = check_of(type=kind, port=1, timeout_s=0.4, **ASKING[kind])

    async def body() -> None:
        loop = asyncio.get_running_loop()
        complaints: list[Any] = []
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        async with server(BAD[name], tls=tls) as port:
            await ask(check.model_copy(update={"port": port}))  # whatever is made once
            before = len(os.listdir("/proc/self/fd"))
            started_s = loop.time()
            found = await ask(check.model_copy(update={"port": port}))
            assert loop.time() - started_s < 2
            if kind == "agent":
                assert found is None
            else:
                assert found
                assert found.fault
                assert len(found.fault) < 300
                assert found.fault.isprintable()
            if name == "gigabyte":
                assert sent < 16 << 20  # the kernel's buffers, not the whole
            async with asyncio.timeout(DEADLINE_S):
                while len(os.listdir("/proc/self/fd")) > before:
                    await asyncio.sleep(0.01)
        assert not complaints

    asyncio.run(body())


@pytest.mark.parametrize("kind", [*ASKING, "udp", "dns", "icmp"])
def test_no_name_is_ever_looked_up(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: Any, **__: Any) -> None:
        raise AssertionError("a name was looked up")

    more = {"udp": {"send": "x"}, "dns": {"name": "example.org"}}.get(kind, {})

    async def body() -> None:
        async with server(says(b"220 hello up 10%\r\n")) as port:
            for name in ("getaddrinfo", "gethostbyname", "getnameinfo"):
                monkeypatch.setattr(socket, name, look_up)
            settings = {} if kind == "icmp" else {"port": port}
            found = await ask(check_of(type=kind, timeout_s=0.2, **settings, **more))
            assert "looked up" not in str(found)

    asyncio.run(body())


def test_a_certificate_that_changes_is_seen(tmp_path: Path) -> None:
    first, path = certificate(tmp_path, 10)
    second, _ = certificate(tmp_path, 20)

    async def body() -> None:
        for context, days in ((first, 10), (second, 20)):
            async with server(hang, tls=context) as port:
                found = await ask(check_of(type="tls", port=port))
                assert found
                assert found.certificate_expires_s == pytest.approx(time.time() + days * 86_400, abs=60)
                known = {"verify": True, "ca_file": str(path), "server_name": "web.example"}
                verified = await ask(check_of(type="tls", port=port, **known))
                assert verified
                assert bool(verified.fault) == (context is second)

    asyncio.run(body())


def test_every_kind_has_words_for_people() -> None:
    settings: dict[str, dict[str, Any]] = {
        "tcp": {"port": 80},
        "udp": {"port": 5_000, "send": "x"},
        "dns": {"name": "example.org"},
        "agent": {"port": 9_999},
        "command": {"run": ["/bin/true"]},
    }
    said = {}
    for each in CHECKS:
        kind = str(each.model_fields["type"].default)
        check = check_of(type=kind, **settings.get(kind, {}))
        endpoint = Endpoint(ip_address("fd00::1"), check.port_of(None, None))
        said[kind] = (check.question(endpoint), str(check))
    assert said == {
        "tcp": ("connect to [fd00::1]:80", "TCP port 80"),
        "http": ("GET http://[fd00::1]:80/", "HTTP GET /"),
        "https": ("GET https://[fd00::1]:443/", "HTTPS GET /"),
        "tls": ("TLS with [fd00::1]:443", "TLS"),
        "icmp": ("ping fd00::1", "ICMP echo"),
        "udp": ("ask udp [fd00::1]:5000", "UDP port 5000"),
        "dns": ("ask [fd00::1]:53 for A example.org", "DNS A example.org"),
        "smtp": ("SMTP with [fd00::1]:25", "SMTP"),
        "command": ("run /bin/true for fd00::1", "command /bin/true"),
        "agent": ("ask the agent at [fd00::1]:9999", "agent port 9999"),
    }
