"""The version of the package: what files and plans record of their writer."""

__version__ = "1.0.0"
