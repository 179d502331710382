"""Reading and writing FITS files byte for byte."""
