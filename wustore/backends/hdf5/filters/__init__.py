"""The filters of HDF5 chunks, run outside the HDF5 library."""
