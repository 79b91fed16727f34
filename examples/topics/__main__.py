"""Makes the folder runnable: ``python examples/topics``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from topics.cli import main

if __name__ == "__main__":
    main()
