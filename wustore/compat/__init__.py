"""KBMOD's classes and HDUs, reproduced without a store."""
