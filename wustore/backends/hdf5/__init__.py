"""HDF5: one file that any HDF5 or netCDF-4 tool opens."""
