"""nexus.files: whole or not at all, and with the right mode."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nexus.errors import ConfigError, Problem
from nexus.files import (
    MAX_FILE_BYTES,
    PRIVATE_MODE,
    PUBLIC_MODE,
    FollowedFile,
    give_to_owner_of,
    is_exposed,
    parse_text,
    read_file,
    write_private,
    write_public,
)

Writer = Callable[[Path, bytes], None]
WRITERS = [(write_private, PRIVATE_MODE), (write_public, PUBLIC_MODE)]


@pytest.fixture(params=[0o000, 0o077, 0o022])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """Every umask an operator may have."""
    value: int = request.param
    before = os.umask(value)
    yield value
    os.umask(before)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(("write", "mode"), WRITERS)
def test_a_written_file_has_its_content_and_exact_mode(write: Writer, mode: int, tmp_path: Path) -> None:
    """The mode is that of the function whatever the umask."""
    path = tmp_path / "file"
    write(path, b"content")
    assert path.read_bytes() == b"content"
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize(("write", "mode"), WRITERS)
def test_a_replaced_file_takes_content_and_mode_of_the_new_one(write: Writer, mode: int, tmp_path: Path) -> None:
    """An old file that everybody could write does not hand its mode on."""
    path = tmp_path / "file"
    path.write_bytes(b"old and longer")
    path.chmod(0o666)
    write(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_secret_is_private_before_it_has_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary file is created with 0600, not opened up and closed afterwards."""
    modes = []
    real = os.open

    def watched(path: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = real(path, flags, mode)
        if flags & os.O_CREAT:
            modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return descriptor

    monkeypatch.setattr(os, "open", watched)
    before = os.umask(0)
    try:
        write_private(tmp_path / "secret", b"secret")
    finally:
        os.umask(before)
    assert modes == [PRIVATE_MODE]


def test_a_symbolic_link_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    """Whoever can plant a link cannot make us overwrite another file."""
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    link = tmp_path / "link"
    link.symlink_to(target)
    write_private(link, b"secret")
    assert target.read_bytes() == b"precious"
    assert not link.is_symlink()
    assert link.read_bytes() == b"secret"


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_no_temporary_one(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, or a rename that is refused, costs nothing that was there."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync", refuse) if failing == "fsync" else (Path, "replace", refuse)))
    with pytest.raises(OSError, match="No space"):
        write_private(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    """Directories are the caller's business."""
    with pytest.raises(FileNotFoundError):
        write_public(tmp_path / "absent" / "file", b"")


def test_unusable_files_are_explained(tmp_path: Path) -> None:
    """Missing files, directories, odd paths, huge files and other encodings each get their own words."""
    latin, huge = tmp_path / "latin.yaml", tmp_path / "huge.yaml"
    latin.write_bytes("a: 1\nb: é\n".encode("latin-1"))
    huge.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    for path, what, line in [
        (tmp_path / "absent.yaml", "no such file", 0),
        (tmp_path, "is a directory", 0),
        (latin / "below", "cannot be read", 0),
        (Path("a\0b"), "cannot be read", 0),
        (huge, "is larger than", 0),
        (latin, "is not UTF-8", 2),
    ]:
        with pytest.raises(ConfigError) as caught:
            read_file(path)
        (problem,) = caught.value.problems
        assert (problem.source, problem.line) == (str(path), line)
        assert problem.what.startswith(what)


def test_text_that_was_read_elsewhere_is_explained_as_well() -> None:
    """From where it came, and without repeating it."""
    assert parse_text("stdin", "\ufeffé\n".encode()) == "é\n"
    for data, what in ((b"x" * (MAX_FILE_BYTES + 1), "is larger than"), (b"hush\xff", "is not UTF-8 text")):
        with pytest.raises(ConfigError, match=f"stdin.*{what}") as caught:
            parse_text("stdin", data)
        assert "hush" not in str(caught.value)


def _upper(text: str, source: str) -> str:
    if "bad" in text:
        raise ConfigError(Problem(source, 1, "", text))
    return text.upper()


def test_a_followed_file_gives_what_it_says_now(tmp_path: Path) -> None:
    """Only a change is news, and only one of what the file means."""
    path = tmp_path / "list"
    path.write_text("one")
    file = FollowedFile(path, _upper)
    assert (file.value, file.reload_if_changed()) == ("ONE", False)
    write_public(path, b"two")
    assert (file.reload_if_changed(), file.value, file.reload_if_changed()) == (True, "TWO", False)
    write_public(path, b"TWO")
    assert (file.reload_if_changed(), file.value) == (False, "TWO")


def test_a_file_that_cannot_be_used_keeps_the_old_value_and_is_told_of_once(tmp_path: Path) -> None:
    """Each new failure is told; the next good content is taken, and a file put back as it was is no failure."""
    path = tmp_path / "list"
    path.write_text("one")
    file = FollowedFile(path, _upper)
    path.unlink()
    with pytest.raises(ConfigError, match="no such file"):
        file.reload_if_changed()
    assert not file.reload_if_changed()
    write_public(path, b"bad")
    with pytest.raises(ConfigError, match="bad"):
        file.reload_if_changed()
    assert (file.reload_if_changed(), file.value) == (False, "ONE")
    write_public(path, b"two")
    assert (file.reload_if_changed(), file.value) == (True, "TWO")


@pytest.mark.parametrize("kind", ["missing", "directory", "pipe"])
def test_a_followed_file_must_be_one_from_the_start(tmp_path: Path, kind: str) -> None:
    """A pipe would stop whoever reads it."""
    path = tmp_path / kind
    if kind == "directory":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(ConfigError, match=rf"{kind}: (no such file|is a directory|is not a regular file)"):
        FollowedFile(path, _upper)


# -- Modes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "exposed"), [(0o600, False), (0o700, False), (0o400, False), (0o640, True), (0o604, True), (0o620, True)]
)
def test_a_file_is_exposed_when_others_may_do_anything_with_it(tmp_path: Path, mode: int, exposed: bool) -> None:
    """Group and world alike; who writes a secret knows it as well."""
    path = tmp_path / "file"
    path.touch()
    path.chmod(mode)
    assert is_exposed(path) is exposed


def test_what_is_not_there_is_not_exposed(tmp_path: Path) -> None:
    """Others tell of it."""
    assert not is_exposed(tmp_path / "absent")
    assert not is_exposed(Path("a\0b"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root writes for others")
def test_what_root_replaces_keeps_its_owner(tmp_path: Path) -> None:
    """The service that reads it runs as somebody else."""
    path = tmp_path / "key"
    path.write_text("old")
    os.chown(path, 12_345, 12_346)
    write_private(path, b"new")
    assert (path.read_bytes(), path.stat().st_uid, path.stat().st_gid) == (b"new", 12_345, 12_346)
    give_to_owner_of(path, tmp_path)
    assert path.stat().st_uid == tmp_path.stat().st_uid
