from gradio.blocks import BlocksConfig
from gradio.state_holder import SessionState

from annotation.ui.context import Studio
from annotation.ui.server import build_page


def test_each_visit_begins_as_gradio_says_and_keeps_its_values_to_itself(studio: Studio) -> None:
    page = build_page(studio)
    first, second = SessionState(page), SessionState(page)
    fresh = {number: BlocksConfig.config_for_block(number, [], part) for number, part in page.blocks.items()}
    assert first.config_values == second.config_values == fresh
    number = next(number for number, part in page.blocks.items() if "value" in fresh[number]["props"])
    first._update_value_in_config(number, "of the first visit")
    assert second.config_values == SessionState(page).config_values == fresh


def test_a_page_looks_for_events_at_most_a_hundred_times_a_second(studio: Studio) -> None:
    queue = build_page(studio)._queue
    assert min(queue.sleep_when_free, queue.progress_update_sleep_when_free) >= 0.01
