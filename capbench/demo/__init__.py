"""A page on this machine where trained models meet pictures of one's own. Needs `capbench[demo]`."""
