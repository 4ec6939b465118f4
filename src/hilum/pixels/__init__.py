"""Stored frames in, arrays and pictures out; the only owner of codecs. Never reads a store."""
