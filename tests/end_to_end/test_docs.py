"""What the documentation says exists: commands, experiments, links. Its code runs in ``test_code_blocks``."""

import re
import shlex
from pathlib import Path

import pytest

from fljax.cli import commands
from fljax.cli.arguments import check_names, overridden, split_files
from fljax.cli.parse import HELP, parse, parse_known
from fljax.config import load as read
from fljax.core.check import FljaxError

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "experiments/README.md"]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.toml"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def header(path: Path) -> str:
    """The comment that an experiment begins with."""
    lines = path.read_text().splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line[1:].strip() for line in lines[:end])


def page_commands(path: Path) -> list[str]:
    """`fljax ...` in shell blocks and in inline code."""
    text = path.read_text()
    shell = [line.split(" #")[0].strip() for block in blocks(path, "bash") for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [c for c in [*shell, *re.findall(r"`([^`\n]+)`", prose)] if c.startswith("fljax ")]


def header_commands(path: Path) -> list[str]:
    """`fljax ...` in the header of an experiment, up to a bracket, a semicolon, a full stop or two spaces."""
    return [m.strip() for m in re.findall(r"\bfljax [a-z]\S*(?: [^\s();]+)*", header(path))]


COMMANDS = sorted(
    {(name(p), c) for p in PAGES for c in page_commands(p)}
    | {(name(p), c.rstrip(".,")) for p in EXPERIMENTS for c in header_commands(p)}
)


def check(command: str) -> None:
    """Parses a command as the command line does, and validates its experiment with the flags given."""
    _, *words = shlex.split(command)
    verb, known = words[0], commands.COMMANDS
    while isinstance(known, dict):
        if not words or words[0] in HELP:
            return  # a group of commands is spoken of by its name
        known = commands.find(words.pop(0), known, "fljax")
    if "--help" in words or not words:
        return
    if not known.takes:
        parse(known.load(), words, command)
        return
    named, _ = split_files(words)  # files of fields are the reader's
    parsed, overrides = parse_known(known.load(), named, command)
    check_names(overrides, known.load())
    if known.takes == commands.ALL and not words[0].startswith("@"):
        fast = getattr(parsed, "fast", False)
        experiment = overridden(parsed.experiment, overrides, data_dir=parsed.data_dir, fast=fast)
        assert (experiment.sweep is not None) == (verb == "sweep")


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda v: v)
def test_command_exists(page, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    try:
        check(command)
    except FljaxError as error:
        pytest.fail(f"{page}: {command!r} does not parse ({error})")


def test_commands_are_found():
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{name(page)} links to {target}, which does not exist"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles]
            assert anchor in anchors, f"{name(page)} links to {target}, which has no such heading"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_is_valid_listed_and_has_its_header(path):
    experiment, said = read(path), header(path)
    assert experiment.name == path.stem
    assert experiment.title
    assert re.search(rf"\bcommand +.*fljax (run|sweep) {path.stem}\b", said), "the header lacks the command"
    assert re.search(r"\bexpected +\S", said), "the header lacks the expected numbers"
    assert re.search(r"\b[\d.]+ (s|seconds?|min|minutes?|h|hours?)\b", said), "the header lacks the time"
    assert f"]({path.name})" in (ROOT / "experiments/README.md").read_text(), "experiments/README.md does not list it"


def test_documentation_names_no_planned_work():
    for page in [*PAGES, *EXPERIMENTS]:
        assert not re.search(r"\b(TODO|FIXME|XXX|TBD)\b", page.read_text()), name(page)
