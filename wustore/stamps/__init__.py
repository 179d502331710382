"""Cutting out: windows, stamps through time, trajectories, coadds."""
