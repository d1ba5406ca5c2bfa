"""Turning a TCP segment into a reset, so that the end that it goes to learns that its connection is over."""

from enum import IntEnum

from loaded_mp.compiled import Bytes, compiled, signed
from loaded_mp.packet.checksum import adjust, read16, write16
from loaded_mp.packet.header import Header
from loaded_mp.packet.rewrite import complete_checksum

_FIN, _SYN, _RST, _ACK = 1, 2, 4, 16
_TCP_HEADER = 20


class Step(IntEnum):
    """What a TCP segment is in the life of its connection (RFC 9293, 3.5 and 3.6)."""

    GOES_ON = 0
    BEGINS = 1  #: a SYN
    ANSWERS = 2  #: the answer to one
    ENDS = 3  #: a FIN
    BREAKS = 4  #: a reset


@compiled
def step_of(packet: Bytes, header: Header) -> int:
    """The Step of a well-formed TCP segment."""
    flags = signed(packet[header.upper + 13])
    if flags & (_FIN | _SYN | _RST) == 0:
        return Step.GOES_ON
    if flags & _RST:
        return Step.BREAKS
    if flags & _SYN:
        return Step.ANSWERS if flags & _ACK else Step.BEGINS
    return Step.ENDS


@compiled
def says_something(packet: Bytes, header: Header) -> bool:
    """Whether a well-formed TCP segment carries data or a FIN, which its receiver has to acknowledge."""
    data = header.upper + 4 * (signed(packet[header.upper + 12]) >> 4)
    return bool(header.end > data or signed(packet[header.upper + 13]) & _FIN)


@compiled
def refuses(packet: Bytes, header: Header) -> bool:
    """Whether a well-formed TCP segment refuses a connection: it resets a SYN (RFC 9293, 3.5.2)."""
    answer = signed(packet[header.upper + 13]) & (_SYN | _RST | _ACK) == _RST | _ACK
    return answer and read16(packet, header.upper + 4) == 0 and read16(packet, header.upper + 6) == 0


@compiled
def make_reset(packet: Bytes, header: Header, keep_length: bool) -> int:
    """Make a well-formed TCP segment a reset of the same connection and direction.

    Its sequence number is the one that the receiver expects next, as the segment was the next one (RFC 5961,
    3.2). With `keep_length` it carries what it carried, which a reset may (RFC 9293, 3.5.3). Returns the
    offset of the first byte behind it.
    """
    upper = header.upper
    packet[upper + 13] = _RST | (signed(packet[upper + 13]) & _ACK)
    if keep_length:
        complete_checksum(packet, header)
        return header.end
    end = upper + _TCP_HEADER
    packet[upper + 12] = _TCP_HEADER // 4 << 4
    write16(packet, upper + 14, 0)
    write16(packet, upper + 18, 0)
    if header.version == 4:
        length = header.start + 2
        before = read16(packet, length)
        write16(packet, length, end - header.start)
        adjust(packet, header.start + 10, 0xFFFF - before + end - header.start)
    else:
        write16(packet, header.start + 4, end - header.start - 40)
    whole = Header(
        header.reason,
        header.version,
        header.start,
        header.kind,
        header.protocol,
        upper,
        end,
        header.checksum,
    )
    complete_checksum(packet, whole)
    return end
