"""The config of a run that an earlier version has begun, in the fields of this one."""

from typing import Any

# Fields that were renamed, section by section.
_RENAMED = {
    "data": {"mask_split": "mask_classes"},
    "evaluation": {"split": "mask_classes"},
    "optimizer": {"frozen": "untrained"},
}


def upgrade(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a run with every renamed field under its name of today; nothing else changes.

    Args:
      config: as read from a config.json, of any version and perhaps damaged. It is not changed.
    """
    config = dict(config)
    for section, names in _RENAMED.items():
        fields = config.get(section)
        if isinstance(fields, dict):
            config[section] = {names.get(name, name): value for name, value in fields.items()}
    return config
