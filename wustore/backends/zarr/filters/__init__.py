"""The codecs of many chunks, run by compiled loops."""
