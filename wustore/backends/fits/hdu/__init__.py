"""Header-data units: headers, images, tables, checksums."""
