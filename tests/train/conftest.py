"""Fixtures of these tests: URLs to mirror a run to, and logging without leftovers."""

import logging

import pytest
from object_store import BUCKET, s3_server


@pytest.fixture(scope="module")
def s3():
    """Yield environment variables that make s3:// URLs lead to the tests' own server."""
    with s3_server() as env:
        yield env


@pytest.fixture(params=["file", "s3"])
def url(request, tmp_path, monkeypatch):
    """Return the URL of an empty folder, on this disk or on the tests' S3 server."""
    if request.param == "file":
        return f"file://{tmp_path}/mirror"
    for name, value in request.getfixturevalue("s3").items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture
def folder_url(tmp_path):
    """Return the URL of an empty folder on this disk, for tests that need no S3 server."""
    return f"file://{tmp_path}/mirror"


@pytest.fixture
def quiet():
    """Remove a run's logging handlers after the test, so that no other test inherits them."""
    yield
    logger = logging.getLogger("gam_scale")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
