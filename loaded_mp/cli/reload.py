"""loaded-mp reload: let the running daemon read its configuration again."""

import click

from loaded_mp.cli.outcome import EXIT_BAD_CONFIGURATION, change, show


@click.command("reload")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
def command(dry_run: bool) -> None:
    """Let the running daemon read its configuration again, and say what changes by that.

    Only what differs is changed. With mistakes in the configuration, the old one stays. Backends that were
    added at run time stay, unless the configuration has them now; those that were removed at run time come
    back if it has them.

    \b
    Exit status:
      0  all of it is taken over, or would be
      1  it cannot be done, or some settings need a restart; what does not is taken over
      2  mistakes in the configuration
    """
    show(change("reload", dry_run=dry_run), "dry run" if dry_run else "reloaded", EXIT_BAD_CONFIGURATION)
