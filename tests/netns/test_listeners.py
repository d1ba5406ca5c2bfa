"""What is balanced beside TCP and UDP: real packets of other protocols, by networks as VIPs, and by marks."""

import sys
from collections.abc import Iterator

import pytest

from loaded_mp.lab.daemon import loaded_mp
from loaded_mp.lab.lab import VIPS, Lab, Options
from loaded_mp.lab.wait import wait_until

FORWARDINGS = ("rewrite", "conntrack")
both = pytest.mark.parametrize(
    "forwarding", [FORWARDINGS[0], pytest.param(FORWARDINGS[1], marks=pytest.mark.long)]
)
NETWORKS = ("192.0.2.16/28", "2001:db8:10::20/124")
INSIDE = (("192.0.2.17", "192.0.2.30"), ("2001:db8:10::21", "2001:db8:10::2f"))
#: Where there are no ports, client and backend have one connection, and another way cannot begin it anew.
NUMBERS = dict(zip(FORWARDINGS, (200, 201), strict=True))
SCTP = 132
#: Sends back what comes by a protocol, with its name.
ECHO = """
import selectors, socket, sys
name, numbers = sys.argv[1].encode(), [int(each) for each in sys.argv[2].split(",")]
selector = selectors.DefaultSelector()
for address in sys.argv[3:]:
    for number in numbers:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        server = socket.socket(family, socket.SOCK_RAW, number)
        server.bind((address, 0))
        selector.register(server, selectors.EVENT_READ, 20 if family == socket.AF_INET else 0)
print("ready", flush=True)
while True:
    for key, _ in selector.select():
        data, client = key.fileobj.recvfrom(2000)
        data = data[key.data:]
        key.fileobj.sendto(data[2:4] + data[:2] + data[4:] + name, client)
"""
#: Sends a packet and prints what comes back from the same address.
ASK = """
import socket, sys
address, number, data = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
client = socket.socket(family, socket.SOCK_RAW, number)
client.settimeout(float(sys.argv[4]))
client.connect((address, 0))
client.send(data)
try:
    print(client.recv(2000)[20 if family == socket.AF_INET else 0:][len(data):].decode())
except OSError as error:
    print("nothing:", error)
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Options(sources=3)) as lab:
        for network, gateway in zip(NETWORKS, ("198.18.255.254", "2001:db8:1::ffff"), strict=True):
            lab.client.ip(f"route add {network} via {gateway}")
        for backend in lab.backends:
            numbers = ",".join(map(str, (*NUMBERS.values(), SCTP)))
            words = (backend.name, numbers, backend.ipv4, backend.ipv6)
            server = backend.namespace.talk(sys.executable, "-c", ECHO, *words)
            assert server.stdout
            assert server.stdout.readline() == "ready\n"
        yield lab


def ask(lab: Lab, address: str, number: int, data: str = "00010002aabb", timeout_s: float = 5) -> str:
    return lab.client.run(
        sys.executable, "-c", ASK, address, str(number), data, str(timeout_s)
    ).stdout.strip()


def config(lab: Lab, forwarding: str, listen: str) -> str:
    vips = ", ".join(f'"{each}"' for each in NETWORKS)
    text = lab.config(workers=2, service=f'forwarding = "{forwarding}"\nlisten = [{listen}]', checked=False)
    start, end = text.index("vips = "), text.index("\n", text.index("vips = "))
    return text[:start] + f"vips = [{vips}]" + text[end:]


@both
def test_other_protocols_and_each_address_of_a_network(lab: Lab, forwarding: str) -> None:
    number = NUMBERS[forwarding]
    routes = lab.balancer.run("ip", "route", "show", "table", "all").stdout
    daemon = lab.daemon(config(lab, forwarding, f'"proto/{number}", "tcp/80"'))
    names = {each.name for each in lab.backends}
    for vips in INSIDE:
        for place, vip in enumerate(vips):
            if place == 0 or forwarding == "rewrite":  # to NAT both would be one connection with the backend
                assert ask(lab, vip, number) in names
            url = f"http://[{vip}]/" if ":" in vip else f"http://{vip}/"
            assert lab.client.run("curl", "-sg", url).stdout.strip() in names
    nobody = lab.client.run("curl", "-s", "-m", "5", f"http://{INSIDE[0][0]}:81/", check=False)
    assert nobody.returncode == 7  # refused by the balancer itself, not passed around
    lab.balancer.ip(f"route del local {NETWORKS[0]} dev public")
    wait_until(
        lambda: NETWORKS[0] in lab.balancer.run("ip", "route", "show", "table", "local").stdout, "mended"
    )
    assert f"VIP {NETWORKS[0]}" in lab.balancer.run(loaded_mp(), "status").stdout
    daemon.stop()
    now = lab.balancer.run("ip", "route", "show", "table", "all").stdout
    assert not any(each in now and each not in routes for each in NETWORKS)


@both
def test_what_rules_of_the_operators_mark_goes_by_the_mark(lab: Lab, forwarding: str) -> None:
    """Rules that stand before the start come first, and so does one that is inserted later."""
    table = "raw" if forwarding == "rewrite" else "mangle"
    names = {each.name for each in lab.backends}

    def mark(source: str, word: str) -> None:
        tool = "ip6tables" if ":" in source else "iptables"
        rule = f"-t {table} {word} PREROUTING -s {source} -p tcp --dport 80 -j MARK --set-mark 7"
        lab.balancer.run(tool, *rule.split())

    def answer(source: str, vip: str) -> str:
        words = (
            "curl",
            "-sg",
            "-m",
            "5",
            "--interface",
            source,
            f"http://{f'[{vip}]' if ':' in vip else vip}/",
        )
        return lab.client.run(*words, check=False).stdout.strip()

    for sources in (lab.sources4, lab.sources6):
        mark(sources[0], "-A")
    daemon = lab.daemon(config(lab, forwarding, '"mark/7"'))
    for sources, vips in zip((lab.sources4, lab.sources6), INSIDE, strict=True):
        home = answer(sources[0], vips[0])
        assert home in names
        assert answer(sources[0], vips[1]) == home
        assert answer(sources[1], vips[0]) == ""
        mark(sources[1], "-I")
        assert answer(sources[1], vips[0]) in names
        for source in sources[:2]:
            mark(source, "-D")
    daemon.stop()


@pytest.mark.long
def test_sctp_goes_by_its_ports(lab: Lab) -> None:
    """Its packets here are none that conntrack takes for good, so that the kernel's NAT leaves them alone."""
    daemon = lab.daemon(lab.config(workers=2, service='listen = ["sctp/2905"]', checked=False))
    names = {each.name for each in lab.backends}
    for vip in VIPS:
        assert ask(lab, vip, SCTP, "03e80b59" + "00" * 8) in names
        assert ask(lab, vip, SCTP, "03e80b58" + "00" * 8, 0.3).startswith("nothing")
    daemon.stop()
