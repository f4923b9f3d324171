"""The Hugging Face Hub as its client leaves it on disk."""

import hashlib
from pathlib import Path

COMMIT = "0123456789abcdef" * 2 + "01234567"


def write_snapshot(cache: Path, name: str, source: Path) -> Path:
    """Puts a folder into a cache as repository `name`: blobs, links to them, and the branch."""
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    (home / "blobs").mkdir(parents=True)
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        blob = home / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.write_bytes(path.read_bytes())
        link = snapshot / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        up = "../" * len(link.relative_to(home).parent.parts)
        link.symlink_to(f"{up}blobs/{blob.name}")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    return snapshot
