"""Stamps name the commit that a result follows from, and say when it follows from something else."""

import subprocess
from pathlib import Path

import pytest

from vilamp_lite.common import stamp
from vilamp_lite.common.stamp import make_stamp, short_commit


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in a repository of its own, committed."""
    root = tmp_path / "repository"
    for name in ("vilamp_lite/code.py", "data/weights", "README.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("as committed")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message=first")
    monkeypatch.setattr(stamp, "ROOT", root)
    return root


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_named(repository: Path) -> None:
    head = git(repository, "rev-parse", "HEAD")
    assert make_stamp()["commit"] == head
    (repository / "README.md").write_text("no result follows from it")
    assert make_stamp()["commit"] == head
    assert short_commit(make_stamp()) == head[:10]


@pytest.mark.parametrize("name", ["vilamp_lite/code.py", "vilamp_lite/new.py", "data/weights"])
def test_what_is_not_committed_is_said(name: str, repository: Path) -> None:
    (repository / name).write_text("changed")
    head = git(repository, "rev-parse", "HEAD")
    assert make_stamp()["commit"] == f"{head}-dirty"
    assert short_commit(make_stamp()) == f"{head[:10]}-dirty"


def test_another_repository_is_not_named(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package may lie inside somebody's project."""
    monkeypatch.setattr(stamp, "ROOT", repository / "vilamp_lite")
    assert make_stamp()["commit"] is None
    assert short_commit(make_stamp()) == "unknown"


def test_without_git_there_is_a_stamp_too(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert make_stamp(seed=3)["commit"] is None
    assert next(iter(make_stamp(seed=3))) == "seed"
