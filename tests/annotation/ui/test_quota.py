"""A quota counts the images of the past hour, user by user."""

import pytest

from annotation.ui.quota import Quota, QuotaUsedUp


def test_images_are_free_again_after_an_hour_and_the_sentence_says_when() -> None:
    now = [0.0]
    quota = Quota(5, clock=lambda: now[0])
    quota.take("ann", 3)
    now[0] = 600
    quota.take("ann", 2)
    with pytest.raises(QuotaUsedUp, match=r"they are used up; it goes on at 01:00 UTC") as used_up:
        quota.check("ann")
    assert used_up.value.seconds == 3000
    with pytest.raises(QuotaUsedUp, match="it goes on at 01:10 UTC"):
        quota.take("ann", 4)
    quota.take("bob", 5)
    now[0] = 3601
    quota.check("ann")
    with pytest.raises(QuotaUsedUp, match="3 of them are left; it goes on at 01:10 UTC"):
        quota.take("ann", 4)
    quota.take("ann", 3)


def test_more_than_an_hours_worth_is_told_at_once() -> None:
    with pytest.raises(QuotaUsedUp, match=r"5 images an hour .* these are 6; give fewer at once"):
        Quota(5).take("ann", 6)


def test_without_a_quota_nothing_is_counted() -> None:
    Quota(0).take("ann", 10**9)
