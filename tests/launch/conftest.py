import shutil

import pytest

from tests.launch.cloud import Cloud


@pytest.fixture
def cloud(tmp_path):
    if shutil.which("flock") is None or shutil.which("setsid") is None:
        pytest.skip("workers are Linux machines: needs flock and setsid")
    cloud = Cloud(tmp_path)
    yield cloud
    cloud.close()
