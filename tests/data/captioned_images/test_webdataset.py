"""Tars as they are found: whole, torn, hostile."""

import gzip
import json
import tarfile
import tracemalloc

import numpy as np
import pytest

from ldm_scaling.data.captioned_images import Entry, Problem
from ldm_scaling.data.captioned_images.webdataset import TarShard
from tests.data.captioned_images.sources import jpeg, samples, tar_bytes


def read(path, **options):
    """All items; checks on the way that the keys are those of the numbered items."""
    shard = TarShard(path, **{"max_bytes": 2**20, **options})
    items = list(shard.entries())
    numbered = [item.key for item in items if isinstance(item, Entry) or item.numbered]
    assert list(shard.keys()) == numbered
    return items


def without_end(tar):
    """The blocks of a tar up to the closing ones."""
    used = len(tar.rstrip(b"\0"))
    return tar[: -(-used // 512) * 512]


def problems(items):
    return [(item.reason, item.key) for item in items if isinstance(item, Problem)]


def test_entries_come_in_order_with_their_bytes(write_tar):
    members = list(samples(["a", "folder/b", "c.d"][:2]))
    items = read(write_tar(members))
    assert [(item.key, item.captions) for item in items] == [
        ("a", ("picture a",)),
        ("folder/b", ("picture folder/b",)),
    ]
    assert [item.image for item in items] == [members[0][1], members[2][1]]


def test_json_adds_captions_score_and_group(write_tar):
    meta = {"caption": ["one", " ", "two "], "aesthetic_score": "5.5", "group": "g"}
    bare = {"text": "by json", "key": "b"}
    members = [("a.json", json.dumps(meta).encode()), ("a.jpg", jpeg())]
    members += [("b.jpg", jpeg()), ("b.json", json.dumps(bare).encode())]
    members += [("c.jpg", jpeg()), ("c.json", b'{"caption": "no"}'), ("c.txt", b" by text\n")]
    a, b, c = read(write_tar(members))
    assert (a.captions, a.score, a.group) == (("one", "two"), 5.5, "g")
    assert (b.captions, b.score, b.group) == (("by json",), None, "")
    assert c.captions == ("by text",)


def test_fields_can_be_named(write_tar):
    meta = json.dumps({"caption": "alt text", "long": "described", "quality": 3}).encode()
    path = write_tar([("a.jpg", jpeg()), ("a.json", meta), ("a.txt", b"alt text")])
    (entry,) = read(path, caption_field="long", score_field="quality")
    assert (entry.captions, entry.score) == (("described",), 3.0)


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ([("a.txt", b"caption")], "no image"),
        ([("a.jpg", b"data")], "no caption"),
        ([("a.jpg", b"data"), ("a.txt", b" \n")], "no caption"),
        ([("a.jpg", b"data"), ("a.json", b"{torn")], "bad metadata"),
        ([("a.jpg", b"data"), ("a.json", b"[1]")], "bad metadata"),
        ([("a.jpg", b"data"), ("a.json", b'{"caption": 7}')], "bad metadata"),
        ([("a.jpg", b"data"), ("a.json", b'{"aesthetic": "much", "text": "x"}')], "bad metadata"),
        ([("a.jpg", bytes(2**20 + 1)), ("a.txt", b"caption")], "too many bytes"),
        ([("a.jpg", b"data"), ("a.txt", bytes(2**20 + 1))], "too many bytes"),
    ],
)
def test_what_is_incomplete_is_named_and_keeps_its_place(write_tar, member, reason):
    items = read(write_tar([*samples(["0"]), *member, *samples(["z"])]))
    assert problems(items) == [(reason, "a")]
    assert [item.key for item in items] == ["0", "a", "z"]


@pytest.mark.parametrize(
    "name", ["../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "..\\x.jpg", "C:\\x.jpg", "a/.."]
)
def test_names_that_lead_out_of_the_folder(write_tar, name):
    # Between the files of a whole example, which stays whole.
    image, caption = samples(["good"])
    items = read(write_tar([image, (name, b"x"), caption]))
    assert problems(items) == [("unsafe name", name)]
    assert items[-1].captions == ("picture good",)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_not_followed(write_tar, kind):
    header = tarfile.TarInfo("a.jpg")
    header.type, header.linkname = kind, "/etc/passwd"
    items = read(write_tar([(header, b""), *samples(["b"])]))
    assert problems(items) == [("not a file", "a.jpg")]
    assert items[-1].key == "b"


def test_folders_are_no_problem(write_tar):
    header = tarfile.TarInfo("folder")
    header.type = tarfile.DIRTYPE
    assert [item.key for item in read(write_tar([(header, b""), *samples(["folder/a"])]))] == [
        "folder/a"
    ]


def test_names_that_are_no_text(write_tar):
    (entry,) = read(write_tar([("\udcff.jpg", jpeg()), ("\udcff.txt", b"\xff caption")]))
    entry.key.encode()
    assert entry.captions[0].endswith(" caption")


def test_a_tar_torn_anywhere_keeps_what_came_before(write_tar):
    """At 60 places: keys and entries agree, and whole examples before the tear stay."""
    whole = tar_bytes(samples("abcdef"))
    expected = [item.image for item in read(write_tar(whole))]
    rng = np.random.default_rng(0)
    for cut in [0, 1, 511, 512, 513, *rng.integers(0, len(without_end(whole)), 55)]:
        items = read(write_tar(whole[:cut]))
        assert items[-1].reason == "damaged shard"
        assert items[-1].key == "00000.tar"
        found = [item.image for item in items if isinstance(item, Entry)]
        assert found == expected[: len(found)]
        assert len(problems(items)) <= 2  # the torn example, and the shard


def test_a_spoilt_header_is_not_taken_for_the_end(write_tar):
    whole = bytearray(tar_bytes(samples("abc")))
    at = whole.index(b"b.jpg")
    whole[at : at + 8] = b"\xff" * 8
    items = read(write_tar(bytes(whole)))
    assert [item.key for item in items] == ["a", "00000.tar"]
    assert "after 2 members" in items[-1].detail


def test_bytes_that_are_no_tar(write_tar):
    for data in (b"", b"no tar at all", bytes(range(256)) * 64):
        (problem,) = read(write_tar(data))
        assert problem.reason == "damaged shard"


def test_a_size_that_is_a_lie(write_tar):
    """A header may claim any size; none of it is believed or waited for."""
    for name, kind in (("a.jpg", tarfile.REGTYPE), ("././@LongLink", tarfile.GNUTYPE_LONGNAME)):
        header = tarfile.TarInfo(name)
        header.type, header.size = kind, 10**12
        data = (
            without_end(tar_bytes(samples(["0"]))) + header.tobuf(tarfile.GNU_FORMAT) + bytes(2000)
        )
        tracemalloc.start()
        items = read(write_tar(data))
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()
        assert items[0].key == "0"
        assert items[-1].reason == "damaged shard"


def test_gzipped_tars(write_tar):
    whole = gzip.compress(tar_bytes(samples("abc")))
    for name in ("0.tar.gz", "0.tgz"):
        assert [item.key for item in read(write_tar(whole, name))] == ["a", "b", "c"]
    for cut in range(0, len(whole) - 10, 50):
        assert read(write_tar(whole[:cut], "1.tar.gz"))[-1].reason == "damaged shard"
    spoilt = bytearray(whole)
    spoilt[100:110] = bytes(10)
    assert read(write_tar(bytes(spoilt), "2.tar.gz"))[-1].reason == "damaged shard"


def test_one_image_is_in_memory_not_the_shard(write_tar):
    path = write_tar(
        member
        for i in range(40)
        for member in ((f"{i:02d}.jpg", bytes([i]) * 2**20), (f"{i:02d}.txt", b"caption"))
    )
    shard = TarShard(path, max_bytes=2**20)
    tracemalloc.start()
    assert sum(1 for _ in shard.entries()) == 40
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()
