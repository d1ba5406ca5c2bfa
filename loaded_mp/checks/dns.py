"""The DNS check: what a name server answers."""

from typing import Annotated, ClassVar, Literal

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
from pydantic import AfterValidator

from loaded_mp.checks.check import Fault, Finding, PortCheck, shown
from loaded_mp.checks.datagram import asked
from loaded_mp.fields import Endpoint


def _name(text: str) -> str:
    try:
        dns.name.from_text(text)
    except dns.exception.DNSException as error:
        raise ValueError(f"expected a name ({error})") from None
    return text


def _record(text: str) -> str:
    try:
        dns.rdatatype.from_text(text)
    except (dns.exception.DNSException, ValueError):
        raise ValueError("expected a type of records, as in A, AAAA or SOA") from None
    return text


class DnsCheck(PortCheck):
    """Ask for a record of a name."""

    type: Literal["dns"] = "dns"
    name: Annotated[str, AfterValidator(_name)]
    record: Annotated[str, AfterValidator(_record)] = "A"
    expect: str = ""  #: one of the answers, as a zone file has it; empty: any will do

    usual_port: ClassVar[int | None] = 53

    async def attempt(self, endpoint: Endpoint) -> Finding:
        """Serves if the record is answered."""
        question = dns.message.make_query(self.name, self.record)
        async with asked(endpoint, question.to_wire()) as answered:
            return Finding(said=self._answer(question, await answered()))

    def _answer(self, question: dns.message.Message, data: bytes) -> str:
        try:
            answer = dns.message.from_wire(data)
        except (dns.exception.DNSException, ValueError):
            raise Fault(f"answered no DNS: {shown(data.decode('latin-1'))}") from None
        if not question.is_response(answer):
            raise Fault("answered something else")
        if answer.rcode() != dns.rcode.NOERROR:
            raise Fault(f"answered {dns.rcode.to_text(answer.rcode())}")
        records = [record.to_text() for records in answer.answer for record in records]
        if not records or (self.expect and self.expect not in records):
            said = shown(", ".join(records)) if records else "no record"
            raise Fault(f"answered {said}, expected {self.expect or 'one'}")
        return f"answered {self.expect or records[0]}"

    def question(self, endpoint: Endpoint) -> str:
        """As in "ask 10.0.0.1:53 for A example.org"."""
        return f"ask {endpoint} for {self.record} {self.name}"

    def __str__(self) -> str:
        return f"DNS {self.record} {self.name}{self.at_port}"
