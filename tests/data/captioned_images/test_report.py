"""The account of what was dropped."""

import json
from collections import Counter

import pytest

from ldm_scaling.data import DataError
from ldm_scaling.data.captioned_images import Problem, Report
from ldm_scaling.data.captioned_images.report import NAMED


def report(kept=8, bad=1, small=1, shards=1):
    found = Report(shards=shards, entries=kept + bad + small, kept=Counter(train=kept))
    for i in range(bad):
        found.drop("s.tar", Problem("broken image", f"b{i}", "torn"))
    for i in range(small):
        found.drop("s.tar", Problem("small", f"s{i}"))
    return found


def test_the_first_of_each_reason_are_named_and_all_are_counted():
    total = Report.merge([report(bad=NAMED - 1), report(bad=NAMED)])
    assert total.dropped == {"broken image": 2 * NAMED - 1, "small": 2}
    assert len(total.named["broken image"]) == NAMED
    assert total.named["broken image"][:1] == ["s.tar: b0: torn"]
    assert (total.shards, total.kept["train"]) == (2, 16)


def test_json_and_back():
    text = report().to_json(source="here")
    assert json.loads(text)["source"] == "here"
    assert Report.from_dict(json.loads(text)) == report()


def test_the_table_accounts_for_everything():
    lines = report(kept=7, bad=1, small=2).table().splitlines()
    assert lines[0] == "10 entries in 1 shards"
    assert [line.split()[:2] for line in lines[1:]] == [
        ["kept", "train"],
        ["filtered", "small"],
        ["bad", "broken"],
    ]
    shares = [line.split(" %")[0].split()[-1] for line in lines[1:]]
    assert shares == ["70.00", "20.00", "10.00"]


def test_a_settable_share_may_be_bad_and_filters_do_not_count():
    report(kept=1, bad=1, small=98).check(max_bad_share=0.01)
    with pytest.raises(DataError, match=r"2 of 100 entries are bad.*max_bad_share=0.01.*b0: torn"):
        report(kept=1, bad=2, small=97).check(max_bad_share=0.01)


def test_damaged_shards_have_a_share_of_their_own():
    """A torn tar is one problem among thousands of entries, but may have lost thousands."""
    found = report(kept=10_000, bad=0, shards=10)
    found.drop("t.tar", Problem("damaged shard", "t.tar", "after 3 members: torn", numbered=False))
    found.check(max_bad_share=0.1)
    with pytest.raises(DataError, match=r"1 of 10 shards are bad.*t.tar: after 3 members"):
        found.check(max_bad_share=0.05)


def test_nothing_left_is_an_error():
    with pytest.raises(DataError, match=r"nothing is left of 3 entries:(.|\n)*small"):
        report(kept=0, bad=0, small=3).check(max_bad_share=1.0)


def test_reasons_are_known():
    with pytest.raises(ValueError, match="reason='odd'"):
        Problem("odd", "key")
