"""What pcjax costs, measured beside its peers in one run."""
