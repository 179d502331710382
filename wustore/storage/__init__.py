"""Bytes on disks and at URLs: staging, locks, stores, journals, threads and buffers."""
