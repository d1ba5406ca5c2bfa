"""loaded-mp save: what was changed at run time, written into the file."""

import click

from loaded_mp.cli.asking import answer_to
from loaded_mp.config.errors import ConfigError
from loaded_mp.config.saving import Unsaved, save


@click.command("save")
def command() -> None:
    """Write what was changed while the daemon runs into its TOML file.

    That is: backends that were added or removed, and weights that were set. Comments stay, and so do changes
    of the file that no reload has taken over yet. The file as it was is kept beside it, as
    FILE.toml.before-save.
    """
    unsaved = answer_to("unsaved", Unsaved)
    for line in unsaved.lines():
        click.echo(line)
    if unsaved.file is None:
        raise click.ClickException(
            "the daemon runs by a classic file or flags: make a TOML file with these changes ('loaded-mp"
            " convert' does it for a classic one) and start with -c FILE.toml"
        )
    try:
        backup = save(unsaved.file, unsaved)
    except ConfigError as error:
        raise click.ClickException(f"{error}\nthe file stays as it is") from None
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{unsaved.file}: {error}; the file stays as it is") from error
    click.echo(
        f"saved in {unsaved.file}; as it was: {backup}"
        if backup
        else f"nothing to save: {unsaved.file} has it all"
    )
