"""``fljax init`` and ``fljax schema``: a new experiment file, and help for the editor that it is written with."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from fljax.cli.shared import print_json
from fljax.core.check import FljaxError

Positional = tyro.conf.Positional

TEMPLATE = """\
# {title}: what it shows, in a sentence.
#
#   run it       fljax run {called}
#   look at it   results/{name}/report.html
#   all fields   fljax run {called} --help
#
# Every value can be overridden on the command line: --rounds 20 --client.lr 0.1 --privacy.epsilon 4
# Values behind a # are the defaults, or what one may try next.

title = "{title}"
rounds = 30                 # rounds of training
eval_every = 5              # rounds between two evaluations
# seed = 0                  # cohorts, initial parameters, local randomness, noise

[data]
name = "digits"             # `fljax list` shows all; `fljax data inspect digits` shows the partition
# clients = 143             # among how many clients the data are divided
# partition = "dirichlet"   # iid, dirichlet, shards, quantity_skew, feature_shift or natural
# alpha = 0.5               # of dirichlet: the smaller, the more the clients differ

[model]
name = "mlp"                # `fljax list` shows all
hidden = [32]               # units of the hidden layers

[client]
lr = 0.3                    # local learning rate
steps = 5                   # local steps a round; or epochs = 1
# batch_size = 10           # examples a step; all of the client's by default

[server]
lr = 0.2                    # server learning rate
momentum = 0.9              # of server SGD

[sampler]
kind = "poisson"            # every client takes part in a round with probability
rate = 0.3                  # q, independently of the others

[privacy]
mechanism = "central_gaussian"  # the server adds noise to the sum; "none" for no privacy
epsilon = 8.0               # target; the noise is calibrated to it
delta = 1e-3                # below 1 / clients
clip = 0.25                 # L2 norm of one client's update at most

# [dropout]
# source = "fisher"         # clients train and send only a part of the neurons
# keep_rate = 0.5
# warmup_rounds = 10

# With a sweep it runs by `fljax sweep {called}`: every combination of the grid, for every seed.
# [sweep]
# seeds = 3
# [sweep.grid]
# "privacy.epsilon" = [2.0, 8.0, inf]
"""


@dataclass(frozen=True)
class Init:
    """Write a new experiment file from a commented template, ready to run: experiments/NAME.toml, or the path given.

    Attributes:
      name: name of the experiment, or the path of its file (my/file.toml).
      json: print one JSON object on stdout.
    """

    name: Positional[str]
    json: bool = False

    def execute(self) -> None:
        """Writes the file; an existing one is never overwritten."""
        from fljax.cli.arguments import shipped

        by_path = self.name.endswith(".toml") or "/" in self.name
        path = Path(self.name).with_suffix(".toml") if by_path else Path("experiments") / f"{self.name}.toml"
        if not path.stem.replace("_", "").replace("-", "").isalnum():
            raise FljaxError(f"Expected name={self.name!r} to consist of letters, digits, _ and -.")
        if not by_path and path.stem in shipped() and not path.exists():
            raise FljaxError(f"Expected name={self.name!r} to be new: fljax ships an experiment of that name.")
        called = str(path) if by_path else path.stem
        _write_new(path, TEMPLATE.format(title=path.stem.replace("_", " "), name=path.stem, called=called))
        if self.json:
            print_json({"name": path.stem, "file": str(path), "command": f"fljax run {called}"})
            return
        print(f"{path} is written. Run it with: fljax run {called}")


@dataclass(frozen=True)
class Schema:
    """Print the JSON schema of experiment files, for completion and checks in an editor.

    Attributes:
      out: write it into this file instead.
    """

    out: Path | None = None

    def execute(self) -> None:
        """Prints or writes the schema."""
        from fljax.cli.fields import schema

        text = json.dumps(schema(), indent=2, allow_nan=False)
        if self.out is None:
            print(text)
            return
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(text + "\n")
        except OSError as error:
            raise FljaxError(
                f"{self.out}: cannot be written ({error.strerror}). Choose another file by --out."
            ) from None
        print(self.out)


def _write_new(path: Path, text: str) -> None:
    """Writes a file that must not exist yet: it is there whole, or not at all."""
    temporary: Any = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        os.link(temporary, path)  # fails where the file exists, also when it has just been made
    except FileExistsError:
        raise FljaxError(f"{path} exists and is not overwritten. Choose another name.") from None
    except OSError as error:
        raise FljaxError(f"{path}: cannot be written ({error.strerror}). Choose another name.") from None
    finally:
        temporary.unlink(missing_ok=True)
