"""The wustore format without a container: document, arrays, JSON with tags, WCS text."""
