"""Ways of asking whether a backend serves, one file each. They say what they found, and decide nothing."""

from loaded_mp.checks.agent import AgentCheck
from loaded_mp.checks.check import Check
from loaded_mp.checks.command import CommandCheck
from loaded_mp.checks.dns import DnsCheck
from loaded_mp.checks.http import HttpCheck, HttpsCheck
from loaded_mp.checks.icmp import IcmpCheck
from loaded_mp.checks.smtp import SmtpCheck
from loaded_mp.checks.tcp import TcpCheck
from loaded_mp.checks.tls import TlsCheck
from loaded_mp.checks.udp import UdpCheck

#: All of them; the first is meant where a configuration names no type.
CHECKS: tuple[type[Check], ...] = (
    TcpCheck,
    HttpCheck,
    HttpsCheck,
    TlsCheck,
    IcmpCheck,
    UdpCheck,
    DnsCheck,
    SmtpCheck,
    CommandCheck,
    AgentCheck,
)
