import io
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from annotation.store import ImageFiles
from annotation.store import image_files as image_files_module
from annotation.store.database import StoreError
from m3agiqa.errors import InputError


@pytest.fixture
def images(tmp_path: Path) -> ImageFiles:
    return ImageFiles(tmp_path / "new" / "images")


def encoded(format: str, size: tuple[int, int] = (64, 48), **options: object) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(file, format, **options)
    return file.getvalue()


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_file_is_kept_as_it_is_under_the_name_of_its_content(
    images: ImageFiles, png: Callable[[int], bytes], tmp_path: Path
) -> None:
    source = tmp_path / "cat.png"
    source.write_bytes(png(1))
    stored = images.add(source, "cat.png")
    assert images.path(stored.file).read_bytes() == png(1)
    assert stored.file == f"{stored.sha256[:2]}/{stored.sha256}.png"
    assert (stored.name, stored.width, stored.height, stored.size) == ("cat.png", 64, 48, len(png(1)))


def test_the_same_content_is_kept_once(images: ImageFiles, png: Callable[[int], bytes]) -> None:
    first, second = images.add(png(1), "a.png"), images.add(png(1), "b.png")
    assert (first.sha256, first.file) == (second.sha256, second.file)
    assert images.add(png(2), "a.png").sha256 != first.sha256
    assert len(files_in(images.folder)) == 2


@pytest.mark.parametrize(
    ("format", "suffix"),
    [
        ("PNG", ".png"),
        ("JPEG", ".jpg"),
        ("WEBP", ".webp"),
        ("TIFF", ".tif"),
        ("BMP", ".bmp"),
        ("GIF", ".gif"),
    ],
)
def test_the_name_ends_as_the_content_is_whatever_the_owner_called_it(
    images: ImageFiles, format: str, suffix: str
) -> None:
    assert images.add(encoded(format), "picture.html").file.endswith(suffix)


def test_a_photo_is_measured_upright(images: ImageFiles) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    stored = images.add(encoded("JPEG", (64, 48), exif=exif), "photo.jpg")
    assert (stored.width, stored.height) == (48, 64)


@pytest.mark.parametrize(
    ("name", "kept"),
    [("../../etc/passwd", "passwd"), ("a\0b.png", "ab.png"), ("half \udc80.png", "half ?.png")],
)
def test_names_that_would_trouble_a_database_or_a_folder(
    images: ImageFiles, png: Callable[[int], bytes], name: str, kept: str
) -> None:
    assert images.add(png(1), name).name == kept


@pytest.mark.parametrize("content", [b"", b"<svg/>", b"\x89PNG\r\n\x1a\n" + b"x" * 100])
def test_what_is_no_image_is_refused_and_not_kept(images: ImageFiles, content: bytes) -> None:
    with pytest.raises(InputError):
        images.add(content, "a.png")
    assert files_in(images.folder) == []


def test_files_that_are_too_large_or_missing(
    images: ImageFiles, png: Callable[[int], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"gone\.png cannot be read"):
        images.add(tmp_path / "gone.png", "gone.png")
    with pytest.raises(InputError, match="cannot be read"):
        images.add(tmp_path, "folder")
    monkeypatch.setattr(image_files_module, "MAX_FILE", 10)
    with pytest.raises(InputError, match=r"a\.png is larger than"):
        images.add(png(1), "a.png")


def test_many_who_add_the_same_at_once(images: ImageFiles, png: Callable[[int], bytes]) -> None:
    with ThreadPoolExecutor(16) as threads:
        stored = list(threads.map(lambda number: images.add(png(number % 4), "a.png"), range(64)))
    assert len(files_in(images.folder)) == 4
    for number, image in enumerate(stored):
        assert images.path(image.file).read_bytes() == png(number % 4)


def test_a_full_disk_leaves_no_half_file(small_disk: Path) -> None:
    images = ImageFiles(small_disk / "images")
    first = images.add(encoded("BMP", (400, 400)), "a.bmp")
    with pytest.raises(StoreError, match="disk is full"):
        images.add(encoded("BMP", (500, 500)), "b.bmp")
    assert files_in(images.folder) == [first.file]
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)  # somebody makes room
    images.add(encoded("BMP", (500, 500)), "b.bmp")


def test_a_folder_that_may_not_be_written_to(tmp_path: Path, png: Callable[[int], bytes]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be kept in .*file/images"):
        ImageFiles(tmp_path / "file" / "images").add(png(1), "a.png")


def test_a_stored_file_that_was_cut_off_is_put_right(images: ImageFiles, png: Callable[[int], bytes]) -> None:
    path = images.path(images.add(png(1), "a.png").file)
    path.write_bytes(png(1)[:40])
    images.add(png(1), "a.png")
    assert path.read_bytes() == png(1)
