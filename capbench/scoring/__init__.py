"""Outputs of any system: read from files, joined with a data set by id, scored under a protocol, recorded."""
