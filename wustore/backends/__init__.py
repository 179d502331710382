"""Storage formats: the contract that a plug-in implements, and a folder or module for each built-in format."""

from wustore.backends.base import Backend, Encoder, Index, Progress, Reader, ResumableWriter, Writer

__all__ = ["Backend", "Encoder", "Index", "Progress", "Reader", "ResumableWriter", "Writer"]
