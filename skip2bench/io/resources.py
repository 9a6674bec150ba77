"""Files that ship beside the code: report templates, config_hub, the embedded model.

A wheel carries `templates` and `config_hub` inside the package; a checkout has them at its top
level.
"""

from pathlib import Path

EMBEDDED_MODEL = "pystd"


def embedded_checkpoint() -> Path:
    """Folder of the embedded model."""
    return find_resource("assets") / EMBEDDED_MODEL


_PACKAGE = Path(__file__).parents[1]


def find_resource(name: str) -> Path:
    """Path of the shipped file or folder `name`, such as "templates" or "assets/pystd".

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    for parent in (_PACKAGE, _PACKAGE.parent):
        if (parent / name).exists():
            return parent / name
    raise FileNotFoundError(f"{name} is missing from the installation of skip2bench")
