import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotation.exchange import import_zip as archive
from annotation.exchange.import_zip import Archive
from m3agiqa.errors import InputError

Zip = Callable[..., Path]


@pytest.fixture
def make_zip(tmp_path: Path) -> Zip:
    def make(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
        path = tmp_path / "made.zip"
        with zipfile.ZipFile(path, "w", compression) as file:
            for name, content in members.items():
                file.writestr(name, content)
        return path

    return make


def test_members_are_read_by_name(make_zip: Zip) -> None:
    with Archive(make_zip({"a/b.txt": b"one", "c.txt": b"two"})) as opened:
        assert {str(path) for path in opened.members} == {"a/b.txt", "c.txt"}
        assert opened.read(PurePosixPath("a/b.txt")) == b"one"


@pytest.mark.parametrize(
    "name", ["../out.png", "a/../../out.png", "/etc/out.png", "C:\\out.png", "..\\out.png"]
)
def test_names_that_lead_out_are_refused(make_zip: Zip, name: str) -> None:
    with Archive(make_zip({name: b"x", "good.png": b"y"})) as opened:
        assert [str(path) for path in opened.members] == ["good.png"]
        ((_, reason),) = opened.refused
        assert "leads out" in reason


def test_links_are_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = tmp_path / "link.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(info, "/etc/passwd")
    with Archive(path) as opened:
        assert not opened.members
        assert opened.refused[0][0] == "link.png"
        assert "link" in opened.refused[0][1]


def test_bookkeeping_of_the_mac_is_left_out(make_zip: Zip) -> None:
    with Archive(
        make_zip({"a.png": b"", "__MACOSX/._a.png": b"", "._a.png": b"", ".DS_Store": b""})
    ) as opened:
        assert [str(path) for path in opened.members] == ["a.png"]
        assert not opened.refused


def test_names_in_utf8_that_are_not_marked_as_such(tmp_path: Path) -> None:
    path = tmp_path / "old.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("XXXX.png", b"x")
    path.write_bytes(path.read_bytes().replace(b"XXXX", "ÄÖ".encode()))
    with Archive(path) as opened:
        assert [str(name) for name in opened.members] == ["ÄÖ.png"]


def test_backslashes_divide_folders(make_zip: Zip) -> None:
    with Archive(make_zip({"cats\\a.png": b"x"})) as opened:
        assert opened.read(PurePosixPath("cats/a.png")) == b"x"


def test_an_encrypted_archive_is_refused(make_zip: Zip) -> None:
    path = make_zip({"a.png": b"secret"})
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flags of the file's own header, and of its entry in the table of contents
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="encrypted"):
        Archive(path)


def test_a_bomb_is_refused_by_its_ratio(make_zip: Zip) -> None:
    with Archive(make_zip({"bomb.png": bytes(20_000_000), "flat.bmp": bytes(1_000_000)})) as opened:
        assert [str(path) for path in opened.members] == ["flat.bmp"]
        assert "200 times" in opened.refused[0][1]


def test_limits_are_named(make_zip: Zip, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_zip({f"{i}.png": bytes(100) for i in range(5)})
    with monkeypatch.context() as limits:
        limits.setattr(archive, "MAX_MEMBERS", 4)
        with pytest.raises(InputError, match="holds 5 files; at most 4"):
            Archive(path)
    with monkeypatch.context() as limits:
        limits.setattr(archive, "MAX_TOTAL", 499)
        with pytest.raises(InputError, match="would unpack"):
            Archive(path)
    with monkeypatch.context() as limits:
        limits.setattr(archive, "MAX_DIRECTORY", 100)
        with pytest.raises(InputError, match="table of contents"):
            Archive(path)
    with monkeypatch.context() as limits:
        limits.setattr(archive, "MAX_MEMBER", 99)
        with Archive(path) as opened:
            assert len(opened.refused) == 5


@pytest.mark.parametrize("usual_place", [0xFFFFFFFF, 100])
@pytest.mark.parametrize("told_to_lie_at", [0, 7, 2**64 - 1])
def test_the_table_of_contents_of_a_zip64_is_measured(
    tmp_path: Path, usual_place: int, told_to_lie_at: int
) -> None:
    """Such an archive keeps the size elsewhere, and a small number in its place must not be believed."""
    end64 = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 9**6, 9**6, 9**9, 0)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, told_to_lie_at, 1)
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, usual_place, 0xFFFFFFFF, 0)
    path = tmp_path / "huge.zip"
    path.write_bytes(end64 + locator + end)
    with pytest.raises(InputError, match=r"table of contents|damaged"):
        Archive(path)


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"PK\5\6", b"PK\3\4" + bytes(100)])
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "no.zip"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"no\.zip is damaged or no ZIP"):
        Archive(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_told_as_such(make_zip: Zip, data: st.DataObject) -> None:
    """Whatever bytes are wrong, there is content or an InputError, and nothing else."""
    path = make_zip({"a.png": b"abc" * 50, "b.txt": b"d" * 30})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) - 40, len(content)))])
    try:
        with Archive(path) as opened:
            for name in opened.members:
                opened.read(name)
    except InputError:
        pass
