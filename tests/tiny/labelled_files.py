"""Labelled texts of a user's own as files."""

import json


def folder(path, **splits):
    """Write a jsonl file for each split, of rows (text, label) or (text, label, more columns); returns the override."""
    for name, rows in splits.items():
        lines = (json.dumps({"text": row[0], "label": row[1], **(row[2] if len(row) > 2 else {})}) for row in rows)
        (path / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return f"data.path={path}"
