"""What everything stands on: errors, files, the processor, where a number comes from."""
