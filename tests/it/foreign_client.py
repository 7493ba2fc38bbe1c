"""Publishes jobs as an app that knows nothing of errand but its documentation would, and waits for replies.

Reads {"url": ..., "jobs": [...], "replies": bool} from standard input. Prints the replies as JSON.
"""

import json
import sys
import uuid

import pika

asked = json.load(sys.stdin)
connection = pika.BlockingConnection(pika.URLParameters(asked["url"]))
channel = connection.channel()
channel.confirm_delivery()
reply_to = channel.queue_declare(queue="", exclusive=True).method.queue if asked["replies"] else None
for job in asked["jobs"]:
    channel.basic_publish(
        exchange="errand",
        routing_key="default",
        body=json.dumps(job),
        mandatory=True,
        properties=pika.BasicProperties(
            content_type="application/json",
            delivery_mode=2,
            message_id=job.get("id", str(uuid.uuid4())),
            correlation_id="order-" + job.get("id", "?"),
            reply_to=reply_to,
            headers={"x-app": "shop", "nested": {"a": [1, 2]}},
        ),
    )
replies = []
if reply_to:
    for method, properties, body in channel.consume(reply_to, inactivity_timeout=60):
        if method is None:
            break
        channel.basic_ack(method.delivery_tag)
        replies.append({"correlation_id": properties.correlation_id, "job": json.loads(body)})
        if len(replies) == len(asked["jobs"]):
            break
print(json.dumps(replies))
connection.close()
