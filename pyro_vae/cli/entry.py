"""The entry point of the command line: it reads and checks the options, and calls
`pyro_vae.cli.commands`.

Exit codes: 0 done; 2 a mistake of the user's, in one line; 1 a failure;
130 and 143 stopped by SIGINT and SIGTERM.
"""

from __future__ import annotations

import os
import sys
import textwrap
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyro_vae import __version__, streams, torchrun
from pyro_vae.cli.command_table import COMMANDS, DIVIDED
from pyro_vae.cli.parser import Parser, read_options
from pyro_vae.errors import UserError, did_you_mean, first_line, shortened
from pyro_vae.memory import is_out_of_memory
from pyro_vae.runs.config_file import read_config, stored_names
from pyro_vae.runs.options import FREE_ON_RESUME, Options, Train
from pyro_vae.signals import DONE, FAILED, MISTAKEN, Failure, Stopped, stopping
from pyro_vae.streams import printable

DESCRIPTION = (
    "Variational auto-encoders as plain Pyro programs, and log p(x) with error bars. "
    "`pyro-vae train` without options uses digits that are included."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    streams.prepare()
    try:
        with stopping(), torchrun.quiet():
            command = parse(given)
            if torchrun.rank() > 0 and not isinstance(command, DIVIDED):
                return DONE
            with streams.careful(), warnings.catch_warnings():
                # pyro 1.9.2 uses torch.jit, which torch deprecates: nothing that a user of this
                # program could change
                warnings.filterwarnings("ignore", message=".*torch.jit.*")
                # loky's, of a worker that it replaces between two cells of a sweep
                warnings.filterwarnings("ignore", message="A worker was restarted")
                warnings.showwarning = _warn
                from pyro_vae.cli.commands import execute

                execute(command)
    except SystemExit as parsed:  # --help
        return torchrun.end("", parsed.code if isinstance(parsed.code, int) else DONE)
    except UserError as mistake:
        return _end(mistake, MISTAKEN)
    except Failure as failure:
        return _end(failure, FAILED, lost=failure.of_another)
    except BrokenPipeError:  # as in `pyro-vae list | head`
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (OSError, MemoryError, RuntimeError) as failure:
        if isinstance(failure, RuntimeError) and not is_out_of_memory(failure):
            raise
        return _end(_told(failure), FAILED)
    except Stopped as stopped:
        return torchrun.end(printable(str(stopped)), stopped.exit_code)
    return DONE


def _told(failure: BaseException) -> str:
    """A failure that has no sentence of its own, in one line."""
    if is_out_of_memory(failure):
        return (
            f"this does not fit into the memory ({first_line(failure)}): use a smaller net, "
            "fewer latent dimensions or another device"
        )
    return f"{type(failure).__name__}: {shortened(str(failure))}"


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """In one line, as a reader of the terminal has no use for our source."""
    print(f"warning: {message}", file=sys.stderr)


def parse(given: list[str]) -> Options:
    """The command and its checked options.

    Raises:
        UserError: an unknown command, a bad configuration file, or a value out of its range.
        SystemExit: after --help.
    """
    word = next(iter(given), "--help")
    if word not in COMMANDS:
        _refuse_command(word)
    options = _read(given, {})
    if isinstance(options, Train) and options.resume is not None:
        options.check()
        options = _resumed(given, options.resume)
    elif isinstance(options, Train) and options.config is not None:
        configured = read_config(options.config)
        options = _one_length(_read(given, configured), configured)
    options.check()
    return options


def _read(given: list[str], configured: dict[str, Any]) -> Any:
    """The options of the command that is the first word, ``configured`` being its defaults."""
    return read_options(COMMANDS[given[0]], given[1:], configured)


def _refuse_command(word: str) -> None:
    """A first word that is no command; --help and --version end here too."""
    if not word.startswith("-"):
        raise UserError(did_you_mean("command", word, COMMANDS))
    parser = Parser(prog="pyro-vae", description=textwrap.fill(DESCRIPTION, 80))
    parser.add_argument("--version", action="version", version=f"pyro-vae {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, kind in COMMANDS.items():
        commands.add_parser(name, help=" ".join((kind.__doc__ or "").split()))
    parser.parse_args([word])


def _resumed(given: list[str], folder: Path) -> Train:
    """The options of the run in ``folder``, with those besides --resume that say no more than where
    and how it goes on.
    """
    config = folder.expanduser() / "config.toml"
    if not config.is_file():
        raise UserError(
            f"--resume {folder}: there is no run in this folder, because there is no {config}. "
            "A run that was killed before it wrote that file must be started again, with --out "
            f"{folder}"
        )
    configured = Train(**read_config(config))
    options: Train = _read(given, read_config(config))
    fixed = [name for name in stored_names() if name not in FREE_ON_RESUME]
    if differing := [name for name in fixed if getattr(options, name) != getattr(configured, name)]:
        words = "; ".join(
            f"{name} is {getattr(configured, name)}, not {getattr(options, name)}"
            for name in differing
        )
        raise UserError(
            f"--resume {folder}: the run has other options ({words}). Leave them out, or train "
            "a new run"
        )
    return options


def _one_length(options: Train, configured: dict[str, Any]) -> Train:
    """--steps together with a configured number of epochs wins over it, and the other way round."""
    for given, other in (("steps", "epochs"), ("epochs", "steps")):
        beside = given not in configured and getattr(options, given) is not None
        if beside and other in configured and getattr(options, other) == configured[other]:
            without: dict[str, Any] = {other: None}
            return replace(options, **without)
    return options


def _end(message: object, code: int, *, lost: bool = False) -> int:
    line = " ".join(printable(str(message)).split())
    return torchrun.end(f"error: {line}", code, lost=lost)
