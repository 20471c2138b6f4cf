"""``python -m persam_video``: the command line."""

import sys

from persam_video.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
