import runpy
from pathlib import Path

from annotation.ui.assess.examples import EXAMPLE_IMAGES, EXAMPLES_FOLDER, gallery
from m3agiqa.images import open_image


def test_every_example_is_drawn_by_the_project_and_can_be_read():
    drawn = runpy.run_path(str(Path(__file__).parents[3] / "tools/draw_examples.py"))["DRAWINGS"]
    assert (
        {path.name for path in EXAMPLES_FOLDER.iterdir()} == set(drawn) == {e.image for e in EXAMPLE_IMAGES}
    )
    for example in EXAMPLE_IMAGES:
        assert open_image(example.path).size == (640, 640)


def test_gallery_has_a_button_for_each():
    html = gallery()
    for index, example in enumerate(EXAMPLE_IMAGES):
        assert f'data-index="{index}"' in html
        assert example.caption in html
