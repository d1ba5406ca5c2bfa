"""What ipvsadm and keepalived share: the words of LVS."""

from ipaddress import ip_address, ip_network
from typing import Any

from loaded_mp.importing.found import Setting, Table, Word, number
from loaded_mp.importing.virtual import Entrance, Way

Timeouts = tuple[Setting, Setting, Setting]  #: seconds of TCP, TCP after a FIN, UDP; 0: as they are

#: How long LVS keeps connections unless it is told so (net/netfilter/ipvs/ip_vs_proto_*.c).
_TCP_S, _UDP_S, _SCTP_S = 900, 300, 900
#: Of a persistence that says none.
PERSISTENCE_S = 360

_FORWARDINGS = {"NAT": "rewrite", "DR": "dr", "TUN": "tunnel"}

_BY_PORT = "the client's port does not count here; a scheduler in turn spreads one client"
#: Flags of schedulers. Fallback is always so here: only backends that serve are chosen among.
_FLAGS = {
    "sh-fallback": "",
    "mh-fallback": "",
    "flag-1": "",
    "sh-port": _BY_PORT,
    "mh-port": _BY_PORT,
    "flag-2": _BY_PORT,
}


def service_name(entrance: Entrance) -> str:
    """As in tcp-192.0.2.10-80."""
    protocol, _, port = entrance.listen.value.partition("/")
    return f"{protocol}-{entrance.vip.value}-{port or 'all'}" if entrance.vip else f"{protocol}-{port}"


def way_of(method: str, word: Word, kind: str = "", port: str = "", kind_word: Word | None = None) -> Way:
    """NAT, DR or TUN; of a tunnel also which, which is ipip unless it says so, and its port."""
    tunnel: dict[str, Any] = {"kind": kind} if kind not in ("", "ipip") else {}
    tunnel |= {"port": number(port)} if port else {}
    way = Setting(_FORWARDINGS.get(method.upper(), method), word)
    return Way(way, Setting(tunnel, kind_word or word) if tunnel else None)


def put_number(table: Table, name: str, text: str, word: Word) -> None:
    """A weight, or a threshold, of which 0 is none."""
    value = number(text)
    if value != 0 or name == "weight":
        table.put(name, value, word)


def put_affinity(table: Table, persistence: Setting | None, mask: Setting | None, ops: Word | None) -> None:
    """What `-p`, `-M` and `-o` say; without them each connection goes by itself."""
    if ops:
        table.put("affinity", "none", ops)
    elif not persistence:
        table.put("affinity", "connection", table.word, "there is no persistence")
    if persistence and not ops:
        table.put("affinity", "source", persistence.word)
    if mask and persistence and not ops:
        try:
            table.put("affinity", f"source{_prefix(mask.value)}", mask.word)
        except ValueError:
            table.left_out.append(mask.word.left_out("expected a netmask or a prefix length"))
    elif mask:
        table.left_out.append(mask.word.left_out("there is no persistence that it is for"))


def _prefix(mask: str) -> str:
    """What `source` has behind it: of a netmask, or a prefix length of IPv6. Raises ValueError."""
    if mask.isdecimal():
        return "" if mask == "128" else f"/{mask}" if int(mask) > 32 else f"/32/{mask}"
    length = ip_network(f"0.0.0.0/{ip_address(mask)}").prefixlen
    return "" if length == 32 else f"/{length}"


def put_idle_times(
    table: Table, entrance: Entrance, persistence: Setting | None, timeouts: Timeouts | None
) -> None:
    """A client is kept for the time of its persistence, and no shorter than LVS keeps its connections."""
    protocol = entrance.listen.value.partition("/")[0]
    tcp, tcp_fin, udp = timeouts or (None, None, None)
    for name, own, said, default_s in (
        ("tcp_idle_s", "tcp", tcp, _TCP_S),
        ("udp_idle_s", "udp", udp, _UDP_S),
        ("other_idle_s", "sctp", None, _SCTP_S),
    ):
        if protocol not in (own, "mark"):
            continue
        told = said if said and said.value else None
        if persistence and isinstance(persistence.value, int):
            least = told.value if told and isinstance(told.value, int) else default_s
            note = "so long LVS keeps a connection" if least > persistence.value else ""
            table.put(name, max(persistence.value, least), persistence.word, note)
        elif told:
            table.put(name, told.value, told.word)
    if tcp_fin and tcp_fin.value and protocol in ("tcp", "mark"):
        table.put("tcp_fin_idle_s", tcp_fin.value, tcp_fin.word)


def put_flags(table: Table, flags: list[str], word: Word) -> None:
    """What a scheduler's flags say."""
    for flag in flags:
        if why := _FLAGS.get(flag, "there is no such flag"):
            table.left_out.append(word.left_out(f"{flag}: {why}" if flag != word.text else why))
