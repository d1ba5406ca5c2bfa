"""docs/howto.md, done as it stands: every command is typed, every output compared.

- `toml FILE` and `sh FILE` blocks are files on the balancer.
- `console` blocks hold commands behind a prompt and what they print; `...` is anything.
- `console terminal` commands go on in a terminal of their own, once they have printed what stands there.
- `text` blocks are what the last of these has printed since; `^C` ends the daemon's.
- `sh` blocks install; what they need is checked instead.
"""

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from loaded_mp.lab.daemon import loaded_mp
from loaded_mp.lab.lab import Lab, Options
from loaded_mp.lab.wait import wait_until

ROOT = Path(__file__).parents[2]
HOWTO = (ROOT / "docs/howto.md").read_text()
BLOCKS = re.findall(r"^```(\S+) ?(.*?)\n(.*?)^```$", HOWTO, re.MULTILINE | re.DOTALL)
PROMPT = re.compile(r"^(\w+)# (.*)$", re.MULTILINE)


def matches(wanted: str, printed: str) -> bool:
    """Word by word; a word `...` stands for any words or none, `...` in a word for the rest of it."""
    words = printed.split()
    ends = {0}  # where in the printed words those that were looked at may end
    for word in wanted.split():
        if word == "...":
            ends = set(range(min(ends), len(words) + 1)) if ends else ends
        else:
            pattern = r"\S*".join(map(re.escape, re.split(r"\.\.\.(?!\.)", word)))
            ends = {end + 1 for end in ends if end < len(words) and re.fullmatch(pattern, words[end])}
    return len(words) in ends


def commands(block: str) -> Iterator[tuple[str, str, str]]:
    """Where, what, and what it prints."""
    parts = PROMPT.split(block)[1:]
    yield from zip(parts[::3], parts[1::3], (text.lstrip("\n") for text in parts[2::3]), strict=True)


class Reader:
    """Someone who does what the HOWTO says."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._places = {"balancer": lab.balancer, "client": lab.client}
        self._places |= {backend.name: backend.namespace for backend in lab.backends}
        self._terminals: list[tuple[subprocess.Popen[str], Path]] = []

    def _here(self, text: str) -> str:
        """Names of this network and this checkout for those of the HOWTO."""
        text = text.replace("/etc/loaded-mp", str(self._lab.folder))
        text = re.sub(r"^loaded-mp\b", loaded_mp(), text)
        return text.replace("eth0", "public").replace("eth1", "private")

    def write(self, file: str, text: str) -> None:
        Path(self._here(file)).write_text(self._here(text))

    def run(self, place: str, command: str, wanted: str) -> None:
        words = self._here(command) if place == "balancer" else command
        done = self._places[place].run("sh", "-c", f"{words} 2>&1", check=False, timeout_s=120)
        printed = done.stdout
        wanted = self._here(wanted) if place == "balancer" else wanted
        assert matches(wanted, printed), f"{place}# {command}\n{printed}"

    def start(self, place: str, command: str, wanted: str) -> None:
        path = self._lab.folder / f"terminal-{len(self._terminals)}"
        with path.open("w") as output:
            process = self._places[place].start(*self._here(command).split(), output=output)
        self._terminals.append((process, path))
        self._wait(path, self._here(wanted) + " ...", command)

    def read(self, wanted: str) -> None:
        if wanted.startswith("^C\n"):
            process, path = self._terminals[0]
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
            wanted = wanted.removeprefix("^C\n")
            self._terminals.clear()
        else:
            _, path = self._terminals[-1]
        self._wait(path, "...\n" + wanted, "terminal")

    def _wait(self, path: Path, wanted: str, what: str) -> None:
        def printed() -> bool:
            return matches(wanted, path.read_text())

        try:
            wait_until(printed, what, 60)
        except TimeoutError:
            pytest.fail(f"{what} printed\n{path.read_text()}")


def test_every_command_does_what_the_howto_says() -> None:
    with Lab(Options(sources=12, second_way=True)) as lab:
        reader = Reader(lab)
        for kind, detail, text in BLOCKS:
            if kind in ("toml", "sh") and detail:
                reader.write(detail, text)
            elif kind == "console":
                do = reader.start if detail == "terminal" else reader.run
                for place, command, wanted in commands(text):
                    do(place, command, wanted)
            elif kind == "text":
                reader.read(text)


def test_the_installation_names_what_is_there() -> None:
    lines = [line for kind, file, text in BLOCKS if kind == "sh" and not file for line in text.splitlines()]
    assert len(lines) == 6
    assert re.search(r"^install:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    unit = (ROOT / "deploy/loaded-mp.service").read_text()
    assert "/usr/local/bin/loaded-mp -c /etc/loaded-mp/loaded-mp.toml" in unit


def test_every_block_is_of_a_known_kind() -> None:
    assert {kind for kind, _, _ in BLOCKS} == {"sh", "toml", "console", "text"}
