"""The installed distribution: it is called `streamtask-kafka`, because `streamtask` on the package index is another project.

    pip install 'streamtask-kafka[dev-tools]'
    import streamtask

Both projects put their files into the folder `streamtask/`, so a mistaken `pip install streamtask` replaces `__init__.py` or
leaves its own files beside ours.
"""

from __future__ import annotations

from pathlib import Path

NAME = "streamtask-kafka"
PACKAGE = Path(__file__).resolve().parent
THEIRS = "streamtask.py"  # a module of the other project (0.0.9, 2023), and of none of our releases
REPAIR = f"pip uninstall -y streamtask && pip install --force-reinstall {NAME}"


def foreign_files(package: Path = PACKAGE) -> str | None:
    """One sentence if files of the other project lie among ours, otherwise None."""
    if not (package / THEIRS).exists():
        return None
    return (
        f"The project `streamtask` of the package index is installed in the folder of {NAME} ({package}), and each may have "
        f"replaced files of the other. Repair it: {REPAIR}"
    )


def requirement(*extras: str, version: str) -> str:
    """What another project writes to depend on the streamtask that runs now.

    `streamtask-kafka[dev-tools] @ file:///home/ada/streamtask` for one that was installed from a folder, a wheel or a
    repository, or runs from a clone; `streamtask-kafka[dev-tools]>=0.1` for one from a package index.
    """
    name = f"{NAME}[{','.join(extras)}]" if extras else NAME
    url = _origin()
    return f"{name} @ {url}" if url else f"{name}>={version}"


def _origin() -> str | None:
    """The URL that it was installed from (PEP 610); None if from an index. A file that has gone since counts as an index."""
    # Only `streamtask new` needs these; the other use of this module is in every import of streamtask.
    import json
    from importlib import metadata
    from urllib.parse import unquote, urlsplit

    clone = PACKAGE.parent
    if (clone / "pyproject.toml").is_file():
        return clone.as_uri()
    try:
        found = metadata.distribution(NAME).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    if not found:
        return None
    told = json.loads(found)
    url, repository = str(told["url"]), told.get("vcs_info")
    if repository:
        return f"{repository['vcs']}+{url}@{repository['commit_id']}"
    parts = urlsplit(url)
    return url if parts.scheme != "file" or Path(unquote(parts.path)).exists() else None
