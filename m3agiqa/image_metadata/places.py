"""The texts of an image file, by the place where they stand."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from xml.etree import ElementTree

import numpy as np
from PIL import ExifTags, Image

from m3agiqa.images import MAX_PIXELS, METADATA_LEFT_OUT, ImageSource, is_metadata_bomb, opened

MAX_METADATA = 8_000_000  # characters of one text; ComfyUI's largest graphs have about a million
MAX_XMP = 1_000_000  # bytes

HIDDEN_TEXT = "stealth PNG info"
"""The name of the text in the pixels, after the extension of A1111 that began it."""

Texts = Mapping[str, str]
"""By their names in the file."""


class TextPlace(StrEnum):
    """Where texts can stand, in words for people."""

    PNG_TEXT = "PNG text"
    COMMENT = "file comment"
    EXIF = "EXIF"
    XMP = "XMP"
    HIDDEN = "hidden in the pixels"


def texts_in_metadata(source: ImageSource) -> dict[TextPlace, Texts]:
    """Of a file or of an image that is not decoded yet; nothing of what cannot be opened.

    Where they are too large to unpack, METADATA_LEFT_OUT stands in their place.
    """
    with suppress(Exception), opened(source) as image:  # decoders raise all kinds of errors
        return _texts(image)
    return {}


def texts_behind_pixels(source: ImageSource) -> dict[TextPlace, Texts]:
    """The texts that can only be read with the pixels: behind them in the file, or hidden in them."""
    with suppress(Exception), opened(source) as image:
        if image.format in ("PNG", "WEBP") and image.width * image.height <= MAX_PIXELS:
            try:
                image.load()
            except ValueError as error:
                if not is_metadata_bomb(error):
                    raise
                return {TextPlace.PNG_TEXT: {METADATA_LEFT_OUT: "yes"}}
            return {**_texts(image), TextPlace.HIDDEN: {HIDDEN_TEXT: _hidden_text(image) or ""}}
    return {}


def _texts(image: Image.Image) -> dict[TextPlace, Texts]:
    texts: dict[TextPlace, Texts] = {
        TextPlace.PNG_TEXT: {str(key): value for key, value in image.info.items() if isinstance(value, str)},
        TextPlace.COMMENT: {"comment": _decoded(image.info.get("comment"))},
    }
    for place, read in ((TextPlace.EXIF, _exif_texts), (TextPlace.XMP, _xmp_texts)):
        with suppress(Exception):
            texts[place] = read(image)
    return {
        place: {key: text for key, text in named.items() if 0 < len(text) <= MAX_METADATA}
        for place, named in texts.items()
    }


def _exif_texts(image: Image.Image) -> Texts:
    exif = Image.Image.getexif(image)  # PNG files' own method would decode all pixels first
    values = {
        "UserComment": exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment),
        "ImageDescription": exif.get(ExifTags.Base.ImageDescription),
        "Model": exif.get(ExifTags.Base.Model),
        "Make": exif.get(ExifTags.Base.Make),
    }
    return {key: _decoded(value) for key, value in values.items()}


def _decoded(value: object) -> str:
    """EXIF text; a UserComment begins with eight bytes that name its encoding."""
    if not isinstance(value, bytes):
        return value if isinstance(value, str) else ""
    code, text = value[:8], value[8:]
    if code == b"UNICODE\0":
        if text.startswith((b"\xff\xfe", b"\xfe\xff")):
            return text.decode("utf-16", errors="replace")
        # The standard leaves the byte order open. Spaces and ASCII letters have a zero high byte.
        big = text[0::2].count(0) >= text[1::2].count(0)
        return text.decode("utf-16-be" if big else "utf-16-le", errors="replace")
    if code not in (b"ASCII\0\0\0", bytes(8)):
        text = value
    return text.decode("utf-8", errors="replace")


_XMP_NAMES = {
    "{http://purl.org/dc/elements/1.1/}description": "description",
    "{http://ns.adobe.com/exif/1.0/}UserComment": "UserComment",
    "{http://ns.adobe.com/xap/1.0/}CreatorTool": "CreatorTool",
}


def _xmp_texts(image: Image.Image) -> Texts:
    """Properties are elements, with one text for each language, or attributes."""
    packet = image.info.get("xmp", b"")
    if not packet or len(packet) > MAX_XMP or b"<!" in packet:  # entities can grow without end
        return {}
    texts: dict[str, str] = {}
    for element in ElementTree.fromstring(packet.strip(b"\0\t\r\n ")).iter():
        for name in _XMP_NAMES.keys() & element.attrib.keys():
            texts.setdefault(_XMP_NAMES[name], element.attrib[name])
        if element.tag in _XMP_NAMES:
            text = next((text for text in element.itertext() if text.strip()), "")
            texts.setdefault(_XMP_NAMES[element.tag], text)
    return texts


_STEALTH_SIGNATURES = {  # channels, and whether the text is compressed
    b"stealth_pnginfo": ("A", False),
    b"stealth_pngcomp": ("A", True),
    b"stealth_rgbinfo": ("RGB", False),
    b"stealth_rgbcomp": ("RGB", True),
}
_SIGNATURE_BITS = 15 * 8
_LENGTH_BITS = 32


def _hidden_text(image: Image.Image) -> str | None:
    """What the lowest bits of the pixels spell, column by column: signature, number of bits, text."""
    for channels in ("A", "RGB"):
        if not set(channels) <= set(image.getbands()):
            continue
        start = _SIGNATURE_BITS + _LENGTH_BITS
        head = _lowest_bits(image, channels, start)
        hidden_in, compressed = _STEALTH_SIGNATURES.get(head[: _SIGNATURE_BITS // 8], ("", False))
        if hidden_in != channels:
            continue
        length = min(int.from_bytes(head[_SIGNATURE_BITS // 8 :], "big"), 8 * MAX_METADATA)
        data = _lowest_bits(image, channels, start + length)[start // 8 :]
        if compressed:
            data = zlib.decompressobj(wbits=31).decompress(data, MAX_METADATA)
        return data.decode("utf-8", errors="replace")
    return None


def _lowest_bits(image: Image.Image, channels: str, count: int) -> bytes:
    """The first ones, packed."""
    columns = min(-(-count // (image.height * len(channels))), image.width)
    pixels = np.asarray(image.crop((0, 0, columns, image.height)))
    bits = pixels[..., [image.getbands().index(channel) for channel in channels]] & 1
    return np.packbits(bits.swapaxes(0, 1).reshape(-1)[:count]).tobytes()
