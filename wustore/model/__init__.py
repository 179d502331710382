"""What a WorkUnit is, in memory, without any input or output."""
