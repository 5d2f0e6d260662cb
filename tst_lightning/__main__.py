"""The console script ``tst``: hands the first argument's command the rest, and prints user errors as one line."""

import errno
import gc
import importlib
import os
import signal
import sys
from types import ModuleType

from tst_lightning import __version__
from tst_lightning.errors import UserError

# name -> (module with main(arguments), what it does); modules are imported only when their command runs.
COMMANDS = {
    "prepare": ("tst_lightning.commands.prepare", "turn text into tokenised shards"),
    "plan": ("tst_lightning.commands.plan", "what a run would take, and which bag size and ratio to take"),
    "fit": ("tst_lightning.commands.fit", "train: superposition, then recovery, or any other phases"),
    "validate": ("tst_lightning.commands.fit", "next-token loss of a checkpoint or an export, by corpus and position"),
    "test": ("tst_lightning.commands.fit", "the same score under the test/ tags (there is no third split)"),
    "sweep": ("tst_lightning.commands.sweep", "fit over a grid or list of settings, and the surface of their losses"),
    "export": ("tst_lightning.commands.export", "a checkpoint as an ordinary Hugging Face folder, checked"),
    "evaluate": ("tst_lightning.commands.evaluate", "score a checkpoint or an export on the paper's tasks, or others"),
    "generate": ("tst_lightning.commands.generate", "continue text by an exported model or a checkpoint"),
    "compare": ("tst_lightning.commands.compare", "compare runs over seeds at equal FLOPs, loss, data and time"),
}


_REFUSALS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EIO, errno.EMFILE),
}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        ["usage: tst COMMAND [options]", "", "commands:", *lines, "", "`tst COMMAND --help` lists a command's options."]
    )


def _command_module(name: str) -> ModuleType:
    """The module of a command, imported without garbage collection, and left out of it from then on.

    What it and its libraries make is half a million objects that live as long as the process. Going through them again
    and again, while they are imported and at the end, would take a third of the CPU time of a short ``tst fit``.
    """
    if name in sys.modules:
        return sys.modules[name]
    collected = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        if collected:
            gc.enable()


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: the words after ``tst``; those of the process when None.

    Returns:
        The exit code: 0 done, 1 a run-time error, 2 a configuration error, 128 + n stopped by signal n.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"tst-lightning {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"error: unknown command '{name}'; choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    # Read by PyTorch at its first tensor: those of 2 MiB and more are laid in huge pages, where Linux grants them to who
    # asks (/sys/kernel/mm/transparent_hugepage/enabled is madvise).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        _command_module(COMMANDS[name][0]).main(name, rest)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        # The file system's own refusals name the file and the reason; anything else is a defect of ours.
        if error.errno not in _REFUSALS:
            raise
        where = f": {error.filename}" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "; free some space and give the same command again (a run goes on with --ckpt_path last)" if full else ""
        print(f"error: {error.strerror or error}{where}{hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; give the same command again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
