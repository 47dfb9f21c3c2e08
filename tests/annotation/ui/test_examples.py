import runpy
from pathlib import Path

from annotation.ui.assess.examples import EXAMPLE_IMAGES, EXAMPLES_FOLDER, gallery
from m3agiqa import Aspect, Assessor
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


def test_prompts_that_fit_and_one_that_does_not_are_told_apart() -> None:
    nano, ratings = Assessor.from_pretrained("nano"), {}
    for example in EXAMPLE_IMAGES[:4]:
        image = open_image(example.path)
        judged = nano.assess(image, example.prompt, [Aspect.CORRESPONDENCE]).aspects
        ratings[example.caption] = judged[Aspect.CORRESPONDENCE].mos
    unrelated = ratings.pop("Not what the prompt asks for")
    assert unrelated < 2.6 and unrelated < min(ratings.values())
