"""loaded-mp import: bring a set-up of LVS, keepalived or HAProxy over."""  # noqa: N999 (the command's name)

import sys
from pathlib import Path

import click

from loaded_mp.cli.outcome import EXIT_BAD_CONFIGURATION
from loaded_mp.config.errors import ConfigError, Mistake
from loaded_mp.config.file import MAX_FILE_BYTES, read_file
from loaded_mp.importing import found_in
from loaded_mp.importing.writer import written

_STANDARD_INPUT = Path("-")


@click.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="Write it there.")
@click.option("--vip", "vips", metavar="ADDRESS", multiple=True,
              help="VIP of services whose file names none (bind *:80, fwmark); may be repeated.")  # fmt: skip
def command(files: tuple[Path, ...], output: Path | None, vips: tuple[str, ...]) -> None:
    """Print what FILE says as TOML: ipvsadm -S -n, keepalived.conf or haproxy.cfg; - is standard input.

    A comment at each line says where it comes from. What could not be carried over is named on standard
    error, with what to do, and stands in the file as comments, too.

    \b
    Exit status:
      0  everything is carried over
      1  something is left out
      2  a file cannot be read, or is none of these
    """
    try:
        found = [found_in(_read(path).decode(errors="replace"), _short(path, files)) for path in files]
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_BAD_CONFIGURATION)
    imported = written(found, vips)
    for mistake in imported.notes:
        click.echo(f"note: {mistake}", err=True)
    for mistake in imported.left_out:
        click.echo(f"left out: {mistake}", err=True)
    if not imported.toml:
        raise click.ClickException("no service can be carried over, so nothing is written")
    try:
        if output:
            output.write_text(imported.toml, encoding="utf-8")
        else:
            click.echo(imported.toml, nl=False)
    except OSError as error:
        raise click.ClickException(f"{output}: {error.strerror}") from None
    if count := len(imported.left_out):
        click.echo(f"{count} word{'s are' if count > 1 else ' is'} left out", err=True)
        sys.exit(1)


def _read(path: Path) -> bytes:
    """The bytes of a file, or of standard input. Raises ConfigError."""
    if path != _STANDARD_INPUT:
        return read_file(path)
    text = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(
            Mistake("standard input", "", f"is too large, expected {MAX_FILE_BYTES:,} bytes or less")
        )
    return text


def _short(path: Path, others: tuple[Path, ...]) -> str:
    """The name of a file, whole if another has the same."""
    if path == _STANDARD_INPUT:
        return "standard input"
    return path.name if [each.name for each in others].count(path.name) == 1 else str(path)
