"""Which descriptions are taken for another language than the models'."""

import pytest

from annotation.statistics.doubts import is_foreign


@pytest.mark.parametrize(
    "text",
    [
        "Das Bild ist unscharf und dunkel.",
        "L'image est floue et sombre",
        "La mano tiene seis dedos",
        "画像がぼやけている",
        "Изображение размыто и тёмное",
    ],
)
def test_another_language(text: str) -> None:
    assert is_foreign(text)


@pytest.mark.parametrize(
    "text",
    [
        "Blurry face, extra fingers, dull colours",
        "waxy skin",
        "six fingers on hand",
        "lighthouse missing, prompt asks dusk",
        "The image is of poor quality. It is blurry, lacks clear definition.",
        "good",
        "",
    ],
)
def test_english_also_in_note_form(text: str) -> None:
    assert not is_foreign(text)
