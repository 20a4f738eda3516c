"""`python docs/name_sample.py [--count N] [--seed N]`: a random sample of public names, to test whether a reader can guess what each does.

Prints one name per line: modules, settings, functions and classes, and measures, in equal parts. Equal arguments print equal names.
"""

import argparse
import ast
import random
import re
from dataclasses import fields
from pathlib import Path

from objtune_cli.config.sections import SECTIONS

REPOSITORY = Path(__file__).parent.parent


def modules() -> list[str]:
    """Dotted names of all modules but packages, without the package's own name."""
    files = (REPOSITORY / "objtune_cli").rglob("*.py")
    return [
        ".".join(f.with_suffix("").parts[len(REPOSITORY.parts) + 1 :])
        for f in sorted(files)
        if not f.stem.startswith("__")
    ]


def settings() -> list[str]:
    """`section.setting` of every setting."""
    return [f"{name}.{field.name}" for name, section in SECTIONS.items() for field in fields(section)]


def functions() -> list[str]:
    """`module.function` of every public function, and `module.Class` of every public class."""
    found = []
    for name in modules():
        tree = ast.parse((REPOSITORY / "objtune_cli" / Path(*name.split("."))).with_suffix(".py").read_text())
        defined = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        found += [f"{name}.{n.name}" for n in defined if not n.name.startswith("_")]
    return found


def measures() -> list[str]:
    """The names in the first column of the tables of the page on measures."""
    page = (REPOSITORY / "docs" / "reference" / "measures.md").read_text().partition("## Former names")[0]
    cells = re.findall(r"^\| ([a-z_0-9, ]+?)(?: \([^)]*\))? \|", page, re.MULTILINE)
    return [name for cell in cells for name in cell.split(", ") if name not in ("measure", "row")]


def main() -> None:
    """Print the sample."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=80)
    parser.add_argument("--seed", type=int, default=27)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    kinds = {"module": modules(), "setting": settings(), "function": functions(), "measure": measures()}
    for kind, names in kinds.items():
        for name in rng.sample(sorted(set(names)), min(options.count // len(kinds), len(set(names)))):
            print(f"{kind:9} {name}")


if __name__ == "__main__":
    main()
