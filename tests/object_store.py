"""A real S3 server on this machine, and the environment that leads clients to it."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

BUCKET = "bucket"


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Run moto's server with one empty bucket; yield the variables that lead s3:// URLs to it."""
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    import logging

    import boto3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else it logs every request
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        env = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
        client = boto3.client(
            "s3", endpoint_url=env["AWS_ENDPOINT_URL"], region_name="us-east-1", **keys
        )
        client.create_bucket(Bucket=BUCKET)
        yield env
    finally:
        server.stop()
