"""The programs of this package.

    python -m maskx_jax VERB ...

Every file of maskx_jax/cli with a function `main` is a verb; only the one that is asked for is imported.
"""

import ast
import importlib
import pathlib
import sys
from typing import NoReturn

from maskx_jax import errors

CLI = pathlib.Path(__file__).with_name("cli")


def verbs() -> dict[str, str]:
    """Return what each verb does, in a line: the first of its docstring."""
    modules = {path.stem.replace("_", "-"): ast.parse(path.read_text()) for path in sorted(CLI.glob("*.py"))}
    return {
        verb: (ast.get_docstring(module) or "").partition("\n")[0]
        for verb, module in modules.items()
        if any(isinstance(part, ast.FunctionDef) and part.name == "main" for part in module.body)
    }


def main() -> int:
    """Run the verb; return its exit code."""
    known = verbs()
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("--help", "-h"):
        width = max(map(len, known))
        print("usage: python -m maskx_jax VERB ... (VERB --help lists its arguments)\n")
        print("\n".join(f"  {name:{width}}  {line}" for name, line in known.items()))
        return 0
    if verb not in known:
        raise ValueError(f"got the verb {verb!r}; expected one of {', '.join(known)}")
    sys.argv[:2] = [f"python -m maskx_jax {verb}"]
    code: int = importlib.import_module(f"maskx_jax.cli.{verb.replace('-', '_')}").main()
    return code


def console() -> NoReturn:
    """Run as the command `maskx`, which installing the package makes."""
    errors.run(main)


if __name__ == "__main__":
    console()
