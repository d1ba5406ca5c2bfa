"""The HTTP and HTTPS checks: what a web server answers to one request."""

import re
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

import h11
from pydantic import AfterValidator, BeforeValidator, Field

from loaded_mp.checks.check import Expression, Fault, Finding, PortCheck, matches, shown
from loaded_mp.checks.stream import OverTls, Stream, connected
from loaded_mp.fields import Endpoint


def _statuses(text: str) -> str:
    first, dash, last = text.partition("-")
    if not (first.isdecimal() and (last.isdecimal() or not dash)):
        raise ValueError("expected a status or a range FIRST-LAST, as in 200-399")
    if not 100 <= int(first) <= int(last or first) <= 599:
        raise ValueError("expected statuses within 100-599")
    return text


def _header(line: str) -> str:
    name, colon, value = line.partition(":")
    if not (re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) and colon and re.fullmatch("[ -~]*", value)):
        raise ValueError("expected NAME: VALUE")
    if name.lower() in ("content-length", "transfer-encoding"):
        raise ValueError("expected no header of a body: none is sent")
    return line


def _visible(text: str) -> str:
    if not re.fullmatch("[!-~]*", text):
        raise ValueError("expected visible ASCII characters, others as %XX")
    return text


Visible = Annotated[str, AfterValidator(_visible)]

#: `200`, `"200"` or `"200-399"`.
Statuses = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if type(value) is int else value),
    AfterValidator(_statuses),
]


class WebCheck(PortCheck):
    """Ask for a page. Redirects are answers, and not followed."""

    method: Literal["GET", "HEAD", "OPTIONS", "POST"] = "GET"
    path: Visible = Field(default="/", min_length=1, max_length=2_048)
    host: Visible = Field(default="", max_length=253)  #: the header; empty: the address
    headers: tuple[Annotated[str, AfterValidator(_header)], ...] = Field(
        default=(), max_length=32
    )  #: as in `Accept: text/html`
    status: tuple[Statuses, ...] = Field(default=("200-399",), min_length=1)
    expect: Expression = ""  #: found in the first 64 KiB of the answer; empty: its body is not fetched

    scheme: ClassVar[str] = "http"

    async def attempt(self, endpoint: Endpoint) -> Finding:
        """Serves if status and body are as expected."""
        async with connected(endpoint, self._tls()) as stream:
            expires_s = stream.certificate_expires_s()
            status = await self._ask(stream, _request(self, self.host or str(endpoint)))
        return Finding(said=f"status {status}", certificate_expires_s=expires_s)

    def _tls(self) -> OverTls | None:
        return None

    async def _ask(self, stream: Stream, request: h11.Request) -> int:
        http = h11.Connection(h11.CLIENT)
        await stream.send((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
        status, body = 0, b""
        while True:
            try:
                event = http.next_event()
            except h11.RemoteProtocolError as error:
                raise Fault(f"answered no HTTP: {error}") from None
            if event is h11.NEED_DATA:
                if stream.is_over:
                    break
                data = await stream.receive()
                if not (data or status):
                    raise Fault("closed")
                http.receive_data(data)
            elif isinstance(event, h11.Response):
                status = event.status_code
                if not any(_covers(each, status) for each in self.status):
                    raise Fault(f"status {status}")
                if not self.expect:
                    return status
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                break
        answer = body.decode(errors="replace")
        if not matches(self.expect, answer):
            raise Fault(f"status {status}, answered {shown(answer)}, expected {self.expect!r}")
        return status

    def question(self, endpoint: Endpoint) -> str:
        """As in "GET http://10.0.0.1:80/"."""
        return f"{self.method} {self.scheme}://{endpoint}{self.path}"

    def __str__(self) -> str:
        return f"{self.scheme.upper()} {self.method} {self.path}{self.at_port}"


class HttpCheck(WebCheck):
    """Over a bare connection."""

    type: Literal["http"] = "http"

    usual_port: ClassVar[int | None] = 80


class HttpsCheck(OverTls, WebCheck):
    """Over TLS."""

    type: Literal["https"] = "https"

    usual_port: ClassVar[int | None] = 443
    scheme: ClassVar[str] = "https"

    def _tls(self) -> OverTls:
        return self


@lru_cache(maxsize=16_384)
def _request(check: WebCheck, host: str) -> h11.Request:
    """Kept: making one takes longer than sending it."""
    pairs = [line.partition(":")[::2] for line in check.headers]
    headers: list[Any] = [(name.strip(), value.strip()) for name, value in pairs]
    more = [("Host", host), ("User-Agent", "loaded-mp"), ("Connection", "close")]
    headers += [pair for pair in more if pair[0].lower() not in {name.lower() for name, _ in headers}]
    return h11.Request(method=check.method, target=check.path, headers=headers)


def _covers(statuses: str, status: int) -> bool:
    first, _, last = statuses.partition("-")
    return int(first) <= status <= int(last or first)
