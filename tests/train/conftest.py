"""Places for copies of runs."""

import logging

import pytest
from object_store import BUCKET, s3_server


@pytest.fixture(scope="module")
def s3():
    """The environment in which s3:// is a server of these tests."""
    with s3_server() as env:
        yield env


@pytest.fixture(params=["file", "s3"])
def url(request, tmp_path, monkeypatch):
    """An empty folder at a URL."""
    if request.param == "file":
        return f"file://{tmp_path}/mirror"
    for name, value in request.getfixturevalue("s3").items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture
def folder_url(tmp_path):
    """Likewise, on this disk: for what does not depend on the service."""
    return f"file://{tmp_path}/mirror"


@pytest.fixture
def quiet():
    """Logging handlers of runs are not left to others."""
    yield
    logger = logging.getLogger("gam_scale")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
