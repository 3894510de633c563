"""`bigssl ...`: everything that is not a distributed run. A command's file, and what it needs, is imported when it is
called: the help is there at once."""

from __future__ import annotations

import gc
import os
import sys
from functools import reduce
from inspect import getdoc
from operator import getitem

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# torch's threads share the cores with numpy's and with those that decode: spinning for work, they held the others up
# by a fifth. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from cyclopts import App  # noqa: E402

from bigssl import exits  # noqa: E402
from bigssl.cli.app import called, new_app  # noqa: E402
from bigssl.config.errors import ConfigError, say  # noqa: E402

GROUPS = {
    "config": "Recipes.",
    "shards": "Pack, index, check and look into WebDataset shards.",
    "tokenizer": "Tokenizers.",
}
COMMANDS = {
    "init": ("init:init", "Write a small recipe that learns from your data."),
    "config schema": ("recipes:schema", "Print the JSON schema of recipes, for editors."),
    "config check": ("recipes:check", "Check a recipe and the files it names, without starting it."),
    "train": ("train:train", "Pretrain on this machine, or on several; the same command again goes on."),
    "ablate": ("ablate:ablate", "Train a joint recipe, and its parts alone: what joint training gained or cost."),
    "plan": ("plan:plan", "Check and simulate a run on any number of ranks, without a GPU."),
    "doctor": ("doctor.command:doctor", "Is this machine, or cluster, fit for a run? Verdicts on all that it needs."),
    "evaluate": (
        "transfer.evaluate:evaluate", "Score a trained run or any network by a task: scorecard.json and report.html."
    ),
    "report": ("runs:report", "Write report.html of a run, also while it trains."),
    "embed": ("transfer.embed:embed", "Write the vectors of a dataset: .npz or .parquet with keys and labels."),
    "export": ("transfer.export:export", "Write a trained run for transformers, timm, onnx or sentence-transformers."),
    "shards pack": ("pack:pack", "Write shards and their index."),
    "shards split": (
        "clean:split", "Part existing shards into train and val by a hash of the key, or by time; the order stays."
    ),
    "shards clean": (
        "clean:clean", "Write a dataset anew without what is worthless, by rule; samples keep their order."
    ),
    "shards stats": ("clean:stats", "Sizes, lengths, duplicates, and what `clean` would drop."),
    "shards index": ("shards:index", "Build the index of existing shards."),
    "shards verify": ("shards:verify", "Read everything; one JSON line per damage, exit status 1 if there is any."),
    "shards inspect": ("shards:inspect", "What a dataset holds: counts, sizes, the first samples."),
    "shards replay": ("replay:replay", "The keys each rank trains on, step by step."),
    "tokenizer train": ("shards:train", "Train a vocabulary (WordPiece, BPE, unigram, characters) on texts."),
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Entry of the command; returns the exit code, one of `bigssl/exits.py`."""
    from bigssl.data.errors import DataError

    try:
        words = sys.argv[1:] if arguments is None else arguments
        return int(called(_app(words), words) or exits.DONE)
    except (ConfigError, DataError) as error:
        say(error)
        return exits.REFUSED
    except KeyboardInterrupt as stopped:
        print(f"bigssl: interrupted{stopped}", file=sys.stderr)
        return exits.INTERRUPTED
    except BrokenPipeError:  # `| head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - Python flushes it once more when it ends
        return exits.DONE
    except OSError as error:  # a full disk, a folder that is not writable
        say(OSError(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")))
        return exits.FAILED
    finally:
        if arguments is None:
            gc.freeze()  # Python looks for garbage when it ends, twice: a second among the modules of torch


def _app(words: list[str]) -> App:
    """All commands; the one that the `words` call says in its help also what its function says.

    Raises:
        ConfigError: they name none, and ask for no help.
    """
    app = new_app("bigssl", "Self-supervised pretraining: data, recipes, evaluation.")
    groups = {name: new_app(name, about) for name, about in GROUPS.items()}
    for path, (function, about) in COMMANDS.items():
        group, _, name = path.rpartition(" ")
        (groups[group] if group else app).command(f"bigssl.cli.{function}", name=name, help=about)
    for group_app in groups.values():
        app.command(group_app)
    if " ".join(words) in ("", *GROUPS):
        below = dict.fromkeys(name.split()[len(words)] for name in COMMANDS if name.split()[: len(words)] == words)
        said = "".join(f"{word}: " for word in words)
        help = " ".join(["bigssl", *words, "--help"])
        raise ConfigError(f"{said}no command; allowed: {', '.join(below)}. See {help}")
    names = [word for word in words if not word.startswith("-")]
    for parts in (names[:1], names[:2]):
        if " ".join(parts) in COMMANDS:
            command: App = reduce(getitem, parts, app)  # imports the command's file
            command.help = f"{command.help}\n\n{getdoc(command.default_command) or ''}"
    return app


if __name__ == "__main__":
    sys.exit(main())
