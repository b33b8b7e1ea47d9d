"""Where things lie, for tests in any folder."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
"""What a process that imports `helpers` needs on its path."""

ROOT = TESTS.parent
SHARED = ROOT.parent / "shared"
"""Material beside the checkout; tests run without it too."""

VIDEOS = SHARED / "videos"
