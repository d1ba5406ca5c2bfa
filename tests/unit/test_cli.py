"""The command line: where the configuration comes from, exit statuses, what is printed where."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from loaded_mp import __version__
from loaded_mp.checks.tcp import TcpCheck
from loaded_mp.cli import run as run_module
from loaded_mp.cli.main import main
from loaded_mp.config.model import Config
from loaded_mp.config.source import Source
from loaded_mp.config.toml import parse_toml, read_toml

pytestmark = pytest.mark.uncompiled

DEPLOY = Path(__file__).parents[2] / "deploy"
FLAGS = ("--vip", "192.0.2.10", "--backend", "10.0.0.1", "--backend", "10.0.0.2,weight=3")
CLASSIC = "VIP4=192.0.2.10\nserver4=10.0.0.1\nport_alive=80\n"
CLASSIC6 = "VIP6=2001:db8::10\nserver6=fd00::1\n"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


class Daemon:
    """Stands in for the daemon and notes how it was started."""

    def __init__(self) -> None:
        self.started: list[tuple[Source, Config, bool, bool]] = []

    def __call__(self, source: Source, config: Config, *, network_setup: bool, debug: bool) -> int:
        self.started.append((source, config, network_setup, debug))
        return 1

    @property
    def config(self) -> Config:
        ((_, config, _, _),) = self.started
        return config


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    daemon = Daemon()
    monkeypatch.setattr(run_module, "run", daemon)
    return daemon


def test_without_a_command_the_daemon_runs(daemon: Daemon) -> None:
    assert invoke(*FLAGS, "--workers", "4").exit_code == 1
    ((source, config, network_setup, debug),) = daemon.started
    assert config.workers == 4
    assert [each.weight for each in config.services[0].backends] == [1, 3]
    assert source.load() == config
    assert network_setup
    assert not debug


def test_classic_flags(daemon: Daemon) -> None:
    Path("f").write_text(CLASSIC + CLASSIC6)
    invoke("-4", "-6", "-c", "f", "-D", "-Q", "99", "-U", "daemon", "--no-network-setup")
    ((_, config, network_setup, debug),) = daemon.started
    assert [each.name for each in config.services] == ["ipv4", "ipv6"]
    assert (config.queue_length, config.user, network_setup, debug) == (99, "daemon", False, True)


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (("--first-queue", "7"), {"first_queue": 7}),
        (("--user", "daemon"), {"user": "daemon"}),
        (("--log-level", "error"), {"log_level": "error"}),
        (("--metrics", ""), {"metrics_listen": ""}),
        (("--metrics", "[::1]:9"), {"metrics_listen": "[::1]:9"}),
    ],
)
def test_settings_by_flags(daemon: Daemon, options: tuple[str, ...], settings: dict[str, Any]) -> None:
    invoke(*FLAGS, *options)
    assert {name: getattr(daemon.config, name) for name in settings} == settings


def test_ports_and_checks_by_flags(daemon: Daemon) -> None:
    invoke(*FLAGS, "--port", "tcp/80", "--port", "icmp", "--check-port", "80")
    (service,) = daemon.config.services
    assert [str(each) for each in service.listen] == ["tcp/80", "icmp"]
    assert service.checks == (TcpCheck(port=80),)


def test_default_files(daemon: Daemon) -> None:
    Path("loaded.config").write_text(CLASSIC)
    Path("loaded.config6").write_text(CLASSIC6)
    invoke()
    invoke("-6")
    invoke("-f")
    names = [(config.services[0].name, bool(config.services[0].checks)) for _, config, _, _ in daemon.started]
    assert names == [("ipv4", False), ("ipv6", False), ("ipv4", True)]


def test_mistakes_end_with_status_2_before_anything_starts(daemon: Daemon) -> None:
    result = invoke("--vip", "x", "--backend", "y", "--workers", "0")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "--backend y: found 'y', expected an IPv4 or IPv6 address, also as 10.0.0.1:80, [fd00::1]:80",
        "--vip x: found 'x', expected an address, with or without a prefix length",
        "--workers 0: found '0', expected greater than or equal to 1",
        "3 mistakes in the configuration",
    ]
    assert not daemon.started


@pytest.mark.parametrize("arguments", [(), ("-6",), ("check-config",), ("plan",)])
def test_no_file_says_what_to_do(daemon: Daemon, arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "there is no such file here; name one with -c FILE, or give --vip and --backend" in result.stderr
    assert not daemon.started


@pytest.mark.parametrize("arguments", [("nonsense",), ("--nonsense",), ("--log-level", "loud"), ("convert",)])
def test_wrong_usage_ends_with_status_2(arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 2


def test_options_before_a_command_are_not_lost_silently() -> None:
    result = invoke("-c", "f", "check-config")
    assert result.exit_code == 2
    assert "options belong behind the command: loaded-mp check-config" in result.stderr


def test_check_config_says_what_it_means() -> None:
    result = invoke("check-config", "-c", str(DEPLOY / "loaded-mp.toml"))
    assert result.exit_code == 0
    assert result.stderr == ""
    for text in ("web: 192.0.2.10, 2001:db8::10", "10.0.0.1 (web1) weight 3", "TCP port 80 every 2 s",
                 "tcp/80, tcp/443, icmp", "workers: 4", "is good"):  # fmt: skip
        assert text in result.stdout


def test_check_config_says_which_service_is_open() -> None:
    note = "note: no listen: clients reach every port of its backends by its VIPs"
    assert note in invoke("check-config", *FLAGS).stdout
    assert note not in invoke("check-config", *FLAGS, "--port", "tcp/80").stdout


def test_the_first_example_opens_no_more_than_it_says() -> None:
    example = (DEPLOY.parent / "README.md").read_text().split("```toml\n")[1].split("```")[0]
    (service,) = parse_toml(example, "README.md").config().services
    assert service.listen


def test_check_config_takes_flags_too() -> None:
    assert invoke("check-config", *FLAGS).exit_code == 0
    assert invoke("check-config", *FLAGS, "--vip", "10.0.0.1").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("loaded.config",), ["ipv4"]),
        (("loaded.config6",), ["ipv6"]),
        (("both", "-4", "-6"), ["ipv4", "ipv6"]),
        (("both", "-6"), ["ipv6"]),
    ],
)
def test_convert_prints_equal_toml(arguments: tuple[str, ...], names: list[str]) -> None:
    for name in ("loaded.config", "loaded.config6"):
        Path(name).write_bytes((DEPLOY / name).read_bytes())
    Path("both").write_text(CLASSIC + CLASSIC6)
    result = invoke("convert", *arguments)
    assert result.exit_code == 0
    config = parse_toml(result.stdout, "f").config()
    assert [each.name for each in config.services] == names
    families: tuple[Any, ...] = tuple(int(name[-1]) for name in names)
    assert config == Source(path=Path(arguments[0]), families=families).load()


def test_convert_reports_mistakes() -> None:
    Path("f").write_text("VIP4=$VIP\nserver4=10.0.0.1\n")
    result = invoke("convert", "f")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "f:1: VIP4: found '$VIP', expected a plain value: nothing here is executed" in result.stderr


def test_what_convert_writes_is_what_a_start_reads(daemon: Daemon) -> None:
    Path("f").write_text(CLASSIC)
    Path("f.toml").write_text(invoke("convert", "-f", "f").stdout)
    invoke("-c", "f.toml")
    assert daemon.config == read_toml(Path("f.toml")).config()
    assert daemon.config.services[0].checks


@pytest.mark.parametrize("name", ["check-config", "diagnose", "plan"])
def test_commands_that_need_a_configuration_take_the_same_options(name: str) -> None:
    text = invoke(name, "--help").stdout
    for option in (
        "-c, --config",
        "-4",
        "-6",
        "-f",
        "--vip",
        "--backend",
        "--port",
        "--check-port",
        "--workers",
    ):
        assert option in text


def test_every_command_is_there_and_listed() -> None:
    context = main.make_context("loaded-mp", ["status"])
    listed = main.list_commands(context)
    modules = {path.stem for path in Path(run_module.__file__).parent.glob("*.py")}
    modules -= {"__init__", "asking", "main", "ipvsadm", "options", "outcome", "run", "steering", "table"}
    assert {name.replace("-", "_") for name in listed} - {"completion"} == modules
    for name in listed:
        command = main.get_command(context, name)
        assert command
        assert command.name == name
        assert command.help
        assert invoke(name, "--help").exit_code == 0
    text = invoke("--help").stdout
    assert all(f"  {name} " in text for name in listed)
    assert "Exit status" in text
    assert "Examples" in text


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["completion", "bash"], ["check-config", "--help"], ["status", "--help"]],
)
def test_what_should_be_quick_loads_nothing_that_is_slow(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom loaded_mp.cli.main import main\n"
        "try: main(sys.argv[1:])\nfinally: assert not {'numba', 'aiohttp', 'pyroute2'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_version() -> None:
    assert __version__ in invoke("--version").stdout
    done = subprocess.run(
        [sys.executable, "-m", "loaded_mp", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == f"loaded-mp, version {__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_us(shell: str) -> None:
    result = invoke("completion", shell)
    assert result.exit_code == 0
    assert f"_LOADED_MP_COMPLETE={shell}_complete" in result.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("loaded-mp c", {"check-config", "checks", "cleanup", "completion", "convert"}),
        ("loaded-mp --work", {"--workers"}),
        ("loaded-mp check-config --back", {"--backend"}),
        ("loaded-mp completion ", {"bash", "zsh", "fish"}),
    ],
)
def test_completion(words: str, expected: set[str]) -> None:
    result = CliRunner().invoke(
        main,
        prog_name="loaded-mp",
        env={
            "_LOADED_MP_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        },
    )
    assert {line.partition(",")[2] for line in result.stdout.splitlines()} == expected


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {}])
def test_no_colours_where_there_is_no_terminal(environment: dict[str, str]) -> None:
    for arguments in (["check-config", *FLAGS], ["check-config"], ["--help"]):
        assert "\x1b" not in CliRunner().invoke(main, arguments, env=environment).output
