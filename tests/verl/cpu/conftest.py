"""Nothing here is for pytest, which would import it all in search of doctests."""

collect_ignore_glob = ["*.py"]
