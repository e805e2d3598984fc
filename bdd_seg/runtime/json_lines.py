"""Read files with a JSON object on each line, as mmengine logs scalars and scores."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects in a file. Other lines, such as one cut short by a kill, are passed over.

    Args:
        file: Its path. One that cannot be read as text yields nothing.
    """
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError):
        return
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record
