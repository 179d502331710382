"""The files of a FITS WorkUnit: input, outer compression, output."""
