"""A page on this machine where trained models caption, search and align pictures of one's own. Needs `capbench[demo]`."""
