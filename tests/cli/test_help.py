"""Help, suggestions, files of fields, completion: what makes the command line easy to live with."""

import shutil
import subprocess
import sys

import pytest

from fljax.cli import commands, main
from fljax.cli.arguments import known_fields, overridden, split_files
from fljax.cli.completion import script
from fljax.cli.fields import UNITS, fields_text, sections
from fljax.cli.parse import flags, hints, parse
from fljax.config import traced_fields
from fljax.core.check import FljaxError


def call(capsys, *words):
    """(exit code, stdout, stderr) of a command."""
    code = main(list(words))
    said = capsys.readouterr()
    return code, said.out, said.err


def all_commands():
    for name, entry in commands.COMMANDS.items():
        members = entry.items() if isinstance(entry, dict) else [("", entry)]
        yield from ((f"{name} {member}".strip(), command) for member, command in members)


COMMANDS = dict(all_commands())


def test_help_and_version_import_no_jax():
    program = "import sys, fljax.cli as c; code = c.main(sys.argv[1:]); assert 'jax' not in sys.modules; sys.exit(code)"
    for words in ([], ["--help"], ["privacy", "--help"], ["data"], ["--version"]):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_the_overview_names_every_command(capsys):
    code, out, err = call(capsys, "--help")
    assert code == 0 and err == ""
    for name, entry in commands.COMMANDS.items():
        help = commands.GROUPS[name] if isinstance(entry, dict) else entry.help
        assert any(line.split(None, 1) == [name, help] for line in out.splitlines())
    assert commands.GROUPS.keys() == {n for n, entry in commands.COMMANDS.items() if isinstance(entry, dict)}


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_describes_every_flag(path, capsys):
    with pytest.raises(SystemExit) as done:
        parse(COMMANDS[path].load(), ["--help"], f"fljax {path}")
    assert done.value.code in (None, 0)
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert (COMMANDS[path].load().__doc__ or "").split(".")[0].split("\n")[0][:40] in text
    for name in hints(COMMANDS[path].load()):
        place = text.find(f"--{name.replace('_', '-')}")
        assert place >= 0 or f"--{name}" not in flags(COMMANDS[path].load()), name
    assert text.count("(default:") + text.count("(required)") >= len(hints(COMMANDS[path].load()))


def test_the_help_of_an_experiment_lists_every_field_with_its_value(capsys):
    code, out, _ = call(capsys, "run", "digits_dp_fedavg", "--help")
    assert code == 0
    lines = out.splitlines()
    for name in known_fields():
        assert any(line.startswith(f"  --{name.replace('_', '-')} ") for line in lines), name
    assert "  --client.lr * number, > 0 = 0.3 (default 0.1)" in lines
    assert "  --rounds int [rounds], ≥ 1 = 100" in lines
    assert "  --devices.uplink list of number [Mbit/s] = nothing" in lines
    assert "  --privacy.delta number [probability], > 0, < 1 = 0.001 (default None)" in lines
    assert "privacy: What is clipped and noised, given as noise or as a target epsilon." in lines


def test_fields_are_described_and_marked_as_the_models_say():
    fields = {field.name: field for _, _, members in sections() for field in members}
    assert {name for name, field in fields.items() if field.traced} == traced_fields().keys()
    assert [name for name, field in fields.items() if not field.text] == []
    assert UNITS.keys() <= fields.keys()
    assert all(
        len(line) <= 90 or "--" in line for line in fields_text(overridden("digits_fedavg", []), 90).splitlines()
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], "one of run, sweep"),
        (["swep"], "Perhaps you meant sweep."),
        (["privacy", "epsiln"], "Perhaps you meant epsilon."),
        (["data", "inspct"], "Perhaps you meant inspect."),
        (["run", "digits_fedavg", "--rsume"], "Perhaps you meant --resume."),
        (["run", "digits_fedavg", "--rond", "3"], "Perhaps you meant --rounds."),
        (["run", "digits_fedavg", "--lr", "3"], "Perhaps you meant --client.lr or --server.lr."),
        (["run", "digits_fedavg", "--cleint.lr", "3"], "Perhaps you meant --client.lr."),
        (["run", "digits_fedavg", "--client.lrr", "3"], "Perhaps you meant lr."),
        (["run", "digits_fedavg", "--track", "tensorbord"], "tensorboard"),
        (["run", "digits_fedavgg"], "Perhaps you meant 'digits_fedavg'?"[:-1]),
        (["run", "--rounds", "3", "digits_fedavg"], "comes before the flags"),
        (["run"], "name of an experiment"),
        (["report", "--jsn", "x"], "Perhaps you meant --json."),
        (["report"], "a results folder"),
        (["doctor", "--jsn"], "Perhaps you meant --json."),
        (["privacy", "epsilon", "--rounds", "many", "--noise-multiplier", "1"], "--rounds"),
        (["completion", "fish"], "bash"),
        (["data", "inspect", "digts"], "Perhaps you meant digits."),
        (["data", "inspect", "digits", "--partition", "iid"], "Perhaps you meant --data.partition."),
        (["data", "inspect", "digits", "--figure", "x.bmp"], ".png, .svg or .pdf"),
        (["run", "digits_fedavg", "@no/such.toml"], "@no/such.toml: cannot be read"),
        (["init", "a b"], "letters, digits"),
        (["init", "digits_fedavg"], "ships an experiment"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_mistakes_are_one_line_with_what_was_meant(capsys, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *words)
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith("fljax: ") and says in err, err
    assert list(tmp_path.iterdir()) == []


def test_files_of_fields_come_before_flags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text('rounds = 7\n[client]\nlr = 0.5\nsteps = 2\n[data.options]\nx = "y"\n')
    (tmp_path / "b.toml").write_text("rounds = 8\n")
    words, files = split_files(["digits_fedavg", "@a.toml", "--json", "@", "b.toml", "--client.lr", "0.7"])
    assert (words, files) == (["digits_fedavg", "--json", "--client.lr", "0.7"], ["@a.toml", "@b.toml"])
    mixed = overridden("digits_fedavg", [*files, "--client.lr", "0.7"])
    assert (mixed.rounds, mixed.client.lr, mixed.client.steps) == (8, 0.7, 2)
    assert mixed.data.options == {"x": "y"} and mixed.model.hidden == (32,)


def test_a_file_can_be_the_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text("rounds = 7\n")
    for words in (["@mine.toml"], ["@", "mine.toml"]):
        (name,), files = split_files(words)
        assert files == [] and overridden(name, []).rounds == 7 and overridden(name, []).name == "mine"
    with pytest.raises(FljaxError, match=r"experiment file nothing to exist|\./nothing"):
        overridden(split_files(["@nothing"])[0][0], [])


# ---- completion ------------------------------------------------------------------------------------------------------

COMPLETIONS = [
    (["pri"], {"privacy"}),
    (["privacy", ""], {"epsilon", "calibrate", "select"}),
    (["privacy", "epsilon", "--samp"], {"--sampling-rate", "--sampler"}),
    (["privacy", "epsilon", "--sampler", "full"], {"full"}),
    (["run", "digits_dp_fed"], {"digits_dp_fedavg"}),
    (["run", "own_"], {"own_one"}),
    (["run", "digits_fedavg", "--server.optimizer", "ad"], {"adam", "adagrad"}),
    (["run", "digits_fedavg", "--privacy.clip"], {"--privacy.clip", "--privacy.clipping", "--privacy.clip-quantile"}),
    (["run", "digits_fedavg", "--track", ""], {"tensorboard", "wandb", "mlflow"}),
    (["run", "digits_fedavg", "--out", "exp"], {"experiments"}),
    (["data", "inspect", "fashion_m"], {"fashion_mnist"}),
    (["data", "inspect", "digits", "--data.part"], {"--data.partition"}),
    (["data", "inspect", "digits", "--client"], set()),
    (["completion", ""], {"bash", "zsh"}),
]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_flags_fields_values_and_experiments(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/own_one.toml").write_text("")
    show = '_fljax; echo "${COMPREPLY[*]}"\n'
    asks = "".join(
        f"COMP_WORDS=(fljax {' '.join(map(repr, words))}); COMP_CWORD={len(words)}; {show}" for words, _ in COMPLETIONS
    )
    program = script("bash") + asks
    done = subprocess.run(["bash", "--norc"], input=program, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stderr == ""
    for (words, expected), line in zip(COMPLETIONS, done.stdout.splitlines(), strict=True):
        assert expected <= set(line.split()) and (expected or not line), (words, line)
        if words[-1]:
            assert all(word.startswith(words[-1]) for word in line.split()), (words, line)


def test_zsh_gets_the_same_script_behind_its_own_beginning(capsys):
    code, out, _ = call(capsys, "completion", "zsh")
    assert code == 0 and out.startswith("autoload") and script("zsh") in out
    if shutil.which("zsh"):
        done = subprocess.run(
            ["zsh", "-f"], input=out + "\nwhence -w _fljax\n", capture_output=True, text=True, timeout=60
        )
        assert "_fljax: function" in done.stdout
