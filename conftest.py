"""What pytest leaves alone: modules of packages that are not installed."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("verl") else ["entrocraft/verl/*"]
