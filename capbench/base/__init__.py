"""What all other parts use: errors, files, the cache folder, the processor, provenance."""
