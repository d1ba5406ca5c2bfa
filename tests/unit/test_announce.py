"""Announcements of addresses, judged by scapy."""

from ipaddress import IPv4Address, IPv6Address

from scapy.all import ARP, Ether, ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6, raw

from loaded_mp.network.announce import announcement

MAC = bytes.fromhex("02000000000a")
MAC_TEXT = "02:00:00:00:00:0a"


def test_an_arp_announcement_is_a_request_for_ones_own_address() -> None:
    arp = ARP(op="who-has", hwsrc=MAC_TEXT, psrc="192.0.2.10", hwdst="00:00:00:00:00:00", pdst="192.0.2.10")
    wanted = Ether(src=MAC_TEXT, dst="ff:ff:ff:ff:ff:ff") / arp
    assert announcement(MAC, IPv4Address("192.0.2.10")) == raw(wanted)


def test_a_neighbor_advertisement_overrides_what_was_known() -> None:
    vip = "2001:db8:10::10"
    wanted = (
        Ether(src=MAC_TEXT, dst="33:33:00:00:00:01")
        / IPv6(src=vip, dst="ff02::1", hlim=255)
        / ICMPv6ND_NA(R=1, S=0, O=1, tgt=vip)
        / ICMPv6NDOptDstLLAddr(lladdr=MAC_TEXT)
    )
    assert announcement(MAC, IPv6Address(vip)) == raw(wanted)
