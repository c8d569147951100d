"""Add records of `bench attack` to the zoo, without their images: python zoo/add.py RECORD [RECORD ...]."""

import sys
from pathlib import Path

from clp_plugin.adapters.builtin.borrowed_images import without_images
from clp_plugin.errors import ClpError

ZOO = Path(__file__).parent


def main(records: list[str]) -> int:
    """Add each record under its own name; returns the exit code."""
    if not records:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        for record in map(Path, records):
            without_images(record, ZOO / record.name)
    except ClpError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
