"""Print the classes of a prepared dataset.

python -m maskx_jax classes --directory=DATA
"""

import pathlib

from maskx_jax import errors, files
from maskx_jax.coco.categories import Categories


def main(arguments=None):
    parser = errors.ArgumentParser(prog="python -m maskx_jax classes", description=__doc__.splitlines()[0])
    parser.add_argument("--directory", required=True, help="what `prepare` wrote")
    options = parser.parse_args(arguments)
    categories = Categories.from_coco(files.read_json(pathlib.Path(options.directory) / "categories.json"))
    print(*categories.names, sep="\n")
    return 0
