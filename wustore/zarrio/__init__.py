"""Zarr v3 on the level of keys and bytes: shards, chunk codecs and array metadata, without zarr-python.

Importing zarr takes longer than opening a store, and its pipeline decodes several times slower than a
pool of threads over the chunks of a shard; so the common case is read and written here, byte for byte
what the Zarr v3 specification says. Whatever these modules do not know is left to zarr-python.

Imports point down: `arrays` and `shards` -> `codecs`; `profiles` -> `shards`.
"""
