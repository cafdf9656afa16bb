"""What gunicorn loads. The patch comes first: whatever is imported after it waits cooperatively."""

from gevent import monkey

monkey.patch_all()

from gateway.app import create_app  # noqa: E402
from gateway.settings import Settings  # noqa: E402

app = create_app(Settings.load())
