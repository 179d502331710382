"""KBMOD's FITS files, byte for byte."""
