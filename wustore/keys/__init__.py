"""Bytes by key: where they are kept, what a path or URL leads to, and what has been written of a store so far."""
