"""The version of the package: what files and plans record of their writer."""

__version__ = "0.1.0"
