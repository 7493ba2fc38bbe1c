"""A shop that has errand call tools for its users: what an app does with errand, from its first job to events and replies.

    python3 shop.py        # against `errand dev`; ERRAND_URL and ERRAND_KEY name another server, AMQP_URL a broker

It needs nothing but Python 3.9, and pika (`python3 -m pip install pika`) for the broker.
"""

import json
import os
import time
import urllib.error
import urllib.request
import uuid


class Refused(Exception):
    """An answer of the API that sending the request again does not change."""


class Errand:
    """The HTTP API. Each request may be sent again: a job has an ID, and a batch a key."""

    def __init__(self, url, key=None):
        self.url = url
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    def call(self, method, path, body=None, timeout=60, **headers):
        """The JSON of an answer. While the API is away or asks for patience, the request is sent again for two minutes."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        data = None
        if body is not None:
            data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        until = time.monotonic() + 120
        while True:
            request = urllib.request.Request(self.url + path, data, {**self.headers, **headers}, method=method)
            try:
                with urllib.request.urlopen(request, timeout=timeout) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code not in (429, 503):
                    raise Refused(json.load(error)["detail"]) from None
                wait = float(error.headers.get("Retry-After", 1))
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                wait = 1
            if time.monotonic() + wait > until:
                raise TimeoutError(f"{method} {path} was not answered for two minutes")
            time.sleep(wait)

    def run(self, job):
        """Enqueues a job and waits until it is final, or held until somebody sees to it. The `id` of the job keeps a repeated request
        from being a second one."""
        done = self.call("POST", "/v1/jobs", job, Prefer="wait=30")
        while done["finished_at"] is None and done["held_reason"] is None:
            done = self.call("GET", f"/v1/jobs/{done['id']}?wait=30")
        return done

    def batch(self, jobs, key):
        """Enqueues jobs together. The same key is the same batch."""
        return self.call("POST", "/v1/batches", {"items": jobs}, Idempotency_Key=key)

    def events(self, of, after=None):
        """The events of `job=ID` or `batch=ID` until its end, through lost connections. Keep `cursor` to go on there."""
        while True:
            headers = {**self.headers, "Accept": "text/event-stream"}
            if after is not None:
                headers["Last-Event-ID"] = after
            request = urllib.request.Request(f"{self.url}/v1/events?{of}", headers=headers)
            try:
                # A comment comes every 15 seconds at least.
                with urllib.request.urlopen(request, timeout=45) as stream:
                    if stream.status == 204:
                        return
                    seen, event = after, None
                    for line in stream:
                        name, _, value = line.decode().rstrip("\r\n").partition(": ")
                        if name == "id":
                            seen = value
                        elif name == "data":
                            event = json.loads(value)
                        elif line.strip() == b"":
                            # Here it is whole. A comment has a cursor, too, and no event.
                            if event is not None:
                                yield event
                            after, event = seen, None
            except urllib.error.HTTPError as error:
                if error.code not in (429, 503):
                    raise Refused(json.load(error)["detail"]) from None
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                pass
            time.sleep(1)


def read_repository(user, name):
    return {
        "id": str(uuid.uuid4()),
        "user_id": user,
        "tool": "GITHUB_GET_REPO",
        "arguments": {"owner": "o", "repo": name},
    }


def reply_over_amqp(url, job):
    """Publishes a job at the broker and waits for what became of it."""
    import pika

    channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
    channel.confirm_delivery()
    replies = channel.queue_declare("", exclusive=True).method.queue
    properties = pika.BasicProperties(
        delivery_mode=2, content_type="application/json", reply_to=replies, correlation_id="order-17"
    )
    channel.basic_publish("errand", "default", json.dumps(job), properties, mandatory=True)
    for _, properties, body in channel.consume(replies, auto_ack=True, inactivity_timeout=60):
        if body is None:
            raise TimeoutError("no reply within a minute: publish the same again, or read the job over HTTP")
        reply = json.loads(body)
        if reply["reply"] != "held":  # `final` follows
            return properties.correlation_id, reply


def main():
    errand = Errand(os.environ.get("ERRAND_URL", "http://127.0.0.1:8080"), os.environ.get("ERRAND_KEY"))

    job = errand.run(read_repository("u-alice", "first"))
    print("one job:", job["state"], job["result"] or job["error"])

    batch = errand.batch([read_repository("u-alice", f"repo-{n}") for n in range(5)], key=str(uuid.uuid4()))
    for event in errand.events(f"batch={batch['id']}"):
        print("event:", event["type"], event["job_id"] or "")
    batch = errand.call("GET", f"/v1/batches/{batch['id']}")
    print("batch:", batch["counts"])

    if os.environ.get("AMQP_URL"):
        order, reply = reply_over_amqp(os.environ["AMQP_URL"], read_repository("u-alice", "last"))
        print("reply:", order, reply["reply"], reply.get("state") or reply.get("message"))


if __name__ == "__main__":
    main()
