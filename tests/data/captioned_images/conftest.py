"""A folder to write tars into."""

import pytest

from tests.data.captioned_images.sources import tar_bytes


@pytest.fixture
def write_tar(tmp_path):
    """Writes a tar into the folder "source" and returns its path."""

    def write(members, name="00000.tar"):
        path = tmp_path / "source" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(members if isinstance(members, bytes) else tar_bytes(members))
        return path

    return write
