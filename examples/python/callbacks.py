"""Receives what errand calls back with, and believes only what is signed with its secret.

    CALLBACK_SECRET=whsec_... python3 callbacks.py     # on port 8098 of 127.0.0.1, or on CALLBACK_PORT

It needs nothing but Python 3.9.
"""

import base64
import hashlib
import hmac
import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = os.environ["CALLBACK_SECRET"]

# IDs, because a callback may come twice. An app keeps them in its database, with what it does about the callback.
RECEIVED = set()


def is_genuine(headers, body):
    """Whether it is signed with the secret, unaltered, and not more than five minutes old (Standard Webhooks)."""
    ident, at, signatures = (headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature"))
    if not at.isdecimal() or abs(time.time() - int(at)) > 300:
        return False
    key = base64.b64decode(SECRET[len("whsec_") :])
    # The body is looked at as it came: parsed and written anew, it would have another signature.
    tag = hmac.new(key, f"{ident}.{at}.".encode() + body, hashlib.sha256).digest()
    expected = b"v1," + base64.b64encode(tag)
    return any(hmac.compare_digest(expected, one.encode()) for one in signatures.split(" "))


class Receiver(BaseHTTPRequestHandler):
    timeout = 10

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        # Nobody knows yet who sends it.
        if length > 1024 * 1024:
            self.answer(413)
            return
        body = self.rfile.read(length)
        if not is_genuine(self.headers, body):
            self.answer(401)
            return
        ident, callback = self.headers["webhook-id"], json.loads(body)
        if ident not in RECEIVED:
            print("callback:", callback["type"], callback["data"]["job_id"], flush=True)
        RECEIVED.add(ident)
        # One of 2xx says that the callback need not come again.
        self.answer(204)

    def answer(self, status):
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("CALLBACK_PORT", 8098))), Receiver)
    print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
