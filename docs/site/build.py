"""Builds the documentation site: `make docs`.

The pages lie where they are read in the repository; here they are copied side by side, in the same places, so that
their links work on the site as well. Two things are generated: a page for each experiment, with its header and its
settings, and the reference of public names from their docstrings.

    python docs/site/build.py [--execute] [--out build/docs]

--execute runs the notebooks (a few minutes, kept in a cache); without it they are shown without outputs.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import fljax
from fljax.config import load

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    "README.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "NOTICE",
    "experiments/cluster/*",
    "docs/*.md",
    "docs/images/*",
    "notebooks/*.ipynb",
)
MODULES = {
    "Rounds and recipes": [
        "fljax.recipes",
        "fljax.server.round",
        "fljax.server.state",
        "fljax.server.sampler",
        "fljax.server.average",
        "fljax.server.execute",
        "fljax.client.sgd",
    ],
    "Stages": [
        "fljax.core.transform",
        "fljax.core.types",
        "fljax.core.check",
        "fljax.privacy.clip",
        "fljax.privacy.noise",
    ],
    "Secure sums and malicious clients": [
        "fljax.secure.fixedpoint",
        "fljax.secure.graph",
        "fljax.secure.masks",
        "fljax.secure.watermark",
        "fljax.secure.channel",
        "fljax.secure.protocol",
        "fljax.robust",
    ],
    "Privacy": ["fljax.privacy.accounting", "fljax.privacy.statement", "fljax.privacy.events"],
    "Runs, sweeps and results": [
        "fljax.config",
        "fljax.cli.arguments",
        "fljax.sim.run",
        "fljax.sweep.run",
        "fljax.sweep.store",
        "fljax.audit",
        "fljax.leakage",
    ],
    "Reports": ["fljax.report", "fljax.report.citation"],
    "Data and models": ["fljax.data", "fljax.models"],
}
"""Parts of the reference beside the front door: all public functions and classes of these modules."""

HOW_TOS = ("howto", "command_line", "sweeps")
"""Pages that tell how to do something; the others explain."""
FRONT = """<!doctype html><meta charset="utf-8"><title>fljax</title>
<meta http-equiv="refresh" content="0; url=docs/index.html"><a href="docs/index.html">fljax</a>
"""
"""The page of the folder: it leads to the first page of the site."""


def main(words: list[str] | None = None) -> int:
    """Puts the sources together and builds the site; returns Sphinx's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--execute", action="store_true", help="run the notebooks")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "docs", help="where to")
    options = parser.parse_args(words)
    os.environ["FLJAX_DOCS_EXECUTE"] = "cache" if options.execute else "off"
    from sphinx.cmd.build import main as sphinx

    sources = options.out / "sources"
    assemble(sources)
    built = sphinx(
        [
            "-W",
            "--keep-going",
            "-q",
            "-b",
            "html",
            "-c",
            str(ROOT / "docs/site"),
            str(sources),
            str(options.out / "html"),
        ]
    )
    if built == 0:
        (options.out / "html" / "index.html").write_text(FRONT)
        print(options.out / "html" / "docs" / "index.html")
    return built


def assemble(sources: Path) -> None:
    """Copies and generates all pages into a folder, which is replaced."""
    shutil.rmtree(sources, ignore_errors=True)
    for pattern in COPIED:
        for path in sorted(ROOT.glob(pattern)):
            _put(sources / path.relative_to(ROOT), path.read_bytes())
    for path in sorted((ROOT / "experiments").glob("*.toml")):
        _put(sources / "experiments" / f"{path.stem}.md", experiment_page(path).encode())
    gallery = (ROOT / "experiments/README.md").read_text().replace("# Experiments", "# Gallery of experiments", 1)
    _put(sources / "experiments/README.md", re.sub(r"\]\((\w+)\.toml\)", r"](\1.md)", gallery).encode())
    _put(sources / "docs/reference.md", reference_page().encode())
    for page in sorted((sources / "docs").glob("*.md")):
        page.write_text(site_links(page.read_text()))
    index = sources / "docs/index.md"
    index.write_text(index.read_text() + contents(sources))


def site_links(text: str) -> str:
    """Links to settings lead to the experiment's page; files of the code, which the site does not hold, are named."""
    text = re.sub(r"\]\(\.\./experiments/(\w+)\.toml\)", r"](../experiments/\1.md)", text)
    return re.sub(r"\[([^\]]+)\]\(\.\./((?:tests|fljax|benchmarks)/[^)]+)\)", r"\1 (`\2`)", text)


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def experiment_page(path: Path) -> str:
    """An experiment: its title, what its header says (command, time, expected numbers), and its settings."""
    lines = path.read_text().splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    header = "\n".join(line[1:].removeprefix(" ") for line in lines[:end])
    settings = "\n".join(lines[end:]).strip()
    title = load(path).title or path.stem
    return f"# {path.stem}\n\n{title}\n\n```text\n{header}\n```\n\n```toml\n{settings}\n```\n"


def contents(sources: Path) -> str:
    """The table of contents of the site, for the end of the first page."""
    pages = [p.stem for p in sorted((sources / "docs").glob("*.md"))]
    explained = [p for p in pages if p not in ("index", "reference", "notation", *HOW_TOS)]
    notebooks = [f"../notebooks/{p.stem}" for p in sorted((sources / "notebooks").glob("*.ipynb"))]
    gallery = sources / "experiments"
    others = [p.relative_to(gallery).with_suffix("") for p in sorted(gallery.rglob("*.md"))]
    experiments = [str(p) for p in others if p != Path("README")]
    parts = {
        "Start": ["../README"],
        "Tutorials": notebooks,
        "How-tos": [p for p in HOW_TOS if p in pages],
        "Explanations": explained,
        "Gallery": ["../experiments/README"],
        "Reference": ["reference", "notation", "../CHANGELOG"],
    }
    first = gallery / "README.md"
    first.write_text(first.read_text() + _tree("", experiments))
    return "".join(_tree(name, entries) for name, entries in parts.items())


def _tree(caption: str, entries: list[str]) -> str:
    options = (f":caption: {caption}\n" if caption else "") + ":hidden:\n:maxdepth: 1\n"
    return "\n```{toctree}\n" + options + "\n" + "\n".join(entries) + "\n```\n"


def reference_page() -> str:
    """The reference: the front door, then further modules by part."""
    lines = ["# Reference", "", "Names that `import fljax` hands out come first; the modules behind them follow.", ""]
    lines += ["## The front door", "", "| name | where it lives |", "|---|---|"]
    seen = set()
    for name in fljax.__all__:
        found = getattr(fljax, name)
        if inspect.isfunction(found) or inspect.isclass(found):
            lines.append(f"| `fljax.{name}` | {{py:obj}}`{found.__module__}.{found.__qualname__}` |")
    for part, modules in MODULES.items():
        lines += ["", f"## {part}", ""]
        for module in modules:
            found = importlib.import_module(module)
            text = (found.__doc__ or "").split("\n\n")[0].replace("\n", " ")
            lines += [f"### {module}", "", text, "", "```{eval-rst}"]
            for item in public(found):
                name = f"{item.__module__}.{item.__qualname__}"
                if name not in seen:
                    seen.add(name)
                    # The fields of a NamedTuple are told by its docstring; as members they would only be numbered.
                    members = inspect.isclass(item) and not hasattr(item, "_fields")
                    kind = "class" if inspect.isclass(item) else "function"
                    lines += [f".. auto{kind}:: {name}", *(["   :members:"] if members else []), ""]
            lines += ["```", ""]
    return "\n".join(lines)


def public(module: ModuleType) -> list[Any]:
    """The functions and classes that a module offers: those of its ``__all__``, or those that it defines itself."""
    names = getattr(module, "__all__", None)
    items = [getattr(module, n) for n in (vars(module) if names is None else names) if not n.startswith("_")]
    items = [item for item in items if inspect.isfunction(item) or inspect.isclass(item)]
    return items if names is not None else [item for item in items if item.__module__ == module.__name__]


if __name__ == "__main__":
    sys.exit(main())
