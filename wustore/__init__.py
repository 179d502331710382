"""wustore: the archive format, parallel reader and lossless converter for KBMOD WorkUnits."""
