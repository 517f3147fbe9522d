"""Where the minutes of `make reproduce` go, by the ``manifest.json`` that its last run left.

On a fresh machine `companion.publishing.reproduce` begins with what took longest by this record.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.alternate import Setting
from companion.pages.benchmark_records import Group, Row
from fusionlib.errors import FusionError


def run(setting: Setting) -> list[Group]:
    """Read what the last reproduction recorded."""
    return [stages(setting.reproduced / "manifest.json")]


def stages(record: Path) -> Group:
    """Minutes of each stage of a reproduction, the longest first.

    Raises:
        FusionError: There is no such file, or it is damaged, or holds no stage.
    """
    try:
        content = json.loads(record.read_text("utf-8"))
        minutes = {stage["name"]: stage["seconds"] / 60 for stage in content["stages"]}
        facts = f"profile {content['profile']}, commit {str(content['commit'])[:8]}"
        when = content["created"][:10]
        if not minutes:
            raise ValueError("no stage")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FusionError(
            f"{record} cannot be read ({type(error).__name__}: {error}): run `make reproduce`."
        ) from error
    failed = ", ".join(content.get("failed", {}))
    longest_first = sorted(minutes, key=minutes.__getitem__, reverse=True)
    note = (
        f"The stages of make reproduce, together {sum(minutes.values()):.1f} minutes, were taken "
        f"from the last run of each on this machine ({facts}, {when})."
    )
    note += f" Failed: {failed}." if failed else ""
    rows = tuple(Row(name, (minutes[name],)) for name in longest_first)
    return Group("make reproduce, minutes by stage", "minutes", rows, "value", note)
