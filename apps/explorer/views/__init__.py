"""One file per page of the explorer."""
