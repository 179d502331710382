"""Zarr v3: directories, zip files and any zarr Store."""
