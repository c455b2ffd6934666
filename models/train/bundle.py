"""Files: the four files of a bundle as bytes, and their way onto the disk.

What lives here: the shape of the card (the contract is ../README.md), one JSON layout for all files, writing.
What does not: any number; everything arrives computed.
"""

import hashlib
import json
import shutil
from pathlib import Path

from train.catalogue import CREATED, INTENDED_USE, OWNER, Recipe
from train.export import INPUT, OUTPUT
from train.measure import Platt

WIDE = 120


def to_json(value) -> bytes:
    """Readable JSON with the key order of the caller: small values on one line, everything else indented. The same
    value always gives the same bytes."""
    return (_layout(value, 0) + "\n").encode()


def _layout(value, depth: int) -> str:
    flat = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not isinstance(value, (dict, list)) or not value or len(flat) + depth <= WIDE:
        return flat
    pad = " " * (depth + 2)
    if isinstance(value, dict):
        lines = [f"{pad}{json.dumps(k, ensure_ascii=False)}: {_layout(v, depth + 2)}" for k, v in value.items()]
        return "{\n" + ",\n".join(lines) + "\n" + " " * depth + "}"
    lines = [pad + _layout(v, depth + 2) for v in value]
    return "[\n" + ",\n".join(lines) + "\n" + " " * depth + "]"


def golden_json(rows: list[dict], scores: list[float], uplifts: list[list[float]] | None = None) -> bytes:
    """One row a line: a change of one score shows as a change of one line."""
    written = [{"features": row, "score": round(score, 9)} for row, score in zip(rows, scores, strict=True)]
    for row, given in zip(written, uplifts or []):
        row["uplift"] = [round(uplift, 9) for uplift in given]
    lines = ["  " + json.dumps(row, ensure_ascii=False, allow_nan=False) for row in written]
    return ('{"rows": [\n' + ",\n".join(lines) + "\n]}\n").encode()


def scores_csv(scores: list[float]) -> bytes:
    """Score of every row of the source, by its 0-based line below the header; no customer's data."""
    return ("row,score\n" + "".join(f"{row},{score:.9g}\n" for row, score in enumerate(scores))).encode()


def manifest(
    recipe: Recipe, *, training: dict, metrics: dict, platt: Platt, columns: int, files: dict[str, bytes]
) -> dict:
    """The card. Keys and their order are those of the contract."""
    return {
        "format": 1,
        "name": recipe.name,
        "version": recipe.version,
        "created": CREATED,
        "title": recipe.title,
        "description": recipe.description,
        "intended_use": INTENDED_USE,
        "limits": list(recipe.limits),
        "owner": OWNER,
        "lineage": [recipe.source.lineage()],
        "training": training,
        "metrics": metrics,
        "calibration": {"method": "platt", "a": platt.a, "b": platt.b},
        "graph": {
            "input": INPUT, "output": OUTPUT, "columns": columns, "output_column": 1, "output_columns": 2,
        },
        "features": recipe.dictionary,
        "waivers": [],
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        },
    }  # fmt: skip


def write(out: Path, files: dict[str, bytes]) -> None:
    """Write files by their path below `out`. A bundle directory holds exactly its files, so an old one goes first; the
    new one is complete before it takes the name."""
    for directory in sorted({Path(path).parent for path in files}):
        target = out / directory
        fresh = target.with_name(f".{target.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for path, content in files.items():
            if Path(path).parent == directory:
                (fresh / Path(path).name).write_bytes(content)
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)


def write_or_check(out: Path, files: dict[str, bytes], check: bool) -> int:
    """Writes `files`, or only compares them with what is there: the exit code."""
    if not check:
        write(out, files)
        print(f"{len(files)} files written")
        return 0
    differing = differences(out, files)
    print("\n".join(f"differs: {path}" for path in differing) or f"{len(files)} files are byte-identical")
    return 1 if differing else 0


def differences(out: Path, files: dict[str, bytes]) -> list[str]:
    """Paths whose committed bytes are not these."""

    def same(path: Path, content: bytes) -> bool:
        return path.is_file() and path.read_bytes() == content

    return [path for path, content in files.items() if not same(out / path, content)]
