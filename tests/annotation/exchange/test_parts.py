from collections.abc import Callable

from annotation.exchange.dataset import split_of_items
from annotation.store import Store
from annotation.store.image_files import StoredImage
from annotation.store.items import add_item


def add(store: Store, image: int, prompt: str | None) -> int:
    stored = StoredImage(f"{image:064x}", f"{image}.png", f"{image}.png", 64, 48, 100)
    return store.database.transact(lambda session: add_item(session, stored, prompt, "test")[0].id)


def found(store: Store) -> dict[int, str]:
    with store.database.reading() as session:
        return split_of_items(session)


def test_about_a_fifth_is_held_out_and_prompts_stay_together(store: Store) -> None:
    prompts = {add(store, image, f"prompt {image % 100}"): image % 100 for image in range(200)}
    of_item = found(store)
    of_prompt = {prompts[item]: part for item, part in of_item.items()}
    assert of_item == {item: of_prompt[prompt] for item, prompt in prompts.items()}
    assert 10 <= sum(part == "test" for part in of_prompt.values()) <= 30


def prompt_of(part: str, store: Store, image: int, prefix: str) -> tuple[int, str]:
    """A prompt that the hash puts into the part, added with an image."""
    for number in range(image * 1000, image * 1000 + 1000):
        item = add(store, number, f"{prefix} {number}")
        if found(store)[item] == part:
            return item, f"{prefix} {number}"
    raise AssertionError("a hundred prompts are in the other part")


def test_spelling_makes_no_other_prompt(store: Store) -> None:
    held_out, prompt = prompt_of("test", store, 1, "a cat")
    shouted = add(store, 5, prompt.upper())
    assert found(store)[shouted] == found(store)[held_out] == "test"


def test_prompts_that_share_an_image_stay_together_and_the_first_one_decides(store: Store) -> None:
    first, prompt = prompt_of("test", store, 1, "a cat")
    second, other = prompt_of("train", store, 2, "a dog")
    third = add(store, 7, prompt)
    linking = add(store, 7, other)
    of_item = found(store)
    assert {of_item[item] for item in (first, second, third, linking)} == {"test"}


def test_images_without_a_prompt_go_on_their_own(store: Store) -> None:
    for image in range(30):
        add(store, image, None)
    assert set(found(store).values()) == {"train", "test"}


def test_what_is_added_later_changes_nothing(store: Store, png: Callable[[int], bytes]) -> None:
    for image in range(20):
        add(store, image, f"prompt {image}")
    before = found(store)
    for image in range(20, 40):
        add(store, image, f"prompt {image - 5}")
    assert {item: found(store)[item] for item in before} == before
