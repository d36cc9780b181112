"""The command line: one file a command, loaded only when it is called.

It turns errors into one line and an exit code; all work is left to the parts.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import sys
from typing import Any, NoReturn

import click

from edgepack.cli.heartbeat import beating
from edgepack.cli.printable import printable
from edgepack.cli.quiet import quiet_libraries
from edgepack.errors import EdgepackError, ResourceError
from edgepack.version import __version__

# command → (module under edgepack.cli, one line for --help); the module's click command is `command`.
COMMANDS: dict[str, tuple[str, str]] = {
    "export": ("export", "A Hugging Face checkpoint becomes a GGUF."),
    "compress": ("compress", "a recipe from passes to certificate, stage by stage"),
    "checkpoint": ("checkpoint", "a GGUF as a Hugging Face folder, the export read backwards"),
    "analyze": ("analyze", "how many directions a model's weights and activations really use"),
    "prune-grid": ("prune_grid", "how much of a model can go: fidelity and size of several sparsities"),
    "imatrix": ("imatrix", "which weights a text needs: an importance matrix"),
    "tune": ("tune", "a quantised GGUF moved towards its original at the same size"),
    "recover": ("recover", "an adapter that gives back what compression lost"),
    "teach": ("teach", "documents learnt by an adapter, with a test of what is known"),
    "pack": ("pack", "a GGUF into one verified archive"),
    "unpack": ("unpack", "the GGUF out of an archive, bit for bit"),
    "verify": ("verify", "every byte of an archive against its digests"),
    "inspect": ("inspect", "what an archive holds"),
    "validate": ("validate", "how faithfully a file says what its original says"),
    "compare": ("compare", "several files against one original: size against divergence"),
    "frontier": ("frontier", "one table a model: divergence against bytes, of every way to make it"),
    "evaluate": ("evaluate", "tasks with right answers, the original and the file side by side"),
    "certify": ("certify", "a file measured, and the proof put inside it"),
    "calibrate": ("calibrate", "how sure a file may be of its answers, measured and put into it"),
    "kv": ("kv", "what each type of KV cache costs a model, measured and put into it"),
    "provenance": ("provenance", "what a file was made from, and whether that gives the same bytes again"),
    "reproduce": ("reproduce", "a file made again from its sources: exit 0 when the bytes are equal"),
    "release": ("release", "what a publisher uploads: files, model card, sums, signature"),
    "extract": ("extract", "members or single tensors out of an archive"),
    "keygen": ("keygen", "a key to sign archives with"),
    "trust": ("trust", "whose archives this machine takes"),
    "sign": ("sign", "a signature added to an archive"),
    "diff": ("diff", "a small patch from one version of a file to the next"),
    "patch": ("patch", "the next version of a file from the old one and a patch"),
    "fetch": ("fetch", "an archive from a web server, or a checkpoint from the hub"),
    "update": ("update", "the version of an archive that its server has now"),
    "bundle": ("bundle", "a folder that installs and runs an archive without a network"),
    "run": ("run", "one completion, or a chat with the model"),
    "serve": ("serve", "an OpenAI-compatible server and a chat page on this machine"),
    "embed": ("embed", "embeddings of texts"),
    "bench": ("bench", "tokens per second, as llama-bench defines them"),
    "fit": ("fit", "what fits on a device, and how fast it would be"),
    "cache": ("cache", "what is installed on this machine"),
    "doctor": ("doctor", "what this machine has and what will run on it"),
}


_INTERRUPTED = 130


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command runs: `--help` stays quick."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """The commands in the order of the journey."""
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        """The click command `name`, or None."""
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"edgepack.cli.{COMMANDS[name][0]}").command
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of commands, without importing any."""
        with formatter.section("Commands"):
            if not COMMANDS:
                return
            formatter.write_dl([(name, summary) for name, (_module, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgepack")
@click.pass_context
def root(context: click.Context) -> None:
    """From a Hugging Face checkpoint to one verified file that runs offline.

    Exit codes: 0 success, 1 a check that failed, 2 wrong usage, 3 checkpoint, 4 unsupported model,
    5 tokenizer, 6 GGUF, 7 archive, 8 NaN or infinity, 9 disk or memory, 10 llama.cpp, 11 missing package,
    12 calibration, 13 codec, 14 network, 130 interrupted.
    """
    context.obj = context.with_resource(beating(context.invoked_subcommand, watched=sys.stderr.isatty()))


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with the code that `edgepack.errors` documents.

    SIGTERM and SIGHUP end a command as Ctrl-C does, with 143 and 129: what it was writing is tidied up.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP: so it stays
            signal.signal(number, _end)
    quiet_libraries()
    _speak_utf8()
    code = execute(args)
    if code == _INTERRUPTED:  # llama.cpp may still be reading a model in a thread of its own: nobody waits for it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _speak_utf8() -> None:
    """Text in and out is UTF-8 whatever the console's encoding is; what a terminal cannot show is replaced."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        with contextlib.suppress(io.UnsupportedOperation):  # standard input that somebody has read from already
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding="utf-8", errors="replace")


def _end(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def execute(args: list[str] | None = None) -> int:
    """Run the command line and return its exit code; never raises for a user's mistake."""
    try:
        result: Any = root.main(args=args, prog_name="edgepack", standalone_mode=False)
    except EdgepackError as error:
        click.echo(printable(f"edgepack: error: {error}"), err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("edgepack: interrupted", err=True)
        return _INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except MemoryError:
        click.echo("edgepack: error: not enough memory", err=True)
        return ResourceError.exit_code
    except OSError as error:  # what no part has put into words: a folder that became read-only, a disk that failed
        from edgepack.files.opened import system_error

        told = system_error(error)
        click.echo(printable(f"edgepack: error: {told}"), err=True)
        return told.exit_code
    return result if isinstance(result, int) else 0
