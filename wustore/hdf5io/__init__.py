"""HDF5 below the backend: chunk filters outside the library, raw chunk access, netCDF-4 conventions."""
