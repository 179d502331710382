"""SearchConfiguration under KBMOD's import path ``kbmod.configuration``."""

from wustore.compat.configuration import SearchConfiguration

__all__ = ["SearchConfiguration"]
