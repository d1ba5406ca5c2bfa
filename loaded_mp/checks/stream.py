"""Connections of checks: bounded in bytes, ended at once, with or without TLS."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import lru_cache, partial

from cryptography import x509
from pydantic import Field, ValidationInfo, field_validator

from loaded_mp.checks.check import (
    MAX_ANSWER_BYTES,
    Bytes,
    Check,
    Expression,
    Fault,
    LocalError,
    PortCheck,
    matches,
    shown,
)
from loaded_mp.fields import Endpoint

#: Closing resets the connection: neither side is left with TIME_WAIT, and nobody waits for a FIN.
_LINGER_RESET = struct.pack("ii", 1, 0)


class Conversation(PortCheck):
    """The settings of a check that may say something on its connection, and wait for an answer."""

    send: Bytes = ""
    expect: Expression = ""  #: found in what is answered; empty: nothing is waited for


class OverTls(Check):
    """The settings of a check whose connection is encrypted."""

    server_name: str = Field(
        default="", max_length=253
    )  #: for SNI, and for whom the certificate is; empty: the address
    verify: bool = False  #: whether the certificate must be good; else any will do
    ca_file: str | None = None  #: who signs; None: the system's

    @field_validator("ca_file")
    @classmethod
    def _signs(cls, path: str | None, info: ValidationInfo) -> str | None:
        if path is None:
            return None
        if not info.data.get("verify"):
            raise ValueError("expected verify = true beside it")
        if not path.startswith("/"):
            raise ValueError("expected a whole path")
        try:
            _context(True, path)
        except OSError as error:
            raise ValueError(f"expected certificates in PEM ({error})") from None
        return path


class Stream:
    """A connection that gives at most MAX_ANSWER_BYTES."""

    def __init__(
        self,
        send: Callable[[bytes], Awaitable[None]],
        receive: Callable[[int], Awaitable[bytes]],
        certificate: bytes | None = None,
    ) -> None:
        """`certificate`: of the other side, in DER."""
        self._send, self._receive, self._certificate = send, receive, certificate
        self._left = MAX_ANSWER_BYTES

    async def send(self, data: bytes) -> None:
        """Give data to the kernel. Raises OSError."""
        await self._send(data)

    @property
    def is_over(self) -> bool:
        """Whether the bound is reached."""
        return not self._left

    async def receive(self) -> bytes:
        """What comes next; empty at the end, or where the bound is. Raises OSError."""
        data = await self._receive(self._left) if self._left else b""
        self._left -= len(data)
        return data

    async def line(self) -> str:
        """All up to the end of the first line, without it. Raises Fault if there is none, OSError."""
        answer = b""
        while b"\n" not in answer:
            data = await self.receive()
            if not data:
                raise Fault(f"answered {shown(answer.decode('latin-1'))}, no line" if answer else "closed")
            answer += data
        return answer.partition(b"\n")[0].decode("latin-1").strip()

    async def converse(self, send: str, expect: str) -> str:
        """Say something and wait for what is expected; all that was answered. Raises Fault, OSError."""
        if send:
            await self.send(send.encode("latin-1"))
        answer = ""
        while expect and not matches(expect, answer):
            data = await self.receive()
            if not data:
                raise Fault(f"answered {shown(answer)}, expected {expect!r}" if answer else "closed")
            answer += data.decode("latin-1")
        return answer

    def certificate_expires_s(self) -> float | None:
        """When the certificate of the other side expires, Unix time; None without TLS."""
        if self._certificate is None:
            return None
        return x509.load_der_x509_certificate(self._certificate).not_valid_after_utc.timestamp()


@contextlib.asynccontextmanager
async def connected(endpoint: Endpoint, tls: OverTls | None = None) -> AsyncIterator[Stream]:
    """A connection while the context lasts. Raises Fault (of TLS), OSError, LocalError."""
    connection = await connect(endpoint)
    if tls:
        async with _encrypted(connection, tls, str(endpoint.ip)) as stream:
            yield stream
        return
    loop = asyncio.get_running_loop()
    with connection:
        yield Stream(partial(loop.sock_sendall, connection), partial(loop.sock_recv, connection))


@contextlib.asynccontextmanager
async def _encrypted(connection: socket.socket, tls: OverTls, address: str) -> AsyncIterator[Stream]:
    """TLS over a connection, which ends with it."""
    try:
        context = _context(tls.verify, tls.ca_file)
    except OSError as error:
        connection.close()
        raise LocalError(f"{tls.ca_file}: {error}") from None
    try:
        reader, writer = await asyncio.open_connection(
            sock=connection, ssl=context, server_hostname=tls.server_name or address, limit=MAX_ANSWER_BYTES
        )
    except ssl.SSLError as error:
        raise Fault(f"no TLS: {_reason(error)}") from None

    async def send(data: bytes) -> None:
        writer.write(data)
        await writer.drain()

    try:
        yield Stream(send, reader.read, writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
    except ssl.SSLError as error:
        raise Fault(f"TLS broke: {_reason(error)}") from None
    finally:
        writer.transport.abort()


async def connect(endpoint: Endpoint) -> socket.socket:
    """A connection, to be closed by whoever asked. Raises OSError."""
    family = socket.AF_INET if endpoint.version == 4 else socket.AF_INET6
    connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        await asyncio.get_running_loop().sock_connect(connection, (str(endpoint.ip), endpoint.port or 0))
    except BaseException:
        connection.close()
        raise
    return connection


@lru_cache(maxsize=64)
def _context(verify: bool, ca_file: str | None) -> ssl.SSLContext:
    if verify:
        return ssl.create_default_context(cafile=ca_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused, {error.verify_message.rstrip('.')}"
    return (error.reason or str(error)).lower().replace("_", " ")
